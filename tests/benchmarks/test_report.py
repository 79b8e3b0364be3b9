"""What benchmarks write arrives, and what they are asked is checked first."""

from pathlib import Path

import pytest

from benchmarks import report


def test_the_folder_of_a_result_need_not_be_there(tmp_path: Path) -> None:
    file = tmp_path / "results" / "today" / "wrapped.json"
    report.write(file, "{}")
    report.write(file, "[]")
    assert file.read_text() == "[]\n"


def test_a_choice_that_nobody_has_is_refused() -> None:
    report.check_chosen([], ["ANS"])
    report.check_chosen(["ANS"], iter(["ANS", "DNS"]))
    with pytest.raises(SystemExit, match="`--only` knows ANS; DNS, but not 'nonsense'"):
        report.check_chosen(["ANS", "nonsense"], iter(["ANS", "DNS"]))
