# SPDX-License-Identifier: Apache-2.0
"""Commands and options of version 0.1, accepted with a `FutureWarning` until version 0.3."""

import warnings


# Old command → new command.
COMMANDS = {"validate": "check-data", "start-stage1": "create-stage1"}
# Command → old option → new option.
OPTIONS = {"eval": {"--media": "--data-folder"}, "score": {"--reader": "--answer-format", "--rows": "--references"}}
# Old value of --protocol → new value.
PROTOCOLS = {"released": "original"}


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} is now {new}; the old name will be removed in version 0.3.", FutureWarning, stacklevel=3)


def rename(argv: list[str]) -> list[str]:
    """`argv` with the new names of its command, options and values. Options before the command have no old names."""
    known = {*COMMANDS, *OPTIONS}
    position = next((position for position, argument in enumerate(argv) if not argument.startswith("-")), None)
    if position is None or argv[position] not in known:
        return argv
    command = argv[position]
    if command in COMMANDS:
        _warn(f"llava-st {command}", f"llava-st {COMMANDS[command]}")
        command = COMMANDS[command]
    renamed = [*argv[:position], command]
    for argument in argv[position + 1 :]:
        option, equals, value = argument.partition("=")
        if (new := OPTIONS.get(command, {}).get(option)) is not None:
            _warn(option, new)
            option = new
        if command == "score" and option == "--protocol" and value in PROTOCOLS:
            _warn(f"--protocol {value}", f"--protocol {PROTOCOLS[value]}")
            value = PROTOCOLS[value]
        elif command == "score" and renamed[-1] == "--protocol" and argument in PROTOCOLS:
            _warn(f"--protocol {argument}", f"--protocol {PROTOCOLS[argument]}")
            option = PROTOCOLS[argument]
        renamed.append(f"{option}{equals}{value}")
    return renamed
