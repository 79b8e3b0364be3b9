"""The loss of augmented negative sampling with its gradient written out; the formulas are in `ans.py`.

Many passes over ``(count, rows, width)`` numbers are needed for it. Left to autograd, most of the time goes into memory
that is taken and given back; here a batch is done in pieces that stay in a processor's cache, loss and gradient of a
piece at once. Only the chosen candidate has a gradient from the pairwise loss, and choosing has none.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from intune.workloads.pairs.pairwise import Nodes, refuse_second_derivatives

PUSH = 0.1
"""Length of the longest push (public code)."""

LEAST_DIVISOR = 1e-6
"""A divisor nearer to 0 counts as this: σ(1/x) has a jump there and its slope would be 0 · ∞."""

LEAST_NORM = 1e-12
"""A norm below counts as this where something is divided by it."""

PIECE = 65_536
"""Numbers of a tensor ``(count, rows, width)`` that are done at once: the nine that are worked with then stay near a
core's 2 MiB of cache."""


class Settings(NamedTuple):
    """Weights of the loss's terms; see `ans.ANS`."""

    gamma: float
    epsilon: float
    l2: float


class Parameters(NamedTuple):
    """Of the two gates and the margin: ``(width, width)`` and ``(width,)`` twice, ``(1, width)``, ``(1,)``."""

    item_weight: Tensor
    item_bias: Tensor
    user_weight: Tensor
    user_bias: Tensor
    margin_weight: Tensor
    margin_bias: Tensor


def ans_loss(
    final: Tensor, parameters: Parameters, nodes: Nodes, random: Tensor, users: int, settings: Settings
) -> tuple[Tensor, Tensor]:
    """The loss of a batch, and which candidate of each row was chosen.

    Args:
        final: embeddings of all nodes, users first, shape ``(nodes, width)``.
        parameters: of gates and margin.
        nodes: of the batch.
        random: r up to a factor, which cancels out; shape ``(count, rows, width)``, any type of number.
        users: how many there are.
        settings: weights. The norm penalty is that of `final`.

    Returns:
        A scalar; and int64 of shape ``(rows,)``, without gradient. There are no second derivatives.
    """
    loss, chosen = _AnsLoss.apply(final, *parameters, nodes, random, users, settings)  # type: ignore[no-untyped-call]
    return loss, chosen


class _AnsLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, final: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        parameters, (nodes, random, users, settings) = Parameters(*rest[:6]), rest[6:]
        batch = _Batch(final, parameters, nodes, random, users)
        loss = batch.gate_losses() * settings.gamma
        for gradient in (batch.by_final, batch.by_gates):
            gradient *= settings.gamma / batch.rows
        chosen = batch.choose(settings.epsilon)
        loss += batch.rank(chosen, settings.l2)
        ctx.save_for_backward(*batch.gradients())
        ctx.mark_non_differentiable(chosen)
        return loss, chosen

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        return *(gradient * upstream[0] for gradient in ctx.saved_tensors), None, None, None, None


class _Batch:
    """A batch: embeddings u, p and gate inputs w, ``(rows, width)``, and gradients by all nodes' embeddings and inputs.

    With g the gate, h = 1 − g and d = n − p, n_h − p_h is g d, p_e ⊙ n_e is h² p n, n_h ⊙ p_h is g² p n, and
    u·n_e − u·n_h is u·n − 2 Σ u n g. The sign of p_e − n_e is that of −d, since h is above 0.
    """

    def __init__(
        self, final: Tensor, parameters: Parameters, nodes: Nodes, random: Tensor, users: int
    ) -> None:
        self.final, self.parameters, self.users = final, parameters, users
        self.nodes, self.random = nodes, random
        self.count, self.rows = nodes.negative.shape
        # A batch has more candidates than most catalogues have items, so all are mapped once and looked up.
        self.gates = torch.empty_like(final)
        for part, weight, bias in (
            (slice(users), parameters.user_weight, parameters.user_bias),
            (slice(users, None), parameters.item_weight, parameters.item_bias),
        ):
            torch.addmm(bias, final[part], weight.t(), out=self.gates[part])
        self.by_final, self.by_gates = torch.zeros_like(final), torch.zeros_like(final)
        self.u, self.p = final.index_select(0, nodes.user), final.index_select(0, nodes.positive)
        self.w = self.gates.index_select(0, nodes.user)
        # Of each candidate: u·n, x = wᵀ(n_h ⊙ p_h), ‖r‖ and −Σ u r sign(d).
        self.scores, self.divisor, self.norm, self.gain = self.u.new_empty(4, self.count, self.rows)

    def gate_losses(self) -> Tensor:
        """Contrastive and disentangling loss of all candidates; their gradients are left `rows` times too large."""
        rows, width = self.u.shape
        # ln(1 + Σ exp): the 1 is one more term, exp(0).
        gaps = self.u.new_zeros(self.count + 1, rows)
        alike, apart = self.u.new_empty(2, self.count, rows)
        sums = tuple(torch.zeros_like(self.u) for _ in range(3))
        if self.final.device.type == "cpu":
            rows = min(max(PIECE // (self.count * width), 1), rows)
        memory = self.u.new_empty(8, self.count * rows * width)
        for start in range(0, self.rows, rows):
            part = slice(start, start + rows)
            losses = gaps[:, part], alike[:, part], apart[:, part]
            _take_piece(self, part, losses, tuple(whole[part] for whole in sums), memory)
        self.by_final.index_add_(0, self.nodes.user, sums[0])
        self.by_final.index_add_(0, self.nodes.positive, sums[1])
        self.by_gates.index_add_(0, self.nodes.user, sums[2])
        total: Tensor = torch.logsumexp(gaps, dim=0).mean() + alike.mean() + apart.sum(dim=0).mean()
        return total

    def choose(self, epsilon: float) -> Tensor:
        """The candidate of the highest ``u·ñ + ε (u·ñ − u·n)`` of each row."""
        x = self.divisor.add_(self.parameters.margin_bias)
        x.copy_(torch.where(x < 0, x.clamp(max=-LEAST_DIVISOR), x.clamp(min=LEAST_DIVISOR)))
        self.push = PUSH / self.norm.clamp_(min=LEAST_NORM)
        gained = torch.sigmoid(1 / x).mul_(self.push).mul_(self.gain)
        rank: Tensor = self.scores + (1 + epsilon) * gained
        return rank.argmax(dim=0)

    def rank(self, chosen: Tensor, l2: float) -> Tensor:
        """BPR against the chosen candidates, pushed, and the norm penalty."""
        u, p, w = self.u, self.p, self.w
        node, x, push, gain, score = (
            part.gather(0, chosen[None])[0]
            for part in (self.nodes.negative, self.divisor, self.push, self.gain, self.scores)
        )
        n, o = self.final.index_select(0, node), self.gates.index_select(0, node)
        g = torch.mul(o, w).sigmoid_()
        random = self.random[chosen, torch.arange(self.rows, device=chosen.device)]
        moves = torch.sign(n - p).mul_(random)
        margin, penalty = torch.sigmoid(1 / x), l2 / self.rows
        z = score + margin * push * gain - (u * p).sum(-1)
        squares = torch.stack([part.square().sum() for part in (u, p, n)]).sum()
        slope = (torch.sigmoid(z) / self.rows)[:, None]
        # ñ − p is n − p − margin · push · moves.
        by_u = torch.addcmul(n - p, moves, (margin * push)[:, None], value=-1.0).mul_(slope)
        by_u.add_(u, alpha=penalty)
        # By the divisor x: σ(1/x)' is −σ(1 − σ)/x²; nothing where x was too near to 0.
        by_x = slope[:, 0] * gain * push * margin * (margin - 1) / x.square()
        by_x.masked_fill_(x.abs() <= LEAST_DIVISOR, 0.0)
        shared = torch.mul(n, p).mul_(g)
        by_shared = by_x[:, None] * self.parameters.margin_weight
        by_gate = torch.mul(shared, by_shared).mul_(g).mul_(1 - g).mul_(2.0)
        self.by_margin, self.by_bias = (by_x @ shared.mul_(g))[None], by_x.sum()[None]
        by_shared.mul_(g).mul_(g)
        by_n = u * slope
        by_p = torch.mul(by_shared, n).sub_(by_n).add_(p, alpha=penalty)
        by_n.addcmul_(by_shared, p).add_(n, alpha=penalty)
        for nodes, gradient in ((self.nodes.user, by_u), (self.nodes.positive, by_p), (node, by_n)):
            self.by_final.index_add_(0, nodes, gradient)
        self.by_gates.index_add_(0, self.nodes.user, by_gate * o)
        self.by_gates.index_add_(0, node, by_gate.mul_(w))
        return F.softplus(z).mean() + penalty / 2 * squares

    def gradients(self) -> tuple[Tensor, ...]:
        """By `final` and by the parameters, in their order."""
        users, given = self.users, self.parameters
        of_user, of_item = self.by_gates[:users], self.by_gates[users:]
        self.by_final[:users].addmm_(of_user, given.user_weight)
        self.by_final[users:].addmm_(of_item, given.item_weight)
        return (
            self.by_final,
            of_item.t() @ self.final[users:],
            of_item.sum(0),
            of_user.t() @ self.final[:users],
            of_user.sum(0),
            self.by_margin,
            self.by_bias,
        )


def _take_piece(
    batch: _Batch, part: slice, losses: tuple[Tensor, ...], sums: tuple[Tensor, ...], memory: Tensor
) -> None:
    """What all candidates of some rows have to say.

    Args:
        batch: takes in what the choice needs, and the gradients by candidates.
        part: which rows.
        losses: take in u·n_e − u·n_h after a first entry, ‖n_h − p_h‖ and ‖p_e ⊙ n_e‖, ``(count, rows)``.
        sums: gradients by u, p and w, which are added to.
        memory: scratch, eight times ``count · rows · width`` numbers or more.
    """
    u, p, w = batch.u[part], batch.p[part], batch.w[part]
    rows, width = u.shape
    n, o, g, d, np, un, a, h = memory[:, : batch.count * rows * width].view(8, batch.count, rows, width)
    node = batch.nodes.negative[:, part].reshape(-1)
    torch.index_select(batch.final, 0, node, out=n.view(-1, width))
    torch.index_select(batch.gates, 0, node, out=o.view(-1, width))
    torch.mul(o, w, out=g).sigmoid_()
    torch.sub(n, p, out=d)
    torch.mul(n, p, out=np)
    torch.mul(n, u, out=un)

    scores = torch.sum(un, -1, out=batch.scores[:, part])
    margin = torch.mul(np, g, out=a).mul_(g).view(-1, width) @ batch.parameters.margin_weight[0]
    batch.divisor[:, part] = margin.view(scores.shape)
    a.copy_(batch.random[:, part])
    torch.linalg.vector_norm(a, dim=-1, out=batch.norm[:, part])
    torch.sum(torch.sign(d, out=h).mul_(a).mul_(u), -1, out=batch.gain[:, part]).neg_()

    torch.sub(scores, torch.mul(un, g, out=a).sum(-1), alpha=2.0, out=losses[0][1:])
    # ‖g d‖: by n it is g · (g d)/‖·‖, by p the negative of that, by g it is d · (g d)/‖·‖.
    by_n = torch.mul(g, d, out=a)
    norm = torch.linalg.vector_norm(by_n, dim=-1, out=losses[1])
    by_n /= (norm * batch.count).clamp_(min=LEAST_NORM)[..., None]
    by_g = d.mul_(by_n)
    sums[1].sub_(by_n.mul_(g).sum(0))
    # ‖h² p n‖: by n it is h² p · unit, by p h² n · unit, by g −2 h p n · unit.
    torch.sub(g.new_ones(()), g, out=h)
    apart = np.mul(h).mul_(h)
    norm = torch.linalg.vector_norm(apart, dim=-1, out=losses[2])
    apart /= norm.clamp(min=LEAST_NORM)[..., None]
    by_g.addcmul_(apart.mul_(h), np, value=-2.0)
    by_n.addcmul_(apart.mul_(h), p)
    # Σ u n (1 − 2 g), weighted as the softmax of the gaps.
    weight = torch.softmax(losses[0], dim=0)[1:, :, None]
    by_g.addcmul_(un, weight, value=-2.0)
    bare = torch.sub(h, g, out=un).mul_(weight)
    by_n.addcmul_(bare, u)
    by_g.mul_(g).mul_(h)
    # Adding up as it goes saves a pass over the products.
    for n_m, o_m, by_g_m, apart_m, bare_m in zip(n, o, by_g, apart, bare, strict=True):
        sums[0].addcmul_(bare_m, n_m)
        sums[1].addcmul_(apart_m, n_m)
        sums[2].addcmul_(by_g_m, o_m)
    batch.by_gates.index_add_(0, node, by_g.mul_(w).view(-1, width))
    batch.by_final.index_add_(0, node, by_n.view(-1, width))
