"""Messages between this process and a worker process, with file descriptors beside them."""

from __future__ import annotations

import pickle
import select
import socket
import struct
from collections.abc import Sequence
from typing import Any

_LENGTH = struct.Struct("<Q")
_DESCRIPTOR = struct.Struct("i")
_MOST_DESCRIPTORS = 8
_LARGE = 1 << 16  # bytes from which on a copy costs more than that the other end wakes twice
_LONGEST_POLL_MS = 2**31 - 1  # some 25 days; more is refused


def receive_some(
    end: socket.socket, size: int, most: int = _MOST_DESCRIPTORS, flags: int = 0
) -> tuple[bytes, list[int]]:
    """What came, `size` bytes at most, and the descriptors with it, which programs started here do not inherit.

    `socket.recv_fds` does not pass its flags on, the one for that included.
    """
    flags |= getattr(socket, "MSG_CMSG_CLOEXEC", 0)
    data, ancillary, _, _ = end.recvmsg(size, socket.CMSG_LEN(most * _DESCRIPTOR.size), flags)
    descriptors = [
        descriptor
        for level, kind, content in ancillary
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        for (descriptor,) in _DESCRIPTOR.iter_unpack(
            content[: len(content) // _DESCRIPTOR.size * _DESCRIPTOR.size]
        )
    ]
    return data, descriptors


class Channel:
    """One end of a connected pair of Unix sockets. Whoever waits at it sees `EOFError` when the other end goes."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        end.settimeout(None)  # whatever the program has set for new sockets

    def send(self, message: Any, descriptors: Sequence[int] = ()) -> None:
        """Send any picklable object.

        Raises:
            EOFError: the other end is gone.
        """
        payload = pickle.dumps(message, protocol=5)
        head = _LENGTH.pack(len(payload))
        try:
            if descriptors:
                socket.send_fds(self._socket, [head], list(descriptors))
            elif len(payload) > _LARGE:
                self._socket.sendall(head)
            else:
                payload = head + payload
            self._socket.sendall(payload)
        except (BrokenPipeError, ConnectionError) as error:
            raise EOFError("the other end is gone") from error

    def receive(self) -> tuple[Any, list[int]]:
        """The next message and the descriptors that came with it, waiting for it.

        Raises:
            EOFError: the other end is gone.
        """
        try:
            head, descriptors = receive_some(self._socket, _LENGTH.size)
            if len(head) < _LENGTH.size:
                head += self._exactly(_LENGTH.size - len(head)) if head else b""
            if not head:
                raise EOFError("the other end is gone")
            return pickle.loads(self._exactly(_LENGTH.unpack(head)[0])), descriptors
        except ConnectionError as error:
            raise EOFError("the other end is gone") from error

    def waits(self, timeout: float | None) -> bool:
        """Whether a message, or the other end's going, can be told of within `timeout` seconds; None: wait for it."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(None if timeout is None else min(timeout * 1000.0, _LONGEST_POLL_MS)))

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _exactly(self, size: int) -> bytearray:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            count = self._socket.recv_into(view)
            if not count:
                raise EOFError("the other end is gone")
            view = view[count:]
        return data
