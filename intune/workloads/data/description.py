"""`dataset.json`: what a data set is, beside its `train` and `test` folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from intune.pipelines.errors import CorruptError, NotFoundError

DATASET_FILE = "dataset.json"
SCHEMA_VERSION = 1


def read_description(folder: Path) -> dict[str, Any]:
    """The description of the data set in `folder`.

    Keys of all data sets: `schema_version`, `kind` ("synthetic", "criteo", "movielens", "amazon-reviews", "market" or
    "rating-clicks"), `rows` and `files` (each with `train` and `test`; ratings also with `valid`, and `rows` with
    `context` where held-out sessions begin with something). Click logs have `columns` (`label`, `dense`,
    `categorical`, `multi_hot`). A synthetic one has `cardinalities`, `teacher` (`auc` with `train` and `test`, None
    where only one label occurs; `expected_auc`), `positive_share` and `options`; one made from Criteo's logs has
    `sources` and `bad_lines`; one made of ratings has `cardinalities`, `positive_share` (with `train` and `test`) and
    `options`. Ratings have `source`, `users` and `items` (how many), `cold` (held-out rows whose user or item is never
    trained on), `left_out` (by reason), `items_without_title`, `split`, `cleaning` and `series` (`start`, `step_s`,
    `steps`); a simulated market also has `market`, its options.

    Raises:
        NotFoundError: there is no such file.
        CorruptError: it is not JSON, or of a newer version than this code knows.
    """
    path = folder / DATASET_FILE
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise NotFoundError(
            f"no {DATASET_FILE} in {folder}; is this a data set made by `intune data`?"
        ) from None
    return parse_description(text, str(path))


def parse_description(text: bytes, path: str) -> dict[str, Any]:
    """As `read_description`, of what was read from `path`."""
    try:
        description = json.loads(text.decode("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CorruptError(f"{path} is not JSON ({error}); make the data set again") from error
    version = description.get("schema_version") if isinstance(description, dict) else None
    if version != SCHEMA_VERSION:
        raise CorruptError(
            f"{path} has `schema_version` {version}, but this version reads {SCHEMA_VERSION}; "
            f"make the data set again or upgrade"
        )
    return dict(description)
