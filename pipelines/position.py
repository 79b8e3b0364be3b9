"""`Position`: where a trainer is in its data, and the state in which a checkpoint keeps that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from intune.pipelines.errors import LoaderError

STATE_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Position:
    """What a trainer was handed, not what is made ahead.

    Attributes:
        epoch: the epoch it reads.
        batch: batches of it that were handed over without a gap.
        ahead: numbers of those handed over beyond, in rising order; only where they may come as they are finished.
    """

    epoch: int
    batch: int = 0
    ahead: tuple[int, ...] = ()

    def saved(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """As plain numbers and strings; `data` says what it is a position in."""
        return {
            "version": STATE_VERSION,
            "epoch": self.epoch,
            "batch": self.batch,
            "ahead": list(self.ahead),
            "plan": dict(data),
        }

    @classmethod
    def of(cls, state: Mapping[str, Any], data: Mapping[str, Any], batches: int) -> Position:
        """What `saved` made a state of.

        Args:
            data: what it is to be a position in.
            batches: of an epoch.

        Raises:
            LoaderError: the state is none, or belongs to something else.
        """
        try:
            version, saved_with = int(state["version"]), dict(state["plan"])
            ahead = sorted({int(index) for index in state.get("ahead", ())})
            position = cls(epoch=int(state["epoch"]), batch=int(state["batch"]), ahead=tuple(ahead))
        except (KeyError, TypeError, ValueError) as error:
            raise not_a_state(error) from error
        check_version(version, STATE_VERSION)
        for name, value in data.items():
            if saved_with.get(name) != value:
                differs = (
                    "of other data: files were added, removed, renamed or rewritten, or other columns are read"
                    if name == "data"
                    else f"with {name} {saved_with.get(name)!r}, but this loader has {value!r}"
                )
                raise LoaderError(
                    f"`state` was saved {differs}; its position means nothing here: load the state that this rank "
                    "saved with the same options, or begin a whole epoch with `set_epoch`"
                )
        if (
            position.epoch < 0
            or not 0 <= position.batch <= batches
            or any(not position.batch < index < batches for index in ahead)
        ):
            raise LoaderError(
                f"`state` says epoch {position.epoch}, batch {position.batch}, ahead {ahead}, but an epoch has "
                f"{batches} batches"
            )
        return position


def not_a_state(error: Exception) -> LoaderError:
    """What to raise where a state lacks something."""
    return LoaderError(f"`state` is not a loader's state ({error!r}); give what state_dict() returned")


def check_version(version: int, known: int) -> None:
    """Refuse a state of another version.

    Raises:
        LoaderError: it is.
    """
    if version != known:
        raise LoaderError(f"`state` has version {version}, but this is {known}; it cannot be read")
