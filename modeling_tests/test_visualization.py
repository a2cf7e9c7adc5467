# SPDX-License-Identifier: Apache-2.0
"""Annotated videos, contact sheets, labelled images and timelines: what is drawn where, on the pixels of the files that are written."""

import ast
import re
from functools import partial
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest
from transformers.utils import logging

import llava_st_hf
from llava_st_hf import Box, Event, Grounding, MediaInfo, draw
from llava_st_hf.model.video_reading_llava_st import read_video
from llava_st_hf.visualization import draw_spans, draw_timeline, draw_video, make_tracks, timeline, writer
from llava_st_hf.visualization.boxes import DrawnBox, draw_labelled, draw_lines, place
from llava_st_hf.visualization.colours import ANSWER_COLOUR, PALETTE, TRUTH_COLOUR, line_width_for
from llava_st_hf.visualization.fonts import printable
from llava_st_hf.visualization.images import caption_runs
from llava_st_hf.visualization.painter import FramePainter, clock_text, span_rows
from llava_st_hf.visualization.sheets import moments
from llava_st_hf.visualization.text import shortened, text_mask, text_width, wrap
from llava_st_hf.visualization.tracks import decode_mask
from modeling_tests.media import moving_frames, write_cut, write_timed_video, write_video
from modeling_tests.numbered_videos import NumberedVideo, read_corners, read_number, write_numbered
from modeling_tests.odd_videos import ODD_VIDEOS, write_one


GREY = 90


def contents(path, allow_truncated: bool = False) -> tuple[np.ndarray, np.ndarray, MediaInfo]:
    """Frames (num_frames, height, width, 3), their seconds, and the media info of a whole video."""

    def read(reader):
        frames = np.concatenate([chunk.numpy() for chunk in reader.chunks(list(range(reader.metadata.total_num_frames)))])
        times = [reader.metadata.seconds(number) for number in range(len(frames))]
        return frames, np.array(times), reader.metadata.media(0, len(frames) - 1)

    return read_video(str(path), read, allow_truncated=allow_truncated)


def grey_video(path: Path, num_frames: int = 12, width: int = 160, height: int = 128, fps: int = 10, **kwargs) -> MediaInfo:
    """Writes a video of one colour."""
    write_video(path, np.full((num_frames, height, width, 3), GREY, np.uint8), fps=fps, codec="libx264", **kwargs)
    return MediaInfo("video", width, height, float(fps), 0, num_frames - 1, total_num_frames=num_frames, duration=num_frames / fps)


def answer(media: MediaInfo, *events: Event, **known) -> Grounding:
    return Grounding(events=events, media=media, **known)


def moving_event(media: MediaInfo, first: int, last: int, caption: str | None = None, score: float | None = None) -> Event:
    """An event from frame `first` to `last`, whose box moves 40 pixels to the right and is known in these two frames only."""
    boxes = [
        Box(20 + 40 * number, 30, 60 + 40 * number, 80, time=media.seconds_of_frame(frame), frame=frame)
        for number, frame in enumerate((first, last))
    ]
    return Event(caption, boxes[0].time, boxes[1].time, tuple(boxes), score)


def is_colour(pixels: np.ndarray, colour: tuple[int, int, int], tolerance: int = 60) -> np.ndarray:
    """Where pixels (…, 3) have a colour, up to the loss of the encoder."""
    return (abs(pixels.astype(int) - np.array(colour)) <= tolerance).all(axis=-1)


def coloured_frames(frames: np.ndarray, colour: tuple[int, int, int], bar: int = 30) -> list[int]:
    """Indices of the frames with a colour above the time bar, whose height is at most `bar` pixels."""
    return [number for number, frame in enumerate(frames) if is_colour(frame[:-bar], colour).sum() > 20]


@pytest.fixture
def notes(monkeypatch):
    """The notes that `draw` logs."""
    logged: list[str] = []
    monkeypatch.setattr(logging.get_logger("llava_st_hf.visualization.drawing"), "warning", logged.append)
    return logged


# Annotated videos: frames, times, size, sound


CASES = {
    "rotated phone video": (".mp4", partial(ODD_VIDEOS["display matrix in MP4, turned left"][1])),
    "mirrored, by message": (".mkv", ODD_VIDEOS["orientation message, HEVC in MKV, transposed"][1]),
    "gap of 2 s": (".mp4", ODD_VIDEOS["gap of 2 s, MP4"][1]),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_draw_video_frames_times_and_orientation_are_those_of_the_original(tmp_path, name, suffix):
    ending, write = CASES[name]
    check_copy(write(path=tmp_path / f"in{ending}"), tmp_path / f"out{suffix}")


@pytest.mark.parametrize(
    ("container", "codec", "kind", "suffix"),
    [
        ("MP4", "H.264", "trimmed", ".mp4"),  # an edit list hides the first frames
        ("MP4", "H.264", "late start", ".mov"),  # the sound starts before the picture
        ("Matroska", "H.264", "variable rate", ".mp4"),
        ("Matroska", "H.264", "open GOP", ".webm"),
        ("GIF", "GIF", "no B-frames", ".mp4"),
    ],
)
def test_draw_video_containers_and_codecs_keep_frames_and_times(tmp_path, container, codec, kind, suffix):
    check_copy(write_numbered(tmp_path, container, codec, kind), tmp_path / f"out{suffix}")


def check_copy(video: NumberedVideo, output: Path) -> None:
    original, times, media = contents(video.path)
    assert draw(str(video.path), answer(media), output) == str(output)
    frames, copied, _ = contents(output)
    assert [read_number(frame) for frame in frames] == video.numbers
    assert frames.shape == original.shape and read_corners(frames[0]) == read_corners(original[0])
    assert np.abs(copied - times).max() < 0.0016  # Matroska rounds to milliseconds


def sound_packets(path: Path) -> list[tuple[float, bytes]]:
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return []
        start = (container.start_time or 0) / 1e6
        return [(float(packet.pts * packet.time_base) - start, bytes(packet)) for packet in container.demux(audio=0) if packet.size]


@pytest.mark.parametrize(
    ("sound", "source", "suffix", "is_kept"),
    [
        ("aac", "in.mp4", ".mp4", True),
        ("aac", "in.mp4", ".mkv", True),
        ("aac", "in.mp4", ".webm", False),
        ("libopus", "in.mkv", ".webm", True),
        ("mp2", "in.ts", ".mp4", True),  # its clock starts at 1.4 s
    ],
)
def test_draw_video_sound_is_copied_where_the_container_allows_it_else_noted(tmp_path, notes, sound, source, suffix, is_kept):
    source = tmp_path / source
    write_one(source, sound=(sound, 2.0))
    draw(str(source), answer(contents(source)[2]), tmp_path / f"out{suffix}")
    before, after = sound_packets(source), sound_packets(tmp_path / f"out{suffix}")
    assert len(before) > 20
    if not is_kept:
        assert after == [] and any(".webm file cannot have aac audio. A .mp4 or .mkv file may have it" in note for note in notes)
        return
    assert not any("sound" in note for note in notes)
    start = len(before) - len(after)  # what the encoder adds before the sound is not kept in Matroska
    assert start <= 1 and [data for _, data in before[start:]] == [data for _, data in after]
    assert max(abs(a - b) for (a, _), (b, _) in zip(before[start:], after, strict=True)) < 0.003


def test_draw_video_pixel_aspect_and_colour_tags_are_kept(tmp_path):
    write_one(tmp_path / "in.mkv", pixel_aspect=2, numbers=range(5))
    draw(str(tmp_path / "in.mkv"), answer(contents(tmp_path / "in.mkv")[2]), tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.sample_aspect_ratio == 2 and stream.codec_context.pix_fmt == "yuv420p"


def test_draw_video_odd_size_and_ten_bits_are_noted_and_keep_all_pixels(tmp_path, notes):
    frames = np.full((4, 63, 95, 3), GREY, np.uint8)
    frames[:, -1], frames[:, :, -1] = 250, 250
    with av.open(str(tmp_path / "in.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 95, 63, "yuv444p10le"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    draw(str(tmp_path / "in.mkv"), answer(contents(tmp_path / "in.mkv")[2]), tmp_path / "out.mp4")
    drawn, _, _ = contents(tmp_path / "out.mp4")
    assert drawn.shape[1:3] == (64, 96) and drawn[:, 62:, :90].mean() > 200 and drawn[:, :60, :90].mean() < 110
    assert any("needs even sizes" in note for note in notes) and any("8 bits" in note for note in notes)
    draw(str(tmp_path / "in.mkv"), answer(contents(tmp_path / "in.mkv")[2]), tmp_path / "out.webm")
    assert contents(tmp_path / "out.webm")[0].shape[1:3] == (63, 95)


def test_draw_video_truncated_original_is_read_if_the_answer_was_made_of_it(tmp_path):
    source = write_cut(tmp_path / "cut.mkv")
    frames, _, media = contents(source, allow_truncated=True)
    draw(str(source), answer(media, moving_event(media, 2, 5)), tmp_path / "out.mp4")
    assert len(contents(tmp_path / "out.mp4")[0]) == len(frames) < 20
    with pytest.raises(OSError, match="cut short"):
        draw(str(source), answer(MediaInfo(**{**media.to_dict(), "notes": ()})), tmp_path / "out.mp4")


# Annotated videos: what is drawn


def test_draw_video_boxes_are_on_every_frame_of_the_span_and_no_other(tmp_path):
    media = grey_video(tmp_path / "in.mp4")
    draw(tmp_path / "in.mp4", answer(media, moving_event(media, 3, 7, "a dog")), tmp_path / "out.mp4")
    frames, _, _ = contents(tmp_path / "out.mp4")
    assert coloured_frames(frames, ANSWER_COLOUR) == [3, 4, 5, 6, 7]
    for frame in range(3, 8):  # the left side moves by 10 pixels a frame
        side = np.flatnonzero(is_colour(frames[frame, 60], ANSWER_COLOUR, 90))
        assert abs(side.min() - (20 + 10 * (frame - 3))) <= 2
    for frame in (0, 2, 8, 11):
        assert abs(frames[frame, :-30].astype(int) - GREY).max() <= 4


def test_draw_video_interpolated_boxes_have_thin_sides():
    media = MediaInfo("video", 640, 480, 10.0, 0, 11, total_num_frames=12)
    pixels = []
    for frame in (3, 5):
        pixels.append(np.full((480, 640, 3), GREY, np.uint8))
        FramePainter(make_tracks([answer(media, moving_event(media, 3, 7))], None, None), 640, 480, 1, (0, 1.2), 12).paint(
            pixels[-1], frame, 0
        )
    lines = [is_colour(drawn[:400], ANSWER_COLOUR, 0).sum() for drawn in pixels]
    assert 0 < lines[1] < 0.75 * lines[0]
    # 5 pixels above the lower end of the left side, at 20 and 40 pixels, is the corner of full width.
    corners = [is_colour(drawn[75, left - 5 : left + 6], ANSWER_COLOUR, 0).sum() for drawn, left in zip(pixels, (20, 40), strict=True)]
    assert corners[0] == corners[1]


def test_draw_video_variable_rate_boxes_follow_the_times_of_frames(tmp_path):
    times = [0.0, 0.1, 0.2, 1.2, 1.3, 1.4]
    source = write_timed_video(tmp_path / "in.mkv", times)
    _, _, media = contents(source)
    event = Event(None, 0.2, 1.3, (Box(5, 5, 25, 25, time=0.2, frame=2), Box(35, 15, 55, 35, time=1.3, frame=4)))
    draw(str(source), answer(media, event), tmp_path / "out.mkv", scale=2)
    frames, drawn_times, _ = contents(tmp_path / "out.mkv")
    assert np.abs(drawn_times - times).max() < 0.002 and frames.shape[1:3] == (96, 128)
    draw(str(source), answer(media), tmp_path / "plain.mkv", scale=2)
    changed = abs(frames.astype(int) - contents(tmp_path / "plain.mkv")[0])[:, :80].max(axis=-1) > 60  # above the time bar
    assert [number for number, frame in enumerate(changed) if frame.any()] == [2, 3, 4]
    left = [np.flatnonzero(changed[number].any(axis=0)).min() for number in (2, 3, 4)]
    assert np.allclose(left, [10, 2 * (5 + 30 * 1.0 / 1.1), 70], atol=4)


def test_draw_video_clip_of_frames_in_memory_needs_their_rate(tmp_path):
    frames = np.full((10, 128, 160, 3), GREY, np.uint8)
    media = MediaInfo("video", 160, 128, None, 2, 9, total_num_frames=10)
    boxes = tuple(Box(20, 30, 60, 80, frame=frame) for frame in (4, 6))
    question = answer(media, Event("a dog", boxes=boxes))
    with pytest.raises(ValueError, match="frame rate of the video is unknown"):
        draw(frames, question, tmp_path / "out.mp4")
    assert list(tmp_path.iterdir()) == []
    draw(frames, question, tmp_path / "out.mp4", fps=5)
    drawn, times, _ = contents(tmp_path / "out.mp4")
    assert coloured_frames(drawn, ANSWER_COLOUR) == [4, 5, 6] and times[-1] == pytest.approx(1.8)
    assert (frames == GREY).all()
    with pytest.raises(ValueError, match=r"fps=5 can only be given for frames of unknown rate"):
        draw(frames, answer(MediaInfo("video", 160, 128, 25.0, 0, 9, total_num_frames=10)), tmp_path / "out.mp4", fps=5)
    (tmp_path / "frames").mkdir()
    for number, frame in enumerate(frames):
        PIL.Image.fromarray(frame).save(tmp_path / "frames" / f"{number}.png")
    assert isinstance(draw(tmp_path / "frames", question), PIL.Image.Image)  # a contact sheet needs no rate


def test_draw_video_span_of_one_moment_is_one_frame(tmp_path):
    media = grey_video(tmp_path / "in.mp4")
    moment = Event("a dog", 0.5, 0.5, (Box(20, 30, 60, 80, time=0.5, frame=5),))
    draw(tmp_path / "in.mp4", answer(media, moment), tmp_path / "out.mp4")
    frames, _, _ = contents(tmp_path / "out.mp4")
    assert coloured_frames(frames, ANSWER_COLOUR) == [5]
    red, _, blue = np.moveaxis(frames[0, -30:].astype(int), -1, 0)
    assert (red - blue).max() > 80  # the span in the time bar


def test_draw_video_events_with_the_same_caption_have_their_own_colours(tmp_path):
    media = grey_video(tmp_path / "in.mp4")
    events = [moving_event(media, first, last, "a dog") for first, last in ((1, 3), (6, 9))]
    draw(tmp_path / "in.mp4", answer(media, *events), tmp_path / "out.mp4")
    frames, _, _ = contents(tmp_path / "out.mp4")
    assert coloured_frames(frames, PALETTE[0]) == [1, 2, 3] and coloured_frames(frames, PALETTE[1]) == [6, 7, 8, 9]


def test_draw_video_no_events_is_the_original_and_noted(tmp_path, notes):
    media = grey_video(tmp_path / "in.mp4")
    draw(tmp_path / "in.mp4", answer(media), tmp_path / "out.mp4")
    assert abs(contents(tmp_path / "out.mp4")[0].astype(int) - GREY).max() <= 3
    assert notes == ["The answer has no events: nothing is drawn."]


def test_draw_video_boxes_outside_the_frame_are_noted_and_partly_outside_are_clipped(tmp_path, notes):
    media = grey_video(tmp_path / "in.mp4", num_frames=2)
    events = [
        Event("gone", 0.0, 0.1, (Box(200, 30, 240, 80, time=0.0, frame=0),)),
        Event("half", 0.0, 0.1, (Box(-30, 30, 20, 80, time=0.0, frame=0),)),
    ]
    draw(tmp_path / "in.mp4", answer(media, *events), tmp_path / "out.mp4")
    frame = contents(tmp_path / "out.mp4")[0][0]
    assert is_colour(frame[60, :3], PALETTE[1], 90).any()  # the side at the edge of the frame is visible
    assert not is_colour(frame[40:90, 130:], PALETTE[0], 90).any()
    assert any("[200, 30, 240, 80] of frame 0 is outside the frame" in note for note in notes)


def test_draw_video_small_frames_have_boxes_without_text_unless_enlarged(tmp_path, notes):
    media = grey_video(tmp_path / "in.mp4", width=64, height=48)
    event = Event("a dog", 0.0, 1.1, (Box(20, 10, 40, 30, time=0.0, frame=0),))
    draw(tmp_path / "in.mp4", answer(media, event), tmp_path / "out.mp4")
    assert "scale=3" in notes[0] and is_colour(contents(tmp_path / "out.mp4")[0][0, :40], ANSWER_COLOUR, 90).sum() > 40
    notes.clear()
    draw(tmp_path / "in.mp4", answer(media, event), tmp_path / "out.mp4", scale=4)
    assert contents(tmp_path / "out.mp4")[0].shape[1:3] == (192, 256) and notes == []


# Files


def test_draw_failure_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    media = grey_video(tmp_path / "in.mp4")
    (tmp_path / "out.webm").write_bytes(b"old")

    def fail(source, target):
        assert len(contents(source)[0]) == 12 and Path(source).parent == Path(target).parent
        raise KeyboardInterrupt

    monkeypatch.setattr(writer.os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        draw(tmp_path / "in.mp4", answer(media), tmp_path / "out.webm")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.webm"]
    assert (tmp_path / "out.webm").read_bytes() == b"old"
    monkeypatch.undo()
    draw(tmp_path / "in.mp4", answer(media), tmp_path / "out.webm")
    assert len(contents(tmp_path / "out.webm")[0]) == 12


@pytest.mark.parametrize(
    ("change", "options", "output", "message"),
    [
        ({"width": 320}, {}, "out.mp4", "its width is 320, that of the video to draw on is 160"),
        ({"total_num_frames": 99}, {}, "out.png", "its total_num_frames is 99"),
        ({"last_frame": 30, "total_num_frames": None}, {}, "out.png", "ends at frame 30 of 12"),
        ({}, {}, "out.avi", r"out\.avi' must end with \.mp4"),
        ({}, {}, "in.mp4", "is the medium itself"),
        ({}, {"names": ["a", "b"]}, "out.mp4", "names must have one entry for each of 1 answers"),
        ({}, {"colours": [(0, 0, 300)]}, "out.mp4", r"colours must have .* got \(0, 0, 300\)"),
        ({}, {"scale": -1}, "out.mp4", "scale must be a number above 0"),
        ({}, {"scale": 2}, "out.png", "scale=2 cannot be given for a contact sheet"),
        ({}, {"heading": "x"}, "out.mp4", "heading='x' can only be given for a contact sheet"),
        ({}, {"fps": 0}, "out.mp4", "fps"),
    ],
)
def test_draw_invalid_arguments_raise_before_anything_is_written(tmp_path, change, options, output, message):
    media = grey_video(tmp_path / "in.mp4")
    question = answer(MediaInfo(**{**media.to_dict(), "total_num_frames": 12, **change}))
    with pytest.raises(ValueError, match=message):
        draw(tmp_path / "in.mp4", question, tmp_path / output, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_draw_answers_without_or_with_different_media_raise(tmp_path):
    image = MediaInfo("image", 160, 128)
    with pytest.raises(ValueError, match="has no media"):
        draw("in.mp4", {"text": "hello", "events": [], "notes": []})
    with pytest.raises(ValueError, match="about image and video"):
        draw("in.mp4", [answer(image), answer(MediaInfo("video", 160, 128, 10.0))])
    with pytest.raises(ValueError, match="must be an answer"):
        draw("in.mp4", "a dog")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        draw("in.mp4", answer(image), tmp_path / "none" / "out.png")
    with pytest.raises(ValueError, match=r"must end with \.png, \.jpg, \.jpeg for an answer about an image"):
        draw("in.png", answer(image), tmp_path / "out.mp4")
    PIL.Image.new("RGB", (160, 128)).save(tmp_path / "in.png")
    with pytest.raises(ValueError, match=r"in\.png is an image, but the answer is about a video"):
        draw(str(tmp_path / "in.png"), answer(MediaInfo("video", 160, 128, 10.0)), tmp_path / "out.mp4")


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_draw_animation_shows_the_event_with_a_margin(tmp_path, suffix):
    media = grey_video(tmp_path / "in.mp4", num_frames=50)
    draw(tmp_path / "in.mp4", answer(media, moving_event(media, 20, 25, "a dog")), tmp_path / f"out{suffix}")
    frames, times, info = contents(tmp_path / f"out{suffix}")
    assert (info.width, info.height) == (480, 384)
    assert coloured_frames(frames, ANSWER_COLOUR, bar=60) == list(range(7, 13)) and len(frames) == 21  # frames 13 to 33
    assert np.allclose(np.diff(times), 0.1)


# Contact sheets and timelines


@pytest.mark.parametrize(
    ("frames", "first", "last", "expected"),
    [
        (range(20, 31), 0, 99, [("before", 17), *(("within", frame) for frame in (20, 22, 24, 26, 28, 30)), ("after", 33)]),
        (range(0, 50), 0, 49, [("within", frame) for frame in (0, 7, 14, 21, 28, 35, 42, 49)]),
        (range(5, 6), 4, 6, [("before", 4), ("within", 5), ("after", 6)]),
        (range(12, 32), 10, 31, [("before", 10), *(("within", frame) for frame in (12, 15, 18, 22, 25, 28, 31))]),
    ],
)
def test_moments_are_mostly_within_the_event_and_in_the_clip(frames, first, last, expected):
    assert [(moment.place, moment.frame) for moment in moments(frames, first, last, 8)] == expected


def test_draw_sheet_shows_boxes_of_all_answers_and_a_timeline(tmp_path, notes):
    media = grey_video(tmp_path / "in.mp4", num_frames=30)
    answers = [
        answer(media, moving_event(media, 10, 20, score=0.8), query="a dog"),
        answer(media, moving_event(media, 12, 22), query="a dog").to_dict(),
    ]
    sheet = np.array(draw(tmp_path / "in.mp4", answers, colours=[TRUTH_COLOUR, ANSWER_COLOUR], names=["truth", "found"]))
    assert sheet.shape[1] == 4 * 300 + 3 * 6 and notes == []
    cells = [sheet[60:260, 306 * column : 306 * column + 300] for column in range(4)]
    blue, orange = ([bool(is_colour(cell, colour, 40).sum() > 100) for cell in cells] for colour in (TRUTH_COLOUR, ANSWER_COLOUR))
    assert blue == [False, True, True, True] and orange == [False, False, True, True]  # frames 7, 10, 12 and 14
    rails = sheet[-75:]
    spans = [np.flatnonzero(is_colour(rails, colour, 0).any(axis=0)) for colour in (TRUTH_COLOUR, ANSWER_COLOUR)]
    assert spans[1].min() - spans[0].min() == pytest.approx(spans[1].max() - spans[0].max(), abs=2)


def test_draw_sheet_many_events_show_the_first_eight_and_a_note(tmp_path, notes):
    media = grey_video(tmp_path / "in.mp4", num_frames=30)
    events = [moving_event(media, number, number + 5, f"event {number}") for number in range(10)]
    draw(tmp_path / "in.mp4", answer(media, *events), tmp_path / "out.jpg")
    assert any("first 8 events; the answer has 10" in note for note in notes)
    assert PIL.Image.open(tmp_path / "out.jpg").height > 8 * 180


def test_draw_spans_positions_scores_and_empty_rows():
    media = MediaInfo("video", 160, 128, 10.0, 0, 99, total_num_frames=100)
    tracks = make_tracks([answer(media, Event("a dog", 2.0, 4.0, score=0.75), Event("a cat", None, None))], None, None)
    assert [track.title for track in tracks] == ["#1: a dog 0.75", "#2: a cat"]
    drawn = np.array(draw_spans(tracks, (0.0, 10.0), 600))
    row = drawn[3 + 9]
    rail = np.flatnonzero(is_colour(row, timeline.RAIL, 0) | is_colour(row, PALETTE[0], 0))
    span = np.flatnonzero(is_colour(row, PALETTE[0], 0))
    length = rail.max() - rail.min() + 1
    assert (span.min() - rail.min()) / length == pytest.approx(0.2, abs=0.01) and len(span) / length == pytest.approx(0.2, abs=0.01)
    assert not is_colour(drawn, PALETTE[1], 0).any()
    assert drawn.shape[1] == 600 and draw_timeline(300, [((0.5, 0.5), ANSWER_COLOUR, "x")]).size == (300, 24)


def test_span_rows_overlapping_spans_are_in_different_rows():
    assert span_rows([(0, 2), (1, 3), (2.5, 4), (3.5, 5)]) == [0, 1, 0, 1]


def test_clock_text_has_minutes_and_hours():
    assert [clock_text(seconds) for seconds in (7.54, 59.96, 67.5, 3661)] == ["7.5 s", "1:00.0", "1:07.5", "1:01:01"]


# Boxes and labels


@pytest.mark.parametrize("background", [(0, 0, 0), (255, 255, 255), ANSWER_COLOUR])
@pytest.mark.parametrize("size", [(64, 48), (1920, 1080), (3840, 2160)])
def test_draw_lines_are_visible_on_any_background_and_size(background, size):
    pixels = np.full((size[1], size[0], 3), background, np.uint8)
    width = line_width_for(*size)
    draw_lines(pixels, (size[0] / 4, size[1] / 4, size[0] / 2, size[1] / 2), ANSWER_COLOUR, width)
    across = pixels[3 * size[1] // 8, : 3 * size[0] // 8]  # over the left side
    changed = np.flatnonzero((across != background).any(axis=1))
    assert width >= size[1] / 300 and len(changed) >= max(2, size[1] / 540)
    before = pixels.copy()
    assert draw_lines(pixels, (size[0] + 5, 0, size[0] + 9, 9), ANSWER_COLOUR, width) is None and (pixels == before).all()


def test_draw_labelled_many_labels_are_in_the_image_and_do_not_overlap():
    image, occupied = (200, 150), []
    for number in range(40):
        box = (number * 7 % 150, number * 11 % 120, number * 7 % 150 + 30, number * 11 % 120 + 25)
        found = place(box, 50, 16, image, occupied)
        if found is not None:
            left, top, right, bottom = found
            assert 0 <= left < right <= 200 and 0 <= top < bottom <= 150
            assert not any(left < r and x < right and top < b and y < bottom for x, y, r, b in occupied)
            occupied.append(found)
    assert 15 < len(occupied) < 40  # some have no place
    pixels = np.zeros((150, 200, 3), np.uint8)
    boxes = [DrawnBox((50, 50, 90, 90), PALETTE[number % 8], f"object {number}") for number in range(60)]
    left_out = draw_labelled(pixels, boxes, 2, 11)
    assert left_out and set(left_out) < set(boxes)


def test_draw_labelled_long_labels_keep_their_scores():
    drawn = []
    for label in ("a very long description of an object " * 4, "a very long description of an obj"):
        drawn.append(np.zeros((150, 400, 3), np.uint8))
        assert draw_labelled(drawn[-1], [DrawnBox((50, 60, 90, 90), ANSWER_COLOUR, label, "0.87")], 2, 12) == []
        assert np.flatnonzero(drawn[-1].any(axis=(0, 2))).max() < 50 + 0.45 * 400
    labels = [image[40:58] for image in drawn]
    right = [np.flatnonzero(label.any(axis=(0, 2))).max() for label in labels]
    scores = [label[:, end - 28 : end] for label, end in zip(labels, right, strict=True)]
    assert (scores[0] == scores[1]).all() and is_colour(scores[0], (0, 0, 0)).sum() > 30


def test_draw_image_objects_captions_and_phrases_have_one_colour_each(tmp_path):
    PIL.Image.new("RGB", (400, 300), (20, 20, 20)).save(tmp_path / "in.png")
    text = "A dog [<WIDTH-010><HEIGHT-010><WIDTH-030><HEIGHT-040>] and a cat [<WIDTH-060><HEIGHT-020><WIDTH-080><HEIGHT-070>]."
    events = Event("A dog", boxes=(Box(40, 30, 120, 120),), score=0.9), Event("a cat", boxes=(Box(240, 60, 320, 210),))
    dense = Grounding(text=text, events=events, media=MediaInfo("image", 400, 300))
    runs = caption_runs(dense, make_tracks([dense], None, None))
    assert runs == [("A dog", PALETTE[0]), (" and ", None), ("a cat", PALETTE[1]), (".", None)]
    draw(tmp_path / "in.png", dense, tmp_path / "out.png")
    drawn = np.array(PIL.Image.open(tmp_path / "out.png"))
    assert drawn.shape[1] == 400 and drawn.shape[0] > 300
    for colour, box in zip(PALETTE, ((40, 30, 120, 120), (240, 60, 320, 210)), strict=False):
        assert is_colour(drawn[box[1] + 5 : box[3] - 5, box[0] - 1 : box[0] + 2], colour, 0).any(axis=1).all()
        assert is_colour(drawn[300:], colour, 0).sum() > 200  # the phrase in the text below
    assert draw(PIL.Image.new("RGB", (60, 50)), Grounding(media=MediaInfo("image", 60, 50))).size == (480, 400)  # enlarged
    with pytest.raises(ValueError, match="its height is 300, that of the image to draw on is 301"):
        draw(PIL.Image.new("RGB", (400, 301)), dense)


def test_draw_image_masks_are_half_transparent_and_checked():
    coco = pytest.importorskip("pycocotools.mask")
    shape = np.zeros((300, 400), np.uint8, order="F")
    shape[100:150, 200:260] = 1
    counts = coco.encode(shape)["counts"].decode()
    assert (decode_mask(counts, 400, 300) == shape).all()
    media = MediaInfo("image", 400, 300)
    drawn = np.array(draw(PIL.Image.new("RGB", (400, 300)), answer(media, Event(boxes=(Box(190, 90, 270, 160, mask=counts),)))))
    assert 60 < drawn[125, 230, 0] < 200 and drawn[125, 195].max() < 10
    for wrong in (counts[:-1], counts + "0", "\x00"):
        with pytest.raises(ValueError, match="400x300"):
            decode_mask(wrong, 400, 300)


# Text


@pytest.mark.parametrize("text", ["собака бежит", "一只狗在跑", "犬が走る", "개가 달린다", "🐕 😀", "كلب", "कुत्ता"])
def test_printable_scripts_and_emoji_have_glyphs(text):
    shown, missing = printable(text)
    assert (shown, missing) == (text, "")
    masks = [text_mask(character, 20) for character in text if not character.isspace()]
    assert all(mask.max() > 150 for mask in masks if mask.shape[1] > 3)
    assert len({mask.tobytes() for mask in masks}) > 1  # not one replacement for all of them


def test_draw_character_without_a_glyph_is_noted(tmp_path, notes):
    media = grey_video(tmp_path / "in.mp4")
    draw(tmp_path / "in.mp4", answer(media, moving_event(media, 3, 5, "a \U000e9999 dog\n\x07")), tmp_path / "out.png")
    assert printable("a \U000e9999 dog\n\x07")[0] == "a \N{REPLACEMENT CHARACTER} dog  "
    assert len(notes) == 1 and "U+E9999" in notes[0]


def test_wrap_breaks_lines_at_words_and_wide_characters_and_shortens_the_last():
    text = "a long answer about dogs and cats " + "狗" * 30
    lines = wrap([(text, None)], 16, 120)
    joined = ["".join(part for part, _ in line) for line in lines]
    assert "".join(joined) == text and all(text_width(line.rstrip(), 16) <= 121 for line in joined)
    short = wrap([(text, None)], 16, 120, max_lines=2)
    assert len(short) == 2 and short[-1][-1][0].endswith("…")
    assert shortened("a dog", 16, 500) == "a dog" and shortened("a dog", 16, 1) == ""


def test_visualization_imports_drawing_libraries_only_when_it_draws():
    """`import llava_st_hf` and the evaluation need neither supervision nor matplotlib."""
    folder = Path(llava_st_hf.__file__).parent / "visualization"
    for file in folder.glob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None) or ""]
            assert not {name.split(".")[0] for name in names} & {"supervision", "matplotlib", "cv2", "pycocotools"}, file.name
    assert draw is llava_st_hf.visualization.draw and callable(draw_video)
    assert moving_frames(1, 4, 4).shape == (1, 4, 4, 3)


def test_visualization_page_examples_write_the_files_that_they_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "visualization.md").read_text(encoding="utf-8")
    exec("\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL)), {})
    written = {"moves_right.mp4", "moves_right.jpg", "moves_right.webp", "described.png", "compared.png", "timeline.png"}
    assert written <= {path.name for path in tmp_path.iterdir()} and all(name in page for name in written)
    assert PIL.Image.open("described.png").width == 528
