# SPDX-License-Identifier: Apache-2.0
"""Animated WebP, PNG and AVIF files as videos, with the video processor, the chat template and the pipeline."""

import base64
import functools
import http.server
import io
import threading

import numpy as np
import pytest
import torch
from PIL import Image, features

from llava_st_hf.model.media_kind_llava_st import is_still_image
from llava_st_hf.model.video_frames_llava_st import flatten_videos
from modeling_tests.media import moving_frames, write_animation
from modeling_tests.processors import encode, film, user


FRAMES = moving_frames(12, 48, 64)


@pytest.fixture(scope="module")
def processor(grounder):
    return grounder.processor


@pytest.mark.parametrize("suffix", [".webp", ".png", ".apng"])
def test_animated_image_every_source_kind_gives_the_inputs_of_its_frames(grounder, processor, tmp_path, suffix):
    path = write_animation(tmp_path / f"moving{suffix}", FRAMES, [100] * 12)
    expected = encode(processor, user(film(FRAMES, fps=10), "<t0.5s>"))
    for source in (str(path), path, path.read_bytes(), f"data:;base64,{base64.b64encode(path.read_bytes()).decode()}", [str(path)]):
        found = encode(processor, user(film(source), "<t0.5s>"))
        assert torch.equal(found["pixel_values_videos"], expected["pixel_values_videos"])
        assert (
            torch.equal(found["coordinate_values"].nan_to_num(), expected["coordinate_values"].nan_to_num())
            and found.media_info == expected.media_info
        )
    for source in (str(path), path.read_bytes(), io.BytesIO(path.read_bytes())):
        found = grounder.preprocess(source, text="What?")["model_inputs"]
        assert torch.equal(found["pixel_values_videos"], expected["pixel_values_videos"])


@pytest.mark.parametrize("suffix", [".webp", ".png"])
def test_animation_reader_frame_times_are_cumulated_durations_with_zero_as_100_ms(processor, tmp_path, suffix):
    path = write_animation(tmp_path / f"moving{suffix}", FRAMES[:4], [200, 0, 500, 40])
    metadata = processor.video_processor(str(path), return_metadata=True).video_metadata[0]
    assert metadata.frame_times == pytest.approx([0.0, 0.2, 0.3, 0.8])  # a duration of 0 is 100 ms, as in browsers
    assert (metadata.total_num_frames, metadata.width, metadata.height, metadata.video_backend) == (4, 64, 48, "pillow")


def test_animation_reader_animated_avif_gives_frames_and_times(processor, tmp_path):
    if not features.check("avif"):
        pytest.skip("this PIL writes no AVIF")
    path = write_animation(tmp_path / "moving.avif", FRAMES[:4], [100, 300, 100, 100], quality=100, subsampling="4:4:4")
    assert flatten_videos([str(path)] * 2) == [str(path)] * 2
    found = processor.video_processor(str(path), return_tensors="pt", return_metadata=True)
    assert found.video_metadata[0].frame_times == pytest.approx([0.0, 0.1, 0.4, 0.5])
    expected = processor.video_processor(FRAMES[:4], return_tensors="pt")
    assert (found.pixel_values_videos - expected.pixel_values_videos).abs().mean() < 0.02


def test_animation_reader_partial_frames_are_composited(processor, tmp_path):
    frames = np.repeat(FRAMES[:1], 4, axis=0)
    for index in range(4):
        frames[index, 10 : 10 + 2 * index, 20:30] = 255  # a file stores only the changed region
    for suffix in (".webp", ".png"):
        path = write_animation(tmp_path / f"moving{suffix}", frames, [100] * 4)
        found = processor.video_processor(str(path), clips=[{"frames": [1, 3]}], num_frames=2, return_tensors="pt")
        expected = processor.video_processor(frames, clips=[{"frames": [1, 3]}], num_frames=2, return_tensors="pt")
        assert torch.equal(found.pixel_values_videos, expected.pixel_values_videos)


def test_animation_reader_default_image_of_png_is_not_a_frame(processor, tmp_path):
    pictures = [Image.fromarray(frame) for frame in FRAMES[:3]]
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png", save_all=True, append_images=pictures, default_image=True, duration=100)
    found = processor.video_processor(str(tmp_path / "a.png"), num_frames=3, return_tensors="pt")
    expected = processor.video_processor(FRAMES[:3], num_frames=3, return_tensors="pt")
    assert torch.equal(found.pixel_values_videos, expected.pixel_values_videos)


@pytest.mark.parametrize("suffix", [".webp", ".png", ".gif"])
def test_flatten_videos_still_images_are_frames_and_animated_images_are_videos(grounder, processor, tmp_path, suffix):
    still, moving = tmp_path / f"still{suffix}", write_animation(tmp_path / f"moving{suffix}", FRAMES[:4], [100] * 4)
    Image.fromarray(FRAMES[0]).save(still)
    assert is_still_image(still) and not is_still_image(moving)
    assert is_still_image(still.read_bytes()) and not is_still_image(moving.read_bytes())
    assert flatten_videos([str(still), str(still)]) == [[str(still), str(still)]]
    assert flatten_videos([str(moving), str(moving)]) == [str(moving), str(moving)]
    found = grounder.preprocess(str(still), text="What?")["model_inputs"]
    assert "pixel_values" in found
    found = grounder.preprocess(str(moving), text="What?")
    assert found["model_inputs"]["pixel_values_videos"].shape[1] == 10 and found["context"].medium.last_frame == 3


@pytest.mark.parametrize("suffix", [".webp", ".png", ".avif"])
@pytest.mark.parametrize("share", [0.4, 0.9])
def test_animation_reader_truncated_file_raises_error_with_file_name(processor, tmp_path, suffix, share):
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this PIL writes no AVIF")
    noise = np.random.default_rng(0).integers(0, 255, (4, 48, 64, 3), np.uint8)
    data = write_animation(tmp_path / f"whole{suffix}", noise, [100] * 4).read_bytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(OSError, match=f"cut{suffix}"):
        processor.video_processor(str(path))


def test_video_processor_animation_url_is_read_unless_its_suffix_is_that_of_a_still_image(processor, tmp_path):
    for suffix in ("webp", "png", "apng"):
        write_animation(tmp_path / f"moving.{suffix}", FRAMES[:4], [100] * 4)
    Image.fromarray(FRAMES[0]).save(tmp_path / "still.webp", lossless=True)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        for name, count in (("moving.webp", 4), ("moving.apng", 4), ("still.webp", 1)):
            found = processor.video_processor(f"{url}/{name}", return_tensors="pt", return_metadata=True)
            expected = processor.video_processor(FRAMES[:count], return_tensors="pt")
            assert torch.equal(found.pixel_values_videos, expected.pixel_values_videos)
        with pytest.raises(OSError, match=r"moving\.png is an animated PNG, but its suffix is that of a still image"):
            processor.video_processor(f"{url}/moving.png")
        server.shutdown()
