# SPDX-License-Identifier: Apache-2.0
"""The `llava-st` command."""

import argparse
import json
import os
import sys
from collections.abc import Callable


_OVERRIDES_HELP = "file with configuration values that the checkpoint's config.json does not have"


def _ground(args: argparse.Namespace) -> None:
    if args.model is not None:
        _refuse_adapter(args.model)
    if args.max_new_tokens is not None and args.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens must be at least 1, got {args.max_new_tokens}.")
    from transformers import pipeline

    import llava_st_hf  # noqa: F401  (registers the pipeline)

    grounder = pipeline("video-grounding", model=args.model)
    names = ("text", "task", "clip", "start", "end", "span", "time", "box", "fps", "max_new_tokens", "video_backend", "allow_truncated")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    print(json.dumps(grounder(args.media, **given), indent=2, ensure_ascii=False))


def _convert(args: argparse.Namespace) -> None:
    _refuse_file(args.output)
    _refuse_adapter(args.model)
    from .checkpoints.atomic import save_model_and_processor
    from .model.modeling_llava_st import LlavaSTForConditionalGeneration
    from .model.processing_llava_st import LlavaSTProcessor

    overrides = _overrides(args.config_overrides, args.model)
    # The processor first: it takes seconds, and a folder that lacks one is refused before the weights are read.
    processor = LlavaSTProcessor.from_pretrained(args.model)
    model = LlavaSTForConditionalGeneration.from_pretrained(args.model, **overrides)
    save_model_and_processor(model, processor, args.output)


def _merge_lora(args: argparse.Namespace) -> None:
    _refuse_file(args.output)
    _refuse_adapter(args.base)
    from .checkpoints.adapters import merge_adapter
    from .checkpoints.atomic import save_model_and_processor
    from .checkpoints.conversion import add_coordinate_tokens_to_processor
    from .model.processing_llava_st import LlavaSTProcessor

    overrides = _overrides(args.config_overrides, args.base)
    processor = LlavaSTProcessor.from_pretrained(args.processor or args.base)
    model = merge_adapter(args.adapter, args.base, **overrides)
    processor = add_coordinate_tokens_to_processor(model, processor)
    save_model_and_processor(model, processor, args.output)


def _start_stage1(args: argparse.Namespace) -> None:
    _refuse_file(args.output)
    if os.path.realpath(args.checkpoint) == os.path.realpath(args.output):
        raise ValueError(f"The output {args.output} is the checkpoint itself, which would be overwritten.")
    _refuse_adapter(args.checkpoint)
    from .checkpoints.atomic import save_model_and_processor
    from .checkpoints.stage1_init import create_stage1_model, stage1_config

    overrides = _overrides(args.config_overrides, args.checkpoint, stage1_config)
    model, processor = create_stage1_model(args.checkpoint, dtype=args.dtype, config_overrides=overrides)
    save_model_and_processor(model, processor, args.output)


def _validate(args: argparse.Namespace) -> None:
    try:
        from .data.validate import examine_mixture
    except ModuleNotFoundError as error:
        raise ValueError(f"`llava-st validate` needs {error.name}: pip install 'llava-st-hf[data]'.") from error

    report = examine_mixture(
        args.mixture,
        check_media=not args.no_media,
        num_frames=args.num_frames,
        decode=args.decode,
        video_backend=args.video_backend,
        allow_truncated=args.allow_truncated,
    )
    for line in [*report.problems, *report.summary()]:
        print(line)
    if report.problems:
        raise ValueError(f"{args.mixture} has {len(report.problems)} problem{'' if len(report.problems) == 1 else 's'}.")


def _refuse_file(output: str) -> None:
    if os.path.exists(output) and not os.path.isdir(output):
        raise NotADirectoryError(f"The output {output} is a file; a folder is written.")
    if os.path.isfile(os.path.join(output, "adapter_config.json")):
        raise ValueError(f"The output {output} is the folder of an adapter, which would be overwritten. Choose another folder.")


def _refuse_adapter(model: str) -> None:
    if os.path.isfile(os.path.join(model, "adapter_config.json")):
        raise ValueError(f"{model} is an adapter and no whole model: merge it into its base with `llava-st merge-lora` first.")


def _overrides(path: str | None, model: str, read_config: Callable[[str, dict], object] | None = None) -> dict:
    """Configuration values from a file, tried on the model's configuration before its weights are read.

    `read_config` reads the configuration of a checkpoint that is no LLaVA-ST yet.
    """
    if path is None:
        return {}
    from huggingface_hub.errors import StrictDataclassError

    from .model.configuration_llava_st import LlavaSTConfig

    try:
        with open(path, encoding="utf-8") as file:
            overrides = json.load(file)
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(overrides, dict):
        raise ValueError(f"{path} must hold a JSON object of configuration values; it holds {overrides!r:.100}.")
    known = LlavaSTConfig().to_dict()
    unknown = [name for name in overrides if name not in known]
    for part in ("vision_config", "text_config"):
        if isinstance(overrides.get(part), dict):
            unknown += [f"{part}.{name}" for name in overrides[part] if name not in known[part]]
    if unknown:
        raise ValueError(f"{path} sets {', '.join(unknown)}, which the configuration of a LLaVA-ST model does not have.")
    try:
        read_config(model, overrides) if read_config else LlavaSTConfig.from_pretrained(model, **overrides)
    except (ValueError, TypeError, AttributeError, StrictDataclassError) as error:
        raise ValueError(f"{path} does not fit {model}: {error}") from error
    return overrides


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llava-st", description="LLaVA-ST: when something happens in a video, and where.")
    commands = parser.add_subparsers(required=True, metavar="command", dest="command")

    ground = commands.add_parser("ground", help="answer one question about a video or image, as JSON")
    ground.add_argument("media", help="path or URL of a video or image, or a folder of image files that are the frames of a video")
    ground.add_argument("--model", help="folder or hub id, ours or as released; by default the small model that comes with the package")
    ground.add_argument("--text", help="the question; with --task, the sentence or expression")
    ground.add_argument("--task", help="rec, reg, dgc, tvg, tr, stvg, svg or elc")
    ground.add_argument("--clip", type=int, nargs=2, metavar=("FIRST", "LAST"), help="part of the video, in frames")
    ground.add_argument("--start", type=float, metavar="SECONDS", help="where the part of the video to look at starts")
    ground.add_argument("--end", type=float, metavar="SECONDS", help="where it ends")
    ground.add_argument("--span", type=float, nargs=2, metavar=("START", "END"), help="seconds")
    ground.add_argument("--time", type=float, help="seconds")
    ground.add_argument("--box", type=float, nargs=4, metavar=("X1", "Y1", "X2", "Y2"), help="pixels")
    ground.add_argument("--fps", type=float, help="frames per second of a folder of frames; a video file has its own")
    _add_reading(ground)
    ground.add_argument("--max-new-tokens", type=int)
    ground.set_defaults(run=_ground)

    convert = commands.add_parser("convert", help="save a released checkpoint in this package's layout")
    convert.add_argument("model", help="folder or hub id")
    convert.add_argument("output", help="folder to write")
    convert.add_argument("--config-overrides", metavar="JSON", help=_OVERRIDES_HELP)
    convert.set_defaults(run=_convert)

    merge = commands.add_parser("merge-lora", help="merge an adapter folder, trained here or released, into its base model")
    merge.add_argument("base", help="folder or hub id of the model it was trained on")
    merge.add_argument("adapter", help="the adapter folder")
    merge.add_argument("output", help="folder to write")
    merge.add_argument("--processor", help="where the processor is, if not with the base")
    merge.add_argument("--config-overrides", metavar="JSON", help=_OVERRIDES_HELP)
    merge.set_defaults(run=_merge_lora)

    start = commands.add_parser("create-stage1", help="make the model that stage 1 trains of a LLaVA-OneVision-Qwen2 checkpoint")
    start.add_argument("checkpoint", help="folder or hub id, in transformers' layout or as released")
    start.add_argument("output", help="folder to write")
    start.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16", help="of the weights written")
    start.add_argument("--config-overrides", metavar="JSON", help=_OVERRIDES_HELP)
    start.set_defaults(run=_start_stage1)

    validate = commands.add_parser("validate", help="report all that is wrong with a training mixture and its media")
    validate.add_argument("mixture", help="YAML file")
    validate.add_argument("--no-media", action="store_true", help="look at the annotations alone")
    validate.add_argument(
        "--num-frames", type=int, default=100, help="frames that are decoded of each part of a video: as many as the model samples"
    )
    validate.add_argument("--decode", action="store_true", help="decode all frames of each video")
    _add_reading(validate)
    validate.set_defaults(run=_validate)
    _add_evaluation(commands)
    return parser


def _add_reading(command: argparse.ArgumentParser) -> None:
    """How video files are read."""
    command.add_argument("--video-backend", metavar="NAME", help="what reads video files: pyav, the default, or decord")
    command.add_argument("--allow-truncated", action="store_true", help="read truncated video files as far as they go")


def _add_evaluation(commands: argparse._SubParsersAction) -> None:
    evaluate = commands.add_parser("eval", help="answer the questions of a benchmark and score the answers; goes on where it was")
    evaluate.add_argument(
        "--benchmark", required=True, metavar="NAME", help="refcoco_val, charades_sta, st_align_stvg, …; jsonl for your own"
    )
    evaluate.add_argument("--annotations", required=True, metavar="FILE", help="the benchmark's annotation file, as published")
    evaluate.add_argument("--media", required=True, metavar="FOLDER", help="where its videos or pictures are")
    evaluate.add_argument("--model", required=True, help="folder or hub id, ours or as released")
    evaluate.add_argument("--output", required=True, metavar="FOLDER", help="for predictions and scores")
    evaluate.add_argument("--dtype", choices=("auto", "bfloat16", "float16", "float32"), default="auto", help="of the weights")
    evaluate.add_argument("--batch-size", type=int, default=1, help="questions answered together")
    evaluate.add_argument("--max-new-tokens", type=int, default=1536, help="of an answer")
    evaluate.add_argument("--workers", type=int, default=2, help="processes that decode the next videos meanwhile")
    evaluate.add_argument("--limit", type=int, help="the first so many questions alone")
    evaluate.add_argument("--seed", type=int, default=0, help="of the wording of questions")
    _add_reading(evaluate)
    evaluate.set_defaults(run=_evaluation("run_eval"))

    scored = commands.add_parser("score", help="score predictions again, ours or those of another model on the same rows")
    scored.add_argument("predictions", help="predictions.jsonl or its folder; with --rows, lines with id and answer")
    scored.add_argument("--reader", help="read the answers again: llava_st, qwen2_5_vl, qwen3_vl, molmo2 or seconds")
    scored.add_argument("--rows", metavar="FILE", help="predictions.jsonl with the questions, truths and media of these ids")
    scored.add_argument("--output", metavar="FOLDER", help="write the predictions and their scores there, for a report")
    scored.add_argument("--protocol", choices=("default", "original", "released"), default="default")
    scored.set_defaults(run=_evaluation("run_score"))

    report = commands.add_parser("report", help="write report.md and report.html: scores, charts, best and worst samples")
    report.add_argument("folder", help="output of `llava-st eval`, or a folder of such")
    report.set_defaults(run=_evaluation("run_report"))


def _evaluation(name: str) -> Callable[[argparse.Namespace], None]:
    """A function of `evaluation.commands`, imported when it is called: it needs more packages than the other commands."""

    def run(args: argparse.Namespace) -> None:
        try:
            from .evaluation import commands
        except ModuleNotFoundError as error:
            raise ValueError(f"`llava-st {args.command}` needs {error.name}: pip install 'llava-st-hf[eval]'.") from error
        getattr(commands, name)(args)

    return run


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; problems with the input are one line on stderr and exit status 1."""
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except (ValueError, OSError) as error:
        print(f"llava-st: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
