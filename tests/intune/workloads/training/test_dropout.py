"""Dropout by its definition: share, scale, the gradient's mask, reproducibility."""

from __future__ import annotations

import pytest
import torch

from intune.workloads.training.dropout import Dropout, dropout


def test_a_share_becomes_0_and_the_others_are_scaled_up_so_that_the_mean_stays() -> None:
    torch.manual_seed(0)
    made = dropout(torch.ones(400, 503), 0.2)
    kept = made != 0
    # 201,200 numbers: the share's standard deviation is 0.0009.
    assert float(kept.double().mean()) == pytest.approx(0.8, abs=0.004)
    torch.testing.assert_close(made[kept], torch.full_like(made[kept], 1.25), rtol=1e-4, atol=0)


def test_numbers_are_dropped_independently_of_their_neighbours() -> None:
    torch.manual_seed(0)
    dropped = (dropout(torch.ones(80_000), 0.5) == 0).double()
    for apart in (1, 2, 3, 4):
        both = (dropped[:-apart] * dropped[apart:]).mean()
        assert float(both) == pytest.approx(0.25, abs=0.01)


def test_the_gradient_has_the_same_zeros_and_scale() -> None:
    x = torch.randn(7, 5, requires_grad=True)
    made = dropout(x, 0.4)
    (gradient,) = torch.autograd.grad(made.sum(), [x])
    torch.testing.assert_close(gradient * x, made)
    assert (gradient == 0).any()


def test_the_same_seed_drops_the_same_numbers() -> None:
    torch.manual_seed(3)
    first = dropout(torch.ones(50), 0.5)
    second = dropout(torch.ones(50), 0.5)
    torch.manual_seed(3)
    assert torch.equal(first, dropout(torch.ones(50), 0.5))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("share", [0.9999, 0.999999, 1 - 1e-12])
def test_all_but_nothing_may_be_dropped(share: float) -> None:
    x = torch.ones(1000, requires_grad=True)
    made = dropout(x, share)
    assert made.isfinite().all()
    (gradient,) = torch.autograd.grad(made.sum(), [x])
    torch.testing.assert_close(gradient, made.detach())


def test_nothing_is_dropped_in_evaluation_or_with_a_share_of_0() -> None:
    x = torch.randn(50)
    module = Dropout(0.5)
    assert not torch.equal(module(x), x)
    assert torch.equal(module.eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
