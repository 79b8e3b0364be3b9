"""`intune profile`: a scenario from a real pipeline. What is done lives in `intune.profiling`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from intune.cli.defaults import otherwise
from intune.cli.progress import Progress

if TYPE_CHECKING:
    from intune.profiling import Profile

PROFILE_HELP = """\
Measure a real pipeline under a dozen allocations, fit a simulated job to it, and write it as a scenario.

DATA is a file, folder, glob or URI (s3://…) of Parquet files. The pipeline reads it (nulls among numbers as 0),
shuffles it if asked to, forms batches and transforms them; the trainer is one that waits --step-ms for every batch. On
a machine that does nothing else a minute is enough; the values' uncertainty is in the file and in what is printed.

The scenario can be tuned, trained on and drawn from like those that come with the package (docs/scenarios.md);
docs/calibration.md says how it is fitted and how true it is.

Examples:
  intune profile data/train --out job.toml
  intune profile data/train --transform my_project.features:transform --shuffle 8 --out job.toml
  intune profile 's3://bucket/day_*.parquet' --executor ray --step-ms 12 --out job.toml
"""


DOUBTFUL = 4.0
"""Misfit from which on a fit is doubted: rates twice as far off as their noise."""


def profile(
    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")],
    /,
    *,
    out: Path,
    transform: str = "criteo",
    batch_size: int = 8192,
    shuffle: int = 0,
    executor: Literal["auto", "threads", "ray"] = "threads",
    cpus: Annotated[int | None, otherwise("all that the job may use", metavar="INT")] = None,
    memory: Annotated[str | None, otherwise("a quarter of what is free", metavar="STR")] = None,
    step_ms: float = 0.0,
    seconds: float = 60.0,
    name: Annotated[str | None, otherwise("the file's", metavar="STR")] = None,
    force: bool = False,
) -> None:
    """Measure a pipeline for a minute and make a scenario of it.

    Args:
        data: Parquet files to read.
        out: File to write (.toml).
        transform: What is done to every batch: criteo (the preset for Criteo's columns), none, or module:function.
        batch_size: Rows of a batch.
        shuffle: Row groups of the shuffle's window; 0 for none.
        executor: Where workers run: threads of this process, or Ray; auto takes Ray where a cluster is named.
        cpus: CPUs that the pipeline may use.
        memory: Bytes that its blocks may hold, as in 2GiB.
        step_ms: Milliseconds that the trainer takes for a batch.
        seconds: How long to measure altogether.
        name: Of the scenario.
        force: Write over a file that is there.
    """
    from intune.cli.writing import write_all
    from intune.pipelines.errors import ConfigError
    from intune.profiling import ProfileConfig, run_profile

    _check_out(out, force=force)
    if name is not None and not name.strip():
        raise ConfigError(f"`name`={name!r} must be a text that is not empty")
    config = ProfileConfig(
        data=data,
        transform=transform,
        batch_size=batch_size,
        shuffle=shuffle,
        executor=executor,
        cpus=cpus,
        memory=memory,
        step_ms=step_ms,
        seconds=seconds,
    )
    began = time.monotonic()
    with Progress(f"measuring {data}") as progress:
        found = run_profile(config, progress)
    scenario = found.calibration.scenario(
        out.stem if name is None else name,
        f"Fitted to a pipeline over {data} (transform {transform}, {config.executor}) by intune profile.",
    )
    _, lost = write_all((out, scenario.save))
    _show(found, out, time.monotonic() - began)
    if lost is not None:  # what was measured is shown nevertheless
        raise lost


def _check_out(out: Path, *, force: bool) -> None:
    from intune.cli.writing import check_file
    from intune.pipelines.errors import ConfigError

    if out.suffix != ".toml":
        raise ConfigError(f"`out`={str(out)!r} must end in .toml")
    if out.exists() and not force:
        raise ConfigError(f"`out`={str(out)!r} is there already; give another name, or --force")
    if not out.parent.is_dir():
        raise ConfigError(f"`out`: there is no folder {str(out.parent)!r}; make it first")
    check_file("out", out)


def _show(found: Profile, out: Path, seconds: float) -> None:
    from intune.display import JobConsole

    console = JobConsole()
    console.print(_runs(found))
    console.print(_values(found))
    fitted = found.calibration
    print(
        f"{out}: fitted in {seconds:.0f} s; its rates are {fitted.rate_error:.1%} off what was measured "
        f"(median of {len(found.allocations)} allocations)"
    )
    if fitted.misfit > DOUBTFUL:
        print(
            f"the measurements contradict each other or the physics (misfit {fitted.misfit:.1f}, where 1 is as good as "
            "their noise allows): measure longer, and on a machine that does nothing else"
        )


def _runs(found: Profile) -> Any:
    from rich.table import Table

    table = Table(title="Measured, and fitted", title_justify="left")
    table.add_column("slots", overflow="fold")
    for heading in ("rows/s", "fitted", "resident memory", "fitted", "trainer waits"):
        table.add_column(heading, justify="right")
    measured, predicted = found.measured, found.predicted
    for at, allocation in enumerate(found.allocations):
        slots = ", ".join(f"{name} {count}" for name, count in allocation.as_dict().items())
        table.add_row(
            slots,
            f"{measured.delivered[at]:,.0f}",
            f"{predicted.delivered[at]:,.0f}",
            _size(measured.memory_used[at]),
            _size(predicted.memory_used[at]),
            f"{measured.waiting[at]:.0%}",
        )
    return table


def _values(found: Profile) -> Any:
    from rich.table import Table

    fitted = found.calibration
    jobs = fitted.jobs
    table = Table(title="The fitted job, ± relative standard deviation", title_justify="left")
    table.add_column("stage")
    for heading in ("processor / row", "waiting / row", "contention", "working set of a slot"):
        table.add_column(heading, justify="right")
    for at, name in enumerate(fitted.stages):
        table.add_row(
            name,
            f"{jobs.cpu[0, at] * 1e9:,.0f} ns{_about(fitted.uncertainty, f'{name}.cpu')}",
            f"{jobs.wait[0, at] * 1e9:,.0f} ns{_about(fitted.uncertainty, f'{name}.wait')}",
            f"{jobs.contention[0, at]:.3f}{_about(fitted.uncertainty, f'{name}.contention')}",
            f"{_size(jobs.slot_bytes[0, at])}{_about(fitted.uncertainty, f'{name}.slot_bytes')}",
        )
    return table


def _about(uncertainty: Any, name: str) -> str:
    value = uncertainty.get(name)
    if value is None:
        return ""
    return f" ± {value:.0%}" if value < 1.0 else " (unknown)"


def _size(count: float) -> str:
    from intune.pipelines.budget import format_bytes

    return format_bytes(float(count))
