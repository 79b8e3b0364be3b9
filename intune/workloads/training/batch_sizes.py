"""How large batches may be where there are few rows.

Pipeline stages draw by the content of a batch (see `sequences/draws.py` and `negatives.py`), and an epoch differs from
another by what shuffling puts together.
"""

from __future__ import annotations

import logging

logger = logging.getLogger("intune")

LEAST_ROWS = 3
"""Of two rows the two batches would be the same in every epoch, too."""


def redrawn(batch_size: int, rows: int, *, shuffle: int, drawn: str) -> int:
    """`batch_size`, or half of the `rows` where all of them would be one batch, the same in every epoch.

    Args:
        batch_size: as asked for.
        rows: of an epoch.
        shuffle: window in row groups; with 0 the draws are meant to stay as they are.
        drawn: what the draws make, for the line that says so.
    """
    if not shuffle or not LEAST_ROWS <= rows <= batch_size:
        return batch_size
    half = -(-rows // 2)
    logger.warning(
        "batches have %d rows in place of `batch_size`=%d: all %d rows in one would bring the same %s in every epoch",
        half,
        batch_size,
        rows,
        drawn,
    )
    return half


def filled(batch_size: int, rows: int) -> bool:
    """Whether the `rows` of an epoch fill a batch; if not, a line says that all of them are one."""
    if rows >= batch_size:
        return True
    logger.warning("all %d rows are one batch, since they do not fill `batch_size`=%d", rows, batch_size)
    return False
