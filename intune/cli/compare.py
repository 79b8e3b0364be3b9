"""`intune compare`: agents on this machine and this data. What is done lives in `intune.comparing`."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from intune.cli.defaults import otherwise
from intune.cli.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from intune.comparing import Outcome
    from intune.profiling import ProfileConfig

COMPARE_HELP = """\
Run a real pipeline under one agent after another, each from a cold start, and compare what they delivered.

The data is a file, folder, glob or URI (s3://…) of Parquet files, whose nulls among numbers are read as 0; the trainer
is one that takes --step-ms for a batch. The agent shared is the untuned default, and what the ratios are to. Ctrl-C
ends it with the table of the agents that were done, as an error does, and writes no files.

Examples:
  intune compare --data data/train
  intune compare --data data/train --transform my_project.features:transform --agents shared autotune dqn --seconds 60
  intune compare --data 's3://bucket/day_*.parquet' --step-ms 12 --html compare.html --plot compare.png
"""

DEFAULT_AGENTS = ("static", "even", "shared", "autotune", "planner", "dqn")

REFERENCE = "shared"

WIDE = 140
"""Columns where output is no terminal, so that nothing is folded."""


def compare(
    *,
    data: str,
    agents: tuple[str, ...] = DEFAULT_AGENTS,
    seconds: float = 30.0,
    transform: str = "criteo",
    batch_size: int = 8192,
    shuffle: int = 0,
    executor: Literal["auto", "threads", "ray"] = "threads",
    cpus: Annotated[int | None, otherwise("all that the job may use", metavar="INT")] = None,
    memory: Annotated[str | None, otherwise("a quarter of what is free", metavar="STR")] = None,
    step_ms: float = 0.0,
    json: Annotated[Path | None, otherwise("none is written", metavar="PATH")] = None,
    html: Annotated[Path | None, otherwise("none is written", metavar="PATH")] = None,
    plot: Annotated[Path | None, otherwise("none is written", metavar="PATH")] = None,
    log: Annotated[Path | None, otherwise("none are written", metavar="PATH")] = None,
) -> None:
    """Compare agents on a real pipeline.

    Args:
        data: Parquet files to read.
        agents: Their names, after blanks or commas; shared is the untuned default.
        seconds: For each of them.
        transform: What is done to every batch: criteo (the preset for Criteo's columns), none, or module:function.
        batch_size: Rows of a batch.
        shuffle: Row groups of the shuffle's window; 0 for none.
        executor: Where workers run: threads of this process, or Ray; auto takes Ray where a cluster is named.
        cpus: CPUs that the pipeline may use.
        memory: Bytes that its blocks may hold, as in 2GiB.
        step_ms: Milliseconds that the trainer takes for a batch.
        json: Write all figures there.
        html: Write a page there.
        plot: Write a picture there, as .png, .svg, .pdf or .jpg (needs matplotlib).
        log: Folder for the agents' decisions, for intune report.
    """
    from intune.cli.writing import check_file, check_folder, check_picture, write_all
    from intune.compare_page import draw, page
    from intune.profiling import ProfileConfig

    check_file("json", json)
    check_file("html", html)
    check_picture("plot", plot)
    check_folder("log", log)
    config = ProfileConfig(
        data=data, transform=transform, batch_size=batch_size, shuffle=shuffle, executor=executor, cpus=cpus,
        memory=memory, step_ms=step_ms, seconds=seconds,
    )  # fmt: skip
    found = _compared(config, tuple(name for words in agents for name in words.split(",") if name), log)

    def save(path: Path) -> None:
        document = {"data": data, "agents": [one.as_dict() for one in found]}
        path.write_text(json_module.dumps(document, indent=1) + "\n", encoding="utf-8")

    def write_page(path: Path) -> None:
        path.write_text(page(found, data=data, reference=REFERENCE), encoding="utf-8")

    # Files first: whoever reads the table may leave.
    written, lost = write_all((json, save), (html, write_page), (plot, lambda path: draw(found, path)))
    _show(found)
    for path in written:
        print(f"wrote {path}")
    if lost is not None:
        raise lost


def _compared(config: ProfileConfig, agents: tuple[str, ...], log: Path | None) -> list[Outcome]:
    """What came of the agents; of a comparison that is ended early, those that were done are shown."""
    from intune.comparing import compare as run

    done: dict[str, int] = {}
    found: list[Outcome] = []
    try:
        with Progress("comparing agents") as progress:

            def told(agent: str, rows: int, share: float) -> None:
                done[agent] = rows
                progress(sum(done.values()), share)

            for one in run(config, agents, told=told, log=log):
                found.append(one)  # noqa: PERF402 - what there is by then is shown, whatever comes
    except BaseException:
        if found:
            _show(found)
        raise
    return found


def _show(found: Sequence[Outcome]) -> None:
    from intune.display import JobConsole

    console = JobConsole()
    (console if console.is_terminal else JobConsole(width=WIDE)).print(table(found))


def table(outcomes: Sequence[Outcome]) -> Any:
    """The best first."""
    from rich.markup import escape
    from rich.table import Table

    from intune.compare_page import best_first, words
    from intune.comparing import ratio
    from intune.pipelines.budget import format_bytes
    from intune.pipelines.shortened import shortened

    title = f"Each for {outcomes[0].seconds:.0f} s from a cold start"
    made = Table(title=title, title_justify="left")
    made.add_column("agent", no_wrap=True)
    for heading in ("rows/s", f"/ {REFERENCE}", "last third", "waiting", "memory", "changes"):
        made.add_column(heading, justify="right", overflow="fold")
    made.add_column("slots at the end", overflow="fold")
    for one in best_first(outcomes):
        times = ratio(one, outcomes, REFERENCE)
        made.add_row(
            one.agent,
            shortened(one.rate),
            f"{times:.2f}x" if times == times else "-",
            shortened(one.settled),
            f"{one.waiting:.0%}",
            format_bytes(one.memory),
            str(one.changes),
            escape(words(one)),
        )
    return made
