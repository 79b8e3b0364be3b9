"""Runs contenders, each in a fresh process, interleaved, and keeps what they report.

A fresh process makes peak memory and imports its own. Memory is sampled during the warm-up epoch only, so
that the timed one is not disturbed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks import stats
from benchmarks.contender import WARM
from benchmarks.memory import INTERVAL_S, PeakSampler

REPOSITORY = Path(__file__).resolve().parent.parent
PYTHONS = {"main": Path(sys.executable), "peers": REPOSITORY / ".peers/bin/python"}
"""The two environments: ours, and the rivals' (`make peers`)."""

TIMEOUT_S = 300.0
"""For one contender's process: twenty times what the slowest takes on two cores."""


BATCH = 8192
"""Rows of a batch, the same for everyone."""


class ContenderFailed(RuntimeError):
    """A contender's process failed; the message ends with the last lines of what it wrote."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """One command line: a module, where it runs and its settings."""

    name: str
    module: str
    python: str = "main"
    config: Mapping[str, Any] = field(default_factory=dict)

    def command(self, data: Path, batch: int, flags: Sequence[str] = ()) -> list[str]:
        settings = ["--data", str(data.resolve()), "--batch", str(batch), "--config", json.dumps(self.config)]
        return [str(PYTHONS[self.python]), "-m", self.module, *settings, *flags]


def available(contender: Contender) -> bool:
    return PYTHONS[contender.python].exists()


def run(
    contender: Contender,
    data: Path,
    *,
    batch: int = BATCH,
    flags: Sequence[str] = (),
    timeout: float = TIMEOUT_S,
) -> dict[str, Any]:
    """One fresh process: what it reports, plus ``peak_bytes`` of its process tree over the warm-up epoch."""
    return run_command(contender.command(data, batch, flags), name=contender.name, timeout=timeout)


def run_command(
    command: Sequence[str],
    *,
    name: str,
    timeout: float = TIMEOUT_S,
    interval: float = INTERVAL_S,
    leave: bool = False,
) -> dict[str, Any]:
    """Run `command` to its end, sampling memory until it says `WARM`; its last line of JSON is what it reports.

    Args:
        command: arguments vector; name: for messages.
        timeout: seconds after which it is ended.
        interval: seconds between two looks at its memory.
        leave: end it as soon as it has reported.
    """
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY), PYTHONWARNINGS="ignore")
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, cwd=REPOSITORY
        )
        timer = threading.Timer(timeout, _end_tree, [process.pid])
        timer.start()
        lines: list[str] = []
        try:
            with PeakSampler(process.pid, interval) as sampler:
                assert process.stdout is not None
                for line in process.stdout:
                    if line.strip() == WARM:
                        sampler.stop()
                    lines.append(line)
                    if leave and line.startswith("{"):
                        _end_tree(process.pid)  # it has said all; some libraries take their time to end
            code = process.wait() if not (leave and lines and lines[-1].startswith("{")) else 0
        except BaseException:
            _end_tree(process.pid)
            raise
        finally:
            timer.cancel()
            if process.stdout is not None:
                process.stdout.close()
        if code != 0 or not lines:
            errors.seek(0)
            tail = "".join([*lines, *errors.readlines()][-12:])
            raise ContenderFailed(
                f"{name} ended with status {code} (limit {timeout:.0f} s): {' '.join(command)}\n{tail}"
            )
    # Ray prints a last word of its own where it shuts down; the report is the last line that can be one.
    report = next((line for line in reversed(lines) if line.startswith("{")), None)
    if report is None:
        raise ContenderFailed(f"{name} reported nothing; its last line: {lines[-1].strip()}")
    result: dict[str, Any] = json.loads(report)
    result["peak_bytes"] = sampler.peak
    result["peak_is_pss"] = sampler.is_pss
    return result


def interleave(
    contenders: Mapping[str, Callable[[], dict[str, Any]]],
    *,
    rounds: int,
    seed: int,
    progress: Callable[[str], None],
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """Every contender once a round, in an order drawn anew for each round.

    Returns:
        Results by name, in the rounds' order, of those that never failed; and the errors of the others, which
        are not run again.
    """
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    failures: dict[str, str] = {}
    for number, order in enumerate(stats.rounds_of(list(contenders), rounds, seed), start=1):
        for name in order:
            if name in failures:
                continue
            progress(f"round {number} of {rounds}: {name}")
            load = os.getloadavg()[0]
            try:
                results[name].append({**contenders[name](), "load_before": load})
            except ContenderFailed as error:
                failures[name] = str(error)
                del results[name]
    return results, failures


def _end_tree(pid: int) -> None:
    """End a contender and what it started; one that has ended by itself is no error."""
    try:
        root = psutil.Process(pid)
        family = [*root.children(recursive=True), root]
    except psutil.NoSuchProcess:
        return
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
