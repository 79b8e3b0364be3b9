"""An epoch under way, apart from who works on it."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

from intune.pipelines.memory import MemoryLedger
from intune.pipelines.operations import Result
from intune.pipelines.payloads import Missing
from intune.pipelines.run import Run


def test_what_is_made_again_is_not_skipped_again() -> None:
    """An output that says what was left out may be lost with its worker."""
    told: list[str] = []
    scheduler = SimpleNamespace(finish=lambda *_, **__: [], deliverable=lambda: False)
    job: Any = SimpleNamespace(plan=SimpleNamespace(levels=[None]))
    run = Run(job, scheduler, retries=0, max_skipped=1, on_skip=told.append)  # type: ignore[arg-type]
    for attempt in (1, 2, 3):
        task: Any = SimpleNamespace(key=(0, 4), attempt=attempt)
        run.finished(task, Result(Missing(10), ["row group 4 is broken"]), {}, cpu_s=0.0)
    assert told == ["row group 4 is broken"]
    assert run.skipped == 1
    assert run.error is None


def test_who_waits_for_an_output_hears_of_a_close_in_the_last_moment_before() -> None:
    """A signal handler may close the loader between the look whether it is closed and the waiting."""
    job: Any = SimpleNamespace(plan=SimpleNamespace(levels=[None]))

    def deliver() -> None:
        run.close()  # by the same thread, as a handler does

    scheduler = SimpleNamespace(deliver=deliver, exhausted=False, ledger=MemoryLedger())
    run = Run(job, scheduler, retries=0, max_skipped=0, on_skip=print)  # type: ignore[arg-type]
    found: list[Any] = []
    waiting = threading.Thread(target=lambda: found.append(run.next_output()), daemon=True)
    waiting.start()
    waiting.join(60)
    assert found == [None]
