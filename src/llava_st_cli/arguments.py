# SPDX-License-Identifier: Apache-2.0
"""Arguments of the commands of `llava-st`."""

import argparse

from .renamed import add_renamed_argument, protocol


_OVERRIDES_HELP = "Path of a JSON file with configuration values that are missing in the checkpoint's config.json."
_CHECKPOINT_HELP = "Folder or Hugging Face Hub id of a checkpoint, in this package's layout or in the original one."
_OUTPUT_HELP = "Path of the folder that is written."


def parse(argv: list[str]) -> argparse.Namespace:
    """Parses a command line. Arguments of `train` that are not its own replace values of the recipe: they are in `args.overrides`."""
    parser = build_parser()
    args, others = parser.parse_known_args(argv)
    if others and args.command != "train":
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    args.overrides = others
    return args


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands. `args.command` is the name of the command."""
    parser = argparse.ArgumentParser(
        prog="llava-st", description="LLaVA-ST: spatio-temporal video grounding with time spans and bounding boxes."
    )
    commands = parser.add_subparsers(required=True, metavar="command", dest="command")
    _add_ground(commands)
    _add_checkpoint_commands(commands)
    _add_check_data(commands)
    _add_training(commands)
    _add_eval(commands)
    _add_score(commands)
    _add_report(commands)
    return parser


def _add_command(commands: argparse._SubParsersAction, name: str, help: str, aliases: tuple[str, ...] = ()) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=help, description=help, aliases=aliases)
    command.set_defaults(command=name)
    return command


def _add_ground(commands: argparse._SubParsersAction) -> None:
    ground = _add_command(commands, "ground", "Answer one question about a video or an image and print the result as JSON.", ("predict",))
    ground.add_argument("media", help="Path or URL of a video or image, or a folder of image files that are the frames of a video.")
    ground.add_argument("--model", help=f"{_CHECKPOINT_HELP} Default: the demo model of this package, trained on synthetic shapes only.")
    ground.add_argument("--text", help="The question; with --task, the expression or sentence that the prompt template is filled with.")
    ground.add_argument(
        "--task",
        help="Prompt template: rec (referring expression comprehension), reg (region captioning), dgc (dense grounded captioning), "
        "tvg (temporal grounding), tr (temporal referring), stvg (spatio-temporal grounding), svg (spatial grounding in a video) or elc "
        "(event localization and captioning).",
    )
    ground.add_argument("--clip", type=int, nargs=2, metavar=("FIRST", "LAST"), help="First and last frame of the clip, both included.")
    ground.add_argument("--start", type=float, metavar="SECONDS", help="Start of the clip in seconds from the start of the file.")
    ground.add_argument("--end", type=float, metavar="SECONDS", help="End of the clip in seconds from the start of the file.")
    ground.add_argument(
        "--span", type=float, nargs=2, metavar=("START", "END"), help="Time span of the prompt in seconds. Required by tr and svg."
    )
    ground.add_argument("--time", type=float, metavar="SECONDS", help="Start of the event of elc in seconds. Required by elc.")
    ground.add_argument(
        "--box",
        type=float,
        nargs=4,
        metavar=("X1", "Y1", "X2", "Y2"),
        help="Bounding box of the prompt in pixels of the original image or frame. Required by reg and elc.",
    )
    ground.add_argument("--fps", type=float, help="Frames per second of a folder of frames; an error for a video file.")
    _add_reading(ground)
    ground.add_argument("--max-new-tokens", type=int, metavar="N", help="Maximum number of generated tokens.")


def _add_checkpoint_commands(commands: argparse._SubParsersAction) -> None:
    convert = _add_command(commands, "convert", "Save a checkpoint of the original layout in this package's layout.")
    convert.add_argument("model", help="Folder or Hugging Face Hub id of the checkpoint.")
    convert.add_argument("output", help=_OUTPUT_HELP)
    convert.add_argument("--config-overrides", metavar="JSON", help=_OVERRIDES_HELP)

    merge = _add_command(commands, "merge-lora", "Merge a LoRA adapter, of this package or of the original code, into its base model.")
    merge.add_argument(
        "base",
        nargs="?",
        help="Folder or Hugging Face Hub id of the model that the adapter was trained on. Default: the subfolder base of the adapter, or "
        "the model that its adapter_config.json names.",
    )
    merge.add_argument("adapter", help="Folder of the adapter.")
    merge.add_argument("output", help=_OUTPUT_HELP)
    merge.add_argument("--processor", help="Folder or Hugging Face Hub id of the processor. Default: that of the base model.")
    merge.add_argument("--config-overrides", metavar="JSON", help=_OVERRIDES_HELP)

    push = _add_command(commands, "push", "Upload a model or adapter folder to the Hugging Face Hub, with its code and a model card.")
    push.add_argument("folder", help="Folder of the model or adapter. Checkpoints, logs and settings of a training are not uploaded.")
    push.add_argument("repo_id", metavar="REPO", help="Id of the hub repository, owner/name. It is created if it does not exist.")
    push.add_argument(
        "--scores",
        action="append",
        default=[],
        metavar="FILE",
        help="scores.json of an evaluation, for the results in the card. May be given several times.",
    )
    push.add_argument("--license", metavar="ID", help="Licence of the model, an identifier of the hub such as apache-2.0.")
    push.add_argument("--base-model", metavar="ID", help="Hub id of the model that it was trained from.")
    push.add_argument(
        "--dataset", action="append", default=[], metavar="ID", help="Hub id of a training dataset. May be given several times."
    )
    push.add_argument("--private", action="store_true", help="Make a new repository private.")
    push.add_argument("--revision", metavar="BRANCH", help="Branch to upload to, which is created if it does not exist. Default: main.")

    create = _add_command(
        commands, "create-stage1", "Create the stage-1 model from a LLaVA-OneVision-Qwen2 checkpoint, or from a decoder and an encoder."
    )
    create.add_argument(
        "checkpoint",
        help="Folder or Hugging Face Hub id of a LLaVA-OneVision-Qwen2, in the layout of transformers or the original one; with "
        "--vision-encoder, of a causal language model.",
    )
    create.add_argument("output", help=_OUTPUT_HELP)
    create.add_argument(
        "--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16", help="Weight dtype. Default: %(default)s."
    )
    create.add_argument(
        "--vision-encoder",
        metavar="ENCODER",
        help="Folder or Hugging Face Hub id of a vision encoder, such as SigLIP, CLIP, DINOv2 or DINOv3. The projector is new "
        "and must be trained in stage 1.",
    )
    create.add_argument("--config-overrides", metavar="JSON", help=_OVERRIDES_HELP)


def _add_check_data(commands: argparse._SubParsersAction) -> None:
    check = _add_command(commands, "check-data", "List all problems of a training mixture and of its videos and images.")
    check.add_argument("mixture", help="Path of the YAML file of the mixture.")
    check.add_argument("--no-media", action="store_true", help="Check the annotations only, and open no videos and images.")
    check.add_argument(
        "--num-frames",
        type=int,
        metavar="N",
        help="Number of frames that the model samples of each clip, num_frames of its video processor. Default: that of a new processor.",
    )
    check.add_argument("--decode", action="store_true", help="Decode all frames of each video.")
    _add_reading(check)


def _add_reading(command: argparse.ArgumentParser) -> None:
    command.add_argument("--video-backend", metavar="NAME", help="Video decoder: pyav or decord. Default: pyav.")
    command.add_argument("--allow-truncated", action="store_true", help="Read truncated video files as far as possible.")


def _add_training(commands: argparse._SubParsersAction) -> None:
    help = "Train by a recipe, on one or several processes. Resumes if the output folder has checkpoints of the run."
    train = commands.add_parser(
        "train",
        help=help,
        description=f"{help} Every value of the recipe can be replaced: --output_dir runs/try --learning_rate 1e-5.",
        usage="llava-st train RECIPE [launch options] [--NAME VALUE ...]",
        allow_abbrev=False,
    )
    train.set_defaults(command="train")
    train.add_argument("recipe", metavar="RECIPE", help="Path of a YAML file, or name of a recipe that `llava-st recipes` lists.")
    launch = train.add_argument_group("launch options")
    launch.add_argument(
        "--accelerate",
        metavar="CONFIG",
        help="Configuration of accelerate: single_gpu, ddp, zero2, zero3, fsdp2, or the path of a YAML file. Default: single_gpu, and ddp "
        "for several processes.",
    )
    counts = {
        "--num_processes": "Number of processes on all machines together: one for each GPU. Default: that of the configuration.",
        "--num_machines": "Number of machines. Run the same command on each, with its --machine_rank.",
        "--machine_rank": "Number of this machine, from 0.",
        "--main_process_port": "Port of the machine with rank 0 for communication.",
    }
    for name, help in counts.items():
        launch.add_argument(name, name.replace("_", "-"), type=int, metavar="N", help=help)
    launch.add_argument("--main_process_ip", "--main-process-ip", metavar="ADDRESS", help="Address of the machine with rank 0.")

    recipes = _add_command(commands, "recipes", "List the recipes and accelerate configurations of this package, or copy them.")
    recipes.add_argument("names", nargs="*", metavar="NAME", help="Names. Default: all.")
    recipes.add_argument("--output", metavar="FOLDER", help="Folder to copy them to; no file is overwritten.")


def _add_eval(commands: argparse._SubParsersAction) -> None:
    evaluate = _add_command(commands, "eval", "Run a benchmark and compute its metrics. Resumes if the output folder exists.")
    evaluate.add_argument(
        "--benchmark",
        required=True,
        metavar="NAME",
        help="Name of the benchmark, such as refcoco_val, charades_sta or st_align_stvg; jsonl for a custom annotation file.",
    )
    evaluate.add_argument("--annotations", required=True, metavar="FILE", help="Path of the annotation file, in its published format.")
    add_renamed_argument(
        evaluate, "--data-folder", "--media", required=True, metavar="FOLDER", help="Folder that paths in the annotations are relative to."
    )
    evaluate.add_argument("--model", required=True, help=_CHECKPOINT_HELP)
    evaluate.add_argument("--output", required=True, metavar="FOLDER", help="Folder for predictions and scores.")
    evaluate.add_argument(
        "--dtype", choices=("auto", "bfloat16", "float16", "float32"), help="Weight dtype. Default: auto, that of the checkpoint."
    )
    evaluate.add_argument("--batch-size", type=int, default=1, metavar="N", help="Number of questions per batch. Default: %(default)s.")
    evaluate.add_argument("--max-new-tokens", type=int, metavar="N", help="Maximum number of tokens of an answer. Default: 1536.")
    evaluate.add_argument(
        "--as-published",
        action="store_true",
        help="Generate as for the published results: float16, sampling at temperature 0.01, at most 1024 tokens, coordinates of prompts "
        "rounded to three decimals.",
    )
    evaluate.add_argument(
        "--workers", type=int, default=2, metavar="N", help="Number of processes that decode videos and images. Default: %(default)s."
    )
    evaluate.add_argument("--limit", type=int, metavar="N", help="Evaluate only the first N samples.")
    evaluate.add_argument("--seed", type=int, default=0, help="Seed for the choice of prompt templates. Default: %(default)s.")
    _add_reading(evaluate)


def _add_score(commands: argparse._SubParsersAction) -> None:
    score = _add_command(commands, "score", "Score predictions again, or score answers of another model to the same questions.")
    score.add_argument(
        "predictions",
        help="Path of predictions.jsonl or its folder; with --references, of a JSONL file with `id` and `answer`.",
    )
    add_renamed_argument(
        score,
        "--answer-format",
        "--reader",
        metavar="NAME",
        help="Parse the answers again in this format: llava_st, qwen2_5_vl, qwen3_vl, molmo2 or seconds.",
    )
    add_renamed_argument(
        score,
        "--references",
        "--rows",
        metavar="FILE",
        help="Path of a predictions.jsonl with the questions and ground truth of these ids. Needs --answer-format.",
    )
    score.add_argument("--output", metavar="FOLDER", help="Folder to which predictions and scores are written, for a report.")
    score.add_argument(
        "--protocol",
        type=protocol,
        choices=("default", "original"),
        default="default",
        help="How metrics are computed: default, or original for the computation of the original LLaVA-ST code. Default: %(default)s.",
    )


def _add_report(commands: argparse._SubParsersAction) -> None:
    report = _add_command(commands, "report", "Write report.md and report.html with scores, charts, best and worst samples.")
    report.add_argument("folder", help="Output folder of `llava-st eval`, or a folder of such folders.")
