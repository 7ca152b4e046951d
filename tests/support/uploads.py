"""Uploads to the stand-in hub of hub.py.

huggingface_hub speaks this protocol with HF_HUB_DISABLE_XET=1: without it, it speaks a binary one.
"""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field


@dataclass
class Received:
    """What uploads left, in addition to the files."""

    private: dict[str, bool] = field(default_factory=dict)  # {"owner/name": …}
    commits: list[dict] = field(default_factory=list)  # the header and the deleted paths of each
    objects: dict[str, bytes] = field(default_factory=dict)  # {sha256: content} of the large file storage
    sent: list[str] = field(default_factory=list)  # their sha256s, in the order of arrival
    tokens: set[str] = field(default_factory=set)
    refuse: dict[str, int] = field(default_factory=dict)  # {end of a path: the status it is answered with}


class Uploads:
    """A mixin for a BaseHTTPRequestHandler with `hub`, `refuse` and `answer`."""

    def reply(self, value: object) -> None:
        self.answer(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while length := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(length))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def of_model(self, name: str) -> None:
        """GET /api/models/owner/name."""
        files = self.hub.files.get(f"models/{name}")
        if files is None:
            return self.refuse(404, "RepoNotFound")
        siblings = [{"rfilename": path} for path in files]
        private = self.hub.received.private.get(name, False)
        return self.reply({"id": name, "sha": self.hub.commit, "private": private, "siblings": siblings})

    def do_PUT(self):  # noqa: N802 http.server looks the method up by this name
        content, path = self.body(), self.path.split("?")[0]
        self.hub.requests.append(("PUT", path, None))
        digest = hashlib.sha256(content).hexdigest()
        assert path == f"/storage/{digest}"
        self.hub.received.sent.append(digest)
        self.hub.received.objects[digest] = content
        return self.answer(b"", {})

    def do_POST(self):  # noqa: N802
        content, path = self.body(), self.path.split("?")[0]
        received = self.hub.received
        self.hub.requests.append(("POST", path, None))
        received.tokens.add(self.headers.get("Authorization", ""))
        refused = next((status for end, status in received.refuse.items() if path.endswith(end)), 0)
        routes = {
            "/api/repos/create()": self.create,
            "/api/validate-yaml()": lambda name, asked: self.reply({"errors": [], "warnings": []}),
            r"/api/models/(.+)/preupload/main": self.preupload,
            r"/(.+)\.git/info/lfs/objects/batch": self.batch,
            r"/api/models/(.+)/commit/main": self.commit,
        }
        found = [(match[1], route) for pattern, route in routes.items() if (match := re.fullmatch(pattern, path))]
        if refused or not found:
            return self.refuse(refused or 404, "")
        ((name, route),) = found
        return route(name, [json.loads(line) for line in content.splitlines()])

    def preupload(self, name: str, lines: list[dict]) -> None:
        def mode(path: str) -> dict:
            large = path.endswith(".safetensors")
            return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": None}

        return self.reply({"files": [mode(each["path"]) for each in lines[0]["files"]]})

    def batch(self, name: str, lines: list[dict]) -> None:
        def storage(asked: dict) -> dict:
            if asked["oid"] in self.hub.received.objects:
                return asked
            return {**asked, "actions": {"upload": {"href": f"{self.hub.url}/storage/{asked['oid']}"}}}

        return self.reply({"objects": [storage(each) for each in lines[0]["objects"]]})

    def create(self, name: str, lines: list[dict]) -> None:
        (asked,) = lines
        name = f"{asked['organization']}/{asked['name']}"
        self.hub.files[f"models/{name}"] = {".gitattributes": b""}
        self.hub.received.private[name] = asked["visibility"] == "private"
        return self.reply({"url": f"{self.hub.url}/{name}", "name": name})

    def commit(self, name: str, lines: list[dict]) -> None:
        files, deleted = self.hub.files[f"models/{name}"], []
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "deletedFile":
                del files[value["path"]]
                deleted.append(value["path"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.received.objects[value["oid"]]
            else:
                files[value["path"]] = base64.b64decode(value["content"])
        self.hub.received.commits.append({**lines[0]["value"], "deleted": deleted})
        return self.reply({"commitUrl": f"{self.hub.url}/{name}/commit/{'d' * 40}", "commitOid": "d" * 40})
