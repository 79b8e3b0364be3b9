"""LLMSeqPrompt (Harte et al. 2023, arXiv 2309.09261): a language model is shown a session's item names and goes on.

The prompt is a numbered list, a name a line; the model is tuned on such lists and writes the next line, some twenty
times over. A name that is not in the catalogue is embedded. In its place, and in that of one that was written before or
may not be recommended, the nearest item that may is recommended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from intune.pipelines import Pipeline
from intune.pipelines.errors import ConfigError, DataError
from intune.pipelines.schema import Array, Block, Column
from intune.pipelines.transforms.base import Transform
from intune.pipelines.whole import at_least
from intune.workloads.sequences.draws import DrawEnd
from intune.workloads.sequences.language_model import LanguageModel, Tokenizer, pad_tokens
from intune.workloads.sequences.llm_embeddings import Encoder
from intune.workloads.sequences.stages import IGNORED, Window, sessions_of


@dataclass(frozen=True, kw_only=True)
class LLMSeqPromptConfig:
    """What is asked of the language model and how it is tuned.

    Attributes:
        length: names of a session that the model is shown; older ones are left out.
        completions: how often it is asked to go on, and so the most items that are recommended.
        most_tokens: of a completion.
        learning_rate, weight_decay, clip, batch_size: of AdamW; `clip` is the largest norm of the gradient.
    """

    length: int = 20
    completions: int = 20
    most_tokens: int = 50
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    clip: float = 1.0
    batch_size: int = 32

    def __post_init__(self) -> None:
        for name in ("length", "completions", "most_tokens", "batch_size"):
            at_least(name, getattr(self, name), 1)


@dataclass(frozen=True, kw_only=True)
class TokenizePrompt(Transform):
    """Each session's names as a numbered list, in tokens.

    Attributes:
        names: of all items, in the order of their ids.
        tokenizer: of the language model.
        length: names that are kept, the last ones.
        context: tokens that are kept, the last ones.
        learned: what `target` holds: all tokens, or the last name's.
        column: the sessions.
        into: tokens, int64, shape ``(rows, longest)``, `IGNORED` after a list's end.
        target: the same where a token is learned, `IGNORED` elsewhere.
    """

    names: tuple[str, ...]
    tokenizer: Tokenizer
    length: int
    context: int
    learned: Literal["all", "last"] = "all"
    column: str = "drawn"
    into: str = "tokens"
    target: str = "target"

    def __post_init__(self) -> None:
        at_least("length", self.length, 1)
        at_least("context", self.context, 1)
        if self.learned not in ("all", "last"):
            raise ConfigError(f"`learned`={self.learned!r} is unknown; use 'all' or 'last'")

    def __call__(self, block: Mapping[str, Column]) -> Block:
        """The block with tokens and targets.

        Raises:
            DataError: a session is empty or has an item that is not one of the named.
        """
        # The window checks ids and padding is cut off again: one place says what a session may be.
        checked = Window(length=self.length, items=len(self.names), column=self.column)
        rows = np.asarray(
            checked({self.column: sessions_of("TokenizePrompt", block, self.column)})["sequence"]
        )
        tokens, targets = [], []
        for row in rows:
            names = [self.names[item] for item in row[row < len(self.names)]]
            made = self.tokenizer.encode(numbered(names))
            before = 0
            if self.learned == "last":
                before = len(self.tokenizer.encode(asking(names[:-1])))
            tokens.append(made[-self.context :])
            targets.append(([IGNORED] * before + made[before:])[-self.context :])
        return {**block, self.into: pad_tokens(tokens), self.target: pad_tokens(targets)}


class LLMSeqPrompt:
    """Asks a language model for the next items.

    Args:
        model: the language model.
        names: of all items, in the order of their ids.
        embeddings: of the names, shape ``(items, dimensions)``.
        encoder: embeds a name that the catalogue does not have, into the same space.
        config: how to ask.
        candidates: whether an item may be recommended at all, shape ``(items,)``; all by default. A completion that
            names another one would be lost.
        seed: of the draws.

    Raises:
        ConfigError: there are not as many embeddings, or candidates, as names.
        DataError: a name is blank or has several lines, or all are the same.
    """

    def __init__(
        self,
        model: LanguageModel,
        names: Sequence[str],
        embeddings: Tensor,
        encoder: Encoder,
        config: LLMSeqPromptConfig | None = None,
        *,
        candidates: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        if len(embeddings) != len(names):
            raise ConfigError(
                f"`embeddings` has {len(embeddings)} rows, but there are {len(names)} names; embed every item"
            )
        if candidates is None:
            candidates = torch.ones(len(names), dtype=torch.bool)
        if len(candidates) != len(names):
            raise ConfigError(
                f"`candidates` has {len(candidates)} items, but there are {len(names)} names; say it of every item"
            )
        self.model = model
        self.names = check_names(names)
        self.config = config if config is not None else LLMSeqPromptConfig()
        self._units = F.normalize(embeddings.float(), dim=1)
        self._candidates = candidates
        self._encoder = encoder
        self._ids: dict[str, int] = {}
        for place, name in enumerate(self.names):
            self._ids.setdefault(name, place)
        self._generator = torch.Generator().manual_seed(seed)
        self.written = 0
        self.in_catalogue = 0

    def recommend(self, session: Sequence[int]) -> list[int]:
        """Candidates for a session, in the order in which the model wrote them; none twice, none of the session's.

        `written` and `in_catalogue` count completions, and those that were the name of an item.
        """
        config = self.config
        shown = list(session)[-config.length :]
        prompt = asking([self.names[item] for item in shown])
        lines = self.model.complete(
            prompt, count=config.completions, most=config.most_tokens, generator=self._generator
        )
        free = self._candidates.clone()
        free[list(session)] = False
        chosen: list[int] = []
        unknown = sorted({name for name in map(str.strip, lines) if name and name not in self._ids})
        vectors = dict(zip(unknown, self._embed(unknown), strict=True))
        for name in map(str.strip, lines):
            self.written += 1
            item = self._ids.get(name)
            self.in_catalogue += item is not None
            if (not name) or not free.any():
                continue
            if item is None or not free[item]:
                near = self._units @ (self._units[item] if item is not None else vectors[name])
                item = int(near.masked_fill(~free, -torch.inf).argmax())
            free[item] = False
            chosen.append(item)
        return chosen

    def scores(self, batch: Mapping[str, Any]) -> Tensor:
        """The recommendations of the sessions ``items`` as scores, shape ``(rows, items)``: −∞ but for those."""
        sessions = batch["items"]
        made = torch.full((len(sessions), len(self.names)), -torch.inf)
        offsets, values = np.asarray(sessions.offsets), np.asarray(sessions.values)
        for row in range(len(sessions)):
            chosen = self.recommend(values[offsets[row] : offsets[row + 1]].tolist())
            made[row, chosen] = torch.arange(len(chosen), 0, -1).float()
        return made

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """The language model's loss on a batch with ``tokens``."""
        return self.model.loss(batch)

    def training_stages(self, pipeline: Pipeline, *, seed: int) -> Pipeline:
        """The stages from batches of sessions to what `loss` takes."""
        length = self.config.length + 1
        return pipeline.map(DrawEnd(length=length, seed=seed), name="draw").map(
            self.tokenize(), name="prompt"
        )

    def tokenize(self, *, learned: Literal["all", "last"] = "all") -> TokenizePrompt:
        """The stage that makes what `loss` takes of the sessions that were drawn."""
        return TokenizePrompt(
            names=self.names,
            tokenizer=self.model.tokenizer,
            length=self.config.length + 1,
            context=self.model.context,
            learned=learned,
            column="drawn",
        )

    def scoring_stages(self, pipeline: Pipeline) -> Pipeline:
        """The stages from batches of sessions to what `scores` takes; the window checks the sessions."""
        return pipeline.map(Window(length=1, items=len(self.names)), name="window")

    def _embed(self, names: Sequence[str]) -> Tensor:
        if not names:
            return torch.zeros(0, self._units.shape[1])
        made: Array = self._encoder(names)
        if made.shape != (len(names), self._units.shape[1]):
            raise ConfigError(
                f"`encoder` gave vectors of shape {made.shape}, but items have {self._units.shape[1]} dimensions; "
                f"use the model that the items were embedded with"
            )
        return F.normalize(torch.from_numpy(np.asarray(made)).float(), dim=1)


def numbered(names: Sequence[str]) -> str:
    """``"1. name"``, ``"2. name"`` …, a line each."""
    return "".join(f"{number}. {name}\n" for number, name in enumerate(names, start=1))


def asking(names: Sequence[str]) -> str:
    """The list with the number of the next line, which is to be written."""
    return f"{numbered(names)}{len(names) + 1}."


def check_names(names: Sequence[str | None]) -> tuple[str, ...]:
    """The names without spaces around them; a `DataError` where one is missing, blank or of several lines, or where all
    items have the same."""
    for place, name in enumerate(names):
        if name is None or not name.strip():
            raise DataError(f"item {place} has no name; a language model needs one for every item")
        if "\n" in name:
            raise DataError(f"the name of item {place} has several lines, {name!r}; write it in one")
    stripped = tuple(name.strip() for name in names if name is not None)
    if len(stripped) > 1 and len(set(stripped)) == 1:
        raise DataError(
            f"all {len(stripped):,} items have the name {stripped[0]!r}, which tells none of them from another; make "
            f"the data set again with a file that describes its items"
        )
    return stripped
