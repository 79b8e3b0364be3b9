"""Ratings as click logs: liked or not, with the user's attributes as features, split at random.

This is the set-up of Unified Embedding's public demonstration on MovieLens 100k (arXiv 2305.12102): a row for each
rating, label 1 from three stars on, the features movie, user, gender, zip code, occupation and age group.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from intune.pipelines.errors import ConfigError, SchemaError
from intune.pipelines.whole import at_least
from intune.workloads.data.description import DATASET_FILE
from intune.workloads.data.writer import PartWriter, new_dataset, storage_errors, write_description
from intune.workloads.pairs.data import find_rating_data

CLICKS = "clicks"
"""Folder, within one of ratings, that click logs made of it are kept in."""

AGES = (18, 25, 35, 45, 50, 56)
"""First years of the age groups after the youngest: those that MovieLens 1M has in place of ages."""

FEATURES = ("movie", "user", "gender", "zip_code", "occupation", "age_group")
ROW_GROUP_ROWS = 8192


@dataclass(frozen=True, kw_only=True)
class RatingClicksOptions:
    """How ratings become clicks.

    Attributes:
        like_at: the lowest rating that counts as a click.
        test_share: share of all ratings held out, drawn at random.
        seed: of that draw, and of the order of the rows.
    """

    like_at: float = 3.0
    test_share: float = 0.2
    seed: int = 42

    def __post_init__(self) -> None:
        if not 0 < self.test_share < 1:
            raise ConfigError(f"`test_share` must lie between 0 and 1, but {self.test_share} was found")
        at_least("seed", self.seed, 0)


def clicks_of(ratings: Path) -> Path:
    """The folder of click logs that is kept within one of ratings; made at first use, by as many as come at once.

    Raises:
        SchemaError: nothing is known of the users.
        IntuneError: `ratings` cannot be read or written.
    """
    kept = ratings / CLICKS
    if (kept / DATASET_FILE).exists():
        return kept
    with storage_errors(kept):
        # On the same disk, so that it can be moved to its place as a whole.
        own = Path(tempfile.mkdtemp(prefix=f".{CLICKS}-", dir=ratings))
    try:
        write_rating_clicks(ratings, RatingClicksOptions(), own / CLICKS)
        with storage_errors(kept):
            try:
                (own / CLICKS).rename(kept)
            except OSError:
                if not (kept / DATASET_FILE).exists():  # else another run was first
                    raise
    finally:
        shutil.rmtree(own, ignore_errors=True)
    return kept


def write_rating_clicks(ratings: Path, options: RatingClicksOptions, out: Path) -> dict[str, Any]:
    """Write click logs to the folder `out`, which must be new or empty.

    Args:
        ratings: a folder as `intune data movielens` writes it. All its ratings are used, whatever they were held out
            for there.
        options: what counts, and what is held out.
        out: where.

    Returns:
        What has been written to `dataset.json` (see `read_description`).

    Raises:
        SchemaError: nothing is known of the users.
        IntuneError: `ratings` cannot be read or `out` cannot be written.
    """
    table = _clicks(ratings, options)
    order = np.random.default_rng(options.seed).permutation(table.num_rows)
    held_out = round(table.num_rows * options.test_share)
    # The first permuted rows are held out; the others are in random order already, as files should be.
    parts = {"train": table.take(order[held_out:]), "test": table.take(order[:held_out])}
    description = {
        "kind": "rating-clicks",
        "rows": {name: part.num_rows for name, part in parts.items()},
        "files": dict.fromkeys(parts, 1),
        "columns": {"label": "label", "dense": [], "categorical": list(FEATURES), "multi_hot": False},
        "cardinalities": {name: pc.count_distinct(table[name]).as_py() for name in FEATURES},
        "positive_share": {name: pc.mean(part["label"]).as_py() for name, part in parts.items()},
        "options": asdict(options),
    }
    with new_dataset(out) as folder:
        for name, part in parts.items():
            path = folder / name / "part-00000.parquet"
            with PartWriter(path, part.schema, row_group_rows=ROW_GROUP_ROWS) as writer:
                for batch in part.combine_chunks().to_batches():
                    writer.write(batch)
                writer.close({"kind": "rating-clicks", "split": name, "rows": part.num_rows})
        write_description(folder, description)
    return description


def _clicks(ratings: Path, options: RatingClicksOptions) -> pa.Table:
    """All ratings with their users' attributes: label, then `FEATURES`."""
    data = find_rating_data(ratings)
    users = data.table("users")
    missing = [name for name in ("age", "gender", "occupation", "zip_code") if name not in users.column_names]
    if missing:
        raise SchemaError(
            f"{ratings / 'users'} has no {', '.join(missing)}; the features are MovieLens's: name a data set that "
            f"`intune data movielens` made with the file of users"
        )
    rated = data.all_ratings(["user", "item", "rating"])
    # A user's id is the number of its row.
    user = users.take(rated["user"])
    age_group = np.searchsorted(AGES, user["age"].to_numpy(), side="right")
    return pa.table(
        {
            "label": pa.array((rated["rating"].to_numpy() >= options.like_at).astype(np.float32)),
            "movie": rated["item"],
            "user": rated["user"],
            "gender": user["gender"],
            "zip_code": user["zip_code"],
            "occupation": user["occupation"],
            "age_group": pa.array(age_group.astype(np.int64)),
        }
    )
