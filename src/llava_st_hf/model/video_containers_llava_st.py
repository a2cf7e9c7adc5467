# SPDX-License-Identifier: Apache-2.0
"""
Detection of truncated and damaged video files from the headers of their containers.

A decoder reads a truncated file as a shorter video, so every position would be converted to a wrong time. Each container states
its number of bytes in a different header; the functions here compare it with the size of the file. Only
headers are read, and every walk over them is bounded.
"""

import os
import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np


# Top-level boxes of an MP4 file. Other letters after the samples are not a box: players ignore them.
_TOP_BOXES = (b"moov", b"mdat", b"moof", b"mfra", b"styp", b"sidx", b"emsg", b"prft", b"free", b"skip", b"wide", b"uuid", b"udta", b"meta")
# Top-level boxes with which a file usually starts. A file that starts with another one is treated as MP4 only if it has an index.
_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp")
# Maximum number of headers read in one file: two for each fragment of an MP4 file, one for each cluster of a live recording. Later
# headers are not read.
MAX_HEADERS = 200_000
# The same for the blocks of a GIF, which have at most 255 bytes each: 250 MB in total.
MAX_GIF_BLOCKS = 1_000_000
# Bytes at the end of MPEG program streams and Ogg files in which the last packet begins: a packet has at most 64 KB.
TAIL_BYTES = 2**18


class DamagedVideoError(OSError):
    """Error raised if the headers of a video file are invalid. Such a file is never read."""


class TruncatedVideoError(OSError):
    """
    Error raised if a video file is truncated. Such a file is read only with `allow_truncated=True`.

    Args:
        path: path of the file.
        reason: expected and actual size or duration.
        is_readable: whether any part of the file can be read.
    """

    def __init__(self, path: str, reason: str, is_readable: bool = True):
        advice = "every time in it would be wrong. allow_truncated=True (--allow-truncated) reads what is there"
        super().__init__(f"{path} is cut short: {reason}; {advice if is_readable else 'nothing of it can be read'}")
        self.reason, self.is_readable = reason, is_readable


def check_container(path: str) -> None:
    """
    Compares the sizes stated in the headers of a video file with its actual size. Containers without such headers pass.

    Raises:
        TruncatedVideoError: naming the file, if it should have more bytes than it has.
        DamagedVideoError: naming the file, if its headers are invalid: a time scale of 0, more samples than bytes.
    """
    length = os.path.getsize(path)
    with open(path, "rb") as file:
        magic = file.read(16)
        check = next((check for start, kind, check in _CHECKS if magic[start:].startswith(kind)), None)
        if check is not None:
            problem = check(file, length)
        elif magic[4:8] in _FIRST_BOXES or (magic[4:8].isalnum() and any(kind == b"moov" for kind, _, _ in boxes(file, 0, length))):
            problem = _mp4(file, path, length)
        else:
            problem = _transport_stream(file, length)
    if problem is not None:
        raise TruncatedVideoError(path, problem)


# MP4 and MOV


def boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yields `(kind, start of the content, end)` of the boxes between two byte positions. A box may end beyond `end`."""
    position = start
    for _ in range(MAX_HEADERS):
        if position + 8 > end:
            return
        file.seek(position)
        header = file.read(16)
        size, kind, content = int.from_bytes(header[:4], "big"), header[4:8], position + 8
        if size == 1:
            size, content = int.from_bytes(header[8:16], "big"), position + 16
        elif size == 0:  # the box extends to the end of the file
            size = end - position
        if size < content - position:
            return  # not a box: the following ones cannot be located
        yield kind, content, position + size
        position += size


_CHILD = {b"moov": b"trak", b"trak": b"mdia", b"mdia": b"minf", b"minf": b"stbl"}  # boxes within boxes, down to the sample tables


def _mp4(file: BinaryIO, path: str, length: int) -> str | None:
    has_index = has_samples = False
    for kind, content, end in boxes(file, 0, length):
        if end > length:
            if has_index and has_samples and kind not in _TOP_BOXES:
                return None
            reason = f"its {kind.decode('latin-1')!r} part should reach byte {end}, and the file has {length} bytes"
            if not has_index:
                raise TruncatedVideoError(path, f"{reason}, without the index ('moov') behind it", is_readable=False)
            return reason
        if kind == b"moov":
            has_index = True
            _check_samples(file, path, content, end, length)
        if kind == b"sidx" and (segments := _end_of_segments(file, content, end)) > length:
            return f"the segments that its 'sidx' lists should reach byte {segments}, and the file has {length} bytes"
        has_samples = has_samples or kind == b"mdat"
    if not has_index:
        raise TruncatedVideoError(path, "it has no index ('moov'), which recorders write last", is_readable=False)
    return None


def _end_of_segments(file: BinaryIO, content: int, end: int) -> int:
    """Byte at which the segments of a segment index end."""
    file.seek(content)
    data = file.read(min(end - content, 2**20))
    at = 28 if data[:1] == b"\x01" else 20  # after the stream number, the time scale, the first time and the first offset
    offset = int.from_bytes(data[at - 8 : at] if at == 28 else data[at - 4 : at], "big")
    entries = data[at + 4 :][: 12 * int.from_bytes(data[at + 2 : at + 4], "big")]
    return end + offset + sum(int.from_bytes(entries[place : place + 4], "big") & 0x7FFFFFFF for place in range(0, len(entries), 12))


def _check_samples(file: BinaryIO, path: str, start: int, end: int, length: int, parent: bytes = b"moov") -> None:
    """Raises an error for a time scale of 0, and for tables of more samples than the file has bytes, for which readers allocate memory."""
    for kind, content, stop in boxes(file, start, end):
        if kind == _CHILD.get(parent):
            _check_samples(file, path, content, min(stop, end), length, kind)
        elif kind in (b"mdhd", b"mvhd"):
            file.seek(content)
            fields = file.read(24)
            place = 20 if fields[:1] == b"\x01" else 12
            if len(fields) > place and int.from_bytes(fields[place : place + 4], "big") == 0:
                raise DamagedVideoError(f"{path} is damaged: the time scale in its {kind.decode()!r} is 0, so no frame has a time")
        elif kind in (b"stts", b"ctts"):
            file.seek(content + 4)
            entries = int.from_bytes(file.read(4), "big")
            table = file.read(8 * min(entries, (stop - content) // 8))
            samples = int(np.frombuffer(table[: len(table) // 8 * 8], dtype=">u4")[::2].sum(dtype=np.int64))
            if samples > length or entries > length:
                raise DamagedVideoError(
                    f"{path} is damaged: its {kind.decode()!r} counts {max(samples, entries)} samples, more than the file has bytes"
                )
        elif kind == b"stsz":
            file.seek(content + 4)  # the next field is the common size of all samples
            samples = int.from_bytes(file.read(8)[4:], "big")
            if samples > length:
                raise DamagedVideoError(f"{path} is damaged: its 'stsz' counts {samples} samples, more than the file has bytes")


# Matroska and WebM

_SEGMENT, _EBML = 0x18538067, 0x1A45DFA3
_UNKNOWN_SIZES = {2 ** (7 * width) - 1 for width in range(1, 9)}  # written by live recordings, which cannot seek back to write the size


def _number(file: BinaryIO, keep_marker: bool) -> int | None:
    """Reads an EBML number, whose length in bytes is given by the leading zero bits of its first byte. `None` at the end of the file."""
    first = file.read(1)
    if not first or first == b"\0":
        return None
    width = 9 - first[0].bit_length()
    value = first[0] if keep_marker else first[0] & (0xFF >> width)
    rest = file.read(width - 1)
    return None if len(rest) < width - 1 else int.from_bytes(bytes([value]) + rest, "big")


def _elements(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, int, int | None]]:
    """Yields `(id, start of the content, end)` of the elements between two byte positions; the end is `None` if the size is unknown."""
    position = start
    for _ in range(MAX_HEADERS):
        if position >= end:
            return
        file.seek(position)
        identity, size = _number(file, True), _number(file, False)
        if identity is None or size is None:
            return
        content = file.tell()
        if size in _UNKNOWN_SIZES:
            yield identity, content, None
            return
        yield identity, content, content + size
        position = content + size


def _matroska(file: BinaryIO, length: int) -> str | None:
    for identity, content, end in _elements(file, 0, length):
        if end is not None and end > length:
            return f"it should reach byte {end}, and the file has {length} bytes"
        if identity == _SEGMENT and end is None:  # a live recording: check its clusters
            for _, _, stop in _elements(file, content, length):
                if stop is not None and stop > length:
                    return f"its last part should reach byte {stop}, and the file has {length} bytes"
        if identity == _SEGMENT:
            return None  # players ignore bytes after it
    return None


# Others


def _avi(file: BinaryIO, length: int) -> str | None:
    position = 0
    for _ in range(MAX_HEADERS):  # files beyond 1 GB have several RIFF chunks
        file.seek(position)
        header = file.read(12)
        if len(header) < 12 or header[:4] != b"RIFF":
            return None
        size = int.from_bytes(header[4:8], "little")
        end = position + 8 + size
        if size == 2**32 - 1:
            return None  # a live recording, which cannot seek back to write the size
        if end > length:
            return f"its RIFF part should reach byte {end}, and the file has {length} bytes"
        if end == position + 8:
            return "its RIFF part has no size, which recorders write last"
        position = end + end % 2
    return None


def _flv(file: BinaryIO, length: int) -> str | None:
    file.seek(5)
    position = int.from_bytes(file.read(4), "big") + 4  # after the header and the size of the (absent) previous tag
    file.seek(position)
    tag = file.read(11)
    script = file.read(min(int.from_bytes(tag[1:4], "big"), 2**20)) if tag[:1] == b"\x12" else b""
    # "filesize" as an ActionScript number: its name, the type 0, and a double.
    at = script.find(b"\x00\x08filesize\x00")
    if at >= 0:
        (size,) = struct.unpack(">d", script[at + 11 : at + 19].ljust(8, b"\0"))
        if length < size < 2**63:
            return f"it should have {int(size)} bytes, and has {length}"
    # Each tag is followed by its size: the last size must point to the start of a tag.
    file.seek(max(0, length - 4))
    size = int.from_bytes(file.read(4), "big")
    start = length - 4 - size
    if start < 9:
        return "it ends within a tag"
    file.seek(start)
    tag = file.read(4)
    if tag[:1] not in (b"\x08", b"\x09", b"\x12") or int.from_bytes(tag[1:4], "big") + 11 != size:
        return "it ends within a tag"
    return None


def _gif(file: BinaryIO, length: int) -> str | None:
    file.seek(0)
    header = file.read(13)
    position = 13 + (3 * 2 ** ((header[10] & 7) + 1) if len(header) == 13 and header[10] & 0x80 else 0)
    headers = 0
    for _ in range(MAX_HEADERS):
        file.seek(position)
        kind = file.read(1)
        if kind == b";":
            return None
        if kind == b"!":
            position += 2
        elif kind == b",":
            fields = file.read(9)
            if len(fields) < 9:
                break
            position += 11 + (3 * 2 ** ((fields[8] & 7) + 1) if fields[8] & 0x80 else 0)
        else:
            break
        size = b"\1"
        while size != b"\0":  # sub-blocks, the last of size 0
            file.seek(position)
            size, headers = file.read(1), headers + 1
            if not size:
                return "it ends within an image, without its end mark"
            if headers > MAX_GIF_BLOCKS:
                return None
            position += 1 + size[0]
    return "it has no end mark"


def _ogg(file: BinaryIO, length: int) -> str | None:
    """Checks that the last page is complete and that one of the last pages is marked as the last of its stream."""
    start = max(0, length - TAIL_BYTES)
    file.seek(start)
    tail = file.read(TAIL_BYTES)
    at, has_end = tail.find(b"OggS"), False
    for _ in range(MAX_HEADERS):
        header = tail[at : at + 27]
        if at < 0 or len(header) < 27 or header[:4] != b"OggS":
            return f"it ends within a page, or is damaged there, at byte {start + max(at, 0)}"
        sizes = tail[at + 27 : at + 27 + header[26]]
        end = at + 27 + header[26] + sum(sizes)
        if len(sizes) < header[26] or end > len(tail):
            return f"its last page should reach byte {start + end}, and the file has {length} bytes"
        has_end = has_end or bool(header[5] & 4)
        if end == len(tail):
            break
        at = end
    return None if has_end else "no stream in it has its last page"


_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def _asf(file: BinaryIO, length: int) -> str | None:
    file.seek(0)
    header = file.read(2**16)
    at = header.find(_ASF_FILE_PROPERTIES)
    if at < 0:
        return None
    size = int.from_bytes(header[at + 40 : at + 48], "little")
    is_broadcast = header[at + 88 : at + 89] and header[at + 88] & 1
    return f"it should have {size} bytes, and has {length}" if not is_broadcast and size > length else None


def _nut(file: BinaryIO, length: int) -> str | None:
    """Checks that the file ends with an index, whose last 12 bytes are its size and a checksum."""
    file.seek(max(0, length - 12))
    size = int.from_bytes(file.read(8), "big")
    file.seek(max(0, length - size))
    return None if size <= length and file.read(8) == b"NX\xddg/#\xe6N" else "it has no index, which is written last"


def _ivf(file: BinaryIO, length: int) -> str | None:
    """Checks that the last frame is complete; each frame is preceded by its size."""
    file.seek(6)
    position = int.from_bytes(file.read(2), "little")
    for _ in range(MAX_HEADERS):
        if position >= length:
            return f"its last frame should reach byte {position}, and the file has {length} bytes" if position > length else None
        file.seek(position)
        position += 12 + int.from_bytes(file.read(4), "little")
    return None


_MXF_INDEX = bytes.fromhex("060e2b34020501010d01020101110100")


def _mxf(file: BinaryIO, length: int) -> str | None:
    """Checks that the file ends with a random index pack, whose last 4 bytes are its size."""
    file.seek(max(0, length - 4))
    size = int.from_bytes(file.read(4), "big")
    file.seek(max(0, length - size))
    return None if size <= length and file.read(16) == _MXF_INDEX else "it has no random index pack, which is written last"


def _program_stream(file: BinaryIO, length: int) -> str | None:
    """Checks that the last packet is complete. System start codes (0xB9 and above) do not occur within video, whose codes are lower."""
    start = max(0, length - TAIL_BYTES)
    file.seek(start)
    tail = file.read(TAIL_BYTES)
    at = len(tail)
    for _ in range(MAX_HEADERS):
        at = tail.rfind(b"\x00\x00\x01", 0, at)
        if at < 0 or at + 4 > len(tail):
            return None if at < 0 else "it ends within a start code"
        code = tail[at + 3]
        if code == 0xB9:
            return None
        if code == 0xBA:
            return None if len(tail) - at >= 12 else "it ends within a pack header"
        if code > 0xBA:
            end = start + at + 6 + int.from_bytes(tail[at + 4 : at + 6], "big")
            return f"its last packet should reach byte {end}, and the file has {length} bytes" if end > length else None
    return None


def _transport_stream(file: BinaryIO, length: int) -> str | None:
    """Checks that the last packet is complete. Packets have 188 bytes (192 in M2TS), each with the sync byte 0x47."""
    for size, offset in ((188, 0), (192, 4), (204, 0)):
        file.seek(0)
        head = file.read(3 * size)
        if len(head) == 3 * size and all(head[offset + size * packet] == 0x47 for packet in range(3)):
            return f"it ends within a packet of {size} bytes" if length % size else None
    return None


# Position and value of the bytes that identify each container, and the function that checks it.
_CHECKS: tuple[tuple[int, bytes, Callable[[BinaryIO, int], str | None]], ...] = (
    (0, b"\x1a\x45\xdf\xa3", _matroska),
    (8, b"AVI ", _avi),
    (0, b"FLV", _flv),
    (0, b"GIF87a", _gif),
    (0, b"GIF89a", _gif),
    (0, b"OggS", _ogg),
    (0, b"\x30\x26\xb2\x75", _asf),
    (0, b"DKIF", _ivf),
    (0, b"\x06\x0e\x2b\x34", _mxf),
    (0, b"nut/mult", _nut),
    (0, b"\x00\x00\x01\xba", _program_stream),
)
