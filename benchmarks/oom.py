"""Who is killed for memory: jobs with memory-hungry user code under limits that kill. ``python -m benchmarks.oom``.

Every job draws what its code takes for a batch, how much that varies, how long it waits meanwhile, and a limit in which
`FITS` batches at once find room at worst, beside what the process holds after its imports and `OWN` for a loader's own
needs. So as many calls at once as there are processors always fit on a small machine; more may not. The limit is a
control group's, and the kernel kills whoever exceeds it; where groups cannot be made, a watchdog stands in, and the
result says so.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import data, environment, harness, report
from benchmarks.context import Bar
from benchmarks.data import DataSpec
from benchmarks.harness import Contender
from benchmarks.limited import Limited, limited
from benchmarks.live_report import geometric_mean, rate
from benchmarks.stats import Estimate
from benchmarks.user_code import MOST_SPREAD

SPEC = DataSpec(rows=524_288, files=8, row_group_rows=8_192, dense=4, ids=8)
"""Row groups of one batch, so that the user's code is given the same rows by everyone."""
FITS = (2.5, 10.0)
OWN = 160 << 20
"""Bytes for what any loader needs besides: Arrow's buffers, stacks of threads, batches on their way, torch."""
GRACE_S = 60.0

CONTENDERS = {
    "ours": Contender(name="ours, dqn", module="benchmarks.tuned", config={"agent": "dqn", "rowwise": False}),
    "tfdata": Contender(
        name="tf.data AUTOTUNE",
        module="benchmarks.rivals.tfdata",
        python="peers",
        config={"ops": "two", "order": "map", "layout": "columns", "parallel": None},
    ),
    "dataloader": Contender(
        name="PyTorch DataLoader, 4 workers",
        module="benchmarks.rivals.pytorch_dataloader",
        config={"workers": 4, "prefetch": 2, "arrow_threads": False, "layout": "columns", "unit": "batch"},
    ),
    "pool": Contender(
        name="pool of 8 threads", module="benchmarks.rivals.bare", config={"threads": 8, "ahead": 8}
    ),
}


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One job.

    Attributes:
        temporary: bytes that the code takes for a batch, on average; spread: standard deviation of its logarithm.
        wait_s: seconds that it waits with a batch in hand; step_s: that the trainer takes for one.
        room: bytes of the limit beyond what the process holds after its imports.
    """

    temporary: int
    spread: float
    wait_s: float
    step_s: float
    room: int


def draw(count: int, seed: int) -> list[Drawn]:
    generator = np.random.default_rng(seed)
    jobs = []
    for _ in range(count):
        temporary = int(np.exp(generator.uniform(np.log(8e6), np.log(150e6))))
        fits = float(np.exp(generator.uniform(np.log(FITS[0]), np.log(FITS[1]))))
        jobs.append(
            Drawn(
                temporary=temporary,
                spread=float(generator.uniform(0.0, 0.3)),
                wait_s=float(generator.choice([0.0, 0.02, 0.1])),
                step_s=float(generator.choice([0.0, 0.0, 0.01])),
                room=int(OWN + fits * MOST_SPREAD * temporary),
            )
        )
    return jobs


@dataclass(frozen=True, kw_only=True)
class Options:
    """Jobs under a memory limit that kills.

    Attributes:
        json: Where to write the results; with `resume`, jobs that are there already are left out.
        jobs: How many (200 for a figure to go by).
        contenders: Who takes part: ours, tfdata, dataloader, pool.
        seconds: Of each run, from the moment its loader is made.
        parallel: Runs at once: imports take longer than jobs, and memory's limits do not mix.
        seed: Of the jobs.
        only: Numbers of the jobs to run.
        resume: Whether to leave out what the file has already.
    """

    json: Path | None = None
    jobs: int = 40
    contenders: tuple[str, ...] = ("ours", "tfdata", "dataloader", "pool")
    seconds: float = 5.0
    parallel: int = 2
    seed: int = 0
    only: tuple[int, ...] = ()
    resume: bool = False

    def __post_init__(self) -> None:
        if self.jobs < 1 or self.parallel < 1 or not self.seconds > 0:
            raise SystemExit("`--jobs`, `--parallel` and `--seconds` must be above 0")
        unknown = set(self.contenders) - set(CONTENDERS)
        if unknown:
            raise SystemExit(
                f"`--contenders` knows {', '.join(CONTENDERS)}, but not {', '.join(sorted(unknown))}"
            )
        beyond = [number for number in self.only if not 0 <= number < self.jobs]
        if beyond:
            raise SystemExit(
                f"`--only` names job {beyond[0]}; with `--jobs {self.jobs}` they are 0 to {self.jobs - 1}"
            )


def main(options: Options) -> int:
    """Run, print, write; the exit status: 1 where one of ours was killed."""
    console = Console()
    document = _begin(options)
    jobs = draw(options.jobs, options.seed)
    files = [str(path.resolve()) for path in data.ensure(SPEC)]
    present = [name for name in options.contenders if harness.available(CONTENDERS[name])]
    for name in options.contenders:
        if name not in present:
            console.print(
                f"{name} not run: the rivals' environment is missing; run `make peers`", highlight=False
            )
    todo = [
        (number, name)
        for number in range(len(jobs))
        for name in present
        if (not options.only or number in options.only)
        and not (options.resume and name in document["jobs"].get(str(number), {}))
    ]
    began = time.monotonic()
    keeping = Lock()  # runs end in threads, and whoever writes the document must find it whole

    def once(entry: tuple[int, str]) -> None:
        number, name = entry
        found = run(CONTENDERS[name], jobs[number], files, seconds=options.seconds, tag=f"{number}-{name}")
        with keeping:
            document["jobs"].setdefault(str(number), {"drawn": asdict(jobs[number])})[name] = found
            report.write_whole(options.json, document)
        what = "KILLED" if found["killed"] else found.get("error") or f"{rate(found):,.0f} rows/s"
        console.print(
            f"{time.monotonic() - began:5.0f} s  job {number}: {name}: {what.splitlines()[-1]}",
            highlight=False,
        )

    with ThreadPoolExecutor(options.parallel) as pool:
        list(pool.map(once, todo))
    found = bars(document)
    document["bars"] = [bar.as_dict() for bar in found]
    report.write_whole(options.json, document)
    show(document, console)
    console.print(report.bars_table(found))
    return int(any(bar.passed is False for bar in found))


def run(
    contender: Contender, job: Drawn, files: Sequence[str], *, seconds: float, tag: str
) -> dict[str, Any]:
    """One process under its limit: what it reports, with ``killed``; or ``error`` for any other end."""
    live = {
        "files": list(files),
        "function": "drawn",
        "options": {"temporary": job.temporary, "spread": job.spread, "wait_s": job.wait_s},
        "seconds": seconds,
        "step_s": job.step_s,
        "wait": True,
    }
    command = [
        str(harness.PYTHONS[contender.python]), "-m", contender.module,
        "--config", json.dumps(contender.config), "--live", json.dumps(live),
    ]  # fmt: skip
    with limited(f"intune-oom-{os.getpid()}-{tag}") as group:
        text, errors = _run(command, group, job.room, seconds)
        kills = group.kills()
    result: dict[str, Any] = {"limited_by": group.kind, "killed": kills > 0}
    line = next((line for line in reversed(text.splitlines()) if line.startswith("{")), None)
    if line is not None:
        result.update({key: value for key, value in json.loads(line).items() if key != "marks"})
    elif not kills:
        result["error"] = (errors.strip() or "ended without a word")[-2000:]
    return result


def _run(command: Sequence[str], group: Limited, room: int, seconds: float) -> tuple[str, str]:
    environment_ = dict(os.environ, PYTHONPATH=str(harness.REPOSITORY), PYTHONWARNINGS="ignore")
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment_,
        cwd=harness.REPOSITORY,
        preexec_fn=group.join(),
    )
    group.watch(process.pid)
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], GRACE_S)
    if readable and process.stdout.readline().strip() == "ready":
        group.limit(group.used() + room)
    try:
        # What it says after its report does not matter, nor how long it takes to end.
        return process.communicate("go\n", timeout=seconds + GRACE_S)
    except subprocess.TimeoutExpired as late:
        process.kill()
        rest = process.communicate()
        return (_text(late.stdout) or rest[0]), rest[1]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else (value or "")


# ---- what follows --------------------------------------------------------------------------------------------


def counts(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Contender -> jobs, killed, failed otherwise, and its rate / ours in the geometric mean of what both finished."""
    found: dict[str, dict[str, Any]] = {}
    for name in CONTENDERS:
        runs = [(job[name], job.get("ours")) for job in document["jobs"].values() if name in job]
        if not runs:
            continue
        pairs = [
            rate(run) / rate(ours)
            for run, ours in runs
            if ours and "rows" in run and "rows" in ours and not run["killed"] and not ours["killed"]
        ]
        found[name] = {
            "jobs": len(runs),
            "killed": sum(run["killed"] for run, _ in runs),
            "failed": sum("error" in run for run, _ in runs),
            "rate_to_ours": geometric_mean(pairs),
        }
    return found


def bars(document: Mapping[str, Any]) -> list[Bar]:
    """None of ours is killed."""
    ours = counts(document).get("ours")
    if ours is None:
        return []
    value = float(ours["killed"] + ours["failed"])
    name = f"ours: killed or failed, of {ours['jobs']} jobs"
    return [Bar(name=name, limit=0.0, unit="", measured=Estimate(value, value, value), at_least=False)]


def show(document: Mapping[str, Any], console: Console) -> None:
    kinds = {
        run["limited_by"] for job in document["jobs"].values() for run in job.values() if "limited_by" in run
    }
    table = Table(title=f"Jobs under a memory limit ({', '.join(sorted(kinds))})", title_justify="left")
    table.add_column("contender")
    for heading in ("jobs", "killed", "failed otherwise", "rate / ours, where both finished"):
        table.add_column(heading, justify="right")
    for name, row in counts(document).items():
        table.add_row(
            CONTENDERS[name].name,
            str(row["jobs"]),
            str(row["killed"]),
            str(row["failed"]),
            f"{row['rate_to_ours']:.2f}×",
        )
    console.print(table)


def _begin(options: Options) -> dict[str, Any]:
    document: dict[str, Any] = {}
    if options.json is not None and options.json.exists() and (options.resume or options.only):
        document = json.loads(options.json.read_text())
    document.setdefault("jobs", {})
    document["environment"] = environment.describe()
    document["options"] = {"seconds": options.seconds, "seed": options.seed, "parallel": options.parallel}
    return document


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Options, prog="python -m benchmarks.oom")))
