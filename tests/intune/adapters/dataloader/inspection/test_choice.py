"""Threads or processes: what decides, and that it is said."""

import hashlib
import itertools
import logging
import random
import sqlite3
import threading
import time

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from intune.adapters.dataloader.first_batches import FirstBatches
from intune.adapters.dataloader.generators import EpochSeed
from intune.adapters.dataloader.indices import Item
from intune.adapters.dataloader.inspection import choice as dataloader_choice
from intune.adapters.dataloader.inspection import probe as dataloader_probe
from intune.adapters.dataloader.inspection import standing as dataloader_standing
from intune.adapters.dataloader.inspection import trial as dataloader_trial
from intune.adapters.dataloader.inspection.choice import (
    DRAWS,
    SPEED_UP,
    choose,
    choose_before,
    choose_unsendable,
    choose_unshared,
)
from intune.adapters.dataloader.inspection.probe import Measurement, Probe, speed_up_of
from intune.adapters.dataloader.sending import shipment as dataloader_shipment
from intune.adapters.dataloader.sending.pickled_size import structure_bytes
from intune.adapters.dataloader.sending.sendable import Survey
from intune.adapters.dataloader.settings import read_settings
from intune.pipelines import Budget
from intune.pipelines.errors import ConfigError
from tests.intune.adapters.dataloader.common import BUDGET, assert_same, wrap
from tests.intune.adapters.dataloader.datasets import (
    Counted,
    FailingStream,
    Noisy,
    OpensLate,
    Samples,
    Slow,
    Stream,
    Where,
    mark_dataset,
)

WAITS = Measurement(wall_s=0.1, active_s=0.01)
SHORT = Measurement(wall_s=0.002, active_s=0.002)
HOLDS = Measurement(wall_s=0.1, active_s=0.1, speed_up=1.1)
LETS_GO = Measurement(wall_s=0.1, active_s=0.1, speed_up=1.9)


@pytest.mark.parametrize(
    ("measured", "size", "cpus", "kind", "reason"),
    [
        (WAITS, 0, 2, "thread", "a batch takes 100 ms, of which it waits 90 %"),
        (SHORT, 0, 2, "thread", "a batch takes 2 ms, too little"),
        (
            HOLDS,
            0,
            2,
            "process",
            "two threads are 1.10 times as fast as one, so the code holds Python's lock",
        ),
        (LETS_GO, 0, 2, "thread", "1.90 times as fast as one, so the code lets go of"),
        (HOLDS, 0, 1, "thread", "there is one CPU"),
        (
            HOLDS,
            1 << 30,
            2,
            "thread",
            "2 copies of the dataset of 1.00 GiB are more than the budget's 256 MiB",
        ),
        (Measurement(wall_s=0.1, active_s=0.0, random=True), 0, 2, "process", "random generators"),
        (Measurement(wall_s=0.1, active_s=0.1), 0, 2, "thread", "too few batches"),
    ],
)
def test_a_measurement_decides_and_says_why(measured, size, cpus, kind, reason):
    choice = choose(measured, size, Budget(cpus=cpus, memory=1 << 28))
    assert choice.kind == kind
    assert reason in choice.reason


def test_the_speed_up_of_two_threads_is_read_from_how_they_wait_for_each_other():
    # Both at it from 0 to 10, each active half the time: one at a time.
    assert speed_up_of([(0, 10, 5), (0, 10, 5)], 0.0) == pytest.approx(1.0)
    assert speed_up_of([(0, 10, 10), (0, 10, 10)], 0.0) == pytest.approx(2.0)
    assert speed_up_of([(0, 10, 7.5), (0, 10, 7.5)], 0.0) == pytest.approx(1.5)
    # One ran alone from 0 to 5, and the other from 10 to 15: only the five seconds together tell.
    assert speed_up_of([(0, 10, 7.5), (5, 15, 7.5)], 0.0) == pytest.approx(1.0)
    # A fifth of its time the code waits for something else anyway.
    assert speed_up_of([(0, 10, 8), (0, 10, 8)], 0.2) == pytest.approx(2.0)
    assert speed_up_of([(0, 1, 1), (2, 3, 1)], 0.0) == 1.0


def test_the_probe_makes_few_batches_and_two_at_once_only_where_they_tell_more():
    class Clock:
        def __init__(self):
            self.now = self.active = 0.0

    def probe(wall_s, active_s, count):
        clock, made = Clock(), []

        def make(item):
            made.append(item)
            clock.now += wall_s
            clock.active += active_s

        watched = Probe(make, clock=lambda: clock.now, thread_clock=lambda: (clock.active, 0.0))
        return watched.measure(iter(range(count))), len(made)

    assert probe(0.09, 0.01, 9) == (Measurement(wall_s=pytest.approx(0.09), active_s=pytest.approx(0.01)), 2)
    assert probe(2.0, 0.1, 9)[1] == 1  # long enough to tell
    assert probe(0.001, 0.001, 9)[1] == 2
    measured, made = probe(0.1, 0.1, 9)
    assert (measured.speed_up is not None, made) == (True, 4)
    assert probe(0.1, 0.1, 3)[0].speed_up is None
    assert probe(0.1, 0.1, 0) == (Measurement(wall_s=0.0, active_s=0.0), 0)


def test_a_batch_that_was_delayed_does_not_have_processes_started_for_cheap_code():
    def probe(*walls_s):
        now, made = [0.0], []

        def make(item):
            made.append(item)
            now[0] += walls_s[item]

        measured = Probe(make, clock=lambda: now[0], thread_clock=lambda: (now[0], 0.0)).measure(
            iter(range(4))
        )
        return choose(measured, 0, BUDGET), len(made)

    for walls_s in ((0.0002, 0.02, 0.02, 0.02), (0.02, 0.0002, 0.02, 0.02)):
        choice, made = probe(*walls_s)
        assert (choice.kind, made) == ("thread", 2)
        assert "a batch takes 0.2 ms, too little" in choice.reason
    assert probe(0.02, 0.03, 0.02, 0.02)[1] == 4


def test_what_a_thread_lacked_a_processor_for_is_no_time_of_its_code():
    """A machine may have many more threads than it can run."""

    def probe(ran_s, waited_s):
        spent = {"ran": 0.0, "lacked": 0.0, "waited": 0.0}

        def make(item):
            spent["ran"] += ran_s
            spent["lacked"] += 0.05
            spent["waited"] += waited_s

        measured = Probe(
            make, clock=lambda: sum(spent.values()), thread_clock=lambda: (spent["ran"], spent["lacked"])
        ).measure(iter(range(2)))
        return choose(measured, 0, BUDGET).reason

    assert probe(0.0002, 0.0) == "a batch takes 0.2 ms, too little to be sent to a process for"
    assert probe(0.001, 0.009) == "a batch takes 10 ms, of which it waits 90 %"


def test_one_slow_batch_does_not_decide_whose_random_numbers_a_training_sees():
    def probe(*walls_s, counts=False):
        now, made, states = [0.0], [], itertools.count()

        def make(item):
            made.append(item)
            now[0] += walls_s[item]
            return True

        watched = Probe(
            make,
            state=lambda: counts and next(states),
            clock=lambda: now[0],
            thread_clock=lambda: (now[0], 0.0),
        )
        return watched.measure(iter(range(len(walls_s)))), len(made)

    measured, made = probe(0.02, 0.001, 0.001)
    assert (measured.wall_s, measured.random, made) == (pytest.approx(0.001), True, 2)
    assert choose(measured, 0, BUDGET).kind == "here"
    measured, made = probe(0.02, 0.03, 0.001)
    assert (measured.wall_s, measured.random, made) == (pytest.approx(0.02), True, 2)
    assert choose(measured, 0, BUDGET).kind == "process"
    # Nothing hangs on a second one: cheap, long enough to tell, code that counts, or there is none.
    assert probe(0.001, 0.001)[1] == probe(0.2, 0.001)[1] == probe(0.02)[1] == 1
    assert probe(0.02, 0.001, counts=True)[1] == 1


def test_code_that_changes_what_it_keeps_has_copies_of_its_own_as_in_the_dataloader_or_none():
    def choice(num_workers, measured, size=0):
        settings = read_settings(DataLoader(Samples(4), num_workers=num_workers))
        return choose_unshared(settings, measured, size, Budget(cpus=2, memory=256 << 20))

    long, short = (Measurement(wall_s=wall_s, active_s=wall_s, changes=True) for wall_s in (0.1, 0.001))
    assert choice(2, long).kind == "process"
    assert choice(2, short).kind == "process"
    assert choice(2, long, size=1 << 30).kind == "here"
    assert choice(0, long).kind == "here"
    assert choice(2, Measurement(wall_s=0.1, active_s=0.1)) is None


def test_what_is_done_with_a_batch_is_no_part_of_its_time():
    now = [0.0]

    def spend(seconds):
        now[0] += seconds

    probe = Probe(
        lambda item: spend(0.001),
        after=lambda item: spend(5.0),
        clock=lambda: now[0],
        thread_clock=lambda: (0.0, 0.0),
    )
    assert probe.measure(iter(range(9))).wall_s == pytest.approx(0.001)


def test_the_probe_finds_what_changes_with_every_batch_and_not_with_the_first_alone():
    def probe(states):
        made, kept = [], iter(states)
        watched = Probe(
            made.append,
            state=lambda: next(kept),
            clock=iter(range(99)).__next__,
            thread_clock=lambda: (0.0, 0.0),
        )
        return watched.measure(iter(range(9))).changes, len(made)

    assert probe([0, 0]) == (False, 1)  # it waits long enough to tell, and changes nothing
    assert probe([0, 1, 1]) == (False, 2)
    assert probe([0, 1, 2]) == (True, 2)


def test_real_code_that_holds_the_lock_is_told_from_code_that_does_not():
    def holds(_):
        total = 0
        for step in range(600_000):
            total += step * step

    text = bytes(16 << 20)

    def lets_go(_):
        hashlib.sha256(text).digest()

    def speed_ups(code):
        return (Probe(code).measure(itertools.repeat(0)).speed_up for _ in range(10))

    # Where others take the processors, a single measurement says little.
    assert any(speed_up < SPEED_UP for speed_up in speed_ups(holds))
    assert any(speed_up > SPEED_UP for speed_up in speed_ups(lets_go))
    waits = Probe(lambda _: time.sleep(0.05)).measure(itertools.repeat(0))
    assert waits.active_s < 0.5 * waits.wall_s
    assert waits.speed_up is None


def test_what_is_known_without_measuring():
    def unsendable(settings, survey):
        return choose_unsendable(survey)

    def before(dataset, choose=choose_before, **options):
        settings = read_settings(DataLoader(dataset, **options))
        choice = choose(settings, Survey(settings))
        return None if choice is None else choice.kind

    locked = Samples(4)
    locked.lock = threading.Lock()
    reading = Samples(4)
    reading.file = open(__file__)  # noqa: SIM115
    connected = Samples(4)
    connected.connection = sqlite3.connect(":memory:")
    try:
        for dataset in (locked, reading, connected):
            assert before(dataset, unsendable) == "serial"
            assert before(dataset) is None  # it may change what it keeps
            with pytest.raises(ConfigError, match="made for processes, but `dataset` cannot be sent to one"):
                before(dataset, num_workers=1, worker_init_fn=mark_dataset)
            assert (
                before(dataset, worker_init_fn=mark_dataset) is None
            )  # the DataLoader calls it in workers only
    finally:
        reading.file.close()
        connected.connection.close()
    assert before(Samples(4)) is None
    assert before(Samples(4), num_workers=1) is None
    assert before(Samples(4), num_workers=1, worker_init_fn=mark_dataset) == "process"
    assert before(Samples(4), worker_init_fn=mark_dataset) is None  # the DataLoader would not call it either
    assert before(FailingStream(3)) == "thread"
    assert before(Stream()) == "here"  # it may draw random numbers
    assert before(Noisy(4), collate_fn=lambda samples: [threading.Lock()]) is None
    locked = Noisy(4)
    locked.lock = threading.Lock()
    assert before(locked) == "here"
    assert before(Where(4), num_workers=2) == "process"  # it asks for its number
    assert before(Where(4)) is None
    rolls = Samples(4)
    rolls.generator = np.random.default_rng(0)
    assert before(rolls) == "here"
    assert before(rolls, num_workers=1) is None
    assert before(Stream(), num_workers=2) == "process"
    lock = threading.Lock()
    assert before(Samples(4), unsendable, collate_fn=lambda samples: lock and samples) == "thread"
    assert before(Samples(4), collate_fn=lambda samples: lock and samples) is None
    assert before(Samples(4), unsendable) is None


def test_a_worker_init_fn_that_could_not_be_called_is_refused_and_never_passed_over():
    dataset = Where(12)
    dataset.lock = threading.Lock()
    with pytest.raises(ConfigError, match="`worker_init_fn` is made for processes, but `dataset` cannot"):
        wrap(DataLoader(dataset, 3, num_workers=2, worker_init_fn=mark_dataset))
    lock = threading.Lock()
    with pytest.raises(ConfigError, match="but `collate_fn` or `worker_init_fn` cannot be sent"):
        wrap(DataLoader(Where(12), 3, num_workers=2, worker_init_fn=lambda number: lock and number))


def test_a_dataset_is_looked_through_once_before_the_first_batch_and_once_after_it(monkeypatch):
    """Of a large one of many Python objects that takes seconds each."""
    looks = []

    class Large(Samples):
        def __getstate__(self):
            looks.append(1)
            return vars(self)

    monkeypatch.setattr(dataloader_shipment, "MOST_COPIED", 0)  # as of a large one
    dataset = Large(12)
    for module in (dataloader_choice, dataloader_standing, dataloader_trial):
        monkeypatch.setattr(module, "fingerprint", lambda *_, **__: b"")
    with wrap(DataLoader(dataset, 3)) as loader:
        assert len(list(loader)) == 4
        assert loader.workshop.choice.kind == "thread"
    assert len(looks) == 2


@pytest.mark.parametrize("most_copied", [0, 64 << 20])
def test_what_a_sample_of_a_long_list_did_not_tell_is_found_before_anything_is_sent(monkeypatch, most_copied):
    class Rows(Samples):
        def __init__(self, size):
            super().__init__(size)
            self.rows = [(i,) for i in range(20_000)]
            self.rows[1] = (threading.Lock(),)

        def __getitem__(self, i):
            return self.rows[i + 2][0]

    monkeypatch.setattr(dataloader_shipment, "MOST_COPIED", most_copied)
    monkeypatch.setattr(
        dataloader_choice, "choose", lambda *_: dataloader_choice.Choice(kind="process", reason="")
    )
    with wrap(DataLoader(Rows(6), 3)) as loader:
        assert torch.cat(list(loader)).tolist() == list(range(2, 8))
        assert loader.workshop.choice.kind == "serial"


def test_a_structures_bytes_count_arrays_without_copying_them():
    base = structure_bytes(Samples(4))
    large = Samples(4)
    large.x, large.y = np.zeros(1 << 20), torch.zeros(1 << 20)
    assert 12 << 20 <= structure_bytes(large) < (12 << 20) + base + 1000


def test_the_first_batches_are_made_once_and_the_reason_is_logged(caplog):
    dataset = Counted(20)
    with wrap(DataLoader(dataset, 2)) as loader:
        assert torch.cat(list(loader))[:, 0].tolist() == list(range(20))
    assert dataset.asked == dict.fromkeys(range(20), 1)
    dataset = Samples(20)
    dataset.lock = threading.Lock()
    with caplog.at_level(logging.INFO, "intune"), wrap(DataLoader(dataset, 2)) as loader:
        assert torch.cat(list(loader))[:, 0].tolist() == list(range(20))
        assert loader.allocation.as_dict() == {"fetch": 1, "collate": 2}  # cannot be copied: one at a time
    assert (
        "batches are made in one thread at a time: the dataset holds, or its code in the script refers to, what"
        in caplog.text
    )
    caplog.clear()
    with caplog.at_level(logging.INFO, "intune"), wrap(DataLoader(Slow(12, 0.05), 3)) as loader:
        assert loader.workshop.choice is None
        assert len(list(loader)) == 4
        assert loader.workshop.choice.kind == "thread"
    assert len([record for record in caplog.records if "batches are made in threads" in record.message]) == 1
    assert "of which it waits" in caplog.text


@pytest.fixture
def worth_sending(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches count as dear enough to be made in a process, however quickly they are made."""
    monkeypatch.setattr(dataloader_choice, "WORTH_SENDING_S", 0.0)


@pytest.mark.usefixtures("worth_sending")
def test_batches_that_cannot_be_sent_are_made_in_this_process():
    def collate(samples):
        return torch.rand(()), threading.Lock()

    with wrap(DataLoader(Samples(8), 2, collate_fn=collate)) as loader:
        assert len(list(loader)) == 4
        assert loader.workshop.choice.kind == "here"  # where it may draw random numbers
        assert "a batch cannot be sent from a process to another: TypeError: cannot pickle" in (
            loader.workshop.choice.reason
        )
    model = torch.nn.Linear(1, 1, bias=False)

    def through(samples):
        return model(torch.stack(samples)[:, :1].float()) + torch.rand(())

    with wrap(DataLoader(Samples(8), 2, collate_fn=through)) as loader:
        for batch in loader:
            batch.sum().backward()
        assert (
            "a batch cannot be sent from a process to another: PicklingError" in loader.workshop.choice.reason
        )
    assert model.weight.grad.item() == sum(range(8))  # also of the later batches


def seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)


def test_cheap_batches_with_random_numbers_are_those_of_the_dataloader(monkeypatch):
    """In a process they would have other numbers, and take longer."""
    monkeypatch.setattr(dataloader_choice, "WORTH_SENDING_S", 10.0)  # however busy the machine is
    for dataset in (Noisy(8), Samples(8)):
        plain = DataLoader(dataset, 2, shuffle=True)
        seed_all(5)
        expected = [(batch.tolist(), torch.rand(()).item()) for _ in range(2) for batch in plain]
        seed_all(5)
        with wrap(plain) as loader:
            found = [(batch.tolist(), torch.rand(()).item()) for _ in range(2) for batch in loader]
            assert loader.workshop.choice.kind == ("here" if isinstance(dataset, Noisy) else "thread")
        assert found == expected


@pytest.mark.usefixtures("worth_sending")
def test_code_that_draws_random_numbers_goes_to_processes_and_so_does_one_that_opens_files(tmp_path):
    with wrap(DataLoader(Noisy(8), 2)) as loader:
        next(iter(loader))
        assert loader.workshop.choice.kind == "process"
    path = tmp_path / "numbers"
    path.write_bytes(np.arange(50, dtype="<i8").tobytes())
    dataset = OpensLate(50, str(path))
    try:
        dataloader = DataLoader(dataset, 5, num_workers=1, persistent_workers=True)
        with wrap(dataloader, budget=BUDGET) as loader:
            assert torch.cat(list(loader)).tolist() == list(range(50))
            assert loader.workshop.choice.kind == "process"
            assert torch.cat(list(loader)).tolist() == list(range(50))
    finally:
        dataset.close()


class Reseeds(Samples):
    """Draws the sample's own numbers and puts the generator back, as torchvision's `FakeData`."""

    def __getitem__(self, i):
        state = torch.get_rng_state()
        torch.manual_seed(i)
        drawn = torch.rand(())
        torch.set_rng_state(state)
        return drawn


def test_code_that_draws_and_leaves_no_trace_of_it_is_not_run_in_two_threads_to_see_how_fast_they_are(
    monkeypatch,
):
    """A sample of the third or fourth batch had another's numbers, once in some runs."""
    monkeypatch.setattr(dataloader_probe, "WORTH_SENDING_S", 0.0)
    monkeypatch.setattr(FirstBatches, "_tried", lambda self, choice, trial, **what: choice)
    asked = []
    monkeypatch.setattr(Probe, "_at_once", lambda self, items: asked.extend(items) or [(0.0, 1.0, 1.0)] * 2)
    for num_workers in (0, 2):
        with wrap(DataLoader(Reseeds(16), 2, num_workers=num_workers)) as loader:
            items = (Item(n, 2, index=[2 * n, 2 * n + 1]) for n in range(8))
            loader.workshop.decide(items, EpochSeed(0), held=lambda: False)
            assert not asked
            assert DRAWS in loader.workshop.choice.reason


def test_loops_that_begin_at_once_in_two_threads_choose_once(caplog):
    begun, waits, alone = threading.Event(), threading.Event(), []

    class Blocks(Samples):
        def __getitem__(self, i):
            alone.append(threading.get_ident())
            begun.set()
            assert waits.wait(60)
            return super().__getitem__(i)

    class Noted:
        """The lock of it, which notes that a second thread waits."""

        def __init__(self, lock):
            self.lock = lock

        def __enter__(self):
            if begun.is_set():
                waits.set()
            self.lock.acquire()

        def __exit__(self, *_):
            self.lock.release()

    plain, found = DataLoader(Blocks(12), 3), []
    with caplog.at_level(logging.INFO, "intune"), wrap(plain) as loader:
        loader.workshop.deciding = Noted(loader.workshop.deciding)
        threads = [threading.Thread(target=lambda: found.append(list(loader))) for _ in range(2)]
        threads[0].start()
        assert begun.wait(60)
        threads[1].start()
        for thread in threads:
            thread.join(60)
    assert len(found) == 2
    for batches in found:
        assert_same(batches, plain)
    assert len([record for record in caplog.records if "batches are made in" in record.message]) == 1
    assert set(alone[:3]) == {threads[0].ident}
