# SPDX-License-Identifier: Apache-2.0
"""The index of a video file lists the displayed frames and their times; files from which they cannot be determined are rejected."""

import struct
from dataclasses import replace

import av
import numpy as np
import pytest
from PIL import Image

from llava_st_hf.model import video_index_llava_st as video_index
from llava_st_hf.model.video_containers_llava_st import DamagedVideoError, TruncatedVideoError
from llava_st_hf.model.video_index_llava_st import InexactIndexError, count_frames, decode_all, open_container, read_index
from modeling_tests.media import moving_frames, write_audio, write_video
from modeling_tests.numbered_videos import (
    CODECS,
    KINDS,
    NotEncodable,
    encode,
    encode_sound,
    numbered_frame,
    open_stream,
    shift,
    write_numbered,
    write_packets,
)
from modeling_tests.odd_videos import H264, HEVC, write_from_middle, write_hidden_frames, write_odd, write_one, write_trimmed_open


VP8, VP9, MPEG2 = (CODECS[name] for name in ("VP8", "VP9", "MPEG-2"))


@pytest.fixture
def counted_files(monkeypatch) -> list[str]:
    """Paths of the files of which `read_index` decodes all frames to count them."""
    paths = []

    def record(path, *args, **kwargs):
        paths.append(path)
        return count_frames(path, *args, **kwargs)

    monkeypatch.setattr(video_index, "count_frames", record)
    return paths


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """An MP4 of 90 frames with B-frames, for tests that do not modify it."""
    return str(write_one(tmp_path_factory.mktemp("index") / "plain.mp4").path)


@pytest.mark.parametrize(
    ("codec", "container"),
    [
        *(("H.264", name) for name in ("MP4", "MP4, fragmented", "Matroska", "MPEG-TS", "FLV")),
        *(("HEVC", "Matroska"), ("MPEG-4", "MP4"), ("MPEG-2", "M2TS"), ("VP8", "WebM"), ("VP9", "MP4"), ("AV1", "WebM")),
        *(("Motion JPEG", "MOV"), ("WMV 2", "ASF"), ("GIF", "GIF"), ("FFV1", "NUT"), ("Motion JPEG", "AVI")),
    ],
)
def test_read_index_from_packets_equals_count_frames(counted_files, tmp_path, codec, container):
    count = 0
    for kind in KINDS:
        try:
            video = write_numbered(tmp_path, container, codec, kind)
        except NotEncodable:
            continue
        count += 1
        index = read_index(str(video.path))
        assert not counted_files, kind
        counted = count_frames(str(video.path))
        assert len(index.times) == len(counted.times) == len(video.numbers), kind
        assert np.allclose(index.times, counted.times, atol=1e-9) and np.abs(index.times - video.times).max() < 0.02, kind
        assert np.array_equal(index.presented, counted.presented), kind
        assert (np.diff(index.presented) > 0).all() and (np.diff(index.keyframes) > 0).all(), kind
    assert count >= 2


@pytest.mark.parametrize("codec", ["H.264", "MPEG-4"])
def test_read_index_reordered_frames_in_avi_are_counted_by_decoding(counted_files, tmp_path, codec):
    """AVI stores decoding times, not presentation times."""
    video = write_numbered(tmp_path, "AVI", codec, "B-frames")
    index = read_index(str(video.path))
    assert counted_files == [str(video.path)] and not index.is_plain
    assert index.presented is None and len(index.keyframes) == 0  # found from the start only
    assert len(index.times) == 90 and np.abs(index.times - video.times).max() < 0.02


def test_read_index_program_stream_has_no_keyframes_to_seek(tmp_path):
    video = write_numbered(tmp_path, "MPEG-PS", "MPEG-2", "B-frames")
    index = read_index(str(video.path))
    assert len(index.keyframes) == 0 and len(index.times) == 90 and np.abs(index.times - video.times).max() < 0.02


def test_read_index_edit_list_hides_frames_and_keeps_the_keyframe_before_them(tmp_path):
    index = read_index(str(write_numbered(tmp_path, "MP4", "H.264", "trimmed").path))
    assert len(index.times) == 90 - 37 and index.times[0] == 0
    assert index.keyframes[0] < index.presented[0] and not index.is_plain
    assert index.hidden == frozenset()  # the decoder drops them


def test_read_index_hidden_contains_hidden_frames_that_the_decoder_returns(tmp_path):
    video = write_numbered(tmp_path, "MP4", "MPEG-2", "trimmed")
    index = read_index(str(video.path))
    assert len(index.hidden) > 0 and not index.hidden & set(index.presented.tolist())
    decoded = [frame.pts for frame in decode_all(str(video.path), index.stream)]
    assert [time for time in decoded if time not in index.hidden] == index.presented.tolist()


def test_read_index_is_plain_only_without_leading_pictures(tmp_path):
    assert read_index(str(write_numbered(tmp_path, "Matroska", "H.264", "B-frames").path)).is_plain
    assert not read_index(str(write_numbered(tmp_path, "Matroska", "HEVC", "open GOP").path)).is_plain


@pytest.mark.parametrize("codec", [H264, HEVC])
def test_read_index_leading_pictures_without_references_are_excluded(tmp_path, codec):
    video = write_trimmed_open(tmp_path / "trimmed.mkv", codec)
    index = read_index(str(video.path))
    assert len(index.times) == len(video.numbers) and index.times == pytest.approx(video.times, abs=0.01)


def test_read_index_packets_before_first_keyframe_are_excluded(tmp_path):
    video = write_from_middle(tmp_path / "middle.ts", H264, H264.closed)
    index = read_index(str(video.path))
    assert len(index.times) == len(video.numbers) and index.times == pytest.approx(video.times, abs=0.001)
    assert index.times[0] > 0.1 and not index.is_plain


def test_read_index_hidden_vp8_reference_packets_are_excluded(counted_files, tmp_path):
    path = str(write_hidden_frames(tmp_path / "hidden.webm").path)
    with av.open(path) as container:
        assert sum(packet.size > 0 for packet in container.demux(video=0)) == 90 + 12
    index = read_index(path)
    assert len(index.times) == 90 and not counted_files and not index.is_plain


def test_is_hidden_vp9_packet_with_only_a_hidden_frame_is_true():
    class Packet(bytearray):
        size = property(len)

    shown, hidden, existing = 0b10000010, 0b10000000, 0b10001000
    assert video_index._is_hidden("vp9", Packet([hidden, 1, 2]))
    for first, last in ((shown, 2), (existing, 2), (hidden, 0xC1), (0xB0, 2)):
        assert not video_index._is_hidden("vp9", Packet([first, 1, last]))


def test_read_index_mpeg4_packet_without_coded_vop_is_excluded(tmp_path):
    def with_empty(packets):
        for number, packet in enumerate(packets):
            if number in (40, 41, 60):
                empty = av.Packet(b"\0\0\1\xb6\x50\x4f")  # a VOP that is not coded
                empty.pts, empty.dts, empty.time_base, empty.stream = packet.pts, packet.dts, packet.time_base, packet.stream
                packets[number] = empty
        return packets

    path = str(write_one(tmp_path / "empty.mp4", CODECS["MPEG-4"], CODECS["MPEG-4"].closed, change=with_empty).path)
    assert len(read_index(path).times) == len(count_frames(path).times) == 87


def test_read_index_restarting_clock_raises(tmp_path):
    path = write_odd(tmp_path, "clock restarts, TS").path
    with pytest.raises(OSError, match=f"{path.name} has times that do not ascend from frame to frame: its clock restarts"):
        read_index(str(path))


def write_streams(path, *streams) -> str:
    """Writes Motion JPEG streams of `(width, height, disposition, number of frames)`."""
    with av.open(str(path), "w") as output:
        opened = [open_stream(output, replace(CODECS["Motion JPEG"], size=(width, height)), {}) for width, height, _, _ in streams]
        packets = []
        for stream, (width, height, disposition, count) in zip(opened, streams, strict=True):
            stream.disposition = disposition
            packets.append(encode(stream, [numbered_frame(number, width, height) for number in range(count)], range(count)))
        write_packets(output, [packet for group in packets for packet in group])
    return str(path)


NONE, DEFAULT = av.stream.Disposition(0), av.stream.Disposition.default


@pytest.mark.parametrize(
    ("streams", "chosen"),
    [
        ([(64, 32, NONE, 4), (128, 64, NONE, 5)], 1),  # the larger one
        ([(128, 64, NONE, 4), (64, 32, NONE, 5)], 0),
        ([(64, 32, NONE, 4), (64, 32, NONE, 5)], 0),  # the first of equal ones
        ([(64, 32, DEFAULT, 4), (128, 64, NONE, 5)], 0),  # the default one, although it is smaller
        ([(128, 64, NONE, 4), (64, 32, DEFAULT, 5)], 1),
    ],
)
def test_read_index_several_streams_uses_that_of_ffmpeg(tmp_path, streams, chosen):
    index = read_index(write_streams(tmp_path / "streams.mkv", *streams))
    assert index.stream == chosen and len(index.times) == streams[chosen][3] and not index.is_plain


def test_read_index_cover_image_is_not_chosen(tmp_path):
    index = read_index(str(write_odd(tmp_path, "attached picture, MP4").path))
    assert len(index.times) == 90 and not index.is_plain


def test_read_index_file_without_video_stream_raises(tmp_path):
    with pytest.raises(OSError, match=r"sound\.mp4 has no video stream"):
        read_index(str(write_audio(tmp_path / "sound.mp4")))


@pytest.mark.parametrize("container", ["MP4", "Matroska", "MPEG-TS", "FLV"])
def test_read_index_times_count_from_the_start_of_the_container(tmp_path, container):
    video = write_numbered(tmp_path, container, "H.264", "late start")
    index = read_index(str(video.path))
    assert index.times[0] == pytest.approx(1.0, abs=0.02)
    assert index.times == pytest.approx(video.times, abs=0.02)


# Truncated files


@pytest.mark.parametrize("suffix", [".mkv", ".webm", ".flv"])
@pytest.mark.parametrize("late", [0, 300])
def test_read_index_late_clock_is_not_truncation(tmp_path, suffix, late):
    """The duration in the header counts from time 0."""
    codec = VP9 if suffix == ".webm" else H264
    index = read_index(str(write_one(tmp_path / f"late{suffix}", codec, change=lambda packets: shift(packets, late)).path))
    assert len(index.times) == 90 and index.times[0] == 0


@pytest.mark.parametrize("suffix", ["MP4", "MKV", "WebM", "AVI", "FLV", "TS"])
def test_read_index_audio_longer_than_video_is_not_truncation(tmp_path, suffix):
    index = read_index(str(write_odd(tmp_path, f"sound outlasts the picture, {suffix}").path))
    assert len(index.times) == 90 and index.notes == ()


def shorten(path, seconds_promised: float):
    """Replaces the duration in the header of a Matroska file, which is in milliseconds."""
    data = bytearray(path.read_bytes())
    at = data.index(b"\x44\x89\x88") + 3
    data[at : at + 8] = struct.pack(">d", seconds_promised * 1000)
    path.write_bytes(data)
    return str(path)


def test_read_index_shorter_than_stated_duration_raises_truncated(tmp_path):
    path = shorten(write_one(tmp_path / "short.mkv").path, 4.5)
    with pytest.raises(
        TruncatedVideoError, match=r"short\.mkv is cut short: it should last 4\.500 s and ends after 3\.0.*allow_truncated=True"
    ):
        read_index(path)
    index = read_index(path, allow_truncated=True)
    assert len(index.times) == 90
    assert len(index.notes) == 1 and "should last 4.500 s" in index.notes[0] and "short.mkv" not in index.notes[0]
    assert len(read_index(shorten(write_one(tmp_path / "short.mkv").path, 3.9)).times) == 90  # within the tolerance


@pytest.mark.parametrize(
    ("container", "codec"), [("Matroska", "H.264"), ("WebM", "VP9"), ("AVI", "MPEG-4"), ("FLV", "H.264"), ("MPEG-TS", "H.264")]
)
def test_read_index_truncated_file_is_read_up_to_its_end_with_allow_truncated(counted_files, tmp_path, container, codec):
    video = write_numbered(tmp_path, container, codec, "B-frames" if codec in ("H.264", "MPEG-4") else "no B-frames")
    video.path.write_bytes(video.path.read_bytes()[: video.path.stat().st_size * 6 // 10 // 188 * 188 + 100])
    with pytest.raises(TruncatedVideoError, match=video.path.name):
        read_index(str(video.path))
    index = read_index(str(video.path), allow_truncated=True)
    assert 20 < len(index.times) < 85 and counted_files and index.presented is None
    assert all(np.abs(np.array(video.times) - time).min() < 0.02 for time in index.times)  # the last frames may lack references
    assert len(index.notes) == 1 and index.notes[0].startswith("The video file is cut short (")


def test_read_index_complete_file_with_allow_truncated_has_no_notes(plain):
    assert read_index(plain, allow_truncated=True).notes == ()


# Damaged files


def corrupt(path) -> str:
    """Overwrites bytes in the middle of a file with zeros."""
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle - 150 : middle + 150] = bytes(300)
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize("codec", [H264, CODECS["FFV1"]])
def test_count_frames_undecodable_frame_raises_error_with_file_name(tmp_path, codec):
    path = corrupt(write_one(tmp_path / "corrupt.mkv", codec).path)
    with pytest.raises(OSError, match=r"corrupt\.mkv"):
        count_frames(path)


ERRORS = [
    IndexError("list index out of range"),
    KeyError("key"),
    AttributeError("no attribute"),
    ValueError("bad value"),
    TypeError("bad type"),
    MemoryError(),
    OverflowError("too large"),
    ZeroDivisionError("by zero"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
    av.error.InvalidDataError(1, "invalid data"),
    av.error.FFmpegError(1, "unknown"),
    av.error.EOFError(1, "end"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("place", ["open", "scan", "decode"])
def test_read_index_any_pyav_error_becomes_os_error_with_file_name(plain, monkeypatch, error, place):
    def fail(*_, **__):
        raise error

    if place == "open":
        monkeypatch.setattr(av, "open", fail)
    elif place == "scan":
        monkeypatch.setattr(video_index, "choose_stream", fail)
    else:
        monkeypatch.setattr(video_index, "decode_packets", fail)
    with pytest.raises(OSError, match=r"plain\.mp4 cannot be") as raised:
        count_frames(plain) if place == "decode" else read_index(plain)
    assert raised.value.__cause__ is error
    assert str(raised.value).rstrip() == str(raised.value) and not str(raised.value).endswith(":")


def test_read_index_assertion_error_keeps_its_class(plain, monkeypatch):
    def fail(*_):
        raise AssertionError("a bug")

    monkeypatch.setattr(video_index, "choose_stream", fail)
    with pytest.raises(AssertionError, match="a bug"):
        read_index(plain)


def test_inexact_index_error_is_an_os_error():
    assert issubclass(InexactIndexError, OSError)


def test_read_index_frames_above_max_pixels_raise(plain, monkeypatch):
    monkeypatch.setattr(video_index, "MAX_PIXELS", 128 * 64 - 1)
    with pytest.raises(DamagedVideoError, match=r"plain\.mp4 has frames of 128x64 pixels, more than 8191"):
        read_index(plain)
    monkeypatch.setattr(video_index, "MAX_PIXELS", 128 * 64)
    assert len(read_index(plain).times) == 90


@pytest.mark.parametrize("text", ["#EXTM3U\n#EXTINF:1,\nplain.mp4\n", "ffconcat version 1.0\nfile plain.mp4\n"])
def test_read_index_playlist_raises_without_opening_other_files(tmp_path, text):
    write_one(tmp_path / "plain.mp4")
    path = tmp_path / "list.mp4"
    path.write_text(text)
    with pytest.raises(OSError, match=r"list\.mp4 cannot be read as a video"):
        read_index(str(path))


def test_open_container_path_that_resembles_a_url_is_opened_as_a_file(tmp_path, monkeypatch):
    write_one(tmp_path / "http:x.mkv")
    monkeypatch.chdir(tmp_path)
    with open_container("http:x.mkv") as container:
        assert len(container.streams.video) == 1


def test_count_frames_stream_without_keyframe_raises(tmp_path):
    path = write_one(tmp_path / "none.ts", change=lambda packets: [packet for packet in packets if not packet.is_keyframe]).path
    with pytest.raises(OSError, match=r"none\.ts has no frames that can be decoded"):
        count_frames(str(path))


# Missing times


def packets(pts, dts=None, **kwargs):
    given = {"container": "mpeg", "codec": "mpeg2video", "stream": 0, "time_base": 0.01, "frame_rate": 25.0, "start": None}
    given |= {"can_reorder": False, "has_one_stream": True, "has_sound": False, "promised": None}
    flags = {name: [False] * len(pts) for name in ("keyframe", "discard", "hidden")}
    return video_index._Packets(**{**given, **flags, **kwargs}, pts=pts, dts=dts or pts)


def test_known_times_missing_times_are_filled_from_the_stated_rate():
    assert video_index._known_times("a", packets([]), [8, None, None, 20, None]).tolist() == [8, 12, 16, 20, 24]
    assert video_index._known_times("a", packets([]), [None, 12, None]).tolist() == [8, 12, 16]
    with pytest.raises(OSError, match="a has frames without times"):
        video_index._known_times("a", packets([]), [8, None, None, 23])  # more than half a frame off
    with pytest.raises(OSError, match="a has frames without times"):
        video_index._known_times("a", packets([], frame_rate=0.0), [8, None])
    with pytest.raises(OSError, match="a has frames without times"):
        video_index._known_times("a", packets([]), [None, None])


@pytest.mark.parametrize("found", [[0, 4, 4, 8], [0, 8, 4]])
def test_known_times_not_ascending_raise(found):
    with pytest.raises(OSError, match="a has times that do not ascend"):
        video_index._known_times("a", packets([]), found)


def test_says_presentation_missing_or_equal_times_is_false():
    says = video_index._says_presentation
    assert says(packets([0, 2, 1], [0, 1, 2]))
    assert not says(packets([0, None, 1], [0, 1, 2]))
    assert not says(packets([0, 1, 1], [0, 1, 2]))
    assert not says(packets([0, 2, 1], [0, 2, 1]))
    assert not says(packets([0, 1, 2], codec="unknown"))
    assert not says(packets([0, 1, 2], container="avi")) and says(packets([0, 1, 2], container="avi", codec="mjpeg"))
    hidden = packets([0, None, 1], [0, 1, 2], hidden=[False, True, False])
    assert says(hidden)


def test_read_index_audio_stream_does_not_change_the_frames(tmp_path):
    path = tmp_path / "both.mkv"
    with av.open(str(path), "w") as output:
        stream = open_stream(output, H264, H264.b_frames)
        sound = output.add_stream("flac", rate=48000, layout="mono")
        write_packets(output, encode(stream, [numbered_frame(n) for n in range(30)], range(30)) + encode_sound(sound, 1.0, False))
    assert len(read_index(str(path)).times) == 30


def test_read_index_packets_of_unchanged_images_are_frames(counted_files, tmp_path):
    # Unchanged frames have packets of a few bytes: 20 frames with motion, 40 without, 20 with motion.
    moving = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    frames = np.concatenate([moving[:20], np.repeat(moving[20:21], 40, axis=0), moving[20:]])
    index = read_index(str(write_video(tmp_path / "still.mp4", frames, fps=30)))
    assert len(index.times) == len(frames) and counted_files


@pytest.mark.parametrize("codec, error", [("MPEG-4", 0.0), ("H.264", 1 / 30)])
def test_read_index_late_start_in_avi_is_the_time_of_the_second_packet(tmp_path, codec, error):
    # The muxer writes the first packet at 0, and empty packets up to the second.
    with av.open(str(tmp_path / "late.avi"), "w") as output:
        stream = open_stream(output, CODECS[codec], CODECS[codec].b_frames)
        write_packets(output, shift(encode(stream, [numbered_frame(number) for number in range(60)], range(60)), 45))
    times = read_index(str(tmp_path / "late.avi")).times
    assert times == pytest.approx(np.arange(45, 105) / 30, abs=error + 1e-3)


def test_read_index_gif_short_durations_are_those_of_web_browsers(tmp_path):
    pictures = [Image.fromarray(frame) for frame in moving_frames(4, 16, 16)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=[10, 0, 50, 500])  # milliseconds
    assert read_index(str(tmp_path / "a.gif")).times.tolist() == pytest.approx([0, 0.1, 0.2, 0.25])
