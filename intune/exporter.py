"""Figures of a tuned job for Prometheus: a plain-text endpoint that is asked for, or Ray's own metrics.

Nothing listens unless told to, and then on loopback unless told otherwise. The text is version 0.0.4 of Prometheus'
exposition format.
"""

from __future__ import annotations

import contextlib
import math
import socket
import sys
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

from intune.decisions import Entry
from intune.pipelines.errors import ConfigError
from intune.pipelines.whole import whole

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One value.

    Attributes:
        name: of the metric; text: what it is.
        value: NaN where it is not known.
        stage: whose it is; empty for the whole pipeline.
        kind: ``"gauge"`` or ``"counter"``.
    """

    name: str
    text: str
    value: float
    stage: str = ""
    kind: str = "gauge"


def figures(entry: Entry, decisions: int, changes: int) -> list[Figure]:
    """What is exported of an interval, grouped by metric."""
    measured = entry.measured
    of_job = [
        ("rows_per_second", "Rows that the trainer took per second.", measured.delivered[0]),
        ("waiting_ratio", "Share of the trainer's time without data.", measured.waiting[0]),
        ("memory_resident_bytes", "Resident bytes of trainer and pipeline.", measured.memory_used[0]),
        ("memory_limit_bytes", "Bytes that they may be.", measured.memory_limit[0]),
        ("cpus_used", "Processors in use.", measured.cpus_used[0]),
    ]
    found = [Figure(name=f"intune_{name}", text=text, value=float(value)) for name, text, value in of_job]
    force = entry.decided or entry.allocation
    by_stage = [
        (
            "slots",
            "Tasks that may run at once (of a shared pool: the pool).",
            [force.of(n) for n in entry.stages],
        ),
        ("busy_slots", "Slots at work on average.", measured.busy[0]),
        ("stage_rows_per_second", "Rows that left the stage per second.", measured.rate[0]),
    ]
    found += [
        Figure(name=f"intune_{name}", text=text, value=float(values[at]), stage=stage)
        for name, text, values in by_stage
        for at, stage in enumerate(entry.stages)
    ]
    return [
        *found,
        Figure(name="intune_decisions_total", text="Decisions made.", value=decisions, kind="counter"),
        Figure(
            name="intune_changes_total", text="Decisions that changed slots.", value=changes, kind="counter"
        ),
    ]


def exposition(found: list[Figure]) -> str:
    """Figures in Prometheus' text format; those not known are left out."""
    lines: list[str] = []
    said: set[str] = set()
    for one in found:
        if math.isnan(one.value):
            continue
        if one.name not in said:
            said.add(one.name)
            lines += [f"# HELP {one.name} {one.text}", f"# TYPE {one.name} {one.kind}"]
        label = f'{{stage="{_escaped(one.stage)}"}}' if one.stage else ""
        lines.append(f"{one.name}{label} {one.value:.10g}")
    return "\n".join(lines) + "\n" if lines else ""


class _Counting:
    """Counts entries; told of them by the control loop."""

    def __init__(self) -> None:
        self._decisions = self._changes = 0

    def __call__(self, entry: Entry) -> None:
        self._decisions += 1
        self._changes += entry.decided is not None
        self.show(figures(entry, self._decisions, self._changes))

    def show(self, found: list[Figure]) -> None:
        raise NotImplementedError


class Endpoint(_Counting):
    """Answers ``GET /metrics`` with the last interval's figures. To be told of entries, as `tune(watch=[…])`.

    Args:
        port: to listen at; 0 for any that is free (see `port`).
        host: address to listen at. Anybody who reaches it can read the figures; nobody can change anything.

    Raises:
        ConfigError: the port cannot be had.
    """

    def __init__(self, port: int, *, host: str = LOOPBACK) -> None:
        super().__init__()
        number = whole(port)
        if number is None or not 0 <= number < 65536:
            raise ConfigError(f"`prometheus`: port {port!r} must be a whole number from 0 to 65535")
        self._text = b""
        try:
            self._server = _Server((host, number), _handler(self))
        except OSError as error:
            raise ConfigError(
                f"`prometheus`: cannot listen at {host}:{port} ({error}); give an address of this machine and a port "
                "that is free there (below 1024 root's alone), one for each loader, or close the loader that has it, "
                "as one of a cell that is run again"
            ) from error
        self.host, self.port = host, int(self._server.server_address[1])
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.2},
            name="intune-metrics",
            daemon=True,
        )
        self._thread.start()

    @property
    def text(self) -> bytes:
        """What is answered now."""
        return self._text

    def show(self, found: list[Figure]) -> None:
        """From now on these."""
        self._text = exposition(found).encode()

    def close(self) -> None:
        """Stop listening; twice does no harm."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join(timeout=5.0)
        with contextlib.suppress(OSError):  # closed already
            # Processes forked meanwhile have the socket too, and would keep the port.
            self._server.socket.shutdown(socket.SHUT_RDWR)
        self._server.server_close()


class RayMetrics(_Counting):
    """The same as gauges of `ray.util.metrics`, which Ray's own endpoints export.

    Raises:
        ConfigError: no Ray is connected.
    """

    def __init__(self) -> None:
        super().__init__()
        import ray

        if not ray.is_initialized():
            raise ConfigError(
                "`prometheus`='ray' needs a connected Ray; call ray.init() before, or give a port"
            )
        self._gauges: dict[str, Any] = {}

    def show(self, found: list[Figure]) -> None:
        """Set the gauges."""
        from ray.util.metrics import Gauge

        for one in found:
            if one.name not in self._gauges:
                keys = ("stage",) if one.stage else ()
                self._gauges[one.name] = Gauge(one.name, description=one.text, tag_keys=keys)
            if not math.isnan(one.value):
                self._gauges[one.name].set(one.value, tags={"stage": one.stage} if one.stage else None)

    def close(self) -> None:
        """Nothing to do: Ray forgets the gauges with the job."""


def exporter(where: int | str) -> Endpoint | RayMetrics:
    """What `tune(prometheus=where)` exports to: a port, ``"host:port"``, or ``"ray"``.

    Raises:
        ConfigError: none of these, or it cannot be had.
    """
    if where == "ray":
        return RayMetrics()
    if isinstance(where, str):
        host, _, port = where.rpartition(":")
        if not port.isdecimal():
            raise ConfigError(f"`prometheus`={where!r} must be a port, 'host:port' or 'ray'")
        return Endpoint(int(port), host=host.strip("[]") or LOOPBACK)
    return Endpoint(where)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Without asking for this machine's name, as HTTP servers do: where no name server answers, that takes long."""
        TCPServer.server_bind(self)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing where who asked has left, as probes of ports do: the terminal belongs to the job."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _handler(endpoint: Endpoint) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10.0

        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(404)
                return
            body = endpoint.text
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing: the terminal belongs to the job."""

    return Handler


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
