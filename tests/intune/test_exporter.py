"""Figures for Prometheus and TensorBoard: what is exported, and that nothing listens unless asked to."""

from __future__ import annotations

import errno
import multiprocessing
import socket
import struct
import threading
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import psutil
import pytest

import intune
from intune.errors import ConfigError
from intune.exporter import LOOPBACK, Endpoint, Figure, RayMetrics, exporter, exposition, figures
from intune.pipelines import Allocation
from intune.sinks import Shown, open_sinks
from tests.intune.tuned import Clock, Scripted, an_entry, simulated


def read(endpoint: Endpoint, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://{endpoint.host}:{endpoint.port}{path}", timeout=60) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        return str(answer.read().decode())


def listening() -> set[int]:
    return {c.laddr.port for c in psutil.Process().net_connections("inet") if c.status == psutil.CONN_LISTEN}


def test_the_text_is_prometheus_format() -> None:
    found = [
        Figure(name="a", text="An a.", value=1.5),
        Figure(name="b", text="A b.", value=2, stage='x"\\\n'),
        Figure(name="b", text="A b.", value=float("inf"), stage="y"),
        Figure(name="c", text="Unknown.", value=float("nan")),
        Figure(name="d_total", text="Counted.", value=3, kind="counter"),
    ]
    assert exposition(found) == (
        "# HELP a An a.\n# TYPE a gauge\na 1.5\n"
        '# HELP b A b.\n# TYPE b gauge\nb{stage="x\\"\\\\\\n"} 2\nb{stage="y"} inf\n'
        "# HELP d_total Counted.\n# TYPE d_total counter\nd_total 3\n"
    )
    assert exposition([]) == ""


def test_figures_are_those_of_the_interval() -> None:
    entry = an_entry()
    found = {(one.name, one.stage): one.value for one in figures(entry, 7, 2)}
    assert found["intune_rows_per_second", ""] == entry.measured.delivered[0]
    assert found["intune_slots", "transform"] == 4
    assert found["intune_busy_slots", "load"] == entry.measured.busy[0, 0]
    assert found["intune_decisions_total", ""] == 7
    pool = replace(entry, decided=Allocation.shared(5))
    assert {one.value for one in figures(pool, 1, 1) if one.name == "intune_slots"} == {5.0}


def test_an_endpoint_answers_on_loopback_until_it_is_closed() -> None:
    endpoint = Endpoint(0)
    try:
        assert endpoint.host == LOOPBACK == "127.0.0.1"
        assert read(endpoint) == ""
        endpoint(an_entry())
        endpoint(an_entry(decided=None))
        text = read(endpoint, "/metrics?x=1")
        assert 'intune_slots{stage="load"} 1\n' in text
        assert "intune_decisions_total 2\n" in text
        assert "intune_changes_total 1\n" in text
        with pytest.raises(urllib.error.HTTPError, match="404") as refused:
            read(endpoint, "/etc/passwd")
        refused.value.close()
        with pytest.raises(ConfigError, match=r"cannot listen at .*, or close the loader that has it"):
            Endpoint(endpoint.port)
        assert endpoint.port in listening()
    finally:
        endpoint.close()
        endpoint.close()
    assert endpoint.port not in listening()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_a_process_forked_meanwhile_does_not_keep_the_port() -> None:
    endpoint = Endpoint(0)
    context = multiprocessing.get_context("fork")
    over = context.Event()
    child = context.Process(target=over.wait)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *a, **k: None)  # of forking with threads: it is the point
            child.start()
        endpoint.close()
        Endpoint(endpoint.port).close()
        assert child.is_alive()
    finally:
        endpoint.close()
        over.set()
        child.join(60)


def test_who_leaves_without_an_answer_is_no_line_on_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    endpoint = Endpoint(0)
    before = set(threading.enumerate())
    with socket.create_connection((LOOPBACK, endpoint.port), timeout=60) as probe:
        assert read(endpoint) == ""  # the one before it is being served by now
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # it ends with a reset
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=60)
    endpoint.close()
    assert capfd.readouterr().err == ""


def test_nothing_listens_unless_asked_to() -> None:
    before = listening()
    with intune.tune(simulated(Clock()), agent=Scripted(), knowledge=False):
        assert listening() == before
    with intune.tune(simulated(Clock()), agent=Scripted(), knowledge=False, prometheus=0):
        (port,) = listening() - before
        with socket.create_connection((LOOPBACK, port), timeout=60):
            pass
    assert listening() == before


@pytest.mark.parametrize("wrong", [-1, 70000, True, "here", "host:", "host:x"])
def test_wrong_places_are_told(wrong: int | str) -> None:
    with pytest.raises(ConfigError, match="`prometheus`"):
        exporter(wrong)


@pytest.mark.parametrize("where", ["localhost:0", ":0", "0"])
def test_a_host_can_be_given_and_a_port_as_text(where: str) -> None:
    endpoint = exporter(where)
    assert isinstance(endpoint, Endpoint)
    assert endpoint._server.server_address[0] == LOOPBACK
    endpoint.close()


def test_a_machine_without_name_servers_is_not_held_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Mock()
    monkeypatch.setattr(socket, "getfqdn", asked)
    exporter("0.0.0.0:0").close()
    asked.assert_not_called()


def test_a_host_can_be_of_ipv6() -> None:
    try:
        endpoint = exporter("[::1]:0")
    except ConfigError as error:
        if getattr(error.__cause__, "errno", None) in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            pytest.skip("no IPv6 here")
        raise
    assert endpoint.port in listening()
    endpoint.close()


def test_ray_metrics_need_ray_and_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    import ray.util.metrics

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(ConfigError, match=r"call ray.init"):
        exporter("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    values: dict[tuple[str, str], float] = {}

    class Gauge:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            self.name, self.keys = name, tag_keys

        def set(self, value: float, tags: dict[str, str] | None) -> None:
            assert tuple(tags or ()) == self.keys
            values[self.name, (tags or {}).get("stage", "")] = value

    monkeypatch.setattr(ray.util.metrics, "Gauge", Gauge)
    metrics = exporter("ray")
    assert isinstance(metrics, RayMetrics)
    entry = an_entry()
    metrics(replace(entry, measured=replace(entry.measured, waiting=np.array([np.nan]))))
    metrics.close()
    assert values["intune_slots", "load"] == 3.0
    assert ("intune_waiting_ratio", "") not in values


def test_tensorboard_gets_an_interval_a_step(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sinks = open_sinks(Shown(tensorboard=tmp_path), {})
    entry = an_entry()
    for _ in range(3):
        for tell in sinks.listeners:
            tell(entry)
    sinks.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    slots = events.Scalars("intune_slots/transform")
    assert [event.step for event in slots] == [0, 1, 2]
    assert {event.value for event in slots} == {4.0}
    rate = events.Scalars("intune/rows_per_s")[0].value
    assert rate == pytest.approx(float(entry.measured.delivered[0]), rel=1e-5)


def test_what_was_opened_is_closed_if_the_rest_cannot_be(tmp_path: Path) -> None:
    before = listening()
    taken = Endpoint(0)
    try:
        with pytest.raises(ConfigError, match="cannot listen"):
            open_sinks(Shown(prometheus=taken.port, log=tmp_path), {})
    finally:
        taken.close()
    assert listening() == before
    assert list(tmp_path.iterdir()) == []
