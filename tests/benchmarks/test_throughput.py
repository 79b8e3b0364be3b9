"""The one command, on its cheapest section."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import planning, throughput


def test_a_run_prints_verdicts_and_writes_what_it_ran_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # data go to ./bench-data
    target = tmp_path / "results" / "run.json"
    status = throughput.main(throughput.Options(sections=("planning",), quick=True, repeats=2, json=target))
    assert status == 0
    document = json.loads(target.read_text())
    assert [run["row_groups"] for run in document["sections"]["planning"]["runs"]] == [3_000, 3_000]
    assert {"cpu", "cores", "memory_bytes", "versions", "commit", "date", "load"} <= document[
        "environment"
    ].keys()
    assert document["environment"]["versions"]["main"]["pyarrow"]
    (bar,) = document["bars"]
    assert bar["limit"] == 2.0
    assert bar["passed"] is True
    shown = capsys.readouterr()
    assert "planning 100,000 row groups" in shown.out
    assert "pass" in shown.out
    assert "round 2 of 2: planning" in shown.err


@pytest.mark.parametrize(("strict", "status"), [(False, 0), (True, 1)])
def test_a_bar_that_fails_ends_a_strict_run_with_1(
    strict: bool, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow: dict[str, Any] = {
        "runs": [{"first_s": 9.0, "again_s": 1, "arrow_s": 1, "row_groups": 5}],
        "failures": {},
    }
    monkeypatch.setattr(planning, "measure", lambda context: slow)
    target = tmp_path / "run.json"
    options = throughput.Options(sections=("planning",), strict=strict, json=target)
    assert throughput.main(options) == status
    assert json.loads(target.read_text())["bars"][0]["passed"] is False


def test_nonsense_is_refused_by_name() -> None:
    with pytest.raises(SystemExit, match=r"`--sections` knows local, .* but not nowhere"):
        throughput.Options(sections=("nowhere",))
    with pytest.raises(SystemExit, match="`--repeats`"):
        throughput.Options(repeats=0)
    with pytest.raises(SystemExit, match="`--only` 'grian' is in the name of none of ours, threads; "):
        throughput.Options(only=("Grain", "grian"))
    with pytest.raises(SystemExit, match="`--plot` draws the section local"):
        throughput.Options(sections=("storage",), plot=Path("storage.png"))
