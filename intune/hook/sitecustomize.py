"""Loaded by Python at its start in jobs begun with `intune run`, whose ``PYTHONPATH`` begins with this folder.

Not a module of the package: nothing imports it. What it does lives in `intune.unedited`.
"""

import importlib.util
import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))


def _next_sitecustomize() -> None:
    """Run the `sitecustomize` that this one stands in front of, if there is one."""
    paths = [path for path in sys.path if os.path.abspath(path or os.curdir) != _HERE]
    for path in paths:
        file = os.path.join(path, "sitecustomize.py")
        if os.path.isfile(file):
            spec = importlib.util.spec_from_file_location("sitecustomize", file)
            if spec is not None and spec.loader is not None:
                spec.loader.exec_module(importlib.util.module_from_spec(spec))
            return


_next_sitecustomize()
if os.environ.get("INTUNE_RUN"):
    try:
        from intune.unedited import watch_for_torch
    except ImportError as error:
        sys.stderr.write(f"intune run: nothing is tuned, since this Python has no intune ({error})\n")
    else:
        watch_for_torch(os.environ["INTUNE_RUN"])
