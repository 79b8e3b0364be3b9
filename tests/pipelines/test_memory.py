"""The ledger against buffers known by construction, roots of every kind of column, and processes' memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from intune.pipelines import memory
from intune.pipelines.arrow import to_column
from intune.pipelines.memory import MemoryLedger, peak_resident_bytes, resident_bytes, roots
from intune.pipelines.payloads import Piece
from intune.pipelines.schema import Ragged, slice_column
from intune.pipelines.transfer import Moving, to_tensor, unlocked

ROWS = 64


def owned(rows: int = ROWS) -> Any:
    return np.arange(rows, dtype=np.int64)


def exposed(rows: int = ROWS) -> Any:
    """A column as the loader makes it: NumPy over an Arrow buffer."""
    return to_column(pa.chunked_array([pa.array(np.arange(rows, dtype=np.int64))]))


def size(payload: Any) -> int:
    return sum(roots(payload).values())


# ---- roots -------------------------------------------------------------------------------------------------------


def test_views_count_as_the_array_under_them() -> None:
    whole = owned()
    views = [whole[8:16], whole[::-1], whole[1:][1:][1:], whole.view(np.float64), whole.reshape(8, 8).T]
    assert roots(views) == roots(whole) == {whole.ctypes.data: ROWS * 8}


def test_columns_over_one_arrow_array_count_its_buffer_once() -> None:
    array = pa.array(np.arange(ROWS, dtype=np.int64))
    first, second = (to_column(pa.chunked_array([part])) for part in (array.slice(0, 8), array.slice(8)))
    buffer = array.buffers()[1]
    assert roots([first, second[3:]]) == {buffer.address: buffer.size}
    assert roots(array) == roots(first)


@pytest.mark.parametrize("make", [owned, exposed], ids=["numpy", "arrow"])
def test_batches_of_a_block_share_its_roots(make: Callable[[], Any]) -> None:
    block = {f"c{i}": make() for i in range(5)}
    batches = [{name: column[at : at + 8] for name, column in block.items()} for at in range(0, ROWS, 8)]
    assert roots(batches) == roots(block)
    assert size(block) == 5 * ROWS * 8


def test_a_list_column_counts_both_parts() -> None:
    values, offsets = owned(100), np.arange(0, 101, 10)
    assert roots({"bag": Ragged(values, offsets)}) == roots(values) | roots(offsets)
    assert size(Ragged(values, offsets)) == 100 * 8 + 11 * 8
    assert size(slice_column(Ragged(values, offsets), 0, 2)) == 100 * 8 + 3 * 8


def test_strings_count_every_buffer_and_slices_the_whole() -> None:
    array = pa.array(["a", None, "bc"] * 20)
    expected = {buffer.address: buffer.size for buffer in array.buffers()}
    assert len(expected) == 3
    assert roots(array) == roots(array.slice(5, 2)) == roots(pa.chunked_array([array])) == expected


def test_a_dictionary_is_counted() -> None:
    array = pa.array(["ab", "cd", "ab"]).dictionary_encode()
    assert roots(array.dictionary).items() <= roots(array).items()
    assert roots(array.indices).items() <= roots(array).items()


def test_a_slice_of_an_arrow_buffer_counts_the_whole_buffer() -> None:
    whole = pa.py_buffer(bytes(800))
    part = pa.Array.from_buffers(pa.int64(), 10, [None, whole.slice(80, 80)])
    assert roots(part) == roots(whole) == {whole.address: 800}
    assert roots(np.frombuffer(whole.slice(80, 80), dtype=np.int64)) == {whole.address: 800}
    assert roots(np.frombuffer(memoryview(whole), dtype=np.int64)) == {whole.address: 800}


def test_tensors_count_their_storage() -> None:
    tensor = torch.arange(ROWS)
    assert roots([tensor[3:5], tensor.view(8, 8)]) == {tensor.data_ptr(): ROWS * 8}
    assert roots(tensor[3:5].numpy()) == {tensor.data_ptr(): ROWS * 8}


@pytest.mark.parametrize("make", [owned, exposed], ids=["numpy", "arrow"])
def test_a_tensor_over_a_column_is_the_columns_memory(make: Callable[[], Any]) -> None:
    column = make()
    assert roots([column, to_tensor(column)]) == roots(column)


def test_a_column_made_writable_is_the_same_memory() -> None:
    column = owned()
    column.flags.writeable = False
    assert roots(unlocked(column[8:])) == roots(column)


def test_an_array_over_foreign_memory_counts_itself() -> None:
    column = np.frombuffer(bytearray(80), dtype=np.int64)
    assert size(column[2:4]) == 80


@pytest.mark.parametrize(
    "payload",
    [None, 3, "text", {}, [], [None, {}], np.empty(0), pa.array([], pa.int64()), torch.empty(0),
     torch.empty(3, device="meta"), torch.eye(3).to_sparse(), SimpleNamespace(rows=3)],
    ids=["none", "number", "text", "dict", "list", "nested", "numpy", "arrow", "torch", "meta", "sparse", "object"],
)  # fmt: skip
def test_what_holds_no_host_memory(payload: Any) -> None:
    assert roots(payload) == {}


def test_an_object_with_values_is_a_block() -> None:
    column = owned()
    split = SimpleNamespace(values=lambda: [column])
    assert roots(split) == roots({"x": column}.values()) == roots([column])


def test_a_batch_on_its_way_keeps_its_source() -> None:
    """In the form in which a task hands it on: else nothing would count, and no trainer be too slow for more."""
    held = {"x": owned()}
    batch = Moving({"x": torch.empty(3, device="meta")}, None, held)
    assert roots([Piece(batch, [0, 3]), Piece(None, [0, 0])]) == roots(held)


def test_what_a_function_made_on_a_device_counts() -> None:
    class OnDevice:
        is_cpu = is_meta = is_sparse = is_sparse_csr = False
        device = "cuda:0"

        def untyped_storage(self) -> Any:
            return SimpleNamespace(nbytes=lambda: 12, data_ptr=lambda: 64)

    assert roots([Piece({"x": OnDevice(), "y": OnDevice()}, [0, 3])]) == {("cuda:0", 64): 12}


def test_of_many_views_of_few_arrays_each_array_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is done for every task, and finding an array's address costs ten times as much as knowing it again."""
    block = {f"c{i}": exposed() for i in range(40)}
    batches = [{name: column[at : at + 8] for name, column in block.items()} for at in range(0, ROWS, 8)]
    looked_at = []
    add = memory._add_array
    monkeypatch.setattr(memory, "_add_array", lambda *given: (looked_at.append(given[0]), add(*given)))
    assert len(roots(batches)) == len(looked_at) == 40


# ---- the ledger --------------------------------------------------------------------------------------------------


def test_a_shared_buffer_counts_until_its_last_user_goes() -> None:
    ledger = MemoryLedger()
    block = {"x": owned()}
    assert ledger.add("block", roots(block)) == ROWS * 8
    assert ledger.add("batches", roots([{"x": block["x"][:8]}, {"x": block["x"][8:]}])) == 0
    assert ledger.release("block") == 0
    assert (ledger.held, ledger.peak, len(ledger)) == (ROWS * 8, ROWS * 8, 1)
    assert ledger.release("batches") == ROWS * 8
    assert (ledger.held, ledger.peak, len(ledger)) == (0, ROWS * 8, 0)


def test_a_key_that_is_not_there_holds_nothing() -> None:
    ledger = MemoryLedger()
    assert ledger.release("nothing") == 0
    assert ledger.held == 0


def test_adding_a_key_again_replaces_it() -> None:
    ledger = MemoryLedger()
    ledger.add("a", {1: 10, 2: 20})
    assert ledger.add("a", {2: 20, 3: 5}) == 5
    assert ledger.held == 25
    assert ledger.release("a") == 25
    assert ledger.held == 0


def test_a_buffer_first_seen_in_part_counts_whole_once_seen_whole() -> None:
    ledger = MemoryLedger()
    ledger.add("part", {1: 10})
    assert ledger.add("whole", {1: 100}) == 90
    assert ledger.add("part again", {1: 10}) == 0
    ledger.release("whole")
    ledger.release("part")
    assert ledger.held == 100
    ledger.release("part again")
    assert ledger.held == 0


def test_clear_forgets_all_but_the_peak() -> None:
    ledger = MemoryLedger()
    ledger.add("a", {1: 10})
    ledger.clear()
    assert (ledger.held, ledger.peak, len(ledger)) == (0, 10, 0)
    assert ledger.add("a", {1: 10}) == 10


@dataclass
class Known:
    """A column and the buffers it was made of, known because they were made here and not by looking."""

    column: Any
    buffers: frozenset[int]


@dataclass
class World:
    """Blocks alive, and the size of every buffer ever made."""

    sizes: dict[int, int] = field(default_factory=dict)
    blocks: dict[int, list[dict[str, Known]]] = field(default_factory=dict)

    def make(self, kind: str, rows: int) -> Known:
        if kind == "owned":
            return Known(owned(rows), self._buffers(rows * 8))
        if kind == "exposed":
            return Known(exposed(rows), self._buffers(rows * 8))
        if kind == "tensor":
            return Known(torch.arange(rows), self._buffers(rows * 8))
        if kind == "matrix":
            return Known(np.ones((rows, 3), dtype=np.float32), self._buffers(rows * 12))
        if kind == "strings":
            return Known(pa.array(["abcdefgh"] * rows), self._buffers((rows + 1) * 4, rows * 8))
        ragged = Ragged(owned(2 * rows), np.arange(rows + 1, dtype=np.int64) * 2)
        return Known(ragged, self._buffers(rows * 16, (rows + 1) * 8))

    def transform(self, known: Known, how: str) -> Known:
        """What a user's function may make of a column."""
        if how == "keep":
            return known
        if isinstance(known.column, np.ndarray):
            if how == "copy":
                copy = known.column.copy()
                return Known(copy, self._buffers(copy.nbytes))
            return Known(known.column.view(np.uint8 if known.column.ndim == 1 else np.int32), known.buffers)
        if isinstance(known.column, Ragged):  # new offsets over the same values
            shorter = Ragged(known.column.values, known.column.offsets.copy())
            return self.renewed(known, shorter)
        return known

    def renewed(self, known: Known, column: Ragged) -> Known:
        """The same values under new offsets."""
        values = frozenset([min(known.buffers)])  # the values were made before any offsets
        return Known(column, self._buffers(column.offsets.nbytes) | values)

    def held(self) -> int:
        alive = {
            buffer
            for batches in self.blocks.values()
            for batch in batches
            for known in batch.values()
            for buffer in known.buffers
        }
        return sum(self.sizes[buffer] for buffer in alive)

    def _buffers(self, *sizes: int) -> frozenset[int]:
        first = len(self.sizes)
        self.sizes.update({first + i: count for i, count in enumerate(sizes)})
        return frozenset(range(first, first + len(sizes)))


def payload_of(batches: list[dict[str, Known]]) -> Any:
    plain = [{name: known.column for name, known in batch.items()} for batch in batches]
    return plain[0] if len(plain) == 1 else [*plain, None]


def cut(world: World, known: Known, start: int, stop: int) -> Known:
    rows = len(known.column)
    part = slice_column(known.column, min(start, rows), min(stop, rows))
    if isinstance(part, Ragged):  # its offsets are computed anew
        return world.renewed(known, part)
    return Known(part, known.buffers)


KINDS = ["owned", "exposed", "tensor", "matrix", "strings", "ragged"]


@given(data=st.data())
def test_held_is_the_sum_of_distinct_live_buffers(data: st.DataObject) -> None:
    """Any sequence of loading, cutting into views, transforming and releasing."""
    world, ledger, peak = World(), MemoryLedger(), 0
    for key in range(data.draw(st.integers(1, 14), label="steps")):
        alive = sorted(world.blocks)
        action = data.draw(st.sampled_from(["load", "cut", "transform", "release"] if alive else ["load"]))
        before = ledger.held
        if action == "release":
            gone = data.draw(st.sampled_from(alive))
            freed = ledger.release(gone)
            del world.blocks[gone]
            assert freed == before - ledger.held
        else:
            world.blocks[key] = made = _make(data, world, action, alive)
            assert ledger.add(key, roots(payload_of(made))) == ledger.held - before
        peak = max(peak, ledger.held)
        assert ledger.held == world.held()
    assert ledger.peak == peak
    for key in list(world.blocks):
        ledger.release(key)
    assert ledger.held == 0


def _make(data: st.DataObject, world: World, action: str, alive: list[int]) -> list[dict[str, Known]]:
    if action == "load":
        kinds = data.draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=4))
        rows = data.draw(st.integers(8, 40))
        return [{f"{kind}{i}": world.make(kind, rows) for i, kind in enumerate(kinds)}]
    source = world.blocks[data.draw(st.sampled_from(alive))]
    if action == "cut":
        start, length = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 4))
        return [
            {name: cut(world, known, at, at + length) for name, known in batch.items()}
            for batch in source
            for at in (start, 0)
        ]
    how = data.draw(st.sampled_from(["keep", "copy", "view"]))
    return [{name: world.transform(known, how) for name, known in batch.items()} for batch in source]


# ---- processes ---------------------------------------------------------------------------------------------------

HOLD = "import sys; held = bytearray(b'x' * (64 << 20)); print('ready', flush=True); sys.stdin.read()"


def test_resident_memory_of_another_process() -> None:
    mine = np.ones(64 << 20, dtype=np.uint8)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        alone, own = resident_bytes([child.pid]), resident_bytes()
        both = resident_bytes([child.pid, os.getpid(), child.pid])
        child.stdin.close()
        child.wait()
    assert 64 << 20 < alone < 160 << 20
    assert len(mine) + (64 << 20) < both, "private pages of both"
    assert both < alone + own, "but the interpreter's shared pages once"
    assert resident_bytes([child.pid]) == 0


def test_the_peak_stays_when_memory_is_given_back() -> None:
    before = peak_resident_bytes()
    assert before >= resident_bytes() // 2
    held = np.ones(max(0, before - resident_bytes()) + (32 << 20), dtype=np.uint8)
    assert held[-1] == 1
    after = peak_resident_bytes()
    assert after > before
    del held
    assert peak_resident_bytes() > after - (2 << 20), (
        "the kernel counts pages per CPU and adds up now and then"
    )


def processes(root: Path, **files: dict[str, str]) -> Path:
    (root / "self").mkdir(parents=True)
    for pid, contents in files.items():
        (root / pid[1:]).mkdir()
        for name, text in contents.items():
            (root / pid[1:] / name).write_text(text)
    return root


def test_pages_shared_by_processes_are_counted_once(tmp_path: Path) -> None:
    proc = processes(
        tmp_path / "proc",
        p11={
            "status": "Name:\tx\nVmRSS:\t  100 kB\n",
            "smaps_rollup": "00 [rollup]\nRss: 100 kB\nPss:  60 kB\n",
        },
        p12={"status": "VmRSS:\t  100 kB\n", "smaps_rollup": "00 [rollup]\nPss_Dirty: 7 kB\nPss:  60 kB\n"},
        p13={"status": "VmRSS:\t  30 kB\n"},  # another user's
        p14={"status": "Name:\tzombie\n"},
    )
    assert resident_bytes([11], proc=proc) == 100 * 1024
    assert resident_bytes([11, 12, 11], proc=proc) == 120 * 1024
    assert resident_bytes([11, 13, 14, 999], proc=proc) == 90 * 1024
    assert resident_bytes([], proc=proc) == 0


def test_without_proc_the_system_is_asked(tmp_path: Path) -> None:
    resident = resident_bytes([os.getpid()], proc=tmp_path / "none")
    assert resident == pytest.approx(resident_bytes(), rel=0.2)
    assert resident_bytes([2**22 + 1], proc=tmp_path / "none") == 0
    assert peak_resident_bytes(proc=tmp_path / "none") == pytest.approx(peak_resident_bytes(), rel=0.2)
