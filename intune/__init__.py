"""InTune: an input pipeline for recommender training that is tuned while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from intune.tuning import Tuned, tune

__all__ = ["Tuned", "tune"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: `import intune` alone loads neither torch nor agents.
    if name in __all__:
        from intune import tuning

        return getattr(tuning, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
