"""`autotune-adaptive`: AUTOTUNE restarted whenever the machine is resized. The paper's stronger baseline."""

from __future__ import annotations

from intune.agents.autotune import Autotune


class AutotuneAdaptive(Autotune):
    """As `Autotune`, but a new iterator is made at each resize: budgets, clock and means begin anew.

    That a restart takes time is not counted against it.
    """

    name = "autotune-adaptive"
    restarts = True
