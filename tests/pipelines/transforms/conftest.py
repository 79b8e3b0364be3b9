"""An independent computation of the hash, in plain Python integers, one value at a time."""

from __future__ import annotations

import pytest

WORD = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


class Reference:
    """What the transforms' docstrings say, written down a second time."""

    @staticmethod
    def mix(z: int) -> int:
        z &= WORD
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & WORD
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & WORD
        return z ^ (z >> 31)

    def key(self, seed: int, name: str = "") -> int:
        key = self.mix(seed * GOLDEN)
        for byte in name.encode():
            key = self.mix(key + byte + 1)
        return key

    def fingerprint(self, value: bytes, seed: int = 0) -> int:
        length_key, position_key = self.mix(GOLDEN) | 1, self.mix(2 * GOLDEN) | 1
        words = [
            int.from_bytes(value[start : start + 8].ljust(8, b"\0"), "little")
            for start in range(0, max(len(value), 1), 8)
        ]
        total = words[0] + length_key * len(value)
        for position, word in enumerate(words[1:], start=1):
            total += self.mix(word + position_key * position + seed)
        return total & WORD

    def word(self, value: int | str | bytes) -> int:
        if isinstance(value, int):
            return value & WORD
        return self.fingerprint(value.encode() if isinstance(value, str) else value)

    def hash(self, value: int | str | bytes, size: int, seed: int = 0, name: str = "", first: int = 0) -> int:
        return first + self.mix(self.word(value) + self.key(seed, name)) % (size - first)

    def grams(self, row: list[int | str], n: int, size: int, seed: int = 0) -> list[int]:
        made = []
        for start in range(len(row) - n + 1):
            gram = self.key(seed)
            for value in row[start : start + n]:
                gram = self.mix(gram + self.word(value))
            made.append(gram % size)
        return made


@pytest.fixture(scope="session")
def reference() -> Reference:
    return Reference()
