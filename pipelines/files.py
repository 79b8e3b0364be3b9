"""Files of a data set that stay open, shared by all threads of a process."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

MOST_OPEN = 256
"""Below the 1,024 descriptors that a process may usually have."""


class OpenFiles:
    """Open files and their footers by path; of too many, those used last.

    On storage that is reached over a network, opening a file costs a request. The footers are read from files that
    are then open, so the first epoch need not ask again for what it is to read.
    """

    def __init__(self, most: int = MOST_OPEN) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._open: OrderedDict[str, tuple[Any, Any]] = OrderedDict()

    def find(self, path: str) -> tuple[Any, Any] | None:
        """File and footer, if it is open."""
        with self._lock:
            found = self._open.get(path)
            if found is not None:
                self._open.move_to_end(path)
            return found

    def keep(self, path: str, handle: Any, footer: Any) -> tuple[Any, Any]:
        """Have a file stay open; the one that is, if another thread was first."""
        with self._lock:
            kept = self._open.setdefault(path, (handle, footer))
            while len(self._open) > self._most:
                self._open.popitem(last=False)
            return kept

    def keep_early(self, path: str, handle: Any, footer: Any) -> bool:
        """Have a file stay open that is not read yet, if there is room; whether there was."""
        with self._lock:
            if len(self._open) >= self._most:
                return False
            return self._open.setdefault(path, (handle, footer))[0] is handle

    def forget(self, path: str) -> None:
        """Close a file; who reads it now keeps it till then."""
        with self._lock:
            self._open.pop(path, None)

    def close(self) -> None:
        """Close all."""
        with self._lock:
            self._open.clear()
