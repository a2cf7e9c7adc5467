# SPDX-License-Identifier: Apache-2.0
"""Arguments of the commands that serve a model: `app`, `label-studio` and `cvat`."""

from argparse import Namespace
from typing import Annotated

import typer

from .question_arguments import Device, Dtype, Model


Host = Annotated[
    str, typer.Option(metavar="ADDRESS", help="Address to listen on. Others can reach any that is not one of this computer itself.")
]


def add_commands(app: typer.Typer) -> None:
    app.command("app")(_app)
    app.command("label-studio")(_label_studio)
    app.command("cvat")(_cvat)


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
