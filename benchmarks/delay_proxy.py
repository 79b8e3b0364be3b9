"""An HTTP proxy that delays every request: storage that is far away, on this machine.

It adds latency, not work: requests of different connections wait at the same time, connections are kept alive
whatever the server behind wants, and bodies are passed on in large pieces that are never looked at. A limit on
the bandwidth of all connections together can be added. `DelayProxy` runs it in a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from benchmarks.child import Child, Message, serve_beside

HOST = "127.0.0.1"
PIECE = 1 << 20
"""Bytes passed on at a time, and kept of a connection whose reader is slow."""
HEAD = 64 << 10
"""The longest head of a message; S3's are below 8 KiB."""

Stream: TypeAlias = "tuple[asyncio.StreamReader, asyncio.StreamWriter]"


class Broken(Exception):
    """A connection that ended, or sent what is not HTTP/1.1."""


@dataclass(frozen=True, slots=True)
class Head:
    """First line and fields of a message, and what they say about the body and the connection."""

    raw: bytes
    first: bytes
    length: int | None
    chunked: bool
    closes: bool

    @property
    def status(self) -> int:
        """Of a response."""
        return int(self.first.split(b" ", 2)[1])

    def kept_alive(self) -> bytes:
        """The head without its ``Connection`` field: this proxy decides about its own connections."""
        lines = self.raw[:-4].split(b"\r\n")
        kept = [line for line in lines if not line.lower().startswith(b"connection:")]
        return b"\r\n".join(kept) + b"\r\n\r\n"


def parse_head(raw: bytes) -> Head:
    """Raises `Broken` for a length that is no number."""
    lines = raw[:-4].split(b"\r\n")
    fields = {}
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        fields[name.strip().lower()] = value.strip().lower()
    length = fields.get(b"content-length")
    if length is not None and not length.isdigit():
        raise Broken(f"content-length {length!r}")
    return Head(
        raw=raw,
        first=lines[0],
        length=None if length is None else int(length),
        chunked=b"chunked" in fields.get(b"transfer-encoding", b""),
        closes=fields.get(b"connection") == b"close",
    )


class Proxy:
    """The proxy itself, within a running event loop.

    Args:
        upstream_port: of the server behind, on this machine.
        sleep: waits; a test gives another one.

    Attributes:
        delay_s: seconds every request waits before it is passed on; may be changed at any time.
        bytes_per_s: of all responses together; None for no limit.
        port: where it listens.
        requests: how many came.
        most_at_once: how many were under way at once, at most.
    """

    def __init__(
        self,
        upstream_port: int,
        *,
        delay_s: float = 0.0,
        bytes_per_s: float | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.delay_s = delay_s
        self.bytes_per_s = bytes_per_s
        self._sleep = sleep
        self.port = 0
        self.requests = self.most_at_once = 0
        self._upstream_port = upstream_port
        self._under_way = 0
        self._free_at = 0.0
        self._idle: list[Stream] = []
        self._clients: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Proxy]:
        """Accept connections for as long as the context lasts; then close every one."""
        server = await asyncio.start_server(self._client, HOST, 0, limit=PIECE, backlog=256)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            clients = list(self._clients)
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
            for _, writer in self._idle:
                writer.close()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            while (head := await _read_head(reader)) is not None:
                await self._request(head, (reader, writer))
                if head.closes:
                    break
        except (Broken, OSError, asyncio.IncompleteReadError):
            pass  # either side hung up: so does this proxy, below
        except asyncio.CancelledError:
            pass  # the proxy ends; asyncio would log a cancelled handler as an error
        finally:
            self._clients.discard(task)
            writer.close()

    async def _request(self, head: Head, client: Stream) -> None:
        self.requests += 1
        self._under_way += 1
        self.most_at_once = max(self.most_at_once, self._under_way)
        try:
            if self.delay_s:
                await self._sleep(self.delay_s)
            async with AsyncExitStack() as closing:
                upstream = self._idle.pop() if self._idle else await self._connect()
                closing.callback(upstream[1].close)
                if await self._exchange(head, client, upstream):
                    closing.pop_all()
                    self._idle.append(upstream)
        finally:
            self._under_way -= 1

    async def _connect(self) -> Stream:
        return await asyncio.open_connection(HOST, self._upstream_port, limit=PIECE)

    async def _exchange(self, head: Head, client: Stream, upstream: Stream) -> bool:
        """Pass a request on and its response back; whether the connection behind may be used again.

        Both directions at once: a client may wait for ``100 Continue`` before it sends its body, and a server
        may answer before it has read it all. If one direction breaks, so does the other.
        """
        body = asyncio.create_task(self._send(head, client[0], upstream[1]))
        answer = asyncio.create_task(self._receive(head, client[1], upstream[0]))
        try:
            done, _ = await asyncio.wait({body, answer}, return_when=asyncio.FIRST_EXCEPTION)
            for direction in done:
                direction.result()  # raises what broke it: the other may never end
            return answer.result()
        finally:
            for direction in (body, answer):
                direction.cancel()
            await asyncio.gather(body, answer, return_exceptions=True)

    async def _receive(self, head: Head, writer: asyncio.StreamWriter, reader: asyncio.StreamReader) -> bool:
        """Pass the response to a request back; whether the connection behind may be used again."""
        response = await _read_head(reader)
        while response is not None and response.status < 200:
            writer.write(response.raw)
            response = await _read_head(reader)
        if response is None:
            raise Broken("the server behind hung up")
        if await self._respond(head, response, writer, reader):
            raise Broken("a body without a length ends with its connection")
        return not response.closes

    async def _send(self, head: Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head.raw)
        if head.chunked:
            await self._pass_chunks(reader, writer, limited=False)
        else:
            await self._pass(reader, writer, head.length or 0, limited=False)
        await writer.drain()

    async def _respond(
        self, request: Head, response: Head, writer: asyncio.StreamWriter, reader: asyncio.StreamReader
    ) -> bool:
        """Pass a response on; whether its body went to the end of the connection."""
        empty = request.first.startswith(b"HEAD ") or response.status in (204, 304)
        to_end = not empty and not response.chunked and response.length is None
        writer.write(response.raw if to_end else response.kept_alive())
        if response.chunked and not empty:
            await self._pass_chunks(reader, writer, limited=True)
        elif to_end:
            while piece := await reader.read(PIECE):
                await self._write(writer, piece, limited=True)
        elif not empty:
            await self._pass(reader, writer, response.length or 0, limited=True)
        await writer.drain()
        return to_end

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, length: int, *, limited: bool
    ) -> None:
        while length:
            piece = await reader.read(min(length, PIECE))
            if not piece:
                raise Broken("ended within a body")
            length -= len(piece)
            await self._write(writer, piece, limited=limited)

    async def _pass_chunks(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, limited: bool
    ) -> None:
        while True:
            line = await reader.readuntil(b"\r\n")
            writer.write(line)
            try:
                size = int(line.partition(b";")[0], 16)
            except ValueError:
                raise Broken(f"chunk of size {line!r}") from None
            if size == 0:
                break
            await self._pass(reader, writer, size + 2, limited=limited)
        while line != b"\r\n":  # trailing fields, as the checksum of an upload
            line = await reader.readuntil(b"\r\n")
            writer.write(line)

    async def _write(self, writer: asyncio.StreamWriter, piece: bytes, *, limited: bool) -> None:
        if limited and self.bytes_per_s:
            now = asyncio.get_running_loop().time()
            self._free_at = max(now, self._free_at) + len(piece) / self.bytes_per_s
            await self._sleep(self._free_at - now)
        writer.write(piece)
        await writer.drain()


async def _read_head(reader: asyncio.StreamReader) -> Head | None:
    """The next message's head; None where the connection ends before one begins."""
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise Broken("ended within a head") from None
        return None
    except asyncio.LimitOverrunError:
        raise Broken("a head without end") from None
    if len(raw) > HEAD:
        raise Broken(f"a head of {len(raw)} bytes")
    return parse_head(raw)


class DelayProxy(Child):
    """A `Proxy` in a process of its own, as long as this context lasts."""

    def __init__(self, upstream_port: int, *, delay_s: float = 0.0, bytes_per_s: float | None = None) -> None:
        settings = [str(upstream_port), "--delay-s", str(delay_s)]
        limit = ["--bytes-per-s", str(bytes_per_s)] if bytes_per_s else []
        super().__init__("benchmarks.delay_proxy", *settings, *limit)

    def delay(self, seconds: float) -> None:
        self.ask(delay_s=seconds)

    def counts(self) -> Message:
        """``requests`` and ``most_at_once`` since the last time this was asked."""
        return self.ask(reset=True)


async def _serve(upstream_port: int, delay_s: float, bytes_per_s: float | None) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    async with Proxy(upstream_port, delay_s=delay_s, bytes_per_s=bytes_per_s).listening() as proxy:

        def answer(message: Message) -> dict[str, Any]:
            counts = {"requests": proxy.requests, "most_at_once": proxy.most_at_once}
            proxy.delay_s = float(message.get("delay_s", proxy.delay_s))
            if message.get("reset"):
                proxy.requests = proxy.most_at_once = 0
            return counts

        def in_loop(message: Message) -> Message:
            done: Future[dict[str, Any]] = Future()
            loop.call_soon_threadsafe(lambda: done.set_result(answer(message)))
            return done.result()

        serve_beside({"port": proxy.port}, in_loop, lambda: loop.call_soon_threadsafe(ended.set))
        await ended.wait()


def main() -> None:
    """The child's side of `DelayProxy`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("upstream_port", type=int)
    parser.add_argument("--delay-s", type=float, default=0.0)
    parser.add_argument("--bytes-per-s", type=float)
    options = parser.parse_args()
    asyncio.run(_serve(options.upstream_port, options.delay_s, options.bytes_per_s))


if __name__ == "__main__":
    main()
