"""From a folder of click logs to a trainer that is ready to run: files, tables, pipelines, model, optimiser.

The command line in front of it is `intune.cli.train`; the loop is `training.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from intune.pipelines import Budget, Loader
from intune.pipelines.errors import ConfigError
from intune.workloads.checkpoint import CheckpointStore, read_checkpoint
from intune.workloads.click_data import ClickData, find_click_data, hashed_rows, to_batches
from intune.workloads.dlrm import DEMO_TABLE_ROWS, DLRM, DLRMConfig, OptimizerName
from intune.workloads.metrics import score
from intune.workloads.optim import make_optimizer
from intune.workloads.training import Trainer, TrainOptions

PresetName: TypeAlias = Literal["demo", "kaggle", "terabyte", "mlperf"]

PRESETS: dict[str, Callable[[], DLRMConfig]] = {
    "demo": DLRMConfig.demo,
    "kaggle": DLRMConfig.kaggle,
    "terabyte": DLRMConfig.terabyte,
    "mlperf": DLRMConfig.mlperf,
}

EVALUATION_SHARE = 4
"""One part in so many of the memory is the evaluation's: it does not shuffle, so it needs little."""

EVALUATION_BATCH = 8192
"""Rows of an evaluation batch, at least: how rows are grouped does not change the score, and few batches cost less."""


@dataclass(frozen=True, kw_only=True)
class DLRMJob:
    """What to train, on what, within what. None leaves a choice to the preset or to what the job may use.

    Attributes:
        data: see `find_click_data`.
        preset: shape and recipe.
        batch_size, optimizer, learning_rate: instead of the recipe's; a `learning_rate` is for all parameters.
        table_rows: largest embedding table.
        seed: of the model and of the shuffle.
        shuffle: window in row groups, 0 for the files' order.
        executor: as of `Loader`.
        cpus, memory: the pipeline's budget, as of `Budget.detect`.
        slots: slots per stage to begin with; empty for one shared pool.
        device: where the model is.
        checkpoints: folder; None for none.
        resume: go on from the latest checkpoint there, or begin anew if there is none.
        options: how long to train.
    """

    data: str
    preset: PresetName = "demo"
    batch_size: int | None = None
    optimizer: OptimizerName | None = None
    learning_rate: float | None = None
    table_rows: int | None = None
    seed: int = 0
    shuffle: int = 8
    executor: Literal["auto", "threads", "ray"] = "auto"
    cpus: int | None = None
    memory: int | str | None = None
    slots: Mapping[str, int] = field(default_factory=dict)
    device: str = "cpu"
    checkpoints: Path | None = None
    resume: bool = False
    options: TrainOptions = field(default_factory=TrainOptions)

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ConfigError(f"`preset`={self.preset!r} is unknown; use {', '.join(PRESETS)}")
        for name, least in (("seed", 0), ("shuffle", 0), ("table_rows", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"`{name}` must be at least {least}, but {value} was found")
        if self.resume and self.checkpoints is None:
            raise ConfigError("`resume` needs `checkpoints`, the folder to resume from; give both")


@dataclass(frozen=True, kw_only=True)
class ReadyJob:
    """A job made ready: `trainer.fit()` runs it.

    Attributes:
        trainer: with model, optimiser and checkpoints.
        loader: of the training rows.
        data: the files.
        config: the model's shape, tables sized for the data.
        steps: steps when done, those before a resume included.
        resumed_from: the checkpoint it goes on from; None from the beginning.
    """

    trainer: Trainer
    loader: Loader
    data: ClickData
    config: DLRMConfig
    steps: int
    resumed_from: Path | None


@contextmanager
def ready(job: DLRMJob) -> Iterator[ReadyJob]:
    """Make a job ready; leaving the context closes its loaders.

    Raises:
        IntuneError: data, budget, checkpoint or an option that cannot be used, before anything is trained.
    """
    store, latest = _open_store(job)
    data = find_click_data(job.data)
    config = configure(job, data)
    model = DLRM(config, seed=job.seed, device=job.device)
    budget, evaluation_budget = _split(Budget.detect(cpus=job.cpus, memory=job.memory), bool(data.test))
    with ExitStack() as stack:
        evaluate = None
        if data.test:
            evaluate = stack.enter_context(_evaluation(job, data, model, evaluation_budget))
        pipeline = to_batches(
            data,
            data.train,
            batch_size=config.recipe.batch_size,
            table_sizes=config.table_sizes,
            shuffle=job.shuffle,
            seed=job.seed,
            drop_last=True,
            device=job.device,
        )
        loader = stack.enter_context(
            pipeline.loader(executor=job.executor, budget=budget, allocation=job.slots or None)
        )
        recipe = asdict(config.recipe)
        recipe.pop("batch_size")
        trainer = Trainer(
            model,
            make_optimizer(
                recipe.pop("optimizer"),
                tables=[model.embeddings.weight],
                others=[*model.bottom.parameters(), *model.top.parameters()],
                **recipe,
            ),
            loader,
            loss=model.loss,
            evaluate=evaluate,
            options=job.options,
            store=store,
            config={"seed": job.seed, **asdict(config)},
        )
        if latest is not None:
            trainer.load_state_dict(read_checkpoint(latest))
        steps = job.options.epochs * len(loader)
        yield ReadyJob(
            trainer=trainer,
            loader=loader,
            data=data,
            config=config,
            steps=steps if job.options.max_steps is None else min(steps, job.options.max_steps),
            resumed_from=latest,
        )


def configure(job: DLRMJob, data: ClickData) -> DLRMConfig:
    """The preset with the job's own choices, and tables with room for the data's ids, which are hashed."""
    preset = PRESETS[job.preset]()
    most = job.table_rows
    if most is None and job.preset == "demo":
        most = DEMO_TABLE_ROWS
    given = {"optimizer": job.optimizer, "batch_size": job.batch_size}
    recipe = replace(preset.recipe, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    if job.learning_rate is not None:
        recipe = replace(recipe, learning_rate=job.learning_rate, table_learning_rate=None)
    return replace(
        preset,
        table_sizes=hashed_rows(data.cardinalities or preset.table_sizes, most),
        # Hashing leaves no id outside its table, and on CUDA the comparison would wait for the device.
        check_ids=False,
        recipe=recipe,
    )


@contextmanager
def _evaluation(
    job: DLRMJob, data: ClickData, model: DLRM, budget: Budget
) -> Iterator[Callable[[], dict[str, Any]]]:
    """A function that scores the model on the held-out rows.

    Its loader is made now, so that files or a budget that it cannot use are reported before training and not after
    it. It runs on threads always: the training loader's workers may have taken all the CPUs that Ray has.
    """
    pipeline = to_batches(
        data,
        data.test,
        batch_size=EVALUATION_BATCH,
        table_sizes=model.config.table_sizes,
        device=job.device,
    )
    with pipeline.loader(executor="threads", budget=budget) as loader:
        yield lambda: asdict(score(model.logits, loader))


def _split(budget: Budget, evaluates: bool) -> tuple[Budget, Budget]:
    """The training loader's part of the memory and the evaluation's: for a time both hold blocks."""
    part = budget.memory // EVALUATION_SHARE
    if not evaluates:
        return budget, budget
    return replace(budget, memory=budget.memory - part), replace(budget, memory=part)


def _open_store(job: DLRMJob) -> tuple[CheckpointStore | None, Path | None]:
    """The store, and the checkpoint to go on from."""
    if job.checkpoints is None:
        return None, None
    store = CheckpointStore(directory=job.checkpoints)
    latest = store.latest()
    if latest is not None and not job.resume:
        raise ConfigError(
            f"`checkpoints`={job.checkpoints} holds those of another run, up to {latest.name}; "
            f"go on from them with `resume`, or choose another folder"
        )
    return store, latest
