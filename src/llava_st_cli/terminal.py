# SPDX-License-Identifier: Apache-2.0
"""Text for terminals: names, captions and answers come from others, and must not contain control sequences of the terminal."""

import json
import re
import sys
from typing import Any


# Control characters except line feed and tabulator; characters that reverse the direction of text; and lone surrogates, which no encoding
# of a terminal has.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def _escape(character: re.Match) -> str:
    code = ord(character[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def printable(text: str) -> str:
    """Replaces control characters by escapes such as `\\x1b`. Line feeds and tabulators are kept."""
    return _UNSAFE.sub(_escape, text)


def one_line(text: str) -> str:
    """The text without line breaks and repeated spaces, and without control characters."""
    return printable(" ".join(text.split()))


def error_line(message: str) -> str:
    """Line that reports an error or warning on stderr."""
    return f"llava-st: {one_line(message)}"


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON that is safe to print: the same values, with control characters as the escapes of JSON."""
    text = json.dumps(value, indent=indent, ensure_ascii=(sys.stdout.encoding or "").lower().replace("-", "") != "utf8")
    return _UNSAFE.sub(lambda character: f"\\u{ord(character[0]):04x}", text)
