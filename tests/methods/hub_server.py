"""A hub of one process: the few addresses of the Hugging Face hub that pushing and reading a small folder needs."""

import hashlib
import json
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


@contextmanager
def running_hub(repositories: dict[str, dict[str, bytes]]) -> Iterator[str]:
    """Serve repositories, `{name: {path: content}}`, which pushes change; yields the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(repositories))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _commit(files: dict[str, bytes]) -> str:
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


def _handler(repositories: dict[str, dict[str, bytes]]) -> type[BaseHTTPRequestHandler]:
    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Nothing on the terminal."""

        def answer(self, value: Any, status: int = 200, **headers: str) -> None:
            content = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            for name, header in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(name.replace("_", "-"), header)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            here = f"http://{self.headers['Host']}"
            parts = self.path.split("?")[0].strip("/").split("/")
            if self.path.endswith("/repos/create"):
                named = json.loads(body)
                name = f"{named.get('organization') or 'user'}/{named['name']}"
                repositories.setdefault(name, {})
                self.answer({"url": f"{here}/{name}", "name": name})
            elif "preupload" in parts:
                paths = [file["path"] for file in json.loads(body)["files"]]
                self.answer({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]})
            elif "commit" in parts:
                name = "/".join(parts[2:4])
                files = repositories[name]
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        files[line["value"]["path"]] = b64decode(line["value"]["content"])
                sha = _commit(files)
                self.answer({"commitUrl": f"{here}/{name}/commit/{sha}", "commitOid": sha, "success": True})
            else:
                self.answer({}, 200)

        def do_GET(self) -> None:
            parts = self.path.split("?")[0].strip("/").split("/")
            name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
            if name not in repositories:
                return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            files = repositories[name]
            sha = _commit(files)
            if parts[0] != "api":
                content = files["/".join(parts[4:])]
                return self.answer(content, X_Repo_Commit=sha, ETag=f'"{hashlib.sha1(content).hexdigest()}"')
            if "tree" in parts:
                return self.answer([
                    {"type": "file", "path": path, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                    for path, c in files.items()
                ])  # fmt: skip
            return self.answer({"id": name, "sha": sha, "siblings": [{"rfilename": path} for path in files]})

        do_HEAD = do_GET

    return Hub
