"""Bytes of batches of every kind, each piece of memory once."""

import sys
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from intune.adapters.dataloader.batch_bytes import LOOKED_AT, visible_bytes


def total(payload) -> int:
    return sum(visible_bytes(payload).values())


def test_tensors_and_arrays_count_with_what_they_show_and_once():
    tensor, array = torch.zeros(1000), np.zeros((10, 10))
    assert total(tensor) == 4000
    assert total(tensor[:10]) == 40
    assert total(array) == 800
    many = [tensor, tensor, array]
    assert total(many) - sys.getsizeof(many) == 4800
    assert total(torch.zeros(3, device="meta")) == 0
    assert total(torch.zeros(0)) == total(None) == total(True) == 0
    sparse = torch.zeros(100, 100)
    sparse[3, 4] = 1
    assert total(sparse.to_sparse()) == 16 + 4
    assert total(pa.array([1, 2, 3])) == 24


def test_texts_and_containers_at_any_depth_count():
    text = "x" * 10_000
    assert total(text) == sys.getsizeof(text)
    assert total({"a": [(text, b"y" * 5000)]}) > 15_000
    assert total(np.array([text, "z"], dtype=object)) > 10_000


@dataclass
class Batch:
    x: torch.Tensor
    rest: dict


def test_objects_count_with_their_attributes_images_and_frames_with_what_they_say():
    class Image:
        size = (100, 50)

        def getbands(self):
            return ("R", "G", "B")

    class Frame:
        def memory_usage(self):
            return [100, 200]

    assert 4000 <= total(Batch(torch.zeros(1000), {})) < 5000
    assert total(Image()) == 15_000
    assert total(Frame()) == 300


def test_a_long_list_is_estimated_from_some_of_it():
    samples = [(torch.zeros(100), i) for i in range(10_000)]
    exact = sum(400 + sys.getsizeof(one) + sys.getsizeof(one[1]) for one in samples) + sys.getsizeof(samples)
    assert abs(total(samples) - exact) < 0.02 * exact
    assert len(visible_bytes(samples)) < 4 * 2 * LOOKED_AT


def test_what_refers_to_itself_ends():
    loop = []
    loop.append(loop)
    assert total(loop) == sys.getsizeof(loop)


def test_objects_that_refer_to_each_other_are_looked_at_once_each():
    """Else there would be as many ways from one to another as powers of how many there are."""

    looks = []

    class Node:
        def __init__(self, others):
            self.others = others

        @property
        def nbytes(self):
            looks.append(1)  # not a number of bytes: its attributes are looked at

    nodes = []
    nodes.extend(Node(nodes) for _ in range(300))
    assert total(nodes) > 0
    assert len(looks) <= 300
