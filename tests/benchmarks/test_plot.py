"""The picture of a run."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import plot

DOCUMENT: dict[str, Any] = {
    "environment": {"cpu": "a processor", "cores_usable": 2, "date": "2026-01-02T03:04:05+00:00"},
    "sections": {
        "local": {
            "rows": 1000,
            "batch": 10,
            "runs": {
                name: [
                    {"rows": 10, "seconds": slow, "peak_bytes": 2**30, "first_batch_s": 0.1}
                    for slow in (1, 2)
                ]
                for name in ("ours, threads", "SPDL threads")
            },
        }
    },
}


def test_every_contender_is_in_it(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot.draw(DOCUMENT, tmp_path / "run.svg")
    drawn = (tmp_path / "run.svg").read_text()
    for text in ("ours, threads", "SPDL threads", "million rows/s", "2026-01-02"):
        assert f"<!-- {text}" in drawn or text in drawn
