"""Deep Q-learning on problems whose values are known, and what its parts do on their own."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from intune.agents.qlearner import Batch, QLearner, QLearning, targets
from intune.pipelines.errors import ConfigError

GAMMA = 0.8


class Chain:
    """Four states in a row. Action 1 goes right, 0 stays; leaving the last one by action 1 earns 1 and ends it.
    Staying earns 0.1. Action 2 would earn 100 but is never allowed."""

    states, actions = 4, 3

    def transitions(self) -> Batch:
        rows = []
        for state in range(self.states):
            rows.append((state, 0, 0.1, state, GAMMA))
            last = state == self.states - 1
            rows.append(
                (state, 1, 1.0 if last else 0.0, state if last else state + 1, 0.0 if last else GAMMA)
            )
        state, action, reward, following, discount = zip(*rows, strict=True)
        eye = torch.eye(self.states)
        return Batch(
            state=(eye[list(state)],),
            following=(eye[list(following)],),
            action=torch.tensor(action),
            reward=torch.tensor(reward),
            discount=torch.tensor(discount),
            allowed=torch.tensor([[True, True, False]] * len(rows)),
        )

    def values(self) -> np.ndarray:
        """By value iteration."""
        q = np.zeros((self.states, 2))
        for _ in range(500):
            best = q.max(axis=1)
            q[:, 0] = 0.1 + GAMMA * best
            q[:-1, 1] = GAMMA * best[1:]
            q[-1, 1] = 1.0
        return q


def linear() -> nn.Linear:
    torch.manual_seed(0)
    made = nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        made.weight[2] = 50.0  # the forbidden action looks best of all
    return made


@pytest.mark.parametrize("double", [True, False])
def test_known_values_are_found(double: bool) -> None:
    chain = Chain()
    learner = QLearner(
        linear(), QLearning(learning_rate=0.05, gamma=GAMMA, target_update_interval=10, double=double)
    )
    batch = chain.transitions()
    for _ in range(400):
        learner.learn(batch)
    found = learner.network(torch.eye(4)).detach().numpy()
    np.testing.assert_allclose(found[:, :2], chain.values(), atol=2e-3)
    # By hand: leaving from the last state at once is worth 1, from the first one 0.8^3.
    assert found[3, 1] == pytest.approx(1.0, abs=2e-3)
    assert found[0, 1] == pytest.approx(GAMMA**3, abs=2e-3)
    np.testing.assert_array_equal(found[:, 2], 50.0)


def batch_of(**values: Any) -> Batch:
    given: dict[str, Any] = {
        "state": (torch.zeros(2, 1),), "following": (torch.zeros(2, 1),), "action": torch.tensor([0, 1]),
        "reward": torch.tensor([1.0, 2.0]), "discount": torch.tensor([0.5, 0.5]),
        "allowed": torch.ones(2, 3, dtype=torch.bool),
    } | values  # fmt: skip
    return Batch(**given)


def constant(*values: float) -> Any:
    return lambda x: torch.tensor(values).expand(len(x), len(values))


def test_double_targets_take_the_action_of_one_and_the_value_of_the_other() -> None:
    online, target = constant(1.0, 3.0, 2.0), constant(10.0, 20.0, 30.0)
    assert targets(online, target, batch_of(), double=True).tolist() == [1 + 10.0, 2 + 10.0]
    assert targets(online, target, batch_of(), double=False).tolist() == [1 + 15.0, 2 + 15.0]


def test_nothing_follows_an_end_and_something_follows_a_cut() -> None:
    found = targets(
        constant(4.0, 0.0, 0.0),
        constant(4.0, 0.0, 0.0),
        batch_of(discount=torch.tensor([0.0, 0.5])),
        double=True,
    )
    assert found.tolist() == [1.0, 2.0 + 0.5 * 4.0]


def test_what_is_not_allowed_is_never_taken_for_the_best() -> None:
    allowed = torch.tensor([[True, False, True], [False, False, True]])
    found = targets(constant(1.0, 9.0, 2.0), constant(1.0, 9.0, 2.0), batch_of(allowed=allowed), double=False)
    assert found.tolist() == [1.0 + 0.5 * 2.0, 2.0 + 0.5 * 2.0]


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Linear(3, 5, dtype=torch.float64)
        self.second = nn.Linear(5, 2, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.second(torch.tanh(self.first(x)))
        return made


def test_gradients_are_those_of_finite_differences() -> None:
    """Of the Huber loss with targets that do not depend on the parameters (semi-gradient)."""
    rng = torch.Generator().manual_seed(0)

    def some(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    batch = Batch(
        state=(some(6, 3),), following=(some(6, 3),), action=torch.tensor([0, 1, 1, 0, 1, 0]), reward=some(6) * 2,
        discount=torch.full((6,), 0.7, dtype=torch.float64), allowed=torch.ones(6, 2, dtype=torch.bool),
    )  # fmt: skip
    learner = QLearner(Small(), QLearning(gamma=0.7, max_grad_norm=1e9, learning_rate=1e-12))
    wanted = targets(learner.network, learner.target, batch, double=True)
    before = copy.deepcopy(learner.network)

    def loss() -> float:
        off = before(*batch.state).gather(1, batch.action[:, None])[:, 0] - wanted
        size = off.abs()
        return float(torch.where(size < 1, 0.5 * off**2, size - 0.5).mean().detach())

    said = learner.learn(batch)
    assert said == pytest.approx(loss())
    for mine, other in zip(learner.network.parameters(), before.parameters(), strict=True):
        assert mine.grad is not None
        for at in np.ndindex(*other.shape):
            kept = float(other.data[at])
            sides = []
            for step in (1e-5, -1e-5):
                other.data[at] = kept + step
                sides.append(loss())
            other.data[at] = kept
            assert float(mine.grad[at]) == pytest.approx((sides[0] - sides[1]) / 2e-5, abs=1e-7)


def test_the_target_is_copied_now_and_then_and_stands_still_between() -> None:
    learner = QLearner(linear(), QLearning(gamma=GAMMA, target_update_interval=3, learning_rate=0.1))
    batch = Chain().transitions()
    first = learner.target.weight.clone()  # type: ignore[union-attr, operator]
    for _ in range(2):
        learner.learn(batch)
        assert torch.equal(learner.target.weight, first)  # type: ignore[arg-type]
    learner.learn(batch)
    assert torch.equal(learner.target.weight, learner.network.weight)  # type: ignore[arg-type]
    assert not torch.equal(learner.target.weight, first)  # type: ignore[arg-type]
    learner.learn(batch)
    assert not torch.equal(learner.target.weight, learner.network.weight)  # type: ignore[arg-type]


def test_gradients_are_cut_to_their_largest_norm() -> None:
    learner = QLearner(linear(), QLearning(max_grad_norm=1e-3))
    learner.learn(Chain().transitions())
    norm = sum(float((p.grad**2).sum()) for p in learner.network.parameters() if p.grad is not None) ** 0.5
    assert norm == pytest.approx(1e-3, rel=1e-3)


def test_what_was_saved_continues_identically() -> None:
    batch, config = Chain().transitions(), QLearning(target_update_interval=4, learning_rate=0.05)
    first, second = QLearner(linear(), config), QLearner(nn.Linear(4, 3, bias=False), config)
    for _ in range(6):
        first.learn(batch)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    losses = [(first.learn(batch), second.learn(batch)) for _ in range(6)]
    assert all(one == other for one, other in losses)
    assert torch.equal(first.target.weight, second.target.weight)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [("gamma", 1.0), ("gamma", -0.1), ("learning_rate", 0.0), ("target_update_interval", 0)],
)
def test_values_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        QLearning(**{name: value})  # type: ignore[arg-type]
