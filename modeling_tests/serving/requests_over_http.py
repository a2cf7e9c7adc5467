# SPDX-License-Identifier: Apache-2.0
"""Requests of chat completions for the questions of `questions.py`, and many of them at a time."""

import asyncio
import base64
from collections.abc import Sequence
from pathlib import Path

import httpx

from modeling_tests.serving.questions import Answer


TYPES = {".mp4": "video/mp4", ".jpg": "image/jpeg"}


def media_item(kind: str, data: bytes, suffix: str) -> dict:
    """Item of a message with a file as a data URL."""
    return {"type": f"{kind}_url", f"{kind}_url": {"url": f"data:{TYPES[suffix]};base64,{base64.b64encode(data).decode()}"}}


def chat_request(content: list[dict], model: str, max_tokens: int, **fields) -> dict:
    """Body of a request that is answered greedily, with the token ids of the answer."""
    messages = [{"role": "user", "content": content}]
    greedy = {"temperature": 0, "repetition_penalty": 1.0, "return_token_ids": True}
    return {"model": model, "messages": messages, "max_completion_tokens": max_tokens, **greedy, **fields}


def question_request(answer: Answer, model: str, max_tokens: int, **fields) -> dict:
    """Body of the request for the question of an answer: its image or video, and its text, whose coordinates are tokens."""
    ((kind, path),) = answer.request["media"]
    _, _, text = answer.request["prompt"].partition(f"<{kind}>\n")
    text, _, _ = text.partition("<|im_end|>")
    item = media_item(kind, Path(path).read_bytes(), Path(path).suffix)
    return chat_request([item, {"type": "text", "text": text}], model, max_tokens, **fields)


async def send_all(url: str, bodies: Sequence[dict], connections: int, key: str = "") -> list[httpx.Response | httpx.TransportError]:
    """Sends requests, `connections` at a time, with an API key if there is one. A request without a response gives its exception."""
    limit = asyncio.Semaphore(connections)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(headers=headers, timeout=600, limits=httpx.Limits(max_connections=connections)) as client:

        async def send(body: dict):
            async with limit:
                try:
                    return await client.post(f"{url}/chat/completions", json=body)
                except httpx.TransportError as error:
                    return error

        return list(await asyncio.gather(*(send(body) for body in bodies)))


def ask(url: str, bodies: Sequence[dict], connections: int, key: str = "") -> list[httpx.Response | httpx.TransportError]:
    """See `send_all`."""
    return asyncio.run(send_all(url, bodies, connections, key))


def ask_all(url: str, bodies: Sequence[dict], connections: int, key: str = "") -> list[list[int] | tuple[int, str] | httpx.TransportError]:
    """The token ids of each answer; `(status, message)` of an error; the exception of a request without a response."""
    results = []
    for response in ask(url, bodies, connections, key):
        if isinstance(response, httpx.Response):
            body = response.json() if response.headers.get("content-type", "").startswith("application/json") else response.text
            if response.status_code == 200:
                results.append(body["choices"][0]["token_ids"])
            else:
                results.append((response.status_code, message(body)))
        else:
            results.append(response)
    return results


def message(body: dict | str) -> str:
    """Message of an error."""
    if isinstance(body, str):
        return body
    return body["error"]["message"] if isinstance(body["error"], dict) else body["error"]
