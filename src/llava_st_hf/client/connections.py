# SPDX-License-Identifier: Apache-2.0
"""`GroundingClient`: questions to a server, on several connections."""

import email.utils
import json
import os
import random
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from urllib.parse import urlsplit

from ..model.checks_llava_st import is_finite_number, is_integer
from ..model.processing_llava_st import LlavaSTProcessor
from ..model.questions_llava_st import QUESTION_KEYS, is_chat, split_questions
from ..model.results_llava_st import Grounding
from .exact import CoordinateRows
from .requests import GroundingRequest, build_request
from .responses import RequestError, error_message, read_response


FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds before the second attempt, doubled for each further one up to the second number
LONGEST_RETRY_AFTER = 300.0  # seconds that a server may ask to wait for
LARGEST_BODY = 16 * 2**20  # bytes of a response; an answer has kilobytes
# Images and videos that are decoded at the same time: each is decoded by several threads, and its frames take 200 MB.
_DECODERS = 2


class GroundingClient:
    """
    Asks a server with OpenAI's API, such as vLLM with the plug-in of this package, the questions of the pipeline.

    Reads media, converts seconds and pixels, cuts clips and reads answers in this process, with the files of the processor only. May be
    used by several threads. Close it with `close` or use it in a `with` statement.

    Args:
        base_url: address of the API, such as "http://127.0.0.1:8000/v1".
        model: name of the model on the server; by default its only one.
        processor: [`LlavaSTProcessor`] of the checkpoint that is served, or its folder or repository of the Hub; by default `model`,
            or without it the folder that the server names.
        api_key: key of the server; by default the environment variable OPENAI_API_KEY.
        connections: number of requests at the same time.
        timeout: seconds for one attempt, from its first byte sent until the last one received.
        max_retries: number of further attempts after a connection error, status 429 or a status of 500 and above. Times between them are
            random, and grow exponentially; a time that the server asks for by Retry-After is kept.
        rows: [`CoordinateRows`] for `exact=True`; by default those of the checkpoint that `processor` names.
        media_urls: send addresses of files instead of their contents; see `build_request`.
    """

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        processor: LlavaSTProcessor | str | os.PathLike | None = None,
        api_key: str | None = None,
        connections: int = 16,
        timeout: float = 600.0,
        max_retries: int = 5,
        rows: CoordinateRows | None = None,
        media_urls: bool = False,
    ):
        try:
            import httpx
        except ImportError as error:
            raise ImportError('GroundingClient needs httpx: pip install "llava-st-hf[client]"') from error
        parts = urlsplit(base_url)
        if parts.username is not None or parts.password is not None:
            raise ValueError("base_url must not contain a user name or password. Give the key as api_key.")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f'base_url must be an address like "http://127.0.0.1:8000/v1", got {base_url!r}.')
        for name, value, least in (("connections", connections, 1), ("max_retries", max_retries, 0)):
            if not is_integer(value) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}.")
        if not is_finite_number(timeout) or timeout <= 0:
            raise ValueError(f"timeout must be a number of seconds above 0, got {timeout!r}.")
        self.base_url, self.connections = base_url.rstrip("/"), int(connections)
        self.timeout, self.max_retries, self.media_urls = float(timeout), int(max_retries), media_urls
        self._model, self._processor, self._rows = model, processor if processor is not None else model, rows
        self._api_key = api_key if api_key is not None else os.environ.get("OPENAI_API_KEY") or None
        if self._api_key is not None and not (self._api_key.isascii() and self._api_key.isprintable()):
            raise ValueError("api_key must consist of printable ASCII characters.")
        self._httpx = httpx
        # Redirects are not followed: they would send prompts and media to another address.
        limits = httpx.Limits(max_connections=self.connections, max_keepalive_connections=self.connections)
        self._http = httpx.Client(timeout=httpx.Timeout(self.timeout, pool=None), limits=limits, follow_redirects=False)
        self._decoders = threading.BoundedSemaphore(_DECODERS)
        self._lock, self._closed = threading.RLock(), threading.Event()

    def __repr__(self) -> str:
        return f"GroundingClient({self.base_url!r}, model={self._model!r}, connections={self.connections})"

    def __enter__(self) -> "GroundingClient":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections. Requests that wait for another attempt are given up."""
        self._closed.set()
        self._http.close()

    @cached_property
    def model(self) -> str:
        """Name of the model on the server."""
        with self._lock:
            if self._model is None:
                body = self._send("GET", "/models", None)
                found = body.get("data") if isinstance(body, dict) else None
                names = [entry.get("id") for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
                if len(names) != 1 or not isinstance(names[0], str):
                    raise ValueError(f"The server has {len(names)} models ({', '.join(map(str, names))}): give one of them as model.")
                self._model = names[0]
            return self._model

    @cached_property
    def processor(self) -> LlavaSTProcessor:
        """The processor of the checkpoint."""
        with self._lock:
            if self._processor is not None and not isinstance(self._processor, (str, os.PathLike)):
                return self._processor
            name = self.model if self._processor is None else self._processor
            if self._processor is None and not os.path.isdir(name):  # nothing is downloaded because a server names it
                raise ValueError(f"The model of the server, {name!r:.200}, is not a folder here: give processor=, a folder or repository.")
            try:
                return LlavaSTProcessor.from_pretrained(name)
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"The processor of {os.fspath(name)!r} cannot be loaded: give processor=, a folder or repository. ({error})"
                ) from error

    @cached_property
    def _coordinate_rows(self) -> CoordinateRows:
        with self._lock:
            if self._rows is not None:
                return self._rows
            if isinstance(self._processor, (str, os.PathLike)):
                return CoordinateRows.from_checkpoint(self._processor)
            raise ValueError("exact=True needs rows=CoordinateRows.from_checkpoint(…), or the folder of the checkpoint as processor.")

    def __call__(self, inputs, **arguments) -> Grounding | list[Grounding]:
        """
        Answers one question, or several about one image or video.

        Args:
            inputs: one input of the pipeline, or a list of inputs: see `VideoGroundingPipeline.__call__`.
            arguments: text, task, clip, start, end, span, time, box, fps, timestamps, num_frames, video_backend, allow_truncated and
                download_limits as those of the pipeline; exact, constrained and max_tokens as those of `build_request`.

        Returns:
            [`Grounding`], or a list of them for a list of inputs and for lists of text, task, span, time or box.

        Raises:
            ValueError, OSError: naming what is wrong with media or question.
            RequestError: if the server does not answer.
        """
        questions = split_questions(inputs, {name: arguments[name] for name in QUESTION_KEYS if name in arguments})
        if questions:
            arguments = {name: value for name, value in arguments.items() if name not in questions[0]}
        elif questions is None and isinstance(inputs, list) and not is_chat(inputs):
            questions = inputs
        if questions is None:
            return self._answer(inputs, arguments)
        answers = []
        for answer in self.map(questions, **arguments):
            if isinstance(answer, Exception):
                raise answer
            answers.append(answer)
        return answers

    def map(self, questions: Iterable, **arguments) -> Iterator[Grounding | Exception]:
        """
        Answers questions on `connections` connections, in the order of the questions.

        Args:
            questions: inputs of the pipeline. Generators are read as far as questions are in work.
            arguments: of all questions, see `__call__`.

        Returns:
            An iterator with one entry for each question: its [`Grounding`], or the exception that a call would raise.
        """
        stopped = threading.Event()
        executor = ThreadPoolExecutor(self.connections, thread_name_prefix="grounding")
        pending: deque[Future] = deque()
        try:
            for question in questions:
                pending.append(executor.submit(self._answer_or_error, question, arguments, stopped))
                # A slow answer does not stop the others: as many again are asked before it is waited for.
                while pending and (len(pending) >= 2 * self.connections or pending[0].done()):
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            stopped.set()
            executor.shutdown(wait=False, cancel_futures=True)

    def _answer_or_error(self, question, arguments: dict, stopped: threading.Event) -> Grounding | Exception:
        try:
            return self._answer(question, arguments, stopped)
        except Exception as error:
            return error

    def _answer(self, question, arguments: dict, stopped: threading.Event | None = None) -> Grounding:
        request = self.build_request(question, **arguments)
        body = self._send("POST", "/chat/completions", request.payload, stopped)
        return read_response(body, request)

    def build_request(self, question, **arguments) -> GroundingRequest:
        """The request of a question, with the model and the processor of this client; see the function `build_request`."""
        rows = self._coordinate_rows if arguments.get("exact") else None
        model, processor = self.model, self.processor
        with self._decoders:
            return build_request(question, processor, model=model, rows=rows, media_urls=self.media_urls, **arguments)

    # Requests

    def _send(self, method: str, path: str, payload: dict | None, stopped: threading.Event | None = None):
        """Sends a request until it is answered, and returns the parsed body."""
        content = None if payload is None else json.dumps(payload).encode()
        attempt = 0
        while True:
            attempt += 1
            if self._closed.is_set() or (stopped is not None and stopped.is_set()):
                raise RequestError(f"{method} {self.base_url}{path} was given up: the client was closed, or no more answers are read.")
            try:
                return self._attempt(method, path, content)
            except _Failure as failure:
                if not failure.temporary or attempt > self.max_retries:
                    raise RequestError(self._without_key(f"{failure}{_times(attempt)}."), failure.status, attempt) from None
                wait = _wait(attempt, failure.retry_after)
                if wait is None:
                    text = f"{failure}, and asks to wait for {failure.retry_after:.0f} seconds{_times(attempt)}."
                    raise RequestError(self._without_key(text), failure.status, attempt) from None
            (stopped or self._closed).wait(wait)

    def _attempt(self, method: str, path: str, content: bytes | None):
        """
        Sends a request once.

        Raises:
            _Failure: if there is no answer with status 200 and a body in JSON.
        """
        httpx, url = self._httpx, self.base_url + path
        deadline = time.monotonic() + self.timeout
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._api_key is not None:
            headers["Authorization"] = f"Bearer {self._api_key}"
        received = bytearray()
        try:
            with self._http.stream(method, url, content=content, headers=headers) as response:
                status, reply = response.status_code, response.headers
                for block in response.iter_bytes():
                    received += block
                    if len(received) > LARGEST_BODY:
                        raise _Failure(f"{url} sent more than {LARGEST_BODY} bytes", status)
                    if time.monotonic() > deadline:
                        raise _Failure(f"{url} did not answer within {self.timeout:g} seconds", status)
        except httpx.ConnectTimeout:
            raise _Failure(f"{url} did not accept a connection within {self.timeout:g} seconds", temporary=True) from None
        except httpx.TimeoutException:
            # Not sent again: the server may be busy with it, and would be with the next one.
            raise _Failure(f"{url} did not answer within {self.timeout:g} seconds") from None
        except httpx.TransportError as error:
            raise _Failure(f"{url} cannot be reached: {type(error).__name__}: {error}", temporary=True) from None
        if 300 <= status < 400:
            host = _host(reply.get("location"))
            raise _Failure(f"{url} answered with status {status}, a redirect to {host}, which is not followed", status)
        try:
            body = json.loads(received)
        except ValueError:
            body = None
        if status != 200:
            text = error_message(received.decode("utf-8", "replace") if body is None else body)
            temporary = status == 429 or status >= 500
            raise _Failure(f"{url} answered with status {status}: {text}", status, temporary, _retry_after(reply.get("retry-after")))
        if body is None:
            raise _Failure(f"{url} answered with a body that is not JSON: {received[:200].decode('utf-8', 'replace')!r}", status)
        return body

    def _without_key(self, text: str) -> str:
        """`text` without the key, which a server may repeat."""
        return text if self._api_key is None else text.replace(self._api_key, "[api_key]")


class _Failure(Exception):
    """An attempt without an answer; `temporary` if the next attempt may have one."""

    def __init__(self, message: str, status: int | None = None, temporary: bool = False, retry_after: float | None = None):
        super().__init__(message)
        self.status, self.temporary, self.retry_after = status, temporary, retry_after


def _times(attempt: int) -> str:
    return "" if attempt == 1 else f" ({attempt} attempts)"


def _wait(attempt: int, retry_after: float | None) -> float | None:
    """Seconds to wait after an attempt; None if the server asks for more than `LONGEST_RETRY_AFTER`."""
    if retry_after is not None and retry_after > LONGEST_RETRY_AFTER:
        return None
    longest = min(FIRST_WAIT * 2 ** (attempt - 1), LONGEST_WAIT)
    return max(random.uniform(longest / 2, longest), retry_after or 0.0)


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header: a number, or a date; None if there is no valid one."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _host(location: str | None) -> str:
    """Host of an address, without the parts that may be secret."""
    return "an unknown address" if location is None else repr(urlsplit(location).hostname or location.split("?")[0])
