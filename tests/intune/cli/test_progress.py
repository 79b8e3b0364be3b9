"""Progress: silent when quick, a line now and then, a bar on a terminal."""

import io
import re

import pytest

from intune.cli.progress import Progress


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _run(stream: io.StringIO, seconds: int, step: float) -> str:
    clock = _Clock()
    with Progress("writing x", stream=stream, clock=clock) as progress:
        while clock.now < seconds:
            clock.now += step
            progress(int(1000 * clock.now), clock.now / seconds)
    return stream.getvalue()


def test_what_is_over_soon_says_nothing() -> None:
    assert _run(io.StringIO(), seconds=1, step=0.25) == ""


def test_lines_come_every_two_seconds() -> None:
    lines = _run(io.StringIO(), seconds=10, step=0.5).splitlines()
    assert lines[0] == "writing x: 20%, 2,000 rows, 1,000 rows/s"
    assert lines[-1] == "writing x: 100%, 10,000 rows, 1,000 rows/s"
    assert len(lines) == 5


def test_an_hour_is_no_flood() -> None:
    lines = _run(io.StringIO(), seconds=3600, step=1).splitlines()
    assert 50 < len(lines) < 150


def test_a_terminal_that_cannot_go_back_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert len(_run(_Terminal(), seconds=10, step=0.5).splitlines()) == 5


def test_a_terminal_gets_a_bar_that_is_gone_at_the_end() -> None:
    text = _run(_Terminal(), seconds=10, step=0.5)
    assert "writing x" in text
    assert re.search(r"\d,\d{3} rows", text)
    assert text.rstrip("\r").endswith("\x1b[2K")
