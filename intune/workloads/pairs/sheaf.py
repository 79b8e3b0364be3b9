"""The sheaf network for recommendation (arXiv 2304.09097): the graph's edges learn how their ends compare.

A node carries `stalk` vectors of `channels` numbers, together its embedding. Both ends of an edge have a learned
``stalk × stalk`` restriction map, a function of the two embeddings; the sheaf Laplacian measures how far the ends
disagree once mapped onto the edge, and every layer takes a step against it. With `stalk` 1 this is the authors' public
code; theirs has no larger stalks, which the paper describes. There the seen items' scores are multiplied by 0 in the
evaluation, which ranks them above all negative scores; here they get −∞ (`evaluation.py`).

For edges {u, v} with maps ``M_uv`` (of u's end) and ``M_vu``:

- ``M_uv = tanh(reshape(W [x_u ‖ x_v]))``,
- ``L_vv = Σ_u M_vuᵀ M_vu``, ``L_uv = −M_uvᵀ M_vu``,
- ``L̂ = C⁻¹ L C⁻ᵀ`` with ``C Cᵀ = L_vv + I`` for each node (Cholesky): for `stalk` 1 this is D^{-½} L D^{-½}; the
  eigenvalues of L̂ lie in [0, 2) for every stalk,
- a layer: ``x ← x − L̂ (W' x + b)``; the final embedding is all layers side by side.

On MovieLens 100k the trained ``W'`` costs more than the sheaf gains: with it NDCG@10 was below matrix factorisation's,
without it above. Two options of our own make that easy to see: ``linear=False`` takes ``W' = I, b = 0``, and `offset`
is added inside the tanh, so that with 1 training begins near LightGCN's propagation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intune.pipelines.errors import ConfigError
from intune.pipelines.whole import at_least
from intune.workloads.pairs.graph import Ints, SymmetricPattern, bipartite_edges
from intune.workloads.pairs.pairwise import Encoder


class SheafLaplacian(nn.Module):
    """Learns the restriction maps of one layer and applies the normalised Laplacian they make.

    Args:
        pattern: of the graph, both directions of every edge.
        dim: width of the embeddings.
        stalk: dimension of the stalks, a divisor of `dim`.
        offset: added to the diagonal of every map, inside the tanh.
        generator: of the maps' initial weights, U(±1/√(2 dim)) as of a linear layer.
    """

    def __init__(
        self,
        pattern: SymmetricPattern,
        *,
        dim: int,
        stalk: int,
        offset: float = 0.0,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.offset = offset
        self.pattern = pattern
        self.stalk = stalk
        self.maps = nn.Parameter(_uniform((2 * dim, stalk * stalk), 2 * dim, generator))

    def restrictions(self, x: Tensor) -> Tensor:
        """The map of each entry's row end, shape ``(entries, stalk, stalk)``, from embeddings ``(nodes, dim)``."""
        # W [x_u ‖ x_v] is a sum of a part of each end: two small products in place of one over all edges.
        own, other = (x @ self.maps.view(2, -1, self.stalk**2)).unbind(0)
        raw = self.pattern.of_row(own) + self.pattern.of_column(other)
        if self.offset:
            raw = raw + self.offset * torch.eye(self.stalk, dtype=raw.dtype, device=raw.device).flatten()
        return torch.tanh(raw).view(-1, self.stalk, self.stalk)

    def blocks(self, restrictions: Tensor) -> tuple[Tensor, Tensor]:
        """The Laplacian's blocks, from all maps.

        Returns:
            Those of the entries, ``(entries, stalk, stalk)``, and those of the diagonal, ``(nodes, stalk, stalk)``.
        """
        transposed = restrictions.transpose(1, 2)
        times = torch.mul if self.stalk == 1 else torch.matmul
        off = -times(transposed, self.pattern.mirrored(restrictions))
        diagonal = self.pattern.row_sums(times(transposed, restrictions).flatten(1))
        return off, diagonal.view(-1, self.stalk, self.stalk)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """L̂ y with the maps that `x` makes; both of shape ``(nodes, dim)``."""
        off, diagonal = self.blocks(self.restrictions(x))
        y = y.view(len(y), self.stalk, -1)
        identity = torch.eye(self.stalk, dtype=diagonal.dtype, device=diagonal.device)
        if self.stalk == 1:
            root = (diagonal + 1).rsqrt()
            y = root * y
            y = root * (diagonal * y + self._off_diagonal(off, y))
        else:
            lower = torch.linalg.cholesky(diagonal + identity)
            y = torch.linalg.solve_triangular(lower.mT, y, upper=True)
            y = diagonal @ y + self._off_diagonal(off, y)
            y = torch.linalg.solve_triangular(lower, y, upper=False)
        return y.flatten(1)

    def _off_diagonal(self, off: Tensor, y: Tensor) -> Tensor:
        """The entries' blocks times `y`, ``(nodes, stalk, channels)``: a sparse product for each pair of places."""
        rows = []
        for i in range(self.stalk):
            parts = [
                # Block (i, j) of an entry is block (j, i) of its mirror image: symmetric where i is j.
                self.pattern.product(off[:, i, j].contiguous(), y[:, j].contiguous(), symmetric=i == j)
                for j in range(self.stalk)
            ]
            rows.append(torch.stack(parts).sum(0) if len(parts) > 1 else parts[0])
        return torch.stack(rows, dim=1)


class SheafLayer(nn.Module):
    """``x − step · L̂ (W x + b)``, or ``x − step · L̂ x`` where not `linear`."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        pattern: SymmetricPattern,
        *,
        dim: int,
        stalk: int,
        step: float,
        linear: bool = True,
        offset: float = 0.0,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.step = step
        self.laplacian = SheafLaplacian(pattern, dim=dim, stalk=stalk, offset=offset, generator=generator)
        self.weight = nn.Parameter(_uniform((dim, dim), dim, generator)) if linear else None
        self.bias = nn.Parameter(_uniform((dim,), dim, generator)) if linear else None

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings after the layer, of the shape of `x`, ``(nodes, dim)``."""
        y = x if self.weight is None else F.linear(x, self.weight, self.bias)
        moved: Tensor = self.laplacian(x, y)
        return x - self.step * moved


class SheafNetwork(Encoder):
    """Layers of sheaf diffusion on the graph of users and items.

    (users + items) · dim + depth · (dim² + dim + 2 · dim · stalk²) parameters.

    Args:
        user, item: the interactions that are the graph's edges, shape ``(edges,)``, each once.
        users, items: how many there are.
        dim: width of the trained embeddings; the final ones are ``(depth + 1) · dim`` wide.
        depth: layers.
        stalk: dimension of the stalks, a divisor of `dim`.
        step: how far a layer goes against the Laplacian.
        linear: whether layers have the authors' trained linear map; without, dim² + dim fewer parameters a layer.
        offset: see `SheafLaplacian`; the authors have none.
        seed: of all initial parameters.
    """

    def __init__(
        self,
        user: Ints,
        item: Ints,
        *,
        users: int,
        items: int,
        dim: int = 64,
        depth: int = 5,
        stalk: int = 1,
        step: float = 1.0,
        linear: bool = True,
        offset: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(users, items, dim, seed=seed)
        if stalk < 1 or dim % stalk:
            raise ConfigError(f"`stalk` must divide `dim`={dim}, but {stalk} was found")
        at_least("depth", depth, 1)
        if not 0 < step < float("inf"):
            raise ConfigError(f"`step` must be above 0, but {step} was found")
        if not -float("inf") < offset < float("inf"):
            raise ConfigError(f"`offset` must be a finite number, but {offset} was found")
        self.depth = depth
        pattern = SymmetricPattern(*bipartite_edges(user, item, users), users + items)
        self.diffusion = nn.ModuleList(
            SheafLayer(
                pattern,
                dim=dim,
                stalk=stalk,
                step=step,
                linear=linear,
                offset=offset,
                generator=self.generator,
            )
            for _ in range(depth)
        )

    @property
    def width(self) -> int:
        """Width of what `forward` gives."""
        return (self.depth + 1) * self.dim

    def layers(self) -> list[Tensor]:
        """See `Encoder.layers`: `depth` + 1 of them. They are of the parameters' type under autocast, too: torch has no
        sparse products and Cholesky decompositions of fewer bits."""
        layers: list[Tensor] = [self.weight]
        with torch.autocast(self.weight.device.type, enabled=False):
            for layer in self.diffusion:
                layers.append(layer(layers[-1]))
        return layers

    def forward(self) -> Tensor:
        """All layers side by side."""
        return torch.cat(self.layers(), dim=1)


def _uniform(shape: tuple[int, ...], inputs: int, generator: torch.Generator) -> Tensor:
    """As torch's linear layers begin, with a generator of our own: U(−1/√inputs, 1/√inputs)."""
    bound = inputs**-0.5
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)
