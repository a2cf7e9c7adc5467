# SPDX-License-Identifier: Apache-2.0
"""A stand-in of the Hugging Face Hub at 127.0.0.1: it records what is uploaded, validates cards, and serves files for download."""

import contextlib
import hashlib
import json
import re
import threading
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml


@dataclass
class Repository:
    """Files of a repository by path, those that were sent through LFS, and the messages of its commits."""

    files: dict[str, bytes] = field(default_factory=dict)
    lfs: set[str] = field(default_factory=set)
    commits: list[str] = field(default_factory=list)
    private: bool = False

    @property
    def sha(self) -> str:
        return hashlib.sha1(repr((len(self.commits), sorted(self.files))).encode()).hexdigest()


@dataclass
class Hub:
    """State of the server: its `url`, repositories by id, uploaded LFS objects by SHA-256, and cards that were validated."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    validated: list[str] = field(default_factory=list)


_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def card_problems(content: str) -> list[str]:
    """What the hub refuses in the metadata of a model card: as its documentation of model cards states the types of fields."""
    match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    if match is None:
        return ["no metadata"]
    data, problems = yaml.safe_load(match[1]), []
    texts = {"library_name", "pipeline_tag", "license"}
    problems += [f"{name} must be a string" for name in texts & data.keys() if not isinstance(data[name], str)]
    problems += [f"{name} must be a list of strings" for name in {"tags", "datasets"} & data.keys() if not _is_list_of_strings(data[name])]
    ids = [*data.get("datasets", []), *([data["base_model"]] if "base_model" in data else [])]
    problems += [f"{name!r} is not a repository id" for name in ids if not _ID.fullmatch(str(name))]
    for model in data.get("model-index", []):
        if not isinstance(model.get("name"), str):
            problems.append("model-index[].name must be a string")
        for result in model["results"]:
            typed = isinstance(result["task"]["type"], str) and all(isinstance(result["dataset"][key], str) for key in ("type", "name"))
            if not typed or not all(isinstance(metric["type"], str) and "value" in metric for metric in result["metrics"]):
                problems.append(f"model-index result {result!r}")
    return problems


def _is_list_of_strings(value) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _upload_mode(path: str) -> str:
    return "lfs" if path.endswith((".safetensors", ".png")) else "regular"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args) -> None:
        pass

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _send(self, body: bytes = b"", status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, content, status: int = 200) -> None:
        self._send(json.dumps(content).encode(), status, {"Content-Type": "application/json"})

    def _missing(self, code: str) -> None:
        self._send(status=404, headers={"X-Error-Code": code, "X-Error-Message": code})

    # Uploads

    def do_POST(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self._body()
        if path == "/api/repos/create":
            wanted = json.loads(body)
            repo_id = f"{wanted.get('organization') or 'someone'}/{wanted['name']}"
            exists = repo_id in self.hub.repositories
            self.hub.repositories.setdefault(repo_id, Repository(private=bool(wanted.get("private"))))
            self._json({"url": f"{self.hub.url}/{repo_id}", "id": repo_id}, 409 if exists else 200)
        elif path == "/api/validate-yaml":
            content = json.loads(body)["content"]
            problems = card_problems(content)
            self.hub.validated.append(content)
            self._json({"errors": [{"message": problem} for problem in problems], "warnings": []}, 400 if problems else 200)
        elif re.fullmatch(r"/api/models/[^/]+/[^/]+/preupload/.*", path):
            files = [{"path": file["path"], "uploadMode": _upload_mode(file["path"])} for file in json.loads(body)["files"]]
            files = [{**file, "shouldIgnore": False} for file in files]
            self._json({"files": files})
        elif re.fullmatch(r"/[^/]+/[^/]+\.git/info/lfs/objects/batch", path):
            wanted = json.loads(body)["objects"]
            upload = [{**entry, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{entry['oid']}"}}} for entry in wanted]
            self._json({"transfer": "basic", "objects": upload})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/.*", path):
            self._json(self._commit(match[1], [json.loads(line) for line in body.splitlines() if line]))
        else:
            self._missing("EntryNotFound")

    def _commit(self, repo_id: str, entries: list[dict]) -> dict:
        repository = self.hub.repositories[repo_id]
        for entry in entries:
            value = entry["value"]
            if entry["key"] == "header":
                repository.commits.append(value["summary"])
            elif entry["key"] == "file":
                repository.files[value["path"]] = b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                repository.files[value["path"]] = self.hub.objects[value["oid"]]
                repository.lfs.add(value["path"])
        return {"success": True, "commitOid": repository.sha, "commitUrl": f"{self.hub.url}/{repo_id}/commit/{repository.sha}"}

    def do_PUT(self) -> None:
        self.hub.objects[self.path.removeprefix("/lfs/")] = self._body()
        self._send()

    # Downloads

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        match = re.fullmatch(r"/(?:api/models/)?([^/]+/[^/]+)(?:/(resolve|revision|tree)/([^/]+)/?(.*))?", path)
        repository = self.hub.repositories.get(match[1]) if match else None
        if match is None or repository is None:
            self._missing("RepoNotFound")
        elif match[2] == "resolve":
            self._resolve(repository, match[4])
        elif match[2] == "tree":
            self._tree(repository, f"{match[4]}/" if match[4] else "")
        else:
            siblings = [{"rfilename": name} for name in sorted(repository.files)]
            self._json({"id": match[1], "modelId": match[1], "sha": repository.sha, "private": False, "tags": [], "siblings": siblings})

    do_HEAD = do_GET

    def _tree(self, repository: Repository, folder: str) -> None:
        """Sends the list of all files below a folder, `""` or with a final slash. No folder of these repositories has subfolders."""
        names = sorted(name for name in repository.files if name.startswith(folder))
        if names:
            self._json([{"type": "file", "path": name, "size": len(repository.files[name]), "oid": "0" * 40} for name in names])
        else:
            self._missing("EntryNotFound")

    def _resolve(self, repository: Repository, name: str) -> None:
        content = repository.files.get(name)
        if content is None:
            self._send(status=404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": repository.sha})
            return
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        self._send(content, headers={"X-Repo-Commit": repository.sha, "ETag": etag, "Content-Type": "application/octet-stream"})


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # clients open several connections at once; the default of 5 makes them wait for a second attempt


def client_environment(hub: Hub, home: Path) -> dict[str, str]:
    """Environment of a process that uses the server as its hub. Its timeouts are those of a machine on which many tests run."""
    timeouts = {"HF_HUB_ETAG_TIMEOUT": "120", "HF_HUB_DOWNLOAD_TIMEOUT": "120"}
    cache = {"HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub"), "HF_MODULES_CACHE": str(home / "modules")}
    return {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", **timeouts, **cache}


@contextlib.contextmanager
def serve_hub() -> Iterator[Hub]:
    """Runs the server; clients use it by `client_environment`."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = _Server(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
