"""Unified Embedding: the ids of all features in one table ("feature multiplexing", arXiv 2305.12102).

Chunk c of feature f takes the row hash(id, salt = (f, c)) mod B of a table that all features share; a feature's
embedding is its chunks side by side. Ids of different features that meet in a row do less harm than ids of one feature
would, since the layers above see each feature through weights of its own.

Hashing is done here and not in a stage of the pipeline: a stage would hand over an id per chunk, lists included, and
would tie the data to one size of table. What is to be hashed are 64-bit words; a stage that makes them of text is
`transforms.Hash` with a size of 2^62, where ids practically never meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intune.pipelines.errors import ConfigError
from intune.pipelines.schema import Ragged
from intune.pipelines.transforms.mixing import FIRST_FACTOR, SECOND_FACTOR, key_of
from intune.pipelines.whole import at_least
from intune.workloads.clicks.embedding import FeatureEmbedding, sum_bags, uniform_

WORD_IDS = 1 << 62
"""Ids hashed to this size are as good as distinct: of ten million, two meet with a chance of one in 90,000."""


@dataclass(frozen=True, kw_only=True)
class UnifiedConfig:
    """Shape of the table or tables that all features share.

    Attributes:
        rows: rows B of each table.
        chunk_dim: width of a row, and so of a chunk.
        chunks: chunks of each feature, one number for all or one for each; a feature's width is chunks × `chunk_dim`.
        tables: how many tables; chunk number k, counted through all features, is in table k mod `tables`.
        seed: of the hash; another seed gives another, independent assignment of ids to rows.
    """

    rows: int
    chunk_dim: int
    chunks: int | tuple[int, ...] = 1
    tables: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("rows", 1), ("chunk_dim", 1), ("tables", 1), ("seed", 0)):
            at_least(name, getattr(self, name), least)
        if not isinstance(self.chunks, int):
            # Lists are what a checkpoint or JSON makes of tuples.
            object.__setattr__(self, "chunks", tuple(self.chunks))
        counts = (self.chunks,) if isinstance(self.chunks, int) else self.chunks
        if not counts or min(counts) < 1:
            raise ConfigError(f"`chunks` must be at least 1 for every feature, but {self.chunks} was found")

    @property
    def parameters(self) -> int:
        """Numbers in all tables."""
        return self.tables * self.rows * self.chunk_dim

    def chunks_of(self, features: int) -> tuple[int, ...]:
        """Chunks of each of so many features.

        Raises:
            ConfigError: `chunks` lists another number of features.
        """
        if isinstance(self.chunks, int):
            return (self.chunks,) * features
        if len(self.chunks) != features:
            raise ConfigError(
                f"`chunks` must have a number for each of the {features} features, but {len(self.chunks)} were found"
            )
        return self.chunks

    def widths_of(self, features: int) -> tuple[int, ...]:
        """Width of the embedding of each of so many features."""
        return tuple(count * self.chunk_dim for count in self.chunks_of(features))


class UnifiedEmbedding(FeatureEmbedding):
    """Sum-pooled embedding bags of all features out of shared tables; takes ids as `StackedEmbedding` does, any int64.

    Args:
        features: the features' names, in the order of their columns. A name is part of the salt, so that a feature
            added later leaves the others' rows where they are.
        config: of the tables.
        sparse: whether gradients are sparse: only the rows that a batch touches cost anything.
        device: where the tables live; ``"meta"`` allocates nothing.

    The tables are not initialised here; see `initialise`.
    """

    keys: Tensor
    starts: Tensor
    feature_of: Tensor

    def __init__(
        self,
        features: Sequence[str],
        config: UnifiedConfig,
        *,
        sparse: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(features, widths=config.widths_of(len(features)), sparse=sparse)
        if len(set(self.names)) < len(self.names):
            raise ConfigError(
                f"`features` must have distinct names, which salt the hash, but {self.names} was found"
            )
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.tables * config.rows, config.chunk_dim, device=device))
        counts = config.chunks_of(len(features))
        chunks = [(feature, chunk) for feature, count in enumerate(counts) for chunk in range(count)]
        keys = [signed(key_of(config.seed, f"{self.names[feature]}/{chunk}")) for feature, chunk in chunks]
        starts = [number % config.tables * config.rows for number in range(len(chunks))]
        self._chunk_features = [feature for feature, _ in chunks]
        # Derived from the configuration, so not part of a checkpoint.
        for name, values in (("keys", keys), ("starts", starts), ("feature_of", self._chunk_features)):
            column = torch.tensor(values, dtype=torch.int64, device=device)
            self.register_buffer(name, column, persistent=False)

    def initialise(self, rng: np.random.Generator) -> None:
        """Draw each table from U(−1/√B, 1/√B), as `StackedEmbedding` does a table of B rows."""
        uniform_(self.weight.detach(), self.config.rows**-0.5, rng)

    def rows_of(self, ids: Tensor) -> Tensor:
        """Rows of the stacked tables for each chunk, int64, shape ``(rows, chunks of all features)``.

        Args:
            ids: int64, shape ``(rows, features)``.
        """
        return self._hash(ids.index_select(1, self.feature_of), self.keys).add_(self.starts)

    def _single(self, ids: Tensor) -> Tensor:
        return F.embedding(self.rows_of(ids.long()), self.weight, sparse=self.sparse).flatten(1)

    def _bags(self, columns: Sequence[Ragged]) -> Tensor:
        chosen = [columns[feature] for feature in self._chunk_features]
        values = [
            self._hash(column.values.long(), key).add_(start)
            for column, key, start in zip(chosen, self.keys.unbind(), self.starts.unbind(), strict=True)
        ]
        return sum_bags(values, chosen, self.weight, sparse=self.sparse).flatten(1)

    def _hash(self, words: Tensor, keys: Tensor) -> Tensor:
        return remainder(mix(words + keys), self.config.rows)


def mix(words: Tensor) -> Tensor:
    """splitmix64's finaliser, as in `intune.pipelines.transforms.mixing`, of int64 in place; returned as well.

    Multiplications wrap around; a shift to the right keeps the sign, which the mask takes off.
    """
    words ^= (words >> 30) & ((1 << 34) - 1)
    words *= signed(FIRST_FACTOR)
    words ^= (words >> 27) & ((1 << 37) - 1)
    words *= signed(SECOND_FACTOR)
    words ^= (words >> 31) & ((1 << 33) - 1)
    return words


def remainder(words: Tensor, size: int) -> Tensor:
    """The lower 63 bits of each int64 modulo `size`, in place: no row is preferred by more than size / 2^63."""
    if size & (size - 1) == 0:
        words &= size - 1
        return words
    words &= (1 << 63) - 1
    words %= size
    return words


def signed(word: int) -> int:
    """A 64-bit word as the int64 with the same bits."""
    return word - (1 << 64) if word >> 63 else word
