"""Objectives on cases worked by hand, against formulas written out, and their gradients by finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from intune.errors import ConfigError
from intune.workloads.pairs import ans_loss
from intune.workloads.pairs.ans import ANS, draw
from intune.workloads.pairs.ans_loss import LEAST_DIVISOR, PUSH
from intune.workloads.pairs.lightgcn import LightGCN
from intune.workloads.pairs.matrix_factorisation import MatrixFactorisation
from intune.workloads.pairs.mixgcf import MixGCF
from intune.workloads.pairs.pairwise import BPR, Encoder, Nodes, Triples, bpr, half_squares, hardest, look_up

ROWS, COUNT, WIDTH = 5, 3, 4


def doubles(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def triples(seed: int = 0) -> Triples:
    return Triples(
        doubles(ROWS, WIDTH, seed=seed),
        doubles(ROWS, WIDTH, seed=seed + 1),
        doubles(COUNT, ROWS, WIDTH, seed=seed + 2),
    )


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


@pytest.mark.parametrize("objective", [BPR(), ANS(2)])
def test_second_derivatives_that_are_not_there_are_refused(objective: BPR | ANS) -> None:
    encoder, nodes = tiny()
    with pytest.raises(ConfigError, match="create_graph"):
        torch.autograd.grad(objective(encoder, nodes), encoder.weight, create_graph=True)


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


def formula(objective: ANS, encoder: Encoder, nodes: Nodes, random: Tensor) -> tuple[Tensor, list[int]]:
    """The loss as the docstring of `ans.py` has it, row by row, and which candidates are chosen."""
    final = encoder()
    count, rows = nodes.negative.shape
    total = torch.zeros((), dtype=final.dtype)
    places = []
    for b in range(rows):
        user, p = final[nodes.user[b]], final[nodes.positive[b]]
        inside = torch.ones((), dtype=final.dtype)
        side = torch.zeros((), dtype=final.dtype)
        augmented, ranks = [], []
        for m in range(count):
            n, r = final[nodes.negative[m, b]], random[m, b]
            g = torch.sigmoid(objective.item_gate(n) * objective.user_gate(user))
            hard, hard_positive = g * n, g * p
            easy, easy_positive = n - hard, p - hard_positive
            inside = inside + torch.exp(user @ easy - user @ hard)
            side = side + torch.sqrt(((hard - hard_positive) ** 2).sum()) / count
            side = side + torch.sqrt(((easy_positive * easy) ** 2).sum())
            margin = torch.sigmoid(1 / objective.margin(hard * hard_positive))
            direction = torch.sign(easy_positive - easy).detach()
            augmented.append(n + direction * 0.1 * margin * r / torch.sqrt((r**2).sum()))
            rank = user @ augmented[m] + objective.epsilon * (user @ augmented[m] - user @ n)
            ranks.append(float(rank.detach()))
        place = ranks.index(max(ranks))
        places.append(place)
        trained = encoder.weight[torch.stack([nodes.user[b], nodes.positive[b], nodes.negative[place, b]])]
        row = -torch.log(torch.sigmoid(user @ p - user @ augmented[place]))
        row = row + objective.gamma * (torch.log(inside) + side) + objective.l2 * (trained**2).sum() / 2
        total = total + row / rows
    return total, places


def encoder_and_nodes() -> tuple[MatrixFactorisation, Nodes]:
    encoder = MatrixFactorisation(4, 6, WIDTH, seed=2).double()
    with torch.no_grad():
        encoder.weight.mul_(10)
    user = torch.tensor([0, 1, 2, 3, 3])
    return encoder, Nodes(user, user + 4, torch.tensor([[9, 8, 7, 6, 5], [8, 9, 4, 5, 4]]))


def numbers(count: int = 2, rows: int = ROWS, seed: int = 1) -> Tensor:
    return torch.rand(count, rows, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def light_gcn() -> LightGCN:
    ends = np.array([0, 1, 2, 3])
    encoder = LightGCN(ends, ends, users=4, items=6, dim=WIDTH, depth=2, seed=1).double()
    with torch.no_grad():
        encoder.weight.mul_(10)
    return encoder


@pytest.mark.parametrize("piece", [1, 2 * 2 * WIDTH, 1 << 16])
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("epsilon", [0.0, 0.7, 200.0])
def test_the_loss_of_ans_and_all_its_gradients_are_those_of_the_formulas(
    monkeypatch: pytest.MonkeyPatch, piece: int, graph: bool, epsilon: float
) -> None:
    monkeypatch.setattr(ans_loss, "PIECE", piece)
    matrix, nodes = encoder_and_nodes()
    encoder: Encoder = light_gcn() if graph else matrix
    objective = ANS(WIDTH, gamma=0.3, epsilon=epsilon, l2=0.2, seed=3).double()
    random = numbers()
    loss = objective(encoder, nodes, random)
    expected, _ = formula(objective, encoder, nodes, random)
    torch.testing.assert_close(loss, expected)
    ours = torch.autograd.grad(3 * loss, [encoder.weight, *objective.parameters()])
    theirs = torch.autograd.grad(3 * expected, [encoder.weight, *objective.parameters()])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_the_candidate_is_chosen_by_its_score_and_by_what_it_gained() -> None:
    encoder, nodes = encoder_and_nodes()
    chosen = []
    for epsilon in (0.0, 1.0, 200.0):
        objective = ANS(WIDTH, epsilon=epsilon, seed=3).double()
        settings = ans_loss.Settings(objective.gamma, epsilon, 0.0)
        _, found = ans_loss.ans_loss(encoder(), objective.tensors(), nodes, numbers(), 4, settings)
        assert found.tolist() == formula(objective, encoder, nodes, numbers())[1]
        chosen.append(found.tolist())
    assert chosen[0] != chosen[2]


def test_of_the_random_numbers_the_direction_alone_matters() -> None:
    encoder, nodes = encoder_and_nodes()
    objective = ANS(WIDTH, seed=3).double()
    bytes_ = draw((2, ROWS, WIDTH), torch.device("cpu"))
    torch.testing.assert_close(
        objective(encoder, nodes, bytes_), objective(encoder, nodes, bytes_.double() / 256)
    )


def test_the_random_numbers_are_spread_evenly_and_follow_the_seed() -> None:
    torch.manual_seed(4)
    drawn = draw((4, 500, 33), torch.device("cpu"))
    torch.manual_seed(4)
    assert torch.equal(drawn, draw((4, 500, 33), torch.device("cpu")))
    counts = np.bincount(drawn.numpy().ravel(), minlength=256)
    expected = drawn.numel() / 256
    # Chi-squared with 255 degrees of freedom is above 341 once in 4,000 draws; this draw is always the same.
    assert ((counts - expected) ** 2 / expected).sum() < 341
    assert len(counts) == 256


def test_the_loss_of_ans_stays_finite_where_a_norm_or_an_exponent_is_extreme() -> None:
    encoder, nodes = encoder_and_nodes()
    with torch.no_grad():
        encoder.weight[9] = encoder.weight[4]  # ‖n_h − p_h‖ of the first row is 0
        encoder.weight[1] = 1e4
    loss = ANS(WIDTH, gamma=1.0).double()(encoder, nodes, torch.zeros(2, ROWS, WIDTH))
    (gradient,) = torch.autograd.grad(loss, [encoder.weight])
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


def test_a_margin_at_its_jump_pushes_and_has_no_gradient() -> None:
    encoder, nodes = encoder_and_nodes()
    objective = ANS(WIDTH, gamma=0.0, l2=0.0).double()
    with torch.no_grad():
        objective.margin.weight.zero_()
        objective.margin.bias.fill_(LEAST_DIVISOR / 10)
    one = nodes.keep(torch.zeros(ROWS, dtype=torch.int64))
    loss = objective(encoder, one, torch.ones(1, ROWS, WIDTH))
    found = look_up(encoder.weight, one)
    # σ(10⁶) is 1, so that each of the four factors moves by 0.1 / 2.
    augmented = found.negative[0] + PUSH / 2 * torch.sign(found.positive - found.negative[0])
    torch.testing.assert_close(loss, bpr(found.user, found.positive, augmented))
    (gradient,) = torch.autograd.grad(loss, [objective.margin.bias])
    assert gradient.tolist() == [0.0]


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
