# SPDX-License-Identifier: Apache-2.0
"""An HTTP server for tests that may break every rule of HTTP: what it sends is given byte by byte."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


@dataclass
class Server:
    """`url` without a path, and the request lines that came so far."""

    url: str
    requests: list[str] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def drip(self, connection: socket.socket, data: bytes) -> None:
        """Sends `data` again and again, 100 times a second, until the client goes."""
        while not self.stopped.wait(0.01):
            connection.sendall(data)


@contextlib.contextmanager
def serve(answer: Callable[[socket.socket, str], None]) -> Iterator[Server]:
    """
    A server at 127.0.0.1 for the duration of the context.

    Args:
        answer: called with each connection and the target of its request (such as `/a.png`); what it sends is what the client gets. The
            connection is closed afterwards.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(f"http://127.0.0.1:{listener.getsockname()[1]}")

        def handle(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):  # the client may go at any time
                request = b""
                while b"\r\n\r\n" not in request:
                    block = connection.recv(65536)
                    if not block:
                        return
                    request += block
                line = request.split(b"\r\n")[0].decode("latin-1")
                server.requests.append(line)
                answer(connection, line.split(" ")[1])

        def accept() -> None:
            with contextlib.suppress(OSError):  # the listener is closed at the end
                while True:
                    threading.Thread(target=handle, args=[listener.accept()[0]], daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield server
        finally:
            server.stopped.set()
            listener.shutdown(socket.SHUT_RDWR)


def reply(body: bytes, *headers: str, status: str = "200 OK", length: int | None = -1) -> bytes:
    """An answer of HTTP/1.1; `length` is its Content-Length in bytes, -1 for the right one and `None` for none."""
    lines = [f"HTTP/1.1 {status}", "Connection: close", *headers]
    if length is not None:
        lines.append(f"Content-Length: {len(body) if length == -1 else length}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def redirect(location: str, status: str = "302 Found") -> bytes:
    return reply(b"", f"Location: {location}", status=status)
