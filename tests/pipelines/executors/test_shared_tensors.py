"""Tensors in shared memory are the same memory in another process, for as long as they are there."""

import gc
import os
import pickle
import subprocess
import sys

import cloudpickle
import pytest
import torch

from intune.pipelines.executors import shared_tensors
from intune.pipelines.executors.packing import by_value
from intune.pipelines.executors.processes import ProcessPool
from intune.pipelines.stages import Map


def test_what_is_written_is_seen_where_it_was_sent():
    kept = torch.zeros(3, 4).share_memory_()
    column = kept[1:, 2]

    def look(block):
        column[0] += 1
        return {"sum": kept.sum().item()}

    stage = Map(function=look, workers="process", name="look")
    pool = ProcessPool([stage])
    try:
        assert pool(stage, {})["sum"] == 1
        kept[0, 0] = 10
        assert kept[1, 2] == 1
        assert pool(stage, {})["sum"] == 12
    finally:
        pool.close()


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.tensor(5).share_memory_(),
        lambda: torch.arange(12.0).reshape(3, 4).share_memory_().T[1:, ::2],
        lambda: torch.ones(3, dtype=torch.bool).share_memory_(),
        lambda: torch.zeros(0).share_memory_(),
    ],
)
def test_shape_and_kind_stay_and_what_it_lies_in_is_one(make):
    tensor = make()
    made = pickle.loads(by_value([tensor], shared=True))[0]
    assert (made.dtype, made.shape, made.stride()) == (tensor.dtype, tensor.shape, tensor.stride())
    assert torch.equal(made, tensor)
    tensor.fill_(0)
    assert torch.equal(made, tensor)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(3),
        lambda: torch.zeros(3).share_memory_().requires_grad_(),
        lambda: torch.nn.Parameter(torch.zeros(3)).share_memory_(),
        lambda: [0.0],
    ],
)
def test_everything_else_travels_by_value(make):
    assert shared_tensors.memory_of(make()) is None


def test_only_to_processes_of_this_machine_and_where_they_can_open_it(monkeypatch):
    tensor = torch.zeros(3).share_memory_()
    assert not pickle.loads(by_value(tensor)).is_shared()
    monkeypatch.setattr(shared_tensors, "_identity", lambda path: os.stat("/not/there"))
    assert not pickle.loads(by_value(tensor, shared=True)).is_shared()


def test_a_tensor_in_a_file_of_the_users_is_left_there(tmp_path):
    path = tmp_path / "numbers"
    path.write_bytes(bytes(80))
    tensor = torch.from_file(str(path), shared=True, size=80, dtype=torch.uint8)
    assert shared_tensors.memory_of(tensor) is None
    tensor.fill_(1)
    assert path.read_bytes() == bytes([1]) * 80


def test_the_memory_lives_as_long_as_the_stream_and_is_no_other_then():
    stream = by_value([torch.ones(3).share_memory_()], shared=True)
    gc.collect()
    assert pickle.loads(stream)[0].tolist() == [1, 1, 1]
    assert type(pickle.loads(pickle.dumps(stream))) is bytes
    copy = bytes(stream)
    del stream
    gc.collect()
    other = torch.zeros(3).share_memory_()  # gets the number of the file that is gone
    with pytest.raises(OSError, match=r"the tensor in shared memory is gone|No such file"):
        pickle.loads(copy)
    assert other.sum() == 0


def test_torch_is_not_imported_for_it():
    code = (
        "import sys, intune.pipelines.executors.packing as p; p.by_value([1], shared=True);"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert cloudpickle.loads(by_value([1], shared=True)) == [1]
