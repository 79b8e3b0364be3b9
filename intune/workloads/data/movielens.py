"""Reads MovieLens as it is distributed: 100k (`u.data` …), 1M and 10M (`ratings.dat` …), 20M and later, the small ones
included (`ratings.csv` …), and RecBole's `ml-100k.inter` ….

Each from a folder, a zip file or a wheel (which is one), or from the ratings file alone: then without titles, and the
items' ids are their text.
"""

from __future__ import annotations

import csv
import io
import re
import zipfile
from array import array
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from intune.pipelines.errors import CorruptError, DataError, NotFoundError, StorageError
from intune.workloads.data.interactions import Interactions
from intune.workloads.data.rated_lines import RatedLines, read_at_once
from intune.workloads.data.text import item_table

# fmt: off
GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)
# fmt: on
"""The flags at the end of a line of `u.item`, in order (its README)."""

NO_GENRE = ("unknown", "(no genres listed)")
"""What stands there in 100k and in 20M and later."""

NO_TITLE = ("", "unknown", "unkonwn")
"""Item 267 of MovieLens 100k has no title: the second is what its authors wrote, the third what RecBole's copy has."""

QUOTED = 80
"""Characters of a first line that a message quotes: without line ends that we know, it is the whole file."""

_YEAR = re.compile(r"^(?P<title>.*?)\s*\((?P<year>\d{4})\)\s*$")

TIME = "the number of seconds since 1970 that all lines need"
"""What a timestamp has to be, for messages."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way in which MovieLens is laid out.

    Attributes:
        ratings, users, items: names of files; an empty one where there is none.
        delimiter: between the fields of a line.
        header: the first line of `ratings`, which names its columns, as that of the other files does; empty where there
            is none.
        encoding: of files that are not UTF-8.
        user_fields: what the fields of a line of `users` are.
    """

    ratings: str
    users: str
    items: str
    delimiter: str
    header: str
    encoding: str
    user_fields: tuple[str, ...]


LAYOUTS = (
    Layout(
        ratings="ml-100k.inter",
        users="ml-100k.user",
        items="ml-100k.item",
        delimiter="\t",
        header="user_id:token\titem_id:token\trating:float\ttimestamp:float",
        encoding="utf-8",
        user_fields=("user_id", "age", "gender", "occupation", "zip_code"),
    ),
    Layout(
        ratings="u.data",
        users="u.user",
        items="u.item",
        delimiter="\t",
        header="",
        encoding="latin-1",
        user_fields=("user_id", "age", "gender", "occupation", "zip_code"),
    ),
    Layout(
        ratings="ratings.dat",
        users="users.dat",
        items="movies.dat",
        delimiter="::",
        header="",
        encoding="latin-1",
        user_fields=("user_id", "gender", "age", "occupation", "zip_code"),
    ),
    Layout(
        ratings="ratings.csv",
        users="",
        items="movies.csv",
        delimiter=",",
        header="userId,movieId,rating,timestamp",
        encoding="utf-8",
        user_fields=(),
    ),
)


def read_movielens(path: Path) -> Interactions:
    """Interactions, users and items of a MovieLens data set.

    Args:
        path: a folder (searched through), a `.zip`, a `.whl`, or the file of ratings.

    Raises:
        NotFoundError: there is no such path, or no file of ratings in it.
        CorruptError: a line is not as it should be; the message names it.
        DataError: a rating is of a user or an item that the other files do not have.
    """
    if not path.exists():
        raise NotFoundError(
            f"{path} does not exist; name MovieLens's folder, its zip file or RecBole's wheel"
        )
    try:
        if path.is_file() and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return _read(
                    path, [name for name in archive.namelist() if not name.endswith("/")], archive.read
                )
        if path.is_file():
            found = {path.name: path}
            found |= {entry.name: entry for entry in path.parent.iterdir() if entry.is_file()}
            names = [path.name, *(name for name in found if name != path.name)]
            return _read(path, names, lambda name: found[name].read_bytes(), only=path.name)
        files = {str(entry.relative_to(path)): entry for entry in sorted(path.rglob("*")) if entry.is_file()}
        return _read(path, list(files), lambda name: files[name].read_bytes())
    except zipfile.BadZipFile as error:
        raise CorruptError(f"{path} is not a whole zip file ({error}); get it again") from error
    except OSError as error:
        if isinstance(error, NotFoundError | StorageError):
            raise
        raise StorageError(f"{path} cannot be read: {error}") from error


def _read(
    path: Path, names: Sequence[str], read: Callable[[str], bytes], *, only: str | None = None
) -> Interactions:
    by_name: dict[str, str] = {}
    for name in names:
        by_name.setdefault(name.rsplit("/", 1)[-1], name)
    for layout in LAYOUTS:
        if layout.ratings in by_name and only in (None, layout.ratings):
            return _Reader(path, layout, by_name, read).interactions()
    wanted = ", ".join(layout.ratings for layout in LAYOUTS)
    raise NotFoundError(f"{path} holds no file of ratings ({wanted}); name MovieLens's folder or zip file")


class _Reader:
    def __init__(
        self, path: Path, layout: Layout, names: Mapping[str, str], read: Callable[[str], bytes]
    ) -> None:
        self._path, self._layout, self._names, self._bytes = path, layout, names, read

    def interactions(self) -> Interactions:
        found = self._at_once() or self._one_by_one()
        if not len(found.user):
            raise CorruptError(f"{self._path}: {self._layout.ratings} is empty; get the data set again")
        for what, rows, tokens in (("user", found.user, found.users), ("item", found.item, found.items)):
            for place, token in enumerate(tokens):
                if not token.strip():
                    raise CorruptError(
                        f"{self._path}: {self._layout.ratings}, interaction {int(np.argmax(rows == place)) + 1}: there "
                        f"is no {what}; leave out those that have none"
                    )
        users, items = self._users(), self._items()
        if users is None:
            users = pa.table({"user_id": sorted(found.users, key=_natural)})
        if items is None:
            names = sorted(found.items, key=_natural)
            nothing = [None] * len(names)
            items = item_table(names, nothing, nothing, [()] * len(names), text=names)
        return Interactions(
            user=self._ids(found.users, users.column("user_id"), self._layout.users)[found.user],
            item=self._ids(found.items, items.column("item_id"), self._layout.items)[found.item],
            rating=found.rating,
            timestamp=found.timestamp,
            users=users,
            items=items,
            source=str(self._path),
        )

    def _at_once(self) -> RatedLines | None:
        data = self._bytes(self._names[self._layout.ratings])
        start = len(BOM_UTF8) if data.startswith(BOM_UTF8) else 0
        if self._layout.header:
            end = data.find(b"\n") + 1
            if data[start:end].rstrip() != self._layout.header.encode():
                return None
            start = end
        return read_at_once(memoryview(data)[start:], self._layout.delimiter)

    def _one_by_one(self) -> RatedLines:
        # Each id once and numbers in arrays: a string a row would take ten times the memory of the file.
        met: tuple[dict[str, int], dict[str, int]] = ({}, {})
        user, item, timestamp, rating = array("q"), array("q"), array("q"), array("f")
        for number, fields in self._lines(self._layout.ratings, 4):
            for rows, places, token in zip((user, item), met, fields, strict=False):
                rows.append(places.setdefault(token, len(places)))
            rating.append(self._number(float, fields[2], self._layout.ratings, number, "rating"))
            moment = self._number(float, fields[3], self._layout.ratings, number, "timestamp", needed=TIME)
            if not abs(moment) < 2**63:
                raise self._wrong(self._layout.ratings, number, f"the timestamp is {fields[3]!r}, not {TIME}")
            timestamp.append(int(moment))
        return RatedLines(
            users=list(met[0]),
            items=list(met[1]),
            user=np.asarray(user),
            item=np.asarray(item),
            rating=np.asarray(rating),
            timestamp=np.asarray(timestamp),
        )

    def _users(self) -> pa.Table | None:
        layout = self._layout
        if layout.users not in self._names:
            return None
        columns: dict[str, list[Any]] = {name: [] for name in layout.user_fields}
        for number, fields in self._lines(layout.users, 5, "|" if layout.users == "u.user" else None):
            for name, value in zip(layout.user_fields, fields, strict=False):
                is_age = name == "age"
                columns[name].append(
                    self._number(int, value, layout.users, number, name) if is_age else value
                )
        return pa.table(columns)

    def _items(self) -> pa.Table | None:
        layout = self._layout
        if layout.items not in self._names:
            return None
        ids: list[str] = []
        titles: list[str | None] = []
        years: list[int | None] = []
        genres: list[tuple[str, ...]] = []
        for number, fields in self._lines(layout.items, 3, "|" if layout.items == "u.item" else None):
            ids.append(fields[0])
            title, year = _title_and_year(fields[1])
            if layout.items == "ml-100k.item":
                year = int(fields[2]) if fields[2].isdecimal() else None
                kinds = tuple(fields[3].split()) if len(fields) > 3 else ()
            elif layout.items == "u.item":
                flags = fields[-len(GENRES_100K) :]
                if len(fields) < 5 + len(GENRES_100K):
                    raise self._wrong(layout.items, number, f"{len(fields)} fields were found instead of 24")
                kinds = tuple(name for name, flag in zip(GENRES_100K, flags, strict=True) if flag == "1")
            else:
                kinds = tuple(fields[2].split("|"))
            titles.append(title)
            years.append(year)
            genres.append(tuple(kind for kind in kinds if kind and kind.lower() not in NO_GENRE))
        return item_table(ids, titles, years, genres)

    def _lines(self, name: str, least: int, delimiter: str | None = None) -> Iterator[tuple[int, list[str]]]:
        """Numbered lines of a file, cut into fields; its header, if it has one, and empty lines left out."""
        data = self._bytes(self._names[name])
        try:
            # As MovieLens 10M is written, and most data of one's own; no title in Latin-1 passes for it by chance.
            data.decode("utf-8-sig")
            encoding = "utf-8-sig"
        except UnicodeDecodeError:
            encoding = self._layout.encoding
        delimiter = delimiter or self._layout.delimiter
        # Each byte in its own way: one sign for all that are no text would make one of two ids.
        text = io.TextIOWrapper(io.BytesIO(data), encoding, errors="backslashreplace", newline="\n")
        for number, line in enumerate(text, start=1):
            line = line.rstrip("\r\n")
            try:
                # Titles with a comma stand between quotation marks, and R puts all text there.
                fields = (
                    next(csv.reader([line])) if delimiter == "," and '"' in line else line.split(delimiter)
                )
            except csv.Error as error:
                raise self._wrong(name, number, f"it cannot be cut into fields ({error})") from None
            if number == 1 and self._layout.header:
                if name == self._layout.ratings and delimiter.join(fields) != self._layout.header:
                    found = f"{line[:QUOTED]!r}{'…' if len(line) > QUOTED else ''}"
                    raise self._wrong(name, number, f"the columns are {found}, not {self._layout.header!r}")
                continue
            if not line:
                continue
            if len(fields) < least:
                raise self._wrong(name, number, f"{len(fields)} fields were found instead of {least} or more")
            yield number, fields

    def _number(
        self,
        kind: Callable[[str], Any],
        text: str,
        name: str,
        line: int,
        what: str,
        *,
        needed: str = "a number",
    ) -> Any:
        try:
            return kind(text)
        except ValueError:
            raise self._wrong(name, line, f"the {what} is {text!r}, not {needed}") from None

    def _wrong(self, name: str, line: int, what: str) -> CorruptError:
        return CorruptError(
            f"{self._path}: {name}, line {line}: {what}; correct that line or get the file again"
        )

    def _ids(self, tokens: Iterable[str], known: pa.ChunkedArray, name: str) -> np.ndarray[Any, Any]:
        """Where each of `tokens` stands in the table of file `name`."""
        places: dict[str, int] = {}
        for place, token in enumerate(known.to_pylist()):
            if token in places:
                raise DataError(f"{self._path}: {name} has the id {token!r} twice; remove one of the lines")
            places[token] = place
        try:
            return np.asarray([places[token] for token in tokens], dtype=np.int64)
        except KeyError as error:
            raise DataError(
                f"{self._path}: {self._layout.ratings} rates with the id {error.args[0]!r}, which {name} does not "
                f"have; the files do not belong together"
            ) from None


def _title_and_year(text: str) -> tuple[str | None, int | None]:
    """``"Heat (1995)"`` as ("Heat", 1995); None for a title that is empty or in `NO_TITLE`."""
    match = _YEAR.match(text)
    title, year = (match["title"], int(match["year"])) if match else (text.strip(), None)
    return (None if title.lower() in NO_TITLE else title), year


def _natural(token: str) -> tuple[int, int, str]:
    """Sorts numbers by value, before anything else; "7" and "07" are two ids."""
    return (0, int(token), token) if token.isdecimal() else (1, 0, token)
