"""The jobs of `live`, and who takes part with what settings. Nothing is run here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks import data
from benchmarks.data import DataSpec
from benchmarks.harness import Contender

WIDE = data.MAIN
"""Local disk: the set of the other benchmarks."""
FAR = DataSpec(rows=1_048_576, files=8, row_group_rows=16_384)
"""S3: the same columns in smaller row groups, so that requests count."""
CODE = DataSpec(rows=2_097_152, files=8, row_group_rows=16_384, dense=4, ids=8)
"""User code: fewer columns, so that the code counts."""


@dataclass(frozen=True, kw_only=True)
class LiveJob:
    """One job.

    Attributes:
        name: short, for tables and `--only`.
        spec: its data.
        function: of `user_code`.
        delay_ms: of every request to storage; None for files on this machine's disk.
        bytes_per_s: of storage; None for no limit.
        step_s: seconds that the trainer waits for its GPU at every batch.
        processes: whether the function holds Python's lock, so that we run it in processes.
    """

    name: str
    spec: DataSpec
    function: str = "transform"
    delay_ms: float | None = None
    bytes_per_s: float | None = None
    step_s: float = 0.0
    processes: bool = False

    @property
    def far(self) -> bool:
        return self.delay_ms is not None


JOBS = (
    LiveJob(name="local disk", spec=WIDE),
    LiveJob(name="S3 5 ms, 40 MB/s", spec=FAR, delay_ms=5, bytes_per_s=40e6),
    LiveJob(name="S3 40 ms", spec=FAR, delay_ms=40),
    LiveJob(name="S3 150 ms", spec=FAR, delay_ms=150),
    LiveJob(name="heavy NumPy", spec=CODE, function="heavy"),
    LiveJob(name="holds the GIL", spec=CODE, function="python", processes=True),
    LiveJob(name="lock-bound", spec=CODE, function="locked"),
    LiveJob(name="memory-hungry", spec=CODE, function="hungry"),
    LiveJob(name="trainer-bound", spec=CODE, step_s=0.02),
)
TRAINER_BOUND = "trainer-bound"
SLOWEST_STORAGE = "S3 150 ms"


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """One who takes part.

    Attributes:
        name: as `--contenders` has it.
        label: as tables have it.
        module: of its process; python: the environment.
        configs: settings to choose from, of which the best run counts.
    """

    name: str
    label: str
    module: str = "benchmarks.tuned"
    python: str = "main"
    configs: tuple[Mapping[str, Any], ...] = field(default=({},))

    @property
    def ours(self) -> bool:
        return self.module == "benchmarks.tuned"

    def contender(self, job: LiveJob, config: Mapping[str, Any]) -> Contender:
        more = {"processes": job.processes} if self.ours else {}
        return Contender(name=self.label, module=self.module, python=self.python, config={**config, **more})


def _loaders() -> tuple[Mapping[str, Any], ...]:
    base = {"prefetch": 4, "arrow_threads": False, "layout": "packed", "unit": "batch"}
    alone = {**base, "workers": 0, "layout": "columns"}
    return (*({**base, "workers": workers} for workers in (2, 4, 8)), alone)


ENTRANTS = (
    Entrant(name="ours", label="ours, dqn", configs=({"agent": "dqn"},)),
    Entrant(name="untuned", label="ours, untuned"),
    Entrant(name="planner", label="ours, planner", configs=({"agent": "planner"},)),
    Entrant(name="autotune", label="ours, autotune", configs=({"agent": "autotune"},)),
    Entrant(name="even", label="ours, even", configs=({"agent": "even"},)),
    Entrant(name="static", label="ours, static", configs=({"agent": "static"},)),
    Entrant(
        name="tfdata",
        label="tf.data AUTOTUNE",
        module="benchmarks.rivals.tfdata",
        python="peers",
        configs=({"ops": "two", "order": "map", "layout": "columns", "parallel": None},),
    ),
    Entrant(
        name="dataloader",
        label="PyTorch DataLoader, best",
        module="benchmarks.rivals.pytorch_dataloader",
        configs=_loaders(),
    ),
    Entrant(
        name="raydata",
        label="Ray Data",
        module="benchmarks.rivals.ray_data",
        python="peers",
        configs=({"where": "tasks", "rows": None, "prefetch": 4, "blocks": None},),
    ),
    Entrant(
        name="spdl",
        label="SPDL, best",
        module="benchmarks.rivals.spdl_threads",
        python="peers",
        configs=(
            {"fused": 2, "hand": "group", "sink": 2},
            {"load": 2, "transform": 2, "hand": "group", "sink": 2},
            {"load": 8, "transform": 2, "hand": "group", "sink": 4},
            {"load": 16, "transform": 2, "hand": "group", "sink": 4},
        ),
    ),
    Entrant(
        name="grain",
        label="Grain, best",
        module="benchmarks.rivals.grain_loader",
        python="peers",
        configs=(
            {"threads": 2, "buffer": 4, "processes": 0},
            {"threads": 16, "buffer": 32, "processes": 0},
            {"threads": 1, "buffer": 2, "processes": 2},
        ),
    ),
)
DEFAULT = ("ours", "untuned", "tfdata")


def entrant(name: str) -> Entrant:
    """The one called `name`.

    Raises:
        SystemExit: nobody is.
    """
    for found in ENTRANTS:
        if found.name == name:
            return found
    raise SystemExit(f"`--contenders` knows {', '.join(each.name for each in ENTRANTS)}, but not {name!r}")


def allocations(stages: tuple[str, ...] = ("load", "batch", "transform", "transfer")) -> list[dict[str, int]]:
    """What the sweep of a job tries: pools, and slots for the two stages that work."""
    pools = [{"shared": count} for count in (1, 2, 3, 4, 8, 16)]
    grid = [
        {**dict.fromkeys(stages, 1), "load": load, "transform": transform}
        for load in (1, 2, 4, 8, 13)
        for transform in (1, 2, 4)
        if load + transform <= 16
    ]
    return pools + grid
