from __future__ import annotations

import json
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intune.envs import scenario_fields
from intune.envs.conditions import channels, record
from intune.envs.jobs import ABSENT_WAIT, Jobs
from intune.envs.scenario import BUILT_IN, Scenario
from intune.envs.simulator import Simulator
from intune.pipelines.errors import ConfigError, NotFoundError
from tests.envs.generated import survives

FAMILIES = (
    "criteo", "drift", "elastic", "heavy-transform", "memory-tight", "multi-node", "paper", "remote-storage",
    "trainer-bound", "wide",
)  # fmt: skip

SMALL: dict[str, Any] = {
    "name": "small",
    "job": {"slots_per_cpu": 1.0},
    "nodes": [{"cpus": 8, "memory": 1e9}],
    "stage": [{"name": "load", "cpu": 1e-6}, {"name": "work", "cpu": 3e-6}],
}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def made(**changes: Any) -> Scenario:
    return Scenario.parse({**SMALL, **changes})


def drawn(count: int = 1, **changes: Any) -> Jobs:
    return made(**changes).draw(rng(), count)


def two(load: dict[str, Any], work: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"name": "load", "cpu": 1e-6, **load}, {"name": "work", "cpu": 3e-6, **work}]


def one_slot(jobs: Jobs) -> np.ndarray:
    return np.where(jobs.present, 1.0, 0.0)


# The built-in families.


def test_these_families_come_with_the_package() -> None:
    assert Scenario.names() == FAMILIES


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_draws_valid_jobs_of_fixed_widths(name: str) -> None:
    scenario = Scenario.load(name)
    assert scenario.name == name
    assert len(scenario.description) > 20
    assert len(scenario.stage_names) == scenario.max_stages
    for count in (1, 300):
        jobs = scenario.draw(rng(count), count)
        jobs.check()
        assert jobs.present.shape == (count, scenario.max_stages)
        assert jobs.cpus.shape == (count, scenario.max_nodes)
        assert jobs.event_time.shape == (count, scenario.max_events)
        assert (jobs.event_time[:, 1:] >= jobs.event_time[:, :-1]).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_one_slot_a_stage_is_feasible_in_every_job_through_a_whole_episode(name: str) -> None:
    jobs = Scenario.load(name).draw(rng(1), 200)
    steps = 64
    normals = rng(2).standard_normal((len(jobs), steps, channels(jobs.stages)), dtype=np.float32)
    simulator = Simulator(jobs, record(jobs, normals))
    simulator.allocate(one_slot(jobs))
    rows = np.zeros(len(jobs))
    for _ in range(steps):
        measured = simulator.run()
        assert not measured.killed.any()
        rows += measured.delivered
    assert (rows > 0).all()


def even(jobs: Jobs) -> np.ndarray:
    each = np.maximum(jobs.limit // jobs.present.sum(axis=1), 1)[:, None]
    return np.where(jobs.present, each, 0.0)


def proportional(jobs: Jobs) -> np.ndarray:
    seconds = np.where(jobs.present, jobs.cpu + jobs.wait, 0.0)
    wanted = np.floor(seconds / seconds.sum(axis=1, keepdims=True) * jobs.limit[:, None])
    return np.where(jobs.present, np.maximum(wanted, 1.0), 0.0)


def test_giving_out_all_slots_runs_out_of_memory_where_memory_is_tight_and_sometimes_elsewhere() -> None:
    killed = {}
    for name in FAMILIES:
        jobs = Scenario.load(name).draw(rng(3), 400)
        killed[name] = (1 - survives(jobs, proportional(jobs)).mean(), 1 - survives(jobs, even(jobs)).mean())
    assert killed["memory-tight"][0] > 0.5
    assert killed["memory-tight"][1] > 0.2
    for name in ("paper", "heavy-transform", "multi-node"):
        assert 0.02 < killed[name][0] < 0.3, name
    assert killed["criteo"][0] < 0.05


def test_the_trainer_is_the_limit_only_where_it_should_be() -> None:
    for name, at_least, at_most in (("trainer-bound", 0.9, 1.0), ("paper", 0.0, 0.4)):
        jobs = Scenario.load(name).draw(rng(4), 300)
        simulator = Simulator(jobs, steps=1)
        simulator.allocate(proportional(jobs))
        for _ in range(20):
            measured = simulator.run()
        held = (measured.delivered * jobs.step > 0.97)[~measured.killed].mean()
        assert at_least <= held <= at_most, name


def test_criteo_is_near_what_was_measured() -> None:
    jobs = Scenario.load("criteo").draw(rng(5), 2000)
    speed = np.median(jobs.cpu, axis=0)  # of a core 1.3 times as fast as the one measured
    np.testing.assert_allclose(speed[[0, 1, 3]] * 1.3, [0.27e-6, 0.15e-6, 0.2e-6], rtol=0.05)
    assert jobs.row_bytes[:, 0].mean() == pytest.approx(265, rel=0.02)


def test_paper_has_up_to_128_cpus_and_is_resized_several_times() -> None:
    jobs = Scenario.load("paper").draw(rng(6), 1000)
    sizes = jobs.cpus * np.maximum(jobs.event_cpus.max(axis=1, keepdims=True), 1.0)
    assert sizes.max() == 128
    assert jobs.cpus.min() >= 16
    times = np.isfinite(jobs.event_time).sum(axis=1)
    assert set(times) == {2, 3, 4, 5}
    assert Scenario.load("paper").stage_names == ("load", "shuffle", "batch", "transform", "transfer")


def test_wide_has_three_to_eight_stages_always_load_batch_and_transform() -> None:
    scenario = Scenario.load("wide")
    assert scenario.stage_names == tuple(f"stage {at}" for at in range(1, 9))
    jobs = scenario.draw(rng(7), 3000)
    counts = jobs.present.sum(axis=1)
    assert np.unique(counts).tolist() == [3, 4, 5, 6, 7, 8]
    assert (np.bincount(counts)[3:] > 400).all()
    assert (jobs.storage_bytes[:, 0] > 0).all()  # load, the only one that reads, is first
    assert (jobs.coherence > 0).sum(axis=1).tolist() == [1] * 3000  # transform, the only one with coherence
    assert (jobs.present[:, :-1] >= jobs.present[:, 1:]).all()
    assert (jobs.wait[~jobs.present] == ABSENT_WAIT).all()
    assert (jobs.row_bytes[~jobs.present] == 0).all()


def test_multi_node_has_two_to_four_nodes() -> None:
    jobs = Scenario.load("multi-node").draw(rng(8), 500)
    there = jobs.cpus > 0
    assert set(there.sum(axis=1)) == {2, 3, 4}
    assert (jobs.memory[~there] == 0).all()
    assert np.isfinite(jobs.nic).all()


def test_built_in_files_say_why() -> None:
    for name in FAMILIES:
        text = (BUILT_IN / f"{name}.toml").read_text(encoding="utf-8")
        assert sum(line.startswith("#") for line in text.splitlines()) >= 2, name


def test_a_scenario_of_which_some_jobs_can_run_is_one() -> None:
    jobs = drawn(64, stage=two({"slot_bytes": {"choice": [1e8, 2e9]}}, {}))
    assert set(survives(jobs, one_slot(jobs))) == {False, True}


# What a file means, worked by hand.


def test_the_same_generator_draws_the_same_jobs() -> None:
    scenario = Scenario.load("wide")
    first, again, other = (scenario.draw(rng(seed), 20) for seed in (1, 1, 2))
    for field in fields(Jobs):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(again, field.name))
    assert not np.array_equal(first.cpu, other.cpu)


def test_trainer_and_storage_are_stated_by_the_best_rate() -> None:
    # 8 CPUs as 2 + 6: min(2 / 1 us, 6 / 3 us) = 2M rows/s.
    jobs = drawn(job={"slots_per_cpu": 1.0, "step_relative": 2.0})
    assert jobs.step[0] == pytest.approx(2 / 2e6, rel=2e-3)
    # Half the bandwidth that 2M rows/s of 100 B take: 1M rows/s are left, and the trainer takes twice as long.
    job = {"slots_per_cpu": 1.0, "step_relative": 2.0, "storage_bandwidth_relative": 0.5}
    jobs = drawn(job=job, stage=two({"storage_bytes": 100.0}, {}))
    assert jobs.storage_bandwidth[0] == pytest.approx(1e8, rel=2e-3)
    assert jobs.step[0] == pytest.approx(2e-6, rel=2e-3)


def test_a_limit_of_what_is_not_used_is_none() -> None:
    jobs = drawn(job={"storage_rate_relative": 0.1, "nic_relative": 0.1, "memory_bandwidth_relative": 0.1})
    assert np.isinf([jobs.storage_rate[0], jobs.nic[0, 0], jobs.memory_bandwidth[0]]).all()


def test_memory_is_stated_by_what_the_best_allocation_takes() -> None:
    # 2 and 6 slots, each with one block of 1,000 rows x 100 B queued: 2 x (1 + 0.1) + 6 x (2 + 0.1) MB = 14.8 MB.
    block = {"row_bytes": 100.0, "block_rows": 1000.0, "queue_blocks": 1.0}
    jobs = drawn(
        job={"slots_per_cpu": 1.0, "memory_relative": 0.5, "base_bytes": 5e6},
        nodes=[{"cpus": 6}, {"cpus": 2}],
        stage=two({"slot_bytes": 1e6, **block}, {"slot_bytes": 2e6, **block}),
    )
    # Half of that, three quarters of it on the first node, which carries the base as well.
    np.testing.assert_allclose(jobs.memory, [[7.4e6 * 0.75 + 5e6, 7.4e6 * 0.25]])


def test_memory_floor_holds_one_slot_a_stage_at_the_smallest_size() -> None:
    block = {"row_bytes": 100.0, "block_rows": 1000.0, "queue_blocks": 2.0}
    jobs = drawn(
        job={"memory_floor": 1.5, "base_bytes": 5e6, "memory_noise": 0.1},
        nodes=[{"cpus": 6, "memory": 1.0}, {"cpus": 2, "memory": 1e12}],
        stage=two({"slot_bytes": 1e6, **block}, {"slot_bytes": 2e6, **block}),
        events=[{"time": 5.0, "cpus": 0.5}, {"time": 9.0, "cpus": 2.0}],
    )
    takes = 3e6 * np.exp(0.4) + 2 * 0.2e6
    np.testing.assert_allclose(jobs.memory, [[(takes * 0.75 + 5e6) * 1.5 * 2, 1e12]])


def test_ties_speed_and_values_per_block() -> None:
    stage = two(
        {"block_rows": {"choice": [100, 1000]}, "row_bytes": 8.0, "slot_blocks": 2.0, "slot_bytes": 7.0},
        {
            "block_rows": {"of": "load.block_rows", "times": 3.0}, "wait_per_block": 0.5, "wait": 0.25,
            "requests_per_block": 6.0,
        },
    )  # fmt: skip
    jobs = drawn(50, stage=stage, job={"speed": {"uniform": [2.0, 4.0]}})
    rows = jobs.block_rows[:, 0]
    assert set(rows) == {100.0, 1000.0}
    np.testing.assert_allclose(jobs.block_rows[:, 1], 3 * rows)
    np.testing.assert_allclose(jobs.wait[:, 1], 0.25 + 0.5 / (3 * rows))
    np.testing.assert_allclose(jobs.storage_requests[:, 1], 6 / (3 * rows))
    np.testing.assert_allclose(jobs.slot_bytes[:, 0], 7 + 2 * rows * 8)
    np.testing.assert_allclose(jobs.cpu[:, 1] / jobs.cpu[:, 0], 3)
    assert jobs.cpu[:, 0].min() >= 0.25e-6
    assert jobs.cpu[:, 0].max() <= 0.5e-6


def test_a_tie_may_lead_to_whole_numbers_and_to_the_ends_of_its_range() -> None:
    stage = two(
        {"most_slots": {"choice": [2, 4]}, "contention": {"uniform": [0, 0.5]}},
        {
            "most_slots": {"of": "load.most_slots", "times": 0.5},
            "contention": {"of": "load.contention", "times": 2.0},
        },
    )
    jobs = drawn(50, stage=stage)
    assert set(jobs.most_slots[:, 1]) == {1.0, 2.0}
    assert jobs.contention[:, 1].max() <= 1.0


def test_a_variant_may_tie_what_the_file_does_not_and_the_other_way_round() -> None:
    stage = two({}, {"wait": {"of": "load.cpu"}})
    variant = [{"stage": {"work": {"wait": 5e-6}, "load": {"wait": {"of": "work.wait", "times": 2.0}}}}]
    jobs = drawn(3, stage=stage, variant=variant)
    np.testing.assert_allclose(jobs.wait, [[1e-5, 5e-6]] * 3)


def test_variants_differ_where_they_say_and_are_as_frequent_as_their_weight() -> None:
    variant = [
        {"name": "a", "weight": 3},
        {"name": "b", "weight": 1, "job": {"noise": 0.5}, "stage": {"work": {"cpu": 9e-6}}},
    ]
    jobs = drawn(4000, variant=variant, job={"noise": 0.1})
    heavy = jobs.noise == 0.5
    assert (jobs.cpu[heavy, 1] == 9e-6).all()
    assert (jobs.cpu[~heavy, 1] == 3e-6).all()
    assert (jobs.cpu[:, 0] == 1e-6).all()
    assert abs(heavy.mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 4000)


def test_events_at_random() -> None:
    events = {"count": {"integers": [0, 3]}, "first": 10.0, "gap": 5.0, "cpus": {"choice": [0.5, 2.0]}}
    jobs = drawn(200, events=events)
    for times, cpus, memory in zip(jobs.event_time, jobs.event_cpus, jobs.event_memory, strict=True):
        there = int(np.isfinite(times).sum())
        assert times[:there].tolist() == [10.0, 15.0, 20.0][:there]
        assert set(cpus[:there]) <= {0.5, 2.0}
        assert (cpus[there:] == 1).all()
        assert (memory == cpus).all()  # as CPUs, if nothing is said of it
    assert set(np.isfinite(jobs.event_time).sum(axis=1)) == {0, 1, 2, 3}


def test_events_in_their_place() -> None:
    jobs = drawn(events=[{"time": 3, "cpus": 0.5, "memory": 1.0}, {"time": 8, "cpus": 1.5}])
    assert jobs.event_time.tolist() == [[3.0, 8.0]]
    assert jobs.event_cpus.tolist() == [[0.5, 1.5]]
    assert jobs.event_memory.tolist() == [[1.0, 1.5]]


def test_memory_per_cpu() -> None:
    jobs = drawn(30, nodes=[{"cpus": {"choice": [2, 4]}, "memory_per_cpu": 3e9}])
    np.testing.assert_allclose(jobs.memory, jobs.cpus * 3e9)


# Files.


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_written_is_the_same_scenario(name: str, tmp_path: Path) -> None:
    scenario = Scenario.load(name)
    scenario.save(tmp_path / "again.toml")
    again = Scenario.load(tmp_path / "again.toml")
    assert again == scenario
    assert hash(again) == hash(scenario)
    np.testing.assert_array_equal(again.draw(rng(), 9).cpu, scenario.draw(rng(), 9).cpu)
    (tmp_path / "again.json").write_text(json.dumps(tomllib.loads(scenario.to_toml())))
    assert Scenario.load(tmp_path / "again.json") == scenario


@pytest.mark.parametrize("name", FAMILIES)
def test_one_job_makes_a_scenario_of_that_job(name: str) -> None:
    jobs = Scenario.load(name).draw(rng(9), 3)
    names = [f"s{at}" for at in range(int(jobs.present[1].sum()))]
    fixed = Scenario.from_jobs(jobs, name="fitted", stage_names=names, row=1, uncertainty={"s0.cpu": 0.1})
    assert fixed.stage_names == tuple(names)
    assert Scenario.parse(tomllib.loads(fixed.to_toml())) == fixed
    again = fixed.draw(rng(), 2).widened(
        stages=jobs.stages, nodes=jobs.cpus.shape[1], events=jobs.event_time.shape[1]
    )
    for field in fields(Jobs):
        np.testing.assert_array_equal(
            getattr(again, field.name)[1], getattr(jobs, field.name)[1], err_msg=field.name
        )


def test_uncertain_values_vary_as_far_as_the_file_says() -> None:
    fixed = made(uncertainty={"work.cpu": 0.2, "job.noise": 0.5}, job={"noise": 0.04})
    assert set(fixed.draw(rng(), 50).cpu[:, 1]) == {3e-6}
    jobs = fixed.uncertain().draw(rng(), 4000)
    assert np.median(jobs.cpu[:, 1]) == pytest.approx(3e-6, rel=0.02)
    assert jobs.cpu[:, 1].std() / 3e-6 == pytest.approx(0.2, rel=0.1)
    assert set(jobs.cpu[:, 0]) == {1e-6}
    assert jobs.noise.std() > 0.01


def test_uncertainty_does_not_leave_a_values_range() -> None:
    fixed = made(uncertainty={"work.contention": 3.0}, stage=two({}, {"contention": 0.9}))
    assert fixed.uncertain().draw(rng(), 2000).contention.max() <= 1.0


def test_a_path_that_is_no_scenario(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="`papre` is no scenario; give one of criteo, drift"):
        Scenario.load("papre")
    with pytest.raises(NotFoundError, match=r"none\.toml: no such scenario file"):
        Scenario.load(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match=r"must end in \.toml"):
        made().save(tmp_path / "x.yaml")


@pytest.mark.parametrize("kind", ["toml", "json"])
def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path, kind: str) -> None:
    """As Windows' editors write UTF-8: nobody can see what is wrong in line 1, column 1."""
    text = made().to_toml()
    path = tmp_path / f"marked.{kind}"
    path.write_text(json.dumps(tomllib.loads(text)) if kind == "json" else text, encoding="utf-8-sig")
    assert Scenario.load(path) == made()


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.toml", "", "is empty; a scenario needs"),
        ("a.toml", "stage = = 3", "is not TOML ("),
        ("a.json", "{", "is not JSON ("),
        ("a.json", "[]", "`the file`=[] must be a table"),
        (
            "a.json",
            '{"stage": [{"name": "x", "cpu": NaN}]}',
            "`x.cpu`: NaN is no value; give a number, 0 to 1000 (s/row)",
        ),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, text: str, says: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        Scenario.load(path)
    assert str(error.value).startswith(f"{path}: ")
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"jobs": {}}, "unknown field `jobs`; did you mean `job`?"),
        ({"job": {"nosie": 0.1}}, "unknown field `job.nosie`; did you mean `noise`?"),
        ({"job": {"zzz": 0.1}}, "unknown field `job.zzz`; known are step, "),
        ({"job": {"noise": 3}}, "`job.noise`=3, but must be 0 to 2 (log)"),
        ({"job": {"noise": -1}}, "`job.noise`=-1, but must be 0 to 2 (log)"),
        ({"job": {"noise": "much"}}, "`job.noise`: 'much' must be a number or a distribution"),
        ({"job": {"step": {"normal": [1, 1]}}}, "`job.step` is from -2 to 4, but must be 1e-15 to 1e+06 (s/row)"),
        ({"job": {"step": 1e-6, "step_relative": 1.0}}, "`step` and `step_relative` are both given"),
        ({"job": {"memory_relative": 1.0}}, "`nodes.memory` and `memory_relative` are both given"),
        ({"job": 3}, "`job`=3 must be a table"),
        ({"stage": []}, "`stage` is missing; a job needs one `[[stage]]`"),
        ({"stage": {"load": {}}}, "`stage`={'load': {}} must be a list of tables, each under `[[stage]]`"),
        ({"stage": [{"cpu": 1e-6}]}, "`stage[0].name`=None must be a text"),
        ({"stage": [{"name": "a", "cpu": 1}, {"name": "a", "cpu": 1}]}, "`stage[1].name`='a' is taken"),
        ({"stage": [{"name": "a"}]}, "`a` takes no time; give `cpu` or `wait` above 0"),
        ({"stage": [{"name": "a", "cpu": 1, "optional": 1}]}, "`stage[0].optional`=1 must be true or false"),
        ({"stage": [{"name": "a", "cpu": 1, "optional": True}]}, "`job.stages` is missing; with optional stages"),
        ({"stage": two({}, {"contention": 1.5})}, "`work.contention`=1.5, but must be 0 to 1 (share)"),
        ({"stage": two({}, {"most_slots": 2.5})}, "`work.most_slots`=2.5 must be whole numbers, 1 to 1e+06 (slots)"),
        ({"stage": two({}, {"wait": {"of": "laod.cpu"}})}, "`work.wait.of.laod.cpu`; did you mean `load.cpu`?"),
        (
            {"stage": two({"wait": {"of": "work.cpu"}}, {"wait": {"of": "load.wait"}})},
            "`work.wait` is tied to `load.wait`, which is tied itself",
        ),
        ({"stage": two({}, {"wait": {"of": "load.cpu", "times": -1}})}, "`work.wait.times`=-1, but must be 0 or more"),
        ({"job": {"stages": 3}}, "`job.stages` is from 3 to 3, but the tables in this file allow 2 to 2"),
        ({"job": {"nodes": {"integers": [1, 2]}}}, "`job.nodes` is from 1 to 2, but the tables in this file allow 1"),
        ({"nodes": []}, "`nodes` is missing"),
        ({"nodes": [{"memory": 1e9}]}, "`nodes[0].cpus` is missing; give 1 or more"),
        ({"nodes": [{"cpus": 0}]}, "`nodes[0].cpus`=0, but must be 1 to 1e+06 (CPUs)"),
        ({"nodes": [{"cpus": 2, "memory": 1, "memory_per_cpu": 1}]}, "has both `memory` and `memory_per_cpu`"),
        ({"nodes": [{"cpus": {"of": "job.step"}}]}, "`of` can be used in `[job]` and `[[stage]]` only"),
        ({"events": [{"cpus": 2.0}]}, "`events[0].time` must be a number or a distribution"),
        ({"events": [{"time": 5}, {"time": 4}]}, "`events[1].time`=4 may come before the one above it; give 5 or more"),
        ({"events": {"first": 3}}, "`events.count` must be a number or a distribution"),
        ({"events": {"count": 1}}, "`events.first` is missing"),
        ({"events": {"count": 2, "first": 1}}, "`events.gap` is missing"),
        ({"variant": [{"weight": 0}]}, "`variant[0].weight`=0 must be a number above 0"),
        ({"variant": [{"stage": {"wrok": {}}}]}, "unknown field `variant[0].stage.wrok`; did you mean `work`?"),
        ({"variant": [{"job": {"noise": 5}}]}, "`variant[0].job.noise`=5, but must be 0 to 2"),
        (
            {"variant": [{}, {"weight": 1e-3, "stage": {"work": {"cpu": 0.0}}}]},
            "`work` in `variant[1]` takes no time; give `cpu` or `wait` above 0",
        ),
        ({"stage": two({}, {"cpu": {"of": "load.wait"}})}, "`work` takes no time; give `cpu` or `wait` above 0"),
        (
            {"stage": two({"cpu": 1e-6}, {"cpu": {"of": "load.cpu"}}),
             "variant": [{"stage": {"load": {"cpu": 0.0, "wait": 1e-6}}}]},
            "`work` in `variant[0]` takes no time; give `cpu` or `wait` above 0",
        ),
        (
            {"stage": two({"block_rows": 65}, {"block_rows": {"of": "load.block_rows", "times": 1e-4}})},
            "`work.block_rows`=0.0065, as `times` x `load.block_rows`, but must be 1 to 1e+12 (rows)",
        ),
        (
            {"stage": two({}, {"row_bytes": {"of": "load.row_bytes", "times": {"choice": [1, 2e30]}}})},
            "`work.row_bytes` is from 160 to 3.2e+32, as `times` x `load.row_bytes`, but must be 0 to 1e+12 (bytes)",
        ),
        (
            {"stage": two({}, {"drift": {"of": "job.step", "times": 3e11}})},
            "`work.drift`=300, as `times` x `job.step`, but must be -1 to 1 (1/s)",
        ),
        (
            {"stage": two({"most_slots": 2}, {"most_slots": {"of": "load.most_slots", "times": 2.05}})},
            "`work.most_slots`=4.1, as `times` x `load.most_slots`, but must be whole numbers, 1 to 1e+06 (slots)",
        ),
        (
            {"stage": two({}, {"slot_bytes": {"of": "job.queue_bytes"}})},
            "`work.slot_bytes`=inf, as `times` x `job.queue_bytes`, but must be 0 to 1e+15 (bytes)",
        ),
        (
            {"stage": two({}, {"slot_bytes": {"of": "job.queue_bytes", "times": 0}})},
            "`work.slot_bytes` is from nan to nan, as `times` x `job.queue_bytes`, but must be 0 to 1e+15",
        ),
        (
            {"stage": two({}, {"block_rows": {"of": "load.block_rows"}}),
             "variant": [{"stage": {"work": {"block_rows": {"of": "load.block_rows", "times": 1e-5}}}}]},
            "`variant[0].stage.work.block_rows`=0.65536, as `times` x `load.block_rows`, but must be 1 to",
        ),
        (
            {"stage": two({}, {"contention": {"of": "load.contention", "times": 2.0}}),
             "variant": [{"stage": {"load": {"contention": 0.75}}}]},
            "`work.contention` in `variant[0]`=1.5, as `times` x `load.contention`, but must be 0 to 1 (share)",
        ),
        (
            {"variant": [{"job": {"noise": {"of": "job.hiccup_factor", "times": 3}}}]},
            "`variant[0].job.noise`=3, as `times` x `job.hiccup_factor`, but must be 0 to 2 (log)",
        ),
        (
            {"stage": two({"wait": {"of": "work.cpu"}}, {"wait": {"of": "load.wait"}}),
             "variant": [{"stage": {"work": {"wait": {"of": "job.step"}}}}]},
            "`work.wait` is tied to `load.wait`, which is tied itself",
        ),
        (
            {"stage": two({}, {"wait": {"of": "load.wait"}}),
             "variant": [{"stage": {"load": {"wait": {"of": "job.step"}}}}]},
            "`work.wait` in `variant[0]` is tied to `load.wait`, which is tied itself",
        ),
        (
            {"variant": [{"stage": {"load": {"wait": {"of": "job.setp"}}}}]},
            "unknown field `variant[0].stage.load.wait.of.job.setp`; did you mean `job.step`?",
        ),
        (
            {"nodes": [{"cpus": 8, "memory": 24}]},
            "`memory`=24 bytes of `nodes[0]` never holds one slot a stage, for which it needs 1.04858e+07 at least",
        ),
        (
            {"job": {"base_bytes": 2e9}, "stage": two({"slot_bytes": 3e8}, {})},
            "(`base_bytes` 2e+09; a slot of each stage: load 3e+08, work 0; and rows in queues); give more, in bytes",
        ),
        (
            {"nodes": [{"cpus": 4, "memory": 1e9}, {"cpus": 4, "memory": 1e8}], "stage": two({"slot_bytes": 4e8}, {})},
            "`memory`=1e+08 bytes of `nodes[1]` never holds one slot a stage",
        ),
        ({"uncertainty": {"work.cup": 0.1}}, "unknown field `uncertainty.work.cup`; did you mean `work.cpu`?"),
        ({"uncertainty": {"work.cpu": -0.1}}, '`uncertainty."work.cpu"`=-0.1 must be 0 or more'),
        ({"name": ""}, "`name`='' must be a text that is not empty"),
    ],
)  # fmt: skip
def test_errors_name_file_field_value_and_range(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        Scenario.parse({**SMALL, **changes}, where="my.toml")
    assert str(error.value).startswith("my.toml: ")
    assert says in str(error.value)


JUNK = (
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=4) | st.lists(st.floats(), max_size=3)
    | st.dictionaries(st.sampled_from(["uniform", "choice", "of", "times", "x"]), st.floats() | st.text(max_size=3))
)  # fmt: skip


def leaves(tables: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in nested tables."""
    items = (
        tables.items() if isinstance(tables, dict) else enumerate(tables) if isinstance(tables, list) else ()
    )
    return [place for key, value in items for place in [(*at, key), *leaves(value, (*at, key))]]


@settings(max_examples=80)
@given(st.sampled_from(FAMILIES), st.data())
def test_whatever_is_wrong_with_a_file_it_is_said_with_the_files_name(name: str, data: st.DataObject) -> None:
    tables = tomllib.loads((BUILT_IN / f"{name}.toml").read_text(encoding="utf-8"))
    for _ in range(data.draw(st.integers(1, 2))):
        *way, last = data.draw(st.sampled_from(leaves(tables)))
        inside = tables
        for key in way:
            inside = inside[key]
        if isinstance(inside, dict) and data.draw(st.booleans()):
            del inside[last]
        else:
            inside[last] = data.draw(JUNK)
    said = "my.toml: nothing"
    try:
        Scenario.parse(tables, where="my.toml").draw(rng(), 8).check()
    except ConfigError as error:
        said = str(error)
    assert said.startswith("my.toml: ")


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ConfigError, match="`count`=0 must be 1 or more"):
        made().draw(rng(), 0)
    with pytest.raises(ConfigError, match="`stage_names` has 1 names, but the job has 2 stages"):
        Scenario.from_jobs(drawn(), name="x", stage_names=["a"])
    with pytest.raises(ConfigError, match="`row`=4 must be 0 to 0"):
        Scenario.from_jobs(drawn(), name="x", stage_names=["a", "b"], row=4)


# The page about them.

PAGE = (Path(__file__).parents[2] / "docs" / "scenarios.md").read_text(encoding="utf-8")


def test_the_example_to_copy_works() -> None:
    text = PAGE.split("```toml\n")[1].split("```")[0]
    scenario = Scenario.parse(tomllib.loads(text))
    jobs = scenario.draw(rng(), 200)
    simulator = Simulator(jobs, steps=1)
    assert scenario.stage_names == ("load", "transform")
    assert not simulator.run().killed.any()


def test_the_page_has_every_family_and_every_field() -> None:
    for name in FAMILIES:
        assert f"| `{name}` |" in PAGE
    for table in (scenario_fields.STAGE, scenario_fields.JOB, scenario_fields.NODE, scenario_fields.EVENTS):
        for field in table:
            assert f"`{field}`" in PAGE, field
