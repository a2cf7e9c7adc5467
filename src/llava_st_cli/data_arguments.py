# SPDX-License-Identifier: Apache-2.0
"""Arguments of the commands about training and evaluation, and of `doctor`."""

from argparse import Namespace
from typing import Annotated, Literal

import typer

from .question_arguments import AllowTruncated, VideoBackend


def add_commands(app: typer.Typer) -> None:
    app.command("check-data", short_help="List all problems of a training mixture.")(_check_data)
    # Arguments that are not those of the command replace values of the recipe.
    app.command("train", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(_train)
    app.command("recipes", short_help="List or copy the recipes of train.")(_recipes)
    app.command("eval")(_eval)
    app.command("score", short_help="Compute the metrics of saved predictions.")(_score)
    app.command("report", short_help="Write a report with scores, charts and samples.")(_report)
    app.command("doctor", short_help="Report what is installed, what works, and memory.")(_doctor)


def _check_data(
    mixture: Annotated[str, typer.Argument(metavar="MIXTURE", help="Path of the YAML file of the mixture.")],
    no_media: Annotated[bool, typer.Option("--no-media", help="Check the annotations only, and open no videos and images.")] = False,
    num_frames: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Number of frames that the model samples of each clip, num_frames of its video processor. Default: that of a new "
            "processor.",
        ),
    ] = None,
    decode: Annotated[bool, typer.Option("--decode", help="Decode all frames of each video.")] = False,
    video_backend: VideoBackend = None,
    allow_truncated: AllowTruncated = False,
) -> Namespace:
    """List all problems of a training mixture and of its videos and images."""
    return Namespace(command="check-data", **locals())


def _train(
    context: typer.Context,
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="Path of a YAML file, or name of a recipe that `llava-st recipes` lists.")
    ],
    accelerate: Annotated[
        str | None,
        typer.Option(
            metavar="CONFIG",
            help="Configuration of accelerate: single_gpu, ddp, zero2, zero3, fsdp2, or the path of a YAML file. Default: single_gpu, and "
            "ddp for several processes.",
        ),
    ] = None,
    num_processes: Annotated[
        int | None,
        typer.Option(
            "--num_processes",
            "--num-processes",
            metavar="N",
            help="Number of processes on all machines together: one for each GPU. Default: that of the configuration.",
        ),
    ] = None,
    num_machines: Annotated[
        int | None,
        typer.Option(
            "--num_machines",
            "--num-machines",
            metavar="N",
            help="Number of machines. Run the same command on each, with its --machine_rank.",
        ),
    ] = None,
    machine_rank: Annotated[
        int | None, typer.Option("--machine_rank", "--machine-rank", metavar="N", help="Number of this machine, from 0.")
    ] = None,
    main_process_port: Annotated[
        int | None,
        typer.Option(
            "--main_process_port",
            "--main-process-port",
            metavar="N",
            help="Port of the machine with rank 0 for communication.",
        ),
    ] = None,
    main_process_ip: Annotated[
        str | None,
        typer.Option("--main_process_ip", "--main-process-ip", metavar="ADDRESS", help="Address of the machine with rank 0."),
    ] = None,
) -> Namespace:
    """Train by a recipe, on one or several processes. Resumes if the output folder has checkpoints of the run.

    Every value of the recipe can be replaced: --output_dir runs/try --learning_rate 1e-5."""
    if recipe.startswith("-"):
        raise typer.BadParameter(f"Give the recipe first, before {recipe}.", param_hint="'RECIPE'")
    values = {name: value for name, value in locals().items() if name != "context"}
    return Namespace(command="train", overrides=list(context.args), **values)


def _recipes(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Names. Default: all.")] = None,
    output: Annotated[str | None, typer.Option(metavar="FOLDER", help="Folder to copy them to; no file is overwritten.")] = None,
) -> Namespace:
    """List the recipes and accelerate configurations of this package, or copy them."""
    return Namespace(command="recipes", names=names or [], output=output)


def _eval(
    benchmark: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Name of the benchmark, such as refcoco_val, charades_sta or st_align_stvg; jsonl for a custom annotation file.",
        ),
    ],
    annotations: Annotated[str, typer.Option(metavar="FILE", help="Path of the annotation file, in its published format.")],
    data_folder: Annotated[str, typer.Option(metavar="FOLDER", help="Folder that paths in the annotations are relative to.")],
    model: Annotated[
        str,
        typer.Option(
            metavar="MODEL", help="Folder or Hugging Face Hub id of a checkpoint, in this package's layout or in the original one."
        ),
    ],
    output: Annotated[str, typer.Option(metavar="FOLDER", help="Folder for predictions and scores.")],
    dtype: Annotated[
        Literal["auto", "bfloat16", "float16", "float32"] | None,
        typer.Option(help="Weight dtype. Default: auto, that of the checkpoint."),
    ] = None,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Number of questions per batch.")] = 1,
    max_new_tokens: Annotated[int | None, typer.Option(metavar="N", help="Maximum number of tokens of an answer. Default: 1536.")] = None,
    as_published: Annotated[
        bool,
        typer.Option(
            "--as-published",
            help="Generate as for the published results: float16, sampling at temperature 0.01, at most 1024 tokens, coordinates of "
            "prompts rounded to three decimals.",
        ),
    ] = False,
    workers: Annotated[int, typer.Option(metavar="N", help="Number of processes that decode videos and images.")] = 2,
    limit: Annotated[int | None, typer.Option(metavar="N", help="Evaluate only the first N samples.")] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed for the choice of prompt templates.")] = 0,
    video_backend: VideoBackend = None,
    allow_truncated: AllowTruncated = False,
) -> Namespace:
    """Run a benchmark and compute its metrics. Resumes if the output folder exists."""
    return Namespace(command="eval", **locals())


def _score(
    predictions: Annotated[
        str,
        typer.Argument(
            metavar="PREDICTIONS",
            help="Path of predictions.jsonl or its folder; with --references, of a JSONL file with `id` and `answer`.",
        ),
    ],
    answer_format: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Parse the answers again in this format: llava_st, qwen2_5_vl, qwen3_vl, molmo2 or seconds."),
    ] = None,
    references: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Path of a predictions.jsonl with the questions and ground truth of these ids. Needs --answer-format.",
        ),
    ] = None,
    output: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Folder to which predictions and scores are written, for a report.")
    ] = None,
    protocol: Annotated[
        Literal["default", "original"],
        typer.Option(help="How metrics are computed: default, or original for the computation of the original LLaVA-ST code."),
    ] = "default",
) -> Namespace:
    """Score predictions again, or score answers of another model to the same questions."""
    return Namespace(command="score", **locals())


def _report(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Output folder of `llava-st eval`, or a folder of such folders.")],
) -> Namespace:
    """Write report.md and report.html with scores, charts, best and worst samples."""
    return Namespace(command="report", **locals())


def _doctor(
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            metavar="CHECKPOINT", help="Folder or Hugging Face Hub id of a checkpoint: whether it fits into the memory of this computer."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> Namespace:
    """Report versions, video readers, devices and memory, and what does not work. The exit status is 1 if it is essential."""
    return Namespace(command="doctor", **locals())
