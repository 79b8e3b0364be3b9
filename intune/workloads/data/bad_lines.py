"""Lines of a text file that cannot be used: how many there are, and the first few of them to be shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from intune.pipelines.errors import SkipLimitError

QUOTED_LINES = 3
"""How many bad lines are kept to be shown."""

_QUOTED_BYTES = 60


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that was left out: its number in the file, from 1, what is wrong with it, how it begins."""

    number: int
    reason: str
    text: str


@dataclass(slots=True)
class BadLines:
    """Lines left out so far: how many, and the first few, each with its file.

    Attributes:
        limit: how many may be.
        source: what the files should be, for messages.
    """

    limit: int
    source: str
    count: int = 0
    examples: list[tuple[str, BadLine]] = field(default_factory=list)

    def add(self, path: Path, count: int, describe: Callable[[int], list[BadLine]]) -> None:
        """Count in `count` bad lines of a block, of which `describe` gives so many as it is asked for; `SkipLimitError`
        once there are too many."""
        if not count:
            return
        self.count += count
        self.examples += [(str(path), line) for line in describe(QUOTED_LINES - len(self.examples))]
        if self.count > self.limit:
            raise SkipLimitError(
                f"{self.count} bad lines are more than `max_bad_lines`={self.limit}: {self.text()}; "
                f"check that these are {self.source}, or raise the limit"
            )

    def quoted(self) -> list[str]:
        """The examples, each for a person."""
        return [f'{path}, line {line.number}: {line.reason} ("{line.text}")' for path, line in self.examples]

    def text(self) -> str:
        """The examples in one line."""
        return "; ".join(self.quoted()) + ("; …" if self.count > len(self.examples) else "")


def beginning(content: bytes) -> str:
    """How a line begins, for `BadLine.text`."""
    text = content[:_QUOTED_BYTES].decode("utf-8", errors="backslashreplace")
    return text.replace("\t", "\\t") + ("…" if len(content) > _QUOTED_BYTES else "")
