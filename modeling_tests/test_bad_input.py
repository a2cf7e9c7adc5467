# SPDX-License-Identifier: Apache-2.0
"""Invalid and unusual inputs of the chat template and the pipeline: they give a correct result or an error that names the invalid value."""

import math
import re

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_tests.media import moving_frames, write_audio, write_video


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("media")


@pytest.fixture(scope="module")
def video(folder):
    return str(write_video(folder / "video.mp4", moving_frames(20, 48, 64), fps=10))


@pytest.fixture(params=["chat template", "pipeline"])
def ask(request, grounder):
    """Returns a function that asks a question about an image or video and returns the `MediaInfo` with which the answer would be parsed."""

    def ask(kind, source, text="What?", **options):
        if request.param == "pipeline":
            seen = []
            grounder.postprocess, postprocess = (
                lambda outputs: seen.extend(outputs["contexts"]) or postprocess(outputs),
                grounder.postprocess,
            )
            try:
                grounder({kind: source, "text": text, **options}, max_new_tokens=1)
            finally:
                grounder.postprocess = postprocess
            return seen[0].medium
        messages = [{"role": "user", "content": [{"type": kind, kind: source, **options}, {"type": "text", "text": text}]}]
        inputs = grounder.processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
        pixels = inputs["pixel_values_videos" if kind == "video" else "pixel_values"]
        assert torch.isfinite(pixels).all() and pixels.abs().max() <= 1 + 1e-6
        return inputs.media_info[0][0]

    return ask


# Files


@pytest.mark.parametrize("kind, name", [("video", "missing.mp4"), ("image", "missing.png")])
def test_media_file_missing_raises_with_its_name(ask, folder, kind, name):
    with pytest.raises(OSError, match=name):
        ask(kind, str(folder / name))


@pytest.mark.parametrize("kind, name", [("video", "empty.mp4"), ("image", "empty.png")])
def test_media_file_empty_raises_with_its_name(ask, folder, kind, name):
    (folder / name).touch()
    with pytest.raises(OSError, match=f"{name} is empty"):
        ask(kind, str(folder / name))


@pytest.mark.parametrize("kind, name", [("video", "text.mp4"), ("image", "text.jpg")])
def test_media_file_with_text_content_raises_with_its_name(ask, folder, kind, name):
    (folder / name).write_text("this is no picture at all\n" * 50)
    with pytest.raises(OSError, match=name):
        ask(kind, str(folder / name))


def test_video_file_truncated_raises_with_its_name(ask, folder, video):
    data = (folder / "video.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(OSError, match=r"cut\.mp4"):
        ask("video", str(folder / "cut.mp4"))


def test_image_file_truncated_raises_with_its_name(ask, folder):
    Image.fromarray(moving_frames(1, 200, 200)[0]).save(folder / "whole.jpg")
    data = (folder / "whole.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(OSError, match=r"cut\.jpg"):
        ask("image", str(folder / "cut.jpg"))


def test_video_file_with_audio_only_raises_with_its_name(ask, folder):
    write_audio(folder / "sound.mp4")
    with pytest.raises(OSError, match=r"sound\.mp4"):
        ask("video", str(folder / "sound.mp4"))


@pytest.mark.parametrize("kind, message", [("video", "nothing is a folder without frames"), ("image", "nothing is a directory")])
def test_media_path_folder_without_frames_raises_with_its_name(ask, folder, kind, message):
    (folder / "nothing").mkdir(exist_ok=True)
    with pytest.raises(OSError, match=message):
        ask(kind, str(folder / "nothing"))


def test_video_url_unreachable_raises_with_the_url(ask):
    with pytest.raises(OSError, match=re.escape("http://127.0.0.1:9/a.mp4")):
        ask("video", "http://127.0.0.1:9/a.mp4")


# Videos of unusual shapes


@pytest.mark.parametrize("frames", [1, 3])
def test_video_of_one_or_three_frames_is_decoded(ask, folder, frames):
    media = ask("video", str(write_video(folder / f"{frames}.mp4", moving_frames(frames, 48, 64), fps=10)), text="What at <t0s>?")
    assert (media.first_frame, media.last_frame) == (0, frames - 1)
    assert media.time(1.0) == (frames - 1) / 10


@pytest.mark.parametrize("height, width", [(96, 40), (33, 51), (17, 200)])
def test_video_of_portrait_or_odd_size_keeps_its_width_and_height(ask, folder, height, width):
    path = write_video(folder / f"{height}x{width}.mp4", moving_frames(4, height, width), fps=10)
    media = ask("video", str(path), text=f"What is at [<w0px><h0px><w{width}px><h{height}px>]?")
    assert (media.width, media.height) == (width, height)


def test_video_without_frames_raises(ask):
    for frames in ([], np.zeros((0, 8, 8, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"empty list|none of them 0"):
            ask("video", frames)


def test_video_frames_of_different_sizes_raises(ask):
    with pytest.raises(ValueError, match="one size"):
        ask("video", [np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)])


def test_pixels_with_nan_raises(ask):
    with pytest.raises(ValueError, match="NaN"):
        ask("video", np.full((2, 8, 8, 3), np.nan, np.float32))
    with pytest.raises(ValueError, match="NaN"):
        ask("image", np.full((8, 8, 3), np.nan, np.float32))


# Images of unusual modes and sizes


@pytest.mark.parametrize(
    "mode, values", [("L", np.uint8), ("RGBA", np.uint8), ("LA", np.uint8), ("P", np.uint8), ("1", np.uint8), ("CMYK", np.uint8)]
)
def test_image_of_any_pil_mode_is_decoded(ask, mode, values):
    assert ask("image", Image.new("RGB", (30, 20), "red").convert(mode)).width == 30


def test_image_of_16_bit_is_scaled_and_not_clipped(grounder, folder):
    grey = np.linspace(0, 65535, 40 * 30).reshape(30, 40).astype(np.uint16)
    Image.fromarray(grey).save(folder / "16.png")
    messages = [{"role": "user", "content": [{"type": "image", "path": str(folder / "16.png")}]}]
    pixels = grounder.processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")["pixel_values"]
    assert pixels.min() < -0.9 and pixels.max() > 0.9 and abs(pixels.mean()) < 0.05


@pytest.mark.parametrize("orientation, turned", [(1, False), (3, False), (6, True), (8, True)])
def test_image_with_exif_rotation_has_rotated_width_and_height(ask, folder, orientation, turned):
    picture = Image.fromarray(moving_frames(1, 20, 30)[0])
    exif = picture.getexif()
    exif[0x0112] = orientation
    picture.save(folder / "turned.jpg", exif=exif)
    media = ask("image", str(folder / "turned.jpg"))
    assert (media.width, media.height) == ((20, 30) if turned else (30, 20))


def test_image_of_8k_size_keeps_its_width_and_height(ask):
    media = ask("image", Image.new("RGB", (7680, 4320)), text="What is at <w7680px><h4320px>?")
    assert (media.width, media.height) == (7680, 4320)
    assert media.box((0, 0, 1, 1))["xmax"] == 7680


# Clips


@pytest.mark.parametrize(
    "clip, message",
    [
        ({"start": 1.0, "end": 1.0}, "must be after its start"),
        ({"start": 1.5, "end": 1.0}, "must be after its start"),
        ({"start": -1.0}, "negative"),
        ({"end": 99.0}, "beyond the end: the video lasts 2.000 s"),
        ({"start": 5.0}, "the video lasts 2.000 s"),
        ({"start": math.nan}, "finite"),
        ({"end": "2"}, "finite numbers of seconds"),
        ({"clip": [5, 4]}, "must not be before the first"),
        ({"clip": [0, 99]}, "beyond the video, which has 20 frames"),
        ({"clip": [0.5, 3]}, "whole numbers"),
        ({"clip": [1, 2, 3]}, "must be"),
        ({"clip": 3}, "must be"),
        ({"clip": [0, 3], "start": 0.1}, "not both"),
    ],
)
def test_clip_invalid_raises(ask, video, clip, message):
    with pytest.raises(ValueError, match=message):
        ask("video", video, **clip)


def test_clip_of_one_frame_has_one_time(ask, video):
    media = ask("video", video, clip=[7, 7])
    assert (media.first_frame, media.last_frame, media.time(0.0), media.time(1.0)) == (7, 7, 0.7, 0.7)


def test_clip_in_seconds_without_frame_rate_raises(ask):
    with pytest.raises(ValueError, match="frame rate of the video is unknown"):
        ask("video", moving_frames(5, 8, 8), end=1.0)


# Prompts


@pytest.mark.parametrize(
    "text, message",
    [
        ("When is <t1.7>?", "'<t1.7>' is 1.7"),
        ("When is <t>?", "'<t>' has no number"),
        ("When is <tnan>?", "'<tnan>' is not a finite number"),
        ("When is <w-0.2>?", "'<w-0.2>' is -0.2"),
        ("When is <t0,4>?", "'<t0,4>' is not a coordinate. Write <t0.409>"),
        ("When is <t1:30s>?", "'<t1:30s>' is not a coordinate"),
        ("When is <t0.5 s>?", "'<t0.5 s>' is not a coordinate"),
        ("What is at [<w0.1><h0.2><w0.5>]?", "'[<w0.1><h0.2><w0.5>]' is not a box"),
        ("What is in {<t0.5>}?", "'{<t0.5>}' is not a span"),
        ("<h1>Now</h1>", "'<h1>' is an HTML heading"),
        ("Hi<|im_end|>", "special token '<|im_end|>'"),
        ("<|im_start|>system", "special token '<|im_start|>'"),
        ("<|endoftext|>", "special token '<|endoftext|>'"),
        ("<WIDTH-INPUT>", "'<WIDTH-INPUT>'"),
        ("<vid_patch>", "'<vid_patch>'"),
        ("{<t0.9><t0.1>}", "ends before it starts"),
        ("[<w0.9><h0.1><w0.2><h0.2>]", "is reversed"),
        ("<t2.5s>", "<t2.5s> is outside the clip, which lasts from 0 to 2 seconds"),
        ("See <video> and <video>", "there are 3 <video> and 1 videos"),
        ("See <image>", "there are 1 <image> and 0 images"),
    ],
)
def test_prompt_with_invalid_coordinates_or_tokens_raises(ask, video, text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ask("video", video, text=text)


def test_prompt_empty_raises(grounder, video):
    with pytest.raises(ValueError, match="The prompt is empty"):
        grounder.processor(text="")
    with pytest.raises(ValueError, match="must be a string that is not blank"):
        grounder(video, text="")


def test_prompt_with_fewer_placeholders_than_videos_raises(grounder, video):
    with pytest.raises(ValueError, match=re.escape("there are 1 <video> and 2 videos")):
        grounder.processor(text="<video> a", videos=[video, video])


def test_media_of_unsupported_type_raises(ask):
    for kind in ("video", "image"):
        with pytest.raises(ValueError, match=r"a video must be|Could not make a flat list of images from .*a medium"):
            ask(kind, {"not": "a medium"})
