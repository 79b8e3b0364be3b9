"""`intune pretrain`: makes the weights of a learning agent in the simulator. What is computed is in `intune.agents`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from intune.cli.defaults import otherwise

if TYPE_CHECKING:
    from intune.agents.qweights import Weights

PRETRAIN_HELP = """\
Pre-train a learning agent in the simulator and write its weights, with recipe, seed and score.

Without options, in the way of the weights shipped with the package: 80 episodes of 200 jobs drawn from all families
of training scenarios. Of dqn-paper, the agent built after the paper, 300 episodes of 16 jobs. Ctrl-C
ends it with the weights of the episodes that were done.

Examples:
  intune pretrain --out dqn.npz
  intune pretrain --seed 2 --episodes 40 --families paper elastic --out elastic.npz
  intune pretrain --agent dqn-paper --out dqn-paper.npz
"""


def pretrain(
    *,
    out: Path,
    agent: Literal["dqn", "dqn-paper"] = "dqn",
    families: Annotated[tuple[str, ...], otherwise("all for the dqn, four of them for dqn-paper")] = (),
    episodes: Annotated[int | None, otherwise("the agent's recipe's", metavar="INT")] = None,
    jobs: Annotated[int | None, otherwise("the agent's recipe's", metavar="INT")] = None,
    steps: Annotated[int | None, otherwise("the agent's recipe's", metavar="INT")] = None,
    batch_size: Annotated[int | None, otherwise("the agent's recipe's", metavar="INT")] = None,
    gradient_steps: Annotated[int | None, otherwise("the agent's recipe's", metavar="INT")] = None,
    seed: Annotated[int | None, otherwise("the agent's recipe's", metavar="INT")] = None,
    quiet: bool = False,
) -> None:
    """Pre-train an agent.

    Args:
        out: Where to write the weights (.npz).
        agent: Which agent.
        families: Scenarios to draw jobs from.
        episodes: How many.
        jobs: Side by side in an episode.
        steps: Decisions in an episode.
        batch_size: Transitions of a gradient step.
        gradient_steps: Gradient steps for each decision of all jobs.
        seed: Of jobs, network and exploration.
        quiet: Show no progress.
    """
    from intune.agents.dqn_paper_training import PAPER_RECIPE, pretrain_paper
    from intune.agents.pretrain import Interrupted, Recipe
    from intune.agents.pretrain import pretrain as pretrain_dqn
    from intune.cli.writing import check_file
    from intune.pipelines.errors import ConfigError

    if out.suffix != ".npz":
        raise ConfigError(f"`out`={str(out)!r} must end in .npz")
    given: dict[str, Any] = {
        "episodes": episodes, "jobs": jobs, "steps": steps, "batch_size": batch_size,
        "gradient_steps": gradient_steps, "seed": seed,
    }  # fmt: skip
    changes = {name: value for name, value in given.items() if value is not None}
    if families:
        changes["families"] = families
    paper = agent == "dqn-paper"
    recipe = replace(PAPER_RECIPE if paper else Recipe(), **changes)
    check_file("out", out)
    try:
        with _Progress(recipe.episodes, quiet=quiet) as told:
            weights = (pretrain_paper if paper else pretrain_dqn)(recipe, watch=told)
    except Interrupted as stop:
        _write(stop.weights, out, f" of {stop.weights.recipe['episodes']} of {recipe.episodes} episodes")
        raise
    _write(weights, out)


def _write(weights: Weights, out: Path, part: str = "") -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    weights.save(out)
    score, seconds = weights.recipe["score"], weights.recipe["seconds"]
    print(f"wrote {out}{part}: score {score:.3f} in {seconds:.0f} s", file=sys.stderr)


class _Progress:
    """A bar of episodes, with the share of the best rate in the latest one."""

    def __init__(self, episodes: int, *, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("episodes"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=Console(stderr=True),
            disable=quiet,
        )
        self._task = self._bar.add_task("", total=episodes)

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, episode: int, score: dict[str, float]) -> None:
        said = f"{score['rate']:.3f} of the best rate, {score['killed']:.0f} out of memory"
        self._bar.update(self._task, completed=episode + 1, description=said)
