from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intune.pipelines import plan as plan_module
from intune.pipelines.allocation import Allocation
from intune.pipelines.executors.fake import Costs, FakeExecutor
from intune.pipelines.metrics import StageMeter
from intune.pipelines.plan import Plan, make_plan
from intune.pipelines.scheduler import Scheduler
from intune.pipelines.tasks import State, Task
from tests.pipelines.small_plans import plan_of, stages_of

KINDS: tuple[tuple[str, ...], ...] = (
    ("batch",),
    ("batch", "map", "transfer"),
    ("map", "batch", "map"),
    ("shuffle", "batch", "map", "transfer"),
    ("map", "shuffle", "map", "batch"),
    ("batch", "map", "shuffle", "map"),
)


class Watched(FakeExecutor):
    """Checks at every start and end what must hold, with books of its own."""

    def __init__(self, plan: Plan, **options: Any) -> None:
        super().__init__(plan, **options)
        self.starts: Counter[tuple[int, int]] = Counter()
        self.ends: Counter[tuple[int, int]] = Counter()
        self.busy = dict.fromkeys(self.stages, 0.0)
        self.over: list[Task] = []
        self._take, self._end, self._fail = self.scheduler.take, self.scheduler.finish, self.scheduler.fail
        self.scheduler.take = self._checked_take  # type: ignore[method-assign]
        self.scheduler.finish = self._checked_finish  # type: ignore[method-assign]
        self.scheduler.fail = self._checked_fail  # type: ignore[method-assign]

    def _stage(self, task: Task) -> str:
        return self.plan.levels[task.level].stage

    def _checked_take(self, now: float) -> Task | None:
        before = self.scheduler.running_tasks()
        head, held = self.scheduler._tasks.head, self.scheduler.ledger.held
        task = self._take(now)
        if task is None:
            return None
        assert task.key not in {other.key for other in before}, f"{task} runs twice at once"
        allocation = self.scheduler.allocation
        if allocation.is_shared:
            assert len(before) < allocation.pool
        else:
            running = sum(self._stage(other) == self._stage(task) for other in before)
            assert running < allocation.of(self._stage(task)), "more tasks than slots"
        for key in task.inputs:
            assert key in self._outputs, f"{task} started without its input {key}"
        waiting = sum(self._bytes(other) for other in before)
        if held + waiting + self._bytes(task) > self.scheduler.limit:
            assert self.plan.need[task.level][task.index] <= head, f"{task} is not next, but over the limit"
            assert not any(other in before for other in self.over), "two tasks at once over the limit"
            self.over.append(task)
        self.starts[task.key] += 1
        return task

    def _checked_finish(self, task: Task, now: float, roots: Any, **rest: Any) -> Any:
        self.busy[self._stage(task)] += now - task.started
        self.ends[task.key] += 1
        return self._end(task, now, roots, **rest)

    def _checked_fail(self, task: Task, now: float, **rest: Any) -> None:
        self.busy[self._stage(task)] += now - task.started
        self._fail(task, now, **rest)

    def check_end(self, first_batch: int, in_order: bool) -> None:
        """What must hold once the epoch is over."""
        self.consume()
        top = self.plan.levels[-1]
        wanted = [i for i in range(len(top)) if top.stop[i] > first_batch]
        assert sorted(self.delivered) == wanted, "an output is missing or came twice"
        if in_order:
            assert self.delivered == wanted, "outputs out of order"
        scheduler = self.scheduler
        assert scheduler.exhausted
        assert scheduler.running == 0
        levels = scheduler._tasks._levels
        assert [len(level.records) for level in levels] == [0] * len(levels)
        assert [level.done for level in levels] == [0] * len(levels)
        assert scheduler.ledger.held == 0
        assert len(scheduler.ledger) == 0
        assert not self._outputs
        assert scheduler._promised == 0
        stats = self.stats()
        needed = needed_tasks(self.plan, wanted)
        assert set(self.ends) == needed, "a task was left out, or one was run that nothing needs"
        assert sum(self.ends.values()) == len(needed) + stats.redone
        assert sum(stage.tasks for stage in stats.stages) == len(needed) + stats.redone
        for stage in stats.stages:
            assert math.isclose(stage.busy_s, self.busy[stage.name], rel_tol=1e-9, abs_tol=1e-9)
            total = stage.busy_s + stage.starved_s + stage.blocked_s
            assert math.isclose(total, stage.slot_s, rel_tol=1e-9, abs_tol=1e-9)


def needed_tasks(plan: Plan, outputs: list[int]) -> set[tuple[int, int]]:
    """Every task that these outputs of the last level are made of."""
    found: set[tuple[int, int]] = set()
    level, wanted = len(plan.levels) - 1, set(outputs)
    while level >= 0:
        found |= {(level, index) for index in wanted}
        this = plan.levels[level]
        wanted = {i for index in wanted for i in range(int(this.first[index]), int(this.last[index]))}
        level -= 1
    return found


@st.composite
def allocations(draw: st.DrawFn, stages: tuple[str, ...], memory: bool = True) -> Allocation:
    limit = draw(st.one_of(st.none(), st.integers(1, 200_000))) if memory else None
    if draw(st.booleans()):
        return Allocation.shared(draw(st.integers(1, 6)), memory=limit)
    return Allocation.per_stage({name: draw(st.integers(1, 4)) for name in stages}, memory=limit)


@given(data=st.data())
def test_every_output_comes_once_whatever_is_resized_dies_or_fails(data: st.DataObject) -> None:
    kinds = data.draw(st.sampled_from(KINDS), "stages")
    plan = plan_of(
        kinds,
        blocks=data.draw(st.integers(1, 9), "blocks"),
        rows=data.draw(st.integers(1, 30), "rows"),
        batch=data.draw(st.integers(1, 25), "batch"),
        window=data.draw(st.integers(1, 4), "window"),
        per_task=data.draw(st.integers(1, 3), "batches a task"),
        guessed=data.draw(st.booleans(), "guessed"),
    )
    first_batch = data.draw(st.integers(0, plan.batches), "first batch")
    in_order = data.draw(st.booleans(), "in order")
    workers = data.draw(st.integers(1, 4), "workers")
    stages = stages_of(plan)
    pressed = [data.draw(st.booleans(), "under pressure at first")]
    fake = Watched(
        plan,
        allocation=data.draw(allocations(stages), "allocation"),
        workers=workers,
        costs=Costs(
            spread=0.9,
            failures=data.draw(st.sampled_from([0.0, 0.3]), "failures"),
            deaths=data.draw(st.sampled_from([0.0, 0.0, 0.02]), "deaths"),
        ),
        first_batch=first_batch,
        in_order=in_order,
        pressed=lambda running, ended: pressed[0],
        seed=data.draw(st.integers(0, 99), "seed"),
    )
    act = st.sampled_from(["advance"] * 6 + ["output"] * 3 + ["resize", "pressure", "kill one", "kill all"])
    for action in data.draw(st.lists(act, max_size=60), "actions"):
        if action == "advance":
            fake.advance()
        elif action == "output":
            if fake.next_output() is None:
                break
        elif action == "resize":
            fake.resize(data.draw(allocations(stages)))
        elif action == "pressure":
            pressed[0] = not pressed[0]
        else:
            fake.start()
            one = data.draw(st.integers(0, workers - 1))
            fake.kill(range(workers) if action == "kill all" else [one])
    for _ in fake:
        pass
    fake.check_end(first_batch, in_order)


def largest_output(plan: Plan) -> int:
    return max(int(level.rows.max() * plan.row_bytes) for level in plan.levels)


@given(data=st.data())
def test_held_bytes_exceed_the_limit_by_less_than_the_task_in_hand(data: st.DataObject) -> None:
    plan = plan_of(
        data.draw(st.sampled_from(KINDS), "stages"),
        blocks=data.draw(st.integers(1, 9), "blocks"),
        rows=data.draw(st.integers(1, 30), "rows"),
        batch=data.draw(st.integers(1, 25), "batch"),
        window=data.draw(st.integers(1, 4), "window"),
        per_task=data.draw(st.integers(1, 3), "batches a task"),
    )
    workers = 3
    fake = Watched(
        plan,
        allocation=data.draw(allocations(stages_of(plan))),
        workers=workers,
        costs=Costs(spread=0.9, step_s=data.draw(st.sampled_from([0.0, 0.01]), "step")),
        in_order=data.draw(st.booleans(), "in order"),
        seed=data.draw(st.integers(0, 99), "seed"),
    )
    kills = data.draw(st.sampled_from([0.0, 0.0, 0.3]), "kills")
    chance = np.random.default_rng(0)
    limit = fake.scheduler.limit
    for _ in fake:
        if chance.random() < kills:
            fake.kill(range(workers))
    # Where every worker dies at once, blocks made ahead are there before those needed next are made again.
    tasks = 2 if fake.workers_lost else 1
    assert fake.stats().memory_peak <= limit + tasks * largest_output(plan)


def test_a_slow_trainer_does_not_make_what_is_held_grow() -> None:
    plan = plan_of(("batch", "map"), blocks=200, rows=10, batch=10)
    peaks = []
    for step_s in (1.0, 100.0):
        fake = Watched(plan, allocation=Allocation.shared(4), costs=Costs(task_s=0.01, step_s=step_s))
        assert len(list(fake)) == len(plan.levels[-1])
        peaks.append(fake.stats().memory_peak)
    assert peaks[0] == peaks[1]
    assert peaks[0] <= fake.scheduler.limit + largest_output(plan)
    assert fake.scheduler.limit < 30 * largest_output(plan)


def test_the_memory_of_an_allocation_is_kept_but_never_below_what_one_delivery_takes() -> None:
    plan = plan_of(("batch", "map"), blocks=50, rows=10, batch=10)
    fake = Watched(plan, allocation=Allocation.shared(4, memory=60_000))
    assert fake.scheduler.limit == 60_000
    least = fake.scheduler._footprint.minimum
    assert least < 60_000
    fake.resize(Allocation.shared(4, memory=1))
    assert fake.scheduler.limit == least
    tight = Watched(plan, allocation=Allocation.shared(4, memory=1 << 50), memory=1 << 20)
    assert tight.scheduler.limit == 1 << 20


def test_the_limit_follows_the_bytes_that_outputs_are_seen_to_have() -> None:
    """Footers know little of strings and lists: what they tell may be a tenth of what is made."""
    plan = plan_of(("batch", "map"), blocks=100, rows=10, batch=10)
    limits = []
    for factor in (1, 10):
        fake = FakeExecutor(
            plan,
            allocation=Allocation.shared(4),
            output_bytes=lambda task, factor=factor: 0 if task.level == 1 else task.rows * 1000 * factor,  # type: ignore[misc]
        )
        first = fake.scheduler.limit
        assert sum(1 for _ in fake) == len(plan.levels[-1])
        limits.append((first, fake.scheduler.limit, fake.stats().memory_peak))
    (before, after, peak), (before_10, after_10, peak_10) = limits
    assert before == after == before_10
    assert after_10 > 3 * after
    assert peak <= after + largest_output(plan)
    assert peak_10 <= after_10 + 10 * largest_output(plan)


def run(seed: int, **options: Any) -> tuple[list[int], float, int, Any]:
    plan = plan_of(blocks=12)
    fake = FakeExecutor(
        plan,
        allocation=Allocation.shared(3),
        costs=Costs(failures=0.1, deaths=0.05, **options),
        in_order=False,
        seed=seed,
    )
    order = [index for index, _ in fake]
    return order, fake.now, fake.workers_lost, fake.stats()


def test_the_same_seed_gives_the_same_run_and_another_seed_another() -> None:
    assert run(3) == run(3)
    assert run(3) != run(4)


def test_deaths_of_all_workers_at_every_single_event_are_survived() -> None:
    plan = plan_of(blocks=6)
    events = 0
    while True:
        fake = Watched(plan, allocation=Allocation.shared(4), workers=2, seed=1)
        for _ in range(events):
            if not fake.advance() and fake.next_output() is None:
                break
        else:
            fake.kill([0, 1])
            for _ in fake:
                pass
            fake.check_end(0, True)
            events += 1
            continue
        break
    assert events > sum(len(level) for level in plan.levels)


def test_only_what_was_lost_and_is_still_needed_is_made_again() -> None:
    """Four loads of ten rows, two batches of twenty: kill the worker after three loads."""
    plan = plan_of(("batch",), blocks=4, rows=10, batch=20)
    fake = Watched(plan, allocation=Allocation.per_stage({"load": 1, "batch0": 1}), workers=1)
    while sum(fake.ends.values()) < 3:
        fake.advance()
    made = set(fake.ends)
    lost = {key for key in made if key[0] == 0 and key in fake._outputs}
    fake.kill([0])
    for _ in fake:
        pass
    fake.check_end(0, True)
    assert {key for key, count in fake.ends.items() if count == 2} == lost
    assert fake.stats().redone == len(lost)


def test_an_epoch_without_deaths_makes_nothing_twice() -> None:
    fake = Watched(plan_of(), allocation=Allocation.shared(3), costs=Costs(failures=0.3), seed=5)
    for _ in fake:
        pass
    fake.check_end(0, True)
    assert max(fake.ends.values()) == 1
    stats = fake.stats()
    assert stats.redone == 0
    assert stats.stage("load").retries == sum(fake.starts.values()) - sum(fake.ends.values()) > 0


def drain(scheduler: Scheduler, now: float) -> list[Task]:
    tasks = []
    while (task := scheduler.take(now)) is not None:
        tasks.append(task)
    return tasks


def scheduler_of(plan: Plan, allocation: Allocation) -> Scheduler:
    return Scheduler(plan, stages_of(plan), allocation=allocation, memory=1 << 40)


def test_a_failed_read_is_tried_again_when_its_delay_is_over_and_not_before() -> None:
    plan = plan_of(("batch",), blocks=1)
    scheduler = scheduler_of(plan, Allocation.shared(2))
    (task,) = drain(scheduler, 0.0)
    scheduler.fail(task, 1.0, retry_at=3.5)
    assert scheduler.next_due == 3.5
    assert drain(scheduler, 3.4) == []
    (again,) = drain(scheduler, 3.5)
    assert (again.key, again.attempt) == (task.key, 2)
    assert scheduler.next_due is None


def test_a_task_that_has_its_inputs_goes_on_when_they_are_lost() -> None:
    plan = plan_of(("batch", "map"), blocks=2, rows=10, batch=30)
    scheduler = scheduler_of(plan, Allocation.shared(4))
    loads = drain(scheduler, 0.0)
    for task in loads:
        scheduler.finish(task, 1.0, {-task.index - 1: 10})
    (batch,) = drain(scheduler, 1.0)
    assert scheduler.lose([task.key for task in loads], 2.0) == [task.key for task in loads]
    assert drain(scheduler, 2.0) == [], "nothing needs them any more"
    scheduler.finish(batch, 3.0, {})
    assert scheduler.redone == 0
    (mapped,) = drain(scheduler, 3.0)
    scheduler.finish(mapped, 4.0, {})
    assert scheduler.deliver() == 0
    scheduler.consumed(0, 5.0)
    assert scheduler.ledger.held == 0


def test_a_task_that_failed_for_a_lost_input_waits_until_it_is_made_again() -> None:
    plan = plan_of(("batch",), blocks=2, rows=10, batch=30)
    for fail_first in (False, True):
        scheduler = scheduler_of(plan, Allocation.shared(4))
        loads = drain(scheduler, 0.0)
        for task in loads:
            scheduler.finish(task, 1.0, {})
        (batch,) = drain(scheduler, 1.0)
        if fail_first:
            scheduler.fail(batch, 2.0)
            scheduler.lose([(0, 0)], 2.0)
        else:
            scheduler.lose([(0, 0)], 2.0)
            scheduler.fail(batch, 2.0)
        (again,) = drain(scheduler, 2.0)
        assert again.key == (0, 0)
        scheduler.finish(again, 3.0, {})
        (retried,) = drain(scheduler, 3.0)
        assert (retried.key, retried.attempt) == ((1, 0), 2)
        assert scheduler.redone == 1


def test_the_task_nearest_to_delivery_goes_first_and_within_a_stage_the_one_needed_first() -> None:
    plan = plan_of(("batch", "map"), blocks=4, rows=10, batch=5)
    scheduler = scheduler_of(plan, Allocation.shared(2))
    first, second = drain(scheduler, 0.0)
    assert (first.key, second.key) == ((0, 0), (0, 1))
    scheduler.finish(second, 1.0, {})
    third = scheduler.take(1.0)
    assert third is not None
    assert third.key[0] > 0 or third.key == (0, 2)
    scheduler.finish(first, 1.0, {})
    following = scheduler.take(1.0)
    assert following is not None
    assert following.level == 1, "a batch that is ready goes before another load"


def test_fewer_slots_let_running_tasks_end_and_start_none_until_below() -> None:
    plan = plan_of(("batch",), blocks=8, rows=10, batch=10)
    scheduler = scheduler_of(plan, Allocation.per_stage({"load": 4, "batch0": 1}))
    running = drain(scheduler, 0.0)
    assert [task.level for task in running] == [0, 0, 0, 0]
    scheduler.resize(Allocation.per_stage({"load": 2, "batch0": 1}), 0.5)
    for expected, task in zip((3, 2), running[:2], strict=True):
        scheduler.finish(task, 1.0, {})
        assert not [new for new in drain(scheduler, 1.0) if new.level == 0]
        assert sum(task.level == 0 for task in scheduler.running_tasks()) == expected
    scheduler.finish(running[2], 1.0, {})
    assert [task.level for task in drain(scheduler, 1.0) if task.level == 0] == [0]


def test_time_is_booked_as_busy_starved_and_blocked_by_hand() -> None:
    """One batch of two loads on 2 load slots and 1 batch slot: load 0 takes 2 s, load 1 takes 5 s, batch 1 s."""
    plan = plan_of(("batch",), blocks=2, rows=10, batch=30)
    scheduler = scheduler_of(plan, Allocation.per_stage({"load": 2, "batch0": 1}))
    first, second = drain(scheduler, 0.0)
    scheduler.finish(first, 2.0, {}, cpu_s=0.5)
    assert drain(scheduler, 2.0) == []
    half_way = scheduler.read()[0]
    assert (half_way.busy_s, half_way.done_s) == (4.0, 2.0)
    scheduler.finish(second, 5.0, {})
    (batch,) = drain(scheduler, 5.0)
    scheduler.finish(batch, 6.0, {})
    load, batched = scheduler.read()
    assert (load.busy_s, load.starved_s, load.blocked_s, load.slot_s) == (7.0, 5.0, 0.0, 12.0)
    assert (batched.busy_s, batched.starved_s, batched.blocked_s, batched.slot_s) == (1.0, 5.0, 0.0, 6.0)
    assert (load.cpu_s, load.waiting_s, load.done_s, batched.done_s) == (0.5, 6.5, 7.0, 1.0)
    assert (load.tasks, load.rows, batched.queue) == (2, 21, 1)


def test_slots_without_memory_for_an_output_are_booked_as_blocked() -> None:
    plan = plan_of(("batch",), blocks=30, rows=100, batch=100)
    scheduler = Scheduler(
        plan,
        stages_of(plan),
        allocation=Allocation.per_stage({"load": 8, "batch0": 1}, memory=1),
        memory=1 << 40,
    )
    running = drain(scheduler, 0.0)
    assert len(running) < 8
    scheduler.tick(10.0)
    load, _ = scheduler.read()
    assert load.blocked_s == 10.0 * (8 - len(running))
    assert load.starved_s == 0.0


def test_where_the_size_of_rows_is_a_guess_only_what_is_needed_first_is_read_until_it_is_seen() -> None:
    """Strings may take a hundred times what they are encoded in: many tasks at once would take all memory."""
    plan = plan_of(("batch", "map"), blocks=40, rows=12, batch=16, row_bytes=1.0, guessed=True)
    stages, meters = stages_of(plan), {name: StageMeter(name) for name in stages_of(plan)}

    def epoch(memory: int) -> Scheduler:
        return Scheduler(plan, stages, allocation=Allocation.shared(20), memory=memory, meters=meters)

    scheduler = epoch(8000)
    first, second = drain(scheduler, 0.0)
    assert (first.key, second.key) == ((0, 0), (0, 1)), "the first batch is made of two blocks"
    scheduler.finish(first, 0.0, {1: 100 * first.rows})
    begun = drain(scheduler, 0.0)
    rows = sum(task.rows for task in begun) + second.rows
    assert 0 < 100 * first.rows + 150 * rows <= 8000, "as many as fit, now that it is known what they take"
    # The functions' outputs are taken to be as large until they are seen.
    assert scheduler._footprint.minimum >= 100 * (2 * 12 + 16)
    assert len(drain(epoch(1 << 20), 0.0)) == 20, "the next epoch knows"


def test_what_could_not_be_read_tells_no_size() -> None:
    plan = plan_of(("batch",), blocks=40, rows=12, batch=12, guessed=True)
    scheduler = scheduler_of(plan, Allocation.shared(20))
    (task,) = drain(scheduler, 0.0)
    scheduler.finish(task, 0.0, {})
    assert {(task.level, task.index) for task in drain(scheduler, 0.0)} <= {(0, 1), (1, 0)}


def test_without_any_memory_the_tasks_needed_next_run_one_at_a_time() -> None:
    plan = plan_of(("batch",), blocks=9, rows=10, batch=30)
    scheduler = Scheduler(plan, stages_of(plan), allocation=Allocation.shared(4), memory=1)
    for expected in ((0, 0), (0, 1), (0, 2), (1, 0)):
        (task,) = drain(scheduler, 0.0)
        assert task.key == expected
        scheduler.finish(task, 0.0, {-task.index - 1: 10_000})
    assert drain(scheduler, 0.0) == [], "the next batch waits until this one is delivered"
    assert scheduler.deliver() == 0
    assert [task.level for task in drain(scheduler, 0.0)] == [0]


def test_while_the_system_has_no_memory_only_what_the_next_delivery_needs_runs() -> None:
    plan = plan_of(("batch",), blocks=9, rows=10, batch=30)
    pressed = [True]
    scheduler = Scheduler(
        plan,
        stages_of(plan),
        allocation=Allocation.shared(4),
        memory=1 << 40,
        pressed=lambda running, ended: pressed[0],
    )
    (task,) = drain(scheduler, 0.0)
    assert task.key == (0, 0)
    pressed[0] = False
    assert [other.key for other in drain(scheduler, 0.0)] == [(0, 1), (0, 2), (0, 3)]


def test_a_stage_that_has_done_all_it_had_to_do_is_starved_not_blocked() -> None:
    plan = plan_of(("batch",), blocks=1, rows=10, batch=10)
    scheduler = scheduler_of(plan, Allocation.per_stage({"load": 2, "batch0": 1}))
    (load,) = drain(scheduler, 0.0)
    scheduler.finish(load, 1.0, {})
    drain(scheduler, 1.0)
    scheduler.tick(3.0)
    assert scheduler.read()[0].starved_s == 1.0 + 2.0 * 2


def test_a_task_is_never_handed_out_with_an_input_that_was_let_go() -> None:
    plan = plan_of(("batch", "map"), blocks=3, rows=10, batch=6)
    fake = Watched(plan, allocation=Allocation.shared(2), workers=2, costs=Costs(deaths=0.2), seed=11)
    for _ in fake:
        held = fake.scheduler.ledger.held
        known = {root for made in fake._outputs.values() for root in made.roots}
        assert held == sum({r: s for made in fake._outputs.values() for r, s in made.roots.items()}.values())
        assert len(known) <= len(fake._outputs) * 3
    fake.check_end(0, True)


def test_states_of_tasks_before_the_next_delivery_are_forgotten_as_the_epoch_goes_on() -> None:
    plan = plan_of(("batch", "map"), blocks=300, rows=10, batch=10)
    fake = Watched(plan, allocation=Allocation.shared(2))
    most = 0
    for _ in fake:
        most = max(most, *(len(level.records) for level in fake.scheduler._tasks._levels))
    assert most < 60, "records of what is long delivered pile up"
    assert all(
        record.state is not State.GONE
        for level in fake.scheduler._tasks._levels
        for record in level.records.values()
    )


@settings(max_examples=10)
@given(
    seed=st.integers(0, 1000),
    kinds=st.sampled_from([("shuffle", "batch"), ("batch", "shuffle"), ("batch",)]),
    in_order=st.booleans(),
)
def test_with_real_operations_the_batches_are_the_same_whoever_dies(
    data_sets: Any,
    numbered: Callable[..., Any],
    reference: Callable[..., list[list[int]]],
    seed: int,
    kinds: tuple[str, ...],
    in_order: bool,
) -> None:
    from intune.pipelines.operations import Job, Operations
    from intune.pipelines.pipeline import Pipeline

    sizes = ((20, 20, 7), (20, 0, 20, 20), (3,))
    folder: Path = data_sets.folder(sizes)
    pipe = Pipeline.from_parquet(folder)
    for kind in kinds:
        pipe = pipe.shuffle(row_groups=2, seed=seed) if kind == "shuffle" else pipe.batch(8)
    from intune.pipelines.reading.dataset import open_dataset

    dataset = open_dataset(pipe.load.source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module, "BLOCK_ROWS", 20)
        plan = make_plan(dataset.row_groups(), pipe.order(), chunk_rows=16)
    operations = Operations(Job(plan=plan, dataset=dataset))
    fake = FakeExecutor(
        plan,
        allocation=Allocation.shared(4),
        costs=Costs(deaths=0.05, failures=0.05),
        operations=operations,
        in_order=in_order,
        seed=seed,
    )
    outputs = {index: [batch["id"].tolist() for batch in payload] for index, payload in fake}
    operations.close()
    made = [batch for index in sorted(outputs) for batch in outputs[index]]
    shuffle = None if "shuffle" not in kinds else "rows" if kinds[0] == "shuffle" else "batches"
    assert made == reference(
        numbered(sizes), batch_size=8, shuffle=shuffle, row_groups=2, seed=seed, block_rows=20
    )


def test_first_tasks_start_only_once_they_are_offered() -> None:
    plan = plan_of(("batch",), blocks=4, rows=10, batch=10)
    scheduler = Scheduler(plan, stages_of(plan), allocation=Allocation.shared(8), memory=1 << 30, offered=1)
    task = scheduler.take(0.0)
    assert task is not None
    assert task.key == (0, 0)
    assert scheduler.take(0.0) is None
    scheduler.offer(3)
    scheduler.offer(2)  # what was offered stays so
    started = [scheduler.take(0.0) for _ in range(3)]
    assert [task and task.key for task in started] == [(0, 1), (0, 2), None]
    scheduler.offer(99)
    assert [task and task.key for task in (scheduler.take(0.0), scheduler.take(0.0))] == [(0, 3), None]
