"""Small Parquet files for the examples: made once, in the folder for temporary files."""

from __future__ import annotations

import sys
import tempfile
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def sample(files: int = 4, rows: int = 20_000) -> str:
    """The folder named on the command line, else one with `files` files: 8 numbers and a label a row."""
    if len(sys.argv) > 1:
        return sys.argv[1]
    folder = Path(tempfile.gettempdir()) / f"intune-examples-{files}-{rows}"
    folder.mkdir(exist_ok=True)
    for number in range(files):
        path = folder / f"{number}.parquet"
        if not path.exists():
            rng = np.random.default_rng(number)
            columns = {f"x{i}": rng.random(rows, dtype=np.float32) for i in range(8)}
            label = (columns["x0"] + columns["x1"] > 1).astype(np.float32)
            part = path.with_suffix(f".{uuid.uuid4().hex}.part")  # another process may be at it
            pq.write_table(pa.table({"label": label, **columns}), part, row_group_size=rows // 4)
            part.replace(path)
    return str(folder)
