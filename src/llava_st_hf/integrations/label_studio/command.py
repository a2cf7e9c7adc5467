# SPDX-License-Identifier: Apache-2.0
"""`llava-st label-studio`: arguments that are checked before the server and the model are loaded."""

import os


def label_studio(
    model: str | None = None,
    host: str = "127.0.0.1",
    port: int = 9090,
    media: str | None = None,
    label_studio_url: str | None = None,
    text_key: str = "text",
    device: str | None = None,
    dtype: str = "auto",
) -> None:
    """
    Starts the Label Studio ML back-end. The access token is read from the environment variable LABEL_STUDIO_API_KEY, since command lines
    are visible to other users of a machine.

    Args:
        model: checkpoint; None for the demo model.
        host, port, media, label_studio_url, text_key, device, dtype: see `server.serve`.

    Raises:
        ValueError: naming an option that is not valid.
        ImportError: if the server's libraries are not installed: `pip install "llava-st-hf[label-studio]"`.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"--port {port} must be from 0 to 65535.")
    if media is not None and not os.path.isdir(media):
        raise ValueError(f"--media {media} must be a folder.")
    if label_studio_url is not None and not label_studio_url.startswith(("http://", "https://")):
        raise ValueError(f"--label-studio-url {label_studio_url} must begin with http:// or https://.")
    if media is None and label_studio_url is None:
        raise ValueError("Give --media, the folder of Label Studio's local files, or --label-studio-url, for files uploaded to it.")
    try:
        from .server import serve
    except ModuleNotFoundError as error:
        raise ImportError(f"`llava-st label-studio` needs {error.name}: pip install 'llava-st-hf[label-studio]'.") from error

    token = os.environ.get("LABEL_STUDIO_API_KEY")
    serve(model, host, port, media, label_studio_url, token, text_key, device, dtype)
