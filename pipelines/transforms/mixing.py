"""Hashing of 64-bit integers: a key from a seed, the mixing of bits, the reduction to a table's size.

The mixing is the finaliser of splitmix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number generators",
OOPSLA 2014, with the constants of Stafford's variant 13): a bijection in which each bit of the input flips each bit
of the output with probability 1/2. It depends on neither the machine nor the run.
"""

from __future__ import annotations

import functools

import numpy as np

from intune.pipelines.schema import Array

GOLDEN = 0x9E3779B97F4A7C15
"""2^64 divided by the golden ratio, odd: the step of splitmix64's sequence."""
_WORD = (1 << 64) - 1
_BUFFER = 512
"""Where a row has fewer elements than NumPy's buffer (8,192), NumPy copies the size as often as it is used, and then
divides element by element: 2.6 ns instead of 0.35. The setting is the calling thread's own."""
FIRST_FACTOR, SECOND_FACTOR = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def mix_int(value: int) -> int:
    """The mixing of one integer, taken modulo 2^64."""
    value &= _WORD
    value = ((value ^ (value >> 30)) * FIRST_FACTOR) & _WORD
    value = ((value ^ (value >> 27)) * SECOND_FACTOR) & _WORD
    return value ^ (value >> 31)


@functools.lru_cache(maxsize=1024)
def key_of(seed: int, text: str = "") -> int:
    """The key that stands for a seed and, so that equal values of several columns differ, a column's name.

    Seed 0 without a name is key 0, which need not be added.
    """
    key = mix_int(seed * GOLDEN)
    for byte in text.encode():
        key = mix_int(key + byte + 1)
    return key


def mix(words: Array, scratch: Array) -> None:
    """Mix the bits of every element in place.

    Args:
        words: uint64, any shape.
        scratch: uint64 of the same shape, overwritten.
    """
    np.right_shift(words, np.uint64(30), out=scratch)
    np.bitwise_xor(words, scratch, out=words)
    np.multiply(words, np.uint64(FIRST_FACTOR), out=words)
    np.right_shift(words, np.uint64(27), out=scratch)
    np.bitwise_xor(words, scratch, out=words)
    np.multiply(words, np.uint64(SECOND_FACTOR), out=words)
    np.right_shift(words, np.uint64(31), out=scratch)
    np.bitwise_xor(words, scratch, out=words)


def modulo(words: Array, sizes: Array, scratch: Array) -> None:
    """Reduce every element in place to its remainder by a size.

    NumPy divides by a number that is the same for a whole loop with a multiplication, but not in `np.remainder`:
    quotient, product and difference take 1.1 ns an element, `np.remainder` 2.6. A multiply-shift reduction
    ("fastrange") would need three calls as well, so nothing is gained by giving up the remainder.

    Args:
        words: uint64, shape ``(k, n)``.
        sizes: uint64, shape ``(k, 1)``, none of them 0.
        scratch: uint64, shape ``(k, n)``, overwritten.
    """
    previous = np.setbufsize(_BUFFER)
    try:
        if not np.any(sizes & (sizes - np.uint64(1))):
            np.bitwise_and(words, sizes - np.uint64(1), out=words)
            return
        np.floor_divide(words, sizes, out=scratch)
        np.multiply(scratch, sizes, out=scratch)
        np.subtract(words, scratch, out=words)
    finally:
        np.setbufsize(previous)


def as_words(values: Array) -> Array:
    """Integers as int64 with the same 64 bits as their two's complement: equal numbers of any width agree."""
    return values.view(np.int64) if values.dtype == np.uint64 else values
