"""What is kept for the next run: what comes back, and what is passed over."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intune.knowledge import MOST_BYTES, Knowledge, default_folder, keep, key_of, recall
from intune.pipelines import Allocation

LEARNT = {"twin": {"weight": [1.0, 2.5]}, "memory": {}}
KNOWN = Knowledge(
    allocation=Allocation.per_stage({"load": 4, "batch": 2}), rate=1e6, memory=2e9, learnt=LEARNT
)


@given(
    slots=st.dictionaries(st.sampled_from(["load", "batch"]), st.integers(1, 64), min_size=2, max_size=2),
    pool=st.integers(0, 64),
    rate=st.floats(0, 1e9),
)
def test_what_is_kept_comes_back(
    slots: dict[str, int], pool: int, rate: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("knowledge")
    allocation = Allocation.shared(pool) if pool else Allocation.per_stage(slots)
    known = Knowledge(allocation=allocation, rate=rate, memory=1e9)
    keep(folder, "key", known)
    assert recall(folder, "key", list(slots)) == known
    assert [path.name for path in folder.iterdir()] == ["key.json"]


def test_nothing_known_is_no_news(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert recall(tmp_path / "none", "key", ["load"]) is None
    assert not caplog.records


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "3", "null", '"text"', "{}", '{"version": 3}', "\udcff", "[" * 100_000,
        '{"version": 3, "key": "key", "learnt": {}, "pool": -1, "slots": {}, "rate": 1, "memory": 1}',
        '{"version": 3, "key": "key", "learnt": {}, "pool": "x", "slots": {}, "rate": 1, "memory": 1}',
        '{"version": 3, "key": "key", "learnt": {}, "pool": 0, "slots": {"load": 0, "batch": 1}, "rate": 1, '
        '"memory": 1}',
        '{"version": 3, "key": "key", "learnt": {}, "pool": 0, "slots": {"load": 1000000, "batch": 1}, "rate": 1, '
        '"memory": 1}',
        '{"version": 3, "key": "key", "learnt": {}, "pool": 2, "slots": {}, "rate": NaN, "memory": 1}',
        '{"version": 3, "key": "key", "learnt": {}, "pool": 2, "slots": {}, "rate": 1, "memory": Infinity}',
        '{"version": 3, "key": "key", "learnt": [1], "pool": 2, "slots": {}, "rate": 1, "memory": 1}',
        '{"version": 3, "key": "key", "learnt": {}, "pool": 2, "slots": {}, "rate": 1, "memory": 1}' + " " * MOST_BYTES,
    ],
)  # fmt: skip
def test_a_corrupt_file_is_passed_over(text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "key.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert recall(tmp_path, "key", ["load", "batch"]) is None
    assert caplog.text.count("starting without it") == 1


def test_what_is_of_another_version_job_or_other_stages_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keep(tmp_path, "key", KNOWN)
    assert recall(tmp_path, "key", ["load", "batch", "map"]) is None
    caplog.set_level("INFO", logger="intune")
    path = tmp_path / "key.json"
    (tmp_path / "foreign.json").write_bytes(path.read_bytes())
    assert recall(tmp_path, "foreign", ["load", "batch"]) is None
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 1}))
    assert recall(tmp_path, "key", ["load", "batch"]) is None
    assert caplog.text.count("of another version or job; starting without it") == len(caplog.records) == 2


def test_what_was_learnt_is_bounded_and_the_allocation_is_kept_anyway(tmp_path: Path) -> None:
    keep(tmp_path, "key", replace(KNOWN, learnt={"twin": [0.5] * MOST_BYTES}))
    assert (tmp_path / "key.json").stat().st_size < 1000
    assert recall(tmp_path, "key", ["load", "batch"]) == replace(KNOWN, learnt={})


@pytest.mark.parametrize(
    "learnt", [{"twin": float("nan")}, {"twin": float("inf")}, {"twin": object()}, {"twin": {1, 2}}, [1, 2]]
)
def test_what_json_cannot_say_is_one_line_and_the_allocation_is_kept(
    learnt: dict[str, object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert not keep(tmp_path, "key", replace(KNOWN, learnt=learnt))  # not all of it
    assert caplog.text.count("cannot be kept") == len(caplog.records) == 1
    assert recall(tmp_path, "key", ["load", "batch"]) == replace(KNOWN, learnt={})


def test_a_rate_that_json_cannot_say_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keep(tmp_path, "key", replace(KNOWN, rate=float("nan")))
    assert caplog.text.count("cannot be kept") == 1
    assert not list(tmp_path.iterdir())


def test_nothing_is_executed_on_reading_and_whoever_may_read_the_folder_may_read_it(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        assert keep(tmp_path, "key", KNOWN)
    finally:
        os.umask(before)
    assert (tmp_path / "key.json").stat().st_mode & 0o777 == 0o640
    assert json.loads((tmp_path / "key.json").read_text())["slots"] == {"load": 4, "batch": 2}


def test_a_folder_that_cannot_be_written_is_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert not keep(tmp_path / "file", "key", KNOWN)
    assert caplog.text.count("cannot be kept") == 1


def test_a_write_that_fails_leaves_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(tmp_path, "key", KNOWN)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("intune.knowledge.os.replace", full)
    keep(tmp_path, "key", Knowledge(allocation=Allocation.shared(1), rate=1.0, memory=1.0))
    monkeypatch.undo()
    assert recall(tmp_path, "key", ["load", "batch"]) == KNOWN
    assert len(list(tmp_path.iterdir())) == 1


def test_a_key_is_of_pipeline_and_machine() -> None:
    key = key_of("pipe", ["load"], 4, 1 << 30)
    assert key == key_of("pipe", ("load",), 4, (1 << 30) + 5)
    others = [key_of("other", ["load"], 4, 1 << 30), key_of("pipe", ["map"], 4, 1 << 30),
              key_of("pipe", ["load"], 8, 1 << 30), key_of("pipe", ["load"], 4, 1 << 33)]  # fmt: skip
    assert len({key, *others}) == 5


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/tmp/cache")
    monkeypatch.delenv("INTUNE_CACHE", raising=False)
    assert default_folder() == Path("/tmp/cache/intune")
    monkeypatch.setenv("INTUNE_CACHE", "/tmp/own")
    assert default_folder() == Path("/tmp/own")
    monkeypatch.setenv("HOME", "/tmp/home")
    monkeypatch.setenv("INTUNE_CACHE", "~/own")
    assert default_folder() == Path("/tmp/home/own")
