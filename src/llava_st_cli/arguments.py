# SPDX-License-Identifier: Apache-2.0
"""The parser of `llava-st`: its commands are functions that return their arguments, and nothing is executed here."""

import sys
from argparse import Namespace
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Annotated

import typer

from . import batch_arguments, checkpoint_arguments, data_arguments, question_arguments, server_arguments
from .terminal import error_line


PROGRAM = "llava-st"
# Plain help texts: the renderer of rich takes longer to import than all the rest.
app = typer.Typer(
    name=PROGRAM, rich_markup_mode=None, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)
for _module in (question_arguments, batch_arguments, data_arguments, checkpoint_arguments, server_arguments):
    _module.add_commands(app)


def package_version() -> str:
    """Version of the package whose sources are imported, without an import of torch."""
    file = Path(find_spec("llava_st_hf").origin).parent / "version.py"  # type: ignore[union-attr, arg-type]
    spec = spec_from_file_location("version", file)
    version = module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(version)  # type: ignore[union-attr]
    return version.__version__


def _print_version(given: bool) -> None:
    if given:
        print(PROGRAM, package_version())
        raise typer.Exit


@app.callback()
def _program(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Print the traceback of an error. The environment variable LLAVA_ST_DEBUG=1 does the same.")
    ] = False,
) -> None:
    """LLaVA-ST: spatio-temporal video grounding with time spans and bounding boxes.

    Exit status: 0 success, 1 failure, 2 wrong usage, 3 failed rows of batch, 130 interrupted."""
    context.obj["debug"] = debug


def parse(argv: list[str]) -> Namespace:
    """
    Parses a command line.

    Returns:
        The arguments, with the name of the command as `command`. `train` has the arguments that are not its own, which replace values of
        the recipe, as `overrides`.

    Raises:
        SystemExit: with status 2 after an error message on stderr; with status 0 for `--help`, `--version` and shell completion.
    """
    settings: dict = {}
    try:
        args = app(args=argv, prog_name=PROGRAM, standalone_mode=False, obj=settings)
    except typer.TyperException as error:
        commands = {command.name for command in app.registered_commands}
        command = next((argument for argument in argv if argument in commands), None)
        page = " ".join(filter(None, (PROGRAM, command, "--help")))
        message = error.format_message().rstrip(".")
        print(error_line(f"{message}{'' if message.endswith('?') else '.'} See `{page}`."), file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    if not isinstance(args, Namespace):  # the exit status of an option such as --help
        raise SystemExit(args or 0)
    args.debug = settings["debug"]
    return args
