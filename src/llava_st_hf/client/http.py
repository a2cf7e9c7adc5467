# SPDX-License-Identifier: Apache-2.0
"""Requests to a server with OpenAI's API: one attempt, and the time until the next one."""

import email.utils
import json
import random
import time
from urllib.parse import urlsplit

from ..model.checks_llava_st import is_finite_number, is_integer
from .responses import RequestError, error_message


CONNECT_TIMEOUT = 10.0  # seconds for a connection, of the time of an attempt
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds before the second attempt, doubled for each further one up to the second number
LONGEST_RETRY_AFTER = 300.0  # seconds that a server may ask to wait for
LARGEST_BODY = 16 * 2**20  # bytes of a response; an answer has kilobytes


class Failure(Exception):
    """
    An attempt without an answer.

    Args:
        message: without the key.
        kind: see `RequestError`. "ConnectError" is the only one of an attempt in which nothing was sent.
        status: HTTP status; None without one.
        temporary: whether another attempt may be answered.
        retry_after: seconds that the server asks to wait for; None if it does not.
    """

    def __init__(
        self, message: str, kind: str = "RequestError", status: int | None = None, temporary: bool = False, retry_after: float | None = None
    ):
        super().__init__(message)
        self.kind, self.status, self.temporary, self.retry_after = kind, status, temporary, retry_after

    @property
    def was_sent(self) -> bool:
        """Whether the server may have received the request."""
        return self.kind != "ConnectError"


class Api:
    """
    A server with OpenAI's API. May be used by several threads.

    Args:
        base_url: address of the API, such as "http://127.0.0.1:8000/v1".
        api_key: sent as bearer token; None for none.
        connections: largest number of requests at a time.
        timeout: seconds for one attempt, from its first byte sent until the last one received.

    Raises:
        ValueError: naming the argument.
        ImportError: if httpx is not installed.
    """

    def __init__(self, base_url: str, api_key: str | None, connections: int, timeout: float):
        try:
            import httpx
        except ImportError as error:
            raise ImportError('Requests to servers need httpx: pip install "llava-st-hf[client]"') from error
        self.base_url, self.timeout = _checked_url(base_url, httpx), timeout
        if not is_integer(connections) or connections < 1:
            raise ValueError(f"connections must be a whole number of at least 1, got {connections!r}.")
        if not is_finite_number(timeout) or timeout <= 0:
            raise ValueError(f"timeout must be a number of seconds above 0, got {timeout!r}.")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise ValueError("api_key must consist of printable ASCII characters.")
        self._api_key, self._httpx = api_key or None, httpx
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        limits = httpx.Limits(max_connections=int(connections), max_keepalive_connections=int(connections))
        # Redirects are not followed: they would send prompts and media to another address.
        self._client = httpx.Client(headers=headers, limits=limits, follow_redirects=False)

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def send(self, method: str, path: str, content: bytes | None = None, timeout: float | None = None):
        """
        Sends a request once, and returns the parsed body of the response.

        Args:
            path: appended to the address, such as "/models".
            content: JSON.
            timeout: seconds; None for those of this object.

        Raises:
            Failure: if there is no response with status 200 and a body in JSON.
        """
        try:
            return self._send(method, self.base_url + path, content, self.timeout if timeout is None else timeout)
        except Failure as failure:
            if self._api_key is not None:  # which a server may repeat
                failure.args = (str(failure).replace(self._api_key, "[api_key]"),)
            raise

    def _send(self, method: str, url: str, content: bytes | None, timeout: float):
        httpx = self._httpx
        deadline = time.monotonic() + timeout
        late = Failure(f"{url} did not answer within {timeout:g} seconds", "TimeoutError")
        received = bytearray()
        limits = httpx.Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT), pool=None)
        try:
            with self._client.stream(method, url, content=content, timeout=limits) as response:
                status, headers = response.status_code, response.headers
                for block in response.iter_bytes():
                    received += block
                    if len(received) > LARGEST_BODY:
                        raise Failure(f"{url} sent more than {LARGEST_BODY} bytes", status=status)
                    if time.monotonic() > deadline:
                        raise late
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Failure(f"{url} cannot be reached: {type(error).__name__}: {error}", "ConnectError", temporary=True) from None
        except httpx.TimeoutException:
            # Not sent again: the server may be busy with it, and would be with the next one.
            raise late from None
        except httpx.TransportError as error:
            text = f"The connection to {url} was lost: {type(error).__name__}: {error}"
            raise Failure(text, "ConnectionError", temporary=True) from None
        except httpx.DecodingError as error:
            raise Failure(f"{url} answered with a body that cannot be decompressed: {error}", status=status) from None
        if 300 <= status < 400:
            text = f"{url} answered with status {status}, a redirect to {_host(headers.get('location'))}, which is not followed"
            raise Failure(text, f"HTTP {status}", status)
        try:
            body = json.loads(received)
        except (ValueError, RecursionError):
            body = None
        if status != 200:
            text = error_message(received.decode("utf-8", "replace") if body is None else body)
            temporary = status in (408, 429) or status >= 500
            text = f"{url} answered with status {status}: {text}"
            if status == 404 and not self.base_url.endswith("/v1"):
                text = f'{text.rstrip(".")}. The address of most servers ends in "/v1": {self.base_url}/v1'
            raise Failure(text, f"HTTP {status}", status, temporary, _retry_after(headers.get("retry-after")))
        if body is None:
            start = received[:200].decode("utf-8", "replace")
            raise Failure(f"{url} answered with a body that is not JSON: {start!r}", status=status)
        return body

    def model(self, body) -> str:
        """
        Name of the only model in the body of `GET /models`.

        Raises:
            ValueError: if there is another number of models. A server may list adapters, too, whose answers would be others.
        """
        found = body.get("data") if isinstance(body, dict) else None
        names = [entry.get("id") for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
        if len(names) != 1 or not isinstance(names[0], str):
            raise ValueError(f"{self.base_url} lists {len(names)} models, but must list one: {', '.join(map(str, names)):.500}.")
        return names[0]


def wait_after(failure: Failure, attempts: int, max_retries: int) -> float:
    """
    Seconds to wait after an attempt: random, and growing with their number, or more if the server asks for it.

    Args:
        attempts: number of them so far.
        max_retries: largest number of attempts after the first one.

    Raises:
        RequestError: if there is no further attempt.
    """
    times = f" ({attempts} attempts)" if attempts > 1 else ""
    message, asked = str(failure).rstrip("."), failure.retry_after or 0.0
    if not failure.temporary or attempts > max_retries:
        raise RequestError(f"{message}{times}.", failure.status, attempts, failure.kind)
    if asked > LONGEST_RETRY_AFTER:
        raise RequestError(f"{message}, and asks to wait for {asked:.0f} seconds{times}.", failure.status, attempts, failure.kind)
    longest = min(FIRST_WAIT * 2 ** (attempts - 1), LONGEST_WAIT)
    return max(random.uniform(longest / 2, longest), asked)


def _checked_url(base_url: str, httpx) -> str:
    parts = urlsplit(base_url)
    if parts.username is not None or parts.password is not None:
        raise ValueError("The address of a server must not contain a user name or password. Give the key as api_key or OPENAI_API_KEY.")
    try:
        httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise ValueError(f"{base_url!r} is not an address of a server: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f'The address of a server must have the form "http://127.0.0.1:8000/v1", got {base_url!r}.')
    return base_url.rstrip("/")


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header: a number, or a date; None if there is no valid one."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _host(location: str | None) -> str:
    """Host of an address, without the parts that may be secret."""
    try:
        return "an unknown address" if location is None else repr(urlsplit(location).hostname or location.split("?")[0])
    except ValueError:
        return "an invalid address"
