"""Which setting of a rival is run again and which is chosen."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import harness, sweep
from benchmarks.families import Family

FAMILY = Family(name="rival", module="none", python="main", configs=tuple({"workers": n} for n in range(5)))


def test_the_fastest_few_are_run_again_and_the_best_median_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    # Setting 4 shines in its first run only; setting 3 is the best of those run three times.
    rates = {0: [10.0], 1: [20.0], 2: [40.0, 41.0, 39.0], 3: [45.0, 44.0, 46.0], 4: [90.0, 30.0, 30.0]}
    seen: dict[int, int] = dict.fromkeys(rates, 0)

    def run(contender: harness.Contender, data: Path) -> dict[str, Any]:
        setting = contender.config["workers"]
        seen[setting] += 1
        return {"rows": rates[setting][seen[setting] - 1], "seconds": 1.0}

    monkeypatch.setattr(harness, "run", run)
    rows = sweep.sweep(FAMILY, Path(), progress=lambda _: None)
    assert seen == {0: 1, 1: 1, 2: 3, 3: 3, 4: 3}
    assert [row["config"]["workers"] for row in rows] == [3, 2, 4, 1, 0]
    assert rows[0]["rate"] == 45.0
    assert sweep.best(rows) == {"workers": 3}
    assert sweep.best(rows, lambda setting: setting["workers"] in (0, 1)) == {"workers": 1}
    assert sweep.best(rows, lambda setting: False) is None


def test_a_setting_that_fails_is_kept_with_its_error_but_never_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(contender: harness.Contender, data: Path) -> dict[str, Any]:
        if contender.config["workers"] == 4:
            raise harness.ContenderFailed("out of memory")
        return {"rows": 1.0 + contender.config["workers"], "seconds": 1.0}

    monkeypatch.setattr(harness, "run", run)
    rows = sweep.sweep(FAMILY, Path(), progress=lambda _: None)
    assert rows[-1]["config"] == {"workers": 4}
    assert rows[-1]["error"] == "out of memory"
    assert sweep.best(rows) == {"workers": 3}
