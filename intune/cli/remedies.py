"""Errors of the pipeline, with remedies that a command's user has: those of the library name arguments of Python."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

REMEDIES = {
    "mend the function, or skip such batches with on_error='skip'": "mend the function",
    "write it everywhere, or name in `columns=` those to read": "write it everywhere, or leave the file out",
    "read fewer columns or write smaller row groups": "write fewer columns or smaller row groups",
    "`budget` allows": "`memory` allows",
}
"""What the library says, and what is said instead where files, a function and memory are all that can be given."""


@contextlib.contextmanager
def remedies() -> Iterator[None]:
    """Errors raised within tell what the user of a command can do."""
    from intune.pipelines.errors import ConfigError, SchemaError, StageError

    try:
        yield
    except (ConfigError, SchemaError, StageError) as error:
        text = str(error)
        for said, instead in REMEDIES.items():
            text = text.replace(said, instead)
        error.args = (text,)
        raise
