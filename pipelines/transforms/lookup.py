"""Tables that tell where a 64-bit word stands in a list of distinct ones, for whole arrays at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from intune.pipelines.schema import Array
from intune.pipelines.transforms.layout import TILE, empty
from intune.pipelines.transforms.mixing import mix

_SPARSEST = 8
"""Places a direct table may have for each word: 4 bytes each, where the hash table takes 20 to 28 a word."""


class Lookup(Protocol):
    """Finds words."""

    def find(self, words: Array) -> Array:
        """For each of `words` (int64, shape ``(n,)``) its position in the list, or −1: int64, shape ``(n,)``."""


def make_lookup(words: Array) -> Lookup:
    """The quickest table for distinct `words`, int64: a direct one where they lie close together."""
    if len(words) and int(words.max()) - int(words.min()) < _SPARSEST * len(words):
        return DirectLookup.of(words)
    return HashLookup.of(words)


def all_differ(words: Array) -> bool:
    """Whether none of `words` is there twice. Of five million, sorting takes 0.1 s and their own memory again; Arrow's
    `count_distinct` takes 3 s and 1.6 GB, which it keeps, and NumPy's `unique` 8 s."""
    ordered = np.sort(words)
    return not bool(np.any(ordered[1:] == ordered[:-1]))


@dataclass(frozen=True, kw_only=True)
class DirectLookup:
    """A place for every number from the lowest word to the highest; 2 ns a word.

    Attributes:
        low: the lowest word.
        positions: int32; the last entry, −1, is for everything beyond the others.
    """

    low: int
    positions: Array

    @classmethod
    def of(cls, words: Array) -> DirectLookup:
        """Build the table; `words` must not be empty."""
        low = int(words.min())
        positions = np.full(int(words.max()) - low + 2, -1, np.int32)
        positions[words - low] = np.arange(len(words), dtype=np.int32)
        return cls(low=low, positions=positions)

    def find(self, words: Array) -> Array:
        """See `Lookup`."""
        # What lies below the lowest word wraps around to far above the highest.
        place = np.subtract(words, np.int64(self.low), dtype=np.int64).view(np.uint64)
        np.minimum(place, np.uint64(len(self.positions) - 1), out=place)
        return np.take(self.positions, place.view(np.int64)).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class HashLookup:
    """Words ordered by the upper bits of their mixing; each value of these bits is a bucket.

    Measured on 8,192 words, half of them uniform over the list and half unknown, for lists of a thousand, a million and
    five million: 14, 27 and 29 ns a word. A binary search (`np.searchsorted`) takes 47, 309 and 476, and Arrow's
    `index_in` builds its table anew in every call.

    Attributes:
        shift: 64 less the number of those bits.
        starts: int32, shape ``(buckets + 1,)``: where each bucket begins.
        words: int64, ordered by bucket; one more follows, for buckets at the end that are empty.
        positions: int32, where each of them stands in the list; −1 for the one more.
    """

    shift: int
    starts: Array
    words: Array
    positions: Array

    @classmethod
    def of(cls, words: Array) -> HashLookup:
        """Build the table, of two to four buckets a word."""
        bits = len(words).bit_length() + 1
        bucket = cls._buckets(words, 64 - bits)
        order = np.argsort(bucket, kind="stable")
        starts = np.zeros((1 << bits) + 1, np.int32)
        np.cumsum(np.bincount(bucket, minlength=1 << bits), out=starts[1:])
        return cls(
            shift=64 - bits,
            starts=starts,
            words=np.append(words[order], np.int64(0)),
            positions=np.append(order, -1).astype(np.int32),
        )

    @staticmethod
    def _buckets(words: Array, shift: int) -> Array:
        mixed = words.astype(np.int64).view(np.uint64)
        mix(mixed, empty(mixed.shape, np.uint64))
        mixed >>= np.uint64(shift)
        return mixed.view(np.int64)

    def find(self, words: Array) -> Array:
        """See `Lookup`."""
        found = empty((len(words),), np.int64)
        for start in range(0, len(words), TILE):
            found[start : start + TILE] = self._find(words[start : start + TILE])
        return found

    def _find(self, words: Array) -> Array:
        bucket = self._buckets(words, self.shift)
        place = np.take(self.starts, bucket)
        # In an empty bucket this is the next one's first word, which cannot be equal: it would be of that bucket.
        missed = np.flatnonzero(np.take(self.words, place) != words)
        found = np.take(self.positions, place).astype(np.int64)
        found[missed] = -1
        place, end, words = (
            np.take(place, missed),
            np.take(self.starts[1:], np.take(bucket, missed)),
            words[missed],
        )
        while len(missed):
            place += 1
            inside = np.flatnonzero(place < end)
            missed, place, end, words = missed[inside], place[inside], end[inside], words[inside]
            hit = np.take(self.words, place) == words
            found[missed[hit]] = np.take(self.positions, place[hit])
            left = np.flatnonzero(~hit)
            missed, place, end, words = missed[left], place[left], end[left], words[left]
        return found
