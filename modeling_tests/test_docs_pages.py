# SPDX-License-Identifier: Apache-2.0
"""Consistency of README and docs with the repository: links, tables, examples, command lines, recipe options and the list of modules."""

import ast
import importlib.util
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
from trl import ModelConfig
from typer.main import get_command

from llava_st_cli.arguments import app, parse
from llava_st_cli.training import FOLDERS, find_file
from llava_st_hf.exports import FORMATS
from llava_st_hf.launch import sft
from llava_st_hf.training import LlavaSTTrainingConfig


ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
RECIPE_FIELDS = (LlavaSTTrainingConfig, ModelConfig, sft.DataArguments)
CODE = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    """Returns the code blocks of a page in one language."""
    return [code for found, code in CODE.findall(read(page)) if found == language]


def anchors(page: Path) -> set[str]:
    """Returns the anchors of the headings of a page, in GitHub's form."""
    headings = re.findall(r"^#+ (.+)$", CODE.sub("", read(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_docs_links_point_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", read(page))):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_docs_table_rows_have_as_many_columns_as_the_header(page):
    lines = CODE.sub(lambda block: "\n" * block[0].count("\n"), read(page)).splitlines()
    columns = None
    for number, line in enumerate(lines, start=1):
        if not line.startswith("|"):
            columns = None
            continue
        cells = len(re.findall(r"(?<!\\)\|", line)) - 1
        assert line.rstrip().endswith("|"), f"line {number}"
        assert columns in (None, cells), f"line {number} has {cells} columns, its table {columns}"
        columns = cells


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_docs_python_examples_are_valid_syntax(page):
    for code in blocks(page, "python"):
        ast.parse(code.replace("…", "..."))


def test_exports_page_lists_all_formats():
    table = read(ROOT / "docs/exports.md").split("## Formats")[1].split("\n## ")[0]
    assert {name for row in re.findall(r"^\| (`.+?) \|", table, re.MULTILINE) for name in re.findall(r"`([\w-]+)`", row)} == set(FORMATS)


def test_shapes_page_example_writes_a_training_split(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = blocks(ROOT / "docs/shapes.md", "python")
    exec(example, {})
    assert (tmp_path / "clip.mp4").is_file() and (tmp_path / "shapes/stage3.yaml").is_file()


def commands() -> list[str]:
    """Returns every `llava-st` command line of the code blocks of all pages, without comments."""
    lines = [
        line
        for page in PAGES
        for code in blocks(page, "bash")
        for line in code.replace("\\\n", " ").splitlines()
        if line.startswith("llava-st ")
    ]
    return sorted({shlex.join(shlex.split(line, comments=True)) for line in lines})


@pytest.mark.parametrize("command", commands())
def test_docs_command_lines_are_accepted_by_the_parser(command):
    args = parse(shlex.split(command)[1:])
    if args.command == "train":
        assert find_file(args.recipe, FOLDERS["recipes"], "recipe")
        options = {name.removeprefix("--").split("=")[0] for name in args.overrides if name.startswith("--")}
        assert options <= {field.name for config in RECIPE_FIELDS for field in fields(config)}


def test_command_line_page_lists_every_command_with_its_options():
    page = read(ROOT / "docs/command_line.md")
    sections = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", CODE.sub("", page), re.MULTILINE | re.DOTALL))
    commands = {name: command for name, command in get_command(app).commands.items() if not command.hidden}
    assert set(re.findall(r"^\| \[`([\w-]+)`\]", page, re.MULTILINE)) == set(commands) == set(sections)
    for name, command in commands.items():
        listed = re.findall(r"`(--[\w-]+)`", sections[name].partition("\nOptions: ")[2])
        # The first name of each option: `--num_processes` is also written `--num-processes`.
        assert sorted(listed) == sorted(option.opts[0] for option in command.params if option.param_type_name == "option"), name


def test_api_page_is_that_of_the_docstrings():
    spec = importlib.util.spec_from_file_location("make_api", ROOT / "docs/make_api.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert read(ROOT / "docs/api.md") == module.api_page(), "run `make api`"


def test_training_page_options_are_fields_of_the_recipe():
    page = read(ROOT / "docs/training.md")
    table = page.split("## Recipe options")[1].split("\n## ")[0]
    named = {name for row in re.findall(r"^\| (`.+?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    known = {field.name for config in RECIPE_FIELDS for field in fields(config)}
    assert named and named <= known


def test_development_page_lists_every_module_with_its_public_names():
    rows = re.findall(r"^\| (`.+?) \| *(.*?) *\|", read(ROOT / "docs/development.md"), re.MULTILINE)
    listed = {module: re.findall(r"`(\w+)`", names) for modules, names in rows for module in re.findall(r"`(\S+\.py)`", modules)}
    packages = {"": ROOT / "src/llava_st_hf", "llava_st_cli/": ROOT / "src/llava_st_cli"}
    files = {
        f"{prefix}{file.relative_to(package)}": file
        for prefix, package in packages.items()
        for file in package.rglob("*.py")
        if file.name != "__init__.py"
    }
    assert set(listed) == set(files)
    for modules_of_row, names in rows:
        text = "".join(read(files[module]) for module in re.findall(r"`(\S+\.py)`", modules_of_row))
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"^(class|def|async def) {name}\b|^{name}\b.* = ", text, re.MULTILINE), f"{modules_of_row}: {name}"
