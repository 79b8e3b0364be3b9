"""Which embedding tables a click model gets for some data: per-feature hashing, one unified table, or no collisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, TypeVar, get_args

from intune.pipelines import Budget
from intune.pipelines.errors import ConfigError
from intune.pipelines.transforms import Vocabulary
from intune.pipelines.whole import at_least
from intune.workloads.clicks.data import ClickData, build_vocabulary
from intune.workloads.clicks.model import ClickModelConfig
from intune.workloads.clicks.table_sizes import hashed_rows, shared_rows
from intune.workloads.clicks.unified_embedding import WORD_IDS, UnifiedConfig

EmbeddingKind: TypeAlias = Literal["hashed", "unified", "full"]
Config = TypeVar("Config", bound=ClickModelConfig)
IdRule: TypeAlias = "Sequence[int] | int | Vocabulary"
"""What the pipeline makes of ids, as of `data.to_batches`."""

DEFAULT_SHRINKAGE = 4
"""A unified table has one row in so many of those that per-feature tables would have, where nothing else is said."""

DEFAULT_TABLES, DEFAULT_CHUNKS = 1, 2
"""Of a unified embedding, where nothing else is said."""


@dataclass(frozen=True, kw_only=True)
class TableChoice:
    """How ids become embeddings.

    Attributes:
        kind: ``"hashed"``: a table for each feature, ids hashed into it. ``"unified"``: all features hashed into shared
            tables (`UnifiedEmbedding`). ``"full"``: a row for each id of the training data, found in one pass over it;
            ids seen nowhere there share one.
        rows: of the largest table with hashed ones, of each table with unified ones.
        parameters: numbers in all tables together; instead of `rows`. Hashed tables are then of sizes in proportion to
            the features' ids (`shared_rows`).
        tables, chunks: of a unified embedding only; None for `DEFAULT_TABLES` and `DEFAULT_CHUNKS`. Chunks divide a
            feature's width.
        hash_seed: of a unified embedding.
    """

    kind: EmbeddingKind = "hashed"
    rows: int | None = None
    parameters: int | None = None
    tables: int | None = None
    chunks: int | None = None
    hash_seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(EmbeddingKind):
            raise ConfigError(
                f"`embedding`={self.kind!r} is unknown; use {', '.join(get_args(EmbeddingKind))}"
            )
        for name, value in (("table_rows", self.rows), ("embedding_parameters", self.parameters)):
            if value is not None and at_least(name, value, 1) and self.kind == "full":
                raise ConfigError(
                    f"`{name}`={value} leaves no row for each id, which `embedding`='full' means; give one of the two"
                )
        if self.rows is not None and self.parameters is not None:
            raise ConfigError(
                "`table_rows` and `embedding_parameters` both set the tables' sizes; give one of them"
            )
        for name, value in (("tables", self.tables), ("chunks", self.chunks)):
            if value is not None and at_least(name, value, 1) and self.kind != "unified":
                raise ConfigError(
                    f"`{name}`={value} is of unified tables, but `embedding`={self.kind!r} was found; "
                    f"leave it out, or use `embedding`='unified'"
                )


def with_tables(
    config: Config,
    choice: TableChoice,
    data: ClickData,
    *,
    most: int | None = None,
    budget: Budget | None = None,
) -> tuple[Config, IdRule]:
    """A model's shape with tables for `data`, and what its pipeline is to make of ids.

    Args:
        config: with the table sizes to assume where the data does not know its cardinalities.
        choice: of tables.
        data: whose ids they are for; read through once for ``"full"``.
        most: rows of the largest hashed table, where `choice` says nothing.
        budget: of that reading; by default what the job may use.

    Raises:
        ConfigError: a size that makes no sense for this data.
    """
    if choice.kind == "full":
        vocabulary = build_vocabulary(data, budget)
        sizes = tuple(vocabulary.size(name) for name in data.columns.sparse)
        return _fitted(config, data, sizes), vocabulary
    if choice.kind == "unified":
        unified = _unified(config, choice, data, most)
        return _fitted(config, data, (1,) * len(data.columns.sparse), unified), WORD_IDS
    if choice.parameters is None:
        sizes = hashed_rows(_cardinalities(config, data), choice.rows or most)
    else:
        sizes = shared_rows(_cardinalities(config, data), choice.parameters // config.embedding_dim)
    return _fitted(config, data, sizes), sizes


def _cardinalities(config: ClickModelConfig, data: ClickData) -> tuple[int, ...]:
    """Ids of each feature: the data's, or else those that the configuration was made for."""
    cardinalities = data.cardinalities or config.table_sizes
    if len(cardinalities) != len(data.columns.sparse):
        raise ConfigError(
            f"the data has {len(data.columns.sparse)} categorical features, but nothing says how many ids each has; "
            f"write `cardinalities` into its dataset.json, or use `embedding`='full', or 'unified' with `table_rows` "
            f"or `embedding_parameters`"
        )
    return cardinalities


def _unified(
    config: ClickModelConfig, choice: TableChoice, data: ClickData, most: int | None
) -> UnifiedConfig:
    """Shared tables; how many ids there are matters only where nothing says how large they are to be."""
    width = config.embedding_dim
    tables, chunks = choice.tables or DEFAULT_TABLES, choice.chunks or DEFAULT_CHUNKS
    if width % chunks:
        raise ConfigError(f"`chunks`={chunks} must divide the embeddings' width, {width}")
    chunk_dim = width // chunks
    rows, parameters = choice.rows, choice.parameters
    if rows is None:
        if parameters is None:
            parameters = sum(hashed_rows(_cardinalities(config, data), most)) * width // DEFAULT_SHRINKAGE
        rows = max(1, parameters // (chunk_dim * tables))
    return UnifiedConfig(rows=rows, chunk_dim=chunk_dim, chunks=chunks, tables=tables, seed=choice.hash_seed)


def _fitted(
    config: Config, data: ClickData, sizes: tuple[int, ...], unified: UnifiedConfig | None = None
) -> Config:
    """The configuration with these tables and the data's columns."""
    return replace(
        config,
        table_sizes=sizes,
        unified=unified,
        feature_names=data.columns.sparse,
        dense_features=len(data.columns.dense),
        # Neither hashing nor a vocabulary leaves an id outside its table, and on CUDA comparing waits for the device.
        check_ids=False,
    )
