from __future__ import annotations

from intune.pipelines.tasks import Tasks
from tests.pipelines.small_plans import plan_of


def test_a_task_that_was_ready_twice_and_is_long_done_is_nothing_to_start() -> None:
    """As where a worker dies with a batch's input, and the batch is delivered before anyone looks for work again."""
    tasks = Tasks(plan_of(("batch",), blocks=2, rows=10, batch=10), first_batch=0, offered=2, in_order=True)
    tasks.finish(tasks.start(0, 0, 0.0))
    assert tasks.next_ready(1) == 0
    assert tasks.lose([(0, 0)]) == [(0, 0)]
    assert tasks.next_ready(0) == 0
    tasks.finish(tasks.start(0, 0, 0.0))
    tasks.finish(tasks.start(1, 0, 0.0))
    assert tasks.deliver() == 0
    tasks.consumed(0)
    assert tasks.next_ready(1) is None
    assert tasks.redone == 1
