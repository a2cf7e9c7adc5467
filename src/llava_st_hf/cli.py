# SPDX-License-Identifier: Apache-2.0
"""The commands of `llava-st`, for arguments that `llava_st_cli` has parsed."""

import json
import os
import sys
from argparse import Namespace
from collections.abc import Callable

from llava_st_cli.main import main as main
from llava_st_cli.terminal import one_line

from .commands.models import default_device, placement, refuse_adapter
from .version import __version__


def run(args: Namespace) -> int:
    """Runs a command and returns the exit status. Progress of downloads and of loading is shown on a terminal only."""
    if not sys.stderr.isatty():
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
    return COMMANDS[args.command](args) or 0


def _ground(args: Namespace) -> int:
    from .commands.ground import run_ground

    return run_ground(args)


def _chat(args: Namespace) -> int:
    from .commands.chat import run_chat

    return run_chat(args)


def _convert(args: Namespace) -> None:
    _refuse_adapter_folder(args.output)
    refuse_adapter(args.model)
    from .checkpoints.atomic import save_model_and_processor
    from .checkpoints.padding import pad_vocabulary
    from .model.model_card_llava_st import model_card
    from .model.modeling_llava_st import LlavaSTForConditionalGeneration
    from .model.processing_llava_st import LlavaSTProcessor

    overrides = _overrides(args.config_overrides, args.model)
    # The processor first: it takes seconds, and a folder that lacks one is refused before the weights are read.
    processor = LlavaSTProcessor.from_pretrained(args.model)
    model = LlavaSTForConditionalGeneration.from_pretrained(args.model, **overrides)
    pad_vocabulary(model, processor.tokenizer)
    card = model_card(_title(args.output), args.model, training=f"Converted by `llava-st convert` of llava-st-hf {__version__}.")
    save_model_and_processor(model, processor, args.output, card, fingerprint=not args.no_fingerprint)


def _merge_lora(args: Namespace) -> None:
    _refuse_adapter_folder(args.output)
    if args.base is not None:
        refuse_adapter(args.base)
    from .checkpoints.adapters import base_of, merge_adapter
    from .checkpoints.atomic import save_model_and_processor
    from .checkpoints.conversion import add_coordinate_tokens_to_processor
    from .checkpoints.padding import pad_vocabulary
    from .model.model_card_llava_st import model_card
    from .model.processing_llava_st import LlavaSTProcessor

    base = args.base if args.base is not None else base_of(args.adapter)
    overrides = _overrides(args.config_overrides, base)
    processor = LlavaSTProcessor.from_pretrained(args.processor or base)
    model = merge_adapter(args.adapter, base, **overrides)
    processor = add_coordinate_tokens_to_processor(model, processor)
    pad_vocabulary(model, processor.tokenizer)
    card = model_card(_title(args.output), args.base, training=f"An adapter merged by `llava-st merge-lora` of llava-st-hf {__version__}.")
    save_model_and_processor(model, processor, args.output, card, fingerprint=not args.no_fingerprint)


def _fingerprint(args: Namespace) -> None:
    refuse_adapter(args.folder)
    if args.device == "auto":
        raise ValueError("--device auto is for `llava-st ground` and `llava-st chat`; give one device, such as cuda:0.")
    device = placement(args.device).get("device") or default_device()
    from .checkpoints.fingerprint import FINGERPRINT, check_checkpoint, read_fingerprint, write_fingerprint
    from .model.modeling_llava_st import LlavaSTForConditionalGeneration
    from .model.processing_llava_st import LlavaSTProcessor

    fingerprint = read_fingerprint(args.folder) if args.check else None
    if args.check and fingerprint is None:
        raise FileNotFoundError(f"{args.folder} has no {FINGERPRINT}: write it with `llava-st fingerprint {args.folder}`.")
    processor = LlavaSTProcessor.from_pretrained(args.folder)
    model = LlavaSTForConditionalGeneration.from_pretrained(args.folder, dtype=args.dtype or "auto").to(device).eval()
    if fingerprint is None:
        write_fingerprint(args.folder, model, processor)
        print(os.path.join(args.folder, FINGERPRINT))
        return
    tokens, difference = check_checkpoint(model, processor, fingerprint)
    count = len(fingerprint.token_ids)
    rest = "" if tokens == count else ", the others follow one that rounding may change"
    print(f"{tokens} of {count} tokens are equal{rest}; features differ by up to {difference:.2g} of their standard deviation.")


def _push(args: Namespace) -> None:
    from .checkpoints.publishing import publish_folder

    print(
        publish_folder(
            args.folder,
            args.repo_id,
            scores=args.scores,
            base_model=args.base_model,
            datasets=args.dataset,
            license=args.license,
            private=args.private or None,
            revision=args.revision,
        )
    )


def _serve(args: Namespace) -> None:
    from .serving.arguments import ServerOptions
    from .serving.command import serve

    names = ("name", "host", "port", "dtype", "max_model_len", "max_images", "max_videos", "media_folder", "prompt_embeds")
    options = ServerOptions(media_domains=args.media_domain, **{name: getattr(args, name) for name in names})
    serve(args.checkpoint, options, args.max_upload, args.without_fingerprint, args.dry_run, args.flags)


def _app(args: Namespace) -> None:
    from .app.command import run

    run(args.model, args.host, args.port, **_placement(args))


def _label_studio(args: Namespace) -> None:
    from .integrations.label_studio.command import label_studio

    names = ("host", "port", "media", "label_studio_url", "text_key")
    label_studio(args.model, **{name: getattr(args, name) for name in names}, **_placement(args))


def _cvat(args: Namespace) -> int:
    from .integrations.cvat.command import cvat

    return cvat(args.model, args.server, args.task, args.project, args.watch, **_placement(args))


def _placement(args: Namespace) -> dict:
    """Device and dtype of a server, after checks of model and device."""
    if args.device == "auto":
        raise ValueError("--device auto is for `llava-st ground` and `llava-st chat`; a server runs on one device, such as cuda:0.")
    if args.model is not None:
        refuse_adapter(args.model)
    placement(args.device)
    return {"device": args.device, "dtype": args.dtype or "auto"}


def _title(folder: str) -> str:
    """Title of the card of a model that is not published yet."""
    return os.path.basename(os.path.abspath(folder))


def _start_stage1(args: Namespace) -> None:
    _refuse_adapter_folder(args.output)
    sources = [args.checkpoint] if args.vision_encoder is None else [args.checkpoint, args.vision_encoder]
    for source in sources:
        if os.path.realpath(source) == os.path.realpath(args.output):
            raise ValueError(f"The output {args.output} is the checkpoint itself, which would be overwritten.")
        refuse_adapter(source)
    from .checkpoints.atomic import save_model_and_processor
    from .checkpoints.stage1_init import create_stage1_model, stage1_config
    from .checkpoints.stage1_parts import create_stage1_model_from_parts, parts_config, parts_settings

    if args.vision_encoder is None:
        overrides = _overrides(args.config_overrides, args.checkpoint, stage1_config)
        model, processor = create_stage1_model(args.checkpoint, dtype=args.dtype, config_overrides=overrides)
    else:
        overrides = _overrides(
            args.config_overrides,
            f"{args.checkpoint} with {args.vision_encoder}",
            lambda _, values: parts_config(*sources, values),
            known=parts_settings(*sources),
        )
        model, processor = create_stage1_model_from_parts(*sources, dtype=args.dtype, config_overrides=overrides)
    save_model_and_processor(model, processor, args.output)


def _check_data(args: Namespace) -> None:
    try:
        from .data.validate import examine_mixture
    except ModuleNotFoundError as error:
        raise ValueError(f"`llava-st check-data` needs {error.name}: pip install 'llava-st-hf[data]'.") from error

    given = {} if args.num_frames is None else {"num_frames": args.num_frames}
    report = examine_mixture(
        args.mixture,
        check_media=not args.no_media,
        **given,
        decode=args.decode,
        video_backend=args.video_backend,
        allow_truncated=args.allow_truncated,
    )
    for line in [*report.problems, *report.summary()]:
        print(one_line(str(line)))
    if report.problems:
        raise ValueError(f"{args.mixture} has {len(report.problems)} problem{'' if len(report.problems) == 1 else 's'}.")


def _refuse_adapter_folder(output: str) -> None:
    if os.path.isfile(os.path.join(output, "adapter_config.json")):
        raise ValueError(f"The output {output} is the folder of an adapter, which would be overwritten. Choose another folder.")


def _overrides(path: str | None, model: str, read_config: Callable[[str, dict], object] | None = None, known: dict | None = None) -> dict:
    """
    Reads configuration values from a JSON file and checks them with the model's configuration before its weights are read.

    Args:
        path: of the file; None for no values.
        model: folder or hub id of the checkpoint.
        read_config: reads the configuration of a checkpoint that is not a LLaVA-ST model.
        known: settings of its decoder and encoder, where these are not of the default types.
    """
    if path is None:
        return {}
    from huggingface_hub.errors import StrictDataclassError

    from .model.configuration_llava_st import LlavaSTConfig

    try:
        with open(path, encoding="utf-8") as file:
            overrides = json.load(file)
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(overrides, dict):
        raise ValueError(f"{path} must hold a JSON object of configuration values; it holds {overrides!r:.100}.")
    known = {**LlavaSTConfig().to_dict(), **(known or {})}
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


def _evaluation(name: str) -> Callable[[Namespace], None]:
    """Returns a function that imports and runs `name` of `evaluation.commands`, which needs the packages of the extra `eval`."""

    def run(args: Namespace) -> None:
        try:
            from .evaluation import commands
        except ModuleNotFoundError as error:
            raise ValueError(f"`llava-st {args.command}` needs {error.name}: pip install 'llava-st-hf[eval]'.") from error
        getattr(commands, name)(args)

    return run


#: Command → function that runs it, and returns the exit status if that is not 0.
COMMANDS: dict[str, Callable[[Namespace], int | None]] = {
    "ground": _ground,
    "chat": _chat,
    "convert": _convert,
    "merge-lora": _merge_lora,
    "fingerprint": _fingerprint,
    "push": _push,
    "create-stage1": _start_stage1,
    "check-data": _check_data,
    "eval": _evaluation("run_eval"),
    "score": _evaluation("run_score"),
    "report": _evaluation("run_report"),
    "serve": _serve,
    "app": _app,
    "label-studio": _label_studio,
    "cvat": _cvat,
}


if __name__ == "__main__":
    sys.exit(main())
