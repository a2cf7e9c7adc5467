# SPDX-License-Identifier: Apache-2.0
"""Entry point of the `llava-st` command."""

import argparse
import os
import sys

from .arguments import parse
from .renamed import rename_command
from .training import run_recipes, run_train


# Commands that need no import of torch in this process.
_LIGHT_COMMANDS = {"train": run_train, "recipes": run_recipes}
# Options that are numbers of at least 1.
_COUNTS = ("max_new_tokens", "batch_size", "limit", "num_frames", "num_processes", "num_machines", "main_process_port")


def main(argv: list[str] | None = None) -> int:
    """Runs the command line. An error is one line on stderr and exit status 1; wrong usage is exit status 2."""
    args = parse(rename_command(sys.argv[1:] if argv is None else list(argv)))
    try:
        _check(args)
        if args.command in _LIGHT_COMMANDS:
            _LIGHT_COMMANDS[args.command](args)
            return 0
        from llava_st_hf.cli import COMMANDS

        COMMANDS[args.command](args)
    except (ValueError, OSError) as error:
        print(f"llava-st: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raises an error for what can be found wrong without an import of torch."""
    for name in _COUNTS:
        value = getattr(args, name, None)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}.")
    if (workers := getattr(args, "workers", 0)) < 0:
        raise ValueError(f"--workers must be at least 0, got {workers}.")
    if args.command == "ground":
        _check_question(args)
    if args.command == "check-data":
        _check_file("The mixture", args.mixture)
    if args.command == "eval":
        _check_file("--annotations", args.annotations)
        if not os.path.isdir(args.data_folder):
            raise FileNotFoundError(f"--data-folder {args.data_folder} is not a folder.")
    if args.command == "score" and args.references is not None:
        if args.answer_format is None:
            raise ValueError("--references needs --answer-format, the format of the answers.")
        _check_file("--references", args.references)
    output = getattr(args, "output", None)
    if output is not None and os.path.exists(output) and not os.path.isdir(output):
        raise NotADirectoryError(f"The output {output} is a file; give a folder.")


def _check_question(args: argparse.Namespace) -> None:
    if args.text is not None and not args.text.strip():
        raise ValueError(f"--text must not be blank, got {args.text!r}.")
    if args.task is None and args.text is None:
        raise ValueError("The question is missing: give --text, or --task.")
    for name in ("span", "time", "box"):
        if args.task is None and getattr(args, name) is not None:
            raise ValueError(f"--{name} needs --task. In --text, write times as <t1.8s> and pixels as <w320px>.")
    if args.clip is not None and (args.start is not None or args.end is not None):
        raise ValueError("--clip cannot be combined with --start or --end: a clip is given in frames or in seconds.")
    if "://" not in args.media and not args.media[:5].lower() == "data:" and not os.path.exists(args.media):
        raise FileNotFoundError(f"No such file or folder: {args.media[:500]}")


def _check_file(name: str, path: str) -> None:
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{name} {path} is not a file.")


if __name__ == "__main__":
    sys.exit(main())
