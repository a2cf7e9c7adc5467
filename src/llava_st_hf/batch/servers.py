# SPDX-License-Identifier: Apache-2.0
"""
Requests to one or several servers of the same model: spread over those that answer, and repeated where repeating may help.

A request is repeated as by `GroundingClient`, on another server if there is one. A server that does not accept connections, loses one, or
answers with the HTTP statuses 502 to 504, as the proxy of a server that is down does, gets no requests until it lists its model again.
While none does, requests wait; after `wait_s` seconds the run ends, so that a server that is down makes no failed rows.
"""

import json
import threading
import time
from dataclasses import dataclass
from typing import Any

from ..client.http import Api, Failure, wait_after


_PROBE_S = 1.0  # seconds between two questions whether a server is up again
_PROBE_TIMEOUT_S = 5.0
_DOWN = (502, 503, 504)  # statuses
_REFUSED = 20  # connections of one request that servers refuse although they list their model


class NoServerError(OSError):
    """No server answers, or a server has another model than at the start: the run cannot go on."""


@dataclass(frozen=True)
class Reply:
    """Parsed `body` of a response, `server` that sent it, and how often the request was sent."""

    body: Any
    server: str
    requests: int


@dataclass
class _Server:
    api: Api
    in_flight: int = 0
    is_up: bool = True
    next_probe: float = 0.0

    @property
    def url(self) -> str:
        return self.api.base_url


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
        self._max_retries, self._wait_s = max_retries, wait_s
        self._lock = threading.Lock()
        # A connection more than requests, for the question which model is served.
        self._servers = [_Server(Api(_with_version(url), api_key, connections + 1, timeout_s)) for url in urls]
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
                found[server.url] = _served_model(server)
            except Failure as failure:
                server.is_up = False
                reasons.append(str(failure))
        if not found:
            raise ValueError(f"No server answers: {'; '.join(reasons)}.")
        if len(set(found.values())) > 1:
            raise ValueError(f"The servers serve different models: {', '.join(f'{url}: {name}' for url, name in found.items())}.")
        served = next(iter(found.values()))
        if model is not None and served != model:
            raise ValueError(f"{next(iter(found))} serves {served}, but {model} is expected.")
        return served

    def ask(self, payload: dict[str, Any]) -> Reply:
        """
        Sends a request to `/v1/chat/completions`.

        Raises:
            RequestError: if it is refused, or fails after all repetitions.
            NoServerError: if no server answers for `wait_s` seconds.
        """
        content = json.dumps(payload).encode()
        requests = refused = 0
        avoided: _Server | None = None
        while True:
            server = self._begin(avoided)
            try:
                body = server.api.send("POST", "/chat/completions", content)
                self._last_answer = time.monotonic()
                return Reply(body, server.url, requests + 1)
            except Failure as failure:
                requests, refused = requests + failure.was_sent, refused + (not failure.was_sent)
                if failure.status in _DOWN or (failure.status is None and failure.temporary):
                    self._set_down(server)
                if not failure.was_sent and refused < _REFUSED:
                    continue
                wait = wait_after(failure, requests, self._max_retries if failure.was_sent else -1)
            finally:
                self._end(server)
            avoided = server
            time.sleep(wait)

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
                served = _served_model(server)
            except Failure:
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


def _served_model(server: _Server) -> str:
    """
    Asks a server which model it serves.

    Raises:
        Failure: if it does not answer.
        ValueError: if it answers otherwise than with one model.
    """
    try:
        return server.api.model(server.api.send("GET", "/models", timeout=_PROBE_TIMEOUT_S))
    except Failure as failure:
        if failure.temporary or failure.status is None:
            raise
        raise ValueError(f"{failure}.") from failure


def _with_version(url: str) -> str:
    url = url.rstrip("/")
    return url if url.endswith("/v1") else f"{url}/v1"
