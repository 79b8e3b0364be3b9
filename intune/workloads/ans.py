"""Augmented negative sampling (arXiv 2308.05972), after the paper and its public code: an objective for any `Encoder`.

A gate splits the factors of a negative item into hard ones, which the positive shares, and easy ones. The easy ones
are pushed a little towards the positive's, and of all candidates so augmented the one that is hardest, and has become
harder, is learnt from. With embeddings u, p and candidates n of one row:

- ``g = σ((W_i n + b_i) ⊙ (W_u u + b_u))``; ``n_h = g ⊙ n``, ``n_e = n − n_h``, ``p_h = g ⊙ p``, ``p_e = p − p_h``
- contrastive: ``ln(1 + Σ exp(u·n_e − u·n_h))``
- disentangling: mean ``‖n_h − p_h‖`` + sum ``‖p_e ⊙ n_e‖``, over the candidates
- ``ñ = n + sign(p_e − n_e) ⊙ 0.1 · σ(1 / (wᵀ(n_h ⊙ p_h) + b)) · r / ‖r‖`` with r ~ U[0, 1) for each factor
- the candidate with the highest ``u·ñ + ε (u·ñ − u·n)`` is taken; loss = BPR(u, p, ñ) + γ (contrastive +
  disentangling) + the norm penalty

The values of γ, ε and the number of candidates are not published: search for them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intune.pipelines.errors import ConfigError
from intune.workloads.pairwise import Encoder, Nodes, Triples, bpr, half_squares, look_up, pick

PUSH = 0.1
"""Length of the longest push (public code)."""

LEAST_DIVISOR = 1e-6
"""A divisor nearer to 0 counts as this: σ(1/x) has a jump there and its slope would be 0 · ∞."""

LEAST_NORM = 1e-12
"""A norm below counts as this where its gradient divides by it."""


class ANS(nn.Module):
    """Gates and margin, and the loss that they are part of. 2 · (width² + width) + width + 1 parameters.

    Args:
        width: of the encoder's final embeddings.
        gamma: weight of the contrastive and the disentangling loss.
        epsilon: weight of what a candidate has gained by the push, when one is chosen.
        l2: as of `BPR`; of the chosen negative.
        seed: of the initial parameters.
    """

    def __init__(
        self, width: int, *, gamma: float = 0.01, epsilon: float = 1.0, l2: float = 1e-5, seed: int = 0
    ) -> None:
        super().__init__()
        for name, value in (("gamma", gamma), ("epsilon", epsilon), ("l2", l2)):
            if not 0 <= value < float("inf"):
                raise ConfigError(f"`{name}` must be 0 or more, but {value} was found")
        self.gamma, self.epsilon, self.l2 = gamma, epsilon, l2
        self.item_gate = nn.Linear(width, width)
        self.user_gate = nn.Linear(width, width)
        self.margin = nn.Linear(width, 1)
        generator = torch.Generator().manual_seed(seed)
        bound = width**-0.5
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.uniform_(-bound, bound, generator=generator)

    def forward(self, encoder: Encoder, nodes: Nodes) -> Tensor:
        """The loss of a batch."""
        final: Tensor = encoder()
        triples = look_up(final, nodes)
        tables = self.user_gate(final[: encoder.users]), self.item_gate(final[encoder.users :])
        side, share = gates_of(tables, nodes).losses(triples)
        random = torch.rand(triples.negative.shape, device=final.device, dtype=final.dtype)
        chosen = self.choose(triples, share, random)
        # Looked up anew: only the chosen candidates have a gradient from here on, not all of them zeros but one.
        kept = nodes.keep(chosen)
        triples = look_up(final, kept)
        share = gates_of(tables, kept).share()
        augmented = triples.negative + self.push(triples, share, pick(random, chosen))
        trained = triples if final is encoder.weight else look_up(encoder.weight, kept)
        return (
            bpr(triples.user, triples.positive, augmented[0])
            + self.gamma * side
            + self.l2 * half_squares(trained)
        )

    def push(self, triples: Triples, share: Tensor, random: Tensor) -> Tensor:
        """What is added to each candidate; shape ``(count, rows, width)``.

        Args:
            triples: of the batch.
            share: g, of the same candidates.
            random: r, numbers in [0, 1), shape ``(count, rows, width)``.
        """
        # p_e − n_e is (1 − g)(p − n), and 1 − g is above 0.
        direction = torch.sign(triples.positive - triples.negative).detach() * random
        return self.length(triples, share, random) * direction

    def length(self, triples: Triples, share: Tensor, random: Tensor) -> Tensor:
        """0.1 · σ(1 / (wᵀ(n_h ⊙ p_h) + b)) / ‖r‖, shape ``(count, rows, 1)``."""
        divisor: Tensor = self.margin(triples.negative * triples.positive * share * share)
        divisor = torch.where(
            divisor < 0, divisor.clamp(max=-LEAST_DIVISOR), divisor.clamp(min=LEAST_DIVISOR)
        )
        norm: Tensor = torch.linalg.vector_norm(random, dim=-1, keepdim=True)
        return PUSH * torch.sigmoid(1 / divisor) / norm

    def choose(self, triples: Triples, share: Tensor, random: Tensor) -> Tensor:
        """Which candidate of each row is learnt from, shape ``(rows,)``; without gradient."""
        with torch.no_grad():
            score = torch.mul(triples.user, triples.negative).sum(-1)
            gain = torch.sub(triples.positive, triples.negative).sign_().mul_(random).mul_(triples.user)
            gained = self.length(triples, share, random)[..., 0] * gain.sum(-1)
            return (score + (1 + self.epsilon) * gained).argmax(dim=0)


class Gates:
    """The gates of a batch's candidates: two linear maps that are multiplied inside a sigmoid.

    Args:
        user: shape ``(rows, width)``.
        item: shape ``(count, rows, width)``.
    """

    def __init__(self, user: Tensor, item: Tensor) -> None:
        self._user, self._item = user, item

    def share(self) -> Tensor:
        """Share g of each factor that is hard, shape ``(count, rows, width)``."""
        return torch.sigmoid(self._item * self._user)

    def losses(self, triples: Triples) -> tuple[Tensor, Tensor]:
        """Contrastive plus disentangling loss of a batch, a scalar; and g, without gradient."""
        losses: tuple[Tensor, Tensor] = _GateLosses.apply(  # type: ignore[no-untyped-call]
            self._item, self._user, triples.user, triples.positive, triples.negative
        )
        return losses


def gates_of(tables: tuple[Tensor, Tensor], nodes: Nodes) -> Gates:
    """What the gates see of a batch.

    Args:
        tables: the linear map of all users and that of all items: a batch has more candidates than most catalogues
            have items, so they are mapped once and looked up.
        nodes: of the batch.
    """
    user, item = tables
    return Gates(F.embedding(nodes.user, user), F.embedding(nodes.negative - len(user), item))


class _GateLosses(torch.autograd.Function):
    """The two losses with their gradient written out.

    With g the gate, h = 1 − g and d = n − p, n_h − p_h is g d and p_e ⊙ n_e is h² p n, so that a few passes over
    ``(count, rows, width)`` do, and memory is used again.
    """

    @staticmethod
    def forward(
        ctx: Any, of_item: Tensor, of_user: Tensor, user: Tensor, p: Tensor, n: Tensor
    ) -> tuple[Tensor, Tensor]:
        gate = torch.mul(of_item, of_user).sigmoid_()
        # u·n_e − u·n_h = Σ u n (1 − 2 g)
        work = torch.rsub(gate, 1.0, alpha=2.0).mul_(n).mul_(user)
        padded = F.pad(work.sum(-1), (0, 0, 1, 0))  # ln(1 + Σ exp): the 1 is one more term, exp(0)
        contrastive = torch.logsumexp(padded, dim=0).mean()
        alike = torch.sub(n, p).mul_(gate)
        alike_norm = torch.linalg.vector_norm(alike, dim=-1)
        torch.sub(1.0, gate, out=work)
        apart = torch.mul(n, p).mul_(work).mul_(work)
        apart_norm = torch.linalg.vector_norm(apart, dim=-1)
        ctx.save_for_backward(
            of_item, of_user, user, p, n, gate, alike, apart, alike_norm, apart_norm, padded
        )
        ctx.mark_non_differentiable(gate)
        return contrastive + alike_norm.mean() + apart_norm.sum(dim=0).mean(), gate

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        of_item, of_user, user, p, n, gate, alike, apart, alike_norm, apart_norm, padded = ctx.saved_tensors
        count, rows, _ = n.shape
        scale = gradients[0] / rows
        # ‖g d‖: by n it is g · (g d)/‖·‖, by p the negative of that, by g it is d · (g d)/‖·‖.
        unit = alike * (scale / count / alike_norm.clamp(min=LEAST_NORM))[..., None]
        by_gate = torch.sub(n, p).mul_(unit)
        by_n = unit.mul_(gate)
        by_p = by_n.sum(dim=0).neg_()
        # ‖h² p n‖: by n it is h² p · unit, by p h² n · unit, by g −2 h p n · unit.
        easy = torch.sub(1.0, gate)
        unit = apart * (scale / apart_norm.clamp(min=LEAST_NORM))[..., None]
        unit.mul_(easy)
        work = torch.mul(n, p)
        by_gate.addcmul_(unit, work, value=-2.0)
        unit.mul_(easy)
        by_n.addcmul_(unit, p)
        by_p.add_(unit.mul_(n).sum(dim=0))
        # Σ u n (1 − 2 g), weighted as the softmax of the gaps.
        weight = (torch.softmax(padded, dim=0)[1:] * scale)[..., None]
        torch.mul(user, weight, out=work)
        bare = torch.sub(easy, gate)
        by_n.addcmul_(work, bare)
        by_gate.addcmul_(work, n, value=-2.0)
        by_user = bare.mul_(n).mul_(weight).sum(dim=0)
        by_gate.mul_(gate).mul_(easy)
        by_of_user = torch.mul(by_gate, of_item, out=work).sum(dim=0)
        return by_gate.mul_(of_user), by_of_user, by_user, by_p, by_n
