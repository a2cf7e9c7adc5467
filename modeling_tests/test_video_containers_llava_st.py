# SPDX-License-Identifier: Apache-2.0
"""`check_container` detects truncated files, accepts complete ones, and takes bounded time for crafted headers."""

import struct
import time
from contextlib import suppress

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_st_hf.model.video_containers_llava_st import MAX_HEADERS, DamagedVideoError, TruncatedVideoError, boxes, check_container
from modeling_tests import numbered_videos
from modeling_tests.numbered_videos import encode, numbered_frame, open_stream, write_numbered, write_packets


CODECS = {"WebM": "VP9", "Ogg": "VP8", "GIF": "GIF", "ASF": "WMV 2", "MPEG-PS": "MPEG-2", "AVI": "MPEG-4"}  # H.264 in others
CONTAINERS = (
    *("MP4", "MP4, index first", "MP4, fragmented", "MOV", "Matroska", "WebM", "AVI", "FLV"),
    *("GIF", "Ogg", "ASF", "NUT", "MPEG-PS", "MPEG-TS", "M2TS"),
)
SECONDS = 5.0  # time limit for a file with very many headers; takes one or two seconds on an idle machine


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The bytes of a complete file of each container."""
    folder = tmp_path_factory.mktemp("containers")
    return {name: write_numbered(folder, name, CODECS.get(name, "H.264"), "no B-frames").path.read_bytes() for name in CONTAINERS}


def check(folder, data: bytes) -> None:
    path = folder / "checked.bin"  # the format is detected from the content, not from the name
    path.write_bytes(data)
    check_container(str(path))


def box(kind: bytes, *content: bytes) -> bytes:
    size = 8 + sum(map(len, content))
    return struct.pack(">I", size) + kind + b"".join(content)


def element(identity: bytes, content: bytes = b"") -> bytes:
    return identity + struct.pack(">I", 0x10000000 | len(content)) + content


@pytest.mark.parametrize("container", CONTAINERS)
def test_check_container_complete_file_passes(tmp_path, files, container):
    check(tmp_path, files[container])


@pytest.mark.parametrize("container", CONTAINERS)
def test_check_container_one_missing_byte_raises(tmp_path, files, container):
    with pytest.raises(TruncatedVideoError, match=r"checked\.bin is cut short"):
        check(tmp_path, files[container][:-1])


@pytest.mark.parametrize("container", CONTAINERS)
def test_check_container_truncation_at_any_byte_raises_except_at_packet_boundaries(tmp_path, files, container):
    data = files[container]
    missed = []
    for at in range(128 if container not in ("MPEG-TS", "M2TS") else 600, len(data), len(data) // 97):
        try:
            check(tmp_path, data[:at])
            missed.append(at)
        except TruncatedVideoError as error:
            assert str(error).startswith(str(tmp_path / "checked.bin"))
    # Truncation between two fragments or packets cannot be detected.
    assert len(missed) <= {"MP4, fragmented": 2, "MPEG-TS": 2, "M2TS": 2, "MPEG-PS": 10}.get(container, 0), missed


@pytest.mark.parametrize("container", ["MP4", "MP4, index first", "MOV", "Matroska", "WebM", "AVI", "GIF", "ASF", "MPEG-PS"])
@pytest.mark.parametrize(
    "tail", [bytes(100), b"hello world, this is text", bytes(range(200, 255)), b"\xff" * 64], ids=["zeros", "text", "high", "ones"]
)
def test_check_container_trailing_bytes_that_players_ignore_pass(tmp_path, files, container, tail):
    check(tmp_path, files[container] + tail)


def test_check_container_truncated_mp4_box_after_a_complete_file_raises(tmp_path, files):
    for kind in (b"mdat", b"moof", b"styp", b"sidx", b"mfra"):
        with pytest.raises(TruncatedVideoError, match=kind.decode()):
            check(tmp_path, files["MP4"] + struct.pack(">I", 1000) + kind + bytes(100))


def test_check_container_content_of_unknown_format_passes(tmp_path):
    for data in (b"", b"x", b"this is no video", bytes(5000), b"G" * 100):
        check(tmp_path, data)


@given(data=st.binary(max_size=300), magic=st.integers(0, 8))
def test_check_container_arbitrary_bytes_pass_or_raise_error_with_file_name(tmp_path_factory, data, magic):
    starts = (b"\0\0\0\x10ftyp", b"\x1a\x45\xdf\xa3", b"RIFF\x10\0\0\0AVI ", b"FLV\1\5\0\0\0\x09", b"GIF89a", b"OggS", b"\x30\x26\xb2\x75")
    starts += (b"nut/mult", b"\0\0\1\xba")
    path = tmp_path_factory.getbasetemp() / "any.bin"
    path.write_bytes(starts[magic] + data)
    try:
        check_container(str(path))
    except (TruncatedVideoError, DamagedVideoError) as error:
        assert str(path) in str(error)


# Sizes stated in each container


def test_check_container_mp4_64_bit_and_open_ended_box_sizes_are_supported(tmp_path):
    start = box(b"ftyp", b"isom", bytes(4)) + box(b"moov")
    wide = struct.pack(">I4sQ", 1, b"mdat", 16 + 50)
    check(tmp_path, start + wide + bytes(50))
    with pytest.raises(TruncatedVideoError, match=r"'mdat' part should reach byte 90, and the file has 89"):
        check(tmp_path, start + wide + bytes(49))
    check(tmp_path, start + struct.pack(">I4s", 0, b"mdat") + bytes(50))
    with pytest.raises(TruncatedVideoError, match="no index"):
        check(tmp_path, box(b"ftyp", b"isom", bytes(4)) + box(b"mdat", bytes(50)))


def test_check_container_matroska_segment_of_unknown_size_is_checked_by_its_clusters(tmp_path):
    cluster = element(b"\x1f\x43\xb6\x75", bytes(100))
    start = element(b"\x1a\x45\xdf\xa3", bytes(20)) + b"\x18\x53\x80\x67\x01" + b"\xff" * 7
    check(tmp_path, start + cluster * 3)
    with pytest.raises(TruncatedVideoError, match="its last part should reach byte"):
        check(tmp_path, start + cluster * 3 + cluster[:-1])
    check(tmp_path, start + cluster + b"\x1f\x43\xb6\x75\xff" + bytes(100))  # a cluster that is still being written


def test_check_container_avi_of_riff_size_zero_raises(tmp_path, files):
    data = bytearray(files["AVI"])
    data[4:8] = bytes(4)
    with pytest.raises(TruncatedVideoError, match="no size"):
        check(tmp_path, bytes(data))


def test_check_container_avi_truncated_second_riff_chunk_raises(tmp_path, files):
    second = b"RIFF" + struct.pack("<I", 104) + b"AVIX" + bytes(100)
    check(tmp_path, files["AVI"] + second)
    with pytest.raises(TruncatedVideoError, match="RIFF part should reach byte"):
        check(tmp_path, files["AVI"] + second[:-1])


def test_check_container_flv_file_size_is_compared_even_if_the_last_tag_is_complete(tmp_path, files):
    data = files["FLV"]
    assert b"filesize" in data
    (last,) = struct.unpack(">I", data[-4:])
    with pytest.raises(TruncatedVideoError, match=rf"should have {len(data)} bytes"):
        check(tmp_path, data[: -4 - last])
    at = data.find(b"filesize")
    silent = data[:at] + b"fileSIZE" + data[at + 8 :]
    check(tmp_path, silent[: -4 - last])
    with pytest.raises(TruncatedVideoError, match="ends within a tag"):
        check(tmp_path, silent[: -5 - last])


def test_check_container_ogg_without_last_page_raises(tmp_path, files):
    data = files["Ogg"]
    with pytest.raises(TruncatedVideoError, match="no stream in it has its last page"):
        check(tmp_path, data[: data.rfind(b"OggS")])


def test_check_container_asf_size_is_ignored_for_broadcasts(tmp_path, files):
    data = bytearray(files["ASF"][:-50])
    with pytest.raises(TruncatedVideoError, match=rf"should have {len(data) + 50} bytes"):
        check(tmp_path, bytes(data))
    properties = data.find(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"))
    data[properties + 88] |= 1
    check(tmp_path, bytes(data))


@pytest.mark.parametrize(("size", "container"), [(188, "MPEG-TS"), (192, "M2TS")])
def test_check_container_transport_stream_incomplete_packet_raises(tmp_path, files, size, container):
    data = files[container]
    check(tmp_path, data[: -3 * size])
    for lost in (1, size - 1, size + 1):
        with pytest.raises(TruncatedVideoError, match=f"within a packet of {size} bytes"):
            check(tmp_path, data[:-lost])


# Damaged headers


def with_field(data: bytes, kind: bytes, offset: int, value: int) -> bytes:
    """Replaces a 32-bit number, `offset` bytes after the start of the content of the first box of a kind."""
    at = data.index(kind) + 4 + offset
    return data[:at] + struct.pack(">I", value) + data[at + 4 :]


@pytest.mark.parametrize("kind", [b"mvhd", b"mdhd"])
def test_check_container_mp4_time_scale_zero_raises(tmp_path, files, kind):
    with pytest.raises(DamagedVideoError, match=f"checked.bin is damaged: the time scale in its '{kind.decode()}' is 0"):
        check(tmp_path, with_field(files["MP4"], kind, 12, 0))
    check(tmp_path, with_field(files["MP4"], kind, 12, 1))


@pytest.mark.parametrize(
    ("kind", "offset", "value"),
    [(b"stts", 8, 2**31), (b"stts", 4, 2**31), (b"stsz", 8, 2**32 - 1), (b"stsz", 8, None)],
)
def test_check_container_mp4_more_samples_than_bytes_raises(tmp_path, files, kind, offset, value):
    data = files["MP4"]
    with pytest.raises(DamagedVideoError, match=f"its '{kind.decode()}' counts {value or len(data) + 1} samples"):
        check(tmp_path, with_field(data, kind, offset, value or len(data) + 1))
    if value is None:
        check(tmp_path, with_field(data, kind, offset, len(data)))


def test_check_container_mp4_too_many_samples_of_constant_size_raise(tmp_path, files):
    data = with_field(with_field(files["MP4"], b"stsz", 4, 1), b"stsz", 8, 2**30)
    with pytest.raises(DamagedVideoError, match="stsz"):
        check(tmp_path, data)


def test_check_container_mp4_deeply_nested_boxes_do_not_exceed_the_recursion_limit(tmp_path):
    nested = b""
    for _ in range(5000):
        nested = box(b"trak", nested)
    check(tmp_path, START + box(b"moov", nested))


# Bounds


START = box(b"ftyp", b"isom", bytes(4))
MANY = MAX_HEADERS + 1000
# Files of several megabytes that consist only of headers.
CRAFTED = {
    "boxes": lambda: START + box(b"free") * MANY,
    "boxes in a track": lambda: START + box(b"moov", box(b"trak", box(b"free") * MANY)),
    "boxes of the largest size": lambda: START + struct.pack(">I4sQ", 1, b"free", 2**64 - 1) * 1000,
    "elements": lambda: element(b"\x1a\x45\xdf\xa3") + b"\x18\x53\x80\x67\xff" + b"\xec\x80" * MANY,
    "riff": lambda: b"RIFF\x04\0\0\0AVI " * MANY,
    "sub-blocks": lambda: b"GIF89a" + bytes(7) + b"!\xfe" + b"\1a" * 10 * MANY,
    "extensions": lambda: b"GIF89a" + bytes(7) + (b"!\xfe" + b"\1a" * 20 + b"\0") * MANY,
    "pages": lambda: (b"OggS" + bytes(23)) * MANY,
    "start codes": lambda: b"\0\0\1\xba" + b"\0\0\1\0" * MANY,
}


@pytest.mark.parametrize("name", CRAFTED)
def test_check_container_file_of_headers_only_takes_bounded_time(tmp_path, name):
    data = CRAFTED[name]()
    began = time.process_time()
    with suppress(TruncatedVideoError):
        check(tmp_path, data)
    assert time.process_time() - began < SECONDS


def test_boxes_stops_after_max_headers(tmp_path, monkeypatch):
    monkeypatch.setattr("llava_st_hf.model.video_containers_llava_st.MAX_HEADERS", 10)
    path = tmp_path / "many.mp4"
    path.write_bytes(box(b"free") * 20)
    with open(path, "rb") as file:
        assert len(list(boxes(file, 0, 160))) == 10
        assert list(boxes(file, 0, 16)) == [(b"free", 8, 8), (b"free", 16, 16)]


def test_check_container_gif_of_many_blocks_is_checked_up_to_its_end_mark(tmp_path):
    blocks = b"\xff" + bytes(255)
    data = b"GIF89a" + bytes(7) + b"!\xfe" + blocks * (MAX_HEADERS + 1) + b"\0;"  # 51 MB
    check(tmp_path, data)
    with pytest.raises(TruncatedVideoError, match="no end mark"):
        check(tmp_path, data[:-1])


def test_check_container_avi_of_unknown_riff_size_passes(tmp_path, files):
    data = bytearray(files["AVI"])
    data[4:8] = b"\xff" * 4  # as ffmpeg writes into a pipe
    check(tmp_path, bytes(data))


@pytest.mark.parametrize("container", ["MP4", "MOV"])
def test_check_container_mp4_without_index_raises_that_nothing_can_be_read(tmp_path, files, container):
    with pytest.raises(TruncatedVideoError, match="nothing of it can be read"):
        check(tmp_path, files[container][: len(files[container]) // 2])


def test_check_container_mp4_missing_segment_of_segment_index_raises(tmp_path, files):
    data = files["MP4, fragmented"]
    start = data.index(b"moof") - 4
    sizes = [len(data) - start, 7]  # 7 bytes more than there are
    entries = b"".join(struct.pack(">III", size, 30, 0) for size in sizes)
    body = struct.pack(">IIIIIHH", 0, 1, 30, 0, 0, 0, len(sizes)) + entries
    index = struct.pack(">I4s", 8 + len(body), b"sidx") + body
    with pytest.raises(TruncatedVideoError, match="sidx"):
        check(tmp_path, data[:start] + index + data[start:])
    check(tmp_path, data[:start] + index + data[start:] + bytes(7))


def test_check_container_truncated_mxf_and_ivf_raise(tmp_path):
    for suffix, codec in ((".mxf", "MPEG-2"), (".ivf", "VP8")):
        path = tmp_path / f"a{suffix}"
        with av.open(str(path), "w") as output:
            recipe = numbered_videos.CODECS[codec]
            stream = open_stream(output, recipe, recipe.closed)
            write_packets(output, encode(stream, [numbered_frame(number) for number in range(20)], range(20)))
        check_container(str(path))
        path.write_bytes(path.read_bytes()[:-10])
        with pytest.raises(TruncatedVideoError, match=path.name):
            check_container(str(path))
