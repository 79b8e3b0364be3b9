"""MixGCF (Huang et al., KDD 2021): for graph encoders, a negative put together from many and from the positive.

In every layer each candidate is mixed with the positive, α p + (1 − α) n with α ~ U[0, 1), and the mixture that scores
highest in that layer is kept; the negative is what the encoder makes of the layers' winners.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intune.pipelines.errors import ConfigError
from intune.workloads.pairs.lightgcn import LightGCN
from intune.workloads.pairs.pairwise import Encoder, Nodes, bpr, half_squares, look_up


class MixGCF(nn.Module):
    """Bayesian personalised ranking against a mixed negative, for encoders that average their layers.

    Args:
        l2: as of `BPR`; of the first candidate, since the mixed one has no trained embedding.
    """

    def __init__(self, l2: float = 1e-5) -> None:
        super().__init__()
        if not 0 <= l2 < float("inf"):
            raise ConfigError(f"`l2` must be 0 or more, but {l2} was found")
        self.l2 = l2

    def forward(self, encoder: Encoder, nodes: Nodes) -> Tensor:
        """The loss of a batch.

        Raises:
            ConfigError: the encoder does not average its layers.
        """
        if not isinstance(encoder, LightGCN):
            raise ConfigError(
                f"`negatives`='mixgcf' needs LightGCN's layers, but {type(encoder).__name__} was given"
            )
        layers = encoder.layers()
        mixed = torch.stack([self.mix(layer, nodes) for layer in layers]).mean(0)
        final = torch.stack(layers).mean(0)
        user, positive = F.embedding(nodes.user, final), F.embedding(nodes.positive, final)
        first = nodes.keep(torch.zeros_like(nodes.user))
        return bpr(user, positive, mixed) + self.l2 * half_squares(look_up(encoder.weight, first))

    @staticmethod
    def mix(layer: Tensor, nodes: Nodes, share: Tensor | None = None) -> Tensor:
        """The hardest mixture of one layer, shape ``(rows, dim)``.

        Args:
            layer: embeddings after it, ``(users + items, dim)``.
            nodes: of the batch.
            share: α of each candidate, ``(count, rows)``; drawn by default.
        """
        if share is None:
            share = torch.rand(nodes.negative.shape, dtype=layer.dtype, device=layer.device)
        with torch.no_grad():
            triples = look_up(layer, nodes)
            own = (triples.user * triples.positive).sum(-1)
            others = (triples.user * triples.negative).sum(-1)
            best = (share * own + (1 - share) * others).argmax(
                dim=0
            )  # of the mixtures' scores, which are linear
        chosen = look_up(layer, nodes.keep(best))
        of_positive = share.gather(0, best[None])[0][:, None]
        return of_positive * chosen.positive + (1 - of_positive) * chosen.negative[0]
