"""Reports: from logs written by hand to figures, a page and pictures."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intune import report_pictures
from intune.cli.main import main
from intune.errors import ConfigError
from intune.report import LOG, TRAINER, gain, held_up, read_run
from intune.report_charts import MOST_POINTS, Series, Span, coarser, joined, thinned, time_chart, time_unit
from intune.report_page import MOST_ROWS, page
from intune.report_pictures import draw

HEADER = {
    "intune": 1, "agent": "planner", "pipeline": "Pipeline(<x>)", "stages": ["load", "map"], "cpus": 4,
    "memory": 1 << 30, "began": 1.7e9,
}  # fmt: skip


def line(
    time: float,
    rate: float | None,
    *,
    slots: dict[str, int] | None = None,
    decided: dict[str, int] | None = None,
    waiting: float | None = 0.5,
    busy: tuple[float, float] = (1.0, 1.0),
    seconds: float = 10.0,
    reason: str = "keep",
) -> dict[str, Any]:
    stages = [{"name": name, "busy": value} for name, value in zip(("load", "map"), busy, strict=True)]
    return {
        "time": time, "interval": seconds, "delivered": rate, "waiting": waiting, "memory_used": 1e9 + time,
        "memory_limit": 4e9, "stages": stages, "allocation": slots or {"load": 2, "map": 2}, "decided": decided,
        "reason": reason,
    }  # fmt: skip


def write(folder: Path, *lines: dict[str, Any] | str, name: str = LOG) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    texts = [text if isinstance(text, str) else json.dumps(text) for text in (HEADER, *lines)]
    (folder / name).write_text("\n".join(texts) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    more = {"load": 3, "map": 5}
    return write(
        tmp_path / "run",
        line(10, 100.0, decided=more, reason="<map> is the slowest & gets more", busy=(0.5, 2.0)),
        line(20, 300.0, slots=more, busy=(1.0, 4.5)),
        line(30, None, slots=more, waiting=None, seconds=0.0),
        line(40, 400.0, slots=more, waiting=0.01),
        line(50, 400.0, slots=more, waiting=0.01),
    )


def test_figures_by_hand(run: Path) -> None:
    found = read_run(run)
    assert (found.agent, found.stages, len(found.intervals), len(found.changes)) == (
        "planner",
        ("load", "map"),
        5,
        1,
    )
    assert found.rows == 10 * (100 + 300 + 400 + 400)
    assert [one.bottleneck for one in found.measured] == ["map", "map", TRAINER, TRAINER]
    assert held_up(found) == {"map": 0.5, TRAINER: 0.5}
    assert [one.began for one in found.intervals] == [0, 10, 20, 30, 40]
    brought = gain(found)
    assert brought is not None
    assert (brought.first, brought.last, brought.seconds) == (100.0, 400.0, 40.0)
    assert brought.saved == 12000 / 100 - 40  # the same rows would have taken 80 seconds more
    assert (brought.slots_first, brought.slots_last) == (4.0, 8.0)
    assert brought.memory_first == pytest.approx(1e9 + 10)


def test_what_held_the_job_up_is_not_told_of_pauses(tmp_path: Path) -> None:
    run = read_run(write(
        tmp_path,
        line(130, 100.0, decided={"load": 2, "map": 3}),  # a model was compiled for two minutes
        line(142, 100.0, slots={"load": 2, "map": 3}),
        line(300, 100.0, slots={"load": 2, "map": 3}, seconds=8.0),  # after a validation
    ))  # fmt: skip
    assert [one.began for one in run.intervals] == [0.0, 130.0, 142.0]
    assert [one.opened for one in run.intervals] == [120.0, 130.0, 292.0]
    assert re.findall(r"<title>load, (.*?)</title>", page(run)) == ["120 to 142 s", "292 to 300 s"]


def test_the_end_is_the_last_quarter_of_the_time_however_long_intervals_are(tmp_path: Path) -> None:
    short = [line(number, 100.0, seconds=1.0) for number in range(1, 13)]
    others = {"load": 2, "map": 3}
    short[1]["decided"] = others
    for one in short[2:]:
        one["allocation"] = others
    long = [
        line(12 + 100 * at, rate, slots=others, seconds=100.0)
        for at, rate in ((1, 50.0), (2, 100.0), (3, 400.0))
    ]
    brought = gain(read_run(write(tmp_path, *short, *long)))
    assert brought is not None
    assert (brought.first, brought.last) == (100.0, 400.0)


def test_the_first_slots_are_judged_by_all_the_time_they_were_in_force(tmp_path: Path) -> None:
    others = {"load": 1, "map": 1}
    run = read_run(write(
        tmp_path,
        line(0.5, 900.0, decided=others, seconds=0.5),  # had made batches before it was looked at
        line(10.5, 90.0, slots=others, decided={"load": 2, "map": 2}),
        line(20.5, 100.0),
        line(30.5, 100.0),
    ))  # fmt: skip
    brought = gain(run)
    assert brought is not None
    assert brought.seconds_first == 20.5
    assert brought.first == pytest.approx((0.5 * 900 + 20 * 100) / 20.5)
    assert brought.last / brought.first == pytest.approx(0.837, abs=0.001)
    assert "going by 20 s with them" in page(run)


def test_time_in_which_a_batch_is_worked_on_or_waited_for_counts(tmp_path: Path) -> None:
    run = read_run(write(
        tmp_path,
        line(10, 0.0, waiting=None),
        line(20, 0.0, waiting=None),
        line(30, 300.0, waiting=0.01),  # a batch takes thirty seconds
        line(40, 0.0, waiting=None, busy=(2.0, 0.0)),
        line(50, 100.0, waiting=0.9, busy=(2.0, 0.0)),  # storage did not answer
        line(60, 0.0, waiting=None),  # what for, nobody will know
    ))  # fmt: skip
    assert held_up(run) == {TRAINER: 0.6, "load": 0.4}
    assert "<b>66.7</b><span>rows/s on average" in page(run)


def test_of_a_shared_pool_the_busiest_stage_holds_up(tmp_path: Path) -> None:
    found = read_run(write(tmp_path, line(10, 5.0, slots={"shared": 4}, busy=(3.0, 1.0))))
    assert found.intervals[0].bottleneck == "load"
    assert gain(found) is None  # nothing to compare with


def test_what_a_killed_job_left_is_read(tmp_path: Path) -> None:
    half = json.dumps(line(20, 7.0))[:40]
    folder = write(tmp_path, line(10, 5.0), "[1]", '{"time": 3}', half)
    found = read_run(folder)
    assert (len(found.intervals), found.unreadable) == (1, 3)
    assert "3 lines of the log could not be read" in page(found)


def test_the_second_file_of_a_long_run_is_read_too(tmp_path: Path) -> None:
    write(tmp_path, line(10, 5.0))
    write(tmp_path, line(900, 6.0), name=LOG + ".1")
    assert [one.time for one in read_run(tmp_path).intervals] == [10, 900]


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (None, f"has no {LOG}"),
        ([], "no decision yet"),
        (["{}"], "not a decision log"),
        ([""], "not a decision log"),
    ],
)
def test_what_is_no_run_is_told(texts: list[str] | None, said: str, tmp_path: Path) -> None:
    if texts == []:
        write(tmp_path)
    elif texts is not None:
        (tmp_path / LOG).write_text("\n".join(texts))
    with pytest.raises(ConfigError, match=said):
        read_run(tmp_path)


@pytest.mark.parametrize("name", ["agent", "pipeline", "stages", "cpus", "memory", "began"])
def test_of_a_header_that_is_not_whole_the_field_and_the_line_are_told(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for header, said in (({**HEADER, name: None}, "is null"), ({**HEADER}, "is missing")):
        if said == "is missing":
            del header[name]
        log = tmp_path / LOG
        log.write_text("\n".join(json.dumps(text) for text in (header, line(10, 5.0))))
        assert main(["report", str(tmp_path)]) == 2
        assert f"error: {log}, line 1: the header's {name!r} {said}; give" in capsys.readouterr().err


def test_a_stage_that_the_header_lacks_is_told_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strange = {**line(20, 5.0), "stages": [{"name": "dataset", "busy": 1.0}]}
    write(tmp_path, line(10, 5.0), "{", strange)
    assert main(["report", str(tmp_path)]) == 2
    said = f"error: {tmp_path / LOG}, line 4: stage 'dataset' is none of the header's, load, map; "
    assert said in capsys.readouterr().err
    write(tmp_path, line(10, 5.0))
    write(tmp_path, strange, name=LOG + ".1")
    with pytest.raises(ConfigError, match=rf"{LOG}\.1, line 2: stage 'dataset'"):
        read_run(tmp_path)


def test_a_line_without_a_time_is_passed_over(tmp_path: Path) -> None:
    found = read_run(write(tmp_path, line(10, 5.0), line(float("inf"), 5.0), line(float("nan"), 5.0)))
    assert (len(found.intervals), found.unreadable) == (1, 2)
    page(found)


def test_a_folder_of_several_runs_names_them(tmp_path: Path) -> None:
    for name in ("loader-2", "loader-1"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, line(10, 5.0))
    with pytest.raises(ConfigError, match=r"give one of .*loader-1, .*loader-2"):
        read_run(tmp_path)


class Checked(HTMLParser):
    """Counts elements and finds whatever would be fetched; unclosed elements fail."""

    VOID = frozenset({"meta", "br", "link", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.counts: dict[str, int] = {}
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.fetched += [
            str(value) for name, value in attrs if name in ("src", "href") or tag in ("script", "link")
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_page_stands_alone_and_shows_all(run: Path) -> None:
    text = page(read_run(run))
    checked = Checked()
    checked.feed(text)
    assert checked.open == []
    assert checked.counts["svg"] == 4
    assert checked.fetched == []
    assert "url(" not in text
    assert "http" not in text
    assert "prefers-color-scheme:dark" in text
    assert 'name="viewport"' in text
    assert "&lt;map&gt; is the slowest &amp; gets more" in text
    assert "<x>" not in text
    assert "4.00×" in text
    assert "80 s less" in text
    assert "nan" not in re.sub("<style>.*</style>", "", text).lower()


def test_the_last_reason_is_shown_beside_the_changes(tmp_path: Path) -> None:
    changed = line(10, 100.0, decided={"load": 3, "map": 5})
    ended = line(20, 300.0, slots={"load": 3, "map": 5}, reason="tuning stopped: ValueError: no idea")
    text = page(read_run(write(tmp_path, changed, ended)))
    assert "The 1 decision that changed something, and the last one." in text
    assert "tuning stopped: ValueError: no idea" in text


def test_a_run_of_days_stays_a_small_page(tmp_path: Path) -> None:
    lines = [
        line(
            10.0 * (i + 1),
            100.0 + i % 7,
            decided={"load": 2 + i % 2, "map": 2},
            slots={"load": 3 - i % 2, "map": 2},
        )
        for i in range(5000)
    ]
    text = page(read_run(write(tmp_path, *lines)))
    assert text.count("<tr>") == MOST_ROWS + 1
    assert len(text) < 500_000


def test_nothing_but_a_first_interval_makes_a_page(tmp_path: Path) -> None:
    text = page(read_run(write(tmp_path, line(3, None, waiting=None, seconds=0.0))))
    assert "Nothing was changed" in text
    assert "nan" not in re.sub("<style>.*</style>", "", text).lower().replace("–", "")


def test_the_lines_of_a_single_interval_can_be_seen(tmp_path: Path) -> None:
    text = page(read_run(write(tmp_path, line(3, 1000.0))))
    assert "1 interval, 0 changes;" in text
    drawn = re.findall(r'd="([^"]*)"><title>(rows/s|resident|limit)<', text)
    assert [name for _, name in drawn] == ["rows/s", "resident", "limit"]
    assert all("L" in path for path, _ in drawn)


def test_pictures(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    paths = draw(read_run(run), tmp_path / "pictures")
    assert [path.name for path in paths] == ["rate.png", "slots.png", "memory.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_pictures_of_a_run_of_days_are_drawn_of_some_hundred_points(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    lines = [
        line(10.0 * (i + 1), 100.0 + i % 7, slots={"load": 2 + i % 2, "map": 2}, decided={"load": 3 - i % 2, "map": 2},
             waiting=0.5 * (i % 2))
        for i in range(5000)
    ]  # fmt: skip
    axes = Figure().subplots()
    run = read_run(write(tmp_path, *lines))
    for draws in (report_pictures._rate, report_pictures._slots, report_pictures._memory):
        draws(axes, run, 1.0)
    assert len(axes.patches) <= MOST_POINTS
    assert max(len(drawn.get_xdata()) for drawn in axes.lines) <= MOST_POINTS
    assert len(axes.lines) < 250
    assert max(drawn.get_xdata()[-1] for drawn in axes.lines if drawn.get_label() == "load") == 50_000


def test_pictures_of_a_run_in_which_nothing_was_measured_yet(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = read_run(write(tmp_path, line(3, None, waiting=None, seconds=0.0)))
    assert len(draw(found, tmp_path / "pictures")) == 3


def test_a_page_that_cannot_be_written_is_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for html in (run, run / "decisions.jsonl" / "x.html", Path("/proc/x.html")):
        assert main(["report", str(run), "--html", str(html)]) == 2
        said = capsys.readouterr().err
        assert said.startswith("intune: error: ")
        assert said.count("\n") == 1


def test_of_several_ranks_it_is_told_that_one_is_shown(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(run / "loader-10", line(10, 5.0))
    write(run / "loader-2", line(10, 5.0))
    assert main(["report", str(run)]) == 0
    said = f"this is one loader of 3 that logged there; the others are in {run}/loader-2, {run}/loader-10\n"
    assert said in capsys.readouterr().out
    assert main(["report", str(run / "loader-2")]) == 0
    assert "this is one" not in capsys.readouterr().out


def test_a_folder_with_the_log_of_one_loader_will_do(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As `intune run --log` makes it."""
    loader = run.rename(run.parent / "loader-1")
    assert main(["report", str(run.parent)]) == 0
    said = capsys.readouterr().out
    assert "5 intervals" in said
    assert "this is one" not in said
    assert (loader / "report.html").is_file()


def test_of_many_stages_the_first_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = [f"s{number}" for number in range(60)]
    lines = [
        {
            **line(10.0 * (at + 1), 5.0, slots=dict.fromkeys(stages, 1)),
            "stages": [{"name": name, "busy": float(name == stage)} for name in stages],
        }
        for at, stage in enumerate(stages)
    ]
    folder = write(tmp_path / "run", json.dumps({**HEADER, "stages": stages}), *lines)
    (folder / LOG).write_text((folder / LOG).read_text().partition("\n")[2])  # the other header
    plots = ["--plots", str(tmp_path / "plots")] if find_spec("matplotlib") else []
    assert main(["report", str(folder), *plots]) == 0
    assert "s19 2%, and 40 more\n" in capsys.readouterr().out
    assert (folder / "report.html").read_text().count("and 40 more</div>") == 2


def test_a_reason_that_names_a_file_whose_name_is_no_text_is_shown(tmp_path: Path) -> None:
    name = b"caf\xe9.parquet".decode("utf-8", "surrogateescape")
    write(tmp_path, line(10, 100.0, reason=f"tuning stopped: no {name}"))
    assert main(["report", str(tmp_path)]) == 0
    assert r"caf\udce9.parquet" in (tmp_path / "report.html").read_text()


def test_from_the_command_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run)]) == 0
    out = capsys.readouterr().out
    assert "5 intervals, 1 change; held up by: map 50%, trainer 50%" in out
    assert "4.00x" in out
    assert (run / "report.html").read_text().startswith("<!doctype html>")
    assert main(["report", str(run / "nowhere")]) == 2
    assert "intune.tune(log=" in capsys.readouterr().err


@given(st.lists(st.floats(-1e9, 1e9) | st.just(float("nan")), max_size=3000))
def test_lines_are_thinned_within_their_bounds(values: list[float]) -> None:
    points = thinned([float(i) for i in range(len(values))], values, 100)
    known = [value for value in values if value == value]
    assert len(points) <= 100
    for _, value in points:
        assert value != value or min(known) - 1e-3 <= value <= max(known) + 1e-3
    if values:
        assert points[-1][0] == len(values) - 1


def test_charts_break_lines_where_nothing_was_measured() -> None:
    series = Series(name="a", colour="red", times=[0, 1, 2, 3], values=[1.0, float("nan"), 2.0, 3.0])
    path = re.search(r'class="line"[^>]* d="([^"]*)"', time_chart([series], up="rows/s", until=3.0))
    assert path is not None
    assert path[1].count("M") == 2


def test_steps_are_held_until_a_gap_begins() -> None:
    nan = float("nan")
    values = [4.0, nan, 2.0, nan]  # as of a pool, between slots of each stage's own
    series = Series(name="shared", colour="c", times=[0.0, 1.0, 2.0, 3.0], values=values, steps=True)
    path = re.search(r'class="line"[^>]* d="([^"]*)"', time_chart([series], up="slots", until=3.0))
    assert path is not None
    assert re.fullmatch(r"M58 [\d.]+H335.3M612.7 [\d.]+H890", path[1]), path[1]


def test_neighbours_are_joined_and_numbers_short() -> None:
    spans = [Span(start=0, end=1, name="a", colour="r"), Span(start=1, end=2, name="a", colour="r"),
             Span(start=2, end=3, name="b", colour="g")]  # fmt: skip
    assert [(span.start, span.end, span.name) for span in joined(spans)] == [(0, 2, "a"), (2, 3, "b")]
    assert [(span.start, span.end, span.name) for span in coarser(spans, 1)] == [(0, 3, "a")]
    assert time_unit(20000) == ("hours", 3600.0)
    assert time_unit(300)[0] == "minutes"
    assert time_unit(30)[0] == "seconds"
