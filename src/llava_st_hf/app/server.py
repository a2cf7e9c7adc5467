# SPDX-License-Identifier: Apache-2.0
"""HTTP server of the page: the files of visitors, and Gradio without its own file routes."""

import re
import secrets
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, PlainTextResponse, Response
from starlette.background import BackgroundTask

from .downloads import write_download
from .limits import Limits
from .media import checked_suffix, receive
from .visits import Medium, TooManyUploadsError, Visit, Visits


STATIC = Path(__file__).parent / "static"
_STATIC_TYPES = {".js": "text/javascript", ".css": "text/css"}
# Routes of Gradio that take or return files, or tell about other visitors. The page needs none of them.
_CLOSED = re.compile(r"/(?:gradio_api/)?(?:upload|upload_progress|file=|file/|proxy=|stream/|deep_link|monitoring|runs|component_server)")
_UPLOAD = re.compile(r"/llava-st/visits/[^/]+/upload")
_MOST_BYTES = 2**20  # of the body of any request but an upload
# The page loads nothing from other hosts: a browser refuses what a library may add. Gradio evaluates its components' code.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'self'; "
    "form-action 'self'"
)
_HEADERS = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


def add_headers(app: Callable) -> Callable:
    """ASGI middleware: security headers for all responses, and no access to `_CLOSED` routes."""

    async def with_headers(scope, receive, send):
        if scope["type"] != "http":
            return await app(scope, receive, send)
        if _CLOSED.match(scope["path"]):
            return await PlainTextResponse("Not found.", 404, headers=_HEADERS)(scope, receive, send)
        if not _UPLOAD.fullmatch(scope["path"]) and _is_large(dict(scope["headers"])):
            return await PlainTextResponse("The request is too large.", 413, headers=_HEADERS)(scope, receive, send)

        async def send_with_headers(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *((name.lower().encode(), text.encode()) for name, text in _HEADERS.items())]
            await send(message)

        await app(scope, receive, send_with_headers)

    return with_headers


def _is_large(headers: dict[bytes, bytes]) -> bool:
    """Whether the body of a request has more than `_MOST_BYTES`, or does not state its size."""
    size = headers.get(b"content-length", b"0")
    return b"transfer-encoding" in headers or not size.isdigit() or int(size) > _MOST_BYTES


def make_server(visits: Visits, examples: dict[str, tuple[Medium, str]]) -> FastAPI:
    """
    The routes below `llava-st/`: files of the page, uploads, media and downloads of visits.

    Args:
        visits: all visits.
        examples: name → (medium, title); see `media.write_examples`.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    posters = {f"{name}.poster.jpg": medium.path.with_suffix(".poster.jpg") for name, (medium, _) in examples.items()}
    checking = threading.Semaphore(2)  # uploads that are decoded at one time
    drawing = threading.Semaphore(1)  # annotated videos that are written at one time

    @app.get("/llava-st/static/{name}")
    def static(name: str) -> Response:
        path = STATIC / name
        if path.parent != STATIC or path.suffix not in _STATIC_TYPES or not path.is_file():
            return _missing()
        return FileResponse(path, media_type=_STATIC_TYPES[path.suffix], headers={"Cache-Control": "no-cache"})

    @app.get("/llava-st/examples/{name}")
    def poster(name: str) -> Response:
        return FileResponse(posters[name]) if name in posters else _missing()

    @app.post("/llava-st/visits/{token}/upload")
    async def upload(token: str, name: str, request: Request) -> Response:
        try:
            visit = visits.find(token)
            suffix = checked_suffix(name)
            visits.check_room(visit)
        except ValueError as error:
            return PlainTextResponse(str(error), 400)
        except TooManyUploadsError as error:
            return PlainTextResponse(str(error), 503)
        with visit.use():
            path = visit.folder / f"{secrets.token_hex(16)}{suffix}"
            try:
                await _store(request, path, visits.limits)
                await run_in_threadpool(_receive, visit, path, name, visits.limits, checking)
            except (ValueError, OSError) as error:
                for written in visit.folder.glob(f"{path.stem}*"):
                    written.unlink()
                return PlainTextResponse(str(error), 413 if isinstance(error, _TooLargeError) else 400)
        return PlainTextResponse("")

    @app.get("/llava-st/visits/{token}/media/{medium}")
    def media(token: str, medium: str) -> Response:
        found = _medium(visits, token, medium)
        if found is None:
            return _missing()
        return FileResponse(found[1].shown, headers={"Cache-Control": "private, no-store"})

    @app.get("/llava-st/visits/{token}/media/{medium}/answers/{number}/{download}")
    def answer(token: str, medium: str, number: int, download: str) -> Response:
        found = _medium(visits, token, medium)
        if found is None or not 1 <= number <= len(found[0].answers):
            return _missing()
        visit, shown = found
        try:
            with visit.use(), drawing:
                path, name = write_download(visit.answers[number - 1], shown, download, visit.folder)
        except (ValueError, ImportError) as error:
            return PlainTextResponse(str(error).replace(str(shown.path), shown.name), 422)
        headers = {"Cache-Control": "private, no-store", "Content-Disposition": f"attachment; filename*=UTF-8''{quote(name)}"}
        return FileResponse(path, headers=headers, background=BackgroundTask(_remove, path))

    return app


def _remove(path: Path) -> None:
    """Deletes a download, and the folder of its own that it is in unless it is an archive."""
    path.unlink(missing_ok=True)
    if path.parent.name.startswith("download-"):
        shutil.rmtree(path.parent, ignore_errors=True)


class _TooLargeError(ValueError):
    """An upload exceeds the limit of its size."""


async def _store(request: Request, path: Path, limits: Limits) -> None:
    """Writes the body of a request to a file, and stops at the limit."""
    size = 0
    with open(path, "xb") as file:
        async for block in request.stream():
            size += len(block)
            if size > limits.upload_bytes:
                raise _TooLargeError(f"The file is larger than the {limits.upload_bytes / 2**20:.1f} MB that are allowed.")
            await run_in_threadpool(file.write, block)


def _receive(visit: Visit, path: Path, name: str, limits: Limits, checking: threading.Semaphore) -> None:
    with checking:
        medium = receive(path, name, limits, visit.folder)
    before, visit.uploaded = visit.uploaded, medium
    if before is not None:
        for old in {before.path, before.shown}:
            old.unlink(missing_ok=True)


def _medium(visits: Visits, token: str, medium: str) -> tuple[Visit, Medium] | None:
    """The visit with a token and its medium, if that has this id."""
    try:
        visit = visits.find(token)
    except ValueError:
        return None
    found = visit.medium
    return (visit, found) if found is not None and secrets.compare_digest(found.id.encode(), medium.encode()) else None


def _missing() -> Response:
    return PlainTextResponse("Not found.", 404)


__all__ = ["add_headers", "make_server"]
