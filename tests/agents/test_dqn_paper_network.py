"""The paper's network in NumPy against the same network and the same learning in torch."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from intune.agents.dqn_paper_network import (
    BRANCHES,
    HIDDEN,
    TRANSITION,
    PaperNetwork,
    drawn,
    shapes,
    values_of,
)  # fmt: skip
from intune.agents.one_thread import one_thread
from intune.agents.qlearner import Batch, QLearner, QLearning
from intune.envs.actions import MOVES


class OneBranch(nn.Module):
    """``[B, 6]`` states to ``[B, 5]`` values of a stage's branch."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        super().__init__()
        layers = {"first": (6, HIDDEN), "second": (HIDDEN, HIDDEN), "third": (HIDDEN, BRANCHES * len(MOVES))}
        self.layers = nn.ModuleDict(OrderedDict((name, nn.Linear(*sizes)) for name, sizes in layers.items()))
        self.layers.load_state_dict({name: torch.tensor(value) for name, value in arrays.items()})

    def forward(self, state: Tensor, branch: Tensor) -> Tensor:
        hidden = torch.relu(self.layers["second"](torch.relu(self.layers["first"](state))))
        values: Tensor = self.layers["third"](hidden).reshape(len(state), BRANCHES, len(MOVES))
        return values[torch.arange(len(state)), branch]


def transitions(rng: np.random.Generator, count: int) -> np.ndarray:
    made = np.zeros(count, dtype=TRANSITION)
    made["state"], made["following"] = rng.random((2, count, 6))
    made["branch"], made["action"] = rng.integers(0, BRANCHES, count), rng.integers(0, len(MOVES), count)
    made["reward"], made["ended"] = rng.normal(0.0, 2.0, count), rng.random(count) < 0.2
    return made


def as_batch(picked: np.ndarray, gamma: float) -> Batch:
    branch = torch.as_tensor(picked["branch"].copy())
    return Batch(
        state=(torch.as_tensor(picked["state"].copy()), branch),
        following=(torch.as_tensor(picked["following"].copy()), branch),
        action=torch.as_tensor(picked["action"].copy()),
        reward=torch.as_tensor(picked["reward"].copy()),
        discount=torch.as_tensor(gamma * ~picked["ended"]).float(),
        allowed=torch.ones(len(picked), len(MOVES), dtype=torch.bool),
    )


@pytest.mark.parametrize(("double", "norm"), [(False, 10.0), (True, 0.05)])
def test_it_learns_what_torch_learns(double: bool, norm: float) -> None:
    rng = np.random.default_rng(3)
    config = QLearning(
        learning_rate=1e-3, gamma=0.9, target_update_interval=20, max_grad_norm=norm, double=double
    )
    begin = drawn(rng)
    ours, theirs = PaperNetwork(begin, config), QLearner(OneBranch(dict(begin)), config)
    for _ in range(60):
        picked = transitions(rng, 16)
        ours.learn(picked)
        with one_thread():
            theirs.learn(as_batch(picked, config.gamma))
    layers = theirs.network.get_submodule("layers")
    moved = max(float(abs(ours.arrays[name] - begin[name]).max()) for name in begin)
    assert moved > 0.01
    for name, value in layers.state_dict().items():
        np.testing.assert_allclose(ours.arrays[name], value.numpy(), atol=1e-3 * moved)
    assert ours.updates == 60


def test_it_has_the_same_values_as_torch() -> None:
    rng = np.random.default_rng(0)
    arrays, state = drawn(rng), rng.random((5, 6), dtype=np.float32)
    network = OneBranch(dict(arrays))
    with torch.inference_mode():
        for branch in range(BRANCHES):
            expected = network(torch.as_tensor(state), torch.full((5,), branch)).numpy()
            np.testing.assert_allclose(values_of(arrays, state)[:, branch], expected, atol=1e-6)


def test_it_leaves_what_it_began_with_alone() -> None:
    rng = np.random.default_rng(1)
    begin = drawn(rng)
    before = {name: value.copy() for name, value in begin.items()}
    PaperNetwork(begin, QLearning()).learn(transitions(rng, 8))
    for name, value in before.items():
        np.testing.assert_array_equal(begin[name], value)


def test_parameters_begin_within_the_bounds_that_torch_has() -> None:
    made = drawn(np.random.default_rng(2))
    assert {name: value.shape for name, value in made.items()} == shapes()
    for layer, inputs in (("first", 6), ("second", HIDDEN), ("third", HIDDEN)):
        for part in ("weight", "bias"):
            most = abs(made[f"{layer}.{part}"]).max()
            assert 0.5 * inputs**-0.5 < most <= inputs**-0.5
