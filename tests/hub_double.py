"""A hub on loopback, for one test: what huggingface_hub asks of the real one when a folder is pushed, and it
keeps every byte it is sent.

Small files come inside the commit, others through Git LFS (batch, PUT, verify). Told to, a route fails, hangs
up in the middle or says nothing.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".gguf")  # what goes through LFS


def user(role="write", orgs=(), **more) -> dict:
    """As whoami-v2 tells the owner of a token."""
    return {
        "type": "user",
        "name": "mai",
        "orgs": [{"type": "org", "name": name, "roleInOrg": in_org} for name, in_org in orgs],
        "auth": {"type": "access_token", "accessToken": {"displayName": "test", "role": role, **more}},
    }


def fine_grained(*scopes) -> dict:
    """`scopes`: (type, name, permissions …) each."""
    scoped = [
        {"entity": {"type": kind, "name": name}, "permissions": list(rights)}
        for kind, name, *rights in scopes
    ]
    return user("fineGrained", fineGrained={"global": ["discussion.write"], "scoped": scoped})


@dataclass
class Repo:
    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    messages: list[str] = field(default_factory=list)


@dataclass
class Failure:
    """`status` is what is answered `times` times, the request's token in the body; 0 hangs up with half of
    the request read; None says nothing.
    """

    status: int | None
    times: int = 1000


@dataclass
class Hub:
    url: str = ""
    tokens: dict[str, dict] = field(default_factory=dict)
    repos: dict[str, Repo] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)  # names of routes, in order
    storage: dict[str, bytes] = field(default_factory=dict)
    released: threading.Event = field(default_factory=threading.Event)


class Refused(Exception):
    def __init__(self, status: int, message: str, code: str = "", **more: str) -> None:
        super().__init__(message)
        self.status, self.code, self.more = status, code, more


@contextmanager
def serve():
    """A running `Hub` on a free port."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        hub.released.set()
        server.shutdown()
        thread.join()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: Hub

    def _handle(self) -> None:
        path = unquote(urlsplit(self.path).path)
        matches = (
            (answer, pattern.fullmatch(path)) for method, pattern, answer in ROUTES if method == self.command
        )
        answer, groups = next(((answer, found.groups()) for answer, found in matches if found), (unknown, ()))
        route = answer.__name__
        if answer is not harnesses:
            self.hub.requests.append(route)
        failure = self.hub.failures.get(route)
        if failure and failure.times:
            failure.times -= 1
            return self._fail(failure)
        body = self._body()
        try:
            if answer not in (harnesses, upload) and self._token() not in self.hub.tokens:
                raise Refused(401, "Invalid credentials in Authorization header")
            return self._send(200, answer(self.hub, self.hub.tokens.get(self._token()), body, *groups))
        except Refused as error:
            return self._send(
                error.status,
                {"error": str(error), **error.more},
                {"X-Error-Code": error.code, "X-Error-Message": str(error)},
            )

    do_GET = do_POST = do_PUT = _handle

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _fail(self, failure: Failure) -> None:
        if failure.status is None:
            self.hub.released.wait(60)
        if not failure.status:
            self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
            self.close_connection = True
            return
        self._body()
        self._send(failure.status, {"error": f"told to fail for {self._token()}"})

    def _send(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(content)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        pass


# ---- what each route answers: (hub, who asks, body, parts of the path)


def unknown(hub, who, body):
    raise Refused(404, "no such route")


def harnesses(hub, who, body):
    """For the library's user agent; it asks once a day, without a token."""
    return {"standardEnvVars": [], "harnesses": {}}


def repo_of(hub, name) -> Repo:
    if name not in hub.repos:
        raise Refused(404, "Repository not found", "RepoNotFound")
    return hub.repos[name]


def branch_of(hub, name, branch) -> dict[str, bytes]:
    if branch not in repo_of(hub, name).branches:
        raise Refused(404, f"Invalid rev id: {branch}", "RevisionNotFound")
    return hub.repos[name].branches[branch]


def whoami(hub, who, body):
    return who


def create(hub, who, body):
    asked = json.loads(body)
    name = f"{asked['organization']}/{asked['name']}"
    if asked["organization"] not in {who["name"], *(org["name"] for org in who["orgs"])}:
        raise Refused(
            403, f'You don\'t have the rights to create a model under the namespace "{asked["organization"]}"'
        )
    if name in hub.repos:
        raise Refused(409, "You already created this model repo", url=f"{hub.url}/{name}")
    hub.repos[name] = Repo(asked.get("visibility") == "private" or asked.get("private", False))
    return {"url": f"{hub.url}/{name}", "name": name, "id": "0"}


def info(hub, who, body, name):
    return {"id": name, "private": repo_of(hub, name).private, "sha": "0" * 40, "siblings": []}


def revision(hub, who, body, name, wanted):
    branch_of(hub, name, wanted)
    return info(hub, who, body, name)


def refs(hub, who, body, name):
    branches = [
        {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": "0" * 40}
        for branch in repo_of(hub, name).branches
    ]
    return {"branches": branches, "converts": [], "tags": []}


def branch(hub, who, body, name, new):
    if new in repo_of(hub, name).branches:
        raise Refused(409, f"Reference already exists: {new}")
    hub.repos[name].branches[new] = dict(hub.repos[name].branches["main"])
    return {}


def validate(hub, who, body):
    if "license: [" in json.loads(body)["content"]:
        return {"errors": [], "warnings": [{"message": "license is an odd one"}]}
    return {"errors": [], "warnings": []}


def preupload(hub, who, body, name, revision):
    branch_of(hub, name, revision)
    files = json.loads(body)["files"]
    return {
        "files": [
            {
                "path": f["path"],
                "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
            }
            for f in files
        ]
    }


def batch(hub, who, body, name):
    repo_of(hub, name)
    objects = []
    for each in json.loads(body)["objects"]:
        actions = {
            "upload": {"href": f"{hub.url}/storage/{each['oid']}"},
            "verify": {"href": f"{hub.url}/verify"},
        }
        objects.append({**each, **({} if each["oid"] in hub.storage else {"actions": actions})})
    return {"transfer": "basic", "objects": objects}


def upload(hub, who, body, oid):
    if hashlib.sha256(body).hexdigest() != oid:
        raise Refused(400, "other bytes than announced")
    hub.storage[oid] = body
    return {}


def verify(hub, who, body):
    asked = json.loads(body)
    if len(hub.storage[asked["oid"]]) != asked["size"]:
        raise Refused(400, "other bytes than announced")
    return {}


def commit(hub, who, body, name, revision):
    files = branch_of(hub, name, revision)
    for line in map(json.loads, body.splitlines()):
        value = line["value"]
        if line["key"] == "header":
            hub.repos[name].messages.append(value["summary"])
        elif line["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        else:
            files[value["path"]] = hub.storage[value["oid"]]
    return {"commitUrl": f"{hub.url}/{name}/commit/{'1' * 40}", "commitOid": "1" * 40, "hookOutput": ""}


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES: list[tuple[str, re.Pattern[str], Callable[..., Any]]] = [
    (method, re.compile(pattern), answer)
    for method, pattern, answer in (
        ("GET", "/api/agent-harnesses", harnesses),
        ("GET", "/api/whoami-v2", whoami),
        ("POST", "/api/repos/create", create),
        ("GET", f"/api/models/{NAME}", info),
        ("GET", f"/api/models/{NAME}/revision/(.+)", revision),
        ("GET", f"/api/models/{NAME}/refs", refs),
        ("POST", f"/api/models/{NAME}/branch/(.+)", branch),
        ("POST", "/api/validate-yaml", validate),
        ("POST", f"/api/models/{NAME}/preupload/(.+)", preupload),
        ("POST", f"/{NAME}[.]git/info/lfs/objects/batch", batch),
        ("PUT", "/storage/(.+)", upload),
        ("POST", "/verify", verify),
        ("POST", f"/api/models/{NAME}/commit/(.+)", commit),
    )
]
