# SPDX-License-Identifier: Apache-2.0
"""ASGI middleware that refuses large requests: vLLM reads the whole body of a request into memory."""

import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any


Message = MutableMapping[str, Any]
# Environment variable with the largest size in bytes: vLLM constructs its middleware without arguments, also in processes that it starts.
LIMIT = "LLAVA_ST_SERVE_UPLOAD_BYTES"


class UploadLimit:
    """
    Answers requests whose body is larger than a limit with status 413. The rest of the body is received, because most clients read an
    answer only after they have sent all, and discarded.

    Args:
        app: ASGI application.

    The limit in bytes is that of the environment variable `LLAVA_ST_SERVE_UPLOAD_BYTES`.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self.app = app
        self.limit = int(os.environ[LIMIT])

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.limit:
            return await self._refuse(receive, send)
        size, has_started, is_complete = 0, False, False

        async def limited_receive() -> Message:
            nonlocal size, is_complete
            message = await receive()
            size += len(message.get("body", b""))
            is_complete = not message.get("more_body", False)
            # Without a Content-Length the size is found while the body is read. The application ends as if the client had disconnected.
            return message if size <= self.limit else {"type": "http.disconnect"}

        async def limited_send(message: Message) -> None:
            nonlocal has_started
            if size <= self.limit or has_started:
                has_started = True
                await send(message)

        try:
            await self.app(scope, limited_receive, limited_send)
        except Exception:
            if size <= self.limit or has_started:
                raise
        if size > self.limit and not has_started:
            await self._refuse(receive, send, is_complete)

    async def _refuse(
        self, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]], is_complete: bool = False
    ) -> None:
        while not is_complete:
            is_complete = not (await receive()).get("more_body", False)
        message = (
            f"The request is larger than {self.limit} bytes, the limit of this server. Media in base64 take 4 bytes for 3. Send a shorter "
            "clip or a smaller image, or start the server with a larger --max-upload."
        )
        body = json.dumps({"error": {"message": message, "type": "RequestTooLarge", "param": None, "code": 413}}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": body})
