# SPDX-License-Identifier: Apache-2.0
"""Imports between the packages of `llava_st_hf` run one way, and the files of `model/` can travel with a checkpoint."""

import ast
import sys
from pathlib import Path

import pytest

import llava_st_hf


ROOT = Path(llava_st_hf.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
# What each package may import from. The modules beside the packages are listed by name.
ALLOWED = {
    "version": set(),
    "files": set(),
    "deprecation": {"model"},
    "locking": set(),
    "distributed": set(),
    "model": set(),
    "visualization": {"model"},
    "exports": {"model", "files"},
    "checkpoints": {"model", "shapes", "version", "locking"},
    "data": {"model", "version", "deprecation"},
    "shapes": {"model", "data", "refinement"},
    "training": {"model", "checkpoints", "data", "evaluation", "version", "deprecation", "files", "locking", "distributed"},
    "evaluation": {"model", "data", "visualization", "version", "deprecation", "files", "locking", "distributed"},
    "refinement": {"model"},
    "serving": {"model", "checkpoints"},
    "integrations": {"model", "data", "evaluation", "exports", "checkpoints"},
    "client": {"model"},
    "batch": {"model", "checkpoints", "client", "commands", "exports", "shapes", "locking"},
    "app": {"model", "shapes", "exports", "visualization"},
    "launch": {"model", "data", "training", "shapes", "locking", "distributed"},
    "examples": {"model", "checkpoints", "shapes"},
    "trl": {"training"},
    "commands": {"model", "shapes", "files"},
    "cli": {"app", "batch", "serving", "integrations", "commands", "model", "checkpoints", "data", "evaluation", "version"},
    "__main__": {"cli"},
    "__init__": {"model", "exports", "refinement", "shapes", "version", "deprecation"},
}
# Beside the standard library.
MODEL_LIBRARIES = {"torch", "torchvision", "transformers", "numpy", "PIL", "av", "decord", "huggingface_hub", "accelerate"}


def imported(file: Path) -> set[str]:
    """Absolute dotted names of all modules that a file imports, at the top or in a function."""
    package = ["llava_st_hf", *file.relative_to(ROOT).parent.parts]
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names.update([module] if module != "llava_st_hf" else [f"{module}.{alias.name}" for alias in node.names])
    return names


def place(name: str) -> str:
    """The package of `llava_st_hf`, or the module beside the packages, that a dotted name is in."""
    part = name.split(".")[1]
    return part if part in ALLOWED else "__init__"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_packages_import_in_one_direction(file):
    own = file.relative_to(ROOT).parts[0].removesuffix(".py")
    targets = {place(name) for name in imported(file) if name.startswith("llava_st_hf.")}
    allowed = ALLOWED[own] | {own}
    assert targets <= allowed, f"{file.relative_to(ROOT)} imports from {', '.join(sorted(targets - allowed))}"


def test_every_package_is_listed():
    assert {file.relative_to(ROOT).parts[0].removesuffix(".py") for file in FILES} == set(ALLOWED)


@pytest.mark.parametrize("file", [file for file in FILES if file.parent == ROOT / "model"], ids=lambda file: file.name)
def test_model_files_import_their_siblings_and_few_libraries(file):
    libraries = {name.split(".")[0] for name in imported(file)} - set(sys.stdlib_module_names) - {"llava_st_hf"}
    assert libraries <= MODEL_LIBRARIES
    assert not [path for path in (ROOT / "model").iterdir() if path.is_dir() and path.name != "__pycache__"]
