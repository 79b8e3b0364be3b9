"""What benchmarks write arrives."""

from pathlib import Path

from benchmarks import report


def test_the_folder_of_a_result_need_not_be_there(tmp_path: Path) -> None:
    file = tmp_path / "results" / "today" / "wrapped.json"
    report.write(file, "{}")
    report.write(file, "[]")
    assert file.read_text() == "[]\n"
