# SPDX-License-Identifier: Apache-2.0
"""
Requests to one or several servers of the same model: spread over those that answer, and repeated where repeating may help.

A request is repeated after a lost connection and the HTTP statuses 408, 429 and 5xx, on another server if there is one. After a time-out it
is not: the server may be busy with it, and would be with the next one. A server that does not accept connections gets no requests until it
lists its model again. While none does, requests wait; after `wait_s` seconds the run ends, so that a server that is down makes no failed
rows.
"""

import json
import random
import threading
import time
from dataclasses import dataclass
from typing import Any

import httpx

from ..client import RequestError
from ..client.responses import error_message


_REPEATED = {408, 429, 500, 502, 503, 504}
_PROBE_S = 1.0  # seconds between two questions whether a server is up again
_PROBE_TIMEOUT_S = 5.0
_LONGEST_PAUSE_S = 30.0
_REFUSED = 20  # connections of one request that servers refuse although they list their model


class NoServerError(OSError):
    """No server answers, or a server has another model than at the start: the run cannot go on."""


class FailedRequest(RequestError):
    """
    A request that no server answered.

    Args:
        kind: "HTTP 400", or the name of the error of the connection.
        message: of the server or connection.
        status: HTTP status; None without one.
        attempts: how often it was sent.
    """

    def __init__(self, kind: str, message: str, status: int | None, attempts: int):
        super().__init__(message, status, attempts)
        self.kind = kind


@dataclass(frozen=True)
class Reply:
    """`body` of a response, `server` that sent it, and how often the request was sent."""

    body: dict[str, Any]
    server: str
    requests: int


@dataclass
class _Server:
    url: str
    in_flight: int = 0
    is_up: bool = True
    next_probe: float = 0.0


class Servers:
    """
    Servers with OpenAI's API that serve one model.

    Args:
        urls: base URLs, with or without `/v1`.
        connections: largest number of requests at a time.
        timeout_s: seconds that a server may take to answer.
        max_retries: how often a request is repeated.
        wait_s: seconds to wait while no server answers.
        api_key: sent as bearer token.
        model: name of the model that must be served; None for that of the servers.

    Raises:
        ValueError: if no server answers, if they serve different models, or not exactly one. Servers that do not answer are left out
            until they do.
    """

    def __init__(
        self,
        urls: list[str],
        connections: int = 16,
        timeout_s: float = 600.0,
        max_retries: int = 3,
        wait_s: float = 120.0,
        api_key: str | None = None,
        model: str | None = None,
    ):
        self._max_retries, self._wait_s, self._timeout_s = max_retries, wait_s, timeout_s
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        limits = httpx.Limits(max_connections=connections + 1, max_keepalive_connections=connections)
        self._client = httpx.Client(headers=headers, timeout=httpx.Timeout(timeout_s, connect=10.0), limits=limits)
        self._lock = threading.Lock()
        self._servers = [_Server(_base_url(url)) for url in urls]
        if len({server.url for server in self._servers}) < len(urls):
            raise ValueError(f"--server is given twice: {', '.join(urls)}.")
        self._last_answer = time.monotonic()
        #: Name of the served model.
        self.model = self._check(model)

    @property
    def down(self) -> list[str]:
        """URLs of servers that do not answer."""
        return [server.url for server in self._servers if not server.is_up]

    def _check(self, model: str | None) -> str:
        found: dict[str, str] = {}
        reasons = []
        for server in self._servers:
            try:
                found[server.url] = self._served_model(server)
            except httpx.TransportError as error:
                server.is_up = False
                reasons.append(f"{server.url}: {error or type(error).__name__}")
        if not found:
            raise ValueError(f"No server answers: {'; '.join(reasons)}.")
        if len(set(found.values())) > 1:
            raise ValueError(f"The servers serve different models: {', '.join(f'{url}: {name}' for url, name in found.items())}.")
        served = next(iter(found.values()))
        if model is not None and served != model:
            raise ValueError(f"{next(iter(found))} serves {served}, but {model} is expected.")
        return served

    def _served_model(self, server: _Server) -> str:
        """
        Asks a server which model it serves.

        Raises:
            httpx.TransportError: if it does not answer.
            ValueError: if it answers otherwise than with one model.
        """
        response = self._client.get(f"{server.url}/models", timeout=_PROBE_TIMEOUT_S)
        if response.status_code in _REPEATED:
            raise httpx.TransportError(f"HTTP {response.status_code}")
        if response.status_code != 200:
            raise ValueError(f"{server.url}/models answers with HTTP {response.status_code}: {_message(response)}")
        try:
            # A server may list adapters beside the model; their answers would be others.
            names = [str(model["id"]) for model in response.json()["data"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{server.url} does not list its models as OpenAI's API does: {response.text[:200]!r}") from error
        if len(names) != 1:
            raise ValueError(f"{server.url} serves {len(names)} models, but must serve one: {', '.join(names)}.")
        return names[0]

    def ask(self, payload: dict[str, Any]) -> Reply:
        """
        Sends a request to `/v1/chat/completions`.

        Raises:
            FailedRequest: if it is refused, or fails after all repetitions.
            NoServerError: if no server answers for `wait_s` seconds.
        """
        content = json.dumps(payload).encode()
        requests = refused = 0
        avoided: _Server | None = None
        while True:
            server = self._begin(avoided)
            pause = None
            try:
                response = self._client.post(
                    f"{server.url}/chat/completions", content=content, headers={"Content-Type": "application/json"}
                )
                requests += 1
                if response.status_code == 200:
                    self._last_answer = time.monotonic()
                    return Reply(_body(response, server, requests), server.url, requests)
                status, pause = response.status_code, _retry_after(response)
                failure = FailedRequest(f"HTTP {status}", _message(response), status, requests)
                if status not in _REPEATED:
                    raise failure
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:  # nothing was sent
                refused += 1
                self._set_down(server)
                failure = FailedRequest("ConnectError", f"{server.url} cannot be reached: {error}", None, requests)
                if refused < _REFUSED:
                    continue
            except httpx.TimeoutException as error:
                reason = f"{server.url} did not answer within {self._timeout_s:g} seconds"
                raise FailedRequest("TimeoutError", reason, None, requests + 1) from error
            except httpx.TransportError as error:
                requests += 1
                self._set_down(server)
                failure = FailedRequest("ConnectionError", f"{server.url} closed the connection: {error!r}", None, requests)
            finally:
                self._end(server)
            if requests > self._max_retries or refused >= _REFUSED:
                raise failure
            avoided = server
            time.sleep(min(_LONGEST_PAUSE_S, random.uniform(0.5, 1.0) * 2 ** (requests - 1) if pause is None else pause))

    def _begin(self, avoided: _Server | None) -> _Server:
        """The server with the fewest requests, among those that are up; `avoided` only if there is no other."""
        since = time.monotonic()
        while True:
            self._probe()
            with self._lock:
                up = [server for server in self._servers if server.is_up]
                if up:
                    chosen = min(up, key=lambda server: (server is avoided, server.in_flight))
                    chosen.in_flight += 1
                    return chosen
            if time.monotonic() - max(since, self._last_answer) > self._wait_s:
                urls = ", ".join(server.url for server in self._servers)
                raise NoServerError(f"No server has answered for {self._wait_s:g} seconds: {urls}. Run the same command again to resume.")
            time.sleep(0.1)

    def _end(self, server: _Server) -> None:
        with self._lock:
            server.in_flight -= 1

    def _set_down(self, server: _Server) -> None:
        with self._lock:
            server.is_up, server.next_probe = False, time.monotonic() + _PROBE_S

    def _probe(self) -> None:
        """Asks servers that are down whether they are up again, each at most once a second."""
        for server in self._servers:
            with self._lock:
                if server.is_up or time.monotonic() < server.next_probe:
                    continue
                server.next_probe = time.monotonic() + _PROBE_TIMEOUT_S + _PROBE_S  # not by two threads
            try:
                served = self._served_model(server)
            except httpx.TransportError:
                self._set_down(server)
                continue
            except ValueError as error:
                raise NoServerError(str(error)) from error
            if served != self.model:
                raise NoServerError(
                    f"{server.url} serves {served} since it was started again; the other answers are those of {self.model}."
                )
            with self._lock:
                server.is_up = True


def _base_url(url: str) -> str:
    if not url.lower().startswith(("http://", "https://")):
        raise ValueError(f"--server {url} must be a URL such as http://127.0.0.1:8000.")
    url = url.rstrip("/")
    return url if url.endswith("/v1") else f"{url}/v1"


def _message(response: httpx.Response) -> str:
    """The message of an error of a server."""
    try:
        return error_message(response.json())
    except ValueError:
        return error_message(response.text)


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds of the header Retry-After; None without one."""
    try:
        return max(0.0, float(response.headers["Retry-After"]))
    except (KeyError, ValueError):
        return None


def _body(response: httpx.Response, server: _Server, requests: int) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError as error:
        reason = f"{server.url} answered with HTTP 200 and no JSON: {response.text[:200]!r}"
        raise FailedRequest("RequestError", reason, 200, requests) from error
    if not isinstance(body, dict) or not body.get("choices"):
        reason = f"{server.url} answered with HTTP 200 and no choices: {response.text[:200]!r}"
        raise FailedRequest("RequestError", reason, 200, requests)
    return body
