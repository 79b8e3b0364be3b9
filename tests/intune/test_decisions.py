"""The decision log: what is in a line, what becomes of a full disk, and how long it gets."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intune.decisions import DecisionLog
from tests.intune.tuned import STAGES, an_entry


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class FullDisk:
    """A file on a disk without room."""

    def __init__(self) -> None:
        self.closed = False

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")

    def close(self) -> None:
        self.closed = True
        raise OSError(28, "No space left on device")


def test_a_line_has_what_was_measured_decided_and_why(tmp_path: Path) -> None:
    path = tmp_path / "run" / "decisions.jsonl"
    entry = an_entry(time=1.23456, reason="a „reason“")
    log = DecisionLog(path, header={"agent": "planner"})
    log.add(entry)
    header, line = lines(path)
    log.close()
    log.close()
    assert header == {"intune": 1, "agent": "planner"}
    assert (line["time"], line["reason"]) == (1.235, "a „reason“")
    assert line["allocation"] == dict.fromkeys(STAGES, 1)
    assert line["decided"] == {"load": 3, "batch": 1, "transform": 4}
    assert [stage["name"] for stage in line["stages"]] == list(STAGES)
    assert line["delivered"] == pytest.approx(entry.measured.delivered[0], rel=1e-5)
    assert line["stages"][2]["busy"] == pytest.approx(entry.measured.busy[0, 2], rel=1e-5)


def test_what_was_not_measured_is_null(tmp_path: Path) -> None:
    entry = an_entry()
    unknown = replace(entry.measured, clock=np.array([np.nan]), step=np.array([np.inf]))
    line = replace(entry, measured=unknown, decided=None).as_dict()
    assert (line["clock"], line["step"], line["decided"]) == (None, None, None)
    json.dumps(line, allow_nan=False)


def test_a_full_disk_is_said_once_and_the_job_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = DecisionLog(tmp_path / "decisions.jsonl", header={})
    disk = FullDisk()
    log._file.close()
    log._file = disk
    for _ in range(3):
        log.add(an_entry())
    log.close()
    assert caplog.text.count("No space left on device") == 1
    assert disk.closed


def test_a_real_full_disk(caplog: pytest.LogCaptureFixture) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full on this system")
    log = DecisionLog(full, header={})
    log.add(an_entry())
    log.close()
    assert len(caplog.records) == 1
    assert "decisions are not logged from now on (/dev/full)" in caplog.text


def test_a_folder_that_cannot_be_made_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    log = DecisionLog(tmp_path / "file" / "decisions.jsonl", header={})
    log.add(an_entry())
    log.close()
    assert len(caplog.records) == 1


def test_a_reason_that_is_no_text_does_not_end_the_job(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = DecisionLog(tmp_path / "decisions.jsonl", header={})
    log.add(an_entry(time=float("nan")))
    log.add(an_entry())
    log.close()
    assert len(caplog.records) == 1


def test_what_an_earlier_run_left_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    (tmp_path / "decisions.jsonl.1").write_text("{}\n")
    DecisionLog(tmp_path / "decisions.jsonl", header={}).close()
    assert not (tmp_path / "decisions.jsonl.1").exists()


def test_two_logs_in_one_folder_do_not_mix(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "run" / "decisions.jsonl"
    header = {"agent": "planner"}
    first, second, third = (DecisionLog(path, header={**header, "log": number}) for number in range(3))
    for log in (first, second, third, first):
        log.add(an_entry())
    found = (path, path.parent / "loader-2" / path.name, path.parent / "loader-3" / path.name)
    assert [(lines(place)[0]["log"], len(lines(place)) - 1) for place in found] == [(0, 2), (1, 1), (2, 1)]
    assert f"another loader or rank logs to {path.parent}" in caplog.text
    for log in (first, second, third):
        log.close()
    DecisionLog(path, header={**header, "log": 3}).close()
    assert lines(path) == [{"intune": 1, **header, "log": 3}]


def begin(path: Path, count: int) -> list[DecisionLog]:
    return [DecisionLog(path, header={"agent": "planner"}) for _ in range(count)]


def places(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_loaders_of_an_earlier_run_are_not_taken_for_this_ones(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    for log in begin(path, 3):
        log.close()
    (tmp_path / "loader-2" / "decisions.jsonl.1").write_text("{}\n")
    (tmp_path / "loader-3" / "report.html").write_text("a page")
    now = begin(path, 2)
    assert places(tmp_path) == ["decisions.jsonl", "loader-2/decisions.jsonl", "loader-3/report.html"]
    for log in now:
        log.close()
    begin(path, 1)[0].close()
    assert places(tmp_path) == ["decisions.jsonl", "loader-3/report.html"]
    assert not (tmp_path / "loader-2").exists()


def test_while_one_of_its_loaders_logs_no_log_of_a_run_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    first, second, third = begin(path, 3)
    first.close()
    third.close()
    again = DecisionLog(path, header={})
    assert places(tmp_path) == [
        "decisions.jsonl",
        "loader-2/decisions.jsonl",
        "loader-3/decisions.jsonl",
    ]
    for log in (second, again):
        log.close()


@pytest.mark.parametrize(
    "text",
    [
        '{"intune":1}\n',  # of a folder that a user gave to tune
        '{"intune":1,"beside":"loader-3"}\n',  # that a user moved here
        "[1]\n",
        "not ours\n",
        "",
    ],
)
def test_what_no_log_put_beside_another_stays(tmp_path: Path, text: str) -> None:
    theirs = tmp_path / "loader-2" / "decisions.jsonl"
    theirs.parent.mkdir()
    theirs.write_text(text)
    DecisionLog(tmp_path / "decisions.jsonl", header={}).close()
    assert theirs.read_text() == text


def test_another_process_does_not_write_into_a_log(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    log = DecisionLog(path, header={"agent": "planner"})
    script = f"""
        from pathlib import Path
        from intune.decisions import DecisionLog
        DecisionLog(Path({str(path)!r}), header={{"agent": "other"}}).close()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, capture_output=True)
    log.add(an_entry())
    log.close()
    assert [line.get("agent") for line in lines(path)] == ["planner", None]
    assert [line["agent"] for line in lines(tmp_path / "loader-2" / path.name)] == ["other"]


def test_a_long_job_keeps_its_beginning_and_its_end(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    most = 8192
    log = DecisionLog(path, header={"agent": "planner"}, most_bytes=most)
    entry = an_entry()
    for number in range(60):
        log.add(replace(entry, time=float(number)))
    log.close()
    first, second = lines(path), lines(tmp_path / "decisions.jsonl.1")
    assert first[1]["time"] == 0.0
    assert second[0]["agent"] == "planner"
    assert second[-1]["time"] == 59.0 or len(second) == 1  # just begun anew
    for file in tmp_path.iterdir():
        assert file.stat().st_size < most + 4096


def test_a_header_longer_than_the_log_may_be_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    log = DecisionLog(path, header={"pipeline": "x" * 5000}, most_bytes=4096)
    assert len(lines(path)) == 1
    log.add(an_entry(time=1.0))
    log.add(an_entry(time=2.0))
    log.close()
    second = lines(tmp_path / "decisions.jsonl.1")
    assert [line.get("time") for line in (*lines(path), *second)] == [None, 1.0, None]
