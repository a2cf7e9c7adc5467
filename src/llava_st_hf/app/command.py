# SPDX-License-Identifier: Apache-2.0
"""`llava-st app`: loads the model and serves the page."""

import ipaddress
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import pipeline
from transformers.utils import logging

from ..shapes.demo_model import DEMO_MODEL_NOTICE, DEMO_MODEL_PATH
from .limits import Limits


logger = logging.get_logger(__name__)
TITLE = "LLaVA-ST: when and where in videos"


def run(
    model: str | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    device: str | None = None,
    dtype: str | None = None,
    limits: Limits | None = None,
) -> None:
    """
    Serves the page until it is interrupted.

    Args:
        model: checkpoint folder or Hub id; None for the demo model.
        host: address to listen on. Any other than that of this computer makes the page available to others, with a warning.
        port: TCP port, 0 for any free one.
        device, dtype: of the model, as of `transformers.pipeline`; "auto" distributes the model over all GPUs.
        limits: what visitors may upload and ask; None for the default limits.

    Raises:
        ImportError: if Gradio is not installed.
        ValueError: for a port that is not valid.
        OSError: if the address cannot be used, or if the model cannot be read.
    """
    _import_gradio()
    if not isinstance(port, int) or not 0 <= port < 65536:
        raise ValueError(f"port={port!r} must be an integer from 0 to 65535.")
    import uvicorn

    # Before the model is loaded, which takes up to minutes.
    listener = _listen(host, port)
    with _exit_on_sigterm(), listener, Application(model, device, dtype, limits) as application:
        address, port = listener.getsockname()[:2]
        if not ipaddress.ip_address(address).is_loopback:
            logger.warning(
                "The page is available to all who can reach port %d of this computer, without a password. "
                "Put a proxy with a login before it.",
                port,
            )
        print(f"http://{'127.0.0.1' if address == '0.0.0.0' else f'[{address}]' if ':' in address else address}:{port}", flush=True)
        server = uvicorn.Server(uvicorn.Config(application.app, log_level="warning", timeout_graceful_shutdown=3))
        server.run(sockets=[listener])


class Application:
    """
    The page with its model, as an ASGI application.

    Args:
        model: checkpoint folder or Hub id, or a pipeline; None for the demo model.
        device, dtype, limits: as of `run`.

    Attributes:
        app: the ASGI application.
        visits: all visits.
        folder: of all files of visitors. It is deleted when the `with` block ends.
    """

    def __init__(self, model=None, device: str | None = None, dtype: str | None = None, limits: Limits | None = None):
        gradio = _import_gradio()
        from .answering import Answering
        from .downloads import listed_downloads
        from .media import write_examples
        from .page import CSS, HEAD, make_page, theme
        from .server import add_headers, make_server
        from .visits import Visits

        limits = Limits() if limits is None else limits
        grounder = model if callable(model) else _load(model, device, dtype)
        is_demo = os.path.realpath(grounder.model.name_or_path) == os.path.realpath(DEMO_MODEL_PATH)
        self.folder = Path(tempfile.mkdtemp(prefix="llava-st-app-"))  # readable by this user only
        os.environ["GRADIO_TEMP_DIR"] = str(self.folder / "gradio")  # Gradio has no argument for it
        examples = write_examples(self.folder / "examples", limits)
        self.visits = Visits(limits, self.folder)
        answering = Answering(grounder, self.visits, examples, listed_downloads())
        notice = DEMO_MODEL_NOTICE if is_demo else None
        self.app: Callable = add_headers(
            gradio.mount_gradio_app(
                make_server(self.visits, examples),
                make_page(answering, TITLE, notice),
                path="/",
                footer_links=[],
                run_history=False,
                show_error=False,
                max_file_size=1,  # bytes: files are uploaded by our own route
                ssr_mode=False,
                enable_monitoring=False,
                pwa=False,
                mcp_server=False,
                theme=theme(),
                css=CSS,
                head=HEAD,
            )
        )

    def __enter__(self) -> "Application":
        return self

    def __exit__(self, *exception) -> None:
        self.visits.close()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Ends the process by an exception at SIGTERM, also when uvicorn raises that signal again, so that files of visitors are deleted."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _load(model: str | None, device: str | None, dtype: str | None):
    place = "device_map" if device == "auto" else "device"
    options = {name: value for name, value in ((place, device), ("dtype", dtype)) if value is not None}
    return pipeline("video-grounding", model=model or DEMO_MODEL_PATH, **options)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise OSError(f"host={host!r} is not a name or address of this computer: {error}. Use 127.0.0.1, or 0.0.0.0 for all.") from error
    try:
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise OSError(f"host={host!r}, port={port}: the address cannot be used: {error}. Choose another port or host.") from error


def _import_gradio():
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import gradio
    except ModuleNotFoundError as error:
        raise ImportError(f"The web page needs {error.name}: pip install 'llava-st-hf[app]'.") from error
    return gradio


__all__ = ["Application", "run"]
