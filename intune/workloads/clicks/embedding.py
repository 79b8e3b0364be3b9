"""Embedding bags of many features kept in one stacked table: same mathematics as a table each, one lookup.

With 26 features a table each costs 26 kernel launches forward, 26 backward and 26 in the optimiser, which on
small batches is most of the step. Here feature ``f`` owns rows ``[starts[f], starts[f + 1])`` of one table.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intune.pipelines.errors import ConfigError, DataError, SchemaError
from intune.pipelines.schema import Ragged

# Before 2.7, torch does not tell exporting from compiling.
_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)

Ids: TypeAlias = "Tensor | Sequence[Tensor | Ragged]"
"""Ids of a batch: one tensor ``(rows, features)``, or one column per feature: a tensor ``(rows,)``, lists of one length
``(rows, length)`` or a list column (`Ragged`, whose ``offsets`` has ``rows + 1`` entries)."""


class FeatureEmbedding(nn.Module, ABC):
    """An embedding per feature and row, sum-pooled where a feature has several ids: what DLRM and DCN-V2 build on.

    Args:
        names: the features' names, in the order of their columns.
        widths: width of each feature's embedding.
        sparse: whether the gradient of `weight` is sparse.

    A subclass holds all its rows in `weight`, shape ``(rows, width of a row)``.
    """

    weight: nn.Parameter

    def __init__(self, names: Sequence[str], *, widths: Sequence[int], sparse: bool) -> None:
        super().__init__()
        self.names = tuple(names)
        self.widths = tuple(widths)
        self.sparse = sparse

    @property
    def features(self) -> int:
        """Number of features."""
        return len(self.names)

    def forward(self, ids: Ids) -> Tensor:
        """Pooled embeddings of features that are all equally wide, shape ``(rows, features, width)``.

        Raises:
            SchemaError: a column is missing or has a wrong shape or type.
            DataError: an id is outside its table.
        """
        flat = self.flat(ids)
        return flat.view(flat.shape[0], self.features, self.widths[0])

    def flat(self, ids: Ids) -> Tensor:
        """Pooled embeddings of all features side by side, shape ``(rows, sum of widths)``; errors as of `forward`."""
        if isinstance(ids, Tensor):
            return self._single(self._checked(ids))
        if len(ids) != self.features:
            raise SchemaError(
                f"`sparse` must have a column for each of the {self.features} features, but {len(ids)} were found"
            )
        given = [column if isinstance(column, Ragged) else torch.as_tensor(column) for column in ids]
        single = [column for column in given if isinstance(column, Tensor) and column.ndim == 1]
        if len(single) == self.features:
            return self._single(self._checked(torch.stack(single, dim=1)))
        columns = [as_bags(column) for column in given]
        for name, column in zip(self.names, columns, strict=True):
            require_integers(column.values, name)
            if len(column) != len(columns[0]):
                raise SchemaError(
                    f"column `{name}` has {len(column)} rows, but the first has {len(columns[0])}; "
                    f"every column of a batch needs the same number of rows"
                )
        return self._bags(columns)

    @abstractmethod
    def initialise(self, rng: np.random.Generator) -> None:
        """Draw the initial rows."""

    @abstractmethod
    def _single(self, ids: Tensor) -> Tensor:
        """Embeddings side by side of integers of shape ``(rows, features)``."""

    @abstractmethod
    def _bags(self, columns: Sequence[Ragged]) -> Tensor:
        """The same of a list column of integers for each feature, all of one number of rows."""

    def _checked(self, ids: Tensor) -> Tensor:
        if ids.ndim != 2 or ids.shape[1] != self.features:
            raise SchemaError(
                f"`sparse` must have shape (rows, {self.features}), but {tuple(ids.shape)} was found"
            )
        require_integers(ids, "sparse")
        return ids


class StackedEmbedding(FeatureEmbedding):
    """A table for each feature, all kept in one.

    Args:
        sizes: rows of each feature's part of the table.
        dim: width of an embedding.
        sparse: whether gradients are sparse: only the rows that a batch touches cost anything.
        names: the features' names, for messages; ``C1`` … by default, as in Criteo's data.
        check_ids: whether ids are compared with `sizes` once per batch (one pass; one synchronisation on CUDA). What
            `torch.export` makes of it does not compare them.
        device: where the table lives; ``"meta"`` allocates nothing.

    The table is not initialised here; see `initialise`.
    """

    starts: Tensor
    sizes: Tensor

    def __init__(
        self,
        sizes: Sequence[int],
        dim: int,
        *,
        sparse: bool = True,
        names: Sequence[str] = (),
        check_ids: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        if not sizes or min(sizes) < 1:
            raise ConfigError(
                f"`sizes` must name at least one table and each needs a row, but {tuple(sizes)} was found"
            )
        if names and len(names) != len(sizes):
            raise ConfigError(
                f"`names` must name each of the {len(sizes)} tables, but {len(names)} were found; "
                f"leave it out for C1, C2, …"
            )
        super().__init__(names or numbered(len(sizes)), widths=(dim,) * len(sizes), sparse=sparse)
        self.dim = dim
        self.check_ids = check_ids
        self.rows_per_table = tuple(int(size) for size in sizes)
        ends = np.cumsum(self.rows_per_table, dtype=np.int64)
        self.weight = nn.Parameter(torch.empty(int(ends[-1]), dim, device=device))
        # Derived from the configuration, so not part of a checkpoint.
        self.register_buffer("sizes", torch.tensor(self.rows_per_table, device=device), persistent=False)
        starts = torch.tensor([0, *ends[:-1].tolist()], device=device)
        self.register_buffer("starts", starts, persistent=False)

    def table(self, feature: int) -> Tensor:
        """Rows of one feature, shape ``(size, dim)``: a view of the stacked table, without gradient."""
        start = sum(self.rows_per_table[:feature])
        return self.weight.detach()[start : start + self.rows_per_table[feature]]

    def initialise(self, rng: np.random.Generator) -> None:
        """Draw the embeddings of a feature with n rows from U(−1/√n, 1/√n) (arXiv 1906.00091, public code)."""
        for feature, (size, child) in enumerate(
            zip(self.rows_per_table, rng.spawn(self.features), strict=True)
        ):
            uniform_(self.table(feature), size**-0.5, child)

    def _single(self, ids: Tensor) -> Tensor:
        if self.check_ids and not _is_exporting() and len(ids):
            self._check(*torch.aminmax(ids, dim=0), self.sizes)
        return F.embedding(ids + self.starts, self.weight, sparse=self.sparse).flatten(1)

    def _bags(self, columns: Sequence[Ragged]) -> Tensor:
        if self.check_ids:
            used = [feature for feature, column in enumerate(columns) if column.values.numel()]
            if used:
                bounds = [torch.aminmax(columns[feature].values) for feature in used]
                self._check(
                    torch.stack([low.long() for low, _ in bounds]),
                    torch.stack([high.long() for _, high in bounds]),
                    self.sizes[used],
                    [self.names[feature] for feature in used],
                )
        values = [column.values + start for column, start in zip(columns, self.starts.unbind(), strict=True)]
        return sum_bags(values, columns, self.weight, sparse=self.sparse).flatten(1)

    def _check(self, low: Tensor, high: Tensor, sizes: Tensor, names: Sequence[str] | None = None) -> None:
        outside = (low < 0) | (high >= sizes)
        if not bool(outside.any()):
            return
        first = int(outside.nonzero()[0, 0])
        found = int(low[first]) if int(low[first]) < 0 else int(high[first])
        name, size = (names or self.names)[first], int(sizes[first])
        raise DataError(
            f"feature `{name}` holds id {found}, but its table has rows 0 to {size - 1}; "
            f"hash its ids modulo {size} in the transform, or give it a table of at least {found + 1} rows"
            if found >= 0
            else f"feature `{name}` holds the negative id {found}; fill missing ids or hash them in the transform"
        )


def sum_bags(values: Sequence[Tensor], columns: Sequence[Ragged], weight: Tensor, *, sparse: bool) -> Tensor:
    """Sums of the rows of a table that the bags of several columns name, in one lookup.

    Args:
        values: row numbers of each column, in place of its own values.
        columns: whose offsets say which belong to one bag; all of one number of rows.
        weight: the table, shape ``(table rows, width)``.
        sparse: whether the table's gradient is sparse.

    Returns:
        Shape ``(rows, columns, width)``.
    """
    # Bags lie column by column; the last offset of each column is the first of the next one.
    bags = [columns[0].offsets.new_zeros(1)]
    total = 0
    for column in columns:
        bags.append(column.offsets[1:] + total)
        total += column.values.numel()
    pooled = F.embedding_bag(
        torch.cat(list(values)), weight, torch.cat(bags), mode="sum", sparse=sparse, include_last_offset=True
    )
    return pooled.view(len(columns), len(columns[0]), weight.shape[1]).transpose(0, 1)


def numbered(features: int) -> tuple[str, ...]:
    """Names of features that have none, ``C1`` … as in Criteo's data."""
    return tuple(f"C{feature + 1}" for feature in range(features))


def as_bags(column: Tensor | Ragged) -> Ragged:
    """A column as bags: of one id each where its shape is ``(rows,)``, of several where it is ``(rows, length)``."""
    if isinstance(column, Ragged):
        return column
    length = 1 if column.ndim == 1 else column.shape[1]
    return Ragged(column.reshape(-1), torch.arange(len(column) + 1, device=column.device) * length)


def require_integers(values: Any, name: str) -> None:
    """Raise a `SchemaError` unless `values` is a tensor of 32- or 64-bit integers."""
    if isinstance(values, Tensor) and values.dtype in (torch.int64, torch.int32):
        return
    found = str(values.dtype) if isinstance(values, Tensor) else type(values).__name__
    raise SchemaError(f"column `{name}` must be a tensor of int64 or int32 ids, but {found} was found")


def uniform_(target: Tensor, bound: float, rng: np.random.Generator) -> None:
    """Fill `target` (float32 or float64, contiguous, on the CPU) with U(−bound, bound) in place."""
    values = target.numpy()
    rng.random(out=values, dtype=values.dtype)
    values *= 2 * bound
    values -= bound
