from __future__ import annotations

import math

import pytest

from intune.pipelines.shortened import shortened


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234567, "1.23M"), (5100, "5.1k"), (12, "12"), (0.5, "0.5"), (0, "0"), (-2500, "-2.5k"), (2.5e9, "2.5G"),
        (999, "999"), (999.6, "1k"), (999_600, "1M"), (999_400, "999k"), (999_999_999, "1G"), (math.nan, "–"),
        (math.inf, "–"),
    ],
)  # fmt: skip
def test_three_digits_and_a_unit(value: float, text: str) -> None:
    assert shortened(value) == text


def test_what_is_not_known_can_be_called_otherwise() -> None:
    assert shortened(math.nan, "-") == "-"
