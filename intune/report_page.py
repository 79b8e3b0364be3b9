"""A run as one HTML page: no network, no script; light or dark as the reader's system, from phone to wide screen."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable
from html import escape

from intune.pipelines.budget import format_bytes
from intune.pipelines.shortened import shortened
from intune.report import MOST_NAMED, TRAINER, Interval, Run, counted, gain, held_up
from intune.report_charts import Series, Span, strip, time_chart
from intune.simulation.page import LIGHT, document

MOST_ROWS = 400
"""Decisions in the table: of a longer run the first and the last half of them."""

STYLE = """
:root{color-scheme:light dark;--ground:#fff;--ink:#1c2328;--soft:#5b6770;--rule:#d9dee2;--card:#f4f6f7;LIGHT}
@media(prefers-color-scheme:dark){:root{--ground:#15191c;--ink:#e4e8ea;--soft:#98a4ac;--rule:#323a40;--card:#1c2226;DARK}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1000px;padding:20px 16px 60px;background:var(--ground);color:var(--ink);
font:15px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.4em;margin:0 0 4px}h2{font-size:1.1em;margin:32px 0 2px}p{margin:4px 0 10px;color:var(--soft)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:10px;margin:18px 0}
.card{background:var(--card);border-radius:8px;padding:10px 12px}.card b{display:block;font-size:1.3em}
.card span{color:var(--soft);font-size:13px}
.key{font-size:13px;color:var(--soft)}.key span{margin-right:14px;white-space:nowrap}
.dot{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:6px}
.chart{overflow-x:auto}.chart table{min-width:600px;overflow-wrap:normal}
.chart svg{min-width:520px;width:100%;height:auto;display:block}
.line{fill:none;stroke-width:1.8}.grid{stroke:var(--rule)}.mark{stroke:var(--soft);stroke-width:.6;opacity:.5}
.tick{font:11px system-ui,sans-serif;fill:var(--soft)}
table{border-collapse:collapse;width:100%;font-size:13px;font-variant-numeric:tabular-nums}
th,td{text-align:left;vertical-align:top;padding:5px 8px 5px 0;border-bottom:1px solid var(--rule)}
th{font-weight:600;color:var(--soft)}td.n,th.n{text-align:right;white-space:nowrap}
@media(max-width:600px){.tick{font-size:16px}.list,.list tbody,.list tr,.list td{display:block}.list thead{display:none}
.list td{border:0;padding:1px 0}.list td.n{text-align:left;display:inline-block;margin-right:12px}
.list tr{border-bottom:1px solid var(--rule);padding:7px 0}}
"""


def page_of(title: str, said: str, body: str) -> str:
    """A page of its own, with this module's looks. `said` and `body` are HTML."""
    return document(title, STYLE, f"<h1>{escape(title)}</h1><p>{said}</p>{body}")


def page(run: Run) -> str:
    """The whole page."""
    began = datetime.datetime.fromtimestamp(run.began, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    until = run.intervals[-1].time
    broken = f" {counted(run.unreadable, 'line')} of the log could not be read." if run.unreadable else ""
    return page_of(
        f"Tuning by {run.agent}",
        f"{escape(_short_name(run.pipeline))}. Began {began}, {_duration(until)}, "
        f"{counted(len(run.intervals), 'interval')}, {counted(len(run.changes), 'change')}; "
        f"budget {counted(run.cpus, 'CPU')} and {format_bytes(run.memory)}.{broken}",
        _cards(run) + _rates(run, until) + _bottlenecks(run, until) + _slots(run, until) + _memory(run, until)
        + _decisions(run),
    )  # fmt: skip


def _cards(run: Run) -> str:
    found = gain(run)
    seconds = sum(one.seconds for one in run.measured)
    mean = run.rows / seconds if seconds > 0 else math.nan
    cards = [(shortened(mean), "rows/s on average"), (shortened(run.rows), "rows delivered while measured")]
    if found is not None:
        saved = f"{_duration(abs(found.saved))} {'less' if found.saved >= 0 else 'more'}"
        seen = _duration(max(found.seconds_first, 1.0))
        cards += [
            (f"{found.last / found.first:.2f}×", "rate at the end to that of the slots it began with"),
            (saved, f"than the same rows would have taken with those, going by {seen} with them"),
            (f"{found.slots_first:.0f} → {found.slots_last:.0f}", "slots, beginning and end"),
            (
                f"{_bytes(found.memory_first)} → {_bytes(found.memory_last)}",
                "resident memory, beginning and end",
            ),
        ]
    inner = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(text)}</span></div>' for value, text in cards
    )
    return f'<div class="cards">{inner}</div>'


def _rates(run: Run, until: float) -> str:
    lines = [_line(run, "rows/s", 0, [one.delivered for one in run.intervals])]
    marks = [one.time for one in run.changes]
    return _figure(
        "Rate", "Rows/s that the trainer took. Thin lines: slots changed.",
        time_chart(lines, up="rows/s", until=until, marks=marks),
    )  # fmt: skip


def _bottlenecks(run: Run, until: float) -> str:
    colours = _colours(run)
    spans = [
        Span(start=one.opened, end=one.time, name=name, colour=colours[name]) for one, name in run.bottlenecks
    ]
    shares = held_up(run)
    legend = key((f"{name} {share:.0%}", colours[name]) for name, share in shares.items())
    said = (
        "The trainer, where it waited for less than a twentieth of its time; else the stage most of whose slots were "
        "at work."
    )
    return _figure(
        "What held the job up",
        said,
        strip(spans, until=until, label="What held the job up, over time"),
        legend,
    )


def _slots(run: Run, until: float) -> str:
    colours = _colours(run)
    names = [*run.stages, *(["shared"] if any("shared" in one.slots for one in run.intervals) else [])]
    lines = []
    for number, name in enumerate(names):
        points = [(one.began, float(one.slots.get(name, math.nan))) for one in run.intervals]
        points.append((until, points[-1][1]))
        kept = _corners(points)
        lines.append(
            Series(
                name=name,
                colour=colours[name],
                times=[at for at, _ in kept],
                values=[value for _, value in kept],
                steps=True,
                lift=1.6 * number,  # or equal numbers would hide each other
            )
        )
    legend = key((name, colours[name]) for name in names)
    return _figure("Slots", "Tasks that may run at once.", time_chart(lines, up="slots", until=until), legend)


def _memory(run: Run, until: float) -> str:
    gib = 1024.0**3
    lines = [
        _line(run, "resident", 0, [one.memory / gib for one in run.intervals]),
        _line(run, "limit", 1, [one.memory_limit / gib for one in run.intervals], dashed=True),
    ]
    legend = key([("resident", _colour(0)), ("limit", _colour(1))])
    return _figure(
        "Memory", "Resident bytes of trainer and pipeline, and what the job may hold.",
        time_chart(lines, up="GiB", until=until), legend,
    )  # fmt: skip


def _decisions(run: Run) -> str:
    shown, last = run.changes, run.intervals[-1]
    note = f"The {counted(len(shown), 'decision')} that changed something"
    if len(shown) > MOST_ROWS:
        note = f"The first and last {MOST_ROWS // 2} of {len(shown):,} decisions that changed something"
        shown = [*shown[: MOST_ROWS // 2], *shown[-MOST_ROWS // 2 :]]
    if not shown:
        shown, note = [last], "Nothing was changed; the last interval's reason:"
    elif last.decided is None:
        shown, note = [*shown, last], f"{note}, and the last one."
    else:
        note += "."
    rows = "".join(_decision(one) for one in shown)
    return (
        f'<h2>Decisions</h2><p>{note}</p><table class="list"><thead><tr><th class="n">after</th>'
        f'<th class="n">rows/s</th><th>slots from then on</th><th>why</th></tr></thead><tbody>{rows}</tbody></table>'
    )


def _decision(one: Interval) -> str:
    slots = ", ".join(f"{name} {count}" for name, count in (one.decided or one.slots).items())
    return (
        f'<tr><td class="n">{_duration(one.time)}</td><td class="n">{shortened(one.delivered)}</td>'
        f"<td>{escape(slots)}</td><td>{escape(one.reason)}</td></tr>"
    )


def _line(run: Run, name: str, colour: int, values: list[float], *, dashed: bool = False) -> Series:
    """What the intervals had, at their ends; the first's from its opening on, or a run of one would show nothing."""
    times = [run.intervals[0].opened, *(one.time for one in run.intervals)]
    return Series(name=name, colour=_colour(colour), times=times, values=[values[0], *values], dashed=dashed)


def _figure(title: str, said: str, chart: str, legend: str = "") -> str:
    return f'<h2>{title}</h2><p>{said}</p>{legend}<div class="chart">{chart}</div>'


def key(entries: Iterable[tuple[str, str]]) -> str:
    """Names beside their colours, the first of many."""
    known = list(entries)
    inner = "".join(
        f'<span><i class="dot" style="background:{colour}"></i>{escape(name)}</span>'
        for name, colour in known[:MOST_NAMED]
    )
    more = f"and {len(known) - MOST_NAMED} more" if len(known) > MOST_NAMED else ""
    return f'<div class="key">{inner}{more}</div>'


def _corners(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Without what lies between two points of the same value."""
    kept = []
    for at, point in enumerate(points):
        inside = 0 < at < len(points) - 1
        if (
            not inside
            or repr(points[at - 1][1]) != repr(point[1])
            or repr(points[at + 1][1]) != repr(point[1])
        ):
            kept.append(point)
    return kept


def _colours(run: Run) -> dict[str, str]:
    names = [*run.stages, "shared"]
    return {name: _colour(number) for number, name in enumerate(names)} | {TRAINER: "var(--soft)"}


def _colour(number: int) -> str:
    return f"var(--c{number % len(LIGHT)})"


def _bytes(count: float) -> str:
    return format_bytes(count) if math.isfinite(count) else "?"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def _short_name(pipeline: str) -> str:
    return pipeline if len(pipeline) <= 200 else pipeline[:199] + "…"
