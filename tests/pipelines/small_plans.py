"""Plans of a few tasks, for tests of what becomes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from intune.pipelines import plan as plan_module
from intune.pipelines.plan import Order, Plan, RowGroups, ShuffleSpec, make_plan


def plan_of(
    kinds: tuple[str, ...] = ("shuffle", "batch", "map", "transfer"),
    *,
    blocks: int = 8,
    rows: int = 12,
    batch: int = 5,
    window: int = 3,
    per_task: int = 1,
    row_bytes: float = 1000.0,
    guessed: bool = False,
) -> Plan:
    """A small plan whose blocks are the row groups."""
    steps: Any = tuple((f"{kind}{number}", kind) for number, kind in enumerate(kinds))
    order = Order(
        steps=steps,
        batch_size=batch,
        drop_last=False,
        shuffle=ShuffleSpec(row_groups=window, seed=0) if "shuffle" in kinds else None,
    )
    groups = RowGroups(
        file=np.arange(blocks, dtype=np.int64),
        group=np.zeros(blocks, dtype=np.int64),
        rows=np.array([rows + (i % 3) for i in range(blocks)], dtype=np.int64),
        row_bytes=row_bytes,
        guessed=guessed,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module, "BLOCK_ROWS", 1 << 20)
        return make_plan(groups, order, chunk_rows=per_task * batch)


def stages_of(plan: Plan) -> tuple[str, ...]:
    """The stages of its levels, in order."""
    return tuple(dict.fromkeys(level.stage for level in plan.levels))
