"""Loaders of others that become tunable: what `intune.tune` can drive beside this package's own pipelines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from intune.adapters.dataloader.tunable import TunableDataLoader

__all__ = ["TunableDataLoader"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: worker processes need the modules beside it, and it takes as much of everything else as
    # makes a sixth of their start.
    if name in __all__:
        from intune.adapters.dataloader.tunable import TunableDataLoader

        return TunableDataLoader
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
