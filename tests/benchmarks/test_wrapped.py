"""The benchmark of wrapped DataLoaders runs, and says what it measured."""

from rich.console import Console

from benchmarks import wrapped
from intune.pipelines import Allocation


def test_every_contender_is_timed_and_shown(monkeypatch) -> None:
    case = wrapped.Case(dataset=wrapped.Waits, batches=4, batch_size=2, allocation=Allocation.shared(2))
    monkeypatch.setattr(wrapped, "CASES", {"waits": case})
    found = wrapped.measure(wrapped.Options(repeats=2, workers=()), Console(quiet=True))
    runs = found["waits"]
    assert set(runs) == {wrapped.OURS, wrapped.NONE}
    assert all(len(several) == 2 for several in runs.values())
    assert all(one["seconds"] >= 0.009 for one in runs[wrapped.NONE])  # two samples of 5 ms each
    assert runs[wrapped.OURS][0]["where"] == "thread"
    console = Console(record=True, width=200, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    wrapped.show(found, console)
    assert "waits (thread)" in console.export_text()
    console.file.close()
