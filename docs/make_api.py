# SPDX-License-Identifier: Apache-2.0
"""Writes docs/api.md, the reference of all public names, from their docstrings: `make api`.

Signatures are taken from the sources, so the page does not depend on the version of Python or of a library.
"""

import ast
import importlib
import inspect
import re
import textwrap
from pathlib import Path


PACKAGES = {
    "llava_st_hf": "Model, processor, pipeline, results",
    "llava_st_hf.client": "Client of servers",
    "llava_st_hf.visualization": "Pictures and annotated videos",
    "llava_st_hf.exports": "Exports",
    "llava_st_hf.refinement": "Refinement by detectors and segmenters",
    "llava_st_hf.batch": "Batch inference",
    "llava_st_hf.data": "Training data",
    "llava_st_hf.training": "Training",
    "llava_st_hf.evaluation": "Evaluation",
}
PAGE = Path(__file__).with_name("api.md")
_SECTION = re.compile(r"(Args|Returns|Raises|Yields|Attributes):$")


def source_node(value) -> ast.AST | None:
    """The definition of a class or function in its source file; None for other values."""
    if not (inspect.isclass(value) or inspect.isfunction(value)):
        return None
    tree = ast.parse(Path(inspect.getsourcefile(value)).read_text(encoding="utf-8"))
    return next((node for node in tree.body if getattr(node, "name", None) == value.__name__), None)


def signature(name: str, function: ast.FunctionDef) -> str:
    """The call of a function or method as text, without `self` and `cls`."""
    arguments = function.args
    for group in (arguments.posonlyargs, arguments.args):
        group[:] = [argument for argument in group if argument.arg not in ("self", "cls")]
    returns = "" if function.returns is None else f" -> {ast.unparse(function.returns)}"
    text = f"{name}({ast.unparse(arguments)}){returns}"
    if len(text) <= 100:
        return text
    wrapped = textwrap.fill(ast.unparse(arguments), 96, break_long_words=False, break_on_hyphens=False)
    return f"{name}(\n{textwrap.indent(wrapped, '    ')}\n){returns}"


def render(docstring: str, names: dict[str, str]) -> list[str]:
    """Markdown lines of a docstring: sections as bold words, their entries as lists. `names` are anchors of public names."""
    lines, section, fenced = [], False, False
    for line in inspect.cleandoc(docstring).splitlines():
        fenced ^= line.strip().startswith("```")
        if _SECTION.match(line) and not fenced:
            lines += ["", f"**{line.strip().removesuffix(':')}**", ""]
            section = True
        elif section and line and not line.startswith(" "):
            section = False
            lines += ["", line]
        elif section and not fenced and line.strip() and line.startswith("    ") and not line.startswith("     "):
            entry = line.strip()
            found = re.match(r"([\w*, ]+?)( \(.+?\))?: ", entry)
            lines.append(f"- `{found[1]}`{found[2] or ''}: {entry[found.end() :]}" if found else f"- {entry}")
        else:
            lines.append(line[4:] if section and line.startswith("    ") else line)
    text = "\n".join(lines)
    link = lambda found: f"[`{found[1]}`](#{names[found[1]]})" if found[1] in names else f"`{found[1]}`"  # noqa: E731
    return re.sub(r"\[`(\w+)`\]", link, text).splitlines()


def fields_of(node: ast.ClassDef) -> list[str]:
    """Fields of a data class, as the arguments of its constructor."""
    if not any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return []
    annotated = [part for part in node.body if isinstance(part, ast.AnnAssign) and "ClassVar" not in ast.unparse(part.annotation)]
    return [ast.unparse(part) for part in annotated]


def describe(name: str, value, names: dict[str, str]) -> list[str]:
    node = source_node(value)
    if node is None:
        return []
    lines = [f"### {name}", ""]
    docstring = ast.get_docstring(node)
    if isinstance(node, ast.ClassDef):
        constructor = next((part for part in node.body if getattr(part, "name", None) == "__init__"), None)
        fields = fields_of(node)
        call = signature(name, constructor) if constructor else f"{name}({', '.join(fields)})" if fields else name
        if fields and len(call) > 100:
            call = f"{name}(\n" + "".join(f"    {field},\n" for field in fields) + ")"
    else:
        call = signature(name, node)
    lines += ["```text", call, "```", "", *render(docstring or "", names), ""]
    for method in node.body if isinstance(node, ast.ClassDef) else ():
        is_public = isinstance(method, ast.FunctionDef) and (not method.name.startswith("_") or method.name == "__call__")
        if is_public and (docstring := ast.get_docstring(method)):
            is_property = any(ast.unparse(decorator) == "property" for decorator in method.decorator_list)
            call = f"{name}.{method.name}" if is_property else signature(f"{name}.{method.name}", method)
            lines += [f"#### {name}.{method.name}", "", "```text", call, "```", "", *render(docstring, names), ""]
    return lines


def api_page() -> str:
    """The text of docs/api.md."""
    public = {package: sorted(importlib.import_module(package).__all__, key=str.lower) for package in PACKAGES}
    names = {name: name.lower() for listed in public.values() for name in listed}
    lines = ["# API reference", "", "Generated from the docstrings by `make api`.", ""]
    for package, title in PACKAGES.items():
        module = importlib.import_module(package)
        described = {name: text for name in public[package] if (text := describe(name, getattr(module, name), names))}
        lines += [f"## {title}", "", f"`from {package} import …`", ""]
        lines += [", ".join(f"[`{name}`](#{names[name]})" for name in described), ""]
        for text in described.values():
            lines += text
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in lines)).strip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(api_page(), encoding="utf-8")
    print(f"Wrote {PAGE}.")
