"""A stand-in of the hub on the loopback address: the part of its HTTP interface that fetching and uploading a model take."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "c" * 40


class StandIn:
    """Repositories by name, each {file: content}; every request that came in."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.gated: set[str] = set()
        self.requests: list[tuple[str, str]] = []
        self.token = "hf_stand_in"


def _handler(hub: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Nothing is printed."""

        def answer(self, content: Any = None, code: int = 200, **headers: str) -> None:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(code)
            for name, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def may_read(self, name: str) -> bool:
            if name not in hub.repositories:
                self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            elif name in hub.gated:
                self.answer({"error": "Access is restricted"}, 403, X_Error_Code="GatedRepo")
            else:
                return True
            return False

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            hub.requests.append((self.command, self.path))
            if found := re.match(r"/api/models/([^/]+/[^/]+)/tree/", self.path):
                if self.may_read(found[1]):
                    files = hub.repositories[found[1]].items()
                    self.answer([{"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in files])
            elif found := re.match(r"/api/models/([^/]+/[^/?]+)(?:/revision/([^?]+))?", self.path):
                if self.may_read(found[1]):
                    if found[2] not in (None, "main", COMMIT):
                        return self.answer({"error": "no such revision"}, 404, X_Error_Code="RevisionNotFound")
                    files = [{"rfilename": name, "size": len(data)} for name, data in hub.repositories[found[1]].items()]
                    self.answer({"id": found[1], "modelId": found[1], "sha": COMMIT, "siblings": files, "private": False, "tags": []})
            elif found := re.match(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path):
                if self.may_read(found[1]):
                    data = hub.repositories[found[1]][found[3]]
                    self.answer(data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=COMMIT)
            else:
                self.answer({"error": self.path}, 404)
            return None

        def do_POST(self) -> None:
            hub.requests.append((self.command, self.path))
            content = self.body()
            if self.headers.get("Authorization") != f"Bearer {hub.token}":
                self.answer({"error": "Invalid credentials"}, 401)
            elif self.path == "/api/validate-yaml":
                self.answer({"errors": [], "warnings": []})
            elif self.path == "/api/repos/create":
                wanted = json.loads(content)
                name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
                hub.repositories.setdefault(name, {})
                if wanted.get("private") or wanted.get("visibility") == "private":
                    hub.private.add(name)
                self.answer({"url": f"http://127.0.0.1:{self.server.server_address[1]}/{name}"})
            elif found := re.match(r"/api/models/(.+)/preupload/main", self.path):
                files = json.loads(content)["files"]
                self.answer({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
            elif found := re.match(r"/api/models/(.+)/commit/main", self.path):
                for line in content.splitlines():
                    entry = json.loads(line)
                    if entry["key"] == "file":
                        hub.repositories[found[1]][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                self.answer({"commitUrl": f"http://127.0.0.1/{found[1]}/commit/{COMMIT}", "commitOid": COMMIT, "hookOutput": ""})
            else:
                self.answer({"error": self.path}, 404)

    return Handler


@contextmanager
def stand_in() -> Iterator[tuple[StandIn, str]]:
    """(the stand-in, its address)."""
    hub = StandIn()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
