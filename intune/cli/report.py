"""`intune report`: a tuned run as a page and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from intune.cli.defaults import otherwise

REPORT_HELP = """\
Make a page, and pictures, of what a tuner did: rate, slots and memory over time, what held the job up when, every
decision with its reason, and what it brought.

RUN is the folder that was given to intune.tune(…, log=RUN), or one of those that intune run and intune compare make in
their --log, for every loader and every agent; where they made only one, theirs will do. Where several loaders or ranks
logged to RUN, the page is of the first; the others have folders of their own there, loader-2 and so on. The page needs
no network.

Examples:
  intune report runs/monday
  intune report runs/today/loader-1
  intune report runs/monday --html monday.html --plots pictures
"""


def report(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    /,
    *,
    html: Annotated[Path | None, otherwise("report.html beside the log", metavar="PATH")] = None,
    plots: Annotated[Path | None, otherwise("none are made", metavar="PATH")] = None,
) -> None:
    """Make a page of a tuned run.

    Args:
        run: Folder with the run's decisions.jsonl, or that file.
        html: Where to write the page.
        plots: Folder for PNG pictures (needs matplotlib).
    """
    from intune.cli.writing import check_file, check_folder, check_pictures
    from intune.report import counted, gain, held_up, log_in, logs_beside, named, read_run
    from intune.report_page import page

    log = log_in(run)
    found = read_run(log)
    target = log.parent / "report.html" if html is None else html
    check_file("html", target)
    check_folder("plots", plots)
    check_pictures("plots", plots)
    target.parent.mkdir(parents=True, exist_ok=True)
    # A reason may name a file whose name is no UTF-8.
    target.write_text(page(found), encoding="utf-8", errors="backslashreplace")
    written = [target]
    if plots is not None:
        from intune.report_pictures import draw

        written += draw(found, plots)
    shares = named(f"{name} {share:.0%}" for name, share in held_up(found).items())
    intervals, changes = counted(len(found.intervals), "interval"), counted(len(found.changes), "change")
    print(f"{intervals}, {changes}; held up by: {shares or 'unknown'}")
    brought = gain(found)
    if brought is not None:
        print(
            f"rate at the end: {brought.last / brought.first:.2f}x that of the slots it began with, "
            f"which were seen for {max(brought.seconds_first, 1.0):.0f} s"
        )
    if others := logs_beside(log.parent):
        folders = named(map(str, others))
        print(f"this is one loader of {len(others) + 1} that logged there; the others are in {folders}")
    for path in written:
        print(f"wrote {path}")
