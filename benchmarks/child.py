"""A server in a process of its own, so that it shares no lock with what is measured, and ends with its owner.

The child's main calls `serve`: it prints one JSON line when it is ready, then answers each JSON line on its
standard input with one on its standard output, and ends when its input does, which the system sees to even if
the owner is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import psutil

Message: TypeAlias = "Mapping[str, Any]"

REPOSITORY = Path(__file__).resolve().parent.parent
START_S = 60.0
"""A cold import of a large server takes seconds on a busy machine; a minute means that it hangs."""
END_S = 10.0


class ChildFailed(RuntimeError):
    """The server's process ended or does not answer; the message holds what it wrote."""


class Child:
    """Owner's side: ``python -m module arguments`` as long as this context lasts.

    Attributes:
        hello: what the server said when it was ready.
        pid: of its process.
    """

    def __init__(self, module: str, *arguments: str) -> None:
        self.hello: Message = {}
        self.pid = 0
        self._command = [sys.executable, "-m", module, *arguments]
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            start_new_session=True,  # Ctrl-C is the owner's to handle
        )
        self.pid = self._process.pid
        try:
            self.hello = self._answer(START_S)
        except BaseException:
            self._end(at_once=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    @property
    def port(self) -> int:
        """Where a server that says so listens, on 127.0.0.1."""
        return int(self.hello["port"])

    def ask(self, **message: Any) -> Message:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise ChildFailed(f"{self._command[2]} has ended with status {self._process.wait()}") from None
        return self._answer(END_S)

    def cpu_s(self) -> float:
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

    def _answer(self, limit: float) -> Message:
        assert self._process is not None
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], limit)
        line = self._process.stdout.readline() if readable else ""
        if not line:
            said = (
                "nothing" if self._process.poll() is None else f"its end, status {self._process.returncode}"
            )
            raise ChildFailed(f"{self._command[2]}: {said} within {limit:.0f} s where an answer was wanted")
        answer: Message = json.loads(line)
        return answer

    def _end(self, *, at_once: bool = False) -> None:
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        if at_once:
            process.kill()
        with contextlib.suppress(BrokenPipeError):  # it has ended already, which is what closing asks for
            process.stdin.close()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def serve(hello: Message, answer: Callable[[Message], Message]) -> None:
    """Child's side: say `hello`, answer every message, return when the owner has gone."""
    _say(hello)
    for line in sys.stdin:
        _say(answer(json.loads(line)))


def serve_beside(hello: Message, answer: Callable[[Message], Message], end: Callable[[], object]) -> None:
    """As `serve` in a thread, for a server that needs the main one; `end` is called when the owner has gone."""

    def run() -> None:
        try:
            serve(hello, answer)
        finally:
            end()

    threading.Thread(target=run, name="owner", daemon=True).start()


def _say(message: Message) -> None:
    # One write of the whole line: nothing else writes to standard output, but a server's library might.
    os.write(1, (json.dumps(message) + "\n").encode())
