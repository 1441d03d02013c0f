"""A server on the loopback that speaks as much of the Hub's API as uploads and downloads use.

`python -m tests.hub.server FOLDER` keeps what it is sent below FOLDER and prints its address. Each commit is a whole
copy of the files; branches are names of commits.
"""

import base64
import hashlib
import json
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_test"


class Store:
    """Repositories by kind and id: their branches, and the files of each commit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.branches: dict[str, dict[str, str]] = {}
        self.commits: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}

    def create(self, repo: str, private: bool) -> bool:
        """Whether it is new."""
        if repo in self.branches:
            return False
        self.branches[repo], self.private[repo] = {}, private
        self.commit(repo, "main", {})
        return True

    def commit(self, repo: str, branch: str, added: dict[str, bytes]) -> str:
        files = self.files(repo, branch) | added
        text = "".join(f"{name}{hashlib.sha256(files[name]).hexdigest()}" for name in sorted(files))
        name = hashlib.sha1(f"{repo}{text}".encode()).hexdigest()
        self.commits[name] = files
        self.branches[repo][branch] = name
        for path, content in added.items():
            file = self.folder / repo / branch / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        return name

    def files(self, repo: str, revision: str) -> dict[str, bytes]:
        return self.commits.get(self.branches[repo].get(revision, revision), {})


class Handler(BaseHTTPRequestHandler):
    store: Store
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, value: Any = None, body: bytes = b"", **headers: str) -> None:
        content = body if value is None else json.dumps(value).encode()
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def missing(self, code: str) -> None:
        self.answer(404, {"error": code}, X_Error_Code=code)

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid username or password."})
        if path == "/api/repos/create":
            wanted = json.loads(content)
            kind, name = wanted.get("type") or "model", f"{wanted.get('organization') or 'me'}/{wanted['name']}"
            new = self.store.create(f"{kind}s/{name}", bool(wanted.get("private")))
            page = name if kind == "model" else f"{kind}s/{name}"
            return self.answer(200 if new else 409, {"url": f"http://{self.headers['Host']}/{page}"})
        if found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/(preupload|commit|paths-info)/(.+)", path):
            return self.change(f"{found[1]}/{found[2]}", found[3], found[4], content)
        self.missing("EntryNotFound")

    def change(self, repo: str, what: str, branch: str, content: bytes) -> None:
        if repo not in self.store.branches:
            return self.missing("RepoNotFound")
        if what == "preupload":
            names = [file["path"] for file in json.loads(content)["files"]]
            files = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            return self.answer(200, {"files": files})
        if what == "paths-info":
            paths = json.loads(content)["paths"]
            entries = [entry for entry in self.tree(repo, branch) if entry["path"] in paths]
            return self.answer(200, entries)
        lines = [json.loads(line) for line in content.splitlines()]
        added = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"])
            for line in lines
            if line["key"] == "file"
        }
        name = self.store.commit(repo, branch, added)
        page = repo.removeprefix("models/")
        url = f"http://{self.headers['Host']}/{page}/commit/{name}"
        self.answer(200, {"success": True, "commitOid": name, "commitUrl": url})

    def tree(self, repo: str, revision: str) -> list[dict[str, Any]]:
        files = self.store.files(repo, revision)
        return [
            {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for path, data in files.items()
        ]

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path == "/api/whoami-v2":
            return self.answer(200, {"name": "me", "type": "user", "orgs": []})
        if found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|refs)(?:/(.+))?)?", path):
            return self.describe(f"{found[1]}/{found[2]}", found[3], found[4] or "main")
        if found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.send_file(f"{found[1] or 'models/'}{found[2]}", found[3], found[4])
        self.missing("RepoNotFound")

    do_HEAD = do_GET

    def describe(self, repo: str, what: str | None, rest: str) -> None:
        if repo not in self.store.branches:
            return self.missing("RepoNotFound")
        revision, _, below = rest.partition("/")
        if self.store.branches[repo].get(revision, revision) not in self.store.commits:
            return self.missing("RevisionNotFound")
        if what == "tree":
            return self.answer(200, [e for e in self.tree(repo, revision) if e["path"].startswith(below)])
        if what == "refs":
            names = [
                {"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in self.store.branches[repo].items()
            ]
            return self.answer(200, {"branches": names, "tags": [], "converts": []})
        name = self.store.branches[repo].get(revision, revision)
        files = [{"rfilename": path} for path in self.store.files(repo, revision)]
        facts = {"id": repo.split("/", 1)[1], "sha": name, "siblings": files, "private": self.store.private[repo]}
        self.answer(200, facts | {"tags": [], "downloads": 0, "likes": 0})

    def send_file(self, repo: str, revision: str, name: str) -> None:
        if repo not in self.store.branches:
            return self.missing("RepoNotFound")
        files = self.store.files(repo, revision)
        if name not in files:
            return self.missing("EntryNotFound")
        commit = self.store.branches[repo].get(revision, revision)
        data, tag = files[name], hashlib.sha1(files[name]).hexdigest()
        status = 200
        headers = {"ETag": f'"{tag}"', "X_Repo_Commit": commit, "Accept_Ranges": "bytes"}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(asked[1]), int(asked[2] or len(data) - 1)
            headers["Content_Range"] = f"bytes {first}-{min(last, len(data) - 1)}/{len(data)}"
            status, data = 206, data[first : last + 1]
        self.answer(status, body=data, **headers)


def main(folder: str) -> None:
    Handler.store = Store(Path(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1])
