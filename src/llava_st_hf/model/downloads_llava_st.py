# SPDX-License-Identifier: Apache-2.0
"""Downloads over HTTP within limits: bytes, seconds, redirects, hosts, addresses."""

import contextlib
import http.client
import ipaddress
import re
import socket
import ssl
import string
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, BinaryIO
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from .checks_llava_st import is_finite_number, is_integer


MAX_REDIRECTS = 5
ANSWER_SECONDS = 60  # without a byte from the server
_BLOCK = 2**20  # bytes read at a time
_REDIRECTS = (301, 302, 303, 307, 308)
_COMPRESSIONS = ("gzip", "x-gzip", "deflate", "br", "zstd", "compress", "x-compress")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # IPv6 addresses whose last 32 bits are an IPv4 address
_HOST = re.compile(r"[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?")
# Credentials before the host: up to the @, also if a password contains a character that would have to be escaped.
_CREDENTIALS = re.compile(r"^(?:[^/?#@:]*:(?!\d+[/?#])[^@]*|[^/?#@]*)@")


@dataclass(frozen=True)
class DownloadLimits:
    """
    Limits of downloads of images and videos: size, time and hosts.

    Args:
        video_bytes: size of a video in bytes; it is written to a temporary file.
        image_bytes: size of an image file in bytes; it is held in memory.
        seconds: total time of a download, redirects included.
        allowed_hosts: host names that URLs and redirects may contain, on any port; `None` allows all. A name does not include
            its subdomains, and has neither scheme nor port.
        public_addresses_only: whether to reject hosts with private, loopback, link-local and other addresses outside the public internet.
            The check applies to the address of the connection. Proxies set in environment variables are then ignored, because a
            proxy resolves the address itself.

    Raises:
        ValueError: naming a value of a wrong type or out of range.
    """

    video_bytes: int = 2 * 2**30
    image_bytes: int = 256 * 2**20
    seconds: float = 600.0
    allowed_hosts: Collection[str] | None = None
    public_addresses_only: bool = False

    def __post_init__(self):
        for name in ("video_bytes", "image_bytes", "seconds"):
            value = getattr(self, name)
            is_valid, number = (is_finite_number, "finite number") if name == "seconds" else (is_integer, "integer")
            if not is_valid(value) or value <= 0:
                raise ValueError(f"{name} of DownloadLimits must be a positive {number}, got {value!r}.")
        if not isinstance(self.public_addresses_only, bool):
            raise ValueError(f"public_addresses_only of DownloadLimits must be True or False, got {self.public_addresses_only!r}")
        hosts = self.allowed_hosts
        if hosts is not None:
            is_list = isinstance(hosts, Collection) and not isinstance(hosts, (str, bytes))
            if not is_list or not hosts or not all(isinstance(host, str) for host in hosts):
                raise ValueError(f"allowed_hosts of DownloadLimits must be a list of host names, or None for all hosts; got {hosts!r}")
            object.__setattr__(self, "allowed_hosts", frozenset(map(_allowed_host, hosts)))


def _allowed_host(host: str) -> str:
    """Normalizes an entry of `allowed_hosts` with `_host_name`. Raises `ValueError` for a URL, a port, a pattern or an empty string."""
    name = _host_name(host)
    if not _HOST.fullmatch(name):
        try:
            ipaddress.IPv6Address(name)
        except ValueError as error:
            raise ValueError(
                f"allowed_hosts of DownloadLimits has {host[:100]!r}, which is not a valid host name like 'media.example.org', without "
                "scheme, port or path"
            ) from error
    return name


def checked_limits(limits: DownloadLimits | None) -> DownloadLimits:
    """Returns `limits`, or the default limits for `None`. Raises `ValueError` for any other type, such as a dictionary."""
    if limits is None:
        return DownloadLimits()
    if not isinstance(limits, DownloadLimits):
        raise ValueError(f"`download_limits` must be a DownloadLimits, got {limits!r:.200}")
    return limits


def url_name(url: str) -> str:
    """Shortens a URL for messages: without user name, password, query and fragment, which may be secret; at most 500 characters."""
    scheme, separator, rest = url.partition("://")
    rest = _CREDENTIALS.sub("", rest)
    place = re.split(r"[?#]", rest, maxsplit=1)[0]
    return f"{scheme}{separator}{place}"[:500] + ("?…" if "?" in rest else "")


def download(url: str, file: BinaryIO, limits: DownloadLimits, max_bytes: int) -> None:
    """
    Downloads an `http://` or `https://` URL into a file.

    Args:
        url: URL of the image or video. Spaces and non-ASCII letters are escaped.
        file: file open for writing.
        limits: limits of time, hosts and addresses.
        max_bytes: maximum size of the body.

    Raises:
        OSError: naming the URL (without its query), for any failure: no response, a status other than 200, a body that is longer than
            `max_bytes` or shorter than its Content-Length, a timeout, a redirect that is not followed, or a host that is not allowed.
    """
    deadline = _Deadline(limits.seconds)
    try:
        _download(url, file, limits, max_bytes, deadline)
    except (OSError, ValueError, http.client.HTTPException) as error:
        if deadline.passed:
            reason = f"it took longer than the limit of {limits.seconds:g} seconds"
        else:
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            reason = (str(cause) or type(cause).__name__)[:300]
        raise OSError(f"cannot download {url_name(url)}: {reason}") from error
    finally:
        deadline.close()


def _download(url: str, file: BinaryIO, limits: DownloadLimits, max_bytes: int, deadline: "_Deadline") -> None:
    opener = _opener(limits, deadline)
    url = _checked_url(url, limits)
    for _ in range(MAX_REDIRECTS + 1):
        # Several media hosts reject the default user agent of urllib.
        with opener.open(urllib.request.Request(url, headers={"User-Agent": "llava_st_hf"}), timeout=ANSWER_SECONDS) as response:
            location = response.headers.get("Location")
            if response.status in _REDIRECTS and location is not None:
                url = _redirected(url, location, limits)
                continue
            if response.status != 200:
                raise OSError(f"the server answers with the status {response.status} {response.reason}")
            _read_body(response, file, max_bytes)
            if deadline.passed:  # shutting down the connection appears as the end of a body of unknown length
                raise TimeoutError("the time is over")
            return
    raise OSError(f"it redirects more than {MAX_REDIRECTS} times")


def _read_body(response: http.client.HTTPResponse, file: BinaryIO, max_bytes: int) -> None:
    """Copies the body of a response. Raises `OSError` if it is longer than allowed or its length differs from the Content-Length header."""
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding in _COMPRESSIONS:
        raise OSError(f"the server sends it with the Content-Encoding {encoding}, which was not asked for")
    promised = None
    if not response.chunked and (length := response.headers.get("Content-Length")) is not None:
        if not length.strip().isdecimal():
            raise OSError(f"the Content-Length {length!r:.50} is not a number of bytes")
        promised = int(length)
        if promised > max_bytes:
            raise OSError(f"it has {promised} bytes, more than the limit of {max_bytes}")
    received = 0
    while block := response.read(_BLOCK):
        received += len(block)
        if received > max_bytes:
            raise OSError(f"it has more bytes than the limit of {max_bytes}")
        file.write(block)
    if promised is not None and received != promised:
        raise OSError(f"it is cut short: {received} of {promised} bytes were received")
    if received == 0:
        raise OSError("the body is empty")


def _checked_url(url: str, limits: DownloadLimits) -> str:
    """Escapes characters of a URL that cannot be sent. Raises `ValueError` if the URL must not be requested."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ValueError("only http and https are read")
    if "@" in parts.netloc:
        raise ValueError("a user name or password in a URL is not sent; remove it")
    host = _host_name(parts.hostname or "")
    if not host:
        raise ValueError("the URL names no host")
    try:
        port = parts.port
    except ValueError:  # its message contains the invalid port, which may be a part of a password
        raise ValueError("the port is not a number from 0 to 65535") from None
    if limits.allowed_hosts is not None and host not in limits.allowed_hosts:
        raise ValueError(f"the host {host} is not one of those allowed: {', '.join(sorted(limits.allowed_hosts))}")
    # Rebuilt from the checked parts, so that the URL requested is the one checked.
    place = (f"[{host}]" if ":" in host else host) + ("" if port is None else f":{port}")
    path, query = (quote(part, safe=string.punctuation) for part in (parts.path, parts.query))
    return urlunsplit((parts.scheme, place, path, query, ""))


def _redirected(url: str, location: str, limits: DownloadLimits) -> str:
    """Returns the checked URL of a redirect. Raises `ValueError` if it must not be followed."""
    # http.client decodes headers as Latin-1, whatever their encoding; escaping with Latin-1 restores the bytes that were sent.
    target = urljoin(url, quote(location, encoding="latin-1", safe=string.punctuation))
    try:
        checked = _checked_url(target, limits)
        if url.startswith("https:") and not checked.startswith("https:"):
            raise ValueError("a redirect from https to http is not followed")
    except ValueError as error:
        raise ValueError(f"it redirects to {url_name(target)}: {error}") from error
    return checked


def _host_name(host: str) -> str:
    """Converts a host name to lower case and the ASCII form used in DNS. Raises `ValueError` if it has none."""
    try:
        return host.lower().rstrip(".").encode("idna").decode("ascii")
    except UnicodeError as error:
        raise ValueError(f"{host[:100]!r} is not a valid host name: {error}") from error


class _Deadline:
    """
    Timer that shuts down the connections of a download after its time limit.

    A socket's own timeout restarts with each byte, so a slow server could keep a connection open forever, even within its headers.
    """

    def __init__(self, seconds: float):
        self.end = time.monotonic() + seconds
        self.sockets: list[socket.socket] = []
        self.lock = threading.Lock()
        self.timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), self._shut_down)
        self.timer.daemon = True
        self.timer.start()

    @property
    def passed(self) -> bool:
        return time.monotonic() >= self.end

    def connect(self, address, timeout, public_only: bool) -> socket.socket:
        """Returns a socket connected to the first address of `address = (host, port)` that accepts a connection."""
        host, port = address
        failure = OSError(f"{host} has no address")
        for family, kind, protocol, _, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            if public_only and not is_public_address(str(place[0])):
                failure = OSError(f"the address {place[0]} of {host} is not public")
                continue
            connection = socket.socket(family, kind, protocol)
            try:
                connection.settimeout(max(0.001, min(timeout, self.end - time.monotonic())))
                connection.connect(place)
                self._watch(connection)
                return connection
            except OSError as error:
                connection.close()
                failure = error
        raise failure

    def _watch(self, connection: socket.socket) -> None:
        with self.lock:
            if self.passed:
                raise TimeoutError("the time is over")
            # A duplicate handle, which stays valid when http.client or ssl closes its own.
            self.sockets.append(connection.dup())

    def _shut_down(self) -> None:
        with self.lock:
            for connection in self.sockets:
                with contextlib.suppress(OSError):  # the server closed it before
                    connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.timer.cancel()
        with self.lock:
            for connection in self.sockets:
                connection.close()
            self.sockets.clear()


def is_public_address(address: str) -> bool:
    """Returns whether an IPv4 or IPv6 address is in the public internet; an IPv6 address that embeds an IPv4 address is checked as IPv4."""
    found: Any = ipaddress.ip_address(address.partition("%")[0])
    if found.version == 6:
        in_nat64 = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF) if found in _NAT64 else None
        found = found.ipv4_mapped or found.sixtofour or in_nat64 or found
    return found.is_global and not found.is_multicast


class _HTTPHandler(urllib.request.HTTPHandler):
    """urllib's handler with connections made by a function `(address, timeout, source_address) -> socket`."""

    def __init__(self, connect):
        super().__init__()
        self.connect = connect

    def http_open(self, request):
        def connection(host, **kwargs):
            made = http.client.HTTPConnection(host, **kwargs)
            made._create_connection = self.connect
            return made

        return self.do_open(connection, request)


class _HTTPSHandler(urllib.request.HTTPSHandler):
    """The same as `_HTTPHandler`, with TLS."""

    def __init__(self, connect):
        super().__init__(context=ssl.create_default_context())
        self.connect = connect

    def https_open(self, request):
        def connection(host, **kwargs):
            made = http.client.HTTPSConnection(host, **kwargs)
            made._create_connection = self.connect
            return made

        return self.do_open(connection, request, context=self._context)


def _opener(limits: DownloadLimits, deadline: _Deadline) -> urllib.request.OpenerDirector:
    """Builds a urllib opener without handlers of `file:`, `ftp:`, `data:` and redirects, which would read bodies of any length."""

    def connect(address, timeout, source_address=None):
        return deadline.connect(address, timeout, limits.public_addresses_only)

    opener = urllib.request.OpenerDirector()
    opener.add_handler(urllib.request.ProxyHandler({} if limits.public_addresses_only else None))
    opener.add_handler(_HTTPHandler(connect))
    opener.add_handler(_HTTPSHandler(connect))
    return opener


__all__ = ["DownloadLimits"]
