# SPDX-License-Identifier: Apache-2.0
"""ASGI middleware that checks one answer of the checkpoint before vLLM's server accepts connections."""

import base64
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import httpx

from ..checkpoints.fingerprint import Fingerprint, read_fingerprint, served_arithmetic


Message = MutableMapping[str, Any]
# Environment variables, because vLLM constructs its middleware without arguments, also in processes that it starts. The first names a file
# to which the reason of a failure is written, the second is "1" if a checkpoint without a fingerprint is served.
REPORT, WITHOUT_FINGERPRINT = "LLAVA_ST_SERVE_REPORT", "LLAVA_ST_SERVE_WITHOUT_FINGERPRINT"


class StartupCheck:
    """
    Asks the question of the checkpoint's fingerprint through the whole server and ends the server if the tokens of the answer differ.

    uvicorn listens only after the application has completed its startup, so that no request is answered before the check.

    Args:
        app: ASGI application.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self.app = app

    async def __call__(self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
        if scope["type"] != "lifespan":
            return await self.app(scope, receive, send)
        server, failed = scope["app"], False

        async def checked_send(message: Message) -> None:
            nonlocal failed
            if failed:
                return
            if message["type"] == "lifespan.startup.complete":
                try:
                    await check_answer(server)
                except Exception as error:  # whatever it is, the server must not answer
                    failed = True
                    reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
                    _report(reason)
                    message = {"type": "lifespan.startup.failed", "message": reason}
            await send(message)

        async def checked_receive() -> Message:
            if failed:  # the application, which has started, ends
                return {"type": "lifespan.shutdown"}
            message = await receive()
            if message["type"] == "lifespan.shutdown" and server.state.engine_client.errored:
                _report("The engine of vLLM has ended with an error, which the lines above show.")
            return message

        await self.app(scope, checked_receive, checked_send)


async def check_answer(server: Any) -> None:
    """
    Compares the answer of a server to the question of its checkpoint's fingerprint.

    Args:
        server: application of vLLM, whose engine has started.

    Raises:
        ValueError: if the checkpoint has no fingerprint, if the server answers with an error, or if the tokens differ.
    """
    arguments = server.state.args
    fingerprint = read_fingerprint(arguments.model)
    if fingerprint is None:
        if os.environ.get(WITHOUT_FINGERPRINT) == "1":
            return
        raise ValueError(f"{arguments.model} has no fingerprint, so that the answers of this server cannot be checked.")
    key = (arguments.api_key or [os.environ.get("VLLM_API_KEY")])[0]
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    name = (arguments.served_model_name or [arguments.model])[0]
    transport = httpx.ASGITransport(app=server)
    async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=None) as client:
        response = await client.post("/v1/chat/completions", json=fingerprint_request(fingerprint, name), headers=headers)
    if response.status_code != 200:
        raise ValueError(f"The checkpoint's own question is answered with status {response.status_code}: {response.text:.500}")
    served = server.state.vllm_config
    arithmetic = served_arithmetic(served.model_config.dtype, served.quant_config)
    fingerprint.check_tokens(response.json()["choices"][0]["token_ids"], arithmetic)


def fingerprint_request(fingerprint: Fingerprint, name: str) -> dict:
    """Body of the request for the question of a fingerprint: greedy decoding of as many tokens as it has."""
    url = f"data:video/mp4;base64,{base64.b64encode(fingerprint.video).decode()}"
    messages = [{**message, "content": [_openai_item(item, url) for item in message["content"]]} for message in fingerprint.messages]
    return {
        "model": name,
        "messages": messages,
        "max_completion_tokens": len(fingerprint.token_ids),
        "temperature": 0,
        "repetition_penalty": 1.0,  # the checkpoint's own default would be used
        "return_token_ids": True,
    }


def _openai_item(item: dict, url: str) -> dict:
    return {"type": "video_url", "video_url": {"url": url}} if item["type"] == "video" else item


def _report(reason: str) -> None:
    if path := os.environ.get(REPORT):
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{reason}\n")
