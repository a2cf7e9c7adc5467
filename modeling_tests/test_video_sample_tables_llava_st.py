# SPDX-License-Identifier: Apache-2.0
"""The sample tables of MP4 and MOV files give the same packets as ffmpeg's demuxer, and only the header is read."""

import io
import struct
from functools import partial
from itertools import product
from pathlib import Path

import av
import numpy as np
import pytest

from llava_st_hf.model import video_sample_tables_llava_st as sample_tables
from llava_st_hf.model.video_index_llava_st import read_index
from modeling_tests.numbered_videos import CODECS, KINDS, NotEncodable, read_number, trim, write_numbered
from modeling_tests.odd_videos import H264, write_one
from modeling_tests.video_verdicts import read_raw, video_processor


def video_track(path: Path) -> int:
    with av.open(str(path)) as container:
        return container.streams.video[0].id


def demuxed(path: Path) -> list[tuple[int, bool, bool, int]]:
    """Presentation time, keyframe, hidden and size in bytes of every packet, in decoding order."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        return [(packet.pts, packet.is_keyframe, packet.is_discard, packet.size) for packet in packets]


def tabled(path: Path) -> list[tuple[int, bool, bool, int]] | None:
    table = sample_tables.read_sample_table(str(path), video_track(path))
    if table is None:
        return None
    return list(zip(table.pts.tolist(), table.keyframe.tolist(), table.discard.tolist(), table.size.tolist(), strict=True))


@pytest.mark.parametrize("codec", ["H.264", "HEVC", "MPEG-4", "VP9", "AV1", "Motion JPEG", "MPEG-2"])
def test_read_sample_table_equals_packets_of_the_demuxer(tmp_path, codec):
    count = 0
    for container, kind in product(["MP4", "MP4, index first", "MOV", "3GP"], KINDS):
        try:
            path = write_numbered(tmp_path, container, codec, kind).path
        except NotEncodable:
            continue
        count += 1
        packets, table = demuxed(path), tabled(path)
        assert table is not None
        # The demuxer omits packets that are not needed after the end of the edit; the table marks them as hidden.
        assert [row for row in table if not row[2]] == [row for row in packets if not row[2]], path
        first = table.index(packets[0])
        assert table[first : first + len(packets)] == packets, path
        decoded = sample_tables.read_sample_table(str(path), video_track(path)).dts
        assert (np.diff(decoded) > 0).all(), path
    assert count >= 8


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def change_box(path: Path, kind: bytes, content: bytes, parents: tuple[bytes, ...]) -> None:
    """Replaces the content of the first box of a kind, in a file whose index follows its samples."""
    data = path.read_bytes()
    at = data.index(kind) - 4
    new = box(kind, content)
    old = int.from_bytes(data[at : at + 4], "big")
    data = bytearray(data[:at] + new + data[at + old :])
    for parent in parents:
        place = data.rindex(parent, 0, at + 4) - 4
        data[place : place + 4] = struct.pack(">I", int.from_bytes(data[place : place + 4], "big") + len(new) - old)
    path.write_bytes(data)


EDITS = (b"edts", b"trak", b"moov")
TABLES = (b"stbl", b"minf", b"mdia", b"trak", b"moov")
UNITS, FIRST = 512, 1024  # a frame in units of the track, and the presentation time of its first frame


def write_edited(path: Path, edits: list[tuple[int, int, int]], wide: bool = False) -> None:
    """Writes a video of 90 frames with an edit list: milliseconds, start in the track's units, and speed in 1/65536, for each edit."""
    write_one(path)
    entries = b"".join(struct.pack(">QqI" if wide else ">IiI", *edit) for edit in edits)
    change_box(path, b"elst", bytes([wide, 0, 0, 0]) + struct.pack(">I", len(edits)) + entries, EDITS)


NORMAL = 0x10000
ONE_EDIT = {
    "whole": [(3000, FIRST, NORMAL)],
    "from a keyframe": [(1000, FIRST + 30 * UNITS, NORMAL)],
    "from the middle of a group": [(1000, FIRST + 37 * UNITS, NORMAL)],
    "a part of a frame": [(617, FIRST + 37 * UNITS + 100, NORMAL)],
    "a part of a frame, late": [(700, -1, NORMAL), (617, FIRST + 37 * UNITS + 100, NORMAL)],
    "a length that is rounded up": [(605, FIRST + 37 * UNITS + 436, NORMAL)],
    "late": [(700, -1, NORMAL), (1000, FIRST + 20 * UNITS, NORMAL)],
    "late twice": [(700, -1, NORMAL), (300, -1, NORMAL), (1000, FIRST, NORMAL)],
    "longer than the track": [(9000, FIRST, NORMAL)],
}


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("edits", ONE_EDIT)
def test_read_sample_table_one_edit_hides_the_same_packets_as_the_demuxer(tmp_path, edits, wide):
    path = tmp_path / "edited.mp4"
    write_edited(path, ONE_EDIT[edits], wide)
    table = tabled(path)
    assert [row for row in table if not row[2]] == [row for row in demuxed(path) if not row[2]]
    assert any(row[2] for row in table) == (edits not in ("whole", "longer than the track"))


SEVERAL = {
    "a part left out": [(1000, FIRST, NORMAL), (500, FIRST + 60 * UNITS, NORMAL)],
    "the second within a group": [(1000, FIRST, NORMAL), (500, FIRST + 50 * UNITS, NORMAL)],
    "a part twice": [(500, FIRST, NORMAL), (500, FIRST, NORMAL)],
}


def displayed(edits: list[tuple[int, int, int]]) -> list[int]:
    """Numbers of the frames that edits at normal speed display."""
    numbers: list[int] = []
    for milliseconds, start, _ in edits:
        first = (start - FIRST) // UNITS
        numbers += range(first, first + milliseconds * 30 // 1000)
    return numbers


@pytest.mark.parametrize("edits", SEVERAL)
def test_read_sample_table_several_edits_gives_none_and_the_processor_reads_the_displayed_frames(tmp_path, edits):
    """Hidden packets of one edit have the times of displayed packets of another."""
    path = tmp_path / "edited.mp4"
    write_edited(path, SEVERAL[edits])
    assert tabled(path) is None
    frames, metadata = read_raw(video_processor(), path, do_sample_frames=False)
    assert [read_number(frame) for frame in frames] == displayed(SEVERAL[edits])
    assert metadata.total_num_frames == len(displayed(SEVERAL[edits]))


OTHERS = {
    "a gap": [(500, FIRST, NORMAL), (500, -1, NORMAL), (500, FIRST + 15 * UNITS, NORMAL)],
    "half the speed": [(1000, FIRST, 0x8000)],
    "a still picture": [(1000, FIRST, 0)],
    "nothing but a delay": [(1000, -1, NORMAL)],
    "a start before the track": [(1000, -2, NORMAL)],
    "no length": [(0, FIRST, NORMAL)],
    "a delay behind": [(1000, FIRST, NORMAL), (100, -1, NORMAL)],
}


@pytest.mark.parametrize("edits", OTHERS)
def test_read_sample_table_unsupported_edit_list_gives_none(tmp_path, edits):
    path = tmp_path / "edited.mp4"
    write_edited(path, OTHERS[edits])
    assert tabled(path) is None


def test_read_sample_table_fragmented_file_gives_none(tmp_path):
    assert tabled(write_numbered(tmp_path, "MP4, fragmented", "H.264", "B-frames").path) is None


def test_read_sample_table_missing_track_gives_none(tmp_path):
    path = write_one(tmp_path / "one.mp4").path
    assert sample_tables.read_sample_table(str(path), 7) is None
    assert sample_tables.read_sample_table(str(path), 1) is not None


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (b"stts", struct.pack(">IIII", 0, 1, 89, UNITS)),  # fewer samples than sizes
        (b"stts", struct.pack(">IIII", 0, 1, 91, UNITS)),
        (b"stts", struct.pack(">IIII", 0, 2, 90, UNITS)),  # one entry missing
        (b"stts", struct.pack(">IIIi", 0, 1, 90, -UNITS)),
        (b"stts", b""),
        (b"ctts", struct.pack(">IIII", 0, 1, 89, 0)),
        (b"ctts", struct.pack(">I", 0)),
        (b"stsz", struct.pack(">III", 0, 0, 0)),
        (b"stsz", struct.pack(">III", 0, 0, 90)),
    ],
)
def test_read_sample_table_inconsistent_tables_give_none(tmp_path, kind, content):
    path = write_one(tmp_path / "damaged.mp4").path
    change_box(path, kind, content, TABLES)
    assert sample_tables.read_sample_table(str(path), 1) is None


def test_read_sample_table_without_sync_table_marks_every_sample_as_keyframe(tmp_path):
    path = write_one(tmp_path / "one.mp4", options=H264.closed).path
    path.write_bytes(path.read_bytes().replace(b"stss", b"free"))
    assert sample_tables.read_sample_table(str(path), 1).keyframe.all()


class CountingFile(io.FileIO):
    """File that counts the bytes read from it."""

    count = 0

    def read(self, size=-1):
        data = super().read(size)
        CountingFile.count += len(data)
        return data


def test_read_sample_table_reads_only_the_header(tmp_path, monkeypatch):
    write = partial(write_one, codec=CODECS["raw"], options={})
    path = write(tmp_path / "raw.mov", numbers=range(60)).path  # 16 KB a frame
    monkeypatch.setattr(sample_tables, "open", CountingFile, raising=False)
    monkeypatch.setattr(CountingFile, "count", 0)
    table = sample_tables.read_sample_table(str(path), video_track(path))
    assert len(table.size) == 60 and table.size.sum() > 900_000
    assert 0 < CountingFile.count < 5_000


def test_read_index_from_sample_tables_reads_no_packets_and_equals_that_of_the_demuxer(tmp_path, monkeypatch):
    path = write_numbered(tmp_path, "MP4", "H.264", "trimmed").path
    expected = read_index(str(path))
    monkeypatch.setattr("llava_st_hf.model.video_index_llava_st.read_sample_table", lambda *_: None)
    demuxed = read_index(str(path))
    assert np.array_equal(expected.times, demuxed.times) and np.array_equal(expected.presented, demuxed.presented)
    assert set(demuxed.keyframes) <= set(expected.keyframes)

    def refuse(*_):
        raise AssertionError("a table is enough")

    monkeypatch.undo()
    monkeypatch.setattr("llava_st_hf.model.video_index_llava_st._is_hidden", refuse)
    assert np.array_equal(read_index(str(path)).times, expected.times)


def test_read_index_trimmed_mp4_keeps_the_hidden_keyframe(tmp_path):
    """Trimming within a group of pictures needs the keyframe before its start, which the edit list hides."""
    path = tmp_path / "trimmed.mp4"
    write_one(path, change=lambda packets: trim(packets, 37))
    index = read_index(str(path))
    assert len(index.times) == 90 - 37 and index.keyframes[0] < index.presented[0] and not index.is_plain
