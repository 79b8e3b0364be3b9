"""Objectives on cases worked by hand, against formulas written out, and their gradients by finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from intune.errors import ConfigError
from intune.workloads.ans import ANS, LEAST_DIVISOR, Gates
from intune.workloads.lightgcn import LightGCN
from intune.workloads.matrix_factorisation import MatrixFactorisation
from intune.workloads.mixgcf import MixGCF
from intune.workloads.pairwise import BPR, Nodes, Triples, bpr, half_squares, hardest, look_up

ROWS, COUNT, WIDTH = 5, 3, 4


def doubles(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def triples(seed: int = 0) -> Triples:
    return Triples(
        doubles(ROWS, WIDTH, seed=seed),
        doubles(ROWS, WIDTH, seed=seed + 1),
        doubles(COUNT, ROWS, WIDTH, seed=seed + 2),
    )


def gates(seed: int = 10) -> Gates:
    return Gates(doubles(ROWS, WIDTH, seed=seed), doubles(COUNT, ROWS, WIDTH, seed=seed + 1))


def tiny() -> tuple[MatrixFactorisation, Nodes]:
    """One user and three items in two dimensions."""
    encoder = MatrixFactorisation(1, 3, 2)
    with torch.no_grad():
        encoder.weight.copy_(torch.tensor([[1.0, 0.0], [2.0, 1.0], [0.5, 0.0], [1.5, 3.0]]))
    return encoder, Nodes(torch.tensor([0]), torch.tensor([1]), torch.tensor([[2], [3]]))


def test_bpr_worked_by_hand() -> None:
    encoder, nodes = tiny()
    one = nodes.keep(torch.tensor([0]))
    # u·p = 2, u·n = 0.5; half the squares are (1 + 5 + 0.25) / 2.
    loss = float(BPR(l2=0.1)(encoder, one).detach())
    assert loss == pytest.approx(math.log(1 + math.exp(-1.5)) + 0.1 * 3.125)


def test_of_several_candidates_the_one_that_scores_highest_is_learnt_from() -> None:
    encoder, nodes = tiny()
    found = look_up(encoder.weight, nodes)
    assert hardest(found).tolist() == [1]
    assert float(BPR(l2=0.0)(encoder, nodes).detach()) == pytest.approx(math.log(1 + math.exp(-0.5)))


def test_bpr_is_minus_the_log_of_the_sigmoid_of_the_difference() -> None:
    user, positive, negative = triples()
    expected = -torch.log(torch.sigmoid((user * positive).sum(1) - (user * negative[0]).sum(1))).mean()
    torch.testing.assert_close(bpr(user, positive, negative[0]), expected)
    leaves = tuple(part.clone().requires_grad_() for part in (user, positive, negative[0]))
    assert torch.autograd.gradcheck(bpr, leaves)


def test_keeping_a_candidate_keeps_that_of_each_row() -> None:
    found = triples()
    chosen = torch.tensor([2, 0, 1, 1, 0])
    kept = found.keep(chosen)
    for row, place in enumerate(chosen):
        assert torch.equal(kept.negative[0, row], found.negative[place, row])
    nodes = Nodes(torch.arange(5), torch.arange(5), torch.arange(15).view(3, 5))
    assert nodes.keep(chosen).negative.tolist() == [[10, 1, 7, 8, 4]]


def test_half_squares_are_summed_over_candidates_and_averaged_over_rows() -> None:
    found = triples()
    expected = sum(float(part.square().sum()) for part in found) / 2 / ROWS
    assert float(half_squares(found)) == pytest.approx(expected)


def test_only_what_a_batch_touches_has_a_gradient() -> None:
    encoder, nodes = tiny()
    BPR(l2=0.0)(encoder, nodes).backward()
    assert encoder.weight.grad is not None
    assert encoder.weight.grad.any(dim=1).tolist() == [True, True, False, True]


# ---- augmented negative sampling ---------------------------------------------------------------------------------


def formulas(user: Tensor, p: Tensor, n: Tensor, g: Tensor) -> Tensor:
    """The contrastive and the disentangling loss as the module's docstring has them, row by row."""
    count, rows, _ = n.shape
    contrastive = alike = apart = torch.zeros((), dtype=n.dtype)
    for b in range(rows):
        inside = torch.ones((), dtype=n.dtype)
        for m in range(count):
            hard, hard_positive = g[m, b] * n[m, b], g[m, b] * p[b]
            easy, easy_positive = n[m, b] - hard, p[b] - hard_positive
            inside = inside + torch.exp(user[b] @ easy - user[b] @ hard)
            alike = alike + torch.sqrt(((hard - hard_positive) ** 2).sum()) / (rows * count)
            apart = apart + torch.sqrt(((easy_positive * easy) ** 2).sum()) / rows
        contrastive = contrastive + torch.log(inside) / rows
    return contrastive + alike + apart


def test_the_losses_of_the_gate_and_all_their_gradients_are_those_of_the_formulas() -> None:
    leaves = [*triples(), doubles(ROWS, WIDTH, seed=10), doubles(COUNT, ROWS, WIDTH, seed=11)]
    gradients = []
    values = []
    for fused in (True, False):
        user, p, n, of_user, of_item = (leaf.clone().requires_grad_() for leaf in leaves)
        if fused:
            loss, share = Gates(of_user, of_item).losses(Triples(user, p, n))
            torch.testing.assert_close(share, torch.sigmoid(of_item * of_user))
            assert not share.requires_grad
        else:
            loss = formulas(user, p, n, torch.sigmoid(of_item * of_user))
        (3 * loss).backward()
        values.append(loss.detach())
        gradients.append([part.grad for part in (user, p, n, of_user, of_item)])
    torch.testing.assert_close(values[0], values[1])
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected)


def test_the_losses_stay_finite_where_a_norm_or_an_exponent_is_extreme() -> None:
    user, p, n = triples()
    n[0, 0] = p[0]  # ‖n_h − p_h‖ is 0
    user[1] = 1e4
    leaves = [part.clone().requires_grad_() for part in (user, p, n)]
    loss, _ = gates().losses(Triples(*leaves))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(part.grad).all() for part in leaves if part.grad is not None)


def test_a_push_goes_towards_the_positive_and_is_as_long_as_the_margin_says() -> None:
    objective = ANS(WIDTH, seed=3).double()
    found, share = triples(), gates().share()
    random = torch.rand(COUNT, ROWS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    push = objective.push(found, share, random).detach()
    for m in range(COUNT):
        for b in range(ROWS):
            g, n, p, r = share[m, b], found.negative[m, b], found.positive[b], random[m, b]
            score = objective.margin.weight[0] @ ((g * n) * (g * p)) + objective.margin.bias[0]
            margin = 1 / (1 + torch.exp(-1 / score))
            direction = torch.sign((p - g * p) - (n - g * n))
            torch.testing.assert_close(push[m, b], (direction * 0.1 * margin * r / r.norm()).detach())
    assert (push.norm(dim=-1) <= 0.1).all()


def test_the_candidate_is_chosen_by_its_score_and_by_what_it_gained() -> None:
    found, share = triples(), gates().share()
    random = torch.rand(COUNT, ROWS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for epsilon in (0.0, 1.0, 200.0):
        objective = ANS(WIDTH, epsilon=epsilon, seed=3).double()
        augmented = found.negative + objective.push(found, share, random).detach()
        before, after = ((found.user * part).sum(-1) for part in (found.negative, augmented))
        expected = (after + epsilon * (after - before)).argmax(0)
        assert torch.equal(objective.choose(found, share, random), expected)


def test_a_margin_at_its_jump_has_a_finite_gradient() -> None:
    objective = ANS(WIDTH).double()
    with torch.no_grad():
        objective.margin.weight.zero_()
        objective.margin.bias.fill_(LEAST_DIVISOR / 10)
    length = objective.length(triples(), gates().share(), torch.ones(COUNT, ROWS, WIDTH, dtype=torch.float64))
    length.sum().backward()
    assert objective.margin.bias.grad is not None
    assert torch.isfinite(objective.margin.bias.grad).all()
    torch.testing.assert_close(
        length.detach(), torch.full_like(length, 0.05)
    )  # 0.1 · σ(10⁶) / ‖(1, 1, 1, 1)‖


def encoder_and_nodes() -> tuple[MatrixFactorisation, Nodes]:
    encoder = MatrixFactorisation(4, 6, WIDTH, seed=2).double()
    with torch.no_grad():
        encoder.weight.mul_(10)
    user = torch.tensor([0, 1, 2, 3, 3])
    return encoder, Nodes(user, user + 4, torch.tensor([[9, 8, 7, 6, 5], [8, 9, 4, 5, 4]]))


def test_the_whole_loss_is_the_sum_of_its_terms() -> None:
    encoder, nodes = encoder_and_nodes()
    objective = ANS(WIDTH, gamma=0.3, epsilon=0.7, l2=0.2, seed=3).double()
    torch.manual_seed(8)
    loss = objective(encoder, nodes)
    torch.manual_seed(8)
    random = torch.rand(2, 5, WIDTH, dtype=torch.float64)
    found = look_up(encoder.weight, nodes)
    of_user, of_item = objective.user_gate(found.user), objective.item_gate(found.negative)
    share = torch.sigmoid(of_item * of_user)
    chosen = objective.choose(found, share, random)
    rows = torch.arange(5)
    kept = Triples(found.user, found.positive, found.negative[chosen, rows][None])
    augmented = kept.negative + objective.push(kept, share[chosen, rows][None], random[chosen, rows][None])
    expected = (
        bpr(found.user, found.positive, augmented[0])
        + 0.3 * formulas(*found, share)
        + 0.2 * half_squares(kept)
    )
    torch.testing.assert_close(loss, expected)
    ours = torch.autograd.grad(loss, [encoder.weight, *objective.parameters()])
    theirs = torch.autograd.grad(expected, [encoder.weight, *objective.parameters()])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_its_parameters_are_two_gates_and_a_margin() -> None:
    objective = ANS(64)
    assert sum(p.numel() for p in objective.parameters()) == 2 * (64**2 + 64) + 64 + 1
    assert torch.equal(ANS(8, seed=1).item_gate.weight, ANS(8, seed=1).item_gate.weight)
    assert not torch.equal(ANS(8, seed=1).item_gate.weight, ANS(8, seed=2).item_gate.weight)


# ---- MixGCF ------------------------------------------------------------------------------------------------------


def test_a_mixture_is_the_one_that_scores_highest() -> None:
    encoder, nodes = encoder_and_nodes()
    share = torch.rand(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mixed = MixGCF.mix(encoder.weight, nodes, share).detach()
    found = look_up(encoder.weight.detach(), nodes)
    for b in range(5):
        mixtures = [
            share[m, b] * found.positive[b] + (1 - share[m, b]) * found.negative[m, b] for m in range(2)
        ]
        scores = [float(found.user[b] @ mixture) for mixture in mixtures]
        torch.testing.assert_close(mixed[b], mixtures[scores.index(max(scores))])


def test_the_mixed_negative_is_the_mean_over_layers() -> None:
    encoder = LightGCN(
        np.array([0, 1, 2, 3]), np.array([0, 1, 2, 3]), users=4, items=6, dim=WIDTH, depth=2, seed=1
    ).double()
    _, nodes = encoder_and_nodes()
    torch.manual_seed(5)
    loss = MixGCF(l2=0.0)(encoder, nodes)
    torch.manual_seed(5)
    mixed = torch.stack([MixGCF.mix(layer, nodes) for layer in encoder.layers()]).mean(0)
    final = encoder()
    expected = F.softplus((final[nodes.user] * (mixed - final[nodes.positive])).sum(1)).mean()
    torch.testing.assert_close(loss, expected)


def test_it_needs_layers_that_are_averaged() -> None:
    encoder, nodes = encoder_and_nodes()
    with pytest.raises(ConfigError, match="needs LightGCN's layers, but MatrixFactorisation was given"):
        MixGCF()(encoder, nodes)


@pytest.mark.parametrize("objective", [BPR, MixGCF])
def test_a_penalty_below_zero_is_refused(objective: type[BPR] | type[MixGCF]) -> None:
    with pytest.raises(ConfigError, match="`l2` must be 0 or more"):
        objective(l2=-1.0)


@pytest.mark.parametrize("name", ["gamma", "epsilon", "l2"])
def test_weights_of_ans_below_zero_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"`{name}` must be 0 or more"):
        ANS(4, **{name: float("nan")})
