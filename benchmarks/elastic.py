"""A machine that changes under a running job: processors taken away and given back, memory taken away, nodes of a Ray
cluster. ``python -m benchmarks.elastic --json FILE``.

What the best is on each machine is measured first, in the same way for every allocation; then one job runs through
all phases. A phase is recovered from at the first decision's interval that delivers 0.9 of the phase's best.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import data, environment, harness, report
from benchmarks.context import Bar
from benchmarks.data import DataSpec
from benchmarks.limited import limited
from benchmarks.memory import tree
from benchmarks.stats import Estimate

SPEC = DataSpec(rows=524_288, files=8, row_group_rows=8_192, dense=4, ids=8)
PARTS = ("cpus", "memory", "ray")
CODE: dict[str, Any] = {"temporary": 24_000_000, "spread": 0.0, "wait_s": 0.06}
"""Of every batch: 15 ms of processor time, 60 ms of waiting, 24 MB held; best with several slots a processor."""
TRIED = (1, 2, 4, 8, 16)
"""Slots of the transform, and pools, among which the best is found."""
EACH_S = 3.0
SHARE = 0.9
DECISIONS = 5


@dataclass(frozen=True, kw_only=True)
class Options:
    """A running job whose machine changes.

    Attributes:
        json: Where to write the results; parts that are there already are kept.
        only: Parts to run: cpus, memory, ray.
        phase_s: Seconds of each phase.
    """

    json: Path | None = None
    only: tuple[str, ...] = PARTS
    phase_s: float = 15.0

    def __post_init__(self) -> None:
        unknown = set(self.only) - set(PARTS)
        if unknown or not self.phase_s > 0:
            raise SystemExit(f"`--only` knows {', '.join(PARTS)}; `--phase-s` must be above 0")


def main(options: Options) -> int:
    console = Console()
    document: dict[str, Any] = {}
    if options.json is not None and options.json.exists():
        document = json.loads(options.json.read_text())
    document["environment"] = environment.describe()
    files = [str(path.resolve()) for path in data.ensure(SPEC)]
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "cpus": lambda: of_cpus(files, options, console),
        "memory": lambda: of_memory(files, options, console),
        "ray": lambda: of_ray(files, options, console),
    }
    for name in options.only:
        console.print(f"part {name}", highlight=False)
        try:
            document[name] = parts[name]()
        except harness.ContenderFailed as error:
            document[name] = {"error": str(error)}
            console.print(f"failed: {str(error).splitlines()[-1]}", highlight=False)
        report.write(options.json, document)
    found = bars(document)
    document["bars"] = [bar.as_dict() for bar in found]
    report.write(options.json, document)
    show(document, console)
    console.print(report.bars_table(found))
    return 0


# ---- parts ---------------------------------------------------------------------------------------------------


def of_cpus(files: Sequence[str], options: Options, console: Console) -> dict[str, Any]:
    """Two processors, one, two."""
    all_cpus = sorted(os.sched_getaffinity(0))
    one, two = all_cpus[:1], all_cpus[:2]
    if len(two) < 2:
        return {"error": "this machine has one processor; there is none to take away"}
    best = {}
    for cpus in (two, one):
        console.print(f"  the best with {len(cpus)}", highlight=False)
        config = {"sweep": _allocations(), "each_s": EACH_S}
        found = _run(files, config, seconds=(len(_allocations()) + 1) * (EACH_S + 0.6) + 2, cpus=cpus)
        best[len(cpus)] = max(rate for _, rate in found["sweep"])
        console.print(f"  {best[len(cpus)]:,.0f} rows/s with {found['sweep'][0][0]}", highlight=False)
    phases = [(options.phase_s * number, cpus) for number, cpus in enumerate((two, one, two))]
    timed = [(at, lambda pid, cpus=cpus: bind(pid, cpus)) for at, cpus in phases[1:]]
    console.print("  the job", highlight=False)
    found = _run(files, {"agent": "dqn"}, seconds=3 * options.phase_s, cpus=two, timed=timed)
    bounds = [at for at, _ in phases]
    return {
        "best": best,
        "phases": recoveries(found["decisions"], bounds, [best[len(cpus)] for _, cpus in phases]),
        "whole_epochs": whole(found),
        "run": found,
    }


def of_memory(files: Sequence[str], options: Options, console: Console) -> dict[str, Any]:
    """A limit that falls to just above what is in use."""
    changes: list[dict[str, float]] = []
    with limited(f"intune-elastic-{os.getpid()}") as group:

        def lower(_: int) -> None:
            used = group.used()
            done = group.limit(int(1.1 * used))
            changes.append({"used": used, "limit": int(1.1 * used), "set": float(done)})

        half = options.phase_s
        timed = [(0.0, lambda _: group.limit(3 << 30) and None), (half, lower)]
        console.print("  the job", highlight=False)
        found = _run(
            files, {"agent": "dqn"}, seconds=2 * half, timed=timed, join=group.join(), watch=group.watch
        )
        kills = group.kills()
        kind = group.kind
    before = [entry for entry in found["decisions"] if entry["time"] < half]
    after = [entry for entry in found["decisions"] if entry["time"] >= half]
    return {
        "limited_by": kind,
        "killed": kills,
        "changes": changes,
        "slots_before": before[-1]["allocation"] if before else None,
        "slots_after": after[-1]["allocation"] if after else None,
        "gave_back": any("memory" in entry["reason"] and entry["decided"] for entry in after),
        "whole_epochs": whole(found),
        "run": found,
    }


def of_ray(files: Sequence[str], options: Options, console: Console) -> dict[str, Any]:
    """One node of one processor, a second, one again."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.elastic_ray",
        json.dumps({"files": list(files), "phase_s": options.phase_s}),
    ]
    console.print("  the job", highlight=False)
    return harness.run_command(command, name="elastic, Ray", timeout=6 * options.phase_s + 120, interval=0.5)


def _allocations() -> list[dict[str, int]]:
    stages = {"load": 1, "batch": 1, "transfer": 1}
    return [{**stages, "transform": count} for count in TRIED if count > 1] + [
        {"shared": count} for count in TRIED
    ]


def bind(pid: int, cpus: Sequence[int]) -> None:
    """Let all threads of a process tree run on `cpus` alone."""
    for process in tree(pid):
        with contextlib.suppress(psutil.Error, OSError):
            for thread in psutil.Process(process).threads():
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(thread.id, cpus)


def _run(
    files: Sequence[str],
    config: Mapping[str, Any],
    *,
    seconds: float,
    cpus: Sequence[int] | None = None,
    timed: Sequence[tuple[float, Callable[[int], object]]] = (),
    join: Callable[[], None] = lambda: None,
    watch: Callable[[int], None] = lambda pid: None,
) -> dict[str, Any]:
    """A job in a process of its own, to which things are done at times since its loader was made."""
    live = {"files": list(files), "function": "drawn", "options": CODE, "seconds": seconds, "wait": True}
    command = [
        sys.executable, "-m", "benchmarks.tuned",
        "--config", json.dumps({"rowwise": False, **config}), "--live", json.dumps(live),
    ]  # fmt: skip

    def prepare() -> None:
        join()
        if cpus is not None:
            os.sched_setaffinity(0, cpus)

    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=harness.REPOSITORY,
        preexec_fn=prepare,
    )
    watch(process.pid)
    assert process.stdin is not None
    assert process.stdout is not None
    if process.stdout.readline().strip() != "ready":
        raise harness.ContenderFailed(f"the job ended with status {process.wait()} before it began")
    try:
        with _acting(process.pid, timed):
            text, _ = process.communicate("go\n", timeout=2 * seconds + 60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise harness.ContenderFailed(f"the job did not end within {2 * seconds + 60:.0f} s") from None
    line = next((line for line in reversed(text.splitlines()) if line.startswith("{")), None)
    if line is None:
        raise harness.ContenderFailed(f"the job ended with status {process.returncode} and no report")
    result: dict[str, Any] = json.loads(line)
    return result


@contextlib.contextmanager
def _acting(pid: int, timed: Sequence[tuple[float, Callable[[int], object]]]) -> Iterator[None]:
    """Within, things are done to a process, each at its time from now on."""
    ended = threading.Event()

    def act() -> None:
        began = time.monotonic()
        for at, what in timed:
            if ended.wait(max(0.0, at - (time.monotonic() - began))):
                return
            what(pid)

    actor = threading.Thread(target=act, daemon=True)
    actor.start()
    try:
        yield
    finally:
        ended.set()
        actor.join()


# ---- what follows --------------------------------------------------------------------------------------------


def recoveries(
    decisions: Sequence[Mapping[str, Any]], bounds: Sequence[float], best: Sequence[float]
) -> list[dict[str, Any]]:
    """Of every phase: decisions and seconds until an interval wholly within it delivered `SHARE` of the best.

    Args:
        decisions: ``time`` of the end of an interval, its ``interval`` in seconds, ``delivered`` rows/s.
        bounds: seconds at which phases begin, in order; best: rows/s of each.
    """
    found = []
    for number, (begin, most) in enumerate(zip(bounds, best, strict=True)):
        end = bounds[number + 1] if number + 1 < len(bounds) else math.inf
        inside = [
            entry for entry in decisions if begin <= entry["time"] - entry["interval"] and entry["time"] < end
        ]
        at = next(
            (place for place, entry in enumerate(inside) if (entry["delivered"] or 0.0) >= SHARE * most), None
        )
        found.append(
            {
                "begin": begin,
                "best": most,
                "reached": max((entry["delivered"] or 0.0 for entry in inside), default=0.0),
                "decisions": None if at is None else at,
                "seconds": None if at is None else inside[at]["time"] - begin,
            }
        )
    return found


def whole(run: Mapping[str, Any], rows: int = SPEC.rows) -> bool:
    """Whether every epoch that was read to its end had all rows."""
    return all(count == rows for count in run.get("epoch_rows", []))


def bars(document: Mapping[str, Any]) -> list[Bar]:
    found = []
    for part, label in (("cpus", "processors 2, 1, 2"), ("ray", "Ray nodes 1, 2, 1")):
        of = document.get(part, {})
        for number, phase in enumerate(of.get("phases", [])):
            value = math.inf if phase["decisions"] is None else float(phase["decisions"])
            name = f"{label}: decisions to {SHARE:g} of the best, phase {number + 1}"
            found.append(_bar(name, DECISIONS, value))
        if "whole_epochs" in of:
            found.append(_bar(f"{label}: epochs that lack rows", 0, float(not of["whole_epochs"])))
    of = document.get("memory", {})
    if "killed" in of:
        found.append(_bar("memory taken away: processes killed", 0, float(of["killed"])))
        found.append(_bar("memory taken away: epochs that lack rows", 0, float(not of["whole_epochs"])))
    return found


def _bar(name: str, limit: float, value: float) -> Bar:
    return Bar(name=name, limit=limit, unit="", measured=Estimate(value, value, value), at_least=False)


def show(document: Mapping[str, Any], console: Console) -> None:
    table = Table(title="Phases", title_justify="left")
    table.add_column("part")
    for heading in ("from", "best, rows/s", "reached, rows/s", "decisions to 0.9", "seconds to 0.9"):
        table.add_column(heading, justify="right")
    for part in ("cpus", "ray"):
        for phase in document.get(part, {}).get("phases", []):
            seconds = phase["seconds"]
            table.add_row(
                part,
                f"{phase['begin']:.0f} s",
                f"{phase['best']:,.0f}",
                f"{phase['reached']:,.0f}",
                "never" if phase["decisions"] is None else str(phase["decisions"]),
                "never" if seconds is None else f"{seconds:.1f}",
            )
    console.print(table)
    memory = document.get("memory", {})
    if "killed" in memory:
        console.print(
            f"memory ({memory['limited_by']}): limit lowered {memory['changes']}; "
            f"slots before {memory['slots_before']}, after {memory['slots_after']}; killed: {memory['killed']}",
            highlight=False,
        )
    for part in PARTS:
        if "error" in document.get(part, {}):
            console.print(f"[red]{part}:[/red] {document[part]['error']}", highlight=False)


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Options, prog="python -m benchmarks.elastic")))
