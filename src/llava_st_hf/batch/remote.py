# SPDX-License-Identifier: Apache-2.0
"""Answers of servers."""

import time
from dataclasses import dataclass
from typing import Any

from ..client import GroundingClient, GroundingRequest, RequestError, read_response
from ..model.checks_llava_st import is_integer
from ..model.results_llava_st import Grounding
from .media import fetch, message, size
from .outcomes import Outcome
from .servers import NoServerError, Servers


_MOST_UNREADABLE = 3  # answers, before the first one that can be read


@dataclass
class ServerAnswering:
    """
    Answers questions by requests to servers.

    Args:
        servers: that answer.
        client: builds the requests.
        connections: number of requests at a time.
        options: arguments of `client.build_request`, such as `max_tokens`, `exact` and `constrained`.
    """

    servers: Servers
    client: GroundingClient
    connections: int
    options: dict[str, Any]
    batch_size: int = 1
    _has_answers: bool = False
    _unreadable: int = 0

    def answer(self, questions: list[dict]) -> list[Outcome]:
        """
        Answers a question. What concerns this question alone is its outcome.

        Raises:
            NoServerError: if no server answers, or if the servers have another checkpoint.
        """
        (question,) = questions
        started = time.monotonic()
        sent: dict[str, Any] = {}
        try:
            fetched = fetch(question)
            request = self.client.build_request(fetched, **self.options)
            sent["media_bytes"] = _media_bytes(request.payload) or size(fetched)
            reply = self.servers.ask(request.payload)
            sent |= {"requests": reply.requests, "server": reply.server, **_counted(reply.body)}
            answer = self._read(reply.body, request)
            reason = reply.body["choices"][0]["finish_reason"]
            return [Outcome(answer, finish_reason=reason, latency_s=_seconds_since(started), **sent)]
        except NoServerError:
            raise
        except RequestError as error:
            sent = {"requests": error.attempts, **sent, "error_type": error.kind}
            return [Outcome(error=str(error), latency_s=_seconds_since(started), **sent)]
        except Exception as error:  # also those of decoders, which have classes of their own
            return [Outcome(error_type=type(error).__name__, error=message(error, question), latency_s=_seconds_since(started), **sent)]

    def _read(self, body, request: GroundingRequest) -> Grounding:
        """
        Raises:
            NoServerError: if all of the first answers cannot be read, as those of another checkpoint.
        """
        try:
            answer = read_response(body, request)
        except RequestError as error:
            self._unreadable += 1
            if not self._has_answers and self._unreadable >= _MOST_UNREADABLE:
                raise NoServerError(f"None of the first {self._unreadable} answers can be read. {error}") from error
            raise
        self._has_answers = True
        return answer


def _seconds_since(started: float) -> float:
    return round(time.monotonic() - started, 4)


def _counted(body) -> dict[str, int]:
    """Numbers of tokens in the body of a response, where the server gives them."""
    usage = body.get("usage") if isinstance(body, dict) else None
    counts: dict[str, Any] = usage if isinstance(usage, dict) else {}
    names = ("prompt_tokens", "completion_tokens")
    return {name: counts[name] for name in names if is_integer(counts.get(name)) and 0 <= counts[name] < 2**63}


def _media_bytes(value) -> int:
    """Bytes of the media in a request, which are `data:` URLs in base64."""
    if isinstance(value, dict):
        return sum(map(_media_bytes, value.values()))
    if isinstance(value, list):
        return sum(map(_media_bytes, value))
    if isinstance(value, str) and value[:5] == "data:":
        encoded = len(value) - value.find(",") - 1
        return encoded * 3 // 4 - value[-2:].count("=")
    return 0
