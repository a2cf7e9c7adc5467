# SPDX-License-Identifier: Apache-2.0
"""Requests to `vllm serve` with the plug-in: files are read as by LLaVA-ST's processors, and bad ones are answered with status 400."""

import base64
import json
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from llava_st_hf import DEMO_MODEL_PATH
from llava_st_hf.examples.sample_media import write_sample_media

from ..media import moving_frames, write_video
from .questions import answer


@pytest.fixture(scope="module")
def server(plain_server):
    return plain_server


@pytest.fixture(scope="module")
def loaded():
    model = AutoModelForImageTextToText.from_pretrained(DEMO_MODEL_PATH, dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(DEMO_MODEL_PATH)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    return write_sample_media(tmp_path_factory.mktemp("samples"))


def data_url(path: Path, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(path.read_bytes()).decode()}"


def ask(server, kind: str, url: str, text: str, **options) -> tuple[int, dict]:
    """Status and body of the response to a question about one image or video."""
    content = [{"type": f"{kind}_url", f"{kind}_url": {"url": url}}, {"type": "text", "text": text}]
    body = {"model": server.model, "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 300}
    body |= {"return_token_ids": True, "skip_special_tokens": False, **options}
    request = urllib.request.Request(f"{server.url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def expected_ids(loaded, kind: str, path: Path, text: str, **options) -> list[int]:
    messages = [{"role": "user", "content": [{"type": kind, "path": str(path)}, {"type": "text", "text": text}]}]
    return answer(*loaded, messages, 300, **options).ids


def picture(folder: Path, photo: Path, name: str) -> tuple[Path, str]:
    """A variant of a photo that vLLM converts otherwise than LLaVA-ST's image processor, and its MIME type."""
    image = PIL.Image.open(photo)
    image.load()
    path = folder / name
    if name == "turned.jpg":
        exif = image.getexif()
        exif[PIL.Image.ExifTags.Base.Orientation] = 6
        image.save(path, exif=exif)
        return path, "image/jpeg"
    if name == "cmyk.jpg":
        image.convert("CMYK").save(path)
        return path, "image/jpeg"
    if name == "transparent.png":
        alpha = np.zeros((image.height, image.width), np.uint8)
        alpha[:, ::2] = 255
        image.putalpha(PIL.Image.fromarray(alpha))
    elif name == "palette.png":
        image = image.convert("P")
        image.info["transparency"] = int(np.bincount(np.asarray(image).ravel()).argmax())
    elif name == "16-bit.png":
        image = PIL.Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    image.save(path)
    return path, "image/png"


@pytest.mark.parametrize("name", ["turned.jpg", "cmyk.jpg", "transparent.png", "palette.png", "16-bit.png"])
def test_server_unusual_image_equals_generate(server, loaded, files, tmp_path, name):
    path, mime = picture(tmp_path, files[1], name)
    text = "Describe the image in detail, and give the bounding box of each object mentioned."
    status, body = ask(server, "image", data_url(path, mime), text)
    assert status == 200, body
    assert body["choices"][0]["token_ids"] == expected_ids(loaded, "image", path, text)


@pytest.mark.parametrize("options", [{}, {"num_frames": 7}, {"fps": 3}])
def test_server_number_of_frames_of_a_request_equals_generate(server, loaded, files, options):
    text = "Describe what took place during the period {<TEMP-020><TEMP-070>} in the video."
    status, body = ask(server, "video", data_url(files[0], "video/mp4"), text, **({"mm_processor_kwargs": options} if options else {}))
    assert status == 200, body
    assert body["choices"][0]["token_ids"] == expected_ids(loaded, "video", files[0], text, **options)


def test_server_does_not_choose_tokens_that_generate_suppresses(server, loaded, files):
    text = "Describe what took place during the period {<TEMP-020><TEMP-070>} in the video."
    suppressed = loaded[0].generation_config.suppress_tokens
    status, body = ask(server, "video", data_url(files[0], "video/mp4"), text, logit_bias=dict.fromkeys(map(str, suppressed), 100))
    assert status == 200 and suppressed, body
    assert body["choices"][0]["token_ids"] == expected_ids(loaded, "video", files[0], text)


def test_server_identifies_a_video_by_its_content_and_not_by_the_uuid_of_a_request(server, loaded, files, tmp_path):
    other = write_video(tmp_path / "other.mp4", moving_frames(30, 48, 64))
    text = "Describe what took place during the period {<TEMP-020><TEMP-070>} in the video."
    found = []
    for path in (files[0], other):
        content = [{"type": "video_url", "video_url": {"url": data_url(path, "video/mp4")}, "uuid": "a"}, {"type": "text", "text": text}]
        status, body = ask(server, "video", "", text, messages=[{"role": "user", "content": content}])
        assert status == 200, body
        found.append(body["choices"][0]["token_ids"])
    assert found == [expected_ids(loaded, "video", path, text) for path in (files[0], other)] and found[0] != found[1]
    content = [{"type": "video_url", "video_url": None, "uuid": "a"}, {"type": "text", "text": text}]
    status, body = ask(server, "video", "", text, messages=[{"role": "user", "content": content}])
    assert (status, "The video is missing" in body["error"]["message"]) == (400, True), body


def bad_requests(video: Path, photo: Path) -> dict:
    """Name → kind, URL, text, options and what the message contains."""
    film, image = data_url(video, "video/mp4"), data_url(photo, "image/jpeg")
    cut = f"data:video/mp4;base64,{base64.b64encode(video.read_bytes()[: video.stat().st_size // 2]).decode()}"
    frame = base64.b64encode(photo.read_bytes()).decode()
    return {
        "truncated video": ("video", cut, "What?", {}, "bytes"),
        "no video": ("video", "data:video/mp4;base64,AAAA", "What?", {}, "video of 3 bytes"),
        "no image": ("image", "data:image/png;base64,AAAA", "What?", {}, "image"),
        "sequence of images": ("video", f"data:video/jpeg;base64,{frame},{frame}", "What?", {}, "jpeg_sequence"),
        "frames of the loader": ("video", film, "What?", {"media_io_kwargs": {"video": {"num_frames": 32}}}, "mm_processor_kwargs"),
        "other loader": ("video", film, "What?", {"media_io_kwargs": {"video": {"video_backend": "opencv"}}}, "media_io_kwargs"),
        "image mode": ("image", image, "What?", {"media_io_kwargs": {"image": {"image_mode": "L"}}}, "media_io_kwargs"),
        "clip": ("video", film, "What?", {"mm_processor_kwargs": {"clips": [{"frames": [0, 5]}]}}, "clips"),
        "image option": ("image", image, "What?", {"mm_processor_kwargs": {"images_kwargs": {"do_resize": False}}}, "do_resize"),
        "no frames": ("video", film, "What?", {"mm_processor_kwargs": {"num_frames": 0}}, "num_frames"),
        "two numbers": ("video", film, "What?", {"mm_processor_kwargs": {"num_frames": 5, "fps": 2}}, "num_frames"),
        "seconds": ("video", film, "What happens at <t1.0s>?", {}, "1.0s"),
        "second placeholder": ("video", film, "What is <video>?", {}, "<video>"),
        "special token": ("video", film, "What is <vid_patch>?", {}, "<vid_patch>"),
    }


@pytest.mark.parametrize("name", list(bad_requests(Path(__file__), Path(__file__))))
def test_server_bad_request_is_answered_with_status_400(server, files, name):
    kind, url, text, options, message = bad_requests(*files)[name]
    status, body = ask(server, kind, url, text, **options)
    assert (status, message in body["error"]["message"]) == (400, True), body
    assert len(body["error"]["message"]) < 1000, "the content of the file is in the message"
