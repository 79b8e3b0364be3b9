"""The results as one HTML page that needs nothing else: no network, no script; light or dark as the reader's system."""

from __future__ import annotations

from dataclasses import replace
from html import escape

from intune.agents.summary import Summary
from intune.envs.jobs import Floats
from intune.report import counted
from intune.simulation.results import Results, best_first
from intune.simulation.svg import Bar, Line, bar_chart, line_chart
from intune.simulation.table import HEADINGS, cells, filled

# Twelve hues that can be told apart on both grounds; agents beyond that begin anew, dashed.
LIGHT = ("#0b6e99", "#c1440e", "#2e7d32", "#7b3fa0", "#b8860b", "#ad1457", "#00838f", "#5d4037", "#3949ab",
         "#689f38", "#e65100", "#546e7a")  # fmt: skip
DARK = ("#4fb3d9", "#ff8a5c", "#7bc67e", "#c792ea", "#e6c04d", "#f48fb1", "#4dd0e1", "#bcaaa4", "#9fa8da",
        "#c5e1a5", "#ffb74d", "#b0bec5")  # fmt: skip

STYLE = """
:root{color-scheme:light dark;--ground:#fff;--ink:#1c2328;--soft:#5b6770;--rule:#d9dee2;--strip:#f4f6f7;LIGHT}
@media(prefers-color-scheme:dark){:root{--ground:#15191c;--ink:#e4e8ea;--soft:#98a4ac;--rule:#323a40;--strip:#1c2226;DARK}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1120px;padding:24px 20px 60px;background:var(--ground);color:var(--ink);
font:15px/1.5 system-ui,sans-serif}
h1{font-size:1.5em;margin:0 0 4px}h2{font-size:1.2em;margin:40px 0 4px}p{margin:4px 0 14px;color:var(--soft)}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:13px;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:5px 9px;white-space:nowrap;border-bottom:1px solid var(--rule)}
th{font-weight:600;color:var(--soft)}th[title]{cursor:help}th:first-child,td:first-child{text-align:left}
tbody tr:hover{background:var(--strip)}.bad{color:var(--c1);font-weight:600}
.dot{display:inline-block;width:10px;height:10px;border-radius:5px;margin-right:7px}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(330px,1fr));gap:18px;margin:18px 0}
figure{margin:0}figcaption{font-size:13px;color:var(--soft);margin-bottom:4px}svg{width:100%;height:auto;display:block}
.line{fill:none;stroke-width:1.8}.band{opacity:.16}.grid{stroke:var(--rule)}.whisker{stroke:var(--ink);stroke-width:1.2}
.tick,.axis{font:11px system-ui,sans-serif;fill:var(--soft)}nav a{margin-right:12px;color:var(--c0)}
"""


def page(results: Results) -> str:
    """The whole page."""
    settings = results.settings
    asked = ", ".join(
        f"{name} {value}" for name, value in settings.items() if not isinstance(value, list | tuple)
    )
    links = "".join(f'<a href="#{escape(name)}">{escape(name)}</a>' for name in results.scenarios)
    sections = "".join(_section(results, name) for name in results.scenarios)
    return document(
        "intune simulate",
        STYLE,
        f"<h1>Agents on simulated jobs</h1><p>{escape(asked)}; took {results.seconds:.0f} s. All agents ran the same "
        "jobs with the same chance. Shares are of the best allocation that there is, computed from the simulator's "
        f"own parameters; bands and brackets are 95 % intervals over jobs.</p><nav>{links}</nav>{sections}",
    )


def document(title: str, style: str, body: str) -> str:
    """A page that needs no other file; in `style` the words LIGHT and DARK stand for the colours."""
    style = style.replace("LIGHT", _variables(LIGHT)).replace("DARK", _variables(DARK))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body>{body}</body></html>\n"
    )


def _section(results: Results, scenario: str) -> str:
    summaries = best_first(results.scenarios[scenario])
    colours = {summary.agent: number for number, summary in enumerate(results.scenarios[scenario])}
    interval = results.interval[scenario]
    across = f"decision (one every {interval:g} s)"
    bars = [
        Bar(name=s.agent, colour=_colour(colours[s.agent]), value=w.mean, low=w.low, high=w.high)
        for s, w in ((s, s.outcomes["whole"]) for s in summaries)
    ]
    charts = (
        ("Share of the best rate, mean over jobs", _curves(summaries, colours, across)),
        ("Rows over the whole job, share of the best", bar_chart(bars, label="share of the best rows")),
        ("Regret: intervals' worth of the best rate lost so far", _regret(summaries, colours, across)),
    )
    figures = "".join(f"<figure><figcaption>{text}</figcaption>{chart}</figure>" for text, chart in charts)
    return (
        f'<h2 id="{escape(scenario)}">{escape(scenario)}</h2><p>{escape(results.descriptions[scenario])} '
        f"{counted(summaries[0].jobs, 'job')}, {counted(len(summaries[0].curve), 'decision')} each.</p>"
        f'{_table(results, summaries, colours)}<div class="charts">{figures}</div>'
    )


def _table(results: Results, summaries: list[Summary], colours: dict[str, int]) -> str:
    names = {heading: f"/ {results.reference}" if heading == "ratio" else heading for heading in HEADINGS}
    shown, keys = filled(summaries), list(HEADINGS)
    head = "".join(
        f'<th title="{escape(HEADINGS[key])}">{escape(names[key])}</th>' for key in (keys[at] for at in shown)
    )
    rows = []
    memory = keys.index("out of memory")
    for summary in summaries:
        dot = f'<span class="dot" style="background:var(--c{_colour(colours[summary.agent])})"></span>'
        texts = cells(summary)
        columns = [
            f'<td class="bad">{texts[at]}</td>'
            if at == memory and summary.killed_jobs
            else f"<td>{texts[at]}</td>"
            for at in shown
        ]
        rows.append(f"<tr><td>{dot}{escape(summary.agent)}</td>{''.join(columns)}</tr>")
    return (
        f'<div class="wide"><table><thead><tr><th>agent</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody>'
        "</table></div>"
    )


def _curves(summaries: list[Summary], colours: dict[str, int], across: str) -> str:
    lines = [replace(_line(s, colours, s.curve), low=s.low.tolist(), high=s.high.tolist()) for s in summaries]
    return line_chart(lines, across=across, up="share of the best rate", most=1.05)


def _regret(summaries: list[Summary], colours: dict[str, int], across: str) -> str:
    lines = [_line(s, colours, s.regret) for s in summaries]
    return line_chart(lines, across=across, up="intervals lost")


def _line(summary: Summary, colours: dict[str, int], values: Floats) -> Line:
    number = colours[summary.agent]
    return Line(
        name=summary.agent, colour=_colour(number), values=values.tolist(), dashed=number >= len(LIGHT)
    )


def _colour(number: int) -> int:
    return number % len(LIGHT)


def _variables(colours: tuple[str, ...]) -> str:
    return ";".join(f"--c{number}:{colour}" for number, colour in enumerate(colours))
