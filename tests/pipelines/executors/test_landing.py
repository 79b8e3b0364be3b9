"""Segments that another process lays outputs into: reached, filled, used again, never while someone has them."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from intune.pipelines.executors import landing
from intune.pipelines.executors.landing import Landings, Place, Probe, Reached
from intune.pipelines.executors.packing import pack, unpack

pytestmark = pytest.mark.skipif(
    not os.path.isdir("/proc/self/fd"), reason="segments are reached by way of /proc"
)


@pytest.fixture
def landings():
    made = Landings()
    yield made
    made.close()


def send(landings: Landings, reached: Reached, value):
    place = landings.reserve()
    packed, lay = pack(value)
    reached.lay(place, packed, lay)
    memory = landings.take(place, packed.size)
    return place, unpack(packed, memory, apart=landings.crowded)


def test_another_process_lays_columns_into_a_segment(landings):
    place = landings.reserve()
    code = (
        "import sys, pickle, numpy as np\n"
        "from intune.pipelines.executors.landing import Place, Reached\n"
        "from intune.pipelines.executors.packing import pack\n"
        "packed, lay = pack({'a': np.arange(1000), 'b': np.ones((7, 3), np.float32)})\n"
        "Reached().lay(Place(*map(int, sys.argv[1:])), packed, lay)\n"
        "sys.stdout.buffer.write(pickle.dumps(packed))\n"
    )
    arguments = [str(part) for part in (place.pid, place.number, place.descriptor)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, check=True)
    import pickle

    packed = pickle.loads(done.stdout)
    made = unpack(packed, landings.take(place, packed.size))
    assert np.array_equal(made["a"], np.arange(1000))
    assert np.array_equal(made["b"], np.ones((7, 3), np.float32))
    made["a"] += 1  # a batch is its consumer's own
    assert made["a"][-1] == 1000


def test_a_segment_is_used_again_once_the_last_view_is_gone(landings):
    reached = Reached()
    first, made = send(landings, reached, {"x": np.arange(10_000)})
    second, other = send(landings, reached, {"x": np.arange(10_000) * 2})
    assert second.number != first.number
    assert np.array_equal(made["x"], np.arange(10_000))
    part = made["x"][5:9]
    del made
    third, more = send(landings, reached, {"x": np.arange(10)})
    assert third.number not in (first.number, second.number)
    assert part.tolist() == [5, 6, 7, 8]
    del part
    again, _ = send(landings, reached, {"x": np.arange(100_000)})  # larger than it was
    assert again.number == first.number
    assert np.array_equal(other["x"], np.arange(10_000) * 2)
    assert more["x"].tolist() == list(range(10))


def test_outputs_that_a_trainer_keeps_cost_few_descriptors(landings, monkeypatch):
    """Once, a loop that kept the labels of a long evaluation ended with too many open files."""
    monkeypatch.setattr(landing, "MOST_LENT", 3)
    reached = Reached()
    kept = [send(landings, reached, {"x": np.full(1000, number)}) for number in range(20)]
    assert len({place.number for place, _ in kept}) <= 4
    assert [int(made["x"][0]) for _, made in kept] == list(range(20))


def test_a_reserved_segment_is_nobody_elses_and_one_that_may_still_be_written_is_never_used_again(landings):
    first, second = landings.reserve(), landings.reserve()
    assert first.number != second.number
    landings.release(first)
    landings.abandon(second)
    numbers = {landings.reserve().number for _ in range(5)}
    assert first.number in numbers
    assert second.number not in numbers


def test_free_segments_beyond_a_few_give_their_memory_back(landings, monkeypatch):
    monkeypatch.setattr(landing, "KEPT", 2)
    reached = Reached()
    kept = [send(landings, reached, {"x": np.ones(50_000)}) for _ in range(6)]
    descriptors = [place.descriptor for place, _ in kept]
    sizes = [os.fstat(descriptor).st_size for descriptor in descriptors]
    assert min(sizes) >= 400_000
    held = [os.dup(descriptor) for descriptor in descriptors]  # as a worker has them
    kept.clear()
    landings.reserve()
    assert sorted(os.fstat(descriptor).st_size > 0 for descriptor in held) == [False] * 4 + [True] * 2
    for descriptor in held:
        os.close(descriptor)


def test_a_worker_knows_whether_it_reaches_the_trainers_segments(landings):
    probe, segment = landings.probe()
    reached = Reached()
    assert reached.finds(probe)
    assert not reached.finds(replace(probe, token=bytes(16)))  # another process of this number, elsewhere
    segment.close()
    assert not reached.finds(Probe(Place(os.getpid(), -1, 10**6), probe.token))


def test_a_worker_keeps_few_segments_open(landings, monkeypatch):
    monkeypatch.setattr(landing, "MOST_OPEN", 2)
    reached = Reached()
    made = [send(landings, reached, {"x": np.full(100, i)})[1] for i in range(5)]
    assert len(reached._open) == 2
    assert [int(block["x"].sum()) for block in made] == [0, 100, 200, 300, 400]


def test_another_process_of_the_same_number_has_a_pipe_there(landings):
    """As on another machine, where the descriptor may be anything."""
    probe, segment = landings.probe()
    read, write = os.pipe()
    try:
        assert Reached().finds(probe)
        assert not Reached().finds(Probe(replace(probe.place, descriptor=read), probe.token))
    finally:
        segment.close()
        os.close(read)
        os.close(write)
