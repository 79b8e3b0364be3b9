from __future__ import annotations

from typing import Annotated

import pytest
import tyro

from intune.cli.defaults import otherwise


def test_help_says_what_happens_where_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    def command(
        *,
        rows: Annotated[int | None, otherwise("a tenth", metavar="N")] = None,
        agent: Annotated[str | None, otherwise("nobody")] = None,
    ) -> None:
        raise AssertionError("only its help is asked for")

    with pytest.raises(SystemExit):
        tyro.cli(command, args=["--help"])
    shown = capsys.readouterr().out
    assert "(default: a tenth)" in shown
    assert "(default: nobody)" in shown
    assert "--rows N" in shown
    assert "None)" not in shown
