"""`intune train trendrec`: TrendRec and what it is compared with. What is done is in `intune.workloads.trends.job`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Literal

from intune.cli.train import displayed, leave_if_stopped, set_torch_threads
from intune.cli.train_options import FEEDING_SMALL, SAVING_AT_THE_END, FeedingSmall, Saving

if TYPE_CHECKING:
    from intune.pipelines import Loader
    from intune.workloads.training.trainer import OnStep
    from intune.workloads.trends.options import TrendFit, TrendResult

TRENDREC_HELP = """\
Forecast which items will trend: TrendRec (RecSys 2023, after the paper) and what it is compared with.

DATA is a folder made by `intune data market`, `movielens` or `amazon-reviews`, best with --split global-time and a
--step-days that suits it. An item's acceleration is the number of its interactions in a step less that of the step
before; its next one is forecast for every item, step by step. First the next item is learnt from sessions (trendrec,
gru4rec), then acceleration from the items' series (trendrec, deepar-item, deepar), both from Parquet through a pipeline
and each until its loss on validation's steps has stopped falling. No event of a step is used to forecast it. The last
step of the data, which is not whole, is left out.

precision@k: share of the k items of the highest forecast that are among the k that accelerate most. gain@k: the
acceleration that they collect, over the best possible. Both are InTune's own and means over steps; the test's steps
are forecast once, at the end. With --checkpoints, a run that was killed or stopped goes on with --resume.

Examples:
  intune train trendrec --data market --season 12
  intune train trendrec --data market --season 12 --forecaster deepar
  intune train trendrec --data ml-100k --forecaster markov
"""


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """How to train.

    Attributes:
        epochs: Passes over the series, at most.
        patience: Passes in a row without a new best after which training on acceleration ends.
        item_epochs: Passes over the sessions, at most.
        item_patience: The same of training on next items.
        saving: What is written while the model trains, of each of the two trainings.
        feeding: What the command may use.
    """

    epochs: int = 200
    patience: int = 20
    item_epochs: int = 100
    item_patience: int = 5
    saving: Saving = SAVING_AT_THE_END
    feeding: FeedingSmall = FEEDING_SMALL

    def job(self) -> TrendFit:
        """As the job takes it."""
        from intune.workloads.training.feeding import FeedOptions
        from intune.workloads.training.fitting import FitOptions
        from intune.workloads.trends.options import TrendFit

        def options(epochs: int, patience: int) -> FitOptions:
            return FitOptions(
                metric="loss",
                higher_is_better=False,
                epochs=epochs,
                patience=patience,
                **asdict(self.saving),
            )

        return TrendFit(
            items=options(self.item_epochs, self.item_patience),
            trends=options(self.epochs, self.patience),
            feed=FeedOptions(**self.feeding.feed()),
        )


@dataclass(frozen=True, kw_only=True)
class Model:
    """The model and its optimisers.

    Attributes:
        width: Of the item embedding and the user tower.
        hidden: Of the forecaster's state.
        dropout: Share of values dropped.
        season: Steps after which a season comes again, told to the forecaster; 0 for none.
        likelihood: Of acceleration.
        length: Items of a session that the user tower reads.
        weight: Of the latest acceleration, of the exponential average.
        growth: Let gru4rec forecast predicted less present velocity, not predicted popularity.
        learning_rate: Of training on acceleration.
        batch_size: Series per step.
        item_learning_rate: Of training on next items.
        item_batch_size: Sessions per step.
        weight_decay: Of both.
        device: Where the model is: cpu, cuda or cuda:N.
    """

    width: int = 32
    hidden: int = 32
    dropout: float = 0.1
    season: int = 0
    likelihood: Literal["gaussian", "student-t"] = "gaussian"
    length: int = 50
    weight: float = 0.5
    growth: bool = False
    learning_rate: float = 3e-3
    batch_size: int = 64
    item_learning_rate: float = 3e-3
    item_batch_size: int = 64
    weight_decay: float = 1e-4
    device: str = "cpu"


def trendrec(
    *,
    data: str,
    forecaster: Literal[
        "trendrec", "deepar-item", "deepar", "gru4rec", "markov", "exponential-average", "last-velocity"
    ] = "trendrec",
    freeze_items: bool = False,
    valid_share: float = 0.15,
    test_share: float = 0.2,
    model: Model = Model(),
    fitting: Fitting = Fitting(),
) -> None:
    """Forecast which items will trend.

    Args:
        data: Folder of interactions.
        forecaster: What forecasts: TrendRec; the same without pre-training (deepar-item) or without an item embedding
            (deepar); the next-item model alone (gru4rec); or a rule that learns nothing.
        freeze_items: Leave the item embedding as next items made it.
        valid_share: Share of the steps to choose by.
        test_share: Share of the steps to judge by, the last ones.
        model: The model and its optimisers.
        fitting: How to train.
    """
    from intune.workloads.trends.data import CutOptions, find_trend_data
    from intune.workloads.trends.job import TrendForecaster
    from intune.workloads.trends.options import TrendOptions

    seed = fitting.feeding.seed
    options = TrendOptions(forecaster=forecaster, tune_items=not freeze_items, seed=seed, **asdict(model))
    found = find_trend_data(data, CutOptions(valid_share=valid_share, test_share=test_share))
    # Of few items, no more can be ranked.
    cutoffs = tuple(k for k in options.cutoffs if k <= found.items) or (found.items,)
    made = TrendForecaster(data=found, options=replace(options, cutoffs=cutoffs))
    set_torch_threads(fitting.feeding.torch_threads)
    result = made.fit(fitting.job(), watch=None if fitting.feeding.quiet else _shown)
    if result.stopped is not None:
        leave_if_stopped(result.stopped.train)
    print(said(result))


@contextmanager
def _shown(name: str, loader: Loader, steps: int) -> Iterator[OnStep]:
    """Show one of the two trainings."""
    with displayed(loader, steps, title=name, quiet=False) as (on_step, _):
        yield on_step


def said(result: TrendResult) -> str:
    """What is said at the end, a few lines."""
    lines = []
    for name, fitted in (("next items", result.items), ("acceleration", result.trends)):
        if fitted is None or fitted.best is None:
            continue
        train = fitted.train
        if fitted.resumed_from is not None:
            lines.append(f"{name}: went on from {fitted.resumed_from}")
        lines.append(
            f"{name}: {fitted.epochs} epochs, step {train.step:,}, {train.seconds:.1f} s, {train.rows_per_s:,.0f} "
            f"rows/s while training, waited for data {train.wait_share:.1%} of the time; kept epoch "
            f"{fitted.best_epochs}, validation's loss {fitted.best.metrics['loss']:.4f}"
        )
    for split, metrics in (("validation", result.valid), ("test", result.test)):
        lines.append(f"{split}: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
    return "\n".join(lines)
