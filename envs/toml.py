"""Writing the plain tables of a scenario as TOML (the standard library only reads it)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def dumps(tables: Mapping[str, Any]) -> str:
    """TOML text of nested tables of strings, booleans, numbers and lists.

    Tables of numbers inside a list's tables are written in line (distributions), others under a heading.
    """
    lines: list[str] = []
    _table(lines, tables, prefix="")
    return "\n".join(lines).strip() + "\n"


def _table(lines: list[str], table: Mapping[str, Any], *, prefix: str) -> None:
    later: list[tuple[str, Any]] = []
    for key, value in table.items():
        if _needs_heading(value, prefix):
            later.append((key, value))
        else:
            lines.append(f"{_key(key)} = {_value(value)}")
    for key, value in later:
        name = f"{prefix}{_key(key)}"
        if isinstance(value, Mapping):
            lines.extend(["", f"[{name}]"])
            _table(lines, value, prefix=f"{name}.")
            continue
        for entry in value:
            lines.extend(["", f"[[{name}]]"])
            _table(lines, entry, prefix=f"{name}.")


def _needs_heading(value: Any, prefix: str) -> bool:
    if isinstance(value, list):
        return bool(value) and isinstance(value[0], Mapping)
    if not isinstance(value, Mapping):
        return False
    return not prefix or (any(isinstance(inner, Mapping) for inner in value.values()) and "of" not in value)


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _text(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)} = {_value(one)}" for key, one in value.items()) + "}"
    return "[" + ", ".join(_value(one) for one in value) + "]"


def _text(text: str) -> str:
    # JSON's escapes are TOML's, but TOML wants that of "delete" as well.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
