"""Whose processors a trainer's pipeline may use."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from intune.pipelines.budget import Usable
from intune.pipelines.errors import ConfigError
from intune.pipelines.executors import choice

HERE, CLUSTER = 16, 64


@pytest.fixture(autouse=True)
def of_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    def detect(**given: Any) -> Usable:
        alone = given.get("modules") == {}
        return Usable(cpus=HERE if alone else CLUSTER, memory=1 << 34, memory_left=1 << 34)

    monkeypatch.setattr(Usable, "detect", detect)
    monkeypatch.setattr(choice, "_connected", lambda: True)
    monkeypatch.setitem(sys.modules, "ray", ray(mode=0))


def ray(mode: int, **held: float) -> Any:
    """One whose worker or driver this process is."""

    def assigned() -> dict[str, float]:
        assert mode == 1
        return held

    context = SimpleNamespace(
        worker=SimpleNamespace(mode=mode),
        get_assigned_resources=assigned,
        should_capture_child_tasks_in_placement_group=False,
    )
    return SimpleNamespace(WORKER_MODE=1, get_runtime_context=lambda: context)


@pytest.mark.parametrize(
    ("executor", "here", "world", "cpus"),
    [
        ("threads", 1, 1, 16),  # whatever the cluster has elsewhere
        ("threads", 4, 16, 4),
        ("threads", 32, 32, 1),
        ("ray", 1, 1, 64),
        ("ray", 4, 16, 4),
        ("ray", 4, 4, 16),
        (None, 4, 16, 16),  # a user's own, perhaps on that cluster: shared out as ever
    ],
)
def test_threads_share_this_machine_and_rays_workers_the_cluster(
    executor: str | None, here: int, world: int, cpus: int
) -> None:
    usable = choice.usable_by(executor, here=here, world=world)
    assert usable == Usable(cpus=cpus, memory=1 << 34, memory_left=1 << 34)


@pytest.mark.parametrize(
    ("world", "held", "cpus"),
    [(4, 1.0, 15), (4, 2.0, 14), (32, 0.5, 1), (64, 1.0, 1), (3, 0.5, 20), (1, 0, 64)],
)
def test_what_the_trainers_hold_is_not_shared_out(
    monkeypatch: pytest.MonkeyPatch, world: int, held: float, cpus: int
) -> None:
    """Workers of Ray Train have CPUs of the cluster themselves: the last of them found none for its pipeline."""
    monkeypatch.setitem(sys.modules, "ray", ray(mode=1, CPU=held) if held else ray(mode=1))
    assert choice.usable_by("ray", here=2, world=world).cpus == cpus
    assert choice.usable_by("threads", here=2, world=world).cpus == HERE // 2


@pytest.mark.parametrize(("free", "world", "cpus"), [(3.0, 1, 3), (6.5, 2, 3), (1.0, 2, 1), (0.0, 2, 31)])
def test_what_is_reserved_for_a_trial_comes_before_the_rest_of_the_cluster(
    monkeypatch: pytest.MonkeyPatch, free: float, world: int, cpus: int
) -> None:
    """A group that the trainers hold all of, as that of Ray Train, has nothing for their pipelines."""
    module = ray(mode=1, CPU=1.0)
    module.get_runtime_context().should_capture_child_tasks_in_placement_group = True
    group = SimpleNamespace(id=b"\x01\x0a")
    module.util = SimpleNamespace(get_current_placement_group=lambda: group)
    module.available_resources = lambda: {"CPU": 9.0, "CPU_group_0_010a": 7.0, "CPU_group_010a": free}
    monkeypatch.setitem(sys.modules, "ray", module)
    assert choice.usable_by("ray", world=world).cpus == cpus


def test_without_a_cluster_ray_is_started_here_and_shared_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_connected", lambda: False)
    assert choice.usable_by("ray", here=4, world=16).cpus == CLUSTER // 4


def test_executors_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [choice.choose(name) for name in ("auto", "threads", "ray")] == ["ray", "threads", "ray"]
    monkeypatch.setattr(choice, "_connected", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert choice.choose("auto") == "threads"
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert choice.choose("auto") == "ray"
    with pytest.raises(ConfigError, match="`executor`='spark' is unknown"):
        choice.choose("spark")
