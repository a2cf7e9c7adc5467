# SPDX-License-Identifier: Apache-2.0
"""Entry point of the `llava-st` command."""

import io
import os
import select
import sys
import traceback
from argparse import Namespace
from typing import TextIO

from .arguments import parse
from .checks import check
from .renamed import rename
from .terminal import error_line


# Errors whose messages are for users. An ImportError is that of an optional library.
_EXPECTED = (ValueError, OSError, ImportError, MemoryError)
INTERRUPTED = 130  # as shells report a process that Ctrl-C has ended


def main(argv: list[str] | None = None) -> int:
    """
    Runs the command line.

    Returns:
        0 after success; 1 after a failure, which is one line on stderr; 130 after Ctrl-C.

    Raises:
        SystemExit: with status 2 after wrong usage, and with 0 after `--help` and `--version`.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not the streams of some test runners
            stream.reconfigure(errors="backslashreplace")
    args = parse(rename(sys.argv[1:] if argv is None else list(argv)))
    debug = args.debug or os.environ.get("LLAVA_ST_DEBUG", "") not in ("", "0")
    try:
        check(args)
        status = _run(args)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print(error_line("Interrupted."), file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError as error:
        return _broken_pipe(error, debug)
    except Exception as error:
        return _fail(error, debug)


def _run(args: Namespace) -> int:
    """Runs a command and returns the exit status."""
    if args.command in ("train", "recipes"):  # no import of torch in this process
        from .training import run_recipes, run_train

        {"train": run_train, "recipes": run_recipes}[args.command](args)
        return 0
    if args.command == "doctor":  # reports packages that cannot be imported
        from .doctor import run_doctor

        return run_doctor(args)
    from llava_st_hf.cli import run

    return run(args)


def _fail(error: Exception, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    message = str(error)
    if not isinstance(error, _EXPECTED):
        message = f"{type(error).__name__}: {message}" + ("" if debug else " (LLAVA_ST_DEBUG=1 prints the traceback.)")
    print(error_line(message), file=sys.stderr)
    return 1


def _broken_pipe(error: BrokenPipeError, debug: bool) -> int:
    """Ends quietly if the reader of stdout, such as `head`, has ended; any other broken pipe is an error."""
    if not _has_no_reader(sys.stdout):
        return _fail(error, debug)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes stdout once more when it ends
    return 1


def _has_no_reader(stream: TextIO) -> bool:
    """Whether a stream is a pipe that nobody reads."""
    if sys.platform == "win32":
        return False
    try:
        pipe = select.poll()
        pipe.register(stream.fileno(), 0)  # errors are reported without being asked for
        return any(event & select.POLLERR for _, event in pipe.poll(0))
    except io.UnsupportedOperation:  # no file
        return False


if __name__ == "__main__":
    sys.exit(main())
