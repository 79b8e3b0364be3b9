"""Who takes part, and the settings each rival's sweep tries. The first of a list is its quick run's choice.

Chosen so that the best of each is inside: concurrency from below to above two cores, every way of handing
over that the rival's own guide recommends, and buffers from just enough to plenty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.harness import Contender


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """A rival and the settings to choose from."""

    name: str
    module: str
    python: str
    configs: tuple[Mapping[str, Any], ...]

    def contender(self, config: Mapping[str, Any]) -> Contender:
        return Contender(name=self.name, module=self.module, python=self.python, config=config)


def _variants(base: Mapping[str, Any], *changes: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    return tuple({**base, **change} for change in changes)


DATALOADER = Family(
    name="PyTorch DataLoader",
    module="benchmarks.rivals.pytorch_dataloader",
    python="main",
    configs=_variants(
        {"workers": 2, "prefetch": 4, "arrow_threads": False, "layout": "packed", "unit": "batch"},
        {},
        {"workers": 0, "layout": "columns"},
        {"workers": 0, "layout": "columns", "arrow_threads": True},
        {"workers": 1},
        {"workers": 4},
        {"prefetch": 16},
        {"layout": "columns"},
        {"unit": "group", "prefetch": 2},
        {"workers": 4, "unit": "group", "prefetch": 2},
    ),
)

SPDL = Family(
    name="SPDL threads",
    module="benchmarks.rivals.spdl_threads",
    python="peers",
    configs=(
        {"fused": 2, "hand": "group", "sink": 2},
        {"fused": 3, "hand": "group", "sink": 2},
        {"fused": 2, "hand": "batch", "sink": 16},
        {"load": 1, "transform": 1, "hand": "group", "sink": 2},
        {"load": 2, "transform": 1, "hand": "group", "sink": 2},
        {"load": 1, "transform": 2, "hand": "group", "sink": 2},
        {"load": 2, "transform": 2, "hand": "group", "sink": 2},
        {"load": 2, "transform": 1, "hand": "batch", "sink": 16},
    ),
)

TFDATA = Family(
    name="tf.data",
    module="benchmarks.rivals.tfdata",
    python="peers",
    configs=tuple(
        {"ops": ops, "order": order, "layout": layout, "parallel": None}
        for ops in ("native", "numpy_function")
        for order in ("map", "interleave")
        for layout in ("columns", "packed")
    ),
)

RAY_DATA = Family(
    name="Ray Data",
    module="benchmarks.rivals.ray_data",
    python="peers",
    configs=_variants(
        {"where": "collate", "rows": None, "prefetch": 4, "blocks": None},
        {},
        {"prefetch": 16},
        {"blocks": 64},
        {"where": "tasks"},
        {"where": "tasks", "blocks": 64},
    ),
)

GRAIN = Family(
    name="Grain",
    module="benchmarks.rivals.grain_loader",
    python="peers",
    configs=(
        {"threads": 2, "buffer": 4, "processes": 0},
        {"threads": 1, "buffer": 2, "processes": 0},
        {"threads": 3, "buffer": 6, "processes": 0},
        {"threads": 4, "buffer": 8, "processes": 0},
        {"threads": 1, "buffer": 2, "processes": 2},
    ),
)

BARE = Family(
    name="bare 2-thread loop",
    module="benchmarks.rivals.bare",
    python="main",
    configs=({"threads": 2, "ahead": 3}, {"threads": 2, "ahead": 2}, {"threads": 2, "ahead": 6}),
)

ARROW = Family(
    name="Arrow's read alone",
    module="benchmarks.rivals.bare",
    python="main",
    configs=({"threads": 2, "ahead": 3, "read_only": True},),
)

RIVALS = (DATALOADER, SPDL, TFDATA, RAY_DATA, GRAIN)
LIMITS = (BARE, ARROW)

THREADS = Contender(name="ours, threads", module="benchmarks.ours", config={"executor": "threads"})
SHUFFLED = Contender(
    name="ours, threads, shuffled", module="benchmarks.ours", config={"executor": "threads", "shuffle": 8}
)
RAY = Contender(name="ours, Ray", module="benchmarks.ours", config={"executor": "ray"})
OURS = (THREADS, SHUFFLED, RAY)

DATALOADER_PROCESSES = "PyTorch DataLoader, processes"
"""The DataLoader's best setting among those with workers, where its best of all has none."""
