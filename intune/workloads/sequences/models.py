"""The sequence recommenders by name, each made from the data and from settings that differ from its own defaults.

What is done with them is `sequences/job.py`'s.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from intune.pipelines import Budget, Pipeline
from intune.pipelines.errors import ConfigError
from intune.workloads.pairs.data import RatingData
from intune.workloads.sequences.bert4rec import BERT4Rec, BERT4RecConfig
from intune.workloads.sequences.embedding_files import read_embeddings
from intune.workloads.sequences.evaluation import SequenceRecommender
from intune.workloads.sequences.gru4rec import GRU4Rec, GRU4RecConfig
from intune.workloads.sequences.hub_language_model import HubLanguageModel
from intune.workloads.sequences.language_model import (
    SmallLanguageModel,
    SmallLanguageModelConfig,
    WordTokenizer,
)
from intune.workloads.sequences.llm2bert4rec import llm2bert4rec
from intune.workloads.sequences.llm_embeddings import DEFAULT_MODEL, embed_items, load_encoder
from intune.workloads.sequences.llm_seq_prompt import LLMSeqPrompt, LLMSeqPromptConfig, check_names, numbered
from intune.workloads.sequences.llm_seq_sim import LLMSeqSim, LLMSeqSimConfig
from intune.workloads.sequences.popularity import Popularity
from intune.workloads.sequences.sasrec import SASRec, SASRecConfig
from intune.workloads.sequences.vsknn import VSKNN, VSKNNConfig

Config = TypeVar("Config")


@runtime_checkable
class Learned(Protocol):
    """A recommender that is trained by gradients."""

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """Scalar loss of a batch that `training_stages` made."""

    def training_stages(self, pipeline: Pipeline, *, seed: int) -> Pipeline:
        """The stages from batches of sessions to what `loss` takes."""


@runtime_checkable
class Counted(Protocol):
    """A recommender that learns in one pass."""

    def fit(self, batches: Any) -> None:
        """Learn from batches of sessions."""


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """Where item embeddings and words come from, for the models that read text.

    Attributes:
        model: sentence encoder; see `llm_embeddings.EmbedText`.
        embeddings: a file of item embeddings, used instead of it; not for ``llm-seq-prompt``, which embeds what its
            language model writes.
        language_model: causal language model by name or folder; None: a small one is trained here.
        spread: see `llm2bert4rec.llm2bert4rec`.
    """

    model: str = DEFAULT_MODEL
    embeddings: Path | None = None
    language_model: str | None = None
    spread: float | None = None


@dataclass(frozen=True, kw_only=True)
class Material:
    """What models are made of.

    Attributes:
        data: the data set.
        seed: of initial values and draws.
        settings: of the model's configuration; others are its own.
        text: where embeddings come from.
        budget: of the pipeline that makes embeddings; None for what the job may use.
    """

    data: RatingData
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    text: TextOptions = field(default_factory=TextOptions)
    budget: Budget | None = None

    def config(self, of: type[Config], **known: Any) -> Config:
        """A configuration of that class with the settings; see `configs`."""
        made: Config = self.configs(of, **known)[0]
        return made

    def configs(self, *of: Any, **known: Any) -> Any:
        """A configuration of each of these classes, with those of the settings that it has.

        Raises:
            ConfigError: none of them has a setting of that name.
        """
        names = [{entry.name for entry in fields(each)} - known.keys() for each in of]
        if unknown := sorted(self.settings.keys() - set().union(*names)):
            raise ConfigError(
                f"`{unknown[0]}` is no setting of {of[0].__name__.removesuffix('Config')}; "
                f"it has {', '.join(sorted(set().union(*names))) or 'none'}"
            )
        return tuple(
            each(**known, **{name: value for name, value in self.settings.items() if name in own})
            for each, own in zip(of, names, strict=True)
        )

    @cached_property
    def embeddings(self) -> Tensor:
        """Of all items, shape ``(items, dimensions)``: read, or made and kept beside the data set."""
        if self.text.embeddings is not None:
            return read_embeddings(self.text.embeddings, items=self.data.items)
        slug = "".join(sign if sign.isalnum() else "-" for sign in self.text.model)
        out = self.data.folder / "embeddings" / f"{slug}.parquet"
        return embed_items(
            self.data.folder / "items", out, model=self.text.model, executor="threads", budget=self.budget
        )

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of all items: title and year; the text where there is no title."""
        table = self.data.table("items", ["item", "title", "year", "text"]).sort_by("item")
        return check_names([_name(row) for row in table.to_pylist()])


def _name(row: Mapping[str, Any]) -> str | None:
    name = row["title"] or row["text"]
    if name is None:
        return None
    year = row["year"] if row["title"] else None
    return " ".join(str(name).split()) + ("" if year is None else f" ({year})")


def _bert4rec(material: Material) -> SequenceRecommender:
    return BERT4Rec(material.config(BERT4RecConfig, items=material.data.items), seed=material.seed)


def _llm2bert4rec(material: Material) -> SequenceRecommender:
    items = material.data.items
    # Its own defaults are those tuned for it; BERT4Rec's width is more than the usual encoder has dimensions.
    own = asdict(BERT4RecConfig.beauty_from_text(items=items))
    own.pop("items")
    tuned = replace(material, settings={**own, **material.settings})
    config = tuned.config(BERT4RecConfig, items=items)
    return llm2bert4rec(config, material.embeddings, seed=material.seed, spread=material.text.spread)


def _sasrec(material: Material) -> SequenceRecommender:
    return SASRec(material.config(SASRecConfig, items=material.data.items), seed=material.seed)


def _gru4rec(material: Material) -> SequenceRecommender:
    return GRU4Rec(material.config(GRU4RecConfig, items=material.data.items), seed=material.seed)


def _vsknn(material: Material) -> SequenceRecommender:
    return VSKNN(material.config(VSKNNConfig, items=material.data.items))


def _popularity(material: Material) -> SequenceRecommender:
    material.config(Nothing)
    return Popularity(items=material.data.items)


def _llm_seq_sim(material: Material) -> SequenceRecommender:
    return LLMSeqSim(material.embeddings, material.config(LLMSeqSimConfig))


def _llm_seq_prompt(material: Material) -> SequenceRecommender:
    config, shape = material.configs(LLMSeqPromptConfig, SmallLanguageModelConfig)
    if material.text.embeddings is not None:
        raise ConfigError(
            f"`embeddings`={material.text.embeddings} cannot be used by llm-seq-prompt: names that its language model "
            f"writes are compared with the items', so that it needs the encoder itself; leave the option out"
        )
    names, encoder = material.names, load_encoder(material.text.model, or_file=False)
    language: SmallLanguageModel | HubLanguageModel
    if material.text.language_model is not None:
        language = HubLanguageModel(material.text.language_model)
    else:
        # Every number that begins a line must be known, whichever names stand on those lines.
        lines = [numbered([name]) for name in names] + [numbered(["-"] * (config.length + 1))]
        language = SmallLanguageModel(WordTokenizer.of(lines), shape, seed=material.seed)
    return LLMSeqPrompt(
        language,
        names,
        # Names are compared with names: the items' whole texts would all be farther off.
        torch.from_numpy(encoder(names)),
        encoder,
        config,
        candidates=torch.from_numpy(material.data.train_counts > 0),
        seed=material.seed,
    )


@dataclass(frozen=True, kw_only=True)
class Nothing:
    """The settings of a model that has none."""


MODELS: dict[str, Callable[[Material], SequenceRecommender]] = {
    "bert4rec": _bert4rec,
    "gru4rec": _gru4rec,
    "llm-seq-prompt": _llm_seq_prompt,
    "llm-seq-sim": _llm_seq_sim,
    "llm2bert4rec": _llm2bert4rec,
    "popularity": _popularity,
    "sasrec": _sasrec,
    "vsknn": _vsknn,
}


def module_of(recommender: SequenceRecommender) -> nn.Module | None:
    """What is trained by gradients; None where nothing is."""
    inner = recommender.model if isinstance(recommender, LLMSeqPrompt) else recommender
    return inner if isinstance(inner, nn.Module) else None


def plain_config(recommender: SequenceRecommender) -> dict[str, Any]:
    """The recommender's configuration in plain values, for a checkpoint."""
    config = getattr(recommender, "config", None)
    return {} if config is None else asdict(config)


def identity(recommender: SequenceRecommender) -> dict[str, Any]:
    """What a checkpoint of the recommender belongs to: its configuration and, of a language model, its words."""
    made = plain_config(recommender)
    if isinstance(recommender, LLMSeqPrompt):
        model = recommender.model
        made |= {"items": len(recommender.names), "names": _digest(recommender.names)}
        if isinstance(model, SmallLanguageModel):
            made |= {"language_model": asdict(model.config), "tokenizer": _digest(model.tokenizer.words)}
        else:
            # The tokenizer is the one that belongs to it.
            made["language_model"] = getattr(model, "name", type(model).__name__)
    return made


def _digest(words: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]
