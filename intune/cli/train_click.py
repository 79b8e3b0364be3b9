"""`intune train dlrm`, `dcnv2` and `unified-embedding`: click models. What is done is in `intune.workloads`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from intune.cli.click_runs import PRESET, Run
from intune.cli.defaults import otherwise
from intune.cli.train_options import Feeding

if TYPE_CHECKING:
    from intune.workloads.clicks.tables import TableChoice

_DATA = """\
DATA is a data set made by `intune data`, of which test/ is held out; or a file, folder or glob of Parquet files with
the columns label, I1 … I13 and C1 … C26, of which the last file is held out; either may be a URI (s3://…). Categories
may be numbers, text or lists of either; labels are 0 or 1; further columns are not read. Columns of other names, or
another number of them, are named in a dataset.json beside the files:

  {"schema_version": 1,
   "columns": {"label": "clicked", "dense": ["price"], "categorical": ["shop", "item"]},
   "cardinalities": {"shop": 120, "item": 90000}}

Without the cardinalities, how many distinct ids a column has, use --embedding full, or unified with a size.
"""

_TABLES = """\
Option --embedding says how ids become embeddings: hashed into a table for each feature; unified, where all features
are hashed into one table of --table-rows rows or --embedding-parameters numbers (arXiv 2305.12102; a quarter of what
tables for each feature would take, where nothing is said); or full, a row for each id of the training data, found in a
pass over it.
"""

_END = """\
The held-out rows are read once before training, so that what is wrong with them is said at once. Rows that do not fill
a batch are one, which is said in a line.

At the end it prints rows per second, the share of time the trainer waited for data, peak memory, and the held-out AUC
beside the best that the data allows, where that is known.

With --checkpoints, a run that was killed or stopped (Ctrl-C finishes the step under way and saves) goes on with
--resume, and on the CPU ends with the same model, bit for bit.
"""

DLRM_HELP = f"""\
Train DLRM (arXiv 1906.00091) on click logs in Parquet, for one pass by default.

{_DATA}
{_TABLES}
{_END}
Examples:
  intune train dlrm --data data
  intune train dlrm --data data --executor ray --cpus 2 --memory 2GiB
  intune train dlrm --data data --embedding unified --embedding-parameters 1000000
  intune train dlrm --data data --slots load=4,transform=2 --checkpoints runs/first --resume
  intune train dlrm --data 's3://bucket/day_*.parquet' --preset terabyte --device cuda
"""

DCNV2_HELP = f"""\
Train DCN-V2 (arXiv 2008.13535) on click logs in Parquet, for one pass by default.

{_DATA}
{_TABLES}
{_END}
Examples:
  intune train dcnv2 --data data
  intune train dcnv2 --data data --structure parallel --rank 0
  intune train dcnv2 --data data --embedding unified --checkpoints runs/first --resume
  intune train dcnv2 --data 's3://bucket/day_*.parquet' --preset mlperf --device cuda
"""

UNIFIED_EMBEDDING_HELP = f"""\
Train Unified Embedding's demonstration (arXiv 2305.12102): an MLP 128-64-1 over the embeddings of six features tells
whether a rating is three stars or more.

DATA is a folder made by `intune data movielens`; its ratings are made a click log of, in the folder clicks within, a
fifth of them held out at random. Any folder of click logs will do as well. As it stands, the features share two tables
of 1,440 rows of width 8, each with two chunks; to compare, --embedding full has a row of width 16 for each id, and
--embedding hashed --embedding-parameters 23040 a table for each feature with as many numbers as the two tables. In DLRM
and DCN-V2, use --embedding unified.

{_END}
Examples:
  intune data movielens --from-wheel --out ml-100k
  intune train unified-embedding --data ml-100k
  intune train unified-embedding --data ml-100k --embedding full
  intune train unified-embedding --data ml-100k --embedding hashed --embedding-parameters 23040
"""

DEMONSTRATION_ROWS = 1440
"""Rows of each of the demonstration's tables."""


@dataclass(frozen=True, kw_only=True)
class Tables:
    """How ids become embeddings.

    Attributes:
        embedding: A table for each feature (hashed), one for all (unified), or a row for each id (full).
        table_rows: Rows of the largest hashed table, or of each unified one.
        embedding_parameters: Numbers in all tables together, instead of rows.
        tables: How many tables, of unified ones.
        chunks: Rows that make an embedding, of unified tables.
    """

    embedding: Literal["hashed", "unified", "full"] = "hashed"
    table_rows: Annotated[int | None, PRESET] = None
    embedding_parameters: Annotated[int | None, otherwise("no limit")] = None
    tables: int = 1
    chunks: int = 2

    def choice(self, default: Tables | None = None, *, unified_rows: int | None = None) -> TableChoice:
        """As the job takes them.

        Args:
            default: what the command has where nothing is said.
            unified_rows: for unified tables whose size is left open.
        """
        from intune.workloads.clicks.tables import TableChoice

        default = default or Tables()
        shared = {"tables": self.tables, "chunks": self.chunks}
        if self.embedding != "unified":
            # Without unified tables, the command's own numbers of them were not asked for; others were, by mistake.
            shared = {name: value for name, value in shared.items() if value != getattr(default, name)}
        open_size = self.embedding == "unified" and self.embedding_parameters is None
        return TableChoice(
            kind=self.embedding,
            rows=unified_rows if self.table_rows is None and open_size else self.table_rows,
            parameters=self.embedding_parameters,
            **shared,
        )


DEMONSTRATION = Tables(embedding="unified", tables=2)
"""What `intune train unified-embedding` has where nothing is said."""


_RUN, _DEMONSTRATION_RUN = Run(), Run(epochs=5, feeding=Feeding(seed=42))


def dlrm(
    *,
    data: str,
    preset: Literal["demo", "kaggle", "terabyte", "mlperf"] = "demo",
    tables: Tables = Tables(),
    run: Run = _RUN,
) -> None:
    """Train DLRM on click logs.

    Args:
        data: Where the click logs are.
        preset: Size of the model and how it is trained; demo is made for two cores.
        tables: How ids become embeddings.
        run: How to train, and with what.
    """
    run.start("DLRM", data=data, model="dlrm", preset=preset, embedding=tables.choice())


def dcnv2(
    *,
    data: str,
    preset: Literal["demo", "mlperf"] = "demo",
    structure: Annotated[Literal["stacked", "parallel"] | None, PRESET] = None,
    cross_layers: Annotated[int | None, PRESET] = None,
    rank: Annotated[int | None, PRESET] = None,
    embedding_dim: Annotated[int | None, PRESET] = None,
    tables: Tables = Tables(),
    run: Run = _RUN,
) -> None:
    """Train DCN-V2 on click logs.

    Args:
        data: Where the click logs are.
        preset: Size of the model and how it is trained; demo is made for two cores.
        structure: Whether the MLP stands behind the cross layers or beside them.
        cross_layers: How many cross layers.
        rank: Of their matrices; 0 for full ones, which the preset's gives way to where the input is no wider.
        embedding_dim: Width of a feature's embedding.
        tables: How ids become embeddings.
        run: How to train, and with what.
    """
    run.start(
        "DCN-V2",
        data=data,
        model="dcnv2",
        preset=preset,
        structure=structure,
        cross_layers=cross_layers,
        rank=rank,
        embedding_dim=embedding_dim,
        embedding=tables.choice(),
    )


def unified_embedding(
    *,
    data: str,
    embedding_dim: Annotated[int | None, otherwise("16")] = None,
    tables: Tables = DEMONSTRATION,
    run: Run = _DEMONSTRATION_RUN,
) -> None:
    """Train Unified Embedding's demonstration.

    Args:
        data: Where the ratings or click logs are.
        embedding_dim: Width of a feature's embedding.
        tables: How ids become embeddings.
        run: How to train, and with what.
    """
    run.start(
        "Unified Embedding",
        data=data,
        model="dcnv2",
        preset="mlp",
        embedding_dim=embedding_dim,
        embedding=tables.choice(DEMONSTRATION, unified_rows=DEMONSTRATION_ROWS),
    )
