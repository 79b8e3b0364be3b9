"""From a folder of click logs to a trainer that is ready to run: files, tables, pipelines, model, optimiser.

The command lines in front of it are `intune.cli.train_click` and `click_runs`; the loop is `training/trainer.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from torch.optim import Optimizer

from intune.pipelines import Budget, Loader
from intune.pipelines.budget import Usable, format_bytes
from intune.pipelines.errors import ConfigError
from intune.pipelines.whole import at_least
from intune.workloads.clicks.data import (
    EVALUATION_BATCH,
    ClickData,
    check_held_out,
    find_click_data,
    to_batches,
)
from intune.workloads.clicks.dcnv2 import DCNv2, DCNv2Config, Structure
from intune.workloads.clicks.dlrm import DLRM, DLRMConfig
from intune.workloads.clicks.metrics import score
from intune.workloads.clicks.model import ClickModel, OptimizerName, Schedule
from intune.workloads.clicks.table_sizes import DEMO_TABLE_ROWS
from intune.workloads.clicks.tables import IdRule, TableChoice, with_tables
from intune.workloads.training.batch_sizes import filled
from intune.workloads.training.checkpoint import read_checkpoint
from intune.workloads.training.devices import check_device
from intune.workloads.training.events import logged
from intune.workloads.training.feeding import FeedOptions, feeding
from intune.workloads.training.fitting import open_store
from intune.workloads.training.optim import decay_linearly, make_optimizer
from intune.workloads.training.shares import shared
from intune.workloads.training.trainer import Trainer, TrainOptions

ModelName: TypeAlias = Literal["dlrm", "dcnv2"]
AnyConfig: TypeAlias = "DLRMConfig | DCNv2Config"

PRESETS: dict[str, dict[str, Callable[[], AnyConfig]]] = {
    "dlrm": {
        "demo": DLRMConfig.demo,
        "kaggle": DLRMConfig.kaggle,
        "terabyte": DLRMConfig.terabyte,
        "mlperf": DLRMConfig.mlperf,
    },
    "dcnv2": {"demo": DCNv2Config.demo, "mlperf": DCNv2Config.mlperf, "mlp": DCNv2Config.mlp},
}
"""Shapes by the model's name and the preset's."""

EVALUATION_SHARE = 4
"""One part in so many of the memory is the evaluation's: it does not shuffle, so it needs little."""


@dataclass(frozen=True, kw_only=True)
class ClickJob(FeedOptions):
    """What to train, on what; fed as `FeedOptions` says. None leaves a choice to the preset or to what the job may use.

    Attributes:
        data: see `find_click_data`.
        model: ``"dlrm"`` or ``"dcnv2"``.
        preset: shape and recipe, of `PRESETS`.
        embedding: which tables.
        structure, cross_layers, rank, embedding_dim: of DCN-V2, instead of the preset's; a rank of 0 stands for full
            matrices, which a preset's rank gives way to where the input is no wider. (DLRM's MLPs are made for one
            width of its embeddings.)
        batch_size, optimizer, learning_rate, schedule: instead of the recipe's; a `learning_rate` is for all
            parameters.
        seed: of the model and of the shuffle.
        shuffle: window in row groups, 0 for the files' order.
        device: where the model is.
        checkpoints: folder; None for none.
        resume: go on from the latest checkpoint there, or begin anew if there is none.
        tensorboard: folder for event files; None for none.
        options: how long to train.
    """

    data: str
    model: ModelName = "dlrm"
    preset: str = "demo"
    embedding: TableChoice = field(default_factory=TableChoice)
    structure: Structure | None = None
    cross_layers: int | None = None
    rank: int | None = None
    embedding_dim: int | None = None
    batch_size: int | None = None
    optimizer: OptimizerName | None = None
    learning_rate: float | None = None
    schedule: Schedule | None = None
    seed: int = 0
    shuffle: int = 8
    device: str = "cpu"
    checkpoints: Path | None = None
    resume: bool = False
    tensorboard: Path | None = None
    options: TrainOptions = field(default_factory=TrainOptions)

    def __post_init__(self) -> None:
        if self.model not in PRESETS:
            raise ConfigError(f"`model`={self.model!r} is unknown; use {', '.join(PRESETS)}")
        if self.preset not in PRESETS[self.model]:
            raise ConfigError(
                f"`preset`={self.preset!r} is unknown; {self.model} has {', '.join(PRESETS[self.model])}"
            )
        for name in ("seed", "shuffle"):
            at_least(name, getattr(self, name), 0)
        if self.model != "dcnv2" and self._dcnv2():
            raise ConfigError(
                f"{', '.join(f'`{name}`' for name in self._dcnv2())} belong to DCN-V2, not to DLRM"
            )
        if self.resume and self.checkpoints is None:
            raise ConfigError("`resume` needs `checkpoints`, the folder to resume from; give both")

    def _dcnv2(self) -> dict[str, Any]:
        """What is said of DCN-V2's shape."""
        names = ("structure", "cross_layers", "rank", "embedding_dim")
        given = {name: getattr(self, name) for name in names}
        return {name: value for name, value in given.items() if value is not None}


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
    config: AnyConfig
    steps: int
    resumed_from: Path | None


@contextmanager
def ready(job: ClickJob) -> Iterator[ReadyJob]:
    """Make a job ready; leaving the context closes its loaders.

    Raises:
        IntuneError: data, budget, checkpoint or an option that cannot be used, before anything is trained.
    """
    check_device(job.device)
    store, latest = open_store(job.checkpoints, resume=job.resume)
    data = find_click_data(job.data)
    whole = job.budget()
    budget, evaluation_budget = _split(whole, bool(data.test))
    # No loader holds anything yet.
    config, ids = configure(job, data, whole)
    _check_tables(config)
    if data.test:
        check_held_out(data, ids, whole)
    model = make_model(config, seed=job.seed, device=job.device)
    with ExitStack() as stack:
        evaluate = None
        if data.test:
            evaluate = stack.enter_context(_evaluation(job, data, model, ids, evaluation_budget))
        pipeline = to_batches(
            data,
            data.train,
            batch_size=config.recipe.batch_size,
            ids=ids,
            shuffle=job.shuffle,
            seed=job.seed,
            drop_last=config.recipe.drop_last,
            device=job.device,
        )
        loader = stack.enter_context(feeding(pipeline, job, budget))
        steps = job.options.epochs * len(loader)
        trainer = Trainer(
            model,
            _optimizer(config, model, steps),
            loader,
            loss=model.loss,
            evaluate=evaluate,
            options=job.options,
            store=store,
            config=_identity(job, config, steps),
        )
        if job.tensorboard is not None:
            stack.enter_context(logged(trainer, job.tensorboard, split="test"))
        if latest is not None:
            trainer.load_state_dict(read_checkpoint(latest))
        yield ReadyJob(
            trainer=trainer,
            loader=loader,
            data=data,
            config=config,
            steps=steps if job.options.max_steps is None else min(steps, job.options.max_steps),
            resumed_from=latest,
        )


def configure(job: ClickJob, data: ClickData, budget: Budget | None = None) -> tuple[AnyConfig, IdRule]:
    """The preset with the job's own choices and tables for the data's ids, and what becomes of the ids.

    Within `budget`, where they must be read through for that. Rows that do not fill a batch are one, instead of none.
    """
    preset = PRESETS[job.model][job.preset]()
    given = {"optimizer": job.optimizer, "batch_size": job.batch_size, "schedule": job.schedule}
    recipe = replace(preset.recipe, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    if job.learning_rate is not None:
        recipe = replace(recipe, learning_rate=job.learning_rate, table_learning_rate=None)
    if recipe.drop_last and not filled(recipe.batch_size, data.rows):
        recipe = replace(recipe, drop_last=False)
    shape = job._dcnv2()
    rank = preset.rank if isinstance(preset, DCNv2Config) else None
    if rank is not None or job.rank is not None:
        # The data decides how wide the input is, so that a preset's rank has to wait.
        shape["rank"] = job.rank or None
    preset = replace(preset, sparse_gradients=recipe.optimizer != "adam", recipe=recipe, **shape)
    most = DEMO_TABLE_ROWS if job.preset in ("demo", "mlp") else None
    config, ids = with_tables(preset, job.embedding, data, most=most, budget=budget)
    if isinstance(config, DCNv2Config) and job.rank is None and rank is not None and rank < config.width:
        config = replace(config, rank=rank)
    return config, ids


def _check_tables(config: AnyConfig) -> None:
    """Raise a `ConfigError` where the tables, which are drawn in this machine's memory, are more than all of it."""
    tables, memory = 4 * config.embedding_parameters, Usable.detect().memory
    if tables > memory:
        raise ConfigError(
            f"the embedding tables take {format_bytes(tables)}, but this job may hold {format_bytes(memory)}; choose "
            f"another `preset` or fewer `table_rows`, or let features share tables with `embedding`='unified'"
        )


def make_model(config: AnyConfig, *, seed: int, device: str = "cpu") -> ClickModel:
    """The model of a configuration."""
    if isinstance(config, DLRMConfig):
        return DLRM(config, seed=seed, device=device)
    return DCNv2(config, seed=seed, device=device)


def _optimizer(config: AnyConfig, model: ClickModel, steps: int) -> Optimizer:
    """The recipe's, its learning rates falling to zero over so many steps if it says so."""
    recipe = config.recipe
    optimizer = make_optimizer(
        recipe.optimizer,
        tables=[model.embeddings.weight],
        others=model.others(),
        learning_rate=recipe.learning_rate,
        table_learning_rate=recipe.table_learning_rate,
        table_eps=recipe.table_eps,
    )
    if recipe.schedule == "linear":
        decay_linearly(optimizer, steps)
    return optimizer


def _identity(job: ClickJob, config: AnyConfig, steps: int) -> dict[str, Any]:
    """What a checkpoint must agree with. A run whose learning rates fall cannot be made longer half-way."""
    identity = {"model": job.model, "seed": job.seed, **asdict(config)}
    if config.recipe.schedule == "linear":
        identity["steps"] = steps
    return identity


@contextmanager
def _evaluation(
    job: ClickJob, data: ClickData, model: ClickModel, ids: IdRule, budget: Budget
) -> Iterator[Callable[[], dict[str, Any]]]:
    """A function that scores the model on the held-out rows.

    Its loader is made now, so that files or a budget that it cannot use are reported before training and not after
    it. It runs on threads always: the training loader's workers may have taken all the CPUs that Ray has.
    """
    pipeline = to_batches(
        data,
        data.test,
        batch_size=EVALUATION_BATCH,
        ids=ids,
        device=job.device,
    )
    with pipeline.loader(executor="threads", budget=budget) as loader:
        yield lambda: asdict(score(model.logits, loader))


def _split(budget: Budget, evaluates: bool) -> tuple[Budget, Budget]:
    """The training loader's part of the memory and the evaluation's."""
    if not evaluates:
        return budget, budget
    training, evaluation = shared(budget, EVALUATION_SHARE - 1, 1)
    return training, evaluation
