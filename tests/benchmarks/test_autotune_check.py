"""What is asked of the comparison with TensorFlow is checked before TensorFlow is started."""

import pytest

from benchmarks import autotune_check


def test_a_choice_of_no_case_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        autotune_check.main(["--only", "nonsense"])
    assert "--only 'nonsense' chooses none of default; max parallelism" in capsys.readouterr().err
