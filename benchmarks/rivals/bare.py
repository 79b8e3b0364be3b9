"""The hand-written limit: a few threads that read and transform, no framework; and Arrow's read alone.

Settings: ``threads``; ``ahead`` (reads in flight or waiting); ``groups`` (row groups a read, 1 by default);
``read_only`` (stop after Arrow's table).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from benchmarks.contender import Epoch, Job, main
from benchmarks.rivals.common import arrays, cut, footer, table


def build(job: Job) -> Epoch:
    """Reads in order, `ahead` of them submitted before they are needed."""
    width = job.config.get("groups", 1)
    reads = [
        (path, range(first, min(first + width, footer(path).num_row_groups)))
        for path in job.files
        for first in range(0, footer(path).num_row_groups, width)
    ]
    pool = ThreadPoolExecutor(job.config["threads"])

    def make(path: str, groups: range) -> list[dict[str, Any]]:
        rows = table(path, groups)
        if job.config.get("read_only"):
            # One column alone becomes something to touch: this is Arrow's decoding and nothing else.
            name = rows.column_names[0]
            return [{name: torch.from_numpy(rows.column(name).to_numpy())}]
        return list(cut(job.transform(arrays(rows)), job.batch))

    def epoch() -> Iterator[dict[str, Any]]:
        waiting: deque[Future[list[dict[str, Any]]]] = deque()
        for read in reads:
            waiting.append(pool.submit(make, *read))
            if len(waiting) > job.config["ahead"]:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()

    return epoch


if __name__ == "__main__":
    main(build)
