"""`Pipeline`: what a user writes. Immutable; every call returns a longer one. Running it is `loader.py`'s."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from intune.pipelines.errors import ConfigError
from intune.pipelines.plan import Order, ShuffleSpec
from intune.pipelines.reading.source import make_source
from intune.pipelines.stages import Batch, Load, Map, MapFunction, Shuffle, Stage, Transfer

if TYPE_CHECKING:
    from intune.pipelines.loader import Loader


@dataclass(frozen=True)
class Pipeline:
    """Stages from Parquet files to the trainer, in the order of the calls that made it.

    ::

        pipe = (Pipeline.from_parquet("day_*.parquet", columns=["label", "I*", "C*"], fill={"C*": -1})
                .shuffle(row_groups=8, seed=0)
                .batch(8192, drop_last=True)
                .map(transform)
                .to("cuda"))
    """

    stages: tuple[Stage, ...]

    @classmethod
    def from_parquet(
        cls,
        paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        columns: Iterable[str] | None = None,
        fill: Mapping[str, Any] | float | None = None,
        filesystem: Any = None,
        retries: int = 4,
    ) -> Pipeline:
        """Rows of Parquet files.

        Args:
            paths: a file, folder, glob or URI that pyarrow knows (``s3://…``, ``gs://…``, ``hdfs://…``), or
                several. Within a folder or glob, files are read in the order of their names; of a folder, those
                whose names end in ``.parquet`` or ``.pq``.
            columns: names or patterns (``"C*"``) of the columns to read, in this order (those of a set sorted); all of
                the first file by default.
            fill: what stands for a null: a number for every number column, or a mapping from names or patterns.
                Without it a null is NaN in floats, stays null in strings, and is an error in integers.
            filesystem: a pyarrow (or fsspec) filesystem that `paths` belong to.
            retries: how often a read that failed in storage is tried again, waiting longer each time.
        """
        source = make_source(paths, columns=columns, filesystem=filesystem, fill=fill)
        return cls((Load(source=source, retries=retries),))

    def shuffle(self, row_groups: int = 8, *, seed: int = 0) -> Pipeline:
        """Read row groups in random order and mix the rows of `row_groups` of them at a time.

        After `batch`, whole batches change places within such a window instead and rows stay together.
        The order depends on `seed` and the epoch only.
        """
        if any(isinstance(stage, Shuffle) for stage in self.stages):
            raise ConfigError("`shuffle` is there already; one window decides the order")
        return self._with(Shuffle(row_groups=row_groups, seed=seed))

    def batch(self, size: int, *, drop_last: bool = False) -> Pipeline:
        """Cut the rows into batches of `size`. Every rank gets the same number; see `plan.batch_edges`."""
        if any(isinstance(stage, Batch) for stage in self.stages):
            raise ConfigError("`batch` is there already; rows can be batched once")
        return self._with(Batch(size=size, drop_last=drop_last))

    def map(
        self,
        function: MapFunction,
        *,
        workers: Literal["thread", "process"] = "thread",
        timeout: float | None = None,
        rowwise: bool | None = None,
        name: str | None = None,
    ) -> Pipeline:
        """Run `function` on every batch.

        Args:
            function: gets and returns ``dict[str, column]`` (NumPy arrays, `Ragged`, Arrow strings; tensors may
                be returned), with as many rows as it got. It may change the arrays it gets. Several threads call it
                at once. Before `batch` it is given blocks of rows of no fixed size and must treat every row by
                itself.
            workers: ``"process"`` for a function that holds Python's lock. (On Ray, workers are processes anyway.)
            timeout: seconds one call may take.
            rowwise: whether a row of the output depends on the same row of the input alone; the function may then
                be given many batches at once, joined, which costs less for most. (The last function, if it takes
                long, is also tried with one batch at a time, and once with one batch twice, to see that the same bits
                come out and which is quicker.) By default what the function's own attribute `rowwise` says (the
                transforms of this package have one), else False.
            name: of the stage; ``"transform"``, then ``"transform-2"``, … by default.
        """
        taken = [stage.name for stage in self.stages]
        if name is None:
            count = sum(isinstance(stage, Map) for stage in self.stages)
            name = f"transform-{count + 1}" if count else "transform"
        if name in taken or name in ("load", "shuffle", "batch", "transfer"):
            raise ConfigError(f"`name`={name!r} is the name of another stage; choose another")
        return self._with(
            Map(
                function=function,
                workers=workers,
                timeout=timeout,
                rowwise=bool(getattr(function, "rowwise", False)) if rowwise is None else rowwise,
                name=name,
            )
        )

    def to(self, device: str) -> Pipeline:
        """Bring batches to the trainer's device (``"cpu"``, ``"cuda"``, ``"cuda:1"``); the last stage.

        ``"cuda"`` is the one that the trainer's thread uses when a loop begins.
        """
        return self._with(Transfer(device=str(device)))

    def _with(self, stage: Stage) -> Pipeline:
        if isinstance(self.stages[-1], Transfer):
            raise ConfigError("`.to(device)` is the last stage; nothing can follow it")
        return replace(self, stages=(*self.stages, stage))

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the stages, in order."""
        return tuple(stage.name for stage in self.stages)

    @property
    def load(self) -> Load:
        """The first stage."""
        first = self.stages[0]
        assert isinstance(first, Load)
        return first

    @property
    def maps(self) -> tuple[Map, ...]:
        """The user's functions, in order."""
        return tuple(stage for stage in self.stages if isinstance(stage, Map))

    @property
    def device(self) -> str:
        """Where batches go."""
        return next((stage.device for stage in self.stages if isinstance(stage, Transfer)), "cpu")

    def order(self) -> Order:
        """The stages as the plan sees them."""
        batch = next((stage for stage in self.stages if isinstance(stage, Batch)), None)
        if batch is None:
            raise ConfigError("the pipeline has no batches; add `.batch(size)`")
        shuffle = next((stage for stage in self.stages if isinstance(stage, Shuffle)), None)
        kinds: dict[type, Literal["shuffle", "batch", "map", "transfer"]] = {
            Shuffle: "shuffle",
            Batch: "batch",
            Map: "map",
            Transfer: "transfer",
        }
        return Order(
            steps=tuple((stage.name, kinds[type(stage)]) for stage in self.stages[1:]),
            batch_size=batch.size,
            drop_last=batch.drop_last,
            shuffle=None
            if shuffle is None
            else ShuffleSpec(row_groups=shuffle.row_groups, seed=shuffle.seed),
            copies=self.device.startswith("cuda"),
        )

    def loader(self, **options: Any) -> Loader:
        """A `Loader` over this pipeline; see `intune.pipelines.loader.Loader` for the options."""
        from intune.pipelines.loader import Loader

        return Loader(self, **options)
