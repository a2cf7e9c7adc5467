# SPDX-License-Identifier: Apache-2.0
"""Checks of arguments that need no import of torch, made before anything is loaded."""

import math
import os
import re
from argparse import Namespace

from .media_inputs import expand_media, is_url
from .question_arguments import EXPORT_FORMATS


# Options that are numbers of at least 1.
_COUNTS = (
    *("max_new_tokens", "batch_size", "limit", "num_frames", "num_processes", "num_machines", "main_process_port"),
    *("max_model_len", "max_images", "max_videos", "max_upload"),
    *("connections", "num_shards", "gpus"),
)
_DEVICE = re.compile(r"(cpu|mps|auto)|(cuda|xpu)(:\d+)?")
DRAW_SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".png", ".jpg", ".jpeg", ".gif", ".webp")
MAX_SCALE = 16  # that of `draw`
# Suffixes that decide the format of an export.
_EXPORT_SUFFIXES = (".csv", ".parquet", ".srt", ".vtt", ".xml")
_SUBTITLES = ("srt", "webvtt")


def check(args: Namespace) -> None:
    """
    Checks the arguments of any command. `ground` and `chat` get `inputs`, the paths and URLs of its images and videos.

    Raises:
        ValueError, OSError: naming the option, its value and what is expected.
    """
    for name in _COUNTS:
        value = getattr(args, name, None)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}.")
    if (workers := getattr(args, "workers", None) or 0) < 0:
        raise ValueError(f"--workers must be at least 0, got {workers}.")
    device = getattr(args, "device", None)
    if device is not None and not _DEVICE.fullmatch(device):
        raise ValueError(f"--device {device} is not a device; it must be cpu, cuda, cuda:N, mps, xpu, xpu:N or auto.")
    if args.command == "batch":
        _check_batch(args)
    if args.command == "ground":
        _check_question(args)
    if args.command == "chat":
        _check_clip(args)
        if not is_url(args.medium) and not os.path.exists(args.medium):
            raise FileNotFoundError(f"No such file or folder: {args.medium[:500]}")
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
    if args.command == "fingerprint":
        if not os.path.isdir(args.folder):
            raise FileNotFoundError(f"{args.folder} is not a folder.")
        if args.dtype is not None and not args.check:
            raise ValueError("--dtype is for --check: a fingerprint is computed in float32.")
    output = getattr(args, "output", None)
    if output is not None and "://" not in output and os.path.exists(output) and not os.path.isdir(output):
        raise NotADirectoryError(f"The output {output} is a file; give a folder.")
    if args.command == "score" and not os.path.exists(args.predictions):
        raise FileNotFoundError(f"The predictions {args.predictions} are not a file or folder.")
    if args.command == "report" and not os.path.isdir(args.folder):
        raise FileNotFoundError(f"{args.folder} is not a folder.")
    if args.command == "merge-lora" and not os.path.isdir(args.adapter):
        raise FileNotFoundError(f"The adapter {args.adapter} is not a folder.")


def _check_question(args: Namespace) -> None:
    if args.text is not None and not args.text.strip():
        raise ValueError(f"--text must not be blank, got {args.text!r}.")
    if args.task is None and args.text is None:
        raise ValueError("The question is missing: give --text, or --task.")
    for name in ("span", "time", "box"):
        if args.task is None and getattr(args, name) is not None:
            raise ValueError(f"--{name} needs --task. In --text, write times as <t1.8s> and pixels as <w320px>.")
    _check_clip(args)
    _check_windows(args)
    args.inputs, args.several = expand_media(args.media)
    if args.jsonl is not None:
        _check_writable("--jsonl", args.jsonl)
    _check_export(args)
    _check_draw(args)


def _check_batch(args: Namespace) -> None:
    if args.workers is not None and (args.workers < 1 or args.ray is None):
        raise ValueError(f"--workers must be at least 1 and needs --ray, got {args.workers}.")
    if args.max_retries < 0:
        raise ValueError(f"--max-retries must be at least 0, got {args.max_retries}.")
    for name in ("timeout", "wait_for_server", "price_per_hour"):
        value = getattr(args, name)
        if value is not None and not (0 <= value < math.inf and (value or name != "timeout")):
            raise ValueError(f"--{name.replace('_', '-')} must be a positive number, got {value:g}.")
    if args.server and args.model is None:
        raise ValueError("--server needs --model, the checkpoint that it serves: its processor prepares media and reads answers.")
    if args.server and (args.device is not None or args.dtype is not None):
        raise ValueError("--device and --dtype are those of a model in this process, and --server gives another one: leave them out.")
    if args.exact and not args.server:
        raise ValueError("--exact is for --server; a model in this process gets exact times and boxes always.")
    for name in ("manifest", "media_root"):
        path = getattr(args, name)
        if path is not None and "://" not in path and not os.path.exists(path):
            raise FileNotFoundError(f"No such file or folder: {path[:500]}")
    if args.ray is not None and args.output.startswith("memory://"):
        raise ValueError("--ray needs an output that all workers see, not memory://.")


def _check_clip(args: Namespace) -> None:
    if args.clip is not None and (args.start is not None or args.end is not None):
        raise ValueError("--clip cannot be combined with --start or --end: a clip is given in frames or in seconds.")


def _check_windows(args: Namespace) -> None:
    for name in ("window", "overlap"):
        value = getattr(args, name)
        if value is not None and not (0 < value < math.inf or (name == "overlap" and value == 0)):
            raise ValueError(f"--{name} must be a positive number of seconds, got {value:g}.")
    if args.overlap is not None and (args.window is None or args.overlap >= args.window):
        raise ValueError(f"--overlap {args.overlap:g} needs --window with a larger number of seconds.")
    if (args.window is not None or args.all) and args.task not in ("tvg", "stvg"):
        option = "--all" if args.window is None else "--window"
        raise ValueError(f"{option} is for --task tvg and --task stvg, got {'no task' if args.task is None else f'--task {args.task}'}.")


def _check_export(args: Namespace) -> None:
    if args.export is not None and args.export not in EXPORT_FORMATS:
        raise ValueError(f"--export {args.export} is not a format; it must be one of {', '.join(EXPORT_FORMATS)}.")
    if args.export is not None and args.export_to is None:
        raise ValueError(f"--export {args.export} needs --export-to, the path of the file that is written.")
    if args.export_to is None:
        return
    if args.export is None and os.path.splitext(args.export_to)[1].lower() not in _EXPORT_SUFFIXES:
        raise ValueError(
            f"--export-to {args.export_to}: its suffix does not decide the format. Give --export with one of {', '.join(EXPORT_FORMATS)}."
        )
    is_subtitles = args.export in _SUBTITLES or (args.export is None and args.export_to.lower().endswith((".srt", ".vtt")))
    if is_subtitles and len(args.inputs) > 1:
        raise ValueError(f"--export-to {args.export_to}: subtitles are those of one video, but there are {len(args.inputs)} inputs.")
    _check_writable("--export-to", args.export_to, args.overwrite)


def _check_draw(args: Namespace) -> None:
    """Adds `args.drawings`: the path of the picture or video of each input."""
    args.drawings = None
    if args.scale is not None and (args.draw is None or not 0 < args.scale <= MAX_SCALE):
        raise ValueError(f"--scale {args.scale:g} must be a number above 0 and at most {MAX_SCALE}, with --draw.")
    if args.draw is None:
        return
    if os.path.splitext(args.draw)[1].lower() not in DRAW_SUFFIXES:
        raise ValueError(f"--draw {args.draw} must end in one of {', '.join(DRAW_SUFFIXES)}.")
    if args.several and "{name}" not in args.draw:
        raise ValueError(f"--draw {args.draw} is one file for several inputs. Write {{name}} into it, such as --draw 'out/{{name}}.mp4'.")
    args.drawings = [args.draw.replace("{name}", _name(path)) for path in args.inputs]
    of_path: dict[str, str] = {}
    for path, drawing in zip(args.inputs, args.drawings, strict=True):
        if (other := of_path.setdefault(drawing, path)) != path:
            raise ValueError(f"--draw {args.draw} gives one file, {drawing}, for both {other} and {path}.")
        # The pictures of a call that is resumed exist already: those of its answers are kept.
        _check_writable("--draw", drawing, args.overwrite or (args.jsonl is not None and os.path.isfile(args.jsonl)))


def _name(source: str) -> str:
    """Name of an input without folder and suffix, for the name of a file."""
    if source[:5].lower() == "data:":
        return "data"
    path = source.split("?")[0].split("#")[0] if is_url(source) else source
    return os.path.splitext(os.path.basename(path.rstrip("/\\")))[0] or "input"


def _check_file(name: str, path: str) -> None:
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{name} {path} is not a file.")


def _check_writable(name: str, path: str, overwrite: bool | None = None) -> None:
    """
    Checks the path of a file that will be written.

    Args:
        overwrite: whether an existing file is replaced; None for a file that is appended to.
    """
    folder = os.path.dirname(path) or os.curdir
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{name} {path}: the folder {folder} does not exist.")
    if os.path.isdir(path):
        raise IsADirectoryError(f"{name} {path} is a folder; give the path of a file.")
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise PermissionError(f"{name} {path} cannot be written: permission denied.")
    if overwrite is False and os.path.exists(path):
        raise FileExistsError(f"{name} {path} exists. Give another path, or --overwrite.")
