# SPDX-License-Identifier: Apache-2.0
"""`llava-st chat`: questions about one image or video, which is encoded once."""

import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import suppress

import torch
from rich.console import Console

from llava_st_cli.terminal import error_line, one_line, printable

from ..model.checks_llava_st import is_finite_number
from ..model.media_info_llava_st import MediaInfo
from ..model.questions_llava_st import prepare_question
from ..model.results_llava_st import Grounding
from ..model.session_llava_st import GroundingSession
from ..model.tasks_llava_st import TASKS
from .models import load_pipeline, load_processor
from .option_names import with_option_names
from .records import print_events, print_json


_MEDIUM = ("clip", "start", "end", "fps", "num_frames", "video_backend", "allow_truncated")
_GENERATION = ("max_new_tokens", "scores", "grammar")
# Command → how many numbers it takes.
_NUMBERS = {"/span": 2, "/time": 1, "/box": 4}
HELP = f"""\
Text is a question. Without a task it continues the chat; with a task it is the expression or sentence of its prompt template.
/task NAME           prompt template of the next questions: {", ".join(TASKS)}; without NAME: none
/span START END      time span of the prompt, in seconds; without numbers: none
/time SECONDS        start of the event of elc, in seconds
/box X1 Y1 X2 Y2     bounding box of the prompt, in pixels
/ask                 ask a question of a task that takes no text: dgc, reg, tr, elc
/reset               start a new chat, without task, span, time and box
/help                print this help
/quit                end; so does the end of the input"""


class UnknownCommandError(ValueError):
    """A line that begins with a slash and is not a command."""


class Chat:
    """
    Lines of the user → questions to a session.

    Args:
        session: of the image or video.
    """

    def __init__(self, session: GroundingSession):
        self.session = session
        self.values: dict = {}  # task, span, time and box of the next questions
        self.continues = False  # whether there is a chat that text without a task continues

    def set(self, line: str) -> None:
        """
        Executes a command that changes the next questions.

        Raises:
            ValueError: naming the command and what it takes.
        """
        command, *arguments = line.split()
        if command == "/reset":
            self.values, self.continues = {}, False
        elif command == "/task":
            if len(arguments) > 1 or (arguments and arguments[0] not in TASKS):
                raise ValueError(f"/task takes one of {', '.join(TASKS)}, or nothing; got {' '.join(arguments)}.")
            self._set("task", arguments[0] if arguments else None)
        elif command in _NUMBERS:
            self._set(command[1:], _numbers(command, arguments))
        else:
            raise UnknownCommandError(f"{command} is not a command. /help lists them.")

    def _set(self, name: str, value) -> None:
        self.values.pop(name, None)
        if value is not None:
            self.values[name] = value

    def ask(self, text: str | None) -> Iterator[dict]:
        """Streams the answer to a question with the current task, span, time and box: see `GroundingSession.stream`."""
        question = self.values if text is None else {**self.values, "text": text}
        if not question:
            raise ValueError("/ask needs a task: set it by /task.")
        parts = self.session.stream(follow_up=self.continues and "task" not in self.values, **question)
        self.continues = False  # a chat whose answer is not complete cannot be continued
        yield from parts
        self.continues = True


def _numbers(command: str, arguments: list[str]) -> float | list[float] | None:
    """The numbers of a command; None if it has none."""
    count = _NUMBERS[command]
    values = []
    for argument in arguments:
        with suppress(ValueError):
            values.append(float(argument))
    if len(values) != len(arguments) or len(values) not in (0, count) or not all(map(is_finite_number, values)):
        raise ValueError(f"{command} takes {count} number{'s' * (count > 1)}, or none to remove it; got {' '.join(arguments)}.")
    return None if not values else values[0] if count == 1 else values


def run_chat(args: Namespace) -> int:
    """Answers the lines of stdin. Returns the exit status, 1 if a question of a pipe could not be answered."""
    processor = load_processor(args)
    values = {name: getattr(args, name) for name in (*_MEDIUM, *_GENERATION)}
    given = {name: value for name, value in values.items() if value is not None and value is not False}
    with with_option_names(_MEDIUM):  # before the weights are read; the session reads the video again
        prepare_question(processor, args.medium, text="?", **{name: value for name, value in given.items() if name in _MEDIUM})
    grounder = load_pipeline(args, processor)
    reads_terminal, prints_json = sys.stdin.isatty(), args.json or not sys.stdout.isatty()
    failures = 0
    with grounder.open(args.medium, **given) as session:
        chat = Chat(session)
        if reads_terminal:
            print(f"{one_line(args.medium)}: {describe(session.media_info)}. /help lists the commands.", file=sys.stderr)
        for line in _lines(chat, reads_terminal):
            if line == "/quit":
                break
            if line == "/help":
                print(HELP, file=sys.stderr)
                continue
            text = None if line == "/ask" else line
            try:
                if line.startswith("/") and text is not None:
                    chat.set(line)
                else:
                    _answer(chat, text, args.medium, prints_json)
            except KeyboardInterrupt:  # ends the answer, not the chat
                if not reads_terminal:
                    raise
                print(error_line("The answer is interrupted."), file=sys.stderr)
            except (ValueError, OSError, torch.OutOfMemoryError) as error:
                if isinstance(error, BrokenPipeError):
                    raise
                failures += 1
                print(error_line(str(error)), file=sys.stderr)
                if prints_json and not isinstance(error, UnknownCommandError):
                    print_json({"source": args.medium, "query": text, "error": str(error)}, indent=None)
    return 1 if failures and not reads_terminal else 0


def _lines(chat: Chat, reads_terminal: bool) -> Iterator[str]:
    """Lines of stdin that are not blank."""
    if not reads_terminal:
        yield from (line for line in map(str.strip, sys.stdin) if line)
        return
    with suppress(ImportError):
        import readline  # noqa: F401  # makes `input` a line editor with history; not on Windows
    while True:
        try:
            prompt = f"{chat.values.get('task', '')}> "
            if not sys.stdout.isatty():  # `input` would write the prompt between the answers
                print(prompt, end="", file=sys.stderr, flush=True)
                prompt = ""
            line = input(prompt).strip()
        except EOFError:
            print(file=sys.stderr)
            return
        if line:
            yield line


def _answer(chat: Chat, text: str | None, source: str, prints_json: bool) -> None:
    """Prints an answer: as text while it is generated and then as a table, or as one line of JSON."""
    for part in chat.ask(text):
        if part["type"] == "text" and not prints_json:
            print(printable(part["text"]), end="", flush=True)
        if part["type"] == "answer":
            answer = part["answer"]
    if prints_json:
        print_json({"source": source, **answer}, indent=None)
        return
    print()
    grounding = Grounding.from_dict(answer)
    print_events(Console(highlight=False, markup=False, emoji=False), grounding, with_text=False)


def describe(media: MediaInfo) -> str:
    """Kind, size and duration of an image or video, for people."""
    size = f"{media.width}×{media.height} pixels"
    if media.kind == "image":
        return f"image of {size}"
    frames = "" if media.total_num_frames is None else f", {media.total_num_frames} frames"
    duration = "" if media.duration is None else f", {media.duration:.1f} s"
    return f"video of {size}{frames}{duration}"
