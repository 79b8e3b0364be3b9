"""Where this process finds modules, for others to find them there too."""

from __future__ import annotations

import os
import sys


def import_path() -> list[str]:
    """Where this process finds modules, as another one finds them too whatever its current folder."""
    # Entries that are no folders stay as they are: import hooks of editable installs go by such names.
    try:
        return [os.path.abspath(part) if os.path.exists(part or ".") else part for part in sys.path]
    except FileNotFoundError:  # the current folder was removed meanwhile; what imports passes it over
        return list(sys.path)
