"""What LLMSeqPrompt asks of a language model, and the small one that is trained here: a causal transformer over words.

A model of the hub is `hub_language_model.py`'s; what is said to either is `llm_seq_prompt.py`'s.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intune.pipelines.schema import Array
from intune.pipelines.whole import at_least
from intune.workloads.sequences.attention import Block, BlockConfig, Cache, initialise, share
from intune.workloads.sequences.stages import IGNORED

_PIECE = re.compile(r" ?[^\W_]+| ?[^\w\s]|\s|_")
_BYTES = 256
_NEWLINE = ord("\n")


class Tokenizer(Protocol):
    """From text to tokens; small, picklable: the pipeline's workers have one each."""

    def encode(self, text: str) -> list[int]:
        """Tokens of a text."""


class LanguageModel(Protocol):
    """A causal language model that can be trained and asked."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Of its texts."""

    @property
    def context(self) -> int:
        """The most tokens that it can be given."""

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """Mean cross-entropy of tokens given those before them.

        Args:
            batch: ``tokens`` and ``target``, int64, both of shape ``(rows, length)``: the same tokens, but for
                `IGNORED` at padding in both and at what need not be learned in the latter.
        """

    def complete(self, prompt: str, *, count: int, most: int, generator: torch.Generator) -> list[str]:
        """What follows the prompt up to the end of its line, `count` draws of at most `most` tokens."""


@dataclass(frozen=True, kw_only=True)
class WordTokenizer:
    """Words with the space before them, signs and spaces are a token each; a piece that is not known is spelt in bytes.

    Nothing is lost: the texts of the tokens of a text, joined, are the text.

    Attributes:
        words: the pieces known, each once. Token 256 + i is piece i; tokens 0 to 255 are bytes.
    """

    words: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "_places", {word: _BYTES + i for i, word in enumerate(self.words)})

    @classmethod
    def of(cls, texts: Iterable[str], *, least: int = 1) -> WordTokenizer:
        """Knows the pieces that occur `least` times or more in `texts`, the most frequent first."""
        counts = Counter(piece for text in texts for piece in _PIECE.findall(text))
        ranked = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
        # A newline ends every line, so it stays the one token that is its byte.
        return cls(words=tuple(piece for piece, count in ranked if count >= least and piece != "\n"))

    @property
    def size(self) -> int:
        """Number of tokens."""
        return _BYTES + len(self.words)

    def encode(self, text: str) -> list[int]:
        """Tokens of a text."""
        places: dict[str, int] = self._places  # type: ignore[attr-defined]
        tokens: list[int] = []
        for piece in _PIECE.findall(text):
            place = places.get(piece)
            tokens += piece.encode() if place is None else (place,)
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; bytes that are no UTF-8 become replacement signs."""
        parts = [
            self.words[token - _BYTES].encode() if token >= _BYTES else bytes((token,)) for token in tokens
        ]
        return b"".join(parts).decode(errors="replace")


@dataclass(frozen=True, kw_only=True)
class SmallLanguageModelConfig:
    """Shape of the language model that is trained here.

    Attributes:
        width, layers, heads: of the transformer, pre-norm as GPT-2's.
        context: tokens that it looks back at.
        dropout: of embeddings, sublayers and attention weights.
        temperature: logits are divided by it before a token is drawn; lower is less varied.
    """

    width: int = 128
    layers: int = 2
    heads: int = 4
    context: int = 256
    dropout: float = 0.1
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for name, least in (("layers", 1), ("context", 2)):
            at_least(name, getattr(self, name), least)
        share("dropout", self.dropout)
        self.block  # noqa: B018 - checks width and heads

    @property
    def block(self) -> BlockConfig:
        """Shape of each block."""
        return BlockConfig(
            width=self.width,
            heads=self.heads,
            feed_forward=4 * self.width,
            dropout=self.dropout,
            norm="pre",
            causal=True,
        )


class SmallLanguageModel(nn.Module):
    """A causal transformer (after GPT-2) over the tokens of a `WordTokenizer`.

    Args:
        tokenizer: knows the words.
        config: the shape.
        seed: decides the initial values.
    """

    def __init__(
        self, tokenizer: WordTokenizer, config: SmallLanguageModelConfig | None = None, *, seed: int = 0
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.config = config if config is not None else SmallLanguageModelConfig()
        self.context = self.config.context
        self.tokens = nn.Embedding(tokenizer.size, self.config.width)
        self.positions = nn.Embedding(self.context, self.config.width)
        self.dropout = nn.Dropout(self.config.dropout)
        self.blocks = nn.ModuleList(Block(self.config.block) for _ in range(self.config.layers))
        self.norm = nn.LayerNorm(self.config.width, eps=self.config.block.eps)
        initialise(self.modules(), torch.Generator().manual_seed(seed))

    def encode(self, tokens: Tensor) -> Tensor:
        """Hidden vectors, shape ``(rows, length, width)``; `tokens` int64, ``(rows, length)``, padded on the right.

        Causality keeps padding on the right away from what stands before it.
        """
        x = self.dropout(self.tokens(tokens) + self.positions.weight[: tokens.shape[1]])
        for block in self.blocks:
            x = block(x)
        hidden: Tensor = self.norm(x)
        return hidden

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the token after each, shape ``(rows, length, vocabulary)``; arguments as of `encode`."""
        return F.linear(self.encode(tokens), self.tokens.weight)

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """See `LanguageModel.loss`."""
        target = batch["target"][:, 1:]
        learned = target != IGNORED
        hidden = self.encode(batch["tokens"][:, :-1].clamp(min=0))
        return F.cross_entropy(F.linear(hidden[learned], self.tokens.weight), target[learned])

    @torch.inference_mode()
    def complete(self, prompt: str, *, count: int, most: int, generator: torch.Generator) -> list[str]:
        """See `LanguageModel.complete`; of a prompt too long for `context` with `most` more the end is read."""
        known = self.tokenizer.encode(prompt)[-max(1, self.context - most) :]
        most = min(most, self.context - len(known) + 1)
        device = self.tokens.weight.device
        logits, caches = self._step(torch.tensor([known], device=device), 0, None)
        caches = [(key.expand(count, -1, -1, -1), value.expand(count, -1, -1, -1)) for key, value in caches]
        logits = logits.expand(count, -1)
        lines: list[list[int]] = [[] for _ in range(count)]
        running = np.ones(count, dtype=np.bool_)
        for place in range(most):
            # Drawn on the CPU, where the generator is, so that a seed means the same everywhere.
            weights = F.softmax(logits / self.config.temperature, dim=1).cpu()
            drawn = torch.multinomial(weights, 1, generator=generator)
            for row, token in enumerate(drawn[:, 0].tolist()):
                running[row] &= token != _NEWLINE
                if running[row]:
                    lines[row].append(token)
            if not running.any() or place == most - 1:
                break
            logits, caches = self._step(drawn.to(device), len(known) + place, caches)
        return [self.tokenizer.decode(line) for line in lines]

    def _step(self, tokens: Tensor, first: int, caches: list[Cache] | None) -> tuple[Tensor, list[Cache]]:
        """Logits after the last of `tokens`, which stand at `first` and on; and the caches for what follows."""
        x = self.tokens(tokens) + self.positions.weight[first : first + tokens.shape[1]]
        made: list[Cache] = []
        for number, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            x, cache = block.step(x, None, None if caches is None else caches[number])
            made.append(cache)
        return F.linear(self.norm(x[:, -1]), self.tokens.weight), made


def pad_tokens(rows: Sequence[Sequence[int]]) -> Array:
    """Tokens as a matrix, int64, shape ``(rows, longest)``, `IGNORED` after each row's end."""
    longest = max((len(row) for row in rows), default=0)
    made = np.full((len(rows), longest), IGNORED, dtype=np.int64)
    for place, row in enumerate(rows):
        made[place, : len(row)] = row
    return made
