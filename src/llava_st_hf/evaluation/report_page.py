# SPDX-License-Identifier: Apache-2.0
"""A page as a list of blocks, and its rendering as HTML and as Markdown with jinja2.

Blocks hold plain text. Both templates escape every value that they insert, so ids, questions and answers may contain any characters.
"""

import base64
import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


@dataclass(frozen=True)
class Heading:
    kind: ClassVar = "heading"
    level: int  # 2 to 6
    text: str


@dataclass(frozen=True)
class Paragraph:
    kind: ClassVar = "paragraph"
    text: str


@dataclass(frozen=True)
class Table:
    """
    Args:
        header: one text per column.
        rows: as many texts each.
        marked: indices of columns that are to be compared; HTML gives them a background.
        text_columns: indices of columns with text, which is left-aligned; numbers are right-aligned.
    """

    kind: ClassVar = "table"
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    marked: Sequence[int] = ()
    text_columns: Sequence[int] = (0,)


@dataclass(frozen=True)
class Picture:
    """
    Args:
        name: of its file, ending in `.svg` or `.jpg`.
        data: content of the file.
        text: description.
    """

    name: str
    data: bytes
    text: str

    @property
    def data_uri(self) -> str:
        media_type = "image/svg+xml" if self.name.endswith(".svg") else "image/jpeg"
        return f"data:{media_type};base64,{base64.b64encode(self.data).decode()}"


@dataclass(frozen=True)
class Pictures:
    """Pictures in a row."""

    kind: ClassVar = "pictures"
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Card:
    """
    One sample.

    Args:
        title: its heading.
        facts: `(name, text)` of each.
        pictures: at most one.
    """

    kind: ClassVar = "card"
    title: str
    facts: Sequence[tuple[str, str]]
    pictures: Sequence[Picture] = ()


@dataclass
class Page:
    title: str
    blocks: list[Heading | Paragraph | Table | Pictures | Card] = field(default_factory=list)

    def pictures(self) -> list[Picture]:
        """Returns all pictures, in order."""
        return [picture for block in self.blocks if isinstance(block, Pictures | Card) for picture in block.pictures]


def to_html(page: Page) -> str:
    """Renders a page as one self-contained HTML file, with its pictures as data URIs."""
    return _render("report.html.jinja", page)


def to_markdown(page: Page, folder: str) -> str:
    """
    Renders a page as Markdown.

    Args:
        page: its blocks.
        folder: of its pictures, relative to the Markdown file.
    """
    return _render("report.md.jinja", page, escape=_escape_markdown, folder=folder)


def _render(template: str, page: Page, escape: Callable | None = None, **values: str) -> str:
    environment = Environment(
        loader=PackageLoader("llava_st_hf.evaluation"),
        autoescape=True,
        finalize=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(page=page, **values)


def _escape_markdown(value: object) -> Markup:
    """Escapes a value so that Markdown shows it unchanged, on one line. Called for every value that the Markdown template inserts."""
    if isinstance(value, Markup):  # rendered by a macro
        return value
    text = html.escape(" ".join(str(value).split()), quote=False)
    return Markup(re.sub(r"([\\`*_\[\]|~#])", r"\\\1", text))
