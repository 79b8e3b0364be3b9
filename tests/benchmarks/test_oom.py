"""Jobs under limits that kill: what is drawn, what is counted, and that the limit really kills."""

import json
import subprocess
import sys
from typing import Any

import pytest

from benchmarks import oom
from benchmarks.limited import V1, V2, Watchdog, limited, places, read_events

HOG = """
import sys
held = []
print("ready", flush=True)
sys.stdin.readline()
for _ in range(32):
    held.append(b"x" * (16 << 20))
print("all", flush=True)
"""


def outcome(group: Any, room: int) -> tuple[str, int]:
    with group:
        process = subprocess.Popen(
            [sys.executable, "-c", HOG],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=group.join(),
        )
        group.watch(process.pid)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert group.limit(group.used() + room)
        text, _ = process.communicate("go\n", timeout=30)
        return text, group.kills()


@pytest.mark.parametrize("make", [lambda: limited("intune-test-oom"), Watchdog])
def test_who_takes_more_than_the_limit_is_killed_and_who_does_not_lives(make: Any) -> None:
    text, kills = outcome(make(), 64 << 20)
    assert "all" not in text
    assert kills == 1
    text, kills = outcome(make(), 1 << 30)
    assert "all" in text
    assert kills == 0


def test_memory_controllers_are_found_in_mounts() -> None:
    mounts = (
        "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n"
        "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n"
        "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"
        "cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n"
    )
    assert [(str(path), names) for path, names in places(mounts)] == [
        ("/sys/fs/cgroup/memory", V1),
        ("/sys/fs/cgroup/unified", V2),
    ]
    assert read_events("low 0\noom_kill 3\nnonsense\n") == {"low": 0, "oom_kill": 3}
    assert isinstance(limited("intune-test", ""), Watchdog)


def test_the_same_seed_draws_the_same_jobs_and_each_fits_two_calls() -> None:
    jobs = oom.draw(200, 7)
    assert jobs == oom.draw(200, 7)
    assert jobs != oom.draw(200, 8)
    for job in jobs:
        assert job.room >= oom.OWN + 2 * oom.MOST_SPREAD * job.temporary


def test_kills_and_rates_are_counted_by_contender() -> None:
    fine = {"rows": 100, "seconds": 1.0, "killed": False, "limited_by": "x"}
    document = {
        "jobs": {
            "0": {"drawn": {}, "ours": fine, "pool": {"killed": True, "limited_by": "x"}},
            "1": {"drawn": {}, "ours": fine, "pool": {**fine, "rows": 50}},
            "2": {"drawn": {}, "ours": fine, "pool": {"killed": False, "error": "no", "limited_by": "x"}},
        }
    }
    found = oom.counts(document)
    assert (found["ours"]["jobs"], found["ours"]["killed"]) == (3, 0)
    assert found["pool"] == {"jobs": 3, "killed": 1, "failed": 1, "rate_to_ours": pytest.approx(0.5)}
    (bar,) = oom.bars(document)
    assert bar.passed


def test_runs_that_end_at_once_are_all_written(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oom, "run", lambda *_, **__: {"killed": False, "rows": 1, "seconds": 1.0})
    monkeypatch.setattr(oom.data, "ensure", lambda _: [])
    monkeypatch.setattr(oom.harness, "available", lambda _: True)
    file = tmp_path / "oom.json"
    options = oom.Options(json=file, jobs=60, parallel=8, contenders=("ours", "pool"))
    assert oom.main(options) == 0
    jobs = json.loads(file.read_text())["jobs"]
    assert len(jobs) == 60
    assert all({"ours", "pool"} < set(job) for job in jobs.values())


def test_rivals_that_are_not_installed_are_named_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(oom, "run", lambda *_, **__: {"killed": False, "rows": 1, "seconds": 1.0})
    monkeypatch.setattr(oom.data, "ensure", lambda _: [])
    monkeypatch.setattr(oom.harness, "available", lambda one: one.python == "main")
    assert oom.main(oom.Options(jobs=1, contenders=("ours", "tfdata"))) == 0
    assert "tfdata not run: the rivals' environment is missing; run `make peers`" in capsys.readouterr().out


def test_a_job_that_is_not_drawn_is_refused() -> None:
    with pytest.raises(SystemExit, match="`--only` names job 7; with `--jobs 3` they are 0 to 2"):
        oom.Options(jobs=3, only=(1, 7))
