"""Errors of the pipeline name arguments of Python as remedies; commands have options instead, or nothing like them."""

from __future__ import annotations

REMEDIES = {
    "mend the function, or skip such batches with on_error='skip'": "mend the function",
    "write it everywhere, or name in `columns=` those to read": "write it everywhere, or leave the file out",
    "read fewer columns or write smaller row groups": "write fewer columns or smaller row groups",
    "`budget` allows": "`memory` allows",
    "use .to('cpu')": "use `--device cpu`",
}
"""What the library says, and what is said instead where files, a function and memory are all that can be given."""


def of_commands(text: str) -> str:
    """An error's text with what the user of a command can do."""
    for said, instead in REMEDIES.items():
        text = text.replace(said, instead)
    return text
