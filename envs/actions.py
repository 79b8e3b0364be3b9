"""What an agent may do: raise or lower each stage's slots, or name them; one meaning for what is infeasible."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from intune.envs.jobs import Bools, Floats

MOVES = (-5, -1, 0, 1, 5)
"""Changes of one stage's slots in one decision, after the paper."""

KEEP = MOVES.index(0)


def feasible(present: Bools, slots: Floats, wanted: Any, limit: Any) -> Floats:
    """Slots that are really given when `wanted` are asked for.

    A stage has one slot at least. Where all stages together would exceed `limit`, the raises of this decision
    are cut by the same share and rounded down; a machine that has shrunk below what is in force already gets
    no raise at all, and what is above the limit is taken back from the stages in proportion.

    Args:
        present: ``[N, S]`` which stages there are.
        slots: ``[N, S]`` in force.
        wanted: ``[N, S]`` asked for.
        limit: ``[N]`` slots that may be given out altogether, at least one a stage.

    Returns:
        ``[N, S]`` whole numbers; 0 for absent stages.
    """
    wanted = np.maximum(np.rint(wanted), 1.0) * present
    total = np.add.reduce(wanted, axis=1)
    limit = np.asarray(limit, dtype=np.float64)
    if not (total > limit).any():
        return np.asarray(wanted)
    slots = np.where(present, np.maximum(slots, 1.0), 0.0)
    raises = np.maximum(wanted - slots, 0.0)
    kept = wanted - raises
    room = np.maximum(limit - kept.sum(axis=1), 0.0)
    share = np.minimum(room / np.maximum(raises.sum(axis=1), 1e-9), 1.0)
    # A touch is added lest a share such as 3/3 falls below a whole number.
    given = kept + np.floor(raises * share[:, None] + 1e-9)
    over = given.sum(axis=1) > limit
    if over.any():
        above = np.maximum(given - 1.0, 0.0)
        count = present.sum(axis=1)
        keep = np.clip((limit - count) / np.maximum(above.sum(axis=1), 1e-9), 0.0, 1.0)
        cut = np.where(present, 1.0 + np.floor(above * keep[:, None] + 1e-9), 0.0)
        given = np.where(over[:, None], cut, given)
    return np.asarray(given)


def moved(present: Bools, slots: Floats, choices: NDArray[Any], limit: Any) -> Floats:
    """Slots after a choice among `MOVES` for every stage: ``[N, S]``.

    Args:
        present: ``[N, S]``.
        slots: ``[N, S]`` in force.
        choices: ``[N, S]`` indices into `MOVES`; those of absent stages do not matter.
        limit: ``[N]``, see `feasible`.
    """
    return feasible(present, slots, slots + _MOVES[choices], limit)


_MOVES = np.array(MOVES, dtype=np.float64)
