"""From a folder of sessions to a recommender that is trained and judged: pipelines, optimiser, loop, evaluation.

The command line in front of it is `intune.cli.train_sequences`; the loop is `training/fitting.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from intune.pipelines import Budget, Loader, Pipeline
from intune.pipelines.errors import ConfigError, DataError
from intune.pipelines.whole import at_least
from intune.workloads.evaluation import SCORES_AT_ONCE, metric_names
from intune.workloads.pairs.data import RatingData, find_rating_data
from intune.workloads.sequences.evaluation import (
    SequenceRecommender,
    SessionRanking,
    rank_sessions,
    require_questions,
)
from intune.workloads.sequences.llm_seq_prompt import LLMSeqPrompt
from intune.workloads.sequences.models import (
    MODELS,
    Counted,
    Learned,
    Material,
    TextOptions,
    identity,
    module_of,
    plain_config,
)
from intune.workloads.sequences.stages import AppendTargets
from intune.workloads.training.batch_sizes import redrawn
from intune.workloads.training.devices import check_device
from intune.workloads.training.feeding import FeedOptions, feeding
from intune.workloads.training.fitting import FitOptions, FitSummary, check_seed, fit, require_metric
from intune.workloads.training.optim import ClippedAdamW
from intune.workloads.training.shares import shared
from intune.workloads.training.trainer import OnStep

SCORED_AT_ONCE = 256
"""Sessions of an evaluation's batch, at most; fewer where their scores of all items would be more than a block."""


@dataclass(frozen=True, kw_only=True)
class SequenceJob(FeedOptions):
    """What to train, on what; fed as `FeedOptions` says.

    Attributes:
        model: a key of `models.MODELS`.
        data: folder made by ``intune data``.
        settings: of the model's configuration; others are its own.
        text: where embeddings come from, for the models that read text.
        seed: of initial values, of shuffling and of whatever is drawn.
        shuffle: window in row groups, 0 for the files' order, in which every epoch has the same windows, masks and
            negatives.
        device: where the model is.
        cutoffs: the values of k in ``ndcg@k`` and the others.
        fit: how long to train and what is best. For ``llm-seq-prompt`` that is the loss of validation's last lines,
            whatever `metric` says: ranking takes twenty completions for every session.
    """

    model: str
    data: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    text: TextOptions = field(default_factory=TextOptions)
    seed: int = 0
    shuffle: int = 8
    device: str = "cpu"
    cutoffs: tuple[int, ...] = (10, 20)
    fit: FitOptions = field(
        default_factory=lambda: FitOptions(metric="ndcg@20", epochs=1000, evaluate_epochs=5, patience=5)
    )

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise ConfigError(f"`model`={self.model!r} is unknown; use {', '.join(MODELS)}")
        check_seed(self.seed)
        at_least("shuffle", self.shuffle, 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class SequenceResult:
    """What came out.

    Attributes:
        test: of the test's sessions; None if a signal ended training.
        fit: how training went; None where nothing is trained by gradients.
    """

    test: SessionRanking | None
    fit: FitSummary | None


@dataclass(kw_only=True, eq=False)
class ReadySequence:
    """A job made ready: `run()` trains and judges.

    Attributes:
        job, data: what was asked for.
        recommender: untrained until `run`.
        loader: of training sessions; None where nothing is trained.
        steps: an upper bound of the steps to come; None where there are no steps.
        on_step: for a live display.
    """

    job: SequenceJob
    data: RatingData
    recommender: SequenceRecommender
    loader: Loader | None
    steps: int | None
    rank: Callable[[Literal["valid", "test"]], SessionRanking]
    validate: Callable[[], Mapping[str, float]]
    on_step: OnStep | None = None

    def run(self) -> SequenceResult:
        """Train, then rank the test's sessions, once.

        Raises:
            IntuneError: whatever the loader, a checkpoint or the model raises.
        """
        summary = self.train()
        if summary is not None and summary.train.stopped_by is not None:
            return SequenceResult(test=None, fit=summary)
        return SequenceResult(test=self.rank("test"), fit=summary)

    def train(self) -> FitSummary | None:
        """Train without a look at the test's sessions; None where nothing is trained by gradients."""
        summary = None
        if self.loader is not None and isinstance(self.recommender, Learned):
            summary = self._fit(self.loader, self.recommender)
        elif self.loader is not None and isinstance(self.recommender, Counted):
            self.recommender.fit(self.loader)
        module = module_of(self.recommender)
        if module is not None:
            module.eval()
        return summary

    def _fit(self, loader: Loader, recommender: Learned) -> FitSummary:
        module = module_of(self.recommender)
        assert module is not None
        config = plain_config(self.recommender)
        return fit(
            module,
            ClippedAdamW(
                module.parameters(),
                lr=config["learning_rate"],
                weight_decay=config["weight_decay"],
                clip=config["clip"],
            ),
            loader,
            loss=recommender.loss,
            evaluate=self.validate,
            options=_fit_options(self.job),
            metrics=_metrics(self.job),
            config={"model": self.job.model, "seed": self.job.seed, **identity(self.recommender)},
            on_step=self.on_step,
        )


@contextmanager
def ready(job: SequenceJob) -> Iterator[ReadySequence]:
    """Make a job ready; leaving the context closes its loaders.

    Raises:
        IntuneError: data, budget, model or an option that cannot be used, before anything is trained.
    """
    check_device(job.device)
    data = find_rating_data(job.data)
    # Before texts are embedded and models are loaded.
    require_questions(data, "test")
    whole = job.budget()
    material = Material(data=data, seed=job.seed, settings=job.settings, text=job.text, budget=whole)
    recommender = MODELS[job.model](material)
    if not isinstance(recommender, Learned | Counted):
        _refuse_training(job)
    if isinstance(recommender, Learned):
        require_questions(data, "valid")
        require_metric(_fit_options(job).metric, _metrics(job))
    module = module_of(recommender)
    if module is not None:
        module.to(job.device)
    budget, part = _split(whole, held_out=3 if isinstance(recommender, LLMSeqPrompt) else 2)
    with ExitStack() as stack:

        def held_out(pipeline: Pipeline) -> Loader:
            return stack.enter_context(pipeline.loader(executor="threads", budget=part))

        scoring = {split: held_out(_scoring(job, data, recommender, split)) for split in ("valid", "test")}

        def rank(split: Literal["valid", "test"]) -> SessionRanking:
            return rank_sessions(
                recommender.scores, scoring[split], train_counts=data.train_counts, cutoffs=job.cutoffs
            )

        validate: Callable[[], Mapping[str, float]] = lambda: rank("valid").compute()  # noqa: E731
        if isinstance(recommender, LLMSeqPrompt):
            lines = held_out(_last_lines(job, data, recommender))
            validate = lambda: {"loss": mean_loss(recommender.loss, lines)}  # noqa: E731
        loader = None
        if isinstance(recommender, Learned | Counted):
            loader = stack.enter_context(feeding(_training(job, data, recommender), job, budget))
        steps = None
        if loader is not None and isinstance(recommender, Learned):
            steps = min(job.fit.epochs * len(loader), job.fit.max_steps or 2**62)
        yield ReadySequence(
            job=job,
            data=data,
            recommender=recommender,
            loader=loader,
            steps=steps,
            rank=rank,
            validate=validate,
        )


def _training(job: SequenceJob, data: RatingData, recommender: SequenceRecommender) -> Pipeline:
    if not isinstance(recommender, Learned):
        return data.pipeline("sessions/train", ["items", "timestamps"]).batch(SCORED_AT_ONCE)
    users = data.train_pairs[0]
    if np.bincount(users).max(initial=0) < 2:
        raise DataError(
            f"{data.folder}: no user has 2 interactions to train on, so that there is no next item to learn from; "
            "make the data set with another `--split` or `--core`"
        )
    sessions = data.pipeline("sessions/train", ["user", "items"])
    if job.shuffle:
        sessions = sessions.shuffle(job.shuffle, seed=job.seed)
    batch_size = redrawn(
        plain_config(recommender)["batch_size"],
        data.rows("sessions/train"),
        shuffle=job.shuffle,
        drawn="windows, masks and negatives",
    )
    sessions = sessions.batch(batch_size)
    return recommender.training_stages(sessions, seed=job.seed).to(job.device)


def _scoring(job: SequenceJob, data: RatingData, recommender: SequenceRecommender, split: str) -> Pipeline:
    at_once = max(1, min(SCORED_AT_ONCE, SCORES_AT_ONCE // data.items))
    sessions = data.pipeline(f"sessions/{split}", ["user", "items", "targets"]).batch(at_once)
    device = job.device if isinstance(recommender, nn.Module) else "cpu"
    return recommender.scoring_stages(sessions).to(device)


def _last_lines(job: SequenceJob, data: RatingData, recommender: LLMSeqPrompt) -> Pipeline:
    sessions = data.pipeline("sessions/valid", ["items", "targets"]).batch(recommender.config.batch_size)
    return (
        sessions.map(AppendTargets(), name="append")
        .map(recommender.tokenize(learned="last"), name="prompt")
        .to(job.device)
    )


def mean_loss(loss: Callable[[Mapping[str, Any]], Tensor], batches: Any) -> float:
    """Mean over batches, weighed by their rows; without gradients."""
    total, rows = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            total += float(loss(batch)) * len(batch["target"])
            rows += len(batch["target"])
    return total / max(rows, 1)


def _fit_options(job: SequenceJob) -> FitOptions:
    options = replace(job.fit, seed=job.seed)
    if job.model == "llm-seq-prompt":
        options = replace(options, metric="loss", higher_is_better=False)
    return options


def _metrics(job: SequenceJob) -> tuple[str, ...]:
    """What may decide when training ends."""
    return ("loss",) if job.model == "llm-seq-prompt" else (*metric_names(job.cutoffs), "cold")


def _refuse_training(job: SequenceJob) -> None:
    """Raise a `ConfigError` for options of a loader that there is not where nothing is trained."""
    # What is ranked is read on threads in any case.
    executor = job.executor if job.executor == "ray" else None
    for name, value in (("agent", job.agent), ("slots", dict(job.slots)), ("executor", executor)):
        if value:
            raise ConfigError(
                f"`{name}`={value!r} is of training, but {job.model} trains nothing; leave it out"
            )


def _split(budget: Budget, *, held_out: int) -> tuple[Budget, Budget]:
    """Half of the memory for training's loader, and a part of the other half for each that brings held-out sessions."""
    training, evaluation = shared(budget, held_out, *[1] * held_out)[:2]
    return training, evaluation
