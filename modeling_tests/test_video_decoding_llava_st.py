# SPDX-License-Identifier: Apache-2.0
"""Both readers return the frames listed in the index, upright; files that cannot be read correctly raise an error."""

import gc
import multiprocessing
import os
from dataclasses import replace

import av
import decord
import numpy as np
import pytest
import torch

from llava_st_hf.model import video_decoding_llava_st as decoding
from llava_st_hf.model.video_containers_llava_st import DamagedVideoError
from llava_st_hf.model.video_decoding_llava_st import InexactIndexError, VideoFileReader, open_video_file, orient
from llava_st_hf.model.video_index_llava_st import count_frames, decode_all, read_index
from llava_st_hf.model.video_processing_llava_st import read_video_metadata
from modeling_tests.numbered_videos import (
    CODECS,
    KINDS,
    NUM_FRAMES,
    NotEncodable,
    numbered_frame,
    read_number,
    write_numbered,
)
from modeling_tests.odd_videos import (
    H264,
    HEVC,
    MATRICES,
    MESSAGES,
    orientation_message,
    stored_picture,
    write_odd,
    write_one,
    write_oriented,
    write_with_message,
)
from modeling_tests.video_verdicts import judge, read_raw, video_processor


FAR = [0, 3, 14, 15, 16, 44, 59, 60, 73, 89]  # around keyframes and between them


def read(reader: VideoFileReader, indices) -> np.ndarray:
    return torch.cat(list(reader.chunks(list(indices)))).numpy()


def numbers(reader: VideoFileReader, indices) -> list[int]:
    return [read_number(frame) for frame in read(reader, indices)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """An MP4 of 90 frames with B-frames and a keyframe every 15, for tests that do not modify it."""
    return str(write_one(tmp_path_factory.mktemp("decoding") / "plain.mp4").path)


# PyAV


@pytest.mark.parametrize(
    ("container", "codec", "kind"),
    [
        *(("MP4", codec, "B-frames") for codec in ("H.264", "HEVC", "MPEG-4", "AV1")),
        *(("Matroska", codec, "open GOP") for codec in ("H.264", "HEVC", "MPEG-2")),
        *(("MP4", codec, "trimmed") for codec in ("H.264", "VP9", "MPEG-2")),
        *(("WebM", "VP8", "B-frames"), ("MPEG-TS", "H.264", "open GOP"), ("AVI", "H.264", "B-frames")),
    ],
)
def test_chunks_selected_frames_equal_those_of_a_full_decode(tmp_path, container, codec, kind):
    """Skipping frames that are neither requested nor used as references does not change the others."""
    video = write_numbered(tmp_path, container, codec, kind)
    reader = open_video_file(str(video.path))
    everything = read(reader, range(len(video.numbers)))
    assert [read_number(frame) for frame in everything] == video.numbers
    for indices in ([len(video.numbers) - 1], FAR[:6], [40, 52], range(1, 50, 7)):
        assert np.array_equal(read(reader, indices), everything[list(indices)]), indices


def test_decode_all_unwanted_frames_are_skipped(tmp_path):
    path = str(write_one(tmp_path / "long.mp4", options={**H264.b_frames, "g": "240"}, numbers=range(200)).path)
    index = read_index(path)
    wanted = {int(index.presented[150])}
    given = [frame.pts for frame in decode_all(path, index.stream, lambda time: time in wanted)]
    assert wanted <= set(given) and len(given) < 120


def test_chunks_seeks_to_far_frames_and_decodes_up_to_near_ones(plain, monkeypatch):
    starts = []
    start = decoding._Search.start
    monkeypatch.setattr(decoding._Search, "start", lambda self, *rest: (starts.append(rest[-1]), start(self, *rest))[1])
    reader = open_video_file(plain)
    assert numbers(reader, [0, 5, 10]) == [0, 5, 10] and starts == [0]
    starts.clear()
    assert numbers(reader, [0, 80]) == [0, 80] and starts == [0, 5]
    starts.clear()
    assert numbers(reader, [62, 88]) == [62, 88] and starts == [0, 4, 5]  # the first frames are compared before any seek


@pytest.mark.parametrize("late", [1, 2, 3])
def test_chunks_seek_landing_too_late_is_repeated_from_earlier_keyframes(plain, monkeypatch, late):
    """The seek is repeated one keyframe earlier, then two more, and finally from the start."""
    reader = open_video_file(plain)
    keyframes = reader.index.keyframes.tolist()
    sought = []
    original = av.container.InputContainer.seek

    class Container:
        def __init__(self, container):
            self.container = container

        def seek(self, time, **kwargs):
            sought.append(keyframes.index(time))
            original(self.container, keyframes[min(sought[-1] + late, len(keyframes) - 1)], **kwargs)

        def __getattr__(self, name):
            return getattr(self.container, name)

    start = decoding._Search.start
    monkeypatch.setattr(decoding._Search, "start", lambda self, container, *rest: start(self, Container(container), *rest))
    assert numbers(reader, [62, 70]) == [62, 70]
    assert sought[:2] == [4, 3] and len(sought) <= 3
    assert sought == {1: [4, 3], 2: [4, 3, 1], 3: [4, 3, 1]}[late]


def test_chunks_seek_without_frames_decodes_from_the_start(plain, monkeypatch):
    def nowhere(self, container, stream):
        return iter(())

    monkeypatch.setattr(decoding._Search, "_from_keyframe", nowhere)
    assert numbers(open_video_file(plain), FAR) == FAR


def test_chunks_error_after_a_seek_decodes_from_the_start(plain, monkeypatch):
    def fail(self, container, stream):
        raise OSError("cannot be decoded from here")
        yield

    monkeypatch.setattr(decoding._Search, "_from_keyframe", fail)
    assert numbers(open_video_file(plain), FAR) == FAR


@pytest.mark.parametrize("change", ["one too many", "one missing", "shifted"])
def test_chunks_index_differing_from_decoder_raises_inexact_and_recounted_is_correct(plain, change):
    right = read_index(plain)
    step = int(right.presented[1] - right.presented[0])
    presented = {
        "one too many": np.sort(np.append(right.presented, right.presented[3] + step // 2)),
        "one missing": np.delete(right.presented, 3),
        "shifted": right.presented + 1,
    }[change]
    wrong = replace(right, presented=presented, times=presented * 1e-4)
    reader = VideoFileReader(wrong, "pyav")
    with pytest.raises(InexactIndexError, match=r"plain\.mp4: frame \d+ is not where its packets state"):
        read(reader, [0, 5, 20])
    again = reader.recounted()
    assert len(again.index.times) == NUM_FRAMES and again.index.times[5] == right.times[5]
    assert numbers(again, [0, *FAR[2:]]) == [0, *FAR[2:]]


def test_chunks_missing_frame_far_from_the_start_raises_inexact(plain):
    right = read_index(plain)
    presented = right.presented.copy()
    presented[70] += 1
    with pytest.raises(InexactIndexError, match="frame 70"):
        read(VideoFileReader(replace(right, presented=presented), "pyav"), [70])


def test_video_processor_fewer_frames_than_packets_recounts_by_decoding(tmp_path, monkeypatch):
    video = write_one(tmp_path / "plain.mkv")
    index = read_index(str(video.path))
    wrong = replace(index, presented=np.append(index.presented, index.presented[-1] + 33), times=np.append(index.times, 3.0))
    monkeypatch.setattr(decoding, "read_index", lambda *_: wrong)
    frames, metadata = read_raw(video_processor(), video.path, num_frames=7)
    assert metadata.total_num_frames == NUM_FRAMES and metadata.frames_indices[-1] == 89
    assert [read_number(frame) for frame in frames] == metadata.frames_indices


def test_video_processor_end_of_sequence_mark_gives_displayed_frames_only(tmp_path):
    """After an end-of-sequence mark, leading pictures of an open group have no references and are not displayed."""

    def with_end(packets):
        for number, packet in enumerate(packets):
            if packet.is_keyframe and 40 < packet.pts < 60:
                copy = av.Packet(b"\0\0\0\1\x48\1" + bytes(packet))
                copy.pts, copy.dts, copy.time_base, copy.stream = packet.pts, packet.dts, packet.time_base, packet.stream
                copy.is_keyframe = True
                packets[number] = copy
        return packets

    path = write_one(tmp_path / "ended.mkv", HEVC, HEVC.open_gop, change=with_end).path
    counted = len(count_frames(str(path)).times)
    frames, metadata = read_raw(video_processor(), path, do_sample_frames=False)
    assert counted < NUM_FRAMES and len(frames) == metadata.total_num_frames == counted
    shown = [read_number(frame) for frame in frames]
    assert shown == [round(time * 30) for time in metadata.timestamps]


def damage(path, at: float, size: int = 300) -> str:
    data = bytearray(path.read_bytes())
    start = int(len(data) * at)
    data[start : start + size] = bytes(size)
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize("codec", ["H.264", "MPEG-4", "FFV1"])
def test_chunks_undecodable_frame_raises_error_with_file_name(tmp_path, codec):
    path = damage(write_one(tmp_path / "corrupt.mkv", CODECS[codec]).path, 0.5)
    with pytest.raises(OSError, match=r"corrupt\.mkv"):
        read(open_video_file(path), range(NUM_FRAMES))


def test_chunks_frames_before_damage_are_read(tmp_path):
    path = damage(write_one(tmp_path / "corrupt.mp4").path, 0.5)
    assert numbers(open_video_file(path), [0, 3]) == [0, 3]


def test_chunks_without_keyframe_raises_at_any_frame(tmp_path):
    path = write_one(tmp_path / "none.ts", change=lambda packets: [packet for packet in packets if not packet.is_keyframe]).path
    for indices in ([0, 5], [5, 10]):
        with pytest.raises(OSError, match=r"none\.ts"):
            read(open_video_file(str(path)), indices)


def test_chunks_fewer_frames_than_counted_raises(tmp_path):
    index = count_frames(str(write_numbered(tmp_path, "AVI", "H.264", "B-frames").path))
    longer = replace(index, times=np.append(index.times, 4.0))
    with pytest.raises(OSError, match="has no decodable frame 90"):
        read(VideoFileReader(longer, "pyav"), [3, 90])


def test_chunks_are_bounded_by_chunk_bytes(plain, monkeypatch):
    reader = open_video_file(plain)
    whole = read(reader, FAR)
    for size, most in ((1, 1), (3 * 128 * 64 * 3, 3), (2**30, len(FAR))):
        monkeypatch.setattr(decoding, "CHUNK_BYTES", size)
        chunks = list(reader.chunks(FAR))
        assert max(map(len, chunks)) == most and torch.equal(torch.cat(chunks), torch.from_numpy(whole))
        assert all(chunk.dtype == torch.uint8 for chunk in chunks)


@pytest.mark.parametrize("error", [IndexError("list"), AttributeError("attribute"), ValueError("value"), MemoryError()])
def test_chunks_any_exception_becomes_os_error_with_file_name(plain, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(decoding._Pictures, "upright_rgb", fail)
    with pytest.raises(OSError, match=r"plain\.mp4 cannot be decoded within frames 3 to 9"):
        read(open_video_file(plain), [3, 9])


def test_chunks_change_of_frame_size_raises(tmp_path):
    """Two concatenated transport streams of different frame sizes, with continuous times."""
    first = write_one(tmp_path / "first.ts", numbers=range(30)).path
    second = write_one(tmp_path / "second.ts", replace(H264, size=(64, 32)), numbers=range(30), ticks=range(40, 70)).path
    path = tmp_path / "both.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.raises(OSError, match=r"both\.ts changes its size from 128x64 to 64x32 pixels: boxes would mean different places"):
        read(open_video_file(str(path)), range(0, 55, 5))


def test_chunks_frame_above_max_pixels_raises(plain, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_PIXELS", 128 * 64 - 1)
    with pytest.raises(DamagedVideoError, match=r"plain\.mp4 has frames of 128x64 pixels, more than 8191"):
        read(open_video_file(plain), [0])


def test_chunks_releases_decoded_frames_without_garbage_collection(tmp_path):
    reader = open_video_file(str(write_numbered(tmp_path, "MP4", "Motion JPEG", "no B-frames").path))

    def count() -> int:
        return sum(type(thing) is av.VideoFrame for thing in gc.get_objects())

    gc.collect()
    gc.disable()  # objects in reference cycles are kept
    try:
        before = count()
        for _ in reader.chunks(list(range(90))):
            pass
        assert count() - before < 10
    finally:
        gc.enable()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="workers of data loaders are forked on Linux")
def test_chunks_leave_no_containers_that_block_a_forked_process(plain):
    gc.collect()
    gc.disable()  # the child frees objects that reading left in reference cycles
    try:
        numbers(open_video_file(plain), [0, 40, 80])
        child = multiprocessing.get_context("fork").Process(target=gc.collect)
        child.start()
        child.join(timeout=20)
        is_alive = child.is_alive()
        child.kill()
        assert not is_alive
    finally:
        gc.enable()


# Orientation


@pytest.mark.parametrize("name", MATRICES)
def test_chunks_display_matrix_gives_upright_frames_after_any_seek(tmp_path, name):
    video = write_oriented(tmp_path / "oriented.mp4", name)
    reader = open_video_file(str(video.path))
    for indices in ([0, 40], [77]):
        frames = read(reader, indices)
        assert frames.shape[1:] == (64, 128, 3)
        for frame, index in zip(frames, indices, strict=True):
            assert np.abs(frame.astype(int) - numbered_frame(index)).mean() < 12
    assert (reader.metadata.width, reader.metadata.height) == (128, 64)


@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.parametrize(("codec", "suffix"), [(H264, ".ts"), (HEVC, ".mkv")])
def test_chunks_orientation_message_gives_upright_frames_after_any_seek(tmp_path, codec, suffix, name):
    video = write_with_message(tmp_path / f"message{suffix}", codec, name)
    for indices in ([0, 40], [77], [8, 9]):
        frames = read(open_video_file(str(video.path)), indices)
        for frame, index in zip(frames, indices, strict=True):
            assert np.abs(frame.astype(int) - numbered_frame(index)).mean() < 12


def test_chunks_orientation_message_applies_until_the_next_one(tmp_path):
    """Upside down from frame 0 on, mirrored from frame 30 on, with one message each."""
    pictures = [
        stored_picture(numbered_frame(number), MATRICES["upside down" if number < 30 else "mirrored left to right"])
        for number in range(NUM_FRAMES)
    ]

    def with_messages(packets):
        marked = []
        for packet in packets:
            name = {0: "upside down", 30: "mirrored left to right"}.get(packet.pts)
            copy = av.Packet((orientation_message(H264, name) if name else b"") + bytes(packet))
            copy.pts, copy.dts, copy.time_base, copy.stream = packet.pts, packet.dts, packet.time_base, packet.stream
            copy.is_keyframe = packet.is_keyframe
            marked.append(copy)
        return marked

    path = write_one(tmp_path / "twice.ts", options=H264.closed, pictures=pictures, change=with_messages).path
    assert numbers(open_video_file(str(path)), [0, 1, 20, 29, 30, 31, 44]) == [0, 1, 20, 29, 30, 31, 44]
    assert numbers(open_video_file(str(path)), [20, 29]) == [20, 29]  # from a keyframe between the two


@pytest.mark.parametrize("scale", [1, 0x10000, 3])
@pytest.mark.parametrize("name", MATRICES)
def test_orient_is_the_inverse_of_stored_picture(name, scale):
    picture = np.arange(2 * 3 * 3).reshape(2, 3, 3)
    stored = stored_picture(picture, MATRICES[name])
    assert np.array_equal(orient(stored, tuple(scale * value for value in MATRICES[name]), "a"), picture)


@pytest.mark.parametrize("degrees", [1, 30, 45, 89, 135, 200])
def test_orient_angle_other_than_quarter_turns_raises(degrees):
    cosine, sine = (round(0x10000 * value) for value in (np.cos(np.radians(degrees)), np.sin(np.radians(degrees))))
    with pytest.raises(OSError, match="a is to be displayed at an angle"):
        orient(np.zeros((2, 3, 3)), (cosine, sine, -sine, cosine), "a")


@pytest.mark.parametrize("matrix", [(0, 0, 0, 0), (1, 0, 0, 0), (0, 0, 0, 1), (0, 1, 0, 0), (0, 0, 1, 0)])
def test_orient_singular_matrix_raises(matrix):
    with pytest.raises(OSError, match="display matrix"):
        orient(np.zeros((2, 3, 3)), matrix, "a")


def test_orient_rounding_errors_of_a_quarter_turn_are_accepted():
    picture = np.arange(2 * 3 * 3).reshape(2, 3, 3)
    stored = stored_picture(picture, MATRICES["turned right"])
    assert np.array_equal(orient(stored, (30, 0x10000, -0x10000, -30), "a"), picture)


# decord


@pytest.fixture
def served(monkeypatch):
    """Paths of the files that decord opened."""
    opened = []
    original = decoding._open_decord
    monkeypatch.setattr(decoding, "_open_decord", lambda index: (opened.append(index.path), original(index))[1])
    return opened


CONTAINER_NAMES = ("MP4", "MP4, index first", "MOV", "3GP", "Matroska", "WebM")
CODEC_NAMES = ("H.264", "VP9", "VP8", "MPEG-4", "Motion JPEG")


@pytest.mark.parametrize("codec", CODEC_NAMES)
def test_open_video_file_decord_reads_supported_files_correctly_and_others_use_pyav(tmp_path, served, codec):
    """All combinations of the supported codecs and containers, in every kind."""
    for container in CONTAINER_NAMES:
        for kind in KINDS:
            try:
                video = write_numbered(tmp_path, container, codec, kind)
            except NotEncodable:
                continue
            assert judge(video, "decord").outcome == "right", (container, kind)
            hides = kind == "trimmed" and container not in ("Matroska", "WebM") and codec != "Motion JPEG"
            if hides or kind == "open GOP":
                assert str(video.path) not in served, (container, kind)
    assert len(set(served)) >= 3  # those without special structure


def test_decord_tests_cover_all_supported_codecs_and_containers():
    assert {CODECS[name].encoder for name in CODEC_NAMES} == {"libx264", "libvpx-vp9", "libvpx", "mpeg4", "mjpeg"}
    assert decoding.DECORD_CODECS == ("h264", "vp9", "vp8", "mpeg4", "mjpeg")
    assert decoding.DECORD_CONTAINERS == ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")


@pytest.mark.parametrize(
    "name",
    [
        *("display matrix in MP4, turned left", "display matrix in MP4, mirrored left to right", "two video streams, MKV"),
        *("VP8 with hidden frames, WebM", "trimmed open groups, H.264 in MKV", "intra refresh, H.264 in MP4", "interlaced H.264, TS"),
        *("orientation message, H.264 in MP4, turned right", "intra refresh, H.264 in MKV", "attached picture, MP4"),
    ],
)
def test_video_processor_files_that_decord_misreads_are_read_by_pyav(tmp_path, served, name):
    video = write_odd(tmp_path, name)
    frames, metadata = read_raw(video_processor(), video.path, num_frames=7, video_backend="decord")
    assert metadata.video_backend == "pyav" and not served
    assert [read_number(frame) for frame in frames] == [video.numbers[index] for index in metadata.frames_indices]


def test_read_video_metadata_video_backend_is_the_decoder_used(plain, tmp_path):
    assert read_video_metadata(plain, "decord").video_backend == "decord"
    assert read_video_metadata(plain, None).video_backend == read_video_metadata(plain, "pyav").video_backend == "pyav"
    assert read_video_metadata(write_numbered(tmp_path, "AVI", "H.264", "B-frames").path, "decord").video_backend == "pyav"


class DECORDLimitReachedError(Exception):
    """Error class with the same bases as decord's: derived from `Exception` directly."""


class FailingReader:
    """decord's reader, which raises an error from a given call on."""

    def __init__(self, path: str, fails_at: int, error: Exception):
        self.reader, self.calls, self.fails_at, self.error = decord.VideoReader(path), 0, fails_at, error

    def get_batch(self, indices):
        self.calls += 1
        if self.calls > self.fails_at:
            raise self.error
        return self.reader.get_batch(indices)


@pytest.mark.parametrize("fails_at", [0, 1, 2, 3])
@pytest.mark.parametrize("error", [DECORDLimitReachedError("limit\nstack"), decord.DECORDError("failed"), RuntimeError("a")], ids=type)
def test_chunks_decord_error_continues_with_pyav(plain, monkeypatch, fails_at, error):
    monkeypatch.setattr(decoding, "CHUNK_BYTES", 3 * 128 * 64 * 3)
    monkeypatch.setattr(decoding, "_open_decord", lambda index: FailingReader(index.path, fails_at, error))
    reader = open_video_file(plain, "decord")
    assert reader.metadata.video_backend == "decord"
    assert numbers(reader, FAR) == FAR
    assert reader.metadata.video_backend == "pyav"


def test_chunks_decord_and_pyav_give_equal_frames(plain):
    assert np.array_equal(read(open_video_file(plain, "decord"), FAR), read(open_video_file(plain, "pyav"), FAR))


def test_chunks_decord_with_other_frame_count_is_replaced_by_pyav(plain, monkeypatch):
    asked = []

    class Short:
        def __init__(self, path, **_):
            pass

        def __len__(self):
            return 89

        def get_batch(self, indices):
            asked.append(indices)
            raise RuntimeError

    monkeypatch.setattr(decord, "VideoReader", Short)
    reader = open_video_file(plain, "decord")
    assert numbers(reader, FAR) == FAR and reader.metadata.video_backend == "pyav" and not asked


def test_check_backend_none_is_pyav_and_unknown_raises(plain):
    assert decoding.check_backend(None) == "pyav"
    with pytest.raises(ValueError, match="'opencv'"):
        open_video_file(plain, "opencv")
