from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from intune.pipelines import Budget, Pipeline, plan
from intune.pipelines import loader as loader_module
from intune.pipelines.errors import ConfigError, SchemaError
from intune.pipelines.schema import Ragged
from intune.pipelines.transfer import Device, Moving, to_tensor, to_tensors, unlocked

cuda = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


@pytest.mark.parametrize(
    "code", ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"]
)
def test_numbers_become_tensors_over_the_same_memory(code: str) -> None:
    array = np.arange(6).astype(code).reshape(3, 2)
    tensor = to_tensor(array)
    assert tensor.data_ptr() == array.__array_interface__["data"][0]
    assert tensor.shape == (3, 2)
    assert tensor.numpy().tobytes() == array.tobytes()


def test_a_view_from_an_object_store_is_made_writable_without_a_copy() -> None:
    array = np.arange(5)
    array.flags.writeable = False
    tensor = to_tensor(array)
    assert tensor.data_ptr() == array.__array_interface__["data"][0]
    assert unlocked(array).flags.writeable
    mine = np.arange(3)
    assert unlocked(mine) is mine


def test_the_memory_under_a_tensor_stays_alive() -> None:
    array = np.arange(100_000)
    array.flags.writeable = False
    tensor = to_tensor(array)
    del array
    torch.zeros(100_000, dtype=torch.int64)
    assert tensor.sum() == 100_000 * 99_999 // 2


def test_lists_become_ragged_tensors_and_strings_stay() -> None:
    ragged = Ragged(np.array([1.0, 2.0, 3.0]), np.array([0, 1, 3]))
    made = to_tensor(ragged)
    assert isinstance(made, Ragged)
    assert made.values.tolist() == [1.0, 2.0, 3.0]
    assert made.offsets.tolist() == [0, 1, 3]
    bag = torch.nn.functional.embedding_bag(
        torch.tensor([0, 1, 1]), torch.eye(2), made.offsets, mode="sum", include_last_offset=True
    )
    assert bag.tolist() == [[1.0, 0.0], [0.0, 2.0]]
    text = pa.array(["a"])
    assert to_tensor(text) is text
    words = to_tensor(Ragged(text, np.array([0, 1])))
    assert words.values is text
    tensor = torch.zeros(3)
    assert to_tensor(tensor) is tensor


def test_a_backwards_view_and_a_field_of_a_packed_record_are_copied() -> None:
    assert to_tensor(np.arange(4)[::-1]).tolist() == [3, 2, 1, 0]
    records = np.array([(1, 0.5), (2, 1.5)], dtype=[("flag", "i1"), ("price", "f4")])
    assert to_tensor(records["price"]).tolist() == [0.5, 1.5]


@pytest.mark.parametrize(
    "array", [np.array(["a"]), np.array([None]), np.zeros(2, "M8[s]"), np.zeros(2, ">i4")]
)
def test_what_no_tensor_holds_is_named_with_its_column(array: Any) -> None:
    with pytest.raises(SchemaError, match=r"column 'bad' holds .*, which no tensor can; convert it in a map"):
        to_tensors({"good": np.zeros(2), "bad": array})


def test_a_device_that_is_not_there_is_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, data_sets: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        ConfigError, match=r"`device`='cuda', but no CUDA device is available; use .to\('cpu'\)"
    ):
        Device("cuda")
    pipe = Pipeline.from_parquet(data_sets.folder([[5]])).batch(2).to("cuda")
    with pytest.raises(ConfigError, match="no CUDA device is available"):
        pipe.loader(executor="threads", budget=Budget(cpus=1, memory=1 << 24))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"`device`='cuda:2', but there are only 2 CUDA device\(s\)"):
        Device("cuda:2")


def test_cuda_is_the_device_of_the_trainers_thread_in_every_thread(
    monkeypatch: pytest.MonkeyPatch, data_sets: Any
) -> None:
    trainer, seen = threading.current_thread(), []

    def stage(device: Device, batch: dict[str, Any]) -> dict[str, Any]:
        seen.append(device.name)
        return to_tensors(batch)

    chosen = 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    # As CUDA has it: a choice is the thread's own, a new thread uses the first device.
    monkeypatch.setattr(
        torch.cuda, "current_device", lambda: chosen if threading.current_thread() is trainer else 0
    )
    monkeypatch.setattr(Device, "stage", stage)
    pipe = Pipeline.from_parquet(data_sets.folder([[4]])).batch(4).to("cuda")
    with pipe.loader(executor="threads", budget=Budget(cpus=1, memory=1 << 24)) as loader:
        chosen = 1
        assert len(list(loader)) == 1
        chosen = 2
        assert len(list(loader)) == 1
    assert seen == ["cuda:1", "cuda:2"]


def test_a_slow_trainer_on_a_device_is_not_run_away_from(
    monkeypatch: pytest.MonkeyPatch, data_sets: Any
) -> None:
    """What is on its way to the device counts as held: else all of an epoch would be moved there at once."""
    staged = []

    def stage(device: Device, batch: dict[str, Any]) -> dict[str, Any]:
        staged.append(batch)
        source = {**batch, "wide": np.zeros((len(batch["id"]), 1 << 14))}
        return Moving({name: torch.empty(1, device="meta") for name in batch}, None, source)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(Device, "stage", stage)
    monkeypatch.setattr(Device, "hand_over", lambda self, batch: dict(batch))
    pipe = Pipeline.from_parquet(data_sets.folder([[10] * 100])).batch(10).to("cuda:0")
    monkeypatch.setattr(plan, "BLOCK_ROWS", 10)
    monkeypatch.setattr(loader_module, "BLOCK_ROWS", 10)
    with pipe.loader(executor="threads", budget=Budget(cpus=2, memory=1 << 24)) as loader:
        stream = iter(loader)
        next(stream)
        deadline = time.monotonic() + 60
        while len(staged) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)  # real threads work on
        time.sleep(0.2)
        assert 4 <= len(staged) <= 14  # 1.3 MB a batch: twelve fit
        assert loader.stats().memory_held <= 1 << 24
        assert sum(1 for _ in stream) == 99


def test_on_the_cpu_a_batch_is_handed_over_as_it_is() -> None:
    device = Device("cpu")
    staged = device.stage({"x": np.arange(3)})
    assert type(staged) is dict
    assert device.hand_over(staged) is staged


def test_every_tensor_of_a_batch_is_kept_until_the_consumers_stream_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those of lists of lists too: their memory would go to the next batch while this one is read."""
    kept: list[torch.Tensor] = []
    stream = SimpleNamespace(wait_event=lambda event: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda name: stream)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: kept.append(tensor))
    parts = [torch.arange(count) for count in (3, 4, 3, 2)]
    number, values, inner, outer = parts
    batch = Moving(
        {"x": number, "lists": Ragged(Ragged(values, inner), outer), "text": pa.array(["a"])}, None, None
    )
    assert list(Device("cpu").hand_over(batch)) == ["x", "lists", "text"]
    assert list(map(id, kept)) == list(map(id, parts))


@pytest.mark.parametrize("marks", [pytest.param(None, marks=cuda)])
class TestCuda:
    """On a machine with CUDA."""

    def batch(self) -> dict[str, Any]:
        return {
            "x": np.arange(1000, dtype=np.float32),
            "bag": Ragged(np.arange(10), np.array([0, 4, 10])),
            "text": pa.array(["a"]),
            "there": torch.ones(3, device="cuda"),
        }

    def test_a_batch_arrives_whole_on_the_consumers_stream(self, marks: None) -> None:
        device = Device("cuda")
        staged = device.stage(self.batch())
        assert isinstance(staged, Moving)
        with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
            moved = device.hand_over(staged)
            total = moved["x"].sum()
        torch.cuda.synchronize()
        assert type(moved) is dict
        assert moved["x"].device.type == "cuda"
        assert total.item() == 999 * 500
        assert moved["bag"].offsets.tolist() == [0, 4, 10]
        assert moved["text"].to_pylist() == ["a"]
        assert moved["there"].tolist() == [1.0, 1.0, 1.0]

    def test_the_copy_runs_beside_the_consumers_work(self, marks: None) -> None:
        device = Device("cuda")
        big = {"x": np.ones(1 << 22, dtype=np.float32)}
        device.stage(big)  # pinned memory is kept from here on; to get it first waits for the device
        torch.cuda.synchronize()
        torch.cuda._sleep(1_000_000_000)  # type: ignore[no-untyped-call]  # keeps the consumer's stream busy for half a second
        staged = device.stage(big)
        staged.event.synchronize()  # type: ignore[attr-defined]
        assert not torch.cuda.current_stream().query(), "the copy waited for the consumer's stream"
        assert device.hand_over(staged)["x"].sum().item() == 1 << 22

    def test_an_epoch_on_the_device_is_the_one_on_the_cpu(self, marks: None, data_sets: Any) -> None:
        folder = data_sets.folder([[40, 40], [17]])
        pipe = Pipeline.from_parquet(folder).shuffle(2, seed=1).batch(8)
        budget = Budget(cpus=2, memory=1 << 26)
        run: Callable[[str], list[Any]] = lambda device: [  # noqa: E731
            (batch["id"].tolist(), batch["bag"].values.tolist())
            for batch in pipe.to(device).loader(executor="threads", budget=budget)
        ]
        assert run("cuda") == run("cpu")
