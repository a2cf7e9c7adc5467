# SPDX-License-Identifier: Apache-2.0
"""Commands and options of version 0.1, accepted with a `FutureWarning` until version 0.3."""

import argparse
import warnings


# Old command → new command.
COMMANDS = {"validate": "check-data", "start-stage1": "create-stage1"}
# Old value of --protocol → new value.
PROTOCOLS = {"released": "original"}


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} is now {new}; the old name will be removed in version 0.3.", FutureWarning, stacklevel=2)


def rename_command(argv: list[str]) -> list[str]:
    """`argv` with the new name of its command."""
    if not argv or argv[0] not in COMMANDS:
        return argv
    new = COMMANDS[argv[0]]
    _warn(f"llava-st {argv[0]}", f"llava-st {new}")
    return [new, *argv[1:]]


def protocol(value: str) -> str:
    """Converts a value of `--protocol` to its new name."""
    if value in PROTOCOLS:
        _warn(f"--protocol {value}", f"--protocol {PROTOCOLS[value]}")
    return PROTOCOLS.get(value, value)


class _StoreRenamed(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        if option_string not in self.option_strings:
            _warn(str(option_string), self.option_strings[0])
        setattr(namespace, self.dest, values)


def add_renamed_argument(parser: argparse.ArgumentParser, new: str, old: str, **options) -> None:
    """Adds the option `new` to a parser; `old` is accepted too, and is not listed in the help."""
    action = parser.add_argument(new, old, action=_StoreRenamed, **options)
    action.option_strings = [new]  # what help and errors print; the parser has its own table of both
