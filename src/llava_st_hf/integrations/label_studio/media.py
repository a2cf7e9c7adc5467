# SPDX-License-Identifier: Apache-2.0
"""Files of Label Studio tasks: in a local folder, or on the Label Studio server."""

import json
import os
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urljoin, urlsplit

from ...model.downloads_llava_st import DownloadLimits, url_name


_LOCAL_FILES = "/data/local-files/"
_BLOCK = 2**20  # bytes read at a time
_ANSWER_SECONDS = 60  # without a byte from the server


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The access token must not be sent to another place."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        raise urllib.error.HTTPError(req.full_url, code, f"redirects to {url_name(newurl)}, which is not followed", headers, fp)


@dataclass(frozen=True)
class TaskMedia:
    """
    Where files of tasks may be read from; nothing else is opened.

    Args:
        folder: Label Studio's folder of local files, LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT; None for none.
        server_url: of Label Studio, for uploaded files; None for none.
        token: Label Studio's access token, a legacy or a personal one; None for none.
        limits: size in bytes and seconds of a download.
    """

    folder: Path | None = None
    server_url: str | None = None
    token: str | None = None
    limits: DownloadLimits = field(default_factory=DownloadLimits)

    def __post_init__(self):
        if self.folder is not None and not self.folder.is_dir():
            raise ValueError(f"media={str(self.folder)!r} must be a folder.")
        if self.server_url is not None and (
            urlsplit(self.server_url).scheme not in ("http", "https") or not urlsplit(self.server_url).netloc
        ):
            raise ValueError(f"label_studio_url={self.server_url!r} must be a URL like 'http://localhost:8080'.")

    @contextmanager
    def open(self, value) -> Iterator[str]:
        """
        The path of a local file with the image or video of a task; a downloaded one is deleted at the end.

        Args:
            value: of the data of the task: `/data/local-files/?d=…`, or a path or URL of Label Studio's server.

        Raises:
            ValueError: for any other value, and a path that leaves the folder.
            OSError: naming the file or URL, if it cannot be read.
        """
        if not isinstance(value, str) or not value:
            raise ValueError(f"The task has no image or video: its field is {value!r:.100}.")
        url = urlsplit(value)
        if not url.netloc and not url.scheme and url.path == _LOCAL_FILES:
            yield self._local(parse_qs(url.query).get("d", [""])[0])
            return
        target = urlsplit(urljoin(self.server_url or "", value))
        own = urlsplit(self.server_url or "")
        if self.server_url is None or (target.scheme, target.netloc) != (own.scheme, own.netloc):
            raise ValueError(
                f"{url_name(value)!r} is neither in the folder of local files nor on the Label Studio server: its value must begin with "
                f"{_LOCAL_FILES}?d= or with the URL given as label_studio_url."
            )
        suffix = Path(target.path).suffix[:10]
        with tempfile.NamedTemporaryFile(suffix=suffix) as file:
            self._download(target.geturl(), file)
            file.flush()
            yield file.name

    def _local(self, name: str) -> str:
        if self.folder is None:
            raise ValueError("The task has a local file, but no folder of local files was given: start with media=.")
        root = self.folder.resolve()
        path = Path(os.path.realpath(root / name.lstrip("/\\")))
        if not name or "\0" in name or not path.is_relative_to(root):
            raise ValueError(f"{name[:200]!r} is not a path within the folder of local files.")
        if not path.is_file():
            raise FileNotFoundError(f"{name[:200]!r} is not a file in the folder of local files.")
        return str(path)

    def _download(self, url: str, file) -> None:
        deadline = time.monotonic() + self.limits.seconds
        request = urllib.request.Request(url, headers=self._authorization())
        size = 0
        with self._opened(request) as response:
            while block := response.read(_BLOCK):
                size += len(block)
                if size > self.limits.video_bytes:
                    raise OSError(f"{url_name(url)} has more than {self.limits.video_bytes} bytes.")
                if time.monotonic() > deadline:
                    raise OSError(f"{url_name(url)} took longer than {self.limits.seconds:g} seconds.")
                file.write(block)

    def _authorization(self) -> dict[str, str]:
        if self.token is None:
            return {}
        if self.token.count(".") != 2:  # a legacy token
            return {"Authorization": f"Token {self.token}"}
        # A personal token, which Label Studio exchanges for one that is valid for minutes.
        url = urljoin(str(self.server_url), "/api/token/refresh")
        body = json.dumps({"refresh": self.token}).encode()
        with self._opened(urllib.request.Request(url, body, {"Content-Type": "application/json"})) as response:
            return {"Authorization": f"Bearer {json.load(response)['access']}"}

    @staticmethod
    def _opened(request: urllib.request.Request):
        try:
            return urllib.request.build_opener(_NoRedirects).open(request, timeout=_ANSWER_SECONDS)
        except urllib.error.HTTPError as error:
            raise OSError(f"cannot download {url_name(request.full_url)}: {error.code} {error.reason}") from error
        except urllib.error.URLError as error:
            raise OSError(f"cannot download {url_name(request.full_url)}: {error.reason}") from error
