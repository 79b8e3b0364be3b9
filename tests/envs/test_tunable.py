"""What a tuner knows of a pipeline, and a simulated job behind it."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from intune.adapters.dataloader.tunable import TunableDataLoader
from intune.envs.observer import Observer
from intune.envs.simulated_tunable import SimulatedTunable
from intune.envs.simulator import Simulator
from intune.envs.tunable import Tunable, check_tunable, reads_resident
from intune.pipelines import Allocation, Budget, Pipeline
from intune.pipelines.errors import ConfigError, LoaderError
from tests.envs.generated import rate_of
from tests.envs.one_job import Clock, a_job


def test_our_loader_a_wrapped_dataloader_and_a_simulated_job_are_tunable(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": np.arange(100)}), tmp_path / "a.parquet")
    budget = Budget(cpus=1, memory=1 << 28)
    wrapped = TunableDataLoader.wrap(DataLoader(TensorDataset(torch.arange(8))), budget=budget)
    with Pipeline.from_parquet(str(tmp_path)).batch(10).loader(executor="threads", budget=budget) as loader:
        for tunable in (loader, wrapped, SimulatedTunable(a_job(), clock=Clock())):
            assert isinstance(tunable, Tunable)
            assert check_tunable(tunable) is tunable
        assert reads_resident(loader)
    wrapped.close()


def test_what_is_not_tunable_is_refused_by_name_of_what_it_lacks() -> None:
    class Half:
        stages = ("load",)
        budget = None

    with pytest.raises(ConfigError, match="Half has no `stats`"):
        check_tunable(Half())
    job = SimulatedTunable(a_job(), clock=Clock())
    for stages in (("a", "a", "b"), None):
        job.stages = stages
        with pytest.raises(ConfigError, match="distinct"):
            check_tunable(job)
    job.budget = {"cpus": 2}
    with pytest.raises(ConfigError, match="of a SimulatedTunable must be an intune"):
        check_tunable(job)


def test_no_pool_is_given_to_stages_that_cannot_share_one() -> None:
    job = SimulatedTunable(a_job(), clock=Clock())
    job.pools = False  # type: ignore[attr-defined]
    observer = Observer(job, resources=job.resources)
    before = job.stats().allocation
    with pytest.raises(
        ConfigError, match=r"SimulatedTunable has `pools`=False, but a pool of 4 .* pools=False\)"
    ):
        observer.resize(Allocation.shared(4))
    assert job.stats().allocation == before
    for allocation in (Allocation.per_stage({"stage 1": 3}), {"stage 1": 2}):
        observer.resize(allocation)
    assert job.stats().allocation.of("stage 1") == 2


def test_a_simulated_job_runs_while_its_clock_runs_and_counts_what_the_simulator_measures() -> None:
    clock = Clock()
    job = SimulatedTunable(a_job(), stages=["load", "batch", "map"], clock=clock)
    assert job.stats().rows == 0
    job.resize({"load": 3})
    clock.wait(4.9)
    assert job.stats().rows == 0
    clock.wait(10.1)
    simulator = Simulator(a_job())
    simulator.allocate([[3.0, 1.0, 1.0]])
    intervals = [simulator.run() for _ in range(3)]
    stats = job.stats()
    assert stats.elapsed_s == 15.0
    assert stats.rows == int(sum(float(each.delivered[0]) for each in intervals) * 5.0)
    assert stats.stage("load").busy_s == pytest.approx(5 * sum(each.busy[0, 0] for each in intervals))
    assert stats.step_s + stats.wait_s == pytest.approx(15.0)
    assert stats.memory_resident == int(intervals[-1].memory_used[0])


def test_new_slots_make_a_simulated_job_faster_and_pools_are_understood() -> None:
    clock = Clock()
    job = SimulatedTunable(a_job(), clock=clock, tick=1.0)
    rates = []
    for allocation in ({"stage 1": 3, "stage 3": 3}, Allocation.shared(6)):
        job.resize(allocation)
        clock.wait(20.0)
        before = job.stats()
        clock.wait(10.0)
        rates.append(job.stats().since(before).rows / 10.0)
    wanted = [rate_of(a_job(), [[3.0, 1.0, 3.0]])[0], rate_of(a_job(), [[6.0] * 3], pool=[6.0])[0]]
    assert rates == pytest.approx(wanted, rel=0.01)
    assert job.stats().allocation == Allocation.shared(6)


def test_a_simulated_job_that_runs_out_of_memory_starts_again_and_says_so() -> None:
    clock = Clock()
    job = SimulatedTunable(a_job(memory=1.2e9), clock=clock)
    job.resize({"stage 1": 8})
    clock.wait(5.0)
    stats = job.stats()
    assert stats.workers_lost == 1
    assert stats.allocation.as_dict() == {"stage 1": 1, "stage 2": 1, "stage 3": 1}


def test_a_closed_simulated_job_and_wrong_names_are_errors() -> None:
    with pytest.raises(ConfigError, match="2 names"):
        SimulatedTunable(a_job(), stages=["a", "b"], clock=Clock())
    with pytest.raises(ConfigError, match="tick"):
        SimulatedTunable(a_job(), tick=0.0, clock=Clock())
    job = SimulatedTunable(a_job(), clock=Clock())
    with pytest.raises(ConfigError, match="no stage 'x'"):
        job.resize({"x": 1})
    job.close()
    with pytest.raises(LoaderError, match="closed"):
        job.stats()
    with pytest.raises(LoaderError, match="closed"):
        job.resize({"stage 1": 2})
