# SPDX-License-Identifier: Apache-2.0
"""HTTP server with the interface of a Label Studio ML back-end (https://labelstud.io/guide/ml_create).

| request | answer |
|---|---|
| `GET /`, `GET /health` | status |
| `GET /versions` | names of the model |
| `POST /setup` | checks the labeling configuration of a project |
| `POST /predict` | predictions for tasks: tracks, spans or rectangles |
| `POST /webhook` | accepted and ignored: annotations do not train the model |

A request that is not valid is answered with status 422 and a sentence, a file that cannot be read with 404.
"""

import threading
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.middleware.trustedhost import TrustedHostMiddleware
from transformers.utils import logging

from ...exports.label_studio import prediction, track_regions
from ...exports.tracks import read_tracks
from ...model.downloads_llava_st import DownloadLimits
from ...model.results_llava_st import Grounding
from .config import LabelingConfig, questions, read_config
from .media import TaskMedia


logger = logging.get_logger(__name__)
#: Tasks in one request, and bytes of its body.
MAX_TASKS, MAX_BODY = 100, 10 * 2**20
#: Host names of requests to a server on loopback, those of containers on the same machine included. Others may be DNS rebinding.
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]", "host.docker.internal", "host.containers.internal")


class Predict(BaseModel):
    """Body of `/predict`. Label Studio sends more keys, which are not used."""

    tasks: list[dict[str, Any]]
    label_config: str


class Annotator:
    """
    Answers for Label Studio tasks.

    Args:
        grounder: `pipeline("video-grounding")`.
        media: where files are read from.
        text_key: field of a task with a text, or a list of texts, that is asked instead of the labels.
        arguments: of the calls of the pipeline.
    """

    def __init__(self, grounder, media: TaskMedia, text_key: str = "text", **arguments):
        self.grounder, self.media, self.text_key = grounder, media, text_key
        self.arguments = {"scores": True, **arguments}
        self.model_version = "/".join(Path(str(grounder.model.name_or_path)).parts[-2:]) or "llava-st"  # of a Hub id with its owner
        self._lock = threading.Lock()  # the model answers one task at a time

    def predict(self, config: LabelingConfig, task: dict) -> dict:
        """
        The prediction for a task.

        Raises:
            ValueError, OSError: naming what is wrong with the task or its file.
        """
        data = task.get("data")
        if not isinstance(data, dict):
            raise ValueError(f"The task must have data, got {data!r:.100}.")
        asked = questions(config, data, self.text_key)
        fps = config.fps(data)
        notes: list[str] = []
        with self.media.open(data.get(config.data_key)) as path, self._lock:
            texts, tasks = [text for text, _ in asked], [label.task for _, label in asked]
            answers = self.grounder({config.kind: path}, text=texts, task=tasks, **self.arguments)
        groundings = [Grounding.from_dict(answer) for answer in answers]
        tracks = read_tracks(groundings)
        remaining = iter(tracks)
        regions = []
        for grounding, (_, label) in zip(groundings, asked, strict=True):
            for _ in grounding.events:
                regions += track_regions(next(remaining), label.controls, label.value, fps, notes)
        for note in (*notes, *(note for grounding in groundings for note in grounding.notes)):
            logger.warning("Task %s: %s", task.get("id"), note)
        return prediction(regions, tracks, self.model_version)


def create_app(annotator: Annotator, hosts: tuple[str, ...] = LOOPBACK_HOSTS) -> FastAPI:
    """
    The web application.

    Args:
        annotator: answers the tasks.
        hosts: host names that requests may have; `("*",)` for all.
    """
    app = FastAPI(title="LLaVA-ST for Label Studio", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    status = {"status": "UP", "model_class": "LlavaST", "model_version": annotator.model_version}

    @app.middleware("http")
    async def limit_body(request: Request, call_next):
        length = request.headers.get("content-length")
        if request.method == "POST" and (length is None or not length.isdigit() or int(length) > MAX_BODY):
            return JSONResponse({"error": f"The body must have a Content-Length of at most {MAX_BODY} bytes."}, 413)
        return await call_next(request)

    @app.exception_handler(ValueError)
    async def invalid(_: Request, error: ValueError):
        return JSONResponse({"error": str(error)}, 422)

    @app.exception_handler(OSError)
    async def unreadable(_: Request, error: OSError):
        return JSONResponse({"error": str(error)}, 404)

    @app.get("/")
    @app.get("/health")
    def health() -> dict:
        return status

    @app.get("/versions")
    def versions() -> dict:
        return {"versions": [annotator.model_version]}

    @app.post("/setup")
    def setup(body: dict[str, Any]) -> dict:
        # A project without a labeling configuration is set up again when it gets one.
        if body.get("schema"):
            read_config(body["schema"])
        return {"model_version": annotator.model_version}

    @app.post("/predict")
    def predict(body: Predict) -> dict:
        if len(body.tasks) > MAX_TASKS:
            raise ValueError(f"The request has {len(body.tasks)} tasks; at most {MAX_TASKS} are answered at once.")
        config = read_config(body.label_config)
        results = []
        for number, task in enumerate(body.tasks):
            try:
                results.append(annotator.predict(config, task))
            except (ValueError, OSError) as error:
                raise type(error)(f"Task {task.get('id', number)}: {error}") from error
        return {"results": results, "model_version": annotator.model_version}

    @app.post("/webhook", status_code=201)
    def webhook(body: dict[str, Any]) -> dict:
        return {"result": {}, "status": "ok"}

    return app


def serve(
    model: str | None = None,
    host: str = "127.0.0.1",
    port: int = 9090,
    media: str | Path | None = None,
    label_studio_url: str | None = None,
    token: str | None = None,
    text_key: str = "text",
    device: str | int | None = None,
    dtype: str = "auto",
) -> None:
    """
    Runs the server until it is interrupted.

    Args:
        model: checkpoint; None for the demo model.
        host, port: address to listen on. The interface has no authentication: use another address than loopback only in a network that
            you trust.
        media: folder of local files.
        label_studio_url: of Label Studio, for files that were uploaded to it.
        token: Label Studio's access token.
        text_key: field of tasks with a text, or a list of texts, that is asked instead of the labels.
        device, dtype: of the model.

    Raises:
        ValueError: naming an argument that is not valid, before the model is loaded.
    """
    import uvicorn
    from transformers import pipeline

    sources = TaskMedia(None if media is None else Path(media), label_studio_url, token, DownloadLimits())
    grounder = pipeline("video-grounding", model=model, device=device, dtype=dtype)
    is_loopback = host in ("localhost", "127.0.0.1", "::1")
    app = create_app(Annotator(grounder, sources, text_key), LOOPBACK_HOSTS if is_loopback else ("*",))
    uvicorn.run(app, host=host, port=port, log_level="info")
