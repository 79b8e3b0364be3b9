"""Whether a dataset is sent without what it has opened, as its own `__getstate__` says: every process opens its own.

Such a dataset can be sent at any time, and what it has opened shows nowhere else; two threads would share it.
"""

from __future__ import annotations

import sys
from typing import Any

from torch.utils.data import Dataset

from intune.adapters.pickled_size import structure_bytes
from intune.adapters.user_modules import SCRIPTS, is_users


def keeps_back_open(value: Any) -> bool:
    """Whether an object keeps an open file, a connection or the like back when it is pickled.

    Asked of the user's classes and datasets only: those of libraries keep back what they may make again, as caches.
    """
    kind: Any = type(value)
    if kind.__getstate__ is object.__getstate__:
        return False
    users = kind.__module__ in SCRIPTS or is_users(sys.modules.get(kind.__module__))
    if not (users or isinstance(value, Dataset)):
        return False
    kept = getattr(value, "__dict__", {})
    sent = value.__getstate__()
    sent = sent if isinstance(sent, dict) else {}
    return any(
        structure_bytes(one) is None
        for name, one in kept.items()
        if name not in sent or sent[name] is not one
    )
