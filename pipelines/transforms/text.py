"""Strings to 64-bit words, straight from Arrow's buffers, without a Python object per string."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from intune.pipelines.schema import Array
from intune.pipelines.transforms.mixing import GOLDEN, mix, mix_int

_LENGTH_KEY = mix_int(GOLDEN) | 1
_POSITION_KEY = mix_int(2 * GOLDEN) | 1
_KEEP = np.array([(1 << (8 * size)) - 1 for size in range(9)], dtype=np.uint64)
"""Masks that keep the first 0 to 8 bytes of a little-endian word."""
_PIECE = 8192
"""Strings worked on at once: their temporary arrays, of 64 KiB, need no new pages from the system."""
_PIECE_BYTES = 1 << 16
"""Bytes worked on at once, for the same reason: strings longer than 8 bytes take several arrays of that size."""


def fingerprint(strings: pa.Array, seed: int = 0) -> Array:
    """A 64-bit word for each string, the same on every machine.

    The string's bytes, padded with zeros, are little-endian words w₀, w₁, …; with mix from `mixing.py`, length L in
    bytes and odd constants A and B, the fingerprint is w₀ + A·L + Σᵢ≥₁ mix(wᵢ + B·i + seed) modulo 2^64. Strings of up
    to 8 bytes and equal length never share one; others do with probability 2^-64. Not mixed: that is for the user,
    with a key. A null's fingerprint means nothing.

    Args:
        strings: string, large_string, binary or large_binary.
        seed: another family of fingerprints.

    Returns:
        uint64, shape ``(len(strings),)``.
    """
    words = np.empty(len(strings), dtype=np.uint64)
    for start, stop, offsets, data in _pieces(strings):
        words[start:stop] = _fingerprint(offsets, data, seed)
    return words


def fingerprints(columns: Sequence[pa.Array]) -> list[Array]:
    """The fingerprints of several columns; short ones are worked on together."""
    made: list[Array] = []
    group: list[pa.Array] = []
    size = 0
    for position, column in enumerate(columns):
        group.append(column)
        size += len(column)
        following = columns[position + 1] if position + 1 < len(columns) else None
        if following is None or following.type != column.type or size + len(following) > _PIECE:
            together = fingerprint(group[0] if len(group) == 1 else pa.concat_arrays(group))
            made += np.split(together, np.cumsum([len(member) for member in group[:-1]]))
            group, size = [], 0
    return made


def _pieces(strings: pa.Array) -> Iterator[tuple[int, int, Array, Array]]:
    """Ranges of strings, each with its int64 offsets and its bytes, which 8 more follow, whatever they are."""
    if not len(strings):
        return
    _, offset_buffer, data_buffer = strings.buffers()
    large = pa.types.is_large_string(strings.type) or pa.types.is_large_binary(strings.type)
    offsets = np.frombuffer(offset_buffer, np.int64 if large else np.int32)
    offsets = offsets[strings.offset : strings.offset + len(strings) + 1].astype(np.int64)
    data = np.frombuffer(data_buffer, np.uint8) if data_buffer is not None else np.empty(0, np.uint8)
    start = 0
    while start < len(strings):
        stop = int(np.searchsorted(offsets, offsets[start] + _PIECE_BYTES, side="right")) - 1
        stop = min(max(stop, start + 1), start + _PIECE, len(strings))
        first, last = int(offsets[start]), int(offsets[stop])
        padded = np.empty(last - first + 8, np.uint8)
        padded[:-8] = data[first:last]
        yield start, stop, offsets[start : stop + 1] - first, padded
        start = stop


def _fingerprint(offsets: Array, data: Array, seed: int) -> Array:
    # Eight bytes from any address on: the array's elements overlap.
    word_at = np.ndarray((len(data) - 7,), "<u8", data, strides=(1,))
    starts, lengths = offsets[:-1], np.diff(offsets)
    words: Array = word_at[starts]
    other = np.take(_KEEP, lengths, mode="clip")
    words &= other
    np.multiply(lengths.view(np.uint64), np.uint64(_LENGTH_KEY), out=other)
    words += other
    long = np.flatnonzero(lengths > 8)
    if len(long):
        words[long] += _further_words(word_at, starts[long], lengths[long], seed)
    return words


def _further_words(word_at: Array, starts: Array, lengths: Array, seed: int) -> Array:
    """The sum over the words after the first, of strings that all have some."""
    counts = (lengths - 1) // 8
    firsts = np.cumsum(counts) - counts
    position = np.arange(counts.sum(), dtype=np.int64)
    position -= np.repeat(firsts - 1, counts)
    inside = position * 8
    words: Array = word_at[np.repeat(starts, counts) + inside]
    words &= np.take(_KEEP, np.repeat(lengths, counts) - inside, mode="clip")
    words += position.view(np.uint64) * np.uint64(_POSITION_KEY) + np.uint64(seed)
    mix(words, np.empty_like(words))
    return np.asarray(np.add.reduceat(words, firsts))
