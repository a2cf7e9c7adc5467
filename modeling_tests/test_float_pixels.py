# SPDX-License-Identifier: Apache-2.0
"""Value range of float pixels (0 to 1, or 0 to 255) of frames and images."""

import numpy as np
import pytest
import torch

from llava_st_hf import LlavaSTImageProcessor, LlavaSTVideoProcessor
from modeling_tests.media import moving_frames
from modeling_tests.processors import encode, photo, tiny_processor, user


FRAMES = moving_frames(12, 48, 64)


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


def floats(kind):
    """Returns the frames with values from 0 to 1, in different containers."""
    array = FRAMES.astype(np.float32) / 255
    return {
        "array": array,
        "float64": array.astype(np.float64),
        "tensor": torch.from_numpy(array).permute(0, 3, 1, 2),
        "list": list(array),
        "list of tensors": list(torch.from_numpy(array)),
    }[kind]


@pytest.mark.parametrize("kind", ["array", "float64", "tensor", "list", "list of tensors"])
def test_video_processor_float_frames_up_to_1_are_not_divided_by_255(processor, kind):
    expected = processor.video_processor(floats(kind), do_rescale=False, return_tensors="pt").pixel_values_videos
    found = processor.video_processor(floats(kind), return_tensors="pt").pixel_values_videos
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    twice = processor.video_processor(floats(kind), do_rescale=True, return_tensors="pt").pixel_values_videos
    assert twice.max() < -0.98  # the explicit option is applied: nearly black
    scaled = processor.video_processor(FRAMES.astype(np.float32), return_tensors="pt").pixel_values_videos
    torch.testing.assert_close(scaled, expected, atol=1e-5, rtol=0)


def test_video_processor_dark_clip_of_a_float_video_uses_the_range_of_the_video(processor):
    frames = FRAMES.astype(np.float32)
    frames[:6] = 0.5  # nearly black
    clip = {"clips": [{"frames": [0, 5]}], "return_tensors": "pt"}
    for video in (frames, list(frames)):
        assert processor.video_processor(video, **clip).pixel_values_videos.max() < -0.99


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_image_processor_float_images_up_to_1_are_not_divided_by_255(processor, kind):
    image = kind(FRAMES[0].astype(np.float32) / 255)
    eight_bit = kind(FRAMES[1].astype(np.float32))
    options = {"return_tensors": "pt"}
    expected = [processor.image_processor(image, do_rescale=False, **options).pixel_values[0]]
    expected.append(processor.image_processor(FRAMES[1], **options).pixel_values[0])
    found = processor.image_processor([image, eight_bit], **options).pixel_values  # the range is detected per image
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=0)
    assert (found[1] - expected[1]).abs().mean() < 0.01
    assert processor.image_processor(image, do_rescale=True, **options).pixel_values.max() < -0.98
    torch.testing.assert_close(encode(processor, user(photo(image), "What?"))["pixel_values"][0], expected[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "low, high, message",
    [
        (-1.0, 1.0, "float pixels lie between -1 and 1: floats go from 0 to 1 or from 0 to 255; undo a normalisation"),
        (0.0, 300.0, "float pixels lie between 0 and 300"),
        (0.0, 1.2, "float pixels go up to 1.2, a little above 1: .* or pass do_rescale=True"),
        (0.0, float("nan"), "NaN or infinity"),
    ],
)
def test_processors_float_pixels_of_unknown_range_raises(processor, low, high, message):
    frames = np.full((3, 8, 8, 3), 0.25, np.float32)
    frames[1, 2, 3, 0], frames[2, 0, 0, 0] = low, high
    for video in (frames, list(frames)):
        with pytest.raises(ValueError, match=message):
            processor.video_processor(video)
    image = frames[1]
    image[0, 0, 0] = high
    with pytest.raises(ValueError, match=message):
        processor.image_processor(image)
    if high == high:
        processor.image_processor(image, do_rescale=False)
        processor.video_processor(frames, do_rescale=False)


def test_image_processor_float_rounding_beyond_1_is_the_range_0_to_1(processor):
    image = FRAMES[0].astype(np.float32) / 255
    image[0, 0], image[0, 1] = 1 + 1e-6, -1e-6
    assert processor.image_processor(image, return_tensors="pt").pixel_values.max() > 0.5


def test_processors_without_rescale_and_normalize_keep_float_values(processor):
    normalised = 2 * floats("tensor") - 1
    options = {"size": {"height": 48, "width": 64}, "do_rescale": False, "do_normalize": False}
    found = LlavaSTVideoProcessor(**options)(normalised, do_sample_frames=False, return_tensors="pt").pixel_values_videos
    torch.testing.assert_close(found[0], normalised)
    found = LlavaSTImageProcessor(**options)(normalised[0], return_tensors="pt").pixel_values
    torch.testing.assert_close(found[0], normalised[0])
