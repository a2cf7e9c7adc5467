# SPDX-License-Identifier: Apache-2.0
"""The web page with the demo model, served in a thread."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from llava_st_hf.app.command import Application
from llava_st_hf.app.limits import Limits


@contextmanager
def served(grounder=None, limits: Limits | None = None) -> Iterator[tuple[Application, str]]:
    """Yields the application and its URL, which ends in a slash. `grounder`: a pipeline, None for that of the demo model."""
    with socket.create_server(("127.0.0.1", 0)) as listener, Application(grounder, limits=limits) as application:
        server = uvicorn.Server(uvicorn.Config(application.app, log_level="warning", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                time.sleep(0.02)
            yield application, f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()
