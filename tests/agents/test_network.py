"""The Q-network: NumPy and torch agree, whatever the number of stages, whatever their order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from intune.agents.network import QNetwork, forward, tensors
from intune.agents.rehearsal import JOB_WIDTH, OPTIONS, PER_CANDIDATE, PER_STAGE, STAGE_WIDTH, Rehearsal


def rehearsed(jobs: int, stages: int, candidates: int = OPTIONS, seed: int = 0) -> Rehearsal:
    rng = np.random.default_rng(seed)

    def some(*shape: int) -> np.ndarray:
        return rng.uniform(-1, 1, shape).astype(np.float32)

    present = np.arange(stages) < rng.integers(1, stages + 1, jobs)[:, None]
    return Rehearsal(
        stage=some(jobs, stages, STAGE_WIDTH) * present[:, :, None],
        job=some(jobs, JOB_WIDTH),
        moves=some(jobs, candidates, stages, PER_STAGE) * present[:, None, :, None],
        options=some(jobs, candidates, PER_CANDIDATE),
        present=present,
        allowed=np.ones((jobs, candidates), dtype=bool),
    )


def network(seed: int = 0) -> QNetwork:
    torch.manual_seed(seed)
    return QNetwork()


@pytest.mark.parametrize("stages", [1, 3, 8, 20])
@pytest.mark.parametrize("candidates", [2, OPTIONS])
def test_numpy_gives_the_same_values_as_torch(stages: int, candidates: int) -> None:
    made, seen = network(), rehearsed(7, stages, candidates)
    with torch.inference_mode():
        expected = made(*tensors(seen)).numpy()
    found = forward(made.arrays(), seen)
    assert found.shape == (7, candidates)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_the_order_of_stages_does_not_matter_beyond_their_features() -> None:
    made, seen = network(), rehearsed(5, 6)
    order = np.random.default_rng(1).permutation(6)
    turned = replace(
        seen, stage=seen.stage[:, order], moves=seen.moves[:, :, order], present=seen.present[:, order]
    )
    np.testing.assert_allclose(forward(made.arrays(), turned), forward(made.arrays(), seen), atol=2e-6)


def test_more_room_for_stages_changes_nothing() -> None:
    made, seen = network(), rehearsed(5, 3)
    wide = replace(
        seen,
        stage=np.pad(seen.stage, ((0, 0), (0, 4), (0, 0)), constant_values=0.7),
        moves=np.pad(seen.moves, ((0, 0), (0, 0), (0, 4), (0, 0)), constant_values=-0.3),
        present=np.pad(seen.present, ((0, 0), (0, 4))),
    )
    np.testing.assert_allclose(forward(made.arrays(), wide), forward(made.arrays(), seen), atol=2e-6)
    with torch.inference_mode():
        np.testing.assert_allclose(made(*tensors(wide)).numpy(), made(*tensors(seen)).numpy(), atol=2e-6)


def test_jobs_do_not_see_each_other() -> None:
    made, seen = network(), rehearsed(4, 3)
    one = Rehearsal(**{name: getattr(seen, name)[2:3] for name in seen.__dataclass_fields__})
    np.testing.assert_allclose(forward(made.arrays(), one)[0], forward(made.arrays(), seen)[2], atol=2e-6)


def test_advantages_average_to_zero() -> None:
    """What is added to every candidate's advantage alike changes no value: Wang et al., equation 9."""
    made, seen = network(), rehearsed(3, 2)
    before = forward(made.arrays(), seen)
    with torch.no_grad():
        made.advantage.bias += 5.0
    np.testing.assert_allclose(forward(made.arrays(), seen), before, atol=1e-5)


def test_arrays_go_back_into_a_network() -> None:
    first, second, seen = network(0), network(1), rehearsed(3, 2)
    assert (forward(first.arrays(), seen) != forward(second.arrays(), seen)).any()
    second.load(first.arrays())
    np.testing.assert_array_equal(forward(first.arrays(), seen), forward(second.arrays(), seen))
    # What was taken out does not change as the network goes on learning.
    taken = first.arrays()
    with torch.no_grad():
        first.value.bias += 1.0
    np.testing.assert_array_equal(taken["value.bias"], second.arrays()["value.bias"])
