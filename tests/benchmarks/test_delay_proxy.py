"""The proxy between a raw client and a raw server: what passes, what is delayed, what is kept open."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest

from benchmarks.delay_proxy import HOST, Broken, DelayProxy, Proxy, Stream, parse_head

T = TypeVar("T")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
GET = b"GET /b/k HTTP/1.1\r\nHost: x\r\n\r\n"


class Upstream:
    """A server that answers each request with the next of `answers`, and keeps what it was sent."""

    def __init__(self, answers: list[bytes], *, body: int = 0, close: bool = False) -> None:
        self.answers = answers
        self.body = body
        self.close = close
        self.received: list[bytes] = []
        self.connections = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while self.answers:
                head = await reader.readuntil(b"\r\n\r\n")
                if b"100-continue" in head:
                    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                self.received.append(head + await reader.readexactly(self.body))
                writer.write(self.answers.pop(0))
                await writer.drain()
                if self.close:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the proxy has hung up
        finally:
            writer.close()


@asynccontextmanager
async def between(upstream: Upstream, **options: Any) -> AsyncIterator[Proxy]:
    server = await asyncio.start_server(upstream, HOST, 0)
    async with Proxy(server.sockets[0].getsockname()[1], **options).listening() as proxy:
        yield proxy
    server.close()


@asynccontextmanager
async def client(proxy: Proxy) -> AsyncIterator[Stream]:
    reader, writer = await asyncio.open_connection(HOST, proxy.port)
    try:
        yield reader, writer
    finally:
        writer.close()


def run(test: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(test, 20))


async def exchange(stream: Stream, request: bytes, answer: int) -> bytes:
    stream[1].write(request)
    return await stream[0].readexactly(answer)


def test_a_response_passes_unchanged_and_the_connection_stays() -> None:
    async def test() -> None:
        upstream = Upstream([OK, OK, OK])
        async with between(upstream) as proxy, client(proxy) as stream:
            for _ in range(3):
                assert await exchange(stream, GET, len(OK)) == OK
            assert upstream.received == [GET] * 3
            assert (upstream.connections, proxy.requests, proxy.most_at_once) == (1, 3, 1)

    run(test())


def test_a_server_that_closes_does_not_close_the_client() -> None:
    async def test() -> None:
        closing = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        upstream = Upstream([closing, closing], close=True)
        async with between(upstream) as proxy, client(proxy) as stream:
            for _ in range(2):
                assert await exchange(stream, GET, len(OK)) == OK
            assert upstream.connections == 2

    run(test())


def test_a_client_that_wants_to_close_is_closed() -> None:
    async def test() -> bytes:
        async with between(Upstream([OK])) as proxy, client(proxy) as (reader, writer):
            writer.write(GET.replace(b"Host: x", b"Connection: close"))
            return await reader.read()

    assert run(test()) == OK


@pytest.mark.parametrize(
    ("verb", "answer"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
        (b"DELETE", b"HTTP/1.1 204 No Content\r\n\r\n"),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n"),
        (
            b"GET",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n5;x=y\r\n\r\n\r\n!\r\n0\r\n\r\n",
        ),
        (
            b"GET",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nsum: 7\r\nx: y\r\n\r\n",
        ),
        (b"GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        (b"GET", b"HTTP/1.1 206 Partial\r\nContent-Length: 3000000\r\n\r\n" + bytes(3_000_000)),
    ],
)
def test_every_kind_of_body_ends_where_it_ends(verb: bytes, answer: bytes) -> None:
    """The next response on the same connection comes right after it."""

    async def test() -> None:
        async with between(Upstream([answer, OK])) as proxy, client(proxy) as stream:
            assert await exchange(stream, GET.replace(b"GET", verb), len(answer)) == answer
            assert await exchange(stream, GET, len(OK)) == OK

    run(test())


def test_a_body_without_length_ends_with_the_connection() -> None:
    async def test() -> bytes:
        answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nas long as it is"
        async with between(Upstream([answer], close=True)) as proxy, client(proxy) as (reader, writer):
            writer.write(GET)
            return await reader.read()

    assert run(test()).endswith(b"\r\n\r\nas long as it is")


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        (b"Content-Length: 11", b"hello world"),
        (b"Transfer-Encoding: chunked", b"5\r\nhello\r\n0\r\nx-amz-checksum-crc32: AA==\r\n\r\n"),
    ],
)
def test_an_upload_passes_unchanged(fields: bytes, body: bytes) -> None:
    async def test() -> None:
        upload = b"PUT /b/k HTTP/1.1\r\n" + fields + b"\r\n\r\n" + body
        upstream = Upstream([OK, OK], body=len(body))
        async with between(upstream) as proxy, client(proxy) as stream:
            for _ in range(2):
                assert await exchange(stream, upload, len(OK)) == OK
            assert upstream.received == [upload] * 2

    run(test())


def test_a_client_may_wait_for_continue_before_its_body() -> None:
    async def test() -> None:
        upstream = Upstream([OK], body=5)
        async with between(upstream) as proxy, client(proxy) as stream:
            head = b"PUT /b/k HTTP/1.1\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
            go_on = b"HTTP/1.1 100 Continue\r\n\r\n"
            assert await exchange(stream, head, len(go_on)) == go_on
            assert await exchange(stream, b"12345", len(OK)) == OK
            assert upstream.received == [head + b"12345"]

    run(test())


class Gate:
    """Stands for sleeping: records how long, and waits until it is opened."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.open = asyncio.Event()
        self.changed = asyncio.Condition()

    async def __call__(self, seconds: float) -> None:
        async with self.changed:
            self.asked.append(seconds)
            self.changed.notify_all()
        await self.open.wait()

    async def until(self, sleepers: int) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.asked) >= sleepers)


def test_requests_wait_at_the_same_time_and_each_once() -> None:
    async def test() -> None:
        gate = Gate()
        upstream = Upstream([OK] * 17)
        async with between(upstream, delay_s=0.15, sleep=gate) as proxy, client(proxy) as first:
            others = [asyncio.open_connection(HOST, proxy.port) for _ in range(15)]
            streams = [first, *await asyncio.gather(*others)]
            for _, writer in streams:
                writer.write(GET)
            await gate.until(16)
            assert upstream.received == [], "nothing passes before its delay is over"
            gate.open.set()
            assert await asyncio.gather(*(reader.readexactly(len(OK)) for reader, _ in streams)) == [OK] * 16
            assert gate.asked == [0.15] * 16
            assert (proxy.requests, proxy.most_at_once) == (16, 16)
            proxy.delay_s = 0.04
            await exchange(first, GET, len(OK))
            assert gate.asked[16:] == [0.04]
            for _, writer in streams[1:]:
                writer.close()

    run(test())


def test_bandwidth_is_shared_by_all_connections() -> None:
    async def test() -> list[float]:
        asked: list[float] = []

        async def sleep(seconds: float) -> None:
            asked.append(seconds)

        answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + bytes(1000)
        slow = between(Upstream([answer] * 4), bytes_per_s=10.0, sleep=sleep)
        async with slow as proxy, client(proxy) as one, client(proxy) as other:
            for stream in (one, other, one, other):
                assert await exchange(stream, GET, len(answer)) == answer
        return asked

    asked = run(test())
    assert asked == sorted(asked), "each waits for those before it"
    assert asked[-1] == pytest.approx(400, abs=20)


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\nContent-Length: lots\r\n\r\n",
        b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"PUT / HTTP/1.1\r\nContent-Length: 100\r\n\r\nno more than this",
        b"GET / HTTP/1.1\r\nX: " + bytes(80_000) + b"\r\n\r\n",
        b"GET / HT",
    ],
    ids=["length", "chunk", "half a body", "long head", "half a head"],
)
def test_what_is_not_http_is_hung_up_on_and_others_go_on(request_: bytes) -> None:
    async def test() -> None:
        upstream = Upstream([OK], body=100)
        async with between(upstream) as proxy, client(proxy) as broken, client(proxy) as good:
            broken[1].write(request_)
            broken[1].write_eof()
            assert await broken[0].read() == b""
            upload = b"PUT / HTTP/1.1\r\nContent-Length: 100\r\n\r\n" + bytes(100)
            assert await exchange(good, upload, len(OK)) == OK
            assert upstream.received == [upload]

    run(test())


def test_without_a_server_behind_the_client_is_hung_up_on() -> None:
    async def test() -> bytes:
        with socket.socket() as unused:
            unused.bind((HOST, 0))
            async with Proxy(unused.getsockname()[1]).listening() as proxy, client(proxy) as (reader, writer):
                writer.write(GET)
                return await reader.read()

    assert run(test()) == b""


def test_a_head_is_read() -> None:
    head = parse_head(b"HTTP/1.1 206 Partial\r\nCONTENT-LENGTH:  12 \r\nconnection: Close\r\netag: x\r\n\r\n")
    assert (head.status, head.length, head.chunked, head.closes) == (206, 12, False, True)
    assert head.kept_alive() == b"HTTP/1.1 206 Partial\r\nCONTENT-LENGTH:  12 \r\netag: x\r\n\r\n"
    assert parse_head(b"GET / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n").chunked
    with pytest.raises(Broken):
        parse_head(b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n")


def test_in_a_process_of_its_own_it_is_steered_counted_and_ended() -> None:
    async def upstream_and(use: Callable[[int], Awaitable[None]]) -> None:
        server = await asyncio.start_server(Upstream([OK] * 3), HOST, 0)
        await use(server.sockets[0].getsockname()[1])
        server.close()

    async def use(port: int) -> None:
        with DelayProxy(port) as proxy:
            reader, writer = await asyncio.open_connection(HOST, proxy.port)
            for _ in range(2):
                assert await exchange((reader, writer), GET, len(OK)) == OK
            assert proxy.counts() == {"requests": 2, "most_at_once": 1}
            assert proxy.counts() == {"requests": 0, "most_at_once": 0}
            proxy.delay(0.001)
            assert await exchange((reader, writer), GET, len(OK)) == OK
            assert proxy.cpu_s() > 0
            gone = proxy.port
        assert await reader.read() == b""
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(HOST, gone)

    run(upstream_and(use))
