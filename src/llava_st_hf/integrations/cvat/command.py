# SPDX-License-Identifier: Apache-2.0
"""`llava-st cvat`: arguments that are checked before the client and the model are loaded."""

import os
from collections.abc import Sequence


def cvat(
    model: str | None = None,
    server: str = "http://localhost:8080",
    task: Sequence[int] | None = None,
    project: int | None = None,
    watch: float | None = None,
    device: str | None = None,
    dtype: str = "auto",
) -> int:
    """
    Adds tracks to video tasks of a CVAT server. The personal access token is read from the environment variable CVAT_ACCESS_TOKEN, since
    command lines are visible to other users of a machine.

    Args:
        model: checkpoint; None for the demo model.
        server: URL of CVAT.
        task: ids of tasks.
        project: id of a project, all of whose tasks are annotated.
        watch: seconds between looks at the project for new tasks; by default the command ends after one look.
        device, dtype: of the model.

    Returns:
        The exit code: 0, or 1 if a task could not be annotated.

    Raises:
        ValueError: naming an option that is not valid.
        OSError: if the server cannot be reached or does not accept the token.
        ImportError: if CVAT's client is not installed: `pip install "llava-st-hf[cvat]"`.
    """
    if not server.startswith(("http://", "https://")):
        raise ValueError(f"--server {server} must begin with http:// or https://.")
    task = task or ()
    if not task and project is None:
        raise ValueError("Give --task, the number of a task, or --project.")
    for name, value in [*(("--task", id) for id in task), *([("--project", project)] if project is not None else [])]:
        if value < 1:
            raise ValueError(f"{name} {value} must be a number from 1 on.")
    if watch is not None and (project is None or not 1 <= watch < float("inf")):
        raise ValueError(f"--watch {watch:g} must be at least 1 second, and needs --project.")
    token = os.environ.get("CVAT_ACCESS_TOKEN")
    if not token:
        raise ValueError("Set the environment variable CVAT_ACCESS_TOKEN to a personal access token of CVAT.")
    try:
        from .agent import run
    except ModuleNotFoundError as error:
        raise ImportError(f"`llava-st cvat` needs {error.name}: pip install 'llava-st-hf[cvat]'.") from error

    return 0 if run(model, server, task, project, watch, token, device, dtype) else 1
