"""The table, the page and the pictures of a simulation, from summaries made by hand."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from intune.agents.outcomes import Outcomes
from intune.agents.summary import Estimate, Summary
from intune.simulation.page import page
from intune.simulation.pictures import paths
from intune.simulation.progress import JobProgress
from intune.simulation.results import Results
from intune.simulation.svg import Bar, Line, bar_chart, line_chart, ticks
from intune.simulation.table import needed, table


def summary(agent: str, level: float, *, killed: int = 0) -> Summary:
    nan = float("nan")
    outcomes = {name: Estimate(level, level - 0.01, level + 0.01) for name in Outcomes.__slots__}
    outcomes["recovery"] = Estimate(nan, nan, nan)
    curve = np.full(12, level)
    return Summary(
        agent=agent, jobs=50, feasible=48, outcomes=outcomes, killed_jobs=killed, median_reached=float("inf"),
        ratio=None if agent == "autotune" else {"whole": Estimate(2.0, 1.9, 2.1), "bytes": Estimate(0.5, 0.4, 0.6)},
        curve=curve, low=curve - 0.02, high=curve + 0.02, regret=np.cumsum(1 - curve),
    )  # fmt: skip


@pytest.fixture
def results() -> Results:
    agents = [summary("autotune", 0.4, killed=3), summary("<ours>", 0.9)]
    return Results(
        settings={"agents": ["autotune", "<ours>"], "jobs": 50, "reference": "autotune"},
        seconds=12.3,
        scenarios={"paper": agents, "wide": agents[:1]},
        descriptions={"paper": "Five stages & more.", "wide": "Eight."},
        interval={"paper": 5.0, "wide": 5.0},
    )


def text_of(results: Results, width: int) -> str:
    console = Console(width=width)
    with console.capture() as captured:
        console.print(table(results, "paper", width=width))
    return captured.get()


def test_the_table_has_the_best_first_and_says_what_it_is_of(results: Results) -> None:
    lines = text_of(results, 200).splitlines()
    assert lines[0].startswith("paper: 50 jobs, 12 decisions each")
    assert lines[2].split()[0] == "<ours>"
    assert lines[3].split()[0] == "autotune"
    assert "0.900 (0.890–0.910)" in lines[2]
    assert "2.00×" in lines[2]
    assert "3 of 48" in lines[3]
    assert len(lines[1]) <= needed(table(results, "paper"))


def test_of_a_single_job_no_interval_is_shown(results: Results) -> None:
    one = summary("even", 0.4)
    outcomes = {**one.outcomes, "whole": Estimate(0.4, 0.4, 0.4)}
    alone = replace(results, scenarios={"paper": [replace(one, jobs=1, feasible=1, outcomes=outcomes)]})
    lines = text_of(alone, 200).splitlines()
    assert lines[0].startswith("paper: 1 job, 12 decisions each")
    assert lines[2].split()[:3] == ["even", "0.400", "0.400"]


def test_a_narrow_terminal_gets_the_main_columns(results: Results) -> None:
    text = text_of(results, 80)
    assert "out of memory" in text
    assert "regret" not in text
    assert max(map(len, text.splitlines())) <= 80


class Checker(HTMLParser):
    """Remembers tags that were not closed, and everything that would be fetched."""

    VOID = ("meta", "br", "img", "link", "input")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.texts: list[str] = []
        self.count: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        if tag not in self.VOID:
            self.open.append(tag)
        self.fetched += [
            f"{tag} {name}={value}"
            for name, value in attrs
            if name in ("src", "href", "srcset") and not str(value).startswith("#")
        ]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_is_whole_and_fetches_nothing(results: Results) -> None:
    text = page(results)
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert checker.fetched == []
    assert checker.count["svg"] == 3 * len(results.scenarios)
    assert checker.count["h2"] == 2
    assert not re.search(r"https?://|@import|<script|url\(", text)
    assert "prefers-color-scheme:dark" in text
    assert "LIGHT" not in text
    assert "DARK" not in text


def test_names_are_escaped_on_the_page(results: Results) -> None:
    text = page(results)
    assert "<ours>" not in text
    assert "&lt;ours&gt;" in text
    assert "Five stages &amp; more." in text


def test_the_page_says_who_ran_out_of_memory(results: Results) -> None:
    assert '<td class="bad">3 of 48</td>' in page(results)


def test_lines_lie_where_their_values_are() -> None:
    text = line_chart([Line(name="a", colour=0, values=[0.0, 1.0])], across="x", up="y", most=1.0)
    points = re.search(r'class="line"[^>]*points="([^"]+)"', text)
    assert points is not None
    assert points[1] == "46,264 628,10"


def test_more_agents_than_hues_are_drawn_dashed() -> None:
    text = line_chart([Line(name="a", colour=0, values=[1.0, 2.0], dashed=True)], across="x", up="y")
    assert "stroke-dasharray" in text


def test_bars_are_as_long_as_their_values() -> None:
    text = bar_chart(
        [
            Bar(name="a", colour=0, value=1.0, low=0.9, high=1.0),
            Bar(name="b", colour=1, value=0.5, low=0.4, high=0.6),
        ],
        label="z",
    )
    long, short = (float(width) for width in re.findall(r'rx="2" width="([\d.]+)"', text))
    assert long == pytest.approx(2 * short)


@pytest.mark.parametrize(
    ("top", "expected"), [(1.05, [0, 0.5, 1.0]), (96, [0, 20, 40, 60, 80]), (0.3, [0, 0.1, 0.2, 0.3])]
)
def test_ticks_are_round(top: float, expected: list[float]) -> None:
    found = ticks(top)
    assert found[0] == 0
    assert found[-1] <= top * 1.001
    assert set(np.round(expected, 6)) <= set(np.round(found, 6))


def test_the_document_is_json(results: Results, tmp_path: Path) -> None:
    path = tmp_path / "new" / "figures.json"
    results.save(path)
    document = json.loads(path.read_text())
    ours = document["scenarios"]["paper"]["agents"]["<ours>"]
    assert ours["outcomes"]["whole"] == {"mean": 0.9, "low": 0.89, "high": 0.91}
    assert ours["ratio"]["whole"]["mean"] == 2.0
    assert ours["median_reached"] is None
    assert document["settings"]["jobs"] == 50


def test_pictures_are_drawn(results: Results, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from intune.simulation.pictures import draw

    paths = draw(results, tmp_path)
    assert [path.name for path in paths] == ["paper.png", "wide.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_scenarios_of_one_name_in_different_folders_get_a_picture_each(tmp_path: Path) -> None:
    made = paths(("a/mine.toml", "b/mine.toml", "mine-2", "c/mine.toml"), tmp_path)
    assert [path.name for path in made] == ["mine.png", "mine-2.png", "mine-2-2.png", "mine-3.png"]
    assert {path.parent for path in made} == {tmp_path}


def test_progress_writes_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    with JobProgress(10, clock=lambda: now[0]) as told:
        told("paper", "ds2", 2)
        now[0] = 11.0
        told("paper", "ds2", 3)
        told("paper", "ds2", 3)
    assert capsys.readouterr().err == "50% done, paper: ds2\n"


def test_progress_is_lines_on_a_terminal_that_cannot_go_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream, now = io.StringIO(), [0.0]
    monkeypatch.setattr(stream, "isatty", lambda: True)
    with JobProgress(10, stream=stream, clock=lambda: now[0]) as told:
        now[0] = 11.0
        told("paper", "ds2", 5)
    assert stream.getvalue() == "50% done, paper: ds2\n"


def test_a_table_is_never_cut_where_there_is_room(results: Results) -> None:
    long = replace(results, scenarios={"paper": [summary("heuristic-adaptive+guard", 0.9)] * 2})
    room = needed(table(long, "paper"))
    lines = text_of(long, room).splitlines()
    assert all("…" not in line for line in lines)
    assert "regret" in lines[1]
    assert "regret" not in text_of(long, room - 1)


def test_there_is_no_column_for_ratios_to_an_agent_that_did_not_run(results: Results) -> None:
    alone = replace(results, scenarios={"paper": [replace(summary("<ours>", 0.9), ratio=None)]})
    assert "/ autotune" in text_of(results, 200)
    assert "/ autotune" not in text_of(alone, 200)
    assert "/ autotune" not in page(alone)
    heads, cells = (re.findall(f"<{tag}[ >]", page(alone)) for tag in ("th", "td"))
    assert len(heads) == len(cells)


def test_a_page_of_agents_that_lost_nothing_or_had_no_chance(results: Results) -> None:
    """Rates may pass those of the best without noise: regret is then below 0."""
    lucky = summary("lucky", 1.1)
    assert lucky.regret.max() < 0
    nan = np.full(12, np.nan)
    none = Estimate(float("nan"), float("nan"), float("nan"))
    unknown = dict.fromkeys(("whole", "at_5", "at_10", "regret", "memory", "slots"), none)
    hopeless = replace(
        lucky, outcomes=lucky.outcomes | unknown, curve=nan, low=nan, high=nan, regret=nan,
        ratio={"whole": none, "bytes": none}, median_reached=float("nan"),
    )  # fmt: skip
    for agents in ([lucky], [hopeless], [lucky, hopeless]):
        text = page(replace(results, scenarios={"paper": agents}))
        assert text.count("<svg") == 3
        assert "nan" not in text


def test_what_is_not_known_is_left_out_of_a_line() -> None:
    values = [0.0, float("nan"), 1.0]
    text = line_chart([Line(name="a", colour=0, values=values)], across="x", up="y", most=1.0)
    points = re.search(r'class="line"[^>]*points="([^"]+)"', text)
    assert points is not None
    assert points[1] == "46,264 628,10"


def test_what_a_table_needs_does_not_depend_on_the_terminal(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = table(results, "paper")
    expected = needed(made)
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("FORCE_COLOR", "1")  # taken for a terminal
    assert needed(made) == expected > 80
