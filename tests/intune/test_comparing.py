"""Agents one after another on a small real pipeline, from the command line to the files."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from intune.cli.compare import table
from intune.cli.main import main
from intune.compare_page import best_first, page, words
from intune.comparing import Outcome, _settled, compare, ratio
from intune.errors import LoaderError
from intune.profiling import ProfileConfig
from tests.intune.test_report import Checked


def outcome(agent: str, rows: int, *, failure: str = "") -> Outcome:
    return Outcome(
        agent=agent, rows=rows, seconds=10.0, settled=1.0, waiting=0.5, memory=1 << 20, slots={"load": 2},
        changes=1, failure=failure, times=(5.0, 10.0), rates=(1.0, 2.0),
    )  # fmt: skip


def test_figures_by_hand() -> None:
    found = [outcome("shared", 100), outcome("planner", 250, failure="ValueError: [x]")]
    assert [one.agent for one in best_first(found)] == ["planner", "shared"]
    assert ratio(found[1], found, "shared") == 2.5
    assert np.isnan(ratio(found[1], found, "dqn"))
    assert words(found[1]) == "load 2; tuning stopped: ValueError: [x]"
    assert _settled([0, 3, 6, 9], [0, 30, 90, 180]) == 30.0  # from 6 s, the first in the last third
    assert _settled([0, 9], [0, 90]) == 10.0


def test_a_page_without_the_reference_has_no_ratios() -> None:
    text = page([outcome("even", 100)], data="x", reference="shared")
    assert "nan" not in text
    assert '<td class="n">–</td>' in text
    assert '<div class="chart"><table><thead>' in text  # which a phone scrolls, with its heads


@pytest.mark.parametrize("width", [60, 80])
def test_on_a_narrow_terminal_no_name_or_figure_is_cut(width: int) -> None:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(table([outcome("autotune-adaptive", 123_456), outcome("shared", 100_000)]))
    text = console.export_text()
    assert "autotune-adaptive" in text
    assert "…" not in text


def test_from_the_command_line_to_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    data = tmp_path / "data"
    data.mkdir()
    pq.write_table(pa.table({"x": np.arange(40_000)}), data / "a.parquet", row_group_size=4000)
    files = [tmp_path / name for name in ("figures.json", "page.html", "plot.png")]
    code = main(
        ["compare", "--data", str(data), "--agents", "shared,even", "--seconds", "1", "--transform", "none",
         "--batch-size", "500", "--cpus", "2", "--memory", "64MiB", "--log", str(tmp_path / "log"),
         "--step-ms", "1", "--json", str(files[0]), "--html", str(files[1]), "--plot", str(files[2])]
    )  # fmt: skip
    out = capsys.readouterr().out
    assert code == 0
    assert "1.00x" in out
    shared, even = json.loads(files[0].read_text())["agents"]
    assert (shared["agent"], shared["slots"], shared["changes"]) == ("shared", {"shared": 2}, 0)
    assert (even["agent"], sorted(even["slots"])) == ("even", ["batch", "load", "transfer"])
    for one in (shared, even):
        assert one["rows"] % 500 == 0
        assert one["rows"] > 0
        assert one["rate"] == one["rows"] / one["seconds"]
        assert one["seconds"] >= 1.0
        assert one["failure"] == ""
        spans = np.diff([0.0, *one["times"]])
        assert np.dot(spans, one["rates"]) == pytest.approx(one["rows"])
    checked = Checked()
    checked.feed(files[1].read_text())
    assert checked.open == []
    assert checked.fetched == []
    assert files[2].read_bytes().startswith(b"\x89PNG")
    assert main(["report", str(tmp_path / "log" / "even")]) == 0


def test_data_that_are_read_faster_than_one_looks_can_be_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({"x": np.arange(10)}), tmp_path / "a.parquet")
    monkeypatch.setattr("intune.comparing.SAMPLES", 1)
    config = ProfileConfig(data=str(tmp_path), transform="none", cpus=1, seconds=1.0)
    (found,) = compare(config, ["shared"])
    assert found.rows > 0


@pytest.fixture
def comparison(tmp_path: Path) -> list[str]:
    """A comparison of two agents in no time."""
    pq.write_table(pa.table({"x": np.arange(1000)}), tmp_path / "a.parquet")
    words = f"compare --data {tmp_path} --agents shared even --seconds 1 --transform none --batch-size 100 --cpus 1"
    return words.split()


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (LoaderError("files were removed"), 2)]
)
def test_of_a_comparison_that_is_ended_the_agents_that_were_done_are_shown(
    error: BaseException,
    code: int,
    comparison: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ended(tuned: Any, name: str, *rest: Any) -> Outcome:
        if name == stop:
            raise error
        return outcome(name, 100)

    monkeypatch.setattr("intune.comparing._run", ended)
    monkeypatch.setattr("intune.comparing._warm", lambda *_: None)
    figures = tmp_path / "figures.json"
    stop = "even"
    assert main([*comparison, "--json", str(figures)]) == code
    told = capsys.readouterr()
    assert "shared" in told.out
    assert "even" not in told.out
    assert len(told.err.splitlines()) == 1
    assert not figures.exists()
    stop = "shared"
    assert main(comparison) == code
    assert capsys.readouterr().out == ""


def test_a_comparison_whose_figures_cannot_be_written_is_shown(
    comparison: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("intune.comparing._run", lambda tuned, name, *_: outcome(name, 100))
    monkeypatch.setattr("intune.comparing._warm", lambda *_: None)
    html = tmp_path / "pages" / "page.html"
    assert main([*comparison, "--json", "/dev/full", "--html", str(html)]) == 2
    told = capsys.readouterr()
    assert "even" in told.out
    assert f"wrote {html}" in told.out
    assert html.read_text().startswith("<!doctype html>")
    assert told.err == "intune: error: [Errno 28] No space left on device: '/dev/full'\n"


@pytest.mark.parametrize(
    ("agents", "said"),
    [
        ("shared,shared", "none twice"),
        ("oracle", "a real job has none"),
        ("planer", "did you mean 'planner'"),
    ],
)
def test_wrong_agents_are_told(agents: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--data", "nowhere", "--agents", agents]) == 2
    assert said in capsys.readouterr().err
