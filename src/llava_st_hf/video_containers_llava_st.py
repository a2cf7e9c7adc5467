# SPDX-License-Identifier: Apache-2.0
"""What the containers of video files promise, and whether the file holds it: files that lost their end are recognised here."""

import os


def check_not_cut_short(path: str) -> None:
    """
    Raises `OSError` if the file is an MP4/MOV whose last box ends beyond the file.

    Decoders take such a file for a shorter video and would sample it at wrong times.
    """
    length, position = os.path.getsize(path), 0
    with open(path, "rb") as file:
        while position + 8 <= length:
            file.seek(position)
            header = file.read(16)
            size, kind = int.from_bytes(header[:4], "big"), header[4:8]
            if position == 0 and kind != b"ftyp":
                return  # another container
            if size == 1:
                size = int.from_bytes(header[8:16], "big")
            if size < 8:
                return  # 0: the box reaches to the end of the file, whatever that is
            position += size
            if position > length:
                raise OSError(
                    f"{path} is cut short: its {kind.decode('latin-1')!r} part should reach byte {position}, "
                    f"and the file has {length} bytes"
                )
