"""LLM2BERT4Rec (Harte et al. 2023, arXiv 2309.09261): BERT4Rec whose item table starts from text.

The items' text embeddings are reduced to the model's width by principal components and become the starting values of
the item table, which is then trained as usual. The rows of padding and mask stay random.
"""

from __future__ import annotations

import torch
from torch import Tensor

from intune.pipelines.errors import ConfigError, DataError
from intune.workloads.sequences.bert4rec import BERT4Rec, BERT4RecConfig

ROUNDING = 1e-6
"""Differences between embeddings, relative to the largest number, that float32 may have made of equal texts: it knows 7
digits."""


def principal_components(embeddings: Tensor, width: int) -> Tensor:
    """Coordinates along the `width` directions of the largest variance, in its falling order.

    Each direction's sign is chosen such that its coordinate of the largest size is positive, so that the result
    does not depend on the linear algebra library.

    Args:
        embeddings: shape ``(items, dimensions)``; a mean is subtracted.
        width: at most the smaller of items and dimensions.

    Returns:
        float32, shape ``(items, width)``.

    Raises:
        ConfigError: `width` is too large.
        DataError: a number that is NaN or infinite, or items whose embeddings are all the same.
    """
    items, dimensions = embeddings.shape
    if not 1 <= width <= min(items, dimensions):
        raise ConfigError(
            f"`width`={width} cannot be reached from {items} embeddings of {dimensions} dimensions; "
            f"choose one from 1 to {min(items, dimensions)}"
        )
    if not torch.isfinite(embeddings).all():
        raise DataError("the text embeddings hold NaN or infinite numbers; make them again")
    centred = embeddings.double() - embeddings.double().mean(dim=0)
    if centred.abs().max() <= ROUNDING * embeddings.abs().max():
        raise DataError(
            f"the text embeddings of all {items:,} items are the same; make them from texts that tell items apart"
        )
    left, sizes, _ = torch.linalg.svd(centred, full_matrices=False)
    made = left[:, :width] * sizes[:width]
    largest = made.gather(0, made.abs().argmax(dim=0, keepdim=True))
    turned: Tensor = made * torch.where(largest < 0, -1.0, 1.0)
    return turned.float()


def llm2bert4rec(
    config: BERT4RecConfig, embeddings: Tensor, *, seed: int = 0, spread: float | None = None
) -> BERT4Rec:
    """A BERT4Rec whose item table holds the principal components of text embeddings.

    Args:
        config: the shape.
        embeddings: shape ``(items, dimensions)``.
        seed: decides all other initial values; they are those of a `BERT4Rec` of the same seed.
        spread: standard deviation over the whole table that the components are scaled to; None leaves them as they
            are, as the paper does.

    Raises:
        ConfigError, DataError: the embeddings do not fit the configuration.
    """
    if len(embeddings) != config.items:
        raise ConfigError(
            f"`embeddings` has {len(embeddings)} rows, but the catalogue has {config.items} items; "
            f"embed every item, in the order of their ids"
        )
    components = principal_components(embeddings, config.width)
    if spread is not None:
        if not spread > 0:
            raise ConfigError(f"`spread` must be > 0, but {spread} was found")
        components = components * (spread / components.std())
    model = BERT4Rec(config, seed=seed)
    with torch.no_grad():
        model.items.weight[: config.items] = components
    return model
