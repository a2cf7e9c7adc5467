# SPDX-License-Identifier: Apache-2.0
"""HTTP server for tests that sends arbitrary bytes, so that its responses may violate the protocol."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


@dataclass
class Server:
    """Running server: its `url` without a path, and the request lines received so far."""

    url: str
    requests: list[str] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def drip(self, connection: socket.socket, data: bytes) -> None:
        """Sends `data` repeatedly, 100 times per second, until the client disconnects."""
        while not self.stopped.wait(0.01):
            connection.sendall(data)


@contextlib.contextmanager
def serve(answer: Callable[[socket.socket, str], None]) -> Iterator[Server]:
    """
    Context manager that runs a server at 127.0.0.1.

    Args:
        answer: called with each connection and the target of its request (such as `/a.png`); it sends the response. The
            connection is closed afterwards.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(f"http://127.0.0.1:{listener.getsockname()[1]}")

        def handle(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):  # the client may disconnect at any time
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
    """HTTP/1.1 response; `length` is its Content-Length in bytes, -1 for the length of the body and `None` for no such header."""
    lines = [f"HTTP/1.1 {status}", "Connection: close", *headers]
    if length is not None:
        lines.append(f"Content-Length: {len(body) if length == -1 else length}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def redirect(location: str, status: str = "302 Found") -> bytes:
    return reply(b"", f"Location: {location}", status=status)
