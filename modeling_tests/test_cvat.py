# SPDX-License-Identifier: Apache-2.0
"""The CVAT agent, over HTTP with CVAT's own client, against a server that answers in the format of CVAT 2.80's REST API."""

import contextlib
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import av
import PIL.Image
import pytest
from transformers import pipeline

from llava_st_hf import DEMO_MODEL_PATH
from llava_st_hf.integrations.cvat.command import cvat
from llava_st_hf.shapes.files import write_video
from llava_st_hf.shapes.scenes import make_scene, scene_seed


pytest.importorskip("cvat_sdk", reason="cvat-sdk needs Python 3.11")
from cvat_sdk import make_client

from llava_st_hf.integrations.cvat.agent import annotate, annotate_task, run


TEXT = "the small blue circle moves right"
TOKEN = "a-personal-access-token"
DATE = "2026-11-27T03:00:00.000000Z"


def label(id: int, name: str, type: str = "any", question: str | None = None) -> dict:
    attribute = {"id": 90 + id, "name": "question", "mutable": False, "input_type": "text", "default_value": question or "", "values": []}
    return {
        **{"id": id, "name": name, "color": "#fa3253", "attributes": [attribute] if question is not None else [], "type": type},
        **{"sublabels": [], "parent_id": None, "has_parent": False, "project_id": None, "task_id": 7},
    }


class Cvat:
    """Content of the server: frames as PNG, labels, annotations. Task 7 is a video, task 8 has images, task 9 does not exist."""

    def __init__(self, frames: list[bytes]):
        self.frames = frames
        self.labels = [label(1, "circle", question=TEXT), label(2, "region", "polygon")]
        self.annotations: dict = {"version": 0, "tags": [], "shapes": [], "tracks": []}
        self.deleted: list[int] = []
        self.requests: list[str] = []
        self.uploaded: list[dict] = []

    def task(self, id: int) -> dict:
        user = {"url": "http://localhost/api/users/1", "id": 1, "username": "user", "first_name": "", "last_name": ""}
        jobs = {"count": 1, "completed": 0, "validation": 0, "url": f"http://localhost/api/jobs?task_id={id}"}
        return {
            **{"url": f"http://localhost/api/tasks/{id}", "id": id, "name": "shapes", "project_id": 3, "owner": user, "assignee": None},
            **{"bug_tracker": "", "created_date": DATE, "updated_date": DATE, "overlap": 0, "segment_size": 66, "status": "annotation"},
            **{"data_chunk_size": 72, "data_compressed_chunk_type": "imageset", "data_original_chunk_type": "video", "guide_id": None},
            **{"size": len(self.frames), "image_quality": 70, "data": id, "dimension": "2d", "subset": "", "organization": None},
            **{"mode": "interpolation" if id == 7 else "annotation", "target_storage": None, "source_storage": None, "jobs": jobs},
            **{"labels": {"url": f"http://localhost/api/labels?task_id={id}"}, "assignee_updated_date": None, "validation_mode": None},
        }

    def meta(self) -> dict:
        frame = {"width": 100, "height": 110, "name": "sample.mp4", "related_files": 0, "has_related_context": False}
        return {
            **{"chunk_size": 72, "size": len(self.frames), "image_quality": 70, "start_frame": 0, "stop_frame": len(self.frames) - 1},
            **{"frame_filter": "", "frames": [frame], "deleted_frames": self.deleted, "included_frames": None, "storage": "local"},
            **{"chunks_updated_date": DATE, "cloud_storage_id": None},
        }

    def get(self, path: str, query: dict) -> tuple[int, dict | bytes]:
        def page(items: list) -> dict:
            return {"count": len(items), "next": None, "previous": None, "results": items}

        if path == "/api/server/about":
            return 200, {"name": "CVAT", "description": "", "version": "2.80.0", "logo_url": "http://localhost/logo", "subtitle": ""}
        if path == "/api/users/self":
            return 200, {"id": 1, "username": "user", "url": "http://localhost/api/users/1"}
        if path == "/api/projects/3":
            summary = {"count": 2, "url": "http://localhost/api/tasks?project_id=3"}
            return 200, {
                "id": 3,
                "name": "p",
                "url": "http://localhost/api/projects/3",
                "tasks": summary,
                "labels": summary,
                **dict.fromkeys(("organization", "guide_id")),
            }
        if path == "/api/tasks":
            return 200, page([self.task(7), self.task(8)])
        if path in ("/api/tasks/7", "/api/tasks/8"):
            return 200, self.task(int(path[-1]))
        if path == "/api/tasks/7/data/meta":
            return 200, self.meta()
        if path == "/api/labels":
            return 200, page(self.labels)
        if path == "/api/tasks/7/annotations":
            return 200, self.annotations
        if path == "/api/tasks/7/data":
            assert query["type"] == ["frame"] and query["quality"] == ["original"]
            return 200, self.frames[int(query["number"][0])]
        return 404, {"detail": "Not found."}


@contextlib.contextmanager
def serving(content: Cvat):
    class Handler(BaseHTTPRequestHandler):
        def answer(self, status: int, body: dict | bytes):
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "image/png" if isinstance(body, bytes) else "application/vnd.cvat+json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self):
            url = urlsplit(self.path)
            content.requests.append(f"GET {self.path}")
            if url.path != "/api/server/about" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.answer(401, {"detail": "Invalid token."})
            return self.answer(*content.get(url.path.rstrip("/"), parse_qs(url.query)))

        def do_PATCH(self):
            url = urlsplit(self.path)
            assert (url.path.rstrip("/"), parse_qs(url.query)["action"]) == ("/api/tasks/7/annotations", ["create"])
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            content.uploaded.append(body)
            tracks = [{**track, "id": number} for number, track in enumerate(body["tracks"])]
            content.annotations = {**content.annotations, "tracks": content.annotations["tracks"] + tracks}
            self.answer(200, content.annotations)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> list[bytes]:
    path = str(tmp_path_factory.mktemp("video") / "sample.mp4")
    write_video(make_scene(scene_seed("test", 9), is_video=True), path)
    files = []
    with av.open(path) as container:
        for frame in container.decode(video=0):
            file = io.BytesIO()
            frame.to_image().save(file, "png")
            files.append(file.getvalue())
    return files


@pytest.fixture(scope="module")
def grounder():
    return pipeline("video-grounding", model=DEMO_MODEL_PATH)


@pytest.fixture
def server(frames):
    content = Cvat(frames)
    with serving(content) as url, make_client(url, access_token=TOKEN) as client:
        content.url, content.client = url, client
        yield content


def test_agent_uploads_the_tracks_of_the_answer(server, grounder):
    notes = annotate_task(grounder, server.client.tasks.retrieve(7))
    images = [PIL.Image.open(io.BytesIO(frame)) for frame in server.frames]
    (event,) = grounder({"video": images}, task="stvg", text=TEXT)["events"]
    ((track,),) = [body["tracks"] for body in server.uploaded]
    assert (track["label_id"], track["source"], track["frame"]) == (1, "auto", track["shapes"][0]["frame"])
    *shapes, end = track["shapes"]
    # The agent puts a box at the frame that the model saw: at most half the distance of two of these from the box's position in time.
    requested = {int(request.partition("number=")[2].partition("&")[0]) for request in server.requests if "number=" in request}
    assert len(requested) == grounder.processor.video_processor.num_frames and {shape["frame"] for shape in shapes} <= requested
    assert [shape["frame"] for shape in shapes] == pytest.approx([box["frame"] for box in event["boxes"]], abs=1)
    for shape, box in zip(shapes, event["boxes"], strict=True):
        assert (shape["type"], shape["outside"]) == ("rectangle", False)
        assert shape["points"] == pytest.approx(list(box["box"].values()), abs=0.01)
    assert (end["frame"], end["outside"]) == (shapes[-1]["frame"] + 1, True)
    assert notes[0] == "The label 'region' was not asked: its type is polygon, not rectangle or any."


def test_agent_second_run_does_not_annotate_a_label_twice(server, grounder):
    assert annotate(grounder, server.client, [7], None, None)
    assert annotate(grounder, server.client, [7], None, None) and len(server.uploaded) == 1


def test_agent_deleted_frames_get_no_boxes(server, grounder):
    server.deleted = list(range(0, len(server.frames), 2))
    annotate_task(grounder, server.client.tasks.retrieve(7))
    ((track,),) = [body["tracks"] for body in server.uploaded]
    assert {shape["frame"] % 2 for shape in track["shapes"]} == {1}
    assert not {f"GET /api/tasks/7/data?number={n}" for n in server.deleted} & {r.partition("&")[0] for r in server.requests}


def test_agent_project_annotates_the_others_if_a_task_cannot_be(server, grounder, caplog):
    assert not annotate(grounder, server.client, [9], 3, None)
    assert "Task 9 was not annotated: the server answered 404" in caplog.text
    assert "Task 8 was not annotated: Task 8 (shapes) has images, not a video" in caplog.text
    assert len(server.uploaded) == 1


def test_agent_wrong_token_or_server_is_an_error_before_the_model_is_loaded(server):
    with pytest.raises(OSError, match=r"cannot log in to http://127\.0\.0\.1:\d+: the server answered 401"):
        run("no-such-model", server.url, [7], token="wrong")


def test_command_invalid_options_are_errors(monkeypatch):
    monkeypatch.delenv("CVAT_ACCESS_TOKEN", raising=False)
    for options, message in [
        ({"server": "localhost:8080", "task": [1]}, "must begin with http"),
        ({}, "Give --task, the number of a task, or --project"),
        ({"task": [0]}, "--task 0 must be a number from 1 on"),
        ({"task": [1], "watch": 5.0}, "needs --project"),
        ({"project": 1, "watch": 0.0}, "at least 1 second"),
        ({"task": [1]}, "Set the environment variable CVAT_ACCESS_TOKEN"),
    ]:
        with pytest.raises(ValueError, match=message):
            cvat("no-such-model", **options)
