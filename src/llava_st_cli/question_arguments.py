# SPDX-License-Identifier: Apache-2.0
"""Arguments of `llava-st ground` and `llava-st chat`."""

from argparse import Namespace
from typing import Annotated, Literal

import typer


# Key of a task → its name, for help and completion.
TASKS = {
    "rec": "referring expression comprehension",
    "reg": "referring expression generation",
    "dgc": "dense grounded captioning",
    "tvg": "temporal video grounding",
    "tr": "temporal referring",
    "stvg": "spatio-temporal video grounding",
    "svg": "spatial video grounding",
    "elc": "event localization and captioning",
}
# Formats of exports, for help and completion.
EXPORT_FORMATS = ("coco-video", "csv", "cvat", "fiftyone", "hc-stvg", "label-studio", "parquet", "srt", "vidstg", "webvtt")

_CHECKPOINT = "Folder or Hugging Face Hub id of a checkpoint, in this package's layout or in the original one."
_MEDIA = (
    "Images and videos: files, URLs, folders and quoted patterns such as 'videos/*.mp4'. A folder of videos stands for each of them; a "
    "folder of images is one video, whose frames they are (for separate images give 'folder/*.jpg')."
)

Model = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help=f"{_CHECKPOINT} Default: the demo model of this package, trained on synthetic shapes only."),
]
Clip = Annotated[
    tuple[int, int] | None, typer.Option(metavar="FIRST LAST", help="First and last frame of the clip, from 0, both included.")
]
Start = Annotated[float | None, typer.Option(metavar="SECONDS", help="Start of the clip in seconds from the start of the file.")]
End = Annotated[float | None, typer.Option(metavar="SECONDS", help="End of the clip in seconds from the start of the file.")]
Fps = Annotated[float | None, typer.Option(metavar="RATE", help="Frames per second of a folder of frames; an error for a video file.")]
NumFrames = Annotated[
    int | None, typer.Option(metavar="N", help="Number of frames that are sampled. Default: that of the checkpoint's processor.")
]
VideoBackend = Annotated[str | None, typer.Option(metavar="NAME", help="Video decoder: pyav or decord. Default: pyav.")]
AllowTruncated = Annotated[bool, typer.Option("--allow-truncated", help="Read truncated video files as far as possible.")]
MaxNewTokens = Annotated[int | None, typer.Option(metavar="N", help="Maximum number of generated tokens of an answer. Default: 2048.")]
Scores = Annotated[bool, typer.Option("--scores", help="Refine times and boxes, and give a score for each.")]
Grammar = Annotated[
    str | None,
    typer.Option(
        metavar="FORM",
        help="Constrain answers to a form, so that they are complete: auto (that of the task) or a task.",
        autocompletion=lambda: ["auto", *TASKS],
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        metavar="DEVICE",
        help="cpu, cuda, cuda:N, mps, xpu, or auto to distribute the model over all GPUs. Default: the first GPU, else the CPU.",
        autocompletion=lambda: ["auto", "cpu", "cuda", "cuda:0", "mps", "xpu"],
    ),
]
Dtype = Annotated[
    Literal["auto", "bfloat16", "float16", "float32"] | None, typer.Option(help="Weight dtype. Default: auto, that of the checkpoint.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on a terminal, too.")]


def add_commands(app: typer.Typer) -> None:
    app.command("ground")(_ground)
    app.command("predict", hidden=True)(_ground)
    app.command("chat", short_help="Ask several questions about one video or image.")(_chat)


def _check_task(task: str | None) -> str | None:
    if task is not None and task not in TASKS:
        raise typer.BadParameter(f"{task!r} is not a task; it must be one of {', '.join(TASKS)}.")
    return task


def _ground(
    media: Annotated[list[str], typer.Argument(metavar="MEDIUM", help=_MEDIA, show_default=False)],
    model: Model = None,
    text: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="The question; with --task, the expression or sentence that the prompt template is filled with."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="TASK",
            help=f"Prompt template: {', '.join(f'{key} ({name})' for key, name in TASKS.items())}.",
            autocompletion=lambda: list(TASKS.items()),
            callback=_check_task,
        ),
    ] = None,
    clip: Clip = None,
    start: Start = None,
    end: End = None,
    span: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="START END", help="Time span of the prompt in seconds. Required by tr and svg."),
    ] = None,
    time: Annotated[float | None, typer.Option(metavar="SECONDS", help="Start of the event of elc in seconds. Required by elc.")] = None,
    box: Annotated[
        tuple[float, float, float, float] | None,
        typer.Option(
            metavar="X1 Y1 X2 Y2", help="Bounding box of the prompt in pixels of the original image or frame. Required by reg and elc."
        ),
    ] = None,
    fps: Fps = None,
    num_frames: NumFrames = None,
    video_backend: VideoBackend = None,
    allow_truncated: AllowTruncated = False,
    max_new_tokens: MaxNewTokens = None,
    scores: Scores = False,
    grammar: Grammar = None,
    window: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Ask about windows of this length and merge the answers, so that long videos are sampled as densely as short ones. For "
            "tvg and stvg.",
        ),
    ] = None,
    overlap: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Overlap of neighbouring windows. Default: a quarter of the window.")
    ] = None,
    all: Annotated[
        bool,
        typer.Option("--all", help="Return every event that the text describes, or none if it does not occur. For tvg and stvg."),
    ] = False,
    refine: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Folder or Hugging Face Hub id of an object detector with text queries, or of a video segmentation model, which gives a "
            "box on every frame of the answer.",
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Number of inputs, or of windows, per batch.")] = 1,
    device: Device = None,
    dtype: Dtype = None,
    json: Json = False,
    jsonl: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Append each answer to FILE as a line of JSON. Inputs that FILE has an answer for, to the same question with the same "
            "settings, are not answered again: run the same command again to resume.",
        ),
    ] = None,
    draw: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Draw the answer: .mp4, .mkv, .mov or .webm for an annotated video, .png or .jpg for a contact sheet or labelled image, "
            ".gif or .webp for an animated picture. For several inputs, {name} in FILE is the name of the input without suffix.",
        ),
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER",
            help="Size of the drawing as a multiple of the original, for a labelled image or an annotated video; frames of less than 120 "
            "pixels have no text without it.",
        ),
    ] = None,
    export: Annotated[
        str | None,
        typer.Option(
            metavar="FORMAT",
            help=f"Format of --export-to: {', '.join(EXPORT_FORMATS)}. Default: by the suffix.",
            autocompletion=lambda: list(EXPORT_FORMATS),
        ),
    ] = None,
    export_to: Annotated[str | None, typer.Option(metavar="PATH", help="Write all answers to a file of another tool's format.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files of --draw and --export-to.")] = False,
) -> Namespace:
    """Answer a question about videos or images. (Other name: predict.)

    A terminal shows a table. A pipe gets JSON: one object for one file, one object per line for several inputs. If an input fails, the
    others are answered, its record has the reason as "error", and the exit status is 1."""
    return Namespace(command="ground", **locals())


def _chat(
    medium: Annotated[
        str, typer.Argument(metavar="MEDIUM", help="Path or URL of a video or image, or a folder of image files, the frames of a video.")
    ],
    model: Model = None,
    clip: Clip = None,
    start: Start = None,
    end: End = None,
    fps: Fps = None,
    num_frames: NumFrames = None,
    video_backend: VideoBackend = None,
    allow_truncated: AllowTruncated = False,
    max_new_tokens: MaxNewTokens = None,
    scores: Scores = False,
    grammar: Grammar = None,
    device: Device = None,
    dtype: Dtype = None,
    json: Json = False,
) -> Namespace:
    """Ask several questions about one video or image, which is encoded once.

    Answers are printed while they are generated. Questions are lines of the terminal or of a pipe; /help lists the commands, such as
    /task, /span and /box."""
    return Namespace(command="chat", **locals())
