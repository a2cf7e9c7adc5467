# SPDX-License-Identifier: Apache-2.0
"""The Label Studio ML back-end, over HTTP, with requests as Label Studio 1.23.2 sent them."""

import contextlib
import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
import uvicorn
from transformers import pipeline

from llava_st_hf import DEMO_MODEL_PATH
from llava_st_hf.integrations.label_studio.command import label_studio
from llava_st_hf.integrations.label_studio.config import questions, read_config
from llava_st_hf.integrations.label_studio.media import TaskMedia
from llava_st_hf.integrations.label_studio.server import LOOPBACK_HOSTS, MAX_BODY, Annotator, create_app
from llava_st_hf.model.downloads_llava_st import DownloadLimits
from llava_st_hf.shapes.files import write_video
from llava_st_hf.shapes.scenes import make_scene, scene_seed


# Requests of Label Studio 1.23.2 for a project with two tasks, one of a local file and one of an uploaded file, without access tokens.
RECORDED = json.loads((Path(__file__).parent / "reference_data" / "label_studio" / "exchange.json").read_text(encoding="utf-8"))
TEXT = "the small blue circle moves right"
CONFIG = RECORDED["predict"]["label_config"]


@contextlib.contextmanager
def running(app):
    """A server at a free port of 127.0.0.1; yields its URL."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextlib.contextmanager
def file_server(content: bytes, token: str):
    """A file server in the place of Label Studio's: `/data/upload/…` with a legacy or exchanged token, and a redirect."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def send(self, status: int, body: bytes, **headers):
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            seen.append(f"{self.path} {self.headers.get('Authorization')}")
            if self.path.startswith("/redirect"):
                self.send(302, b"", Location="http://127.0.0.1:1/elsewhere")
            elif self.headers.get("Authorization") == token:
                self.send(200, content)
            else:
                self.send(401, b"")

        def do_POST(self):
            refresh = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["refresh"]
            self.send(200, json.dumps({"access": f"access-for-{refresh}"}).encode())

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("root")
    (root / "videos").mkdir()
    write_video(make_scene(scene_seed("test", 9), is_video=True), str(root / "videos" / "sample.mp4"))
    return root


@pytest.fixture(scope="module")
def grounder():
    return pipeline("video-grounding", model=DEMO_MODEL_PATH)


@pytest.fixture(scope="module")
def url(grounder, root):
    with running(create_app(Annotator(grounder, TaskMedia(folder=root)))) as url:
        yield url


def predict(url: str, data: dict, label_config: str = CONFIG, **keys) -> httpx.Response:
    body = {**RECORDED["predict"], "tasks": [{**RECORDED["predict"]["tasks"][0], "data": data}], "label_config": label_config, **keys}
    return httpx.post(f"{url}/predict", json=body, timeout=60)


LOCAL = {"video": "/data/local-files/?d=videos/sample.mp4", "fps": 15}


def test_back_end_recorded_requests_are_answered(url, grounder, root):
    assert httpx.get(f"{url}/health").json()["status"] == httpx.get(url).json()["status"] == "UP"
    setup = httpx.post(f"{url}/setup", json=RECORDED["setup"])
    version = setup.json()["model_version"]
    assert setup.status_code == 200 and version and httpx.get(f"{url}/versions").json() == {"versions": [version]}
    assert httpx.post(f"{url}/webhook", json={"action": "ANNOTATION_CREATED", "annotation": {}}).status_code == 201
    local = {**RECORDED["predict"], "tasks": RECORDED["predict"]["tasks"][:1]}
    answer = httpx.post(f"{url}/predict", json=local, timeout=60).json()
    (found,) = answer["results"]
    assert answer["model_version"] == found["model_version"] == version and 0 < found["score"] <= 1
    tube, span = found["result"]
    (event,) = grounder(str(root / "videos" / "sample.mp4"), task="stvg", text=TEXT, scores=True)["events"]
    assert (tube["type"], tube["from_name"], tube["to_name"], tube["value"]["labels"]) == ("videorectangle", "box", "video", ["circle"])
    assert tube["meta"] == span["meta"] == {"text": [TEXT]} and event["caption"] is None
    first, last = tube["value"]["sequence"][0], tube["value"]["sequence"][-1]
    box = event["boxes"][0]["box"]
    assert (first["frame"], first["enabled"], last["enabled"]) == (1 + round(event["boxes"][0]["time"] * 15), True, False)
    assert first["x"] == pytest.approx(100 * box["xmin"] / grounder_width(root), abs=0.01)
    (range,) = span["value"]["ranges"]
    assert (span["type"], span["from_name"], span["value"]["timelinelabels"]) == ("timelinelabels", "when", ["circle"])
    assert (range["start"], range["end"]) == (1 + round(event["start"] * 15), 1 + round(event["end"] * 15))


def grounder_width(root: Path) -> int:
    import av

    with av.open(str(root / "videos" / "sample.mp4")) as container:
        return container.streams.video[0].width


def test_back_end_counts_frames_at_the_rate_of_the_labeling_configuration(url):
    at_15 = predict(url, LOCAL).json()["results"][0]["result"][1]["value"]["ranges"][0]
    at_24 = predict(url, LOCAL, CONFIG.replace('frameRate="$fps"', "")).json()["results"][0]["result"][1]["value"]["ranges"][0]
    assert (at_24["start"] - 1) / 24 == pytest.approx((at_15["start"] - 1) / 15, abs=0.05) and at_24["end"] > at_15["end"]
    answer = predict(url, {"video": LOCAL["video"]})
    assert answer.status_code == 422 and "frameRate='$fps' of <Video> must be a positive number; it is None" in answer.json()["error"]


def test_back_end_text_of_a_task_is_asked_instead_of_the_labels(url):
    found = predict(url, {**LOCAL, "text": "the large red square"}).json()["results"][0]["result"]
    assert {region["meta"]["text"][0] for region in found} <= {"the large red square"}
    assert {label for region in found for label in region["value"].get("labels", ["circle"])} == {"circle"}


def test_back_end_images_get_rectangles(url, root):
    from PIL import Image

    Image.new("RGB", (64, 48)).save(root / "videos" / "a.png")
    config = '<View><Image name="i" value="$image"/><RectangleLabels name="r" toName="i"><Label value="thing"/></RectangleLabels></View>'
    regions = predict(url, {"image": "/data/local-files/?d=videos/a.png"}, config).json()["results"][0]["result"]
    for region in regions:
        assert (region["type"], region["from_name"], region["original_width"]) == ("rectanglelabels", "r", 64)
        assert region["value"]["rectanglelabels"] == ["thing"]
    assert regions


@pytest.mark.parametrize(
    "video, status, message",
    [
        ("/data/local-files/?d=../secret.mp4", 422, "is not a path within the folder of local files"),
        ("/data/local-files/?d=/etc/passwd", 404, "'/etc/passwd' is not a file in the folder of local files"),
        ("/data/local-files/?d=videos/link.mp4", 422, "is not a path within the folder of local files"),
        ("/data/local-files/?d=", 422, "is not a path within"),
        ("/data/local-files/?d=videos/none.mp4", 404, "is not a file in the folder"),
        ("/etc/passwd", 422, "neither in the folder of local files nor on the Label Studio server"),
        ("http://169.254.169.254/latest/meta-data", 422, "neither in the folder"),
        ("file:///etc/passwd", 422, "neither in the folder"),
        (None, 422, "has no image or video: its field is None"),
    ],
)
def test_back_end_media_from_elsewhere_are_errors(url, root, video, status, message):
    (root.parent / "secret.mp4").write_bytes(b"secret")
    with contextlib.suppress(FileExistsError):
        os.symlink(root.parent / "secret.mp4", root / "videos" / "link.mp4")
    answer = predict(url, {**LOCAL, "video": video})
    assert answer.status_code == status and message in answer.json()["error"] and answer.json()["error"].startswith("Task ")


def test_back_end_invalid_requests_are_errors_with_a_sentence(url):
    for config, message in [
        ("<View>", "is not valid XML"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><View/>', "without document type and entities"),
        ("<View><Text name='t' value='$t'/></View>", "must have one <Video> or <Image>"),
        ("<View><Video name='v' value='$video'/></View>", "must have <VideoRectangle> and <Labels>, or <TimelineLabels>,"),
    ]:
        assert message in predict(url, LOCAL, config).json()["error"]
        setup = httpx.post(f"{url}/setup", json={**RECORDED["setup"], "schema": config})
        assert setup.status_code == 422 and message in setup.json()["error"]
    many = httpx.post(f"{url}/predict", json={**RECORDED["predict"], "tasks": [{}] * 101})
    assert many.status_code == 422 and "at most 100" in many.json()["error"]
    assert httpx.post(f"{url}/predict", content=b" " * (MAX_BODY + 1), headers={"Content-Type": "application/json"}).status_code == 413
    assert httpx.post(f"{url}/predict", content=iter([b"{}"])).status_code == 413  # without Content-Length
    assert httpx.get(f"{url}/health", headers={"Host": "attacker.example"}).status_code == 400
    assert httpx.post(f"{url}/predict", content=json.dumps(RECORDED["predict"]), headers={"Content-Type": "text/plain"}).status_code == 422


def test_questions_labels_hints_and_texts():
    config = read_config(
        '<View><Video name="v" value="$video" framerate="0.5"/><VideoRectangle name="b" toName="v"/>'
        '<Labels name="l" toName="v"><Label value="dog" hint="the dog that runs"/><Label value="Cat"/></Labels>'
        '<TimelineLabels name="t" toName="v"><Label value="rain"/><Label value="dog"/></TimelineLabels></View>'
    )
    found = [(text, label.task, label.controls.boxes, label.controls.spans) for text, label in questions(config, {}, "text")]
    assert found == [("the dog that runs", "stvg", "b", "t"), ("Cat", "stvg", "b", None), ("rain", "tvg", None, "t")]
    assert config.fps({}) == 2.0
    assert [label.value for _, label in questions(config, {"text": ["cat", "rain"]}, "text")] == ["Cat", "rain"]
    with pytest.raises(
        ValueError, match="'a bird' of the field 'text' is not a label; with several labels it must be one of dog, Cat, rain"
    ):
        questions(config, {"text": "a bird"}, "text")
    with pytest.raises(ValueError, match="must be a text or a list of texts"):
        questions(config, {"text": [3]}, "text")


def test_task_media_uploaded_files_are_downloaded_with_the_token_and_deleted():
    with file_server(b"content", "Token abc") as (server, seen):
        media = TaskMedia(server_url=server, token="abc")
        for value in ("/data/upload/1/a.mp4", f"{server}/data/upload/1/a.mp4"):
            with media.open(value) as path:
                assert Path(path).read_bytes() == b"content" and path.endswith(".mp4")
            assert not os.path.exists(path)
        for value, error, message in [
            (f"{server.rsplit(':', 1)[0]}:1/a.mp4", ValueError, "neither in the folder"),
            ("//other.example/a.mp4", ValueError, "neither in the folder"),
            ("/redirect", OSError, "302 redirects to http://127.0.0.1:1/elsewhere, which is not followed"),
        ]:
            with pytest.raises(error, match=message), media.open(value):
                pass
        with pytest.raises(OSError, match="401"), TaskMedia(server_url=server).open("/a.mp4"):
            pass
        with (
            pytest.raises(OSError, match="more than 3 bytes"),
            TaskMedia(server_url=server, token="abc", limits=DownloadLimits(video_bytes=3)).open("/a.mp4"),
        ):
            pass
    with (
        file_server(b"content", "Bearer access-for-a.b.c") as (server, seen),
        TaskMedia(server_url=server, token="a.b.c").open("/a") as path,
    ):
        assert Path(path).read_bytes() == b"content"
    assert seen == ["/a Bearer access-for-a.b.c"]


def test_command_invalid_options_are_errors_before_the_model_is_loaded(tmp_path):
    for options, message in [
        ({"media": str(tmp_path / "none")}, "must be a folder"),
        ({"media": str(tmp_path), "port": 70000}, "--port 70000 must be from 0 to 65535"),
        ({"label_studio_url": "localhost:8080"}, "must begin with http"),
        ({}, "Give --media"),
    ]:
        with pytest.raises(ValueError, match=message):
            label_studio(model="no-such-model", **options)
    assert "127.0.0.1" in LOOPBACK_HOSTS
