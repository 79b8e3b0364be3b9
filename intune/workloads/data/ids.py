"""Ids of categorical features, all vectorised: Zipf-distributed ranks, the id of a rank, 8-digit hex text.

An id is a 32-bit number, as in Criteo's logs, where ids are hashes. A rank says how frequent it is: 0 is the
most frequent id of its feature.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

UInt32 = npt.NDArray[np.uint32]

# float32 holds every integer up to 2**24; below 2**20 its rounding moves no rank by more than one.
_LARGEST_FLOAT32_CARDINALITY = 1 << 20


def draw_ranks(rng: np.random.Generator, cardinality: int, count: int) -> UInt32:
    """`count` ranks in ``[0, cardinality)`` by Zipf's law with exponent 1 (log-uniform), shape ``(count,)``.

    Inverse of the cumulative distribution ``P(rank < r) = log(r + 1) / log(cardinality + 1)``: one
    exponential per value, whatever the cardinality.
    """
    dtype: Any = np.float32 if cardinality < _LARGEST_FLOAT32_CARDINALITY else np.float64
    values = rng.random(count, dtype=dtype)
    values *= dtype(math.log(cardinality + 1))
    np.exp(values, out=values)
    ranks = values.astype(np.uint32)
    ranks -= np.uint32(1)
    return np.minimum(ranks, np.uint32(cardinality - 1), out=ranks)


def rank_probabilities(cardinality: int, count: int) -> npt.NDArray[np.float64]:
    """Probability of each of the `count` most frequent ranks under `draw_ranks`."""
    ranks = np.arange(min(count, cardinality), dtype=np.float64)
    return np.log1p(1 / (ranks + 1)) / math.log(cardinality + 1)


def mix_ids(ranks: UInt32, key: int) -> UInt32:
    """Ids of `ranks`: distinct ranks have distinct ids, which look random; `key` picks the mapping.

    The finaliser of MurmurHash3 (Appleby 2011), a bijection of 32-bit numbers, after an exclusive or with
    the key, another one.
    """
    ids = ranks ^ np.uint32(key)
    ids ^= ids >> np.uint32(16)
    ids *= np.uint32(0x85EBCA6B)
    ids ^= ids >> np.uint32(13)
    ids *= np.uint32(0xC2B2AE35)
    ids ^= ids >> np.uint32(16)
    return ids


def _hex_table() -> UInt32:
    # Entry v: the four ASCII digits of the 16-bit number v, as one little-endian word.
    digits = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
    numbers = np.arange(1 << 16, dtype=np.uint32)
    shifts = np.array([12, 8, 4, 0], dtype=np.uint32)
    return np.ascontiguousarray(digits[(numbers[:, None] >> shifts) & 15]).view("<u4").ravel()


def _nibble_table() -> npt.NDArray[np.int16]:
    # Entry (second << 8 | first), two ASCII digits as they lie in memory: their value, or -1.
    value = np.full(256, -1, dtype=np.int16)
    for base, digits in ((0, b"0123456789"), (10, b"abcdef"), (10, b"ABCDEF")):
        for offset, digit in enumerate(digits):
            value[digit] = base + offset
    first, second = value[None, :], value[:, None]
    return np.where((first >= 0) & (second >= 0), first * 16 + second, -1).astype(np.int16).ravel()


_HEX_OF_WORD = _hex_table()
_BYTE_OF_DIGITS = _nibble_table()


def format_hex(ids: UInt32, valid: npt.NDArray[np.bool_] | None = None) -> pa.Array:
    """Arrow strings ``%08x`` of `ids`; null where `valid` is False."""
    words = np.empty((len(ids), 2), dtype="<u4")
    words[:, 0] = _HEX_OF_WORD[ids >> np.uint32(16)]
    words[:, 1] = _HEX_OF_WORD[ids & np.uint32(0xFFFF)]
    offsets = np.arange(0, 8 * len(ids) + 1, 8, dtype=np.int32)
    bitmap = None if valid is None else pa.py_buffer(np.packbits(valid, bitorder="little"))
    return pa.StringArray.from_buffers(len(ids), pa.py_buffer(offsets), pa.py_buffer(words), bitmap)


def parse_hex(digits: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Numbers written as eight ASCII hex digits each, upper or lower case.

    Args:
        digits: shape ``(count, 8)``, contiguous.

    Returns:
        The numbers, and which of them are hex at all (the others' numbers mean nothing).
    """
    pairs = _BYTE_OF_DIGITS[digits.view("<u2")]
    ids = pairs[:, 0].astype(np.int64)
    for column in range(1, 4):
        ids <<= 8
        ids |= pairs[:, column]
    return ids, (pairs >= 0).all(axis=1)
