# SPDX-License-Identifier: Apache-2.0
"""The web page without a browser: limits, questions, visits, routes, downloads and the command."""

import os
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from llava_st_hf import Grounding
from llava_st_hf.app import command, server
from llava_st_hf.app.answering import Answering
from llava_st_hf.app.downloads import listed_downloads
from llava_st_hf.app.limits import Limits
from llava_st_hf.app.media import is_playable, receive, write_examples
from llava_st_hf.app.questions import LABELS, question_arguments
from llava_st_hf.app.visits import TooManyUploadsError, Visits
from llava_st_hf.model.media_info_llava_st import MediaInfo
from llava_st_hf.model.tasks_llava_st import TASKS
from llava_st_hf.model.video_reading_llava_st import read_video, read_video_metadata
from modeling_tests.media import moving_frames, write_video


VIDEO = MediaInfo("video", width=64, height=48, fps=10.0, last_frame=29, total_num_frames=30, duration=3.0)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Path of a video of 64×48, 30 frames at 10 frames per second."""
    return write_video(tmp_path_factory.mktemp("media") / "clip.mp4", moving_frames(30, 48, 64), fps=10, codec="libx264")


@pytest.fixture(scope="module")
def site(grounder, tmp_path_factory):
    """(answering, client of its routes) with a tiny model; answers have at most 12 tokens."""
    folder = tmp_path_factory.mktemp("site")
    limits = Limits(upload_bytes=200_000, video_seconds=10)
    visits, examples = Visits(limits, folder), write_examples(folder / "examples", limits)
    grounder._forward_params["max_new_tokens"] = 12
    yield Answering(grounder, visits, examples, listed_downloads()), TestClient(server.make_server(visits, examples))
    visits.close()


@pytest.fixture
def visit(site):
    yield site[0].visits.begin("page")
    site[0].visits.end_page("page")


def opened(answering, visit, example="video-1"):
    """Opens an example for a visitor and returns the data of the player."""
    return list(answering.open(visit.token, example))[-1]


def asked(answering, visit, task="tvg", text="it falls", follow_up=False, **drawn):
    """The data of the list of answers after a question."""
    given = {"visit": visit.token, "medium": visit.medium and visit.medium.id, **drawn}
    return list(answering.ask(given, task, text, follow_up))[-1]


def upload(client, visit, path, name=None):
    return client.post(f"/llava-st/visits/{visit.token}/upload", params={"name": name or path.name}, content=path.read_bytes())


# Limits


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({"video_seconds": 2}, "lasts 3 seconds, longer than the 2 seconds"),
        ({"pixels": 3000}, "64×48 pixels"),
        ({"video_frames": 29}, "has 30 frames, more than the 29"),
    ],
)
def test_limits_video_beyond_one_is_refused(clip, limit, message):
    with pytest.raises(ValueError, match=f"my.mp4.*{message}"):
        Limits(**limit).read_medium(str(clip), "my.mp4")


def test_limits_image_of_many_pixels_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = tmp_path / "large.png"
    Image.new("1", (5000, 5000)).save(path)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="5000×5000 pixels"):
        Limits().read_medium(str(path), "large.png")


@pytest.mark.parametrize("value", [0, -1, float("nan"), "1", 1.5])
def test_limits_value_that_is_not_a_positive_number_is_refused(value):
    with pytest.raises(ValueError, match="upload_bytes="):
        Limits(upload_bytes=value)


# Questions


def test_questions_have_a_label_for_every_task():
    assert set(LABELS) == {*TASKS, ""}


@pytest.mark.parametrize(
    ("task", "text", "drawn", "message"),
    [
        ("tvg", " ", {}, "Enter a text"),
        ("svg", "it", {}, "Drag a span on the time line"),
        ("elc", None, {"time": 1.0}, "Draw a box on the picture"),
        ("elc", None, {"time": 1.0, "box": [1, 2, float("inf"), 4]}, "box=.* must be 4 numbers"),
        ("tr", None, {"span": {"start": 1}}, "span=.* must be 2 numbers"),
        ("rec", "it", {}, "This task is for images, but the file is a video"),
        ("__class__", "it", {}, "is not a task of this page"),
        ("", "What is in {box}?", {}, "contains {box}, but no box was drawn"),
    ],
)
def test_question_that_is_incomplete_names_what_to_do(task, text, drawn, message):
    with pytest.raises(ValueError, match=message):
        question_arguments(task, text, drawn, VIDEO)


def test_question_in_free_text_contains_what_was_drawn():
    drawn = {"box": [1, 2, 30, 40.5], "span": [0.5, 2], "time": 1.5}
    question = question_arguments("", "What does {box} do in {span}, from {time}?", drawn, VIDEO)
    assert question == {"text": "What does [<w1.0px><h2.0px><w30.0px><h40.5px>] do in {<t0.5s><t2.0s>}, from <t1.5s>?"}


def test_question_has_only_what_its_task_takes():
    drawn = {"box": [1, 2, 30, 40], "span": [0.5, 2], "time": 1.5}
    assert question_arguments("tr", "ignored", drawn, VIDEO) == {"task": "tr", "span": [0.5, 2]}


# Visits


def test_visits_medium_is_encoded_once_for_all_questions(site, visit, grounder, monkeypatch):
    answering, _ = site
    encoded = []
    opening = grounder.open
    monkeypatch.setattr(grounder, "open", lambda *args, **kwargs: encoded.append(args) or opening(*args, **kwargs))
    assert opened(answering, visit)["medium"]["example"] == "video-1"
    first = asked(answering, visit)
    second = asked(answering, visit, text="And then?", task="", follow_up=True)
    assert first["problem"] is None and [answer["number"] for answer in second["answers"]] == [1, 2]
    assert len(encoded) == 1
    path = answering.examples["video-1"][0].path
    assert visit.answers[0] == Grounding.from_dict(grounder(str(path), task="tvg", text="it falls", scores=True), source="video-1.mp4")


def test_visits_beyond_the_open_media_are_encoded_again(site, monkeypatch):
    answering, _ = site
    monkeypatch.setattr(answering.visits, "limits", replace(answering.limits, open_media=1))
    one, two = (answering.visits.begin(name) for name in "12")
    opened(answering, one)
    opened(answering, two)
    assert one.session is None and two.session is not None
    assert "no longer in memory" in asked_follow_up(answering, one)
    assert asked(answering, one)["answers"] and two.session is None


def asked_follow_up(answering, visit):
    visit.answers.append(Grounding(media=visit.medium.info))
    visit.questions.append({"task": "tvg"})
    return asked(answering, visit, follow_up=True)["problem"]


def test_visits_that_are_idle_are_deleted_with_their_files(site, visit, clip, monkeypatch):
    answering, client = site
    assert upload(client, visit, clip).status_code == 200
    opened(answering, visit, None)
    session = visit.session
    monkeypatch.setattr(answering.visits, "limits", replace(answering.limits, idle_seconds=0.001))
    with visit.use():
        time.sleep(0.01)
        answering.visits.sweep()
        assert visit.folder.is_dir()  # a request is in progress
    time.sleep(0.01)
    answering.visits.sweep()
    assert not visit.folder.exists() and session._states is None
    assert "Reload the page" in asked(answering, visit)["problem"]


def test_visits_end_with_their_page(site, clip):
    answering, client = site
    visit, other = (answering.visits.begin(name) for name in ("closed", "open"))
    upload(client, visit, clip)
    answering.visits.end_page("closed")
    assert not visit.folder.exists() and other.folder.is_dir()
    assert upload(client, visit, clip).status_code == 400


def test_visits_new_upload_replaces_the_one_before(site, visit, clip):
    answering, client = site
    for _ in range(2):
        upload(client, visit, clip)
        opened(answering, visit, None)
    assert list(visit.folder.iterdir()) == [visit.medium.path]


def test_visits_with_uploads_are_limited(site, visit, clip, monkeypatch):
    answering, client = site
    upload(client, visit, clip)
    count = sum(found.has_files for found in answering.visits._visits.values())
    monkeypatch.setattr(answering.visits, "limits", replace(answering.limits, visits=count))
    other = answering.visits.begin("other")
    with pytest.raises(TooManyUploadsError):
        answering.visits.check_room(other)
    assert upload(client, other, clip).status_code == 503
    answering.visits.check_room(visit)


def test_visits_answer_ends_when_its_reader_goes_away(site, visit):
    answering, _ = site
    opened(answering, visit)
    stream = answering.ask({"visit": visit.token, "medium": visit.medium.id}, "tvg", "it falls", False)
    next(stream)
    next(stream)
    deadline = time.monotonic() + 20
    while visit.busy and time.monotonic() < deadline:  # nobody reads on
        time.sleep(0.01)
    assert not answering.visits.model.locked() and len(visit.answers) == 1


def test_visits_answer_that_takes_too_long_is_stopped(site, visit, monkeypatch):
    answering, _ = site
    opened(answering, visit)
    monkeypatch.setattr(answering, "limits", replace(answering.limits, answer_seconds=1e-9))
    assert "took longer than 1e-09 seconds" in asked(answering, visit)["problem"]
    assert visit.answers == [] and not answering.visits.model.locked()


# Routes


def test_routes_files_of_a_visit_are_not_those_of_another_client(site, clip):
    answering, client = site
    visit, other = (answering.visits.begin(name) for name in ("mine", "theirs"))
    upload(client, visit, clip)
    medium = opened(answering, visit, None)["medium"]
    asked(answering, visit)
    opened(answering, other)
    url = "/" + medium["url"]
    assert client.get(url).content == clip.read_bytes()
    assert client.get(url, headers={"Range": "bytes=0-9"}).content == clip.read_bytes()[:10]
    for name in ("", f"/answers/1/{listed_downloads()[0]['path']}"):
        assert client.get(url.replace(visit.token, other.token) + name).status_code == 404
        assert client.get(url.replace(medium["id"], other.medium.id) + name).status_code == 404
    assert len(medium["id"]) >= 32 and len(visit.token) >= 32
    for path in ("/llava-st/static/../command.py", "/llava-st/static/%2e%2e%2fcommand.py", f"/llava-st/examples/{clip}"):
        assert client.get(path).status_code == 404


@pytest.mark.parametrize(
    ("name", "content", "status", "message"),
    [
        ("a.mp4", b"x" * 300_000, 413, "larger than the 0.2 MB"),
        ("a.mp4", b"#EXTM3U\nfile:///etc/passwd\n", 400, "a.mp4"),
        ("a.m3u8", b"#EXTM3U\n", 400, "not a kind of file that can be uploaded"),
        ("../../a", b"x", 400, "not a kind of file that can be uploaded"),
        ("a.png", b"", 400, "a.png"),
    ],
)
def test_routes_upload_that_is_refused_leaves_no_file(site, visit, name, content, status, message):
    answering, client = site
    response = client.post(f"/llava-st/visits/{visit.token}/upload", params={"name": name}, content=content)
    assert response.status_code == status and message in response.text and str(answering.visits.folder) not in response.text
    assert list(visit.folder.iterdir()) == []


def test_routes_send_headers_and_close_the_file_routes_of_gradio():
    inner = FastAPI()
    inner.get("/{path:path}")(lambda path: path)
    client = TestClient(server.add_headers(inner))
    for path in ("/upload", "/gradio_api/upload", "/gradio_api/file=/etc/passwd", "/gradio_api/proxy=http://a", "/monitoring"):
        response = client.get(path)
        assert response.status_code == 404 and "default-src 'self'" in response.headers["content-security-policy"]
    assert client.post("/gradio_api/queue/join", content=b"x" * (2**20 + 1)).status_code == 413
    response = client.get("/gradio_api/queue/data")
    assert response.status_code == 200 and response.headers["x-content-type-options"] == "nosniff"


def test_downloads_of_videos_and_images_contain_the_answer(site, visit):
    answering, client = site
    for example, kind, events in (
        ("video-1", "video", [{"start": 0.5, "end": 1.0, "caption": "it – moves", "boxes": boxes(True)}]),
        ("image-3", "image", [{"caption": "a cross", "boxes": boxes(False)}]),
    ):
        opened(answering, visit, example)
        media = visit.medium.info
        answer = {"text": "it", "events": events, "media": media, "notes": [], "task": "elc" if kind == "video" else "dgc"}
        visit.answers.append(Grounding.from_dict(answer, source=visit.medium.name))
        visit.questions.append({"task": answer["task"]})
        url = f"/{answering.answers(visit)['answers'][0]['url']}"
        failed = {}
        for download in listed_downloads():
            response = client.get(f"{url}/{download['path']}")
            name = response.headers.get("content-disposition", "")
            if response.status_code == 200:
                assert len(response.content) > 40 and f"''{example}-{download['path']}" in name
            else:
                assert response.status_code == 422
                failed[download["path"]] = response.text
        assert not failed or kind == "image", failed
        assert set(failed) <= {"annotated-video", "contact-sheet", "vidstg", "hc-stvg", "webvtt", "srt", "fiftyone"}, failed
        answered = client.get(f"{url}/answer")
        assert Grounding.from_json(answered.text) == visit.answers[0]
        assert client.get(f"{url}/none").status_code == 422
        assert list(visit.folder.iterdir()) == []


def boxes(timed):
    return [
        {**({"time": frame / 12, "frame": frame} if timed else {}), "box": {"xmin": 10, "ymin": 12 + frame, "xmax": 60, "ymax": 80}}
        for frame in ((6, 9, 12) if timed else (0,))
    ]


def test_media_that_browsers_do_not_play_have_a_copy_with_the_same_times(tmp_path):
    path = write_video(tmp_path / "old.avi", moving_frames(12, 48, 64), fps=5, codec="mpeg4")
    assert not is_playable(path)
    medium = receive(path, "old.avi", Limits(), tmp_path)
    assert is_playable(medium.shown) and medium.path == path
    given, shown = read_video_metadata(str(path)), read_video_metadata(str(medium.shown))
    times = [[metadata.seconds(frame) for frame in range(12)] for metadata in (given, shown)]
    np.testing.assert_allclose(*times, atol=1e-3)
    pixels = [read_video(str(file), lambda reader: next(iter(reader.chunks([11]))).float()) for file in (path, medium.shown)]
    assert (pixels[0] - pixels[1]).abs().mean() < 8


# Command


def test_command_port_in_use_raises_before_the_model_is_loaded(monkeypatch):
    monkeypatch.setattr(command, "pipeline", lambda *args, **kwargs: pytest.fail("loaded"))
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match=f"port={taken.getsockname()[1]}: the address"):
        command.run(port=taken.getsockname()[1])
    with pytest.raises(ValueError, match="port=70000"):
        command.run(port=70000)


def test_command_deletes_its_files_at_sigterm(monkeypatch, grounder):
    import uvicorn

    folders = []

    def run(self, sockets):
        folders.extend(Path(os.environ["GRADIO_TEMP_DIR"]).parent.iterdir())
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(command, "_load", lambda *args: grounder)
    monkeypatch.setattr(uvicorn.Server, "run", run)
    with pytest.raises(SystemExit, match="143"):
        command.run(port=0)
    assert folders and not any(folder.parent.exists() for folder in folders)


@pytest.mark.parametrize(("host", "warns"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_command_warns_when_others_can_reach_the_page(monkeypatch, grounder, capsys, host, warns):
    import uvicorn

    warned, found = [], {}

    def run(self, sockets):
        found["page"] = TestClient(self.config.app).get("/")

    monkeypatch.setattr(command, "_load", lambda *args: grounder)
    monkeypatch.setattr(command.logger, "warning", lambda text, *args: warned.append(text % args))
    monkeypatch.setattr(uvicorn.Server, "run", run)
    command.run(host=host, port=0)
    assert found["page"].status_code == 200 and "llava-st/static/page.js" in found["page"].text
    assert "googleapis" not in found["page"].text and "cdn" not in found["page"].text
    assert bool(warned) == warns and all("available to all" in text for text in warned)
    assert capsys.readouterr().out.startswith("http://127.0.0.1:")
