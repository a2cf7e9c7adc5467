# SPDX-License-Identifier: Apache-2.0
"""
Tests that the public video processor reads videos of many codecs, containers and kinds correctly, or rejects them with their name.

They are a subset of `video_matrix` that includes each codec, container and kind.
"""

import json
from dataclasses import replace

import pytest

from modeling_tests.child_processes import Died, call_each
from modeling_tests.numbered_videos import (
    CONTAINERS,
    KINDS,
    NotEncodable,
    NumberedVideo,
    numbered_frame,
    read_corners,
    read_number,
    write_numbered,
)
from modeling_tests.odd_videos import MATRICES, ODD_VIDEOS, stored_picture, write_odd
from modeling_tests.reference import REFERENCE
from modeling_tests.video_verdicts import Verdict, is_right, judge


MEDIA = REFERENCE / "videos"
SECONDS_PER_FILE = 30.0
# Codec and container of the files read here, in all kinds that can be encoded: the common pairs, and each container at least once. Some
# codecs have one kind only.
PAIRS = (
    ("H.264", "MP4"),
    ("H.264", "MP4, fragmented"),
    ("H.264", "Matroska"),
    ("H.264", "AVI"),
    ("H.264", "MPEG-TS"),
    ("H.264", "FLV"),
    ("HEVC", "MP4, index first"),
    ("HEVC", "Matroska"),
    ("HEVC", "M2TS"),
    ("MPEG-4", "AVI"),
    ("MPEG-4", "3GP"),
    ("MPEG-2", "MPEG-PS"),
    ("MPEG-2", "MPEG-TS"),
    ("MPEG-1", "MPEG-PS"),
    ("VP8", "WebM"),
    ("VP8", "Ogg"),
    ("VP9", "WebM"),
    ("AV1", "MP4"),
    ("ProRes", "MOV"),
    ("Motion JPEG", "AVI"),
    ("WMV 2", "ASF"),
    ("FFV1", "NUT"),
    ("GIF", "GIF"),
    ("APNG", "APNG"),
)


@pytest.mark.parametrize(("codec", "container"), PAIRS)
def test_video_processor_codec_in_container_gives_correct_frames_and_times_for_every_kind(tmp_path, codec, container):
    videos = []
    for kind in KINDS:
        try:
            videos.append(write_numbered(tmp_path, container, codec, kind))
        except NotEncodable:
            continue
    assert videos
    verdicts = {video.path.name: judge(video) for video in videos}
    assert {name: verdict for name, verdict in verdicts.items() if verdict.outcome != "right"} == {}


def test_pairs_cover_every_container_and_at_least_ten_codecs():
    assert {container for _, container in PAIRS} == set(CONTAINERS)
    assert len({codec for codec, _ in PAIRS}) >= 10


@pytest.mark.parametrize("name", [name for name in ODD_VIDEOS if not name.startswith("cut to")])
def test_video_processor_odd_video_is_read_correctly_or_rejected_as_expected(tmp_path, name):
    video = write_odd(tmp_path, name)
    verdict = judge(video)
    assert is_right(video, verdict), verdict


@pytest.mark.parametrize("container", CONTAINERS)
def test_video_processor_truncated_file_raises_error_with_file_name(tmp_path, container):
    for name in ODD_VIDEOS:
        if name.startswith("cut to") and name.endswith(f", {container}"):
            video = write_odd(tmp_path, name)
            verdict = judge(video)
            assert verdict.outcome == "refused", (name, verdict)


def test_judge_wrong_ground_truth_gives_verdict_wrong(tmp_path):
    video = write_numbered(tmp_path, "MP4", "H.264", "no B-frames")
    assert judge(video).outcome == "right"
    later = [time + 0.03 for time in video.times]
    for wrong in (
        replace(video, numbers=[*video.numbers[:40], 41, 41, *video.numbers[42:]]),
        replace(video, numbers=video.numbers[:-1], times=video.times[:-1]),
        replace(video, times=later),
        replace(video, corners=("green", "red", "yellow", "blue")),
        replace(video, width=64, height=128),
        replace(video, right="refused"),
    ):
        verdict = judge(wrong)
        assert verdict.outcome == "wrong" and not is_right(wrong, verdict), wrong
    # The file is valid, so an error for it is wrong.
    assert not is_right(video, Verdict("refused")) and not is_right(video, Died("SIGABRT"))


@pytest.mark.parametrize(("width", "height"), [(128, 64), (96, 64), (127, 65), (176, 144), (64, 32)])
def test_read_number_and_read_corners_return_the_values_of_numbered_frame(width, height):
    for number in (0, 1, 5, 64, 1365, 2730, 4095):
        frame = numbered_frame(number, width, height)
        assert read_number(frame) == number and read_corners(frame) == ("red", "green", "blue", "yellow")


def test_stored_picture_eight_display_matrices_give_eight_different_images():
    stored = {name: stored_picture(numbered_frame(2049), matrix) for name, matrix in MATRICES.items()}
    corners = {name: read_corners(picture) for name, picture in stored.items()}
    assert len(set(corners.values())) == 8 and corners["upright"] == ("red", "green", "blue", "yellow")
    # Rotated to the right for display: the stored bottom-left corner is displayed at the top left.
    assert corners["turned right"] == ("green", "yellow", "red", "blue")


def stored_videos() -> list[NumberedVideo]:
    """The videos of `reference_data/videos`, with their frame numbers, times in seconds and size in pixels."""
    videos = []
    for name, facts in json.loads((MEDIA / "expected.json").read_text()).items():
        if facts["right"] == "refused":
            videos.append(NumberedVideo(MEDIA / name, [], [], right="refused"))
            continue
        numbers = range(facts["first_number"], facts["first_number"] + facts["num_frames"])
        times = [facts["first_time"] + index / facts["rate"] for index in range(facts["num_frames"])]
        corners = tuple(facts["corners"])
        videos.append(NumberedVideo(MEDIA / name, list(numbers), times, facts["width"], facts["height"], corners, facts["right"]))
    return videos


def test_video_processor_stored_videos_of_other_encoders_are_read_correctly_or_rejected():
    # In child processes, because decord crashes the process that opens `sttscount.mp4`.
    videos = stored_videos()
    verdicts = list(call_each(judge, videos, SECONDS_PER_FILE))
    assert len(verdicts) == len(videos) == len(list(MEDIA.iterdir())) - 1
    assert {video.path.name: verdict for video, verdict in verdicts if not is_right(video, verdict)} == {}
