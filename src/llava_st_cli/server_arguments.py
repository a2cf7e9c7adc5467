# SPDX-License-Identifier: Apache-2.0
"""Arguments of the commands that serve a model: `serve`, `app`, `label-studio` and `cvat`."""

from argparse import Namespace
from typing import Annotated

import typer

from .question_arguments import Device, Dtype, Model


Host = Annotated[
    str, typer.Option(metavar="ADDRESS", help="Address to listen on. Others can reach any that is not one of this computer itself.")
]


def add_commands(app: typer.Typer) -> None:
    app.command("serve")(_serve)
    app.command("app")(_app)
    app.command("label-studio")(_label_studio)
    app.command("cvat")(_cvat)


def _serve(
    checkpoint: Annotated[
        str,
        typer.Argument(metavar="CHECKPOINT", help="Folder or Hugging Face Hub id of a model in this package's layout.", show_default=False),
    ],
    flags: Annotated[
        list[str] | None, typer.Argument(metavar="[-- FLAGS]", help="Further flags of `vllm serve`.", show_default=False)
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the model in requests. Default: CHECKPOINT as given.")] = None,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", help="TCP port.")] = 8000,
    dtype: Dtype = None,
    max_model_len: Annotated[
        int | None,
        typer.Option(metavar="N", help="Largest number of tokens of a prompt and its answer. Default: what the decoder allows."),
    ] = None,
    max_images: Annotated[int, typer.Option(metavar="N", help="Images in a request.")] = 1,
    max_videos: Annotated[int, typer.Option(metavar="N", help="Videos in a request.")] = 1,
    max_upload: Annotated[int, typer.Option(metavar="MIB", help="Largest request in MiB; media in base64 take 4 bytes for 3.")] = 256,
    media_domain: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST", help="Host that media are downloaded from. May be given several times. Default: none."),
    ] = None,
    media_folder: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Folder that file:// URLs may be in. Default: none are read.")
    ] = None,
    prompt_embeds: Annotated[
        bool | None,
        typer.Option(
            help="Accept embeddings in requests: exact positions of the client. Default: if only this computer can connect and the "
            "checkpoint has a row for their token."
        ),
    ] = None,
    without_fingerprint: Annotated[
        bool, typer.Option("--without-fingerprint", help="Serve a checkpoint without a fingerprint: its answers are not checked.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the checkpoint, print the command line of vLLM, and end.")] = False,
) -> Namespace:
    """Serve a checkpoint with vLLM: OpenAI's API over HTTP."""
    values = locals()
    return Namespace(command="serve", **{**values, "flags": flags or [], "media_domain": media_domain or []})


def _app(
    model: Model = None,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", help="TCP port; 0 for any free one.")] = 7860,
    device: Device = None,
    dtype: Dtype = None,
) -> Namespace:
    """Serve a web page for questions about videos and images."""
    return Namespace(command="app", **locals())


def _label_studio(
    model: Model = None,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", help="TCP port.")] = 9090,
    media: Annotated[str | None, typer.Option(metavar="FOLDER", help="Folder of Label Studio's local files.")] = None,
    label_studio_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Label Studio, for uploaded files. Its access token is read from LABEL_STUDIO_API_KEY."),
    ] = None,
    text_key: Annotated[
        str, typer.Option(metavar="KEY", help="Field of a task with the text, or texts, that is asked instead of the labels.")
    ] = "text",
    device: Device = None,
    dtype: Dtype = None,
) -> Namespace:
    """Serve pre-annotations of videos and images to Label Studio."""
    return Namespace(command="label-studio", **locals())


def _cvat(
    model: Model = None,
    server: Annotated[
        str, typer.Option(metavar="URL", help="CVAT. Its personal access token is read from CVAT_ACCESS_TOKEN.")
    ] = "http://localhost:8080",
    task: Annotated[list[int] | None, typer.Option(metavar="ID", help="Task to annotate. May be given several times.")] = None,
    project: Annotated[int | None, typer.Option(metavar="ID", help="Project, all of whose tasks are annotated.")] = None,
    watch: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Look for new tasks of the project at this interval. Default: annotate once and end."),
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
) -> Namespace:
    """Add tracks to video tasks of a CVAT server."""
    return Namespace(command="cvat", **{**locals(), "task": task or []})
