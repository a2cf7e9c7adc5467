# SPDX-License-Identifier: Apache-2.0
import socket
import struct
import threading
import time
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_st_hf.model import downloads_llava_st
from llava_st_hf.model.downloads_llava_st import (
    MAX_REDIRECTS,
    DownloadLimits,
    _redirected,
    checked_limits,
    download,
    is_public_address,
    url_name,
)
from modeling_tests.servers import redirect, reply, serve


BODY = bytes(range(256)) * 40  # 10,240 bytes
QUICK = DownloadLimits(seconds=0.3)


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def fetch(url, limits=None, max_bytes=10**6):
    file = BytesIO()
    download(url, file, limits or DownloadLimits(seconds=20), max_bytes)
    return file.getvalue()


def refused(url, message=None, limits=None, max_bytes=10**6, within=10.0):
    """Asserts that the download raises within `within` seconds an error that names the URL and matches `message`; returns it."""
    start = time.monotonic()
    with pytest.raises(OSError, match=message) as error:
        fetch(url, limits, max_bytes)
    assert time.monotonic() - start < within
    assert str(error.value).startswith(f"cannot download {url_name(url)}: ")
    return str(error.value)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        reply(BODY),
        reply(BODY, length=None),
        CHUNKED + b"1000\r\n" + BODY[:4096] + b"\r\n1800\r\n" + BODY[4096:] + b"\r\n0\r\n\r\n",
        reply(BODY, "Content-Encoding: identity"),
    ],
    ids=["length", "no length", "chunks", "identity"],
)
def test_download_returns_the_body_for_each_transfer_encoding(answer):
    with serve(lambda connection, _: connection.sendall(answer)) as server:
        assert fetch(f"{server.url}/a.mp4") == BODY
        assert fetch(f"{server.url.replace('http', 'HTTP')}/a.mp4", max_bytes=len(BODY)) == BODY


def test_download_url_with_spaces_and_non_ascii_characters_is_percent_encoded():
    with serve(lambda connection, _: connection.sendall(reply(BODY))) as server:
        assert fetch(f"{server.url}/my vidéo%20.mp4?a=b c#part") == BODY
        assert server.requests == ["GET /my%20vid%C3%A9o%20.mp4?a=b%20c HTTP/1.1"]


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
@pytest.mark.parametrize("location", ["b.mp4", "/b.mp4", "{url}/b.mp4", "//{host}/b.mp4", "/b.mp4#x"])
def test_download_follows_redirects(status, location):
    def answer(connection, path):
        target = location.format(url=server.url, host=server.url.removeprefix("http://"))
        connection.sendall(reply(BODY) if path == "/b.mp4" else redirect(target, status))

    with serve(answer) as server:
        assert fetch(f"{server.url}/a.mp4") == BODY


def test_download_redirect_to_a_non_ascii_path_is_followed():
    def answer(connection, path):
        connection.sendall(redirect("/é x.mp4".encode().decode("latin-1")) if path == "/a.mp4" else reply(BODY))

    with serve(answer) as server:
        assert fetch(f"{server.url}/a.mp4") == BODY
        assert server.requests[1] == "GET /%C3%A9%20x.mp4 HTTP/1.1"


@pytest.mark.parametrize("scheme", ["file", "ftp", "data", "gopher", "concat"])
def test_download_redirect_to_another_scheme_raises(tmp_path, scheme):
    (tmp_path / "secret").write_text("secret words")
    target = {"file": (tmp_path / "secret").as_uri(), "data": "data:,words"}.get(scheme, f"{scheme}://127.0.0.1/x")
    with serve(lambda connection, _: connection.sendall(redirect(target))) as server:
        assert url_name(target) in refused(f"{server.url}/a.mp4", "only http and https")


def test_download_file_url_raises(tmp_path):
    (tmp_path / "secret").write_text("secret words")
    refused((tmp_path / "secret").as_uri(), "only http and https")


def test_redirected_from_https_to_http_raises():
    with pytest.raises(ValueError, match=r"http://b/x: a redirect from https to http"):
        _redirected("https://a/x", "http://b/x", DownloadLimits())
    assert _redirected("https://a/x", "/y", DownloadLimits()) == "https://a/y"
    assert _redirected("http://a/x", "https://b/x", DownloadLimits()) == "https://b/x"


def test_download_redirect_loop_raises_after_max_redirects():
    with serve(lambda connection, _: connection.sendall(redirect("/a.mp4"))) as server:
        refused(f"{server.url}/a.mp4", f"redirects more than {MAX_REDIRECTS} times")
        assert len(server.requests) == MAX_REDIRECTS + 1


def test_download_does_not_read_the_body_of_a_redirect():
    def answer(connection, path):
        if path == "/b.mp4":
            connection.sendall(reply(BODY))
            return
        connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: /b.mp4\r\n\r\n")
        server.drip(connection, bytes(1000))

    with serve(answer) as server:
        start = time.monotonic()
        assert fetch(f"{server.url}/a.mp4") == BODY
        assert time.monotonic() - start < 10


def test_download_allowed_hosts_blocks_requests_to_other_hosts():
    elsewhere = "http://elsewhere.example/b.mp4"
    with serve(lambda connection, path: connection.sendall(redirect(elsewhere) if path == "/away" else reply(BODY))) as server:
        assert fetch(f"{server.url}/a.mp4", DownloadLimits(allowed_hosts=["Media.example", "127.0.0.1"])) == BODY
        message = refused(f"{server.url}/away", r"the host elsewhere\.example is not one", DownloadLimits(allowed_hosts=["127.0.0.1"]))
        assert elsewhere in message
        assert len(server.requests) == 2
        only_other = DownloadLimits(allowed_hosts=["media.example"])
        refused(f"{server.url}/a.mp4", r"127\.0\.0\.1 is not one of those allowed: media\.example", only_other)
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    "url",
    [
        "http://media.example.evil.example/a",
        "http://evil.example/media.example",
        "http://evil.example#media.example/a",
        "http://evil.example?media.example/a",
        "http://media.example\\.evil.example/a",
        "http://sub.media.example/a",
        "http://evil.example\t/media.example",
    ],
)
def test_download_allowed_hosts_url_tricks_raise_before_the_dns_query(url, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("the host was looked up"))
    refused(url, "not one of those allowed", DownloadLimits(allowed_hosts=["media.example"]))


@pytest.mark.parametrize("url", ["http://MEDIA.example./a", "http://media.example:81/a"])
def test_download_allowed_hosts_ignores_case_final_dot_and_port(url, monkeypatch):
    asked = []

    def lookup(host, port, **_):
        asked.append(host)
        raise socket.gaierror("no such host")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    refused(url, "no such host", DownloadLimits(allowed_hosts=["media.example"]))
    assert asked == ["media.example"]


def test_download_public_addresses_only_with_a_loopback_address_raises():
    with serve(lambda connection, _: connection.sendall(reply(BODY))) as server:
        limits = DownloadLimits(public_addresses_only=True)
        refused(f"{server.url}/a.mp4", r"the address 127\.0\.0\.1 of 127\.0\.0\.1 is not public", limits)
        refused(f"{server.url.replace('127.0.0.1', 'localhost')}/a.mp4", "is not public", limits)
        assert server.requests == []


def test_download_public_addresses_only_checks_the_host_behind_a_proxy(monkeypatch):
    with serve(lambda connection, _: connection.sendall(reply(BODY))) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        assert fetch("http://media.example/a.mp4") == BODY
        assert proxy.requests == ["GET http://media.example/a.mp4 HTTP/1.1"]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 80))])
        refused("http://media.example/a.mp4", r"10\.0\.0\.1 of media\.example", DownloadLimits(public_addresses_only=True))
        assert len(proxy.requests) == 1


@pytest.mark.parametrize(
    "address, public",
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("64:ff9b::5db8:d822", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("192.168.0.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        ("2002:7f00:1::", False),
        ("64:ff9b::7f00:1", False),
    ],
)
def test_is_public_address_accepts_only_public_addresses(address, public):
    assert is_public_address(address) is public


def test_download_content_length_above_the_limit_raises_without_reading():
    def answer(connection, _):
        connection.sendall(reply(b"", length=10**7))
        server.stopped.wait()

    with serve(answer) as server:
        refused(f"{server.url}/a.mp4", "it has 10000000 bytes, more than the limit of 1000000")


@pytest.mark.parametrize("start", [reply(b"", length=None), CHUNKED], ids=["no length", "chunks"])
def test_download_endless_body_raises_at_the_byte_limit(start):
    chunk = b"800\r\n" + bytes(2048) + b"\r\n" if start == CHUNKED else bytes(2048)

    def answer(connection, _):
        connection.sendall(start)
        while True:
            connection.sendall(chunk)

    with serve(answer) as server:
        file = BytesIO()
        with pytest.raises(OSError, match="more bytes than the limit of 100000"):
            download(f"{server.url}/a.mp4", file, DownloadLimits(), 100_000)
        assert file.tell() <= 100_000


def test_download_body_as_long_as_the_limit_is_accepted():
    for length in (-1, None):
        with serve(lambda connection, _, length=length: connection.sendall(reply(BODY, length=length))) as server:
            assert fetch(f"{server.url}/a.mp4", max_bytes=len(BODY)) == BODY
            refused(f"{server.url}/a.mp4", f"limit of {len(BODY) - 1}", max_bytes=len(BODY) - 1)


def test_download_body_shorter_than_content_length_raises():
    with serve(lambda connection, _: connection.sendall(reply(BODY, length=20000))) as server:
        refused(f"{server.url}/a.mp4", "it is cut short: 10240 of 20000 bytes were received")


BROKEN = {
    "closed": (b"", "closed connection"),
    "bad status line": (b"hello\r\n\r\n", "hello"),
    "empty lines": (b"\r\n\r\n\r\n", None),
    "binary": (bytes(range(256)), None),
    "long status line": (b"HTTP/1.1 " + b"2" * 70000 + b"\r\n\r\n", None),
    "long header": (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70000 + b"\r\n\r\n", "header"),
    "many headers": (b"HTTP/1.1 200 OK\r\n" + b"X: x\r\n" * 500 + b"\r\n", "headers"),
    "cut in the headers": (b"HTTP/1.1 200 OK\r\nContent-Le", "empty"),
    "empty": (reply(b""), "empty"),
    "cut in a chunk": (CHUNKED + b"1000\r\nabc", "IncompleteRead"),
    "no chunk size": (CHUNKED + b"xyz\r\nabc", None),
    "missing": (reply(b"", status="404 Not Found"), "404 Not Found"),
    "server error": (reply(b"", status="500 Oh No"), "500 Oh No"),
    "only a part": (reply(BODY, status="206 Partial Content"), "206 Partial Content"),
    "nothing": (reply(b"", status="204 No Content"), "204"),
    "redirect to nowhere": (reply(b"", status="302 Found"), "302 Found"),
    "gzip": (reply(BODY, "Content-Encoding: gzip"), "Content-Encoding gzip"),
    "negative length": (reply(BODY, length=-20), "'-20' is not a number"),
    "length in words": (reply(BODY, "Content-Length: many", length=None), "'many' is not a number"),
    "huge length": (reply(BODY, "Content-Length: " + "9" * 5000, length=None), None),
    "redirect to a bad port": (redirect("http://a:b/"), "http://a:b/"),
    "redirect to bad brackets": (redirect("http://[::1/"), None),
    "redirect to a long label": (redirect(f"http://{'a' * 70}.example/"), "not a valid host name"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_download_invalid_response_raises_with_the_url(kind):
    answer, message = BROKEN[kind]
    with serve(lambda connection, _: connection.sendall(answer)) as server:
        refused(f"{server.url}/a.mp4", message, DownloadLimits(seconds=20))


def test_download_reset_connection_raises_with_the_url():
    def answer(connection, path):
        if path == "/late.mp4":
            connection.sendall(reply(BODY, length=20000))
            time.sleep(0.05)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing then resets the connection

    with serve(answer) as server:
        for path in ("early", "late"):
            refused(f"{server.url}/{path}.mp4", "reset")


def test_download_https_from_a_server_without_tls_raises_with_the_url():
    def listen():
        with listener.accept()[0] as connection:
            connection.recv(1000)
            connection.sendall(reply(BODY))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=listen, daemon=True).start()
        refused(f"https://127.0.0.1:{listener.getsockname()[1]}/a.mp4", "SSL")


def test_download_closed_port_raises_with_the_url():
    refused("http://127.0.0.1:9/a.mp4", "refused")


@pytest.mark.parametrize(
    "start, again",
    [
        (b"", b""),
        (b"HTTP/1.1 200 OK\r\nX: ", b"x"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (reply(b"", length=10**6), b"x"),
        (reply(b"", length=None), b"x"),
        (CHUNKED, b"1\r\nx\r\n"),
        (CHUNKED + b"1;", b"x"),
    ],
    ids=["silence", "header", "100 Continue", "length", "no length", "chunks", "chunk size"],
)
def test_download_slow_server_raises_after_the_time_limit(start, again):
    def answer(connection, _):
        connection.sendall(start)
        server.drip(connection, again)

    with serve(answer) as server:
        refused(f"{server.url}/a.mp4", r"longer than the limit of 0\.3 seconds", QUICK)


def test_download_redirects_share_one_time_limit():
    def answer(connection, path):
        time.sleep(0.12)
        connection.sendall(redirect("/a.mp4"))

    with serve(answer) as server:
        refused(f"{server.url}/a.mp4", r"longer than the limit of 0\.3 seconds", QUICK)


def test_download_unresponsive_addresses_raise_after_the_time_limit(monkeypatch):
    # A listener with a full queue accepts no more connections.
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        place = listener.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(place)
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place)] * 50)
        refused("http://media.example/a.mp4", r"longer than the limit of 0\.3 seconds", QUICK)
        for client in waiting:
            client.close()


def test_download_closes_sockets_and_ends_threads():
    before = threading.active_count()
    connections = []
    watch = downloads_llava_st._Deadline._watch
    with pytest.MonkeyPatch.context() as patch, serve(lambda connection, _: connection.sendall(reply(BODY))) as server:
        patch.setattr(
            downloads_llava_st._Deadline, "_watch", lambda self, made: (watch(self, made), connections.extend([made, *self.sockets]))
        )
        fetch(f"{server.url}/a.mp4")
        refused(f"{server.url}/a.mp4", "limit", max_bytes=5)
    assert len(connections) == 4 and all(made.fileno() == -1 for made in connections)
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


@pytest.mark.parametrize(
    "url, message",
    [
        ("http://", "no host"),
        ("http:///a.mp4", "no host"),
        ("http://:80/a.mp4", "no host"),
        ("http://[::1/a.mp4", None),
        ("http://a:99999/a.mp4", "[Pp]ort"),
        ("http://a:b/a.mp4", "[Pp]ort"),
        (f"http://{'a' * 70}.example/a.mp4", "not a valid host name"),
        ("http://a..b/a.mp4", "not a valid host name"),
        ("http://\ud800/a.mp4", None),
        ("http://user:secret@127.0.0.1/a.mp4", "a user name or password in a URL is not sent"),
        ("http://secret@127.0.0.1/a.mp4", "a user name or password in a URL is not sent"),
        ("http://user:sec/ret@127.0.0.1/a.mp4", "[Pp]ort"),
    ],
)
def test_download_invalid_url_raises_without_user_name_and_password(url, message):
    told = refused(url, message)
    assert "sec" not in told and "ret" not in told


def test_download_errors_omit_the_query_of_the_url():
    with serve(lambda connection, _: connection.sendall(redirect("/b.mp4?key=secret2#secret3"))) as server:
        told = refused(f"{server.url}/a.mp4?key=secret1#secret3", "redirects more than")
        assert "/a.mp4?…" in told and "secret" not in told
    with serve(lambda connection, _: connection.sendall(redirect("ftp://name:secret1@a/b.mp4?secret2"))) as server:
        told = refused(f"{server.url}/a.mp4", r"redirects to ftp://a/b\.mp4\?…")
        assert "secret" not in told


@given(
    st.text(st.characters(codec="ascii", exclude_characters="@", categories=("L", "N", "P", "S")), min_size=1),
    st.sampled_from(["", "/a.mp4", ":8080/@b/c.mp4"]),
)
def test_url_name_contains_no_password(password, rest):
    password = f"x{password}"  # digits alone would be a port
    assert url_name(f"https://user:{password}@host{rest}") == f"https://host{rest}"


@pytest.mark.parametrize(
    "url, name",
    [
        ("http://host/a/b.mp4", "http://host/a/b.mp4"),
        ("http://host:80/@user/b.mp4?a=b#c", "http://host:80/@user/b.mp4?…"),
        ("http://user@host/b.mp4#c", "http://host/b.mp4"),
        ("http://host/" + "a" * 600, "http://host/" + "a" * 488),
    ],
)
def test_url_name_removes_user_query_and_fragment_and_is_shortened(url, name):
    assert url_name(url) == name


@pytest.mark.parametrize(
    "options",
    [
        {"video_bytes": 0},
        {"video_bytes": 1.5},
        {"image_bytes": -1},
        {"image_bytes": True},
        {"seconds": 0},
        {"seconds": float("nan")},
        {"seconds": float("inf")},
        {"seconds": "60"},
        {"allowed_hosts": "media.example"},
        {"allowed_hosts": [1]},
        {"allowed_hosts": 3},
        {"allowed_hosts": ["a" * 70]},
        {"allowed_hosts": []},
        {"allowed_hosts": [""]},
        {"allowed_hosts": ["http://a.org"]},
        {"allowed_hosts": ["a.org:80"]},
        {"allowed_hosts": ["a.org/b"]},
        {"allowed_hosts": ["*.a.org"]},
        {"public_addresses_only": "no"},
        {"public_addresses_only": 1},
    ],
)
def test_download_limits_invalid_values_raise(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}|host name"):
        DownloadLimits(**options)


@pytest.mark.parametrize("host", ["a.org", "A.org.", "a_b.org", "127.0.0.1", "::1", "fe80::1", "bücher.example", "localhost"])
def test_download_limits_allowed_hosts_accepts_names_and_addresses(host):
    assert len(DownloadLimits(allowed_hosts=[host]).allowed_hosts) == 1


def test_checked_limits_accepts_none_or_download_limits_and_no_dict():
    assert checked_limits(None) == DownloadLimits()
    assert checked_limits(QUICK) is QUICK
    with pytest.raises(ValueError, match="must be a DownloadLimits"):
        checked_limits({"allowed_hosts": None})
