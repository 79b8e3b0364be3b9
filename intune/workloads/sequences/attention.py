"""Transformer blocks (Vaswani et al. 2017, arXiv 1706.03762) that the sequence models share, and their initialisation.

Post-norm as in BERT, pre-norm as in SASRec and GPT-2; what is embedded and what is predicted is the models' own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intune.pipelines.errors import ConfigError
from intune.pipelines.whole import at_least
from intune.workloads.training.dropout import Dropout, dropout

Activation: TypeAlias = Literal["gelu", "relu"]
Cache: TypeAlias = tuple[Tensor, Tensor]
"""Keys and values of the positions so far, each of shape ``(rows, heads, positions, head width)``."""


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """Shape of a transformer block.

    Attributes:
        width: of every position's vector.
        heads: attention heads, each `width` // `heads` wide; a remainder is not attended with.
        feed_forward: width of the hidden layer between the two linear ones.
        dropout: share of the values dropped, after attention, after each sublayer, and of the attention weights.
        activation: between the two linear layers.
        norm: ``"post"``: LN(x + f(x)), as in BERT; ``"pre"``: x + f(LN(x)).
        causal: whether position i attends to positions j ≤ i only.
        eps: added to the variance in layer normalisation.
    """

    width: int
    heads: int
    feed_forward: int
    dropout: float = 0.0
    activation: Activation = "gelu"
    norm: Literal["pre", "post"] = "post"
    causal: bool = False
    eps: float = 1e-5

    def __post_init__(self) -> None:
        at_least("width", self.width, 1)
        at_least("heads", self.heads, 1)
        at_least("feed_forward", self.feed_forward, 1)
        if self.heads > self.width:
            raise ConfigError(f"`heads` must be at most `width` ({self.width}), but {self.heads} was found")
        share("dropout", self.dropout)

    @property
    def attended(self) -> int:
        """Width of all heads together: `width`, or the multiple of `heads` below it."""
        return self.width // self.heads * self.heads


class SelfAttention(nn.Module):
    """Multi-head scaled dot-product attention of a sequence to itself.

    Args:
        config: width, heads, dropout of the weights and whether it is causal.
    """

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.dropout
        self.causal = config.causal
        self.projection = nn.Linear(config.width, 3 * config.attended)
        self.output = nn.Linear(config.attended, config.width)

    def forward(self, x: Tensor, allowed: Tensor | None = None) -> Tensor:
        """New vectors, shape ``(rows, positions, width)``.

        Args:
            x: shape ``(rows, positions, width)``.
            allowed: bool, broadcast to ``(rows, heads, positions, positions)``: True where position i (second to
                last axis) may attend to position j (last axis); every position needs one. None: to all, or, if
                causal, to all up to itself.
        """
        mixed, _ = self.step(x, allowed, None)
        return mixed

    def step(self, x: Tensor, allowed: Tensor | None, cache: Cache | None) -> tuple[Tensor, Cache]:
        """The same for positions that follow those of `cache`; also returns the cache for what follows."""
        positions = x.shape[1]
        query, key, value = (
            self.projection(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        )
        if cache is not None:
            key, value = torch.cat([cache[0], key], dim=2), torch.cat([cache[1], value], dim=2)
        mixed = self._attend(
            query, key, value, allowed, causal=self.causal and allowed is None and positions > 1
        )
        joined: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return joined, (key, value)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, *, causal: bool
    ) -> Tensor:
        if not (self.training and self.dropout) or query.device.type != "cpu":
            share = self.dropout if self.training else 0.0
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask=allowed, dropout_p=share, is_causal=causal
            )
        # With dropout, torch does on the CPU what is written here, with random numbers that are slow to draw.
        scores = query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)
        if causal:
            allowed = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        if allowed is not None:
            scores = scores + torch.zeros(allowed.shape, dtype=scores.dtype).masked_fill_(
                ~allowed, -torch.inf
            )
        mixed: Tensor = dropout(torch.softmax(scores, dim=-1), self.dropout) @ value
        return mixed


class Block(nn.Module):
    """Self-attention and a feed-forward net, each with a residual connection, dropout and layer normalisation."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.post = config.norm == "post"
        self.attention = SelfAttention(config)
        self.attention_norm = nn.LayerNorm(config.width, eps=config.eps)
        self.expand = nn.Linear(config.width, config.feed_forward)
        self.contract = nn.Linear(config.feed_forward, config.width)
        self.feed_forward_norm = nn.LayerNorm(config.width, eps=config.eps)
        self.activation = F.gelu if config.activation == "gelu" else F.relu
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, allowed: Tensor | None = None) -> Tensor:
        """As `SelfAttention.forward`, through the whole block."""
        mixed, _ = self.step(x, allowed, None)
        return mixed

    def step(self, x: Tensor, allowed: Tensor | None, cache: Cache | None) -> tuple[Tensor, Cache]:
        """As `SelfAttention.step`, through the whole block."""
        if self.post:
            mixed, cache = self.attention.step(x, allowed, cache)
            x = self.attention_norm(x + self.dropout(mixed))
            x = self.feed_forward_norm(x + self.dropout(self._feed_forward(x)))
        else:
            mixed, cache = self.attention.step(self.attention_norm(x), allowed, cache)
            x = x + self.dropout(mixed)
            x = x + self.dropout(self._feed_forward(self.feed_forward_norm(x)))
        return x, cache

    def _feed_forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.contract(self.dropout(self.activation(self.expand(x))))
        return hidden


def attend_to(present: Tensor, *, causal: bool = False) -> Tensor:
    """Which positions may attend to which, for padded sequences.

    A padded position may attend to itself alone, so that its weights have something to sum over; its vector is
    never attended to.

    Args:
        present: bool, shape ``(rows, positions)``, False at padding.
        causal: whether position i attends to positions j ≤ i only.

    Returns:
        bool, shape ``(rows, 1, positions, positions)``.
    """
    positions = present.shape[1]
    allowed = present.unsqueeze(1) | torch.eye(positions, dtype=torch.bool, device=present.device)
    if causal:
        allowed = allowed.tril()
    return allowed.unsqueeze(1)


def initialise(modules: Iterable[nn.Module], generator: torch.Generator, std: float = 0.02) -> None:
    """BERT's and GPT-2's initialisation: weights and embeddings from N(0, `std`) cut at 2 `std`, biases 0, norms 1."""
    for module in modules:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std, generator=generator)
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
        if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
            nn.init.zeros_(module.bias)


def share(name: str, value: float) -> None:
    """Raise a `ConfigError` unless 0 ≤ `value` < 1."""
    if not 0 <= value < 1:
        raise ConfigError(f"`{name}` must be a share, 0 or more and less than 1, but {value!r} was found")
