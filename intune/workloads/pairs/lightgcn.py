"""LightGCN (He et al., SIGIR 2020, arXiv 2002.02126): embeddings averaged over neighbourhoods, no other parameters."""

from __future__ import annotations

from torch import Tensor

from intune.pipelines.errors import ConfigError
from intune.workloads.pairs.graph import Ints, normalised_adjacency
from intune.workloads.pairs.pairwise import Encoder


class LightGCN(Encoder):
    """Layer k + 1 is D^{-½} A D^{-½} times layer k (eq. 7); what scores is the mean of all layers (eq. 4).

    Args:
        user, item: the interactions that are the graph's edges, shape ``(edges,)``, each once.
        users, items: how many there are.
        dim: width.
        depth: layers beyond the trained embeddings; 0 is matrix factorisation.
        seed: of the initial embeddings.
    """

    adjacency: Tensor

    def __init__(
        self, user: Ints, item: Ints, *, users: int, items: int, dim: int = 64, depth: int = 3, seed: int = 0
    ) -> None:
        super().__init__(users, items, dim, seed=seed)
        if depth < 0:
            raise ConfigError(f"`depth` must not be negative, but {depth} was found")
        self.depth = depth
        self.pattern, adjacency = normalised_adjacency(user, item, users=users, items=items)
        self.register_buffer("adjacency", adjacency, persistent=False)

    def layers(self) -> list[Tensor]:
        """See `Encoder.layers`: `depth` + 1 of them."""
        layers: list[Tensor] = [self.weight]
        for _ in range(self.depth):
            layers.append(self.pattern.product(self.adjacency, layers[-1], symmetric=True))
        return layers

    def forward(self) -> Tensor:
        """The mean of all layers."""
        layers = self.layers()
        total = layers[0]
        for layer in layers[1:]:
            total = total + layer
        return total / len(layers)
