"""Reads Amazon's public review data: JSON lines of reviews and of items, plain or gzip, of 2014, 2018 or 2023.

Files are read line by line. Kept are four numbers a review, and of the items those that are reviewed.
"""

from __future__ import annotations

import ast
import gzip
import json
import math
import zlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from intune.pipelines.errors import ConfigError, CorruptError, NotFoundError, StorageError
from intune.workloads.data.bad_lines import BadLine, BadLines, beginning
from intune.workloads.data.interactions import Interactions
from intune.workloads.data.text import describe_item, item_table

USER = ("reviewerID", "user_id")
ITEM = ("parent_asin", "asin")
"""In 2023's files `parent_asin` joins the variants of a product, and is what their metadata is of."""
RATING = ("overall", "rating")
TIME = ("unixReviewTime", "timestamp")

SOURCE = "Amazon's reviews"
"""For messages."""

MILLISECONDS = 1 << 36
"""A time beyond is in milliseconds, as in 2023's files: in seconds it would be the year 4147."""

LONGEST_TEXT = 2000
"""Characters of a title or category that are kept; some are whole pages of markup."""


@dataclass(frozen=True, kw_only=True)
class AmazonOptions:
    """What to read.

    Attributes:
        files: of reviews and of items, in any order; which is which is seen from the first line.
        max_bad_lines: how many lines that cannot be used are left out before reading fails.
    """

    files: tuple[Path, ...]
    max_bad_lines: int = 1000

    def __post_init__(self) -> None:
        if not self.files:
            raise ConfigError("`files` is empty; name at least one file of reviews")
        if self.max_bad_lines < 0:
            raise ConfigError(f"`max_bad_lines` must not be negative, but {self.max_bad_lines} was given")


@dataclass(slots=True)
class _Reviews:
    users: dict[str, int] = field(default_factory=dict)
    items: dict[str, int] = field(default_factory=dict)
    user: array[int] = field(default_factory=lambda: array("q"))
    item: array[int] = field(default_factory=lambda: array("q"))
    rating: array[float] = field(default_factory=lambda: array("f"))
    timestamp: array[int] = field(default_factory=lambda: array("q"))

    def add(self, record: Mapping[str, Any]) -> None:
        """Count a review in; a ValueError says what is wrong with it."""
        user, item = _id(record, USER), _id(record, ITEM)
        rating, moment = float(_first(record, RATING)), float(_first(record, TIME))
        if not math.isfinite(rating):
            raise ValueError(f"the rating is {rating}")
        if not 0 <= moment < 2**63:
            raise ValueError(f"the time is {moment}")
        self.user.append(self.users.setdefault(user, len(self.users)))
        self.item.append(self.items.setdefault(item, len(self.items)))
        self.rating.append(rating)
        self.timestamp.append(int(moment / 1000 if moment > MILLISECONDS else moment))


def read_amazon(
    options: AmazonOptions, *, progress: Callable[[int, float], None] | None = None
) -> tuple[Interactions, int]:
    """Interactions, users and items of Amazon's reviews.

    Items that no file of items describes have no title: their text is their id.

    Returns:
        What was read, and how many bad lines were left out.

    Raises:
        ConfigError: a file is a pipe or a folder.
        NotFoundError: a file does not exist, or none of them holds reviews.
        CorruptError: a file is cut short, or is neither of reviews nor of items.
        SkipLimitError: there are more bad lines than `max_bad_lines`.
    """
    for path in options.files:
        if path.exists() and not path.is_file():
            raise ConfigError(f"`files`: {path} is no file, and a pipe cannot be read twice; write it to one")
    bad = BadLines(options.max_bad_lines, SOURCE)
    kinds = {path: _kind(path, options.max_bad_lines) for path in options.files}
    reviews = _Reviews()
    sizes = [path.stat().st_size for path in options.files]
    done = 0.0
    for path in (path for path, kind in kinds.items() if kind == "reviews"):
        for number, line, record in _records(path, bad):
            try:
                reviews.add(record)
            except (TypeError, ValueError, KeyError, OverflowError, RecursionError) as error:
                _count(bad, path, number, line, error)
            if progress is not None and number % 50_000 == 0:
                progress(len(reviews.user), done / max(1, sum(sizes)))
        done += path.stat().st_size
    if not reviews.user:
        raise NotFoundError(
            f"{', '.join(str(path) for path in options.files)}: no review was found; name a file of reviews, "
            f"whose lines have {USER[0]} or {USER[1]}"
        )
    described: dict[str, tuple[str | None, tuple[str, ...], str | None]] = {}
    for path in (path for path, kind in kinds.items() if kind == "items"):
        for _, _, record in _records(path, bad):
            item = next((str(record[key]) for key in ITEM if record.get(key)), None)
            if item in reviews.items:
                described[item] = _describe(record)
    return _interactions(reviews, described, options.files), bad.count


def _interactions(
    reviews: _Reviews,
    described: Mapping[str, tuple[str | None, tuple[str, ...], str | None]],
    files: Sequence[Path],
) -> Interactions:
    nothing: tuple[None, tuple[str, ...], None] = (None, (), None)
    known = [described.get(item, nothing) for item in reviews.items]
    text = [
        item if title is None else describe_item(title, None, [*([brand] if brand else []), *kinds])
        for item, (title, kinds, brand) in zip(reviews.items, known, strict=True)
    ]
    return Interactions(
        user=np.asarray(reviews.user, dtype=np.int64),
        item=np.asarray(reviews.item, dtype=np.int64),
        rating=np.asarray(reviews.rating, dtype=np.float32),
        timestamp=np.asarray(reviews.timestamp, dtype=np.int64),
        users=pa.table({"user_id": pa.array(list(reviews.users), pa.string())}),
        items=item_table(
            list(reviews.items),
            [title for title, _, _ in known],
            [None] * len(known),
            [kinds for _, kinds, _ in known],
            text=text,
        ),
        source=", ".join(str(path) for path in files),
    )


def _describe(record: Mapping[str, Any]) -> tuple[str | None, tuple[str, ...], str | None]:
    """Title, categories without the first, which all items of a file share, and brand."""
    title = record.get("title")
    kinds = record.get("categories") or record.get("category")
    if not isinstance(kinds, list):
        kinds = []
    if kinds and isinstance(kinds[0], list):  # 2014: several paths through the tree of categories
        kinds = kinds[0]
    brand = record.get("brand") or record.get("store")
    return (
        _text(title) if isinstance(title, str) and title.strip() else None,
        tuple(_text(kind) for kind in kinds[1:] if isinstance(kind, str) and kind.strip()),
        _text(brand) if isinstance(brand, str) and brand.strip() else None,
    )


def _text(value: str) -> str:
    # JSON can spell half of a character, and bytes that are no text become one: no file of text can hold them.
    whole = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return " ".join(whole.split())[:LONGEST_TEXT]


def _id(record: Mapping[str, Any], names: Sequence[str]) -> str:
    """The first id of these names; a ValueError where there is none, or one that is no text."""
    found = str(_first(record, names))
    found.encode()
    return found


def _first(record: Mapping[str, Any], names: Sequence[str]) -> Any:
    for name in names:
        if record.get(name) not in (None, ""):
            return record[name]
    raise ValueError(f"there is no {' or '.join(names)}")


def _kind(path: Path, max_bad_lines: int) -> str:
    """``"reviews"`` or ``"items"``, by the first line that can be read."""
    bad = BadLines(max_bad_lines, SOURCE)
    for _, _, record in _records(path, bad):
        # Of a review, the user may be what is missing.
        if any(name in record for name in (*USER, *RATING, *TIME)):
            return "reviews"
        if any(name in record for name in ITEM):
            return "items"
        raise CorruptError(
            f"{path} is neither a file of Amazon's reviews ({USER[0]} or {USER[1]}) nor of its items ({ITEM[1]}); "
            f"leave it out"
        )
    found = f" ({bad.text()})" if bad.count else ""
    raise CorruptError(
        f"{path} has no line that can be read{found}; give JSON, an object a line, plain or gzip, or leave it out"
    )


def _count(bad: BadLines, path: Path, number: int, line: str, error: Exception) -> None:
    found = BadLine(number, str(error), beginning(line.strip().encode(errors="surrogateescape")))
    bad.add(path, 1, lambda wanted: [found][:wanted])


def _records(path: Path, bad: BadLines) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
    """Objects of a file, one a line, with the line and its number; empty lines are passed over."""
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    record = _parse(line)
                except ValueError as error:
                    _count(bad, path, number, line, error)
                    continue
                yield number, line, record
    except FileNotFoundError as error:
        raise NotFoundError(f"{path} does not exist; name a file of Amazon's reviews") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CorruptError(
            f"{path} is cut short or damaged after line {number} ({error}); get it again"
        ) from error
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error}") from error


def _open(path: Path) -> IO[str]:
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    if compressed:
        return gzip.open(path, "rt", encoding="utf-8-sig", errors="surrogateescape")
    return path.open(encoding="utf-8-sig", errors="surrogateescape")


def _parse(line: str) -> Mapping[str, Any]:
    try:
        record = json.loads(line)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        # The metadata of 2014 are Python literals, one a line.
        try:
            text = line.strip().encode(errors="surrogateescape").decode(errors="replace")
            record = ast.literal_eval(text)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            raise ValueError(f"it is not JSON ({error})") from None
    if not isinstance(record, dict):
        raise ValueError(f"it is a {type(record).__name__} and not an object")
    return record
