"""TrendRec: likelihoods against torch's, inputs by hand, gradients, and that no forecast sees its own step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from intune.pipelines.errors import ConfigError
from intune.workloads.sequences.stages import IGNORED
from intune.workloads.trends import baselines
from intune.workloads.trends.trendrec import (
    Forecast,
    Forecaster,
    TrendRec,
    TrendRecConfig,
    acceleration_of,
    running_scale,
)


def model(**changes: object) -> TrendRec:
    config = {"items": 5, "width": 4, "hidden": 6, "season": 4, "dropout": 0.0, **changes}
    return TrendRec(TrendRecConfig(**config), seed=0)  # type: ignore[arg-type]


def velocities(rows: int = 5, steps: int = 9) -> torch.Tensor:
    return torch.randint(0, 9, (rows, steps), generator=torch.Generator().manual_seed(0)).float()


def test_the_gaussian_likelihood_is_torchs() -> None:
    mean, scale, at = torch.randn(3, 4), torch.rand(3, 4) + 0.1, torch.randn(3, 4)
    found = Forecast(mean=mean, scale=scale).negative_log_likelihood(at)
    torch.testing.assert_close(found, -torch.distributions.Normal(mean, scale).log_prob(at))


def test_students_likelihood_is_torchs() -> None:
    mean, scale, at, freedom = (
        torch.randn(3, 4),
        torch.rand(3, 4) + 0.1,
        torch.randn(3, 4),
        2 + torch.rand(3, 4),
    )
    found = Forecast(mean=mean, scale=scale, freedom=freedom).negative_log_likelihood(at)
    torch.testing.assert_close(found, -torch.distributions.StudentT(freedom, mean, scale).log_prob(at))


def test_acceleration_and_scale_by_hand() -> None:
    velocity = torch.tensor([[2.0, 5, 4, 9]])
    assert acceleration_of(velocity).tolist() == [[3, -1, 5]]
    torch.testing.assert_close(running_scale(velocity), torch.tensor([[3, 4.5, 1 + 11 / 3, 6]]))


def test_under_autocast_acceleration_is_learnt_nearly_as_without() -> None:
    forecaster, velocity, item = model().forecaster, velocities(), torch.arange(5)
    with torch.autocast("cpu", torch.bfloat16):
        under = forecaster.loss({"item": item, "velocity": velocity})
    under.backward()
    assert all(parameter.grad is not None for parameter in forecaster.lstm.parameters())
    torch.testing.assert_close(
        under, forecaster.loss({"item": item, "velocity": velocity}), rtol=0.02, atol=0.02
    )


@pytest.mark.parametrize("likelihood", ["gaussian", "student-t"])
def test_the_loss_is_the_likelihood_of_scaled_acceleration(likelihood: str) -> None:
    forecaster, velocity, item = model(likelihood=likelihood).forecaster, velocities(), torch.arange(5)
    known = forecaster(item, velocity)
    scale = running_scale(velocity)[:, 1:-1]
    mean, spread = known.mean[:, :-1] / scale, known.scale[:, :-1] / scale
    expected = (
        torch.distributions.Normal(mean, spread)
        if known.freedom is None
        else torch.distributions.StudentT(known.freedom[:, :-1], mean, spread)
    )
    truth = (velocity[:, 2:] - velocity[:, 1:-1]) / scale
    loss = forecaster.loss({"item": item, "velocity": velocity})
    torch.testing.assert_close(loss, -expected.log_prob(truth).mean())


@pytest.mark.parametrize("embedding", ["shared", "none"])
def test_a_forecast_depends_on_what_was_before_only(embedding: str) -> None:
    forecaster, velocity, item = model(embedding=embedding).forecaster, velocities(), torch.arange(5)
    before = forecaster(item, velocity)
    for step in range(3, 9):
        changed = velocity.clone()
        changed[:, step:] += 7
        after = forecaster(item, changed)
        # Column j forecasts step j + 2, from steps up to j + 1.
        torch.testing.assert_close(after.mean[:, : step - 1], before.mean[:, : step - 1])
        torch.testing.assert_close(after.scale[:, : step - 1], before.scale[:, : step - 1])
        assert (after.mean[:, step - 1] != before.mean[:, step - 1]).all()


def test_the_season_comes_again() -> None:
    forecaster = model().forecaster
    waves = forecaster._season(torch.arange(8), torch.zeros(1, 8))
    torch.testing.assert_close(waves[:, :4], waves[:, 4:], atol=1e-5, rtol=0)
    assert not torch.allclose(waves[:, 0], waves[:, 1])


def test_both_components_share_one_embedding() -> None:
    made = model()
    assert made.forecaster.items is made.items is made.next_item.items
    made.forecaster.loss({"item": torch.tensor([2]), "velocity": velocities(1)}).backward()
    assert made.items.weight.grad is not None
    assert made.items.weight.grad[2].abs().sum() > 0
    assert made.items.weight.grad[[0, 1, 3, 4, 5]].abs().sum() == 0
    assert model(embedding="none").forecaster.items is None


def test_gradients_of_the_forecaster_are_those_of_finite_differences() -> None:
    forecaster = model().forecaster.double()
    item, velocity = torch.tensor([0, 3]), velocities(2, 5).double()

    def loss(head: torch.Tensor) -> torch.Tensor:
        known = torch.func.functional_call(forecaster, {"head.weight": head}, (item, velocity))
        return known.negative_log_likelihood(torch.ones_like(known.mean)).mean()

    assert torch.autograd.gradcheck(loss, forecaster.head.weight.detach().requires_grad_())


def test_the_next_item_loss_is_that_of_known_targets() -> None:
    two_tower = model().next_item
    sequence, target = (
        torch.tensor([[0, 3, 5], [2, 5, 5]]),
        torch.tensor([[3, 1, IGNORED], [4, IGNORED, IGNORED]]),
    )
    chances = two_tower(sequence).log_softmax(dim=-1)
    by_hand = -(chances[0, 0, 3] + chances[0, 1, 1] + chances[1, 0, 4]) / 3
    torch.testing.assert_close(two_tower.loss({"sequence": sequence, "target": target}), by_hand)


def test_a_batch_without_targets_teaches_nothing() -> None:
    two_tower = model().next_item
    loss = two_tower.loss({"sequence": torch.full((2, 3), 5), "target": torch.full((2, 3), IGNORED)})
    assert loss.item() == 0
    loss.backward()


def test_the_seed_decides_the_first_values() -> None:
    assert torch.equal(model().items.weight, model().items.weight)
    other = TrendRec(model().config, seed=1)
    assert not torch.equal(model().items.weight, other.items.weight)


def test_parameters_are_counted() -> None:
    forecaster = Forecaster(TrendRecConfig(items=5, hidden=6, embedding="none"), None)
    # An LSTM of 3 inputs and 6 units with torch's two biases, and a head of 2 outputs over both.
    assert sum(each.numel() for each in forecaster.parameters()) == 4 * 6 * (3 + 6 + 2) + 2 * (6 + 3 + 1)


def test_rules_by_hand() -> None:
    velocity = np.array([[1, 4, 6, 3], [0, 0, 5, 5]])
    np.testing.assert_array_equal(baselines.markov(velocity, range(2, 5)), [[3, 0], [2, 5], [-3, 0]])
    np.testing.assert_array_equal(baselines.last_velocity(velocity, range(2, 4)), [[4, 0], [6, 5]])
    average = baselines.exponential_average(velocity, range(2, 5), weight=0.5)
    np.testing.assert_allclose(average, [[3, 0], [2.5, 2.5], [-0.25, 1.25]])
    whole = baselines.exponential_average(velocity, range(2, 5), weight=1.0)
    np.testing.assert_array_equal(whole, baselines.markov(velocity, range(2, 5)))
    with pytest.raises(ConfigError, match="`weight` must be above 0"):
        baselines.exponential_average(velocity, range(2, 3), weight=0.0)


def test_predicted_popularity_sums_what_is_expected_of_each_session() -> None:
    two_tower = model().next_item.eval()
    sequences = np.array([[0, 3, 5], [2, 5, 5]])
    chances = two_tower(torch.from_numpy(sequences)).softmax(dim=-1)
    found = baselines.predicted_popularity(two_tower, sequences, items=5)
    np.testing.assert_allclose(found, (chances[0, 1] + chances[1, 0]).detach().numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"likelihood": "poisson"}, "`likelihood`='poisson' is unknown"),
        ({"embedding": "own"}, "`embedding`='own' is unknown"),
        ({"season": -1}, "`season`=.* must be a whole number, 0 or more"),
        ({"hidden": 0}, "`hidden`=.* must be a whole number, 1 or more"),
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model(**change)
