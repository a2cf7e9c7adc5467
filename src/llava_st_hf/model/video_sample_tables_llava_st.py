# SPDX-License-Identifier: Apache-2.0
"""
Packets of an MP4 or MOV file from its sample tables: only the header is read, a few megabytes of a file of gigabytes.

Only the layout that all recorders and editors write is supported: one track of samples, with at most one edit after an empty one. The
results equal those of ffmpeg's demuxer, which is tested. For all other files the packets themselves are read.
"""

from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from .video_containers_llava_st import boxes


@dataclass(frozen=True)
class SampleTable:
    """
    The samples of one track in decoding order.

    Args:
        pts, dts: `(num_samples,)` int64, in units of the track's time scale; shifted by the edit list as ffmpeg does.
        keyframe: `(num_samples,)` bool, whether decoding may start here.
        discard: `(num_samples,)` bool, whether the edit list hides the sample.
        size: `(num_samples,)` int64, bytes.
    """

    pts: np.ndarray
    dts: np.ndarray
    keyframe: np.ndarray
    discard: np.ndarray
    size: np.ndarray


def read_sample_table(path: str, track_id: int) -> SampleTable | None:
    """Reads the samples of a track; `None` if they are not all in one plain table (fragments, several edits, changes of speed)."""
    with open(path, "rb") as file:
        file.seek(0, 2)
        length = file.tell()
        top = {kind: (content, end) for kind, content, end in boxes(file, 0, length)}
        if b"moov" not in top:
            return None
        movie = _children(file, *top[b"moov"])
        if b"mvex" in movie or b"mvhd" not in movie:
            return None
        movie_scale = _time_scale(file, movie[b"mvhd"][0])
        for place in movie[b"trak"]:
            track = _children(file, *place)
            if b"tkhd" in track and _track_id(file, track[b"tkhd"][0]) == track_id:
                return _table(file, track, movie_scale)
    return None


def _children(file: BinaryIO, start: int, end: int) -> dict[bytes, list[tuple[int, int]]]:
    """Byte ranges of the boxes within a box, by their kind."""
    found: dict[bytes, list[tuple[int, int]]] = {}
    for kind, content, stop in boxes(file, start, end):
        found.setdefault(kind, []).append((content, min(stop, end)))
    return found


def _bytes(file: BinaryIO, place: tuple[int, int]) -> bytes:
    file.seek(place[0])
    return file.read(place[1] - place[0])


def _time_scale(file: BinaryIO, place: tuple[int, int]) -> int:
    """Units per second stated in `mvhd` or `mdhd`."""
    data = _bytes(file, place)
    at = 20 if data[:1] == b"\x01" else 12
    return int.from_bytes(data[at : at + 4], "big")


def _track_id(file: BinaryIO, place: tuple[int, int]) -> int:
    data = _bytes(file, place)
    at = 20 if data[:1] == b"\x01" else 12
    return int.from_bytes(data[at : at + 4], "big")


def _table(file: BinaryIO, track: dict, movie_scale: int) -> SampleTable | None:
    media = _children(file, *track[b"mdia"][0]) if b"mdia" in track else {}
    information = _children(file, *media[b"minf"][0]) if b"minf" in media else {}
    tables = _children(file, *information[b"stbl"][0]) if b"stbl" in information else {}
    if not {b"stts", b"stsz"} <= set(tables) or b"mdhd" not in media or any(len(places) > 1 for places in tables.values()):
        return None
    scale = _time_scale(file, media[b"mdhd"][0])
    size = _sizes(_bytes(file, tables[b"stsz"][0]))
    durations = _runs(_bytes(file, tables[b"stts"][0]), len(size))
    offsets = _runs(_bytes(file, tables[b"ctts"][0]), len(size)) if b"ctts" in tables else np.zeros(len(size), dtype=np.int64)
    if not len(size) or durations is None or offsets is None or (durations < 0).any():
        return None
    dts = np.concatenate([[0], np.cumsum(durations[:-1])])
    pts = dts + offsets
    keyframe = np.ones(len(size), dtype=bool)
    if b"stss" in tables:
        keyframe[:] = False
        for kind in {b"stss", b"stps"} & set(tables):  # `stps` is in MOV files with open groups of pictures
            numbers = _array(_bytes(file, tables[kind][0])[8:]) - 1
            keyframe[numbers[(numbers >= 0) & (numbers < len(size))]] = True
    discard = np.zeros(len(size), dtype=bool)
    edits = _children(file, *track[b"edts"][0]) if b"edts" in track else {}
    if b"elst" in edits:
        edit = _edit(_bytes(file, edits[b"elst"][0]), scale, movie_scale)
        if edit is None:
            return None
        delay, start, length = edit
        discard = (pts < start) | (pts >= start + length)
        # As in ffmpeg, an edit that starts within a frame shifts the next one to the edit's start.
        start = max(start, int(pts[~discard].min(initial=start + length)))
        pts, dts = pts - start + delay, dts - start + delay
    return SampleTable(pts, dts - max(0, int(-offsets.min())), keyframe, discard, size)


def _array(data: bytes) -> np.ndarray:
    """Parses signed 32-bit numbers into an int64 array."""
    return np.frombuffer(data[: len(data) // 4 * 4], dtype=">i4").astype(np.int64)


def _sizes(data: bytes) -> np.ndarray:
    size, count = int.from_bytes(data[4:8], "big"), int.from_bytes(data[8:12], "big")
    if size:
        return np.full(count, size, dtype=np.int64)
    return _array(data[12 : 12 + 4 * count])


def _runs(data: bytes, num_samples: int) -> np.ndarray | None:
    """Expands a table of `(number of samples, value)` to one value per sample; `None` if it does not have `num_samples` samples."""
    entries = int.from_bytes(data[4:8], "big")
    table = _array(data[8 : 8 + 8 * entries]).reshape(-1, 2)
    if len(table) != entries or (table[:, 0] < 0).any() or table[:, 0].sum() != num_samples:
        return None
    return np.repeat(table[:, 1], table[:, 0])


def _edit(data: bytes, scale: int, movie_scale: int) -> tuple[int, int, int] | None:
    """Parses `(delay, start, length)` in the track's units: samples from `start` on are displayed after `delay`, for `length`."""
    entries, width = int.from_bytes(data[4:8], "big"), 8 if data[:1] == b"\x01" else 4
    delay, media = 0, None
    for number in range(entries):
        entry = data[8 + number * (2 * width + 4) :][: 2 * width + 4]
        if len(entry) < 2 * width + 4 or not movie_scale:
            return None
        length = int.from_bytes(entry[:width], "big")
        start = int.from_bytes(entry[width : 2 * width], "big", signed=True)
        # ffmpeg's rounding: to the nearest, halves upwards.
        length = (2 * length * scale + movie_scale) // (2 * movie_scale)
        if start == -1 and media is None:
            delay += length
        elif start < 0 or media is not None or entry[2 * width :] != b"\x00\x01\x00\x00" or not length:
            return None
        else:
            media = start, length
    return None if media is None else (delay, *media)
