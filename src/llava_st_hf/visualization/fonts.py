# SPDX-License-Identifier: Apache-2.0
"""Fonts for text of any script: matplotlib's DejaVu Sans, then the Noto fonts of the extra `draw`, chosen glyph by glyph."""

import importlib.util
import unicodedata
from functools import cache
from pathlib import Path


# Packages of the extra `draw` that are OpenType fonts (SIL Open Font License): Chinese, Japanese and Korean; emoji and other scripts.
FONT_PACKAGES = ("noto_cjk_sans_otc", "manimgx_fonts")
# Of the ten families in the collection of Noto Sans CJK, that with the shapes of simplified Chinese. It has the glyphs of all others.
_CJK_FAMILY = "Noto Sans CJK SC"
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@cache
def font_families() -> tuple[str, ...]:
    """
    Names of the font families for text, in the order in which matplotlib searches them for a glyph.

    The fonts of the packages that are installed are added to matplotlib's font manager.
    """
    from matplotlib import font_manager

    names = ["DejaVu Sans"]
    for package in FONT_PACKAGES:
        spec = importlib.util.find_spec(package)
        for file in sorted(Path(spec.origin).parent.glob("*.[ot]t[cf]")) if spec is not None and spec.origin else ():
            if "Italic" in file.name:
                continue
            known = len(font_manager.fontManager.ttflist)
            font_manager.fontManager.addfont(file)
            added = [font.name for font in font_manager.fontManager.ttflist[known:]]
            names += [_CJK_FAMILY] if _CJK_FAMILY in added else added[:1]  # matplotlib 3.10 reads the first family of a collection alone
    return tuple(names)


@cache
def _has_glyph(character: str) -> bool:
    return any(font.get_char_index(ord(character)) for font in _faces())


@cache
def _faces() -> tuple:
    from matplotlib import font_manager

    paths = [font_manager.findfont(font_manager.FontProperties(family=[name]), fallback_to_default=False) for name in font_families()]
    return tuple(font_manager.get_font(path) for path in paths)


def printable(text: str) -> tuple[str, str]:
    """
    Returns a text that the fonts can draw in one line, and its characters without a glyph, for which it has U+FFFD.

    Line breaks and other control characters become spaces, variation selectors are left out.
    """
    drawn: list[str] = []
    missing: dict[str, None] = {}
    for character in unicodedata.normalize("NFC", text):
        kind = unicodedata.category(character)
        if character.isspace() or kind == "Cc":
            drawn.append(" ")
        elif "\N{VARIATION SELECTOR-1}" <= character <= "\N{VARIATION SELECTOR-16}":
            continue
        elif kind == "Cf" or (kind not in ("Cs", "Cn") and _has_glyph(character)):
            drawn.append(character)
        else:
            drawn.append(_REPLACEMENT)
            if character != _REPLACEMENT:
                missing[character] = None
    return " ".join("".join(drawn).split(" ")), "".join(missing)


def missing_glyphs_note(missing: str) -> str:
    """The note about characters without a glyph, at most ten of them."""
    names = ", ".join(f"U+{ord(character):04X}" for character in missing[:10]) + ", …" * (len(missing) > 10)
    absent = [package.replace("_", "-") for package in FONT_PACKAGES if importlib.util.find_spec(package) is None]
    advice = f" The fonts of `pip install {' '.join(absent)}` may have them." if absent else ""
    return f"No installed font has glyphs for {names}; {_REPLACEMENT} is drawn instead.{advice}"
