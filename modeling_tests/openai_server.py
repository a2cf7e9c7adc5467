# SPDX-License-Identifier: Apache-2.0
"""HTTP server at 127.0.0.1 with the routes of OpenAI's API that vLLM has, which answers with a model of this package.

It renders the chat template of the checkpoint itself, as vLLM does, so that a prompt contains what the request contains and no more. Faults
can be switched on: error statuses, slow answers, connections that are closed, invalid JSON.
"""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jinja2
import torch
import xgrammar.contrib.hf

from llava_st_hf import LlavaSTForConditionalGeneration, LlavaSTProcessor


def served_inputs(messages: list[dict], processor: LlavaSTProcessor):
    """
    Model inputs of the messages of a request, whose texts contain tokens and whose media are URLs.

    Raises:
        ValueError, OSError, jinja2.TemplateError: for invalid messages.
    """
    found: dict[str, list[str]] = {"image": [], "video": []}
    converted = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            items = []
            for item in content:
                kind = item["type"].removesuffix("_url")
                if kind in found and item["type"] != kind:
                    found[kind].append(item[item["type"]]["url"])
                    items.append({"type": kind})
                elif kind == "text":
                    items.append({"type": "text", "text": item["text"]})
                else:
                    raise ValueError(f"Unsupported chat content part type: {item['type']!r}.")
            content = items
        converted.append({"role": message["role"], "content": content})
    template = processor.chat_template
    prompt = processor.tokenizer.apply_chat_template(converted, chat_template=template, tokenize=False, add_generation_prompt=True)
    images, videos = (found[kind] or None for kind in ("image", "video"))
    inputs = processor(text=[prompt], images=images, videos=videos, return_tensors="pt")
    if "coordinate_values" in inputs:
        raise AssertionError(f"The prompt has coordinates that a server does not convert: {prompt}")
    return inputs


@dataclass
class OpenAIServer:
    """
    State of the server.

    Args:
        model, processor: what answers. One request is answered at a time.
        name: id of the model in requests and in `/v1/models`.
        api_key: key that requests must have; None accepts all.
        faults: replies to the next requests of chat completions, in order, in place of an answer: a status; `(status, headers)`; "close"
            closes the connection without a reply; "hang" keeps it open until the server stops; "invalid" sends a body that is not JSON;
            a dictionary is sent as the body. None answers.
        delay: seconds to wait before each answer.
        is_ready: False for the status 503 to all requests, as of the proxy of a server that is down.
        url: address with the path `/v1`, for `base_url`.
        requests: bodies of the chat completions received so far.
        headers: their headers.
        active, most_active: requests that are being answered now, and the highest number so far.
    """

    model: LlavaSTForConditionalGeneration
    processor: LlavaSTProcessor
    name: str = "llava-st"
    api_key: str | None = None
    faults: list = field(default_factory=list)
    delay: float = 0.0
    is_ready: bool = True
    url: str = ""
    requests: list[dict] = field(default_factory=list)
    headers: list[dict] = field(default_factory=list)
    active: int = 0
    most_active: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    generation: threading.Lock = field(default_factory=threading.Lock)
    stopped: threading.Event = field(default_factory=threading.Event)

    def next_fault(self, body: dict, headers: dict):
        with self.lock:
            self.requests.append(body)
            self.headers.append(headers)
            self.active += 1
            self.most_active = max(self.active, self.most_active)
            return self.faults.pop(0) if self.faults else None

    def answer(self, body: dict) -> dict:
        """
        Body of the reply to a chat completion.

        Raises:
            ValueError, OSError, jinja2.TemplateError: for an invalid request.
        """
        if body["model"] != self.name:
            raise ValueError(f"The model {body['model']!r} does not exist.")
        if body.get("temperature") != 0:
            raise ValueError("This server answers greedily: set temperature to 0.")
        inputs = served_inputs(body["messages"], self.processor)
        with self.generation, torch.no_grad():
            generated = self.model.generate(**inputs, **self._constraint(body), do_sample=False, max_new_tokens=body["max_tokens"])
        ids = generated[0, inputs["input_ids"].shape[1] :].tolist()
        ended = ids[-1] == self.processor.tokenizer.eos_token_id
        text = self.processor.tokenizer.decode(ids, skip_special_tokens=True)
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop" if ended else "length"}
        usage = {"prompt_tokens": inputs["input_ids"].shape[1], "completion_tokens": len(ids)}
        return {"id": "chatcmpl-1", "object": "chat.completion", "model": self.name, "choices": [choice], "usage": usage}

    def _constraint(self, body: dict) -> dict:
        structured = body.get("structured_outputs")
        if structured is None:
            return {}
        if set(structured) != {"regex"}:
            raise ValueError(f"structured_outputs must have a regex, got {list(structured)}.")
        tokenizer = self.processor.tokenizer
        size = self.model.config.get_text_config().vocab_size
        tokens = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=size, stop_token_ids=tokenizer.eos_token_id)
        compiled = xgrammar.GrammarCompiler(tokens).compile_regex(structured["regex"])
        return {"logits_processor": [xgrammar.contrib.hf.LogitsProcessor(compiled)]}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: OpenAIServer

    def log_message(self, *args) -> None:
        pass

    def _send(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _error(self, message: str, status: int, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps({"error": {"message": message, "type": "error", "code": status}}).encode(), status, headers)

    def do_GET(self) -> None:
        if self.path == "/health":
            self._send(b"")
        elif not self.state.is_ready:
            self._error("Not ready", 503)
        elif self.path == "/v1/models":
            self._send(json.dumps({"object": "list", "data": [{"id": self.state.name, "object": "model"}]}).encode())
        else:
            self._error("Not Found", 404)

    def do_POST(self) -> None:
        state = self.state
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/chat/completions":
            self._error("Not Found", 404)
            return
        fault = state.next_fault(body, dict(self.headers))
        try:
            self._answer(state, body, fault)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client may disconnect at any time
        finally:
            with state.lock:
                state.active -= 1

    def _answer(self, state: OpenAIServer, body: dict, fault) -> None:
        if state.api_key is not None and self.headers.get("Authorization") != f"Bearer {state.api_key}":
            self._error(f"Invalid API key: {self.headers.get('Authorization')}", 401)
        elif not state.is_ready:
            self._error("Not ready", 503)
        elif fault == "close":
            self.close_connection = True
        elif fault == "hang":
            state.stopped.wait()
            self.close_connection = True
        elif fault == "invalid":
            self._send(b'{"choices": [')
        elif isinstance(fault, dict):
            self._send(json.dumps(fault).encode())
        elif fault is not None:
            status, headers = fault if isinstance(fault, tuple) else (fault, None)
            self._error(f"Status {status} was asked for.", status, headers)
        else:
            time.sleep(state.delay)
            try:
                content = json.dumps(state.answer(body)).encode()
            except (ValueError, OSError, jinja2.TemplateError) as error:
                self._error(str(error), 400)
                return
            self._send(content)


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # clients open several connections at once; the default of 5 makes them wait for a second attempt
    daemon_threads = True


@contextlib.contextmanager
def serve_openai(model, processor, port: int = 0, **settings) -> Iterator[OpenAIServer]:
    """Context manager that runs the server, on any free port by default; `settings` are those of `OpenAIServer`."""
    state = OpenAIServer(model, processor, **settings)
    server = _Server(("127.0.0.1", port), type("Handler", (_Handler,), {"state": state}))
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()
