# SPDX-License-Identifier: Apache-2.0
"""A page as a list of blocks, and the page in HTML and in Markdown.

Blocks hold plain words; what is special in a format is escaped here and nowhere else, so a question may say what it likes.
"""

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Heading:
    level: int  # 1 to 6
    text: str


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Table:
    """
    Args:
        header: one text per column.
        rows: as many texts each.
        marked: columns that belong together, which HTML tints.
        words: columns of words, which begin at the left; numbers end at the right.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    marked: Sequence[int] = ()
    words: Sequence[int] = (0,)


@dataclass(frozen=True)
class Picture:
    """
    Args:
        name: of its file, with `.svg` or `.jpg`.
        data: of the file.
        words: what is to be seen.
    """

    name: str
    data: bytes
    words: str


@dataclass(frozen=True)
class Pictures:
    """Pictures side by side where there is room."""

    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Card:
    """
    One sample.

    Args:
        title: above.
        facts: names and texts beside the picture.
        picture: None where there is none.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    picture: Picture | None = None


@dataclass
class Page:
    title: str
    blocks: list[Heading | Paragraph | Table | Pictures | Card] = field(default_factory=list)

    def pictures(self) -> list[Picture]:
        """All of them, in order."""
        found: list[Picture] = []
        for block in self.blocks:
            if isinstance(block, Pictures):
                found += block.pictures
            elif isinstance(block, Card) and block.picture is not None:
                found.append(block.picture)
        return found


_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 1180px; margin: 2em auto; padding: 0 1.2em; }
h1 { font-size: 1.7em; } h2 { font-size: 1.35em; margin-top: 2em; border-bottom: 1px solid #ccc; } h3 { margin-top: 1.6em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .8em 0; font-variant-numeric: tabular-nums; }
th, td { border: 1px solid #d8d8d8; padding: .25em .7em; text-align: right; vertical-align: top; }
td { white-space: nowrap; } td.words { white-space: normal; }
th { background: #f3f3f3; } th.words, td.words { text-align: left; }
td.marked { background: #fff6e0; } th.marked { background: #ffebb8; }
.row { display: flex; flex-wrap: wrap; gap: 1em; margin: .8em 0; }
.row svg { border: 1px solid #e4e4e4; max-width: 100%; height: auto; }
.card { border: 1px solid #ddd; border-radius: 6px; padding: .6em 1em 1em; margin: 1em 0; break-inside: avoid; }
.card h4 { margin: .2em 0 .6em; } .card img { max-width: 100%; height: auto; display: block; margin-bottom: .6em; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15em 1em; margin: 0; }
dt { color: #666; } dd { margin: 0; overflow-wrap: anywhere; }
"""
_MEDIA_TYPES = {"jpg": "image/jpeg"}


def to_html(page: Page) -> str:
    """The page as one HTML file that needs no other: charts are in it as they are, pictures as data URIs."""
    body = "\n".join(_html_block(block) for block in page.blocks)
    title = html.escape(page.title)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport" content="width=device-width">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n{body}\n</body>\n</html>\n"
    )


def to_markdown(page: Page, pictures: str) -> str:
    """
    The page in Markdown.

    Args:
        page: see there.
        pictures: folder of its pictures, from where the page lies.
    """
    return f"# {_plain(page.title)}\n\n" + "\n\n".join(_markdown_block(block, pictures) for block in page.blocks) + "\n"


def _html_block(block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
    if isinstance(block, Paragraph):
        return f"<p>{html.escape(block.text)}</p>"
    if isinstance(block, Table):
        rows = [_html_cells("th", block.header, block), *(_html_cells("td", row, block) for row in block.rows)]
        return f'<div class="wide"><table>\n{chr(10).join(rows)}\n</table></div>'
    if isinstance(block, Pictures):
        return f'<div class="row">{"".join(map(_html_picture, block.pictures))}</div>'
    facts = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in block.facts)
    picture = "" if block.picture is None else _html_picture(block.picture)
    return f'<div class="card"><h4>{html.escape(block.title)}</h4>{picture}<dl>{facts}</dl></div>'


def _html_cells(tag: str, cells: Sequence[str], table: Table) -> str:
    written = []
    for column, text in enumerate(cells):
        classes = [name for name, columns in (("marked", table.marked), ("words", table.words)) if column in columns]
        opened = f'{tag} class="{" ".join(classes)}"' if classes else tag
        written.append(f"<{opened}>{html.escape(text)}</{tag}>")
    return f"<tr>{''.join(written)}</tr>"


def _html_picture(picture: Picture) -> str:
    ending = picture.name.rpartition(".")[2]
    if ending == "svg":
        return picture.data.decode()
    encoded = base64.b64encode(picture.data).decode()
    return f'<img alt="{html.escape(picture.words)}" src="data:{_MEDIA_TYPES[ending]};base64,{encoded}">'


def _markdown_block(block, pictures: str) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {_plain(block.text)}"
    if isinstance(block, Paragraph):
        return _plain(block.text)
    if isinstance(block, Table):
        ruler = "|".join("---" if column in block.words else "---:" for column in range(len(block.header)))
        lines = [_markdown_cells(block.header), f"|{ruler}|", *map(_markdown_cells, block.rows)]
        return "\n".join(lines)
    if isinstance(block, Pictures):
        return "\n".join(_markdown_picture(picture, pictures) for picture in block.pictures)
    picture = "" if block.picture is None else f"{_markdown_picture(block.picture, pictures)}\n\n"
    facts = "\n".join(f"- **{_plain(name)}:** {_plain(text)}" for name, text in block.facts)
    return f"#### {_plain(block.title)}\n\n{picture}{facts}"


def _markdown_cells(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_plain, cells))} |"


def _markdown_picture(picture: Picture, folder: str) -> str:
    return f"![{_plain(picture.words)}]({folder}/{picture.name})"


def _plain(text: str) -> str:
    """Words that Markdown shows as they are, on one line."""
    escaped = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", escaped)
