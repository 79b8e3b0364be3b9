"""The same batches as the DataLoader, in the same order, whatever is resized, left early or begun again."""

import itertools
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import (
    DataLoader,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from intune.adapters import TunableDataLoader
from intune.envs.tunable import check_tunable, reads_resident
from intune.pipelines import Allocation
from intune.pipelines.budget import Usable
from intune.pipelines.errors import ConfigError
from tests.intune.adapters.dataloader.common import BUDGET, assert_same, wrap
from tests.intune.adapters.dataloader.datasets import (
    Counted,
    Epochs,
    ManyAtOnce,
    NoLength,
    Samples,
    Stream,
    collate_varied,
)

# ---- generated configurations --------------------------------------------------------------------------------


def sampling(kind, size, seed):
    """Arguments of a DataLoader, made anew for each, and the generator that they share."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "sequential":
        return {}
    if kind == "shuffle":
        return {"shuffle": True}
    if kind == "generator":
        return {"shuffle": True, "generator": generator}
    if kind == "replacement":
        sampler = RandomSampler(range(size), replacement=True, num_samples=size + 3, generator=generator)
        return {"sampler": sampler, "generator": generator}
    if kind == "weighted":
        weights = np.arange(1, size + 1).tolist()
        return {"sampler": WeightedRandomSampler(weights, size, generator=generator)}
    if kind == "subset":
        return {"sampler": SubsetRandomSampler(list(range(0, size, 2)), generator=generator)}
    return {"sampler": NoLength(list(range(size))[::-1])}


@st.composite
def loaders(draw):
    """A function that makes a DataLoader, the same every time."""
    size, seed = draw(st.integers(1, 40)), draw(st.integers(0, 9))
    kind = draw(st.sampled_from(["tensor", "tuple", "dict", "namedtuple", "string", "varied"]))
    cls = draw(st.sampled_from([Samples, ManyAtOnce]))
    options = {}
    if draw(st.integers(0, 4)) == 0:
        cut = sorted(draw(st.sets(st.integers(0, size), max_size=6)))
        order = np.random.default_rng(seed).permutation(size).tolist()
        parts = [order[a:b] for a, b in itertools.pairwise([0, *cut, size]) if b > a]
        options = {"batch_sampler": parts}
        how = "sequential"
    else:
        how = draw(
            st.sampled_from(
                ["sequential", "shuffle", "generator", "replacement", "weighted", "subset", "no length"]
            )
        )
        options["batch_size"] = draw(st.one_of(st.none(), st.integers(1, 9)))
        if options["batch_size"] is not None:
            options["drop_last"] = draw(st.booleans())
    if kind == "varied" and options.get("batch_size", 1) is not None:
        options["collate_fn"] = collate_varied
    return lambda: DataLoader(cls(size, kind), **options, **sampling(how, size, seed))


def slots():
    return st.one_of(
        st.builds(Allocation.shared, st.integers(1, 6)),
        st.fixed_dictionaries({"fetch": st.integers(1, 5)}, optional={"collate": st.integers(1, 3)}),
    )


@settings(max_examples=60)
@given(
    make=loaders(),
    workers=st.sampled_from(["auto", "thread"]),
    sizes=st.lists(slots(), max_size=8),
    leave=st.lists(st.integers(0, 12), max_size=2),
    seed=st.integers(0, 99),
)
def test_batches_are_the_dataloaders_under_resizes_and_when_left_early(make, workers, sizes, leave, seed):
    torch.manual_seed(seed)
    plain = make()
    expected = [list(itertools.islice(plain, count)) for count in (*leave, None, None)]
    after = torch.get_rng_state()
    torch.manual_seed(seed)
    with wrap(make(), workers=workers, allocation=sizes[0] if sizes else None) as loader:
        change = itertools.cycle(sizes or [Allocation.shared(2)])
        for epoch, count in enumerate((*leave, None, None)):
            made = []
            for batch in itertools.islice(loader, count):
                made.append(batch)
                loader.resize(next(change))
            assert_same(made, expected[epoch])
    assert torch.equal(torch.get_rng_state(), after)
    if plain.generator is not None:
        assert torch.equal(loader.generator.get_state(), plain.generator.get_state())


def test_as_many_as_are_read_ahead_are_drawn_as_with_workers():
    """Where a loop is left early, the next one begins where the generator would be after real workers."""

    def make():
        generator = torch.Generator().manual_seed(1)
        sampler = RandomSampler(range(200), replacement=True, num_samples=200, generator=generator)
        return DataLoader(Samples(200), 5, sampler=sampler, generator=generator, num_workers=2)

    plain = make()
    expected = [list(itertools.islice(plain, count)) for count in (3, None, 7, None)]
    with wrap(make(), workers="thread") as loader:
        for count, batches in zip((3, None, 7, None), expected, strict=True):
            assert_same(itertools.islice(loader, count), batches)


@pytest.mark.parametrize("persistent", [False, True])
def test_seeds_are_drawn_as_by_workers_that_persist_or_do_not(persistent):
    def make():
        return DataLoader(
            Samples(30),
            4,
            shuffle=True,
            generator=torch.Generator().manual_seed(2),
            num_workers=1,
            persistent_workers=persistent,
        )

    plain = make()
    expected = [list(plain) for _ in range(3)]
    with wrap(make(), workers="thread") as loader:
        for batches in expected:
            assert_same(loader, batches)
        assert torch.equal(loader.generator.get_state(), plain.generator.get_state())


# ---- resizing ------------------------------------------------------------------------------------------------


def test_every_sample_is_fetched_once_while_another_thread_resizes():
    dataset = Counted(400)
    stop = threading.Event()
    with wrap(DataLoader(dataset, 3, shuffle=True), workers="thread") as loader:

        def resize():
            for number in itertools.count():
                if stop.is_set():
                    return
                loader.resize({"fetch": 1 + number % 7, "collate": 1 + number % 3})
                loader.stats()

        thread = threading.Thread(target=resize)
        thread.start()
        try:
            seen = torch.cat([batch[:, 0] for batch in loader])
        finally:
            stop.set()
            thread.join()
    assert sorted(seen.tolist()) == list(range(400))
    assert dataset.asked == dict.fromkeys(range(400), 1)


def test_slots_decide_how_many_fetch_at_once():
    busy, most, lock = 0, 0, threading.Lock()
    together = threading.Barrier(5)

    class Meeting(Samples):
        def __getitem__(self, i):
            nonlocal busy, most
            with lock:
                busy += 1
                most = max(most, busy)
            if 20 <= i < 40:
                together.wait(60)  # only passes if five are here at once
            with lock:
                busy -= 1
            return super().__getitem__(i)

    with wrap(DataLoader(Meeting(60), 1), workers="thread", allocation={"fetch": 1, "collate": 1}) as loader:
        for number, _ in enumerate(loader):
            if number == 5:
                assert most == 1
                loader.resize({"fetch": 5})
    assert most == 5


def test_an_iterables_fetch_slots_are_capped_by_its_iterators():
    with wrap(DataLoader(Stream((7,)), 2), allocation=Allocation.shared(6)) as loader:
        assert loader.allocation.as_dict() == {"fetch": 1, "collate": 6}
        loader.resize({"fetch": 9, "collate": 2})
        assert loader.allocation.as_dict() == {"fetch": 1, "collate": 2}
        assert len(list(loader)) == 4


def test_wrong_allocations_are_refused():
    with wrap(DataLoader(Samples(4))) as loader:
        with pytest.raises(
            ConfigError, match="no stage 'fetsh'; the pipeline has fetch, collate; did you mean"
        ):
            loader.resize({"fetsh": 1})
        with pytest.raises(ConfigError, match="slots of 'fetch'=0"):
            loader.resize({"fetch": 0})
        assert len(list(loader)) == 4


# ---- iterable-style ------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    length=st.integers(0, 25),
    size=st.one_of(st.none(), st.integers(1, 6)),
    drop_last=st.booleans(),
    kind=st.sampled_from(["tensor", "dict", "string"]),
    leave=st.integers(0, 9),
    slots=st.integers(1, 4),
)
def test_one_iterator_in_this_process_gives_the_dataloaders_batches(
    length, size, drop_last, kind, leave, slots
):
    def make():
        return DataLoader(Stream((length,), kind), size, drop_last=drop_last and size is not None)

    plain = make()
    expected = [list(itertools.islice(plain, leave)), list(plain), list(plain)]
    with wrap(make(), allocation=Allocation.shared(slots)) as loader:
        for count, batches in zip((leave, None, None), expected, strict=True):
            assert_same(itertools.islice(loader, count), batches)
            loader.resize({"collate": slots})


def test_an_endless_iterable_is_read_no_further_than_is_wanted():
    class Endless(Stream):
        given = 0

        def __iter__(self):
            while True:
                Endless.given += 1
                yield torch.tensor(Endless.given)

    with wrap(DataLoader(Endless(), 2), allocation=Allocation.shared(2)) as loader:
        batches = list(itertools.islice(loader, 100))
    assert torch.cat(batches).tolist() == list(range(1, 201))
    assert Endless.given <= 2 * 100 + 2 * 2 * (2 + 3 + 1)


# ---- loops ---------------------------------------------------------------------------------------------------


def test_loops_over_one_loader_may_be_nested_and_share_the_budget():
    with wrap(DataLoader(Samples(12), 3), workers="thread") as loader:
        pairs = [(outer[0, 0].item(), inner[0, 0].item()) for outer in loader for inner in loader]
        assert pairs == [(a, b) for a in range(0, 12, 3) for b in range(0, 12, 3)]
        outer = iter(loader)
        next(outer)
        inner = iter(loader)
        next(inner)
        assert loader.share() == BUDGET.memory // 2
        inner.close()
        assert loader.share() == BUDGET.memory
        assert len(list(outer)) == 3


def test_loops_over_one_iterable_may_be_nested():
    with wrap(DataLoader(Stream((6,)), 2), allocation=Allocation.shared(2)) as loader:
        pairs = [(outer[0, 0].item(), inner[0, 0].item()) for outer in loader for inner in loader]
        assert pairs == [(a, b) for a in (0, 2, 4) for b in (0, 2, 4)]


def test_two_loaders_in_one_process_do_not_meet():
    with (
        wrap(DataLoader(Samples(40), 3, shuffle=True, generator=torch.Generator().manual_seed(1))) as one,
        wrap(DataLoader(Samples(40), 3)) as other,
    ):
        pairs = list(zip(one, other, strict=True))
    plain = DataLoader(Samples(40), 3, shuffle=True, generator=torch.Generator().manual_seed(1))
    assert_same([pair[0] for pair in pairs], plain)
    assert_same([pair[1] for pair in pairs], DataLoader(Samples(40), 3))


def test_an_epoch_of_more_batches_than_are_planned_at_once(monkeypatch):
    monkeypatch.setattr("intune.adapters.dataloader.in_flight.SEGMENT", 5)
    with wrap(DataLoader(Samples(67), 3, shuffle=True, generator=torch.Generator().manual_seed(4))) as loader:
        plain = DataLoader(Samples(67), 3, shuffle=True, generator=torch.Generator().manual_seed(4))
        for _ in range(2):
            assert_same(loader, plain)


def test_batches_out_of_order_come_each_once():
    dataloader = DataLoader(Samples(80), 2, num_workers=2, in_order=False)
    with wrap(dataloader, workers="thread", allocation={"fetch": 4}) as loader:
        seen = torch.cat([batch[:, 0] for batch in loader])
    assert sorted(seen.tolist()) == list(range(80))


def test_the_epoch_is_told_to_the_sampler_and_to_an_iterable():
    sampler = Epochs(10)
    with wrap(DataLoader(Samples(10), 4, sampler=sampler)) as loader:
        for epoch in (3, 0):
            loader.set_epoch(epoch)
            assert sampler.epoch == epoch
            order = torch.randperm(10, generator=torch.Generator().manual_seed(epoch))
            assert torch.cat([batch[:, 0] for batch in loader]).tolist() == order.tolist()
            assert loader.epoch == epoch + 1
        with pytest.raises(ConfigError, match="`epoch`=-1"):
            loader.set_epoch(-1)
    stream = Stream((3,))
    with wrap(DataLoader(stream, 3)) as loader:
        loader.set_epoch(2)
        assert next(iter(loader))[0, 0].item() == 200_000


def test_it_looks_like_the_dataloader_it_was_made_of():
    plain = DataLoader(Samples(10), 4, drop_last=True, generator=torch.Generator())
    with wrap(plain) as loader:
        for name in ("dataset", "batch_size", "sampler", "batch_sampler", "num_workers", "collate_fn"):
            assert getattr(loader, name) is getattr(plain, name)
        assert (loader.drop_last, loader.pin_memory, len(loader)) == (True, False, 2)
        assert not hasattr(loader, "nothing")
        assert loader.stages == ("fetch", "collate")


def test_batches_are_pinned_on_the_trainers_device_where_the_dataloader_pins(monkeypatch):
    from intune.adapters.dataloader import in_flight as dataloader_in_flight
    from intune.adapters.dataloader import settings as dataloader_settings
    from intune.adapters.dataloader import tasks as dataloader_tasks

    pinned, lock = [], threading.Lock()

    def pin(batch, device):
        with lock:
            pinned.append(device)
        return batch + 1000

    monkeypatch.setattr(dataloader_settings, "pinning_device", lambda: "cuda")
    monkeypatch.setattr(dataloader_in_flight, "current_device", lambda: 3)
    monkeypatch.setattr(dataloader_tasks, "pinned", pin)
    with wrap(DataLoader(Samples(20), 4, pin_memory=True), workers="thread") as loader:
        assert loader.stages == ("fetch", "collate", "transfer")
        loader.resize({"transfer": 1})
        assert torch.cat(list(loader))[:, 0].tolist() == list(range(1000, 1020))
        assert pinned == [3] * 5
        assert loader.stats().stage("transfer").tasks == 5


def test_it_is_what_a_tuner_can_drive():
    with wrap(DataLoader(Samples(60), 4), workers="thread") as loader:
        assert check_tunable(loader) is loader
        assert reads_resident(loader)
        before = loader.stats()
        loop = iter(loader)
        for _ in range(10):
            next(loop)
        loader.resize(Allocation.per_stage({"fetch": 3, "collate": 2}, memory=1 << 20))
        next(loop)
        now = loader.stats(resident=True)
        assert now.allocation.as_dict() == {"fetch": 3, "collate": 2}
        assert now.memory_limit <= 1 << 20
        assert now.memory_resident > 1 << 20
        difference = now.since(before)
        assert (now.epoch, now.batch, difference.batches, difference.rows) == (0, 11, 11, 44)
        assert difference.stage("fetch").tasks >= difference.stage("collate").tasks >= 11
        assert difference.stage("collate").busy_s > 0
        assert difference.elapsed_s >= difference.wait_s + difference.step_s - 1e-6
        assert len(list(loop)) == 4
        assert loader.stats().stage("fetch").rows == 60


def test_what_is_counted_never_falls_while_a_loop_ends():
    with wrap(DataLoader(Samples(40), 4), workers="thread") as loader:
        loop = iter(loader)
        for _ in range(5):
            next(loop)
        seen = [loader.stats()]
        stop = loop.in_flight.stop

        def stop_and_look():
            seen.append(loader.stats())  # as a tuner's thread may at any time
            stop()
            seen.append(loader.stats())

        loop.in_flight.stop = stop_and_look
        loop.close()
        seen.append(loader.stats())
    assert len(seen) == 4
    for before, after in itertools.pairwise(seen):
        assert after.elapsed_s >= before.elapsed_s
        assert after.memory_peak >= before.memory_peak
        for stage in ("fetch", "collate"):
            assert after.stage(stage).tasks >= before.stage(stage).tasks > 0


def test_by_default_it_may_use_what_this_machine_has_whatever_ray_has_elsewhere(monkeypatch):
    class Ray:
        """Of a cluster of two nodes."""

        def is_initialized(self):
            return True

        def nodes(self):
            return [{"Alive": True, "Resources": {"CPU": 5000.0, "memory": 1e12}}] * 2

        def cluster_resources(self):
            return {"CPU": 10_000.0, "memory": 1e12}

    expected = Usable.detect(modules={}).cpus
    monkeypatch.setitem(sys.modules, "ray", Ray())
    assert Usable.detect().cpus == 10_000
    with TunableDataLoader.wrap(DataLoader(Samples(4))) as loader:
        assert loader.budget.cpus == expected


def test_rows_are_counted_of_batches_that_differ():
    batches = [[0], [1, 2, 3], list(range(4, 30)), [30]]
    with wrap(DataLoader(Samples(31), batch_sampler=batches), workers="thread") as loader:
        assert [len(batch) for batch in loader] == [1, 3, 26, 1]
        stats = loader.stats()
        assert (stats.rows, stats.stage("fetch").rows, stats.stage("collate").rows) == (31, 31, 31)


def test_an_empty_dataset_gives_no_batch():
    with wrap(DataLoader(TensorDataset(torch.zeros(0)), 4)) as loader:
        assert list(loader) == []
        assert list(loader) == []


def test_it_tells_the_least_memory_that_was_left():
    with wrap(DataLoader(Samples(64), 4), workers="thread") as tuned:
        assert tuned.least_left(60.0) is None
        stream = iter(tuned)
        next(stream)
        left = tuned.least_left(60.0)
        assert left is None or left > 0  # where the system does not say
        del stream
