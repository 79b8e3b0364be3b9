"""Pre-training: seeded, told of, recorded; jobs of all families side by side with their own chance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intune.agents.dqn_paper_training import pretrain_paper
from intune.agents.pretrain import Recipe, Watch, describe, draw, pretrain
from intune.agents.qlearner import QLearning
from intune.agents.qweights import Weights
from intune.envs.conditions import record
from intune.envs.scenario import Scenario
from intune.envs.simulator import Simulator
from intune.envs.source import JobSource
from intune.pipelines.errors import ConfigError

TINY = {"episodes": 3, "jobs": 12, "steps": 4, "batch_size": 8, "gradient_steps": 2}


def made(seed: int = 1, *, watch: Watch | None = None, **more: Any) -> Weights:
    return pretrain(Recipe(families=("paper", "memory-tight"), seed=seed, **(TINY | more)), watch=watch)


def test_seeded_training_is_equal_and_another_seed_is_not() -> None:
    first, again, other = (made(seed, episodes=2) for seed in (1, 1, 2))
    for name, value in first.arrays.items():
        np.testing.assert_array_equal(value, again.arrays[name])
    assert first.recipe["score"] == again.recipe["score"]
    assert any((first.arrays[name] != other.arrays[name]).any() for name in first.arrays)


def test_the_recipe_is_recorded_with_seed_and_score_and_every_episode_is_told() -> None:
    seen: list[tuple[int, dict[str, float]]] = []
    found = made(4, learning=QLearning(gamma=0.7), watch=lambda episode, score: seen.append((episode, score)))
    assert found.gamma == 0.7
    assert found.recipe["seed"] == 4
    assert found.recipe["families"] == ("paper", "memory-tight")
    assert found.recipe["learning"]["gamma"] == 0.7
    assert 0 < found.recipe["score"] < 1.5
    assert "3 episodes of 12 jobs, seed 4, score 0." in describe(dict(found.recipe))

    assert [episode for episode, _ in seen] == [0, 1, 2]
    assert all(0 < score["rate"] < 1.5 and score["killed"] >= 0 for _, score in seen)
    explored = [score["explored"] for _, score in seen]
    assert explored == sorted(explored, reverse=True)


def test_jobs_drawn_together_run_as_they_would_alone() -> None:
    """In wider arrays with chance of their own: rates of each family's jobs are those of that family by itself."""
    sources = [JobSource(Scenario.load(name), split="train", seed=2) for name in ("paper", "wide")]
    jobs, normals = draw(sources, 0, 10, 6)
    together = Simulator(jobs, record(jobs, normals))
    measured = [together.run() for _ in range(5)]
    for number, source in enumerate(sources):
        own, numbers = source.take(np.arange(5), 6)
        alone = Simulator(own, record(own, numbers))
        for step in range(5):
            np.testing.assert_allclose(
                alone.run().delivered, measured[step].delivered[number * 5 : number * 5 + 5], rtol=1e-6
            )


def test_episodes_draw_other_jobs() -> None:
    sources = [JobSource(Scenario.load("paper"), split="train", seed=2)]
    assert (draw(sources, 0, 4, 3)[0].cpu != draw(sources, 1, 4, 3)[0].cpu).any()


@pytest.mark.parametrize(
    ("name", "value"), [("episodes", 0), ("jobs", 1.5), ("families", ()), ("n_step", True)]
)
def test_values_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        Recipe(**{name: value})  # type: ignore[arg-type]


def test_the_recipes_defaults_are_what_the_shipped_weights_were_made_with() -> None:
    from dataclasses import asdict

    from intune.agents.qweights import load

    shipped = load().recipe
    wanted = asdict(Recipe(seed=int(shipped["seed"])))
    for name in ("episodes", "jobs", "steps", "batch_size", "gradient_steps", "n_step", "seed"):
        assert shipped[name] == wanted[name], name


def test_every_family_has_its_turn_however_few_jobs_there_are() -> None:
    names = ("paper", "criteo", "drift", "wide", "elastic")
    sources = [JobSource(Scenario.load(name), split="train", seed=2) for name in names]
    for jobs in (1, 2, 7):
        taken: list[list[int]] = [[] for _ in names]
        for episode in range(5):
            first, last = episode * jobs, (episode + 1) * jobs
            drawn, normals = draw(sources, episode, jobs, 3)
            assert len(drawn) == len(normals) == jobs
            at = 0
            for number, source in enumerate(sources):
                ids = [place // len(names) for place in range(first, last) if place % len(names) == number]
                taken[number] += ids
                if ids:
                    own = source.jobs(ids)
                    mine = slice(at, at + len(ids))
                    np.testing.assert_array_equal(drawn.cpu[mine, : own.stages], own.cpu)
                    at += len(ids)
        # In five episodes, all families as often, and no job twice.
        assert [len(ids) for ids in taken] == [jobs] * len(names)
        assert all(ids == list(range(jobs)) for ids in taken)


TIGHT = """
name = "tight"
job = {memory_noise = 0.12, step = 1e-4}
nodes = [{cpus = 4, memory = {uniform = [1.5e9, 1.55e9]}}]
stage = [{name = "load", cpu = 1e-5, slot_bytes = 1e9}]
"""


@pytest.mark.parametrize("train", [pretrain, pretrain_paper])
def test_the_score_is_a_share_also_where_nothing_fits(train: Any, tmp_path: Path) -> None:
    """Of an allocation that would survive the noise; jobs run on average nevertheless."""
    path = tmp_path / "tight.toml"
    path.write_text(TIGHT)
    found = train(Recipe(families=("criteo", str(path)), **(TINY | {"episodes": 2})))  # type: ignore[arg-type]
    assert 0 <= found.recipe["score"] < 1.5
    assert all(np.isfinite(value).all() for value in found.arrays.values())


@pytest.mark.parametrize("train", [pretrain, pretrain_paper])
@pytest.mark.parametrize("few", [{"jobs": 1, "batch_size": 128}, {"jobs": 1, "steps": 1, "episodes": 1}])
def test_weights_that_learnt_nothing_are_none(train: Any, few: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"nothing w.* learnt.*smaller"):
        train(Recipe(families=("criteo",), **(TINY | few)))  # type: ignore[arg-type]


def test_learning_begins_with_the_last_decision_if_there_are_just_enough() -> None:
    """Of four episodes of four steps six decisions are remembered: one episode, and the one that runs."""
    recipe = Recipe(
        families=("criteo",), episodes=4, jobs=8, steps=4, batch_size=16, gradient_steps=1, buffer=6
    )
    losses: list[float] = []
    pretrain(recipe, watch=lambda _, score: losses.append(score["loss"]))
    assert losses[0] == 0
    assert all(loss > 0 for loss in losses[1:])
    with pytest.raises(ConfigError, match="64 decisions are remembered at most, and learning begins with 68"):
        pretrain(replace(recipe, batch_size=17))


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True])
def test_a_seed_that_is_none_is_refused(seed: Any) -> None:
    with pytest.raises(ConfigError, match="seed"):
        Recipe(seed=seed)


@pytest.mark.parametrize("values", [{"batch_size": 8, "jobs": 12}, {"batch_size": 16, "jobs": 64}])
def test_many_jobs_for_a_batch_do_not_begin_learning_before_there_is_a_transition(
    values: dict[str, int],
) -> None:
    """The first episode shows it."""
    assert made(**values, episodes=1).recipe["score"] > 0
