# SPDX-License-Identifier: Apache-2.0
"""Arguments of the commands about checkpoints: `convert`, `merge-lora`, `fingerprint`, `push` and `create-stage1`."""

from argparse import Namespace
from typing import Annotated, Literal

import typer

from .question_arguments import Device, Dtype


Output = Annotated[str, typer.Argument(metavar="OUTPUT", help="Path of the folder that is written.")]
ConfigOverrides = Annotated[
    str | None,
    typer.Option(metavar="JSON", help="Path of a JSON file with configuration values that are missing in the checkpoint's config.json."),
]
NoFingerprint = Annotated[
    bool,
    typer.Option("--no-fingerprint", help="Do not write fingerprint.json, for which the model runs once: minutes for 7B on a CPU."),
]


def add_commands(app: typer.Typer) -> None:
    app.command("convert", short_help="Convert a checkpoint of the original layout.")(_convert)
    app.command("merge-lora", short_help="Merge a LoRA adapter into its base model.")(_merge_lora)
    app.command("fingerprint", short_help="Write or check a checkpoint's answer to a fixed question.")(_fingerprint)
    app.command("push", short_help="Upload a model or adapter to the Hugging Face Hub.")(_push)
    app.command("create-stage1", short_help="Create the model that stage 1 starts from.")(_create_stage1)


def _convert(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder or Hugging Face Hub id of the checkpoint.")],
    output: Output,
    config_overrides: ConfigOverrides = None,
    no_fingerprint: NoFingerprint = False,
) -> Namespace:
    """Save a checkpoint of the original layout, or of this package's, in this package's layout, with a padded vocabulary."""
    return Namespace(command="convert", **locals())


def _merge_lora(
    folders: Annotated[
        list[str],
        typer.Argument(
            metavar="[BASE] ADAPTER OUTPUT",
            help="BASE: folder or Hugging Face Hub id of the model that the adapter was trained on; by default the subfolder base of the "
            "adapter, or the model that its adapter_config.json names. ADAPTER: its folder. OUTPUT: path of the folder that is written.",
        ),
    ],
    processor: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Folder or Hugging Face Hub id of the processor. Default: that of the base model."),
    ] = None,
    config_overrides: ConfigOverrides = None,
    no_fingerprint: NoFingerprint = False,
) -> Namespace:
    """Merge a LoRA adapter, of this package or of the original code, into its base model."""
    if len(folders) not in (2, 3):
        raise typer.BadParameter(f"Expected [BASE] ADAPTER OUTPUT, got {len(folders)} argument{'' if len(folders) == 1 else 's'}.")
    *base, adapter, output = folders
    options = {"processor": processor, "config_overrides": config_overrides, "no_fingerprint": no_fingerprint}
    return Namespace(command="merge-lora", base=base[0] if base else None, adapter=adapter, output=output, **options)


def _fingerprint(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Folder of a checkpoint in this package's layout.")],
    check: Annotated[
        bool, typer.Option("--check", help="Compare the folder's fingerprint.json with what the model computes; write nothing.")
    ] = False,
    device: Device = None,
    dtype: Dtype = None,
) -> Namespace:
    """Write fingerprint.json to a checkpoint's folder: a small video, a question, and what the model computes for them in float32. Servers
    compare it with what they compute."""
    return Namespace(command="fingerprint", **locals())


def _push(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER", help="Folder of the model or adapter. Checkpoints, logs and settings of a training are not uploaded."
        ),
    ],
    repo_id: Annotated[
        str,
        typer.Argument(metavar="REPO", help="Id of the hub repository, owner/name. It is created if it does not exist."),
    ],
    scores: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="scores.json of an evaluation, for the results in the card. May be given several times."),
    ] = None,
    license: Annotated[
        str | None, typer.Option(metavar="ID", help="Licence of the model, an identifier of the hub such as apache-2.0.")
    ] = None,
    base_model: Annotated[str | None, typer.Option(metavar="ID", help="Hub id of the model that it was trained from.")] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Hub id of a training dataset. May be given several times.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[
        str | None,
        typer.Option(metavar="BRANCH", help="Branch to upload to, which is created if it does not exist. Default: main."),
    ] = None,
) -> Namespace:
    """Upload a model or adapter folder to the Hugging Face Hub, with its code and a model card."""
    return Namespace(command="push", **{**locals(), "scores": scores or [], "dataset": dataset or []})


def _create_stage1(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            help="Folder or Hugging Face Hub id of a LLaVA-OneVision-Qwen2, in the layout of transformers or the original one; with "
            "--vision-encoder, of a causal language model.",
        ),
    ],
    output: Output,
    dtype: Annotated[Literal["bfloat16", "float16", "float32"], typer.Option(help="Weight dtype.")] = "bfloat16",
    vision_encoder: Annotated[
        str | None,
        typer.Option(
            metavar="ENCODER",
            help="Folder or Hugging Face Hub id of a vision encoder, such as SigLIP, CLIP, DINOv2 or DINOv3. The projector is new and must "
            "be trained in stage 1.",
        ),
    ] = None,
    config_overrides: ConfigOverrides = None,
) -> Namespace:
    """Create the stage-1 model from a LLaVA-OneVision-Qwen2 checkpoint, or from a decoder and an encoder."""
    return Namespace(command="create-stage1", **locals())
