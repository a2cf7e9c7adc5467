# SPDX-License-Identifier: Apache-2.0
"""Seconds, clips and notes in the metadata of video files."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_st_hf.model.media_info_llava_st import START_SLACK
from llava_st_hf.model.video_metadata_llava_st import LlavaSTVideoMetadata, file_metadata
from llava_st_hf.model.video_processing_llava_st import read_video_metadata
from llava_st_hf.model.video_sampling_llava_st import resolve_clip
from modeling_tests.numbered_videos import read_number, write_numbered
from modeling_tests.video_verdicts import read_raw, video_processor


def metadata_of(times, fps=30.0) -> LlavaSTVideoMetadata:
    metadata = file_metadata(len(times), fps, "pyav", np.array(times), [])
    metadata.width, metadata.height = 128, 64
    return metadata


@given(start=st.floats(0, 100), fps=st.sampled_from([1.0, 24.0, 29.97, 50.0]), count=st.integers(2, 300), data=st.data())
def test_media_info_late_first_frame_converts_positions_and_seconds_inversely(start, fps, count, data):
    metadata = metadata_of(start + np.arange(count) / fps, fps)
    assert metadata.frame_times is None and metadata.start_time == pytest.approx(start, abs=1e-4)
    first = data.draw(st.integers(0, count - 2))
    last = data.draw(st.integers(first + 1, count - 1))
    media = metadata.media(first, last)
    position = data.draw(st.floats(0, 1))
    seconds = media.time(position)
    assert seconds == pytest.approx(start + (first + position * (last - first)) / fps, abs=2e-3)
    assert media.time_position(seconds, "t") == pytest.approx(position, abs=2e-3 * fps / (last - first))
    assert metadata.seconds(first) == pytest.approx(start + first / fps, abs=1e-3)


@given(start=st.floats(0.6, 100), gaps=st.lists(st.floats(0.02, 2.0), min_size=2, max_size=30), data=st.data())
def test_media_info_late_first_frame_and_varying_rate_converts_positions_and_seconds_inversely(start, gaps, data):
    times = start + np.cumsum([0.0, *gaps])
    metadata = metadata_of(times, 0.0)
    media = metadata.media(0, len(times) - 1)
    frame = data.draw(st.integers(0, len(times) - 1))
    assert metadata.seconds(frame) == pytest.approx(times[frame], abs=0.02)
    assert media.time(frame / (len(times) - 1)) == pytest.approx(times[frame], abs=0.02)
    assert media.frame(media.time_position(metadata.seconds(frame), "t")) == frame


def test_file_metadata_jitter_at_low_rate_keeps_times_within_20_ms():
    times = np.arange(20) / 2 + 0.04 * (np.arange(20) % 2)
    metadata = metadata_of(times, 2.0)
    assert np.abs([metadata.seconds(frame) - time for frame, time in enumerate(times)]).max() < 0.02


@pytest.mark.parametrize("fps", [24.0, 30.0, 60.0, 120.0, 240.0])
@pytest.mark.parametrize("start", [0.0, 0.0004])
def test_file_metadata_times_rounded_to_milliseconds_are_a_constant_rate(fps, start):
    metadata = metadata_of(np.round(start + np.arange(300) / fps, 3), fps)
    assert metadata.frame_times is None and metadata.fps == fps


@pytest.mark.parametrize("fps", [30.0, 240.0])
def test_file_metadata_one_frame_two_milliseconds_late_is_a_varying_rate_above_50_fps(fps):
    times = np.arange(300) / fps
    times[100] += 0.002
    assert (metadata_of(times, fps).frame_times is not None) == (fps > 50)


@pytest.mark.parametrize("varies", [False, True])
def test_media_info_time_position_within_slack_before_first_frame_is_0(varies):
    times = 2.0 + np.arange(60) / 30 + (0.3 * (np.arange(60) > 30) if varies else 0)
    media = metadata_of(times).media(0, 59)
    assert (media.frame_times is not None) == varies
    assert media.time_position(2.0, "t") == media.time_position(2.0 - START_SLACK, "t") == 0.0
    for seconds in (2.0 - START_SLACK - 0.01, 0.0, 5.0):
        with pytest.raises(ValueError, match=r"t is outside the clip, which lasts from 2 to"):
            media.time_position(seconds, "t")
    with pytest.raises(ValueError, match="outside the clip"):
        metadata_of(times).media(10, 59).time_position(2.0, "t")  # the clip starts later


@pytest.mark.parametrize("varies", [False, True])
def test_resolve_clip_late_start_counts_seconds_from_the_start_of_the_container(varies):
    times = 2.0 + np.arange(60) / 30 + (0.3 * (np.arange(60) > 30) if varies else 0)
    metadata = metadata_of(times)
    end = metadata.seconds(60)
    assert resolve_clip({"start": 0}, metadata) == resolve_clip({"start": 2.0, "end": end}, metadata) == (0, 59)
    assert resolve_clip({"start": 2.5, "end": 2.6}, metadata) == (15, 17)
    with pytest.raises(ValueError, match=r"ends before the first frame, which is displayed at 2\.000 s"):
        resolve_clip({"start": 0.5, "end": 2.0}, metadata)
    with pytest.raises(ValueError, match="beyond the end"):
        resolve_clip({"start": end}, metadata)


def test_video_processor_truncated_file_notes_are_in_metadata_and_media_info(tmp_path):
    video = write_numbered(tmp_path, "Matroska", "H.264", "B-frames")
    video.path.write_bytes(video.path.read_bytes()[: video.path.stat().st_size // 2])
    frames, metadata = read_raw(video_processor(), video.path, num_frames=7, allow_truncated=True)
    assert [read_number(frame) for frame in frames] == metadata.frames_indices
    assert len(metadata.notes) == 1 and metadata.notes[0].startswith("The video file is cut short")
    assert metadata.media(0, 5).notes == tuple(metadata.notes) and metadata.media(0, 5).to_dict()["notes"]
    with pytest.raises(OSError, match="allow_truncated=True"):
        read_raw(video_processor(), video.path, num_frames=7)
    assert read_video_metadata(video.path, allow_truncated=True).notes == metadata.notes
