"""A hub on the loopback interface: what huggingface_hub, datasets and transformers ask of one.

Repositories are dictionaries of files. A fault may be laid on a repository:

| fault        | what the server does                                             |
| ------------ | ---------------------------------------------------------------- |
| missing      | 401 RepoNotFound, as the hub answers those without a token        |
| gated        | the description is open, files answer 401 GatedRepo               |
| 503, 429     | every request answers so                                          |
| files-503    | the description is open, files answer 503                         |
| truncated    | each download breaks off in the middle                            |
| short        | a download is shorter than announced, and ends properly           |
| garbage      | a download has the right length and other bytes                   |
| garbage-once | so the first time, right from then on                             |
| all-garbage  | garbage, and so are the small files                              |
| hang         | no answer at all                                                  |
| stall        | a download stops after its first byte and stays open              |
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
import urllib.parse
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

LARGE = (".parquet", ".zip", ".safetensors", ".json.big")  # stored by sha256, as LFS files are


@dataclass
class Repository:
    """Files of one commit, on `main`."""

    kind: str  # datasets or models
    name: str
    files: dict[str, bytes]
    fault: str = ""
    requests: Counter = field(default_factory=Counter)

    @property
    def commit(self) -> str:
        digest = hashlib.sha1(self.name.encode())
        for path, data in sorted(self.files.items()):
            digest.update(path.encode() + data)
        return digest.hexdigest()

    def entry(self, path: str) -> dict:
        data = self.files[path]
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        entry = {"type": "file", "path": path, "size": len(data), "oid": blob}
        if path.endswith(LARGE):
            digest = hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 130}
        return entry

    def etag(self, path: str) -> str:
        entry = self.entry(path)
        return entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]


class Hub:
    """`with Hub([Repository(...), ...]) as hub: ... hub.url`."""

    def __init__(self, repositories: list[Repository]) -> None:
        self.repositories = {(r.kind, r.name): r for r in repositories}
        handler = type("Handler", (_Handler,), {"repositories": self.repositories})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(self, *exc) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    repositories: ClassVar[dict[tuple[str, str], Repository]]
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._serve()

    def _serve(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).strip("/").split("/")
        api = path[0] == "api"
        path = path[1:] if api else path
        kind = path[0] if path[0] in ("datasets", "models") else "models"
        path = path[1:] if path[0] == kind else path
        for length in (2, 1):
            repository = self.repositories.get((kind, "/".join(path[:length])))
            if repository is not None:
                break
        if repository is None or repository.fault == "missing":
            return self._error(401, "RepoNotFound", "Repository Not Found")
        rest = path[length:]
        fault = repository.fault
        repository.requests[self.command, "/".join(rest)] += 1
        if fault == "hang":
            time.sleep(120)
        if fault in ("503", "429"):
            return self._error(int(fault), "", "busy")
        if api:
            return self._api(repository, rest)
        if rest[0] != "resolve" or rest[1] not in ("main", repository.commit):
            return self._error(404, "RevisionNotFound", "Invalid rev id")
        if fault == "gated":
            return self._error(401, "GatedRepo", "Access to this dataset is restricted")
        if fault == "files-503":
            return self._error(503, "", "busy")
        return self._file(repository, "/".join(rest[2:]))

    def _api(self, repository: Repository, rest: list[str]) -> None:
        if (
            len(rest) >= 2
            and rest[0] != "auth-check"
            and rest[1] not in ("main", repository.commit)
        ):
            return self._error(404, "RevisionNotFound", "Invalid rev id")
        action = rest[0] if rest else "revision"
        if action == "revision":
            return self._json(
                {
                    "id": repository.name,
                    "sha": repository.commit,
                    "private": False,
                    "gated": "auto" if repository.fault == "gated" else False,
                    "tags": [],
                    "siblings": [{"rfilename": path} for path in sorted(repository.files)],
                }
            )
        if action == "tree":
            return self._json(self._tree(repository, "/".join(rest[2:])))
        if action == "paths-info":
            form = urllib.parse.parse_qs(self._body.decode())
            try:
                paths = json.loads(self._body)["paths"]
            except ValueError:
                paths = form.get("paths", [])
            return self._json([repository.entry(p) for p in paths if p in repository.files])
        if action == "auth-check":
            if repository.fault == "gated":
                return self._error(401, "GatedRepo", "Access to this model is restricted")
            return self._json({})
        return self._error(404, "", f"nothing at {action}")

    def _tree(self, repository: Repository, folder: str) -> list[dict]:
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        recursive = query.get("recursive", ["false"])[0].lower() in ("1", "true")
        prefix = f"{folder}/" if folder else ""
        entries, folders = [], set()
        for path in sorted(repository.files):
            if not path.startswith(prefix):
                continue
            inner = path.removeprefix(prefix).split("/")
            folders.update(prefix + "/".join(inner[:n]) for n in range(1, len(inner)))
            if recursive or len(inner) == 1:
                entries.append(repository.entry(path))
        for name in sorted(folders):
            if recursive or "/" not in name.removeprefix(prefix):
                entries.append({"type": "directory", "path": name, "size": 0, "oid": "0" * 40})
        return entries

    def _file(self, repository: Repository, path: str) -> None:
        if path not in repository.files:
            return self._error(404, "EntryNotFound", "Entry not found", repository)
        data, fault = repository.files[path], repository.fault
        large = path.endswith(LARGE)
        self._headers = {
            "ETag": f'"{repository.etag(path)}"',
            "X-Repo-Commit": repository.commit,
            "Accept-Ranges": "bytes",
        }
        if large:
            self._headers["X-Linked-Etag"] = f'"{repository.etag(path)}"'
            self._headers["X-Linked-Size"] = str(len(data))
        if self.command == "HEAD" or not fault or (not large and fault != "all-garbage"):
            return self._bytes(data)
        if fault in ("garbage", "all-garbage") or (
            fault == "garbage-once"
            and repository.requests["GET", f"resolve/{repository.commit}/{path}"] == 1
        ):
            return self._bytes(bytes(b ^ 0x5A for b in data))
        if fault == "short":
            return self._bytes(data[: len(data) // 2])
        if fault == "truncated":
            self._bytes(data, stop=len(data) // 2)
            self.close_connection = True
            return None
        if fault == "stall":
            self._bytes(data, stop=1)
            time.sleep(120)
            return None
        return self._bytes(data)

    def _bytes(self, data: bytes, stop: int | None = None) -> None:
        start, status = 0, 200
        asked = self.headers.get("Range", "")
        if asked.startswith("bytes=") and stop is None:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, status = int(first), 206
            end = min(int(last) + 1 if last else len(data), len(data))
            self._headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
            data = data[start:end]
        self.send_response(status)
        for name, value in self._headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[:stop])
            self.wfile.flush()

    def _json(self, value) -> None:
        self._headers = {}
        self._bytes(json.dumps(value).encode())

    def _error(
        self, status: int, code: str, message: str, repository: Repository | None = None
    ) -> None:
        data = json.dumps({"error": message}).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if repository is not None:
            self.send_header("X-Repo-Commit", repository.commit)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
