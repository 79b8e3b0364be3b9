"""What is said of an item in words: the text that a language model reads, and the table that holds it."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa


def describe_item(title: str | None, year: int | None, genres: Sequence[str]) -> str:
    """``"Toy Story (1995). Animation, Children's, Comedy"``; "unknown title" where there is no title."""
    name = title if title is not None else "unknown title"
    if year is not None:
        name = f"{name} ({year})"
    return f"{name}. {', '.join(genres)}" if genres else name


def item_table(
    item_id: Sequence[str],
    title: Sequence[str | None],
    year: Sequence[int | None],
    genres: Sequence[Sequence[str]],
    *,
    text: Sequence[str] | None = None,
) -> pa.Table:
    """Items, a row each: item_id, title and year (null where not known), genres (list), text (never null).

    Args:
        item_id, title, year, genres: of one length.
        text: what a language model reads; by default made by `describe_item`.
    """
    if text is None:
        text = [describe_item(*known) for known in zip(title, year, genres, strict=True)]
    return pa.table(
        {
            "item_id": pa.array(item_id, pa.string()),
            "title": pa.array(title, pa.string()),
            "year": pa.array(year, pa.int32()),
            "genres": pa.array([list(kinds) for kinds in genres], pa.list_(pa.string())),
            "text": pa.array(text, pa.string()),
        }
    )
