# SPDX-License-Identifier: Apache-2.0
"""Arguments of `llava-st batch`."""

from argparse import Namespace
from typing import Annotated

import typer

from .question_arguments import Device, Dtype, MaxNewTokens


def add_commands(app: typer.Typer) -> None:
    app.command("batch", short_help="Answer the questions of a manifest, on one machine or many.")(_batch)


def _batch(
    manifest: Annotated[
        str,
        typer.Argument(
            metavar="MANIFEST",
            help="Parquet, JSONL or CSV file, a question in each row: video or image, text, task, clip, start, end, span, box, time.",
        ),
    ],
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="Folder for the answers. Both may be URLs such as s3://bucket/folder.")],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Folder or Hugging Face Hub id of a checkpoint: of the model that answers in this process, or that the servers serve. "
            "Default without --server: the demo model of this package.",
        ),
    ] = None,
    server: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Server with OpenAI's API, such as http://127.0.0.1:8000. May be given several times."),
    ] = None,
    media_root: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Folder of relative paths of media. Default: that of the manifest.")
    ] = None,
    connections: Annotated[int, typer.Option(metavar="N", help="Number of requests at a time; with --ray, of each worker.")] = 16,
    num_shards: Annotated[
        int | None, typer.Option(metavar="N", help="Number of files of the output. Default: one for 64 rows, at most 1000.")
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Ask rows again that failed in an earlier call.")] = False,
    max_new_tokens: MaxNewTokens = None,
    constrained: Annotated[
        bool, typer.Option("--constrained", help="Constrain each answer to the form of its task, so that it is complete.")
    ] = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="Send exact times and boxes instead of the nearest coordinate tokens. Needs --server.")
    ] = False,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="Time that a server may take to answer.")] = 600.0,
    max_retries: Annotated[int, typer.Option(metavar="N", help="How often a request is repeated.")] = 3,
    wait_for_server: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long to wait while no server answers, before the run ends.")
    ] = 120.0,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Number of questions per batch, without --server.")] = 8,
    device: Device = None,
    dtype: Dtype = None,
    gpus: Annotated[
        int | None, typer.Option(metavar="N", help="Number of GPUs that answer, for GPU-hours. Default: one for each server, or one.")
    ] = None,
    price_per_hour: Annotated[float | None, typer.Option(metavar="PRICE", help="Price of a GPU-hour, for the cost.")] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Run on a Ray cluster: auto for the running one, its address, or local to start one on this machine for this call.",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(metavar="N", help="Number of workers on the Ray cluster. Default: one for each node.")
    ] = None,
) -> Namespace:
    """Answer the questions of a manifest into a folder of Parquet files, with one row for each row of the manifest.

    Run the same command again to resume. The exit status is 3 if all rows were asked and some failed. The key of servers is read from
    OPENAI_API_KEY."""
    return Namespace(command="batch", **{**locals(), "server": server or []})
