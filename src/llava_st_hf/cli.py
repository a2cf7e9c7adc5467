# SPDX-License-Identifier: Apache-2.0
"""The `llava-st` command."""

import argparse
import json
import sys


_OVERRIDES_HELP = "file with configuration values that the checkpoint's config.json does not have"


def _ground(args: argparse.Namespace) -> None:
    from transformers import pipeline

    import llava_st_hf  # noqa: F401  (registers the pipeline)

    grounder = pipeline("video-grounding", model=args.model)
    question = {"text": args.text, "task": args.task, "clip": args.clip, "span": args.span, "time": args.time, "box": args.box}
    question = {name: value for name, value in question.items() if value is not None}
    answer = grounder(args.media, **question, **({"max_new_tokens": args.max_new_tokens} if args.max_new_tokens else {}))
    print(json.dumps(answer, indent=2, ensure_ascii=False))


def _convert(args: argparse.Namespace) -> None:
    from . import LlavaSTForConditionalGeneration, LlavaSTProcessor

    # The processor first: it takes seconds, and a folder that lacks one is refused before the weights are read.
    processor = LlavaSTProcessor.from_pretrained(args.model)
    model = LlavaSTForConditionalGeneration.from_pretrained(args.model, **_overrides(args))
    model.save_pretrained(args.output)
    processor.save_pretrained(args.output)


def _merge_lora(args: argparse.Namespace) -> None:
    from . import LlavaSTProcessor
    from .conversion_llava_st import merge_lora

    processor = LlavaSTProcessor.from_pretrained(args.processor or args.base)
    model = merge_lora(args.base, args.adapter, **_overrides(args))
    model.save_pretrained(args.output)
    processor.save_pretrained(args.output)


def _overrides(args: argparse.Namespace) -> dict:
    if args.config_overrides is None:
        return {}
    with open(args.config_overrides, encoding="utf-8") as file:
        return json.load(file)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llava-st", description="LLaVA-ST: when something happens in a video, and where.")
    commands = parser.add_subparsers(required=True, metavar="command")

    ground = commands.add_parser("ground", help="answer one question about a video or image, as JSON")
    ground.add_argument("media", help="path or URL of a video or image")
    ground.add_argument("--model", required=True, help="folder or hub id, ours or as released")
    ground.add_argument("--text", help="the question; with --task, the sentence or expression")
    ground.add_argument("--task", help="rec, reg, dgc, tvg, tr, stvg, svg or elc")
    ground.add_argument("--clip", type=int, nargs=2, metavar=("FIRST", "LAST"), help="part of the video, in frames")
    ground.add_argument("--span", type=float, nargs=2, metavar=("START", "END"), help="seconds")
    ground.add_argument("--time", type=float, help="seconds")
    ground.add_argument("--box", type=float, nargs=4, metavar=("X1", "Y1", "X2", "Y2"), help="pixels")
    ground.add_argument("--max-new-tokens", type=int)
    ground.set_defaults(run=_ground)

    convert = commands.add_parser("convert", help="save a released checkpoint in this package's layout")
    convert.add_argument("model", help="folder or hub id")
    convert.add_argument("output", help="folder to write")
    convert.add_argument("--config-overrides", metavar="JSON", help=_OVERRIDES_HELP)
    convert.set_defaults(run=_convert)

    merge = commands.add_parser("merge-lora", help="merge a released stage folder (adapter and pickle) into its base model")
    merge.add_argument("base", help="folder or hub id of the model it was trained on")
    merge.add_argument("adapter", help="the stage folder")
    merge.add_argument("output", help="folder to write")
    merge.add_argument("--processor", help="where the processor is, if not with the base")
    merge.add_argument("--config-overrides", metavar="JSON", help=_OVERRIDES_HELP)
    merge.set_defaults(run=_merge_lora)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; problems with the input are one line on stderr and exit status 1."""
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except (ValueError, OSError) as error:
        print(f"llava-st: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
