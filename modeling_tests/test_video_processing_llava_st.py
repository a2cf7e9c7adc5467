# SPDX-License-Identifier: Apache-2.0
import functools
import http.server
import json
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.video_utils import VideoMetadata

from llava_st_hf.model import video_decoding_llava_st
from llava_st_hf.model.video_processing_llava_st import (
    LlavaSTVideoMetadata,
    LlavaSTVideoProcessor,
    read_video_metadata,
    resolve_clip,
    sample_frame_indices,
)
from modeling_tests.media import moving_frames, write_audio, write_sideways, write_timed_video, write_video
from modeling_tests.reference import REFERENCE, preprocessing_case


ONE_STEP = 2 / 255
BACKENDS = ["decord", "pyav"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def video(folder):
    """30 frames of 64x48 at 10 frames per second, with a keyframe every 12."""
    return write_video(folder / "video.mp4", moving_frames(30, 48, 64), fps=10)


@pytest.fixture(scope="module")
def decoded(video):
    """All frames of `video`, uint8 (30, 48, 64, 3), decoded by PyAV."""
    reader = video_decoding_llava_st.open_video_file(str(video))
    return torch.cat(list(reader.chunks(list(range(30))))).numpy()


@pytest.fixture
def processor():
    return LlavaSTVideoProcessor(size={"height": 32, "width": 32}, num_frames=8)


def run(processor, videos, **kwargs):
    out = processor(videos, return_tensors="pt", return_metadata=True, **kwargs)
    return out.pixel_values_videos, out.video_metadata


def pil_pixels(frames, size):
    resized = [Image.fromarray(frame).resize((size, size), Image.Resampling.BICUBIC) for frame in frames]
    return ((torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5).float()


def assert_close_to_pil(actual, expected):
    difference = (actual - expected).abs()
    assert difference.max() <= ONE_STEP + 1e-6
    assert difference.mean() < 0.01 * ONE_STEP


# Sampling


def test_sample_frame_indices_equal_recorded_values():
    cases = json.loads((REFERENCE / "metrics" / "text_and_sampling.json").read_text())["frame_indices"]
    for case in cases:
        first, last = case["split"]
        assert sample_frame_indices(first, last, 100) == case["indices"]
        metadata = VideoMetadata(total_num_frames=case["n_frames"])
        sampled = LlavaSTVideoProcessor().sample_frames(metadata, clip={"frames": case["split"]})
        assert sampled.tolist() == [min(index, case["n_frames"] - 1) for index in case["indices"]]


@given(first=st.integers(0, 10**6), length=st.integers(1, 10**6), num_frames=st.integers(2, 300))
def test_sample_frame_indices_are_evenly_spaced_and_include_both_ends(first, length, num_frames):
    last = first + length - 1
    indices = sample_frame_indices(first, last, num_frames)
    assert len(indices) == num_frames and indices[0] == first and indices[-1] == last
    gaps = np.diff(indices)
    assert gaps.min() >= 0 and gaps.max() - gaps.min() <= 2


@pytest.mark.parametrize("seconds, count", [(2.7, 2), (3.0, 3), (0.5, 1)])
def test_sample_frames_at_a_rate_rounds_the_number_of_frames_down(processor, seconds, count):
    metadata = VideoMetadata(total_num_frames=int(seconds * 10), fps=10.0)
    assert len(processor.sample_frames(metadata, fps=1)) == count


def test_sample_frame_indices_one_frame_is_the_first():
    assert sample_frame_indices(5, 9, 1) == [5]


@given(data=st.data(), total=st.integers(1, 5000), fps=st.sampled_from([1.0, 6.105, 23.976, 25.0, 30000 / 1001]))
def test_resolve_clip_seconds_cover_the_displayed_frames(data, total, fps):
    metadata = VideoMetadata(total_num_frames=total, fps=fps)
    start = data.draw(st.floats(0, total / fps, exclude_max=True))
    end = data.draw(st.floats(start, total / fps, exclude_min=True)) if start < total / fps else total / fps
    first, last = resolve_clip({"start": start, "end": end}, metadata)
    assert 0 <= first <= last < total
    assert first / fps <= start + 1e-5 and (last + 1) / fps >= min(end, total / fps) - 1e-5
    assert last / fps <= end + 1e-5


def test_resolve_clip_seconds_of_the_whole_video_give_all_frames():
    metadata = VideoMetadata(total_num_frames=187, fps=6.105)
    for clip in ({"start": 0}, {"end": 187 / 6.105}, {"start": 0.0, "end": 187 / 6.105}, None):
        assert resolve_clip(clip, metadata) == (0, 186)


@pytest.mark.parametrize(
    "clip, message",
    [
        ({"frames": [5, 4]}, "must not be before the first"),
        ({"frames": [-1, 4]}, "negative"),
        ({"frames": [0, 31]}, "30 frames"),
        ({"frames": [30, 30]}, "30 frames"),
        ({"frames": [0.5, 4]}, "whole numbers"),
        ({"frames": [float("nan"), 4]}, "whole numbers"),
        ({"frames": [1, 2, 3]}, "first, last"),
        ({"frames": 3}, "first, last"),
        ({"start": 1.0, "end": 1.0}, "must be after its start"),
        ({"start": 2.0, "end": 1.0}, "must be after its start"),
        ({"start": -1.0, "end": 1.0}, "negative"),
        ({"start": float("nan")}, "finite"),
        ({"end": float("inf")}, "finite"),
        ({"start": 0.0, "end": 3.2}, r"3\.000 s"),
        ({"start": 3.0}, r"3\.0"),
        ({"start": "1"}, "numbers"),
        ({"start": 1.0, "frames": [0, 1]}, "must be"),
        ({}, "must be"),
        ("0-4", "must be"),
    ],
)
def test_video_processor_invalid_clip_raises(processor, video, clip, message):
    with pytest.raises(ValueError, match=message):
        run(processor, str(video), clips=[clip])


def test_video_processor_clip_of_one_frame_repeats_it(processor, video, decoded):
    pixels, metadata = run(processor, str(video), clips=[{"frames": [7, 7]}])
    assert metadata[0].frames_indices == [7] * 8
    assert_close_to_pil(pixels[0], pil_pixels(decoded[[7] * 8], 32))


def test_video_processor_clip_one_frame_beyond_the_end_is_clamped(processor, video):
    _, metadata = run(processor, str(video), clips=[{"frames": [22, 30]}])
    assert metadata[0].frames_indices == [22, 23, 24, 25, 27, 28, 29, 29]


def test_video_processor_clips_are_applied_per_video(processor, video):
    _, metadata = run(processor, [str(video)] * 3, clips=[None, {"frames": [3, 10]}, {"start": 1.0, "end": 1.8}])
    ends = [(item.frames_indices[0], item.frames_indices[-1]) for item in metadata]
    assert ends == [(0, 29), (3, 10), (10, 17)]
    with pytest.raises(ValueError, match="2 videos and 1 `clips`"):
        run(processor, [str(video)] * 2, clips=[None])


# Frame rates that vary

# 20 frames 0.1 s apart, then 8 frames 1 s apart; the last is at 9 s and displayed until 10 s.
VARYING = [*(0.1 * index for index in range(20)), *(2.0 + index for index in range(8))]


@pytest.mark.parametrize("start", [0.0, 0.7])
@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_video_processor_varying_frame_rate_gives_frame_times_and_clips_by_them(processor, folder, suffix, codec, start):
    path = write_timed_video(folder / f"varying.{suffix}", [start + time for time in VARYING], codec=codec)
    both = [run(processor, str(path), video_backend=backend)[1][0] for backend in BACKENDS]
    assert dict(both[0]) == {**both[1], "video_backend": "decord"}
    assert both[0].frame_times == pytest.approx(VARYING, abs=1e-4)
    assert (both[0].duration, both[0].fps) == (pytest.approx(10.0), pytest.approx(2.8))
    assert both[0].frames_indices == sample_frame_indices(0, 27, 8)
    assert both[0].timestamps == pytest.approx([VARYING[index] for index in both[0].frames_indices], abs=1e-4)
    clips = {(2.0, 5.0): (20, 22), (0.5, 2.0): (5, 19), (1.95, 2.05): (19, 20), (8.5, 10.0): (26, 27)}
    for (first, last), frames in clips.items():
        for backend in BACKENDS:
            _, metadata = run(processor, str(path), clips=[{"start": first, "end": last}], video_backend=backend)
            assert metadata[0].clip == frames
    assert run(processor, str(path), fps=1, clips=[{"start": 2.0}])[0].shape[1] == 8
    with pytest.raises(ValueError, match=r"10\.000 s"):
        run(processor, str(path), clips=[{"start": 10.5}])


@pytest.mark.parametrize("rate", [10, 30, 24])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_read_video_metadata_constant_frame_rate_has_no_frame_times(folder, suffix, rate):
    path = write_video(folder / f"constant{rate}.{suffix}", moving_frames(50, 48, 64), fps=rate)
    for backend in BACKENDS:
        metadata = read_video_metadata(path, backend)
        assert metadata.frame_times is None and metadata.fps == rate and metadata.duration == 50 / rate


def test_read_video_metadata_wrong_stated_rate_is_replaced_by_that_of_the_frames(folder):
    path = write_timed_video(folder / "clock.mkv", [0.1 * index for index in range(20)])  # the file states 1000
    for backend in BACKENDS:
        metadata = read_video_metadata(path, backend)
        assert metadata.frame_times is None and metadata.fps == pytest.approx(10.0) and metadata.duration == pytest.approx(2.0)


@given(data=st.data(), gaps=st.lists(st.floats(0.01, 3.0), min_size=1, max_size=30))
def test_resolve_clip_seconds_cover_the_displayed_frames_at_varying_rate(data, gaps):
    times = [0.0, *np.cumsum(gaps).tolist()]
    duration = times[-1] + gaps[-1]
    metadata = LlavaSTVideoMetadata(len(times), len(times) / duration, frame_times=times)
    assert resolve_clip({"start": 0.0}, metadata) == resolve_clip({"end": duration}, metadata) == (0, len(times) - 1)
    start = data.draw(st.floats(0, duration - 0.005))
    end = data.draw(st.floats(start + 0.002, duration))
    first, last = resolve_clip({"start": start, "end": end}, metadata)
    assert 0 <= first <= last < len(times)
    assert times[first] <= start + 2e-3 and [*times, duration][last + 1] >= end - 2e-3 and times[last] <= end


def test_video_processor_clip_in_seconds_without_frame_rate_raises(processor):
    frames = moving_frames(10, 16, 16)
    with pytest.raises(ValueError, match="frame rate"):
        run(processor, frames, clips=[{"start": 0.1}])
    metadata = [{"fps": 5.0}]
    _, metadata = run(processor, frames, clips=[{"start": 1.0}], video_metadata=metadata)
    assert metadata[0].frames_indices[0] == 5


# Pixels


@pytest.mark.parametrize("case", range(3))
def test_video_processor_pixels_are_close_to_recorded_values(case):
    frames, expected = preprocessing_case(case)
    pixels, _ = run(LlavaSTVideoProcessor(), frames, do_sample_frames=False)
    assert_close_to_pil(pixels[0, :, :, ::5, ::5], expected)


def test_video_processor_defaults_give_100_frames_of_384_pixels():
    pixels, metadata = run(LlavaSTVideoProcessor(), moving_frames(3, 24, 20))
    assert pixels.shape == (1, 100, 3, 384, 384) and pixels.dtype == torch.float32
    assert metadata[0].frames_indices == sample_frame_indices(0, 2, 100)


@pytest.mark.parametrize("backend", BACKENDS)
def test_video_processor_file_gives_pixels_and_metadata(processor, video, decoded, backend):
    pixels, metadata = run(processor, str(video), video_backend=backend)
    indices = sample_frame_indices(0, 29, 8)
    assert_close_to_pil(pixels[0], pil_pixels(decoded[indices], 32))
    assert metadata == [LlavaSTVideoMetadata(30, 10.0, 64, 48, 3.0, backend, indices, clip=(0, 29))]
    assert dict(read_video_metadata(video, backend)) == {**metadata[0], "frames_indices": None, "clip": None}


@pytest.mark.parametrize("frames_and_size", [(1, (48, 64)), (3, (96, 54)), (5, (77, 333)), (2, (400, 500))])
@pytest.mark.parametrize("backend", BACKENDS)
def test_video_processor_short_odd_sized_and_portrait_videos_are_close_to_pil(folder, frames_and_size, backend):
    count, (height, width) = frames_and_size
    path = write_video(folder / f"{count}.mp4", moving_frames(count, height, width))
    reader = video_decoding_llava_st.open_video_file(str(path), "decord")
    decoded = torch.cat(list(reader.chunks(list(range(count))))).numpy()
    assert np.abs(decoded.astype(int) - moving_frames(count, height, width)).mean() < 10
    pixels, metadata = run(LlavaSTVideoProcessor(num_frames=7), str(path), video_backend=backend)
    assert (metadata[0].total_num_frames, metadata[0].height, metadata[0].width) == (count, height, width)
    assert_close_to_pil(pixels[0], pil_pixels(decoded[metadata[0].frames_indices], 384))


def test_video_processor_backends_give_equal_frames_with_reordered_frames(folder):
    path = write_video(folder / "h264.mp4", moving_frames(60, 48, 64), codec="libx264", options={"movflags": "faststart"})
    processor = LlavaSTVideoProcessor(size={"height": 32, "width": 32})
    for clip in (None, {"frames": [13, 58]}, {"frames": [59, 59]}):
        both = [run(processor, str(path), clips=[clip], video_backend=backend)[0] for backend in BACKENDS]
        assert torch.equal(*both)


def test_video_processor_chunk_size_does_not_change_pixels(processor, video, monkeypatch):
    expected, _ = run(processor, str(video))
    monkeypatch.setattr(video_decoding_llava_st, "CHUNK_BYTES", 1)
    for backend in BACKENDS:
        assert torch.equal(run(processor, str(video), video_backend=backend)[0], expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_video_processor_rotated_phone_video_is_turned_upright(processor, folder, video, decoded, backend):
    path = write_sideways(folder / "sideways.mp4", video)
    pixels, metadata = run(processor, str(path), video_backend=backend)
    assert (metadata[0].height, metadata[0].width) == (64, 48)
    upright = np.rot90(decoded[metadata[0].frames_indices], -1, axes=(1, 2)).copy()
    assert_close_to_pil(pixels[0], pil_pixels(upright, 32))


def test_video_processor_8k_frame_is_resized_correctly(folder):
    # The frame is smooth, because encoding is lossy and the test compares with the original.
    row, column = np.ogrid[:4320, :7680]
    frame = np.stack([np.broadcast_to(x, (4320, 7680)) for x in (row // 17, column // 31, (row + column) // 48)], -1)
    path = write_video(folder / "8k.mp4", frame[None].astype(np.uint8), options={"movflags": "faststart"})
    pixels, metadata = run(LlavaSTVideoProcessor(num_frames=2), str(path))
    assert pixels.shape == (1, 2, 3, 384, 384) and (metadata[0].height, metadata[0].width) == (4320, 7680)
    assert (pixels[0] - pil_pixels(frame[None].astype(np.uint8), 384)).abs().mean() < 3 * ONE_STEP


# Kinds of input


def test_video_processor_every_input_kind_gives_the_same_pixels(processor, video, decoded, folder):
    expected, _ = run(processor, str(video))
    paths = []
    for index, frame in enumerate(decoded):
        paths.append(str(folder / f"frame{index}.png"))
        Image.fromarray(frame).save(paths[-1])
    floats = decoded.astype(np.float32)
    pictures = [Image.fromarray(frame) for frame in decoded]
    ways = [video, video.as_uri(), decoded, torch.from_numpy(decoded), decoded.transpose(0, 3, 1, 2), list(decoded), pictures]
    ways += [paths, [str(video)], [[str(video)]], [pictures], [[pictures]], [[[*paths]]], decoded[None], decoded[:, ::-1][:, ::-1]]
    for way in ways:
        pixels, metadata = run(processor, way)
        torch.testing.assert_close(pixels, expected)
        assert (metadata[0].total_num_frames, metadata[0].height, metadata[0].width) == (30, 48, 64)
        assert metadata[0].frames_indices == sample_frame_indices(0, 29, 8)
    pixels, _ = run(processor, floats)
    torch.testing.assert_close(pixels, expected, atol=2 * ONE_STEP, rtol=0)
    pixels, _ = run(processor, floats / 255, do_rescale=False)
    torch.testing.assert_close(pixels, expected, atol=2 * ONE_STEP, rtol=0)


def test_video_processor_url_is_downloaded(processor, video, folder):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert torch.equal(run(processor, f"{url}/video.mp4")[0], run(processor, str(video))[0])
        with pytest.raises(OSError, match=r"absent\.mp4"):
            run(processor, f"{url}/absent.mp4")
        server.shutdown()


def test_video_processor_batch_of_files_and_frames_is_accepted(processor, video, decoded):
    pixels, metadata = run(processor, [str(video), decoded, list(decoded)])
    assert pixels.shape == (3, 8, 3, 32, 32)
    assert [item.video_backend for item in metadata] == ["pyav", None, None]


def test_video_processor_frames_without_metadata_have_no_frame_rate(processor):
    _, metadata = run(processor, moving_frames(10, 20, 30))
    assert metadata == [LlavaSTVideoMetadata(10, None, 30, 20, None, None, sample_frame_indices(0, 9, 8), clip=(0, 9))]


def test_video_processor_given_metadata_is_used_and_not_modified(processor):
    given = VideoMetadata(total_num_frames=10, fps=5.0)
    _, metadata = run(processor, moving_frames(10, 20, 30), video_metadata=given)
    assert metadata[0].duration == 2.0 and given.frames_indices is None


def test_video_processor_presampled_frames_keep_their_frames_indices(processor):
    frames = moving_frames(4, 20, 30)
    given = [{"total_num_frames": 100, "fps": 10.0, "frames_indices": [0, 33, 66, 99]}]
    _, metadata = run(processor, frames, video_metadata=given, do_sample_frames=False)
    assert metadata[0].frames_indices == [0, 33, 66, 99] and metadata[0].duration == 10.0
    _, metadata = run(processor, frames, video_metadata=given, num_frames=2)
    assert metadata[0].frames_indices == [0, 99]
    with pytest.raises(ValueError, match="frames sampled before"):
        run(processor, frames, video_metadata=given, clips=[{"frames": [0, 3]}])
    with pytest.raises(ValueError, match="100 frames and the video has 4"):
        run(processor, frames, video_metadata=[{"total_num_frames": 100}])
    with pytest.raises(ValueError, match="one per video"):
        run(processor, [frames, frames], video_metadata=[{"total_num_frames": 4}])


def test_video_processor_given_frames_indices_are_used_for_any_total_num_frames(processor):
    frames = moving_frames(20, 20, 30)
    for total in ({}, {"total_num_frames": 20}, {"total_num_frames": 200}):
        given = [{"fps": 10.0, "frames_indices": list(range(50, 70)), **total}]
        _, metadata = run(processor, frames, video_metadata=given)
        assert metadata[0].clip == (50, 69) and metadata[0].given_frames is None
        assert metadata[0].frames_indices == sample_frame_indices(50, 69, 8)
        assert run(processor, frames, video_metadata=given, fps=2)[0].shape[1] == 4
    _, metadata = run(processor, frames[:4], video_metadata=[{"fps": 10.0, "frames_indices": np.array([0, 10, 20, 90])}])
    assert metadata[0].clip == (0, 90) and metadata[0].given_frames == [0, 10, 20, 90]


def test_video_processor_given_frame_times_determine_clip_duration_and_rate(processor):
    times = [0.0, 0.1, 0.2, 1.2]
    _, (metadata,) = run(processor, moving_frames(4, 8, 8), video_metadata={"frame_times": times}, clips=[{"start": 0.15}])
    assert metadata.clip == (1, 3) and metadata.duration == pytest.approx(2.2) and metadata.fps == pytest.approx(4 / 2.2)
    given = {"frame_times": times, "frames_indices": [1, 3], "total_num_frames": 4}
    assert run(processor, moving_frames(2, 8, 8), video_metadata=given, fps=5)[0].shape[1] == 10


def test_video_processor_returned_metadata_is_accepted_as_input(processor, video, decoded):
    _, (metadata,) = run(processor, str(video), clips=[{"frames": [5, 8]}])
    frames = decoded[metadata.frames_indices]  # some are repeated
    _, (again,) = run(processor, frames, video_metadata=metadata)
    assert again.frames_indices == metadata.frames_indices and again.clip == metadata.clip


@pytest.mark.parametrize(
    "metadata, message",
    [
        ({"fps": float("nan")}, "fps must be .* above 0, got nan"),
        ({"fps": float("inf")}, "fps must be .* above 0, got inf"),
        ({"fps": 0}, "fps must be .* above 0, got 0"),
        ({"fps": -2.0}, r"fps must be .* above 0, got -2\.0"),
        ({"fps": "2"}, "fps must be .* above 0, got '2'"),
        ({"fps": True}, "fps must be .* above 0, got True"),
        ({"fsp": 2}, r"unknown key 'fsp' \(2\)"),
        (3, "must be a list"),
        ([3], "dictionary"),
        ({"total_num_frames": 4.5}, r"total_num_frames .* got 4\.5"),
        ({"frames_indices": [0, 2, 1, 3]}, r"must ascend .* got \[0, 2, 1, 3\]"),
        ({"frames_indices": [-1, 2, 3, 4]}, "must ascend"),
        ({"frames_indices": [0, 1, 2]}, "3 frames_indices and the video has 4"),
        ({"frames_indices": [0, 1, 2, 3.5]}, "whole numbers"),
        ({"frames_indices": [0, 1, 2, 9], "total_num_frames": 8}, "go to 9 and total_num_frames is 8"),
        ({"frame_times": [0.0, 1.0]}, "4 ascending numbers .* got 2 numbers"),
        ({"frame_times": [0.0, 2.0, 1.0, 3.0]}, "must be 4 ascending numbers"),
    ],
)
def test_video_processor_invalid_metadata_raises(processor, metadata, message):
    with pytest.raises(ValueError, match=message):
        run(processor, moving_frames(4, 8, 8), video_metadata=metadata)


@pytest.mark.parametrize("num_frames", [0, -1, "5", 2.5, True, float("nan")])
def test_video_processor_invalid_num_frames_raises(processor, num_frames):
    message = f"num_frames must be a whole number of at least 1, got {num_frames!r}"
    with pytest.raises(ValueError, match=message):
        run(processor, moving_frames(4, 8, 8), num_frames=num_frames)
    with pytest.raises(ValueError, match=message):
        processor.sample_frames(VideoMetadata(10), num_frames=num_frames)
    processor.num_frames = num_frames
    with pytest.raises(ValueError, match="num_frames"):
        processor.sample_frames(VideoMetadata(10))


@pytest.mark.parametrize("fps", [0, -1, "2", float("nan"), float("inf")])
def test_video_processor_invalid_fps_raises(processor, fps):
    with pytest.raises(ValueError, match=f"fps must be a finite number of frames per second above 0, got {fps!r}"):
        run(processor, moving_frames(4, 8, 8), fps=fps, video_metadata=[{"fps": 2}])


@pytest.mark.parametrize("clips", [{"frames": [0, 1]}, "0-1", ({"frames": [0, 1]},), 3])
def test_video_processor_clips_not_a_list_raises(processor, clips):
    with pytest.raises(ValueError, match="`clips` must be a list, one per video"):
        run(processor, moving_frames(4, 8, 8), clips=clips)


def test_video_processor_without_sampling_keeps_every_frame(processor, video):
    pixels, metadata = run(processor, str(video), do_sample_frames=False)
    assert pixels.shape[1] == 30 and metadata[0].frames_indices == list(range(30))
    _, metadata = run(processor, str(video), do_sample_frames=False, clips=[{"frames": [28, 30]}])
    assert metadata[0].frames_indices == [28, 29]


def test_video_processor_fps_samples_frames_per_second(processor, video):
    assert run(processor, str(video), fps=2)[0].shape[1] == 6
    assert run(processor, str(video), fps=2, clips=[{"start": 1.0, "end": 2.0}])[0].shape[1] == 2
    with pytest.raises(ValueError, match="not both"):
        run(processor, str(video), fps=2, num_frames=3)
    with pytest.raises(ValueError, match="frame rate"):
        run(processor, moving_frames(3, 8, 8), fps=2)


def test_video_processor_unequal_frame_counts_raise_in_a_tensor_and_pass_as_a_list(processor):
    videos = [moving_frames(3, 8, 8), moving_frames(4, 8, 8)]
    with pytest.raises(ValueError, match="do_sample_frames=True"):
        run(processor, videos, do_sample_frames=False)
    listed = processor(videos, do_sample_frames=False).pixel_values_videos
    assert [len(pixels) for pixels in listed] == [3, 4]


def test_video_processor_return_tensors_np_gives_arrays(processor):
    pixels = processor(moving_frames(3, 8, 8), return_tensors="np").pixel_values_videos
    assert isinstance(pixels, np.ndarray) and pixels.shape == (1, 8, 3, 32, 32)


# Bad input


def bad_file(folder, kind):
    path = folder / f"{kind}.mp4"
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("this is no video " * 100)
    elif kind == "audio":
        write_audio(path)
    elif kind == "folder":
        path.mkdir(exist_ok=True)
    elif kind in ("truncated", "headless"):
        options = {"movflags": "faststart"} if kind == "truncated" else {}
        write_video(path, moving_frames(30, 48, 64), options=options)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * 0.6)])
    elif kind == "corrupt":
        write_video(path, moving_frames(30, 48, 64), codec="libx264")
        data = bytearray(path.read_bytes())
        middle = len(data) // 2
        data[middle - 300 : middle + 300] = bytes(600)
        path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "audio", "folder", "truncated", "headless", "corrupt"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_video_processor_unreadable_file_raises_error_with_file_name(processor, folder, kind, backend):
    path = bad_file(folder, kind)
    with pytest.raises(OSError, match=f"{kind}.mp4"):
        run(processor, [str(path)], video_backend=backend)
    if kind == "missing":
        with pytest.raises(FileNotFoundError):
            read_video_metadata(path)


@pytest.mark.parametrize(
    "videos, message",
    [
        (np.full((2, 8, 8, 3), np.nan), "NaN"),
        (torch.full((2, 3, 8, 8), float("inf")), "infinity"),
        (np.zeros((0, 8, 8, 3), dtype=np.uint8), "0"),
        (np.zeros((2, 8, 8, 7), dtype=np.uint8), "channels"),
        (np.zeros(5, dtype=np.uint8), "needs a height"),
        (np.full((2, 8, 8, 3), 256), "0 to 255"),
        ([Image.new("RGB", (8, 8)), Image.new("RGB", (9, 8))], "one size"),
        ([], "empty list"),
        (3, "must be a path"),
    ],
)
def test_video_processor_invalid_frames_raise(processor, videos, message):
    with pytest.raises(ValueError, match=message):
        run(processor, videos)


def test_video_processor_missing_frame_file_raises_error_with_file_name(processor):
    with pytest.raises(FileNotFoundError, match=r"frame7\.jpg"):
        run(processor, ["frame7.jpg"])


def test_video_processor_default_backend_is_pyav_without_decord_installed(processor, video, monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)
    assert run(processor, str(video))[1][0].video_backend == "pyav"


@pytest.mark.parametrize(("backend", "module", "message"), [("pyav", "av", "pip install av"), ("decord", "decord", "pip install decord2")])
def test_video_processor_backend_not_installed_raises_import_error(processor, video, monkeypatch, backend, module, message):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=message):
        run(processor, str(video), video_backend=backend)


def test_video_processor_unknown_backend_raises(processor, video):
    with pytest.raises(ValueError, match="'opencv'"):
        run(processor, str(video), video_backend="opencv")


def test_video_processor_save_and_load_keeps_settings(tmp_path):
    LlavaSTVideoProcessor(num_frames=12, size={"height": 28, "width": 42}).save_pretrained(tmp_path)
    loaded = LlavaSTVideoProcessor.from_pretrained(tmp_path)
    assert loaded.num_frames == 12 and dict(loaded.size) == {"height": 28, "width": 42}
