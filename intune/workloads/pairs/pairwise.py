"""What models have in common that embed users and items, score by dot product and learn from pairs.

An `Encoder` gives embeddings; an objective, such as `BPR`, gives the loss of a batch of users, items that they met and
items that they did not. Encoders: `matrix_factorisation.py`, `lightgcn.py`, `sheaf.py`. Objectives: here, `ans.py`,
`mixgcf.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intune.pipelines.errors import ConfigError
from intune.pipelines.whole import at_least

INITIAL_STD = 0.1
"""Of embeddings, as in LightGCN's and the sheaf network's public code."""


class Encoder(nn.Module):
    """Embeds users and items: a row each of `weight`, users first.

    Args:
        users, items: how many.
        dim: width of the trained embeddings.
        seed: of their initial values, N(0, 0.1²).
    """

    def __init__(self, users: int, items: int, dim: int, *, seed: int = 0) -> None:
        super().__init__()
        for name, value in (("users", users), ("items", items), ("dim", dim)):
            at_least(name, value, 1)
        self.users, self.items, self.dim = users, items, dim
        self.generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.empty(users + items, dim))
        with torch.no_grad():
            self.weight.normal_(0, INITIAL_STD, generator=self.generator)

    @property
    def width(self) -> int:
        """Width of what `forward` gives."""
        return self.dim

    def layers(self) -> list[Tensor]:
        """Embeddings after every layer, the trained ones first; each of shape ``(users + items, dim)``."""
        return [self.weight]

    def forward(self) -> Tensor:
        """Embeddings whose dot product is the score, shape ``(users + items, width)``."""
        return self.weight

    def scores(self, users: Tensor) -> Tensor:
        """Scores of all items for `users`, shape ``(rows, items)``."""
        final: Tensor = self()
        return final[users] @ final[self.users :].t()


class Nodes(NamedTuple):
    """A batch as rows of an encoder's table: users and items that they met, ``(rows,)``, and candidates that they did
    not, ``(count, rows)``: with the candidates first, what is the same for all of them is not spread between them,
    and operations on both are several times as fast."""

    user: Tensor
    positive: Tensor
    negative: Tensor

    def keep(self, chosen: Tensor) -> Nodes:
        """Of each row only the candidate at `chosen`, shape ``(rows,)``."""
        return Nodes(self.user, self.positive, self.negative.gather(0, chosen[None]))


class Triples(NamedTuple):
    """The embeddings of a batch: ``(rows, width)`` twice, and of the candidates ``(count, rows, width)``."""

    user: Tensor
    positive: Tensor
    negative: Tensor

    def keep(self, chosen: Tensor) -> Triples:
        """Of each row only the candidate at `chosen`, shape ``(rows,)``."""
        return Triples(self.user, self.positive, pick(self.negative, chosen))


def pick(candidates: Tensor, chosen: Tensor) -> Tensor:
    """Of ``(count, rows, width)`` the candidate at `chosen`, ``(rows,)``, of each row: ``(1, rows, width)``."""
    return candidates[chosen, torch.arange(len(chosen), device=chosen.device)][None]


def look_up(table: Tensor, nodes: Nodes) -> Triples:
    """The rows of `table`, shape ``(users + items, width)``, at the nodes of a batch."""
    return Triples(*(F.embedding(node, table) for node in nodes))


def bpr(user: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Mean −ln σ(u·p − u·n) (Rendle et al., UAI 2009); all of shape ``(rows, width)``."""
    return F.softplus((user * (negative - positive)).sum(-1)).mean()


def half_squares(triples: Triples) -> Tensor:
    """½(‖u‖² + ‖p‖² + Σ‖n‖²), mean over rows."""
    total = sum((part.square().sum() for part in triples), torch.zeros((), device=triples.user.device))
    return total / (2 * len(triples.user))


def hardest(triples: Triples) -> Tensor:
    """Which candidate of each row scores highest, shape ``(rows,)``; without gradient."""
    with torch.no_grad():
        return (triples.user * triples.negative).sum(-1).argmax(dim=0)


def refuse_second_derivatives() -> None:
    """Raise a `ConfigError` in a backward pass that is to be differentiated itself: to autograd a gradient that was
    written out in the forward pass is a constant, and what depends on it would silently be left out."""
    if torch.is_grad_enabled():
        raise ConfigError(
            "`create_graph=True` asks for second derivatives, but the gradient of this loss is written out and has "
            "none; leave it out, or make the loss of `bpr` and `half_squares`, which have them"
        )


class BPR(nn.Module):
    """Bayesian personalised ranking. Of several negatives the one that scores highest is used: DNS (SIGIR 2013).

    There are no second derivatives; `bpr` and `half_squares` have them.

    Args:
        l2: weight of ½ of the squared norms of the trained embeddings, per row.
    """

    def __init__(self, l2: float = 1e-5) -> None:
        super().__init__()
        if not 0 <= l2 < float("inf"):
            raise ConfigError(f"`l2` must be 0 or more, but {l2} was found")
        self.l2 = l2

    def forward(self, encoder: Encoder, nodes: Nodes) -> Tensor:
        """The loss of a batch."""
        final: Tensor = encoder()
        if len(nodes.negative) > 1:
            with torch.no_grad():
                nodes = nodes.keep(hardest(look_up(final, nodes)))
        same = final is encoder.weight
        loss: Tensor = _BprLoss.apply(final, nodes, self.l2 if same else 0.0)  # type: ignore[no-untyped-call]
        return loss if same else loss + self.l2 * half_squares(look_up(encoder.weight, nodes))


class _BprLoss(torch.autograd.Function):
    """`bpr` plus a weight times `half_squares` of rows of a table, with the gradient written out: a step is so small
    that autograd's own work, and a gradient of the whole table for each of the three, would be half of it."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, nodes: Nodes, l2: float) -> Tensor:
        rows = len(nodes.user)
        places = torch.cat([nodes.user, nodes.positive, nodes.negative[0]])
        found = table.index_select(0, places)
        user, positive, negative = found.view(3, rows, -1)
        difference = negative - positive
        gap = (user * difference).sum(-1)
        loss = F.softplus(gap).mean()
        slope = (torch.sigmoid(gap) / rows)[:, None]
        gradient = torch.empty_like(found)
        by_user, by_positive, by_negative = gradient.view(3, rows, -1)
        torch.mul(difference, slope, out=by_user)
        torch.mul(user, slope, out=by_negative)
        torch.neg(by_negative, out=by_positive)
        if l2:
            loss += l2 / 2 / rows * torch.linalg.vector_norm(found).square()
            gradient.add_(found, alpha=l2 / rows)
        ctx.save_for_backward(places, gradient)
        ctx.shape = table.shape
        return loss

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        refuse_second_derivatives()
        places, gradient = ctx.saved_tensors
        whole = gradient.new_zeros(ctx.shape).index_add_(0, places, gradient)
        return whole.mul_(upstream[0]), None, None
