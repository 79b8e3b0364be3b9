"""Small data sets of interactions in the formats in which they are published."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def lines_of(interactions: list[tuple[int, int, float, int]], delimiter: str = "\t") -> str:
    """``user item rating time``, one a line."""
    return "".join(delimiter.join(str(value) for value in row) + "\n" for row in interactions)


def drawn(
    users: int = 12, items: int = 20, per_user: int = 10, seed: int = 0
) -> list[tuple[int, int, float, int]]:
    """Interactions of every user with different items, ids from 1, in no order of time."""
    rng = np.random.default_rng(seed)
    return [
        (user + 1, int(item) + 1, int(rng.integers(1, 6)), 1_000_000 + int(rng.integers(0, 10_000_000)))
        for user in range(users)
        for item in rng.permutation(items)[:per_user]
    ]


def write_recbole(folder: Path, interactions: list[tuple[int, int, float, int]]) -> Path:
    """The three files of RecBole's example."""
    folder.mkdir(parents=True, exist_ok=True)
    users = sorted({row[0] for row in interactions})
    items = sorted({row[1] for row in interactions})
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    (folder / "ml-100k.inter").write_text(header + lines_of(interactions))
    (folder / "ml-100k.user").write_text(
        "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
        + "".join(f"{user}\t{20 + user}\tF\tartist\t{user:05d}\n" for user in users)
    )
    (folder / "ml-100k.item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        + "".join(f"{item}\tFilm {item}\t{1980 + item}\tDrama Sci-Fi\n" for item in items)
    )
    return folder
