"""`autotune-adaptive` and `autotune-pool`: AUTOTUNE restarted at resizes, the paper's stronger baseline; its workers in
one pool where they are more than the slots."""

from __future__ import annotations

from intune.agents.autotune import Autotune


class AutotuneAdaptive(Autotune):
    """As `Autotune`, but a new iterator is made at each resize: budgets, clock and means begin anew.

    That a restart takes time is not counted against it.
    """

    name = "autotune-adaptive"
    restarts = True


class AutotunePool(AutotuneAdaptive):
    """As `AutotuneAdaptive`; more workers than slots share the slots. The kindest reading of AUTOTUNE."""

    name = "autotune-pool"

    def __init__(self) -> None:
        super().__init__(beyond="pool")
