"""Pushing a result, against a server that stands in for the Hub: what arrives there, and what fails in one line."""

import base64
import hashlib
import http.server
import json
import os
import re
import threading

import pytest
from conftest import run

from utils.cli.errors import InputError
from utils.result import hub

CALL = """
import sys
import time
time.sleep = lambda seconds: None  # between the library's attempts
from utils.result import hub
from utils.cli.errors import InputError
try:
    hub.push(sys.argv[1], sys.argv[2], private=sys.argv[3] == "private")
except InputError as error:
    sys.exit(f"InputError: {error}")
"""


class StandIn(http.server.ThreadingHTTPServer):
    """Answers what huggingface_hub asks for an upload. `files` arrived and were committed; `asked`: method and path.

    mode: how files go, "regular" (within the commit) or "lfs". fails: {part of a path: (status, message)}.
    """

    def __init__(self, mode="regular", fails=(), exists=False, private=False):
        super().__init__(("127.0.0.1", 0), Answer)
        self.mode, self.fails, self.exists, self.private = mode, dict(fails), exists, private
        self.asked, self.created, self.objects, self.files = [], [], {}, {}
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()


class Answer(http.server.BaseHTTPRequestHandler):
    def log_message(self, *words):
        pass

    def answer(self):
        server, path = self.server, self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server.asked.append(f"{self.command} {path}")
        failure = next((answer for part, answer in server.fails.items() if part in path), None)
        if failure is None and self.headers.get("Authorization") != "Bearer hf_test" and not path.startswith("/store/"):
            failure = (401, "who are you?")
        if failure:
            return self.reply(*failure)
        if path == "/api/repos/create":
            server.created.append(json.loads(body))
            status, server.exists = 409 if server.exists else 200, True
            return self.reply(status, url=f"{server.url}/me/digits")
        if path == "/api/models/me/digits":
            found = {"id": "me/digits", "private": server.private, "sha": "0" * 40, "siblings": []}
            return self.reply(200, **found) if server.exists else self.reply(404, "Repository not found")
        if path == "/api/validate-yaml":
            return self.reply(200, errors=[], warnings=[])
        if "/preupload/" in path:
            files = [{"path": f["path"], "uploadMode": server.mode, "shouldIgnore": False} for f in json.loads(body)["files"]]
            return self.reply(200, files=files)
        if path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            actions = [{**item, "actions": {"upload": {"href": f"{server.url}/store/{item['oid']}"}}} for item in objects]
            return self.reply(200, objects=actions, transfer="basic")
        if path.startswith("/store/"):
            assert hashlib.sha256(body).hexdigest() == path.removeprefix("/store/")
            server.objects[path.removeprefix("/store/")] = body
            return self.reply(200)
        if "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    server.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    server.files[value["path"]] = server.objects[value["oid"]]
            return self.reply(200, commitUrl=f"{server.url}/me/digits/commit/0", commitOid="0" * 40)
        return self.reply(404, "not in this stand-in")

    do_GET = do_POST = do_PUT = answer

    def reply(self, status, message=None, **content):
        text = json.dumps({"error": message} if message else content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture
def result(tmp_path):
    folder = tmp_path / "best"
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("model.safetensors", "config.json", "README.md", "curves.png", "log.txt", "checkpoints/optimizer.pt"):
        (folder / name).write_bytes(os.urandom(3000))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def push(folder, repo_id="me/digits", private="", endpoint="http://127.0.0.1:9", **environment):
    """hub.push in a process of its own, for the library reads its settings when it is imported."""
    settings = {"HF_ENDPOINT": endpoint, "HF_TOKEN": "hf_test", "HF_HUB_OFFLINE": "0", "HF_HOME": str(folder.parent / "home")}
    return run("-c", CALL, folder, repo_id, private, env=settings | environment)


def one_line(done):
    """The one line with which a push ended."""
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    *_, last = done.stderr.splitlines()
    assert last.startswith("InputError: ") and done.stderr.count("InputError") == 1, done.stderr
    return last


@pytest.mark.parametrize("mode, disable_xet", [("regular", "0"), ("lfs", "1")])
def test_the_files_of_the_result_arrive_and_no_others(result, mode, disable_xet):
    with StandIn(mode) as server:
        done = push(result, endpoint=server.url, HF_HUB_DISABLE_XET=disable_xet)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"pushed: {server.url}/me/digits\n"
    here = contents(result)
    names = ("model.safetensors", "config.json", "README.md", "curves.png")
    assert server.files == {name: here[name] for name in names}
    assert (server.created[0]["organization"], server.created[0]["name"]) == ("me", "digits")
    assert bool(server.objects) == (mode == "lfs")


def test_a_second_push_replaces_the_first(result):
    with StandIn(exists=True) as server:
        assert push(result, endpoint=server.url).returncode == 0
    assert len(server.files) == 4


@pytest.mark.parametrize("exists, private, pushed", [(False, True, True), (True, False, False)])
def test_private_is_never_published(result, exists, private, pushed):
    with StandIn(exists=exists, private=private) as server:
        done = push(result, private="private", endpoint=server.url)
    assert bool(server.files) == pushed
    assert server.created[0].get("visibility", server.created[0].get("private")) in ("private", True)
    if not pushed:
        assert "me/digits exists and is public" in one_line(done)


@pytest.mark.parametrize(
    "where, status, message, expected",
    [
        ("/repos/create", 401, "Invalid username or password.", "the Hub answered 401, the token is missing, wrong or expired"),
        ("/repos/create", 403, "No rights", "answered 403, the token may not write there.*it says: No rights"),
        ("/commit/", 400, '"license" must be one of', 'answered 400, it says: "license" must be one of'),
    ],
)
def test_a_hub_that_refuses_is_one_line_and_costs_nothing(result, where, status, message, expected):
    before = contents(result)
    with StandIn(fails={where: (status, message)}) as server:
        line = one_line(push(result, endpoint=server.url))
    assert re.search(expected, line) and line.endswith(f"the result stays in {result}, try again later")
    assert contents(result) == before and not server.files


@pytest.mark.slow
def test_a_hub_that_fails_at_the_commit(result):
    """The library tries again for half a minute."""
    with StandIn(fails={"/commit/": (500, "internal")}) as server:
        assert "the Hub answered 500" in one_line(push(result, endpoint=server.url))
    assert len([asked for asked in server.asked if "/commit/" in asked]) > 1


def test_a_hub_that_is_not_there(result):
    assert "refused" in one_line(push(result)).lower()  # nobody listens at that address


@pytest.fixture
def allowed(monkeypatch):
    """The network may be used, and there is a token."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_test")


@pytest.mark.parametrize("repo_id", ["digits", "me/a/b", "me/dig its"])
def test_a_name_that_is_no_repository_is_refused_before_training(allowed, repo_id):
    hub.check_repo_id("me/digits")
    with pytest.raises(InputError, match=f"'{repo_id}': expected USER/NAME"):
        hub.check_repo_id(repo_id)


def test_no_token_and_no_network_are_known_before_training(allowed, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(InputError, match="me/digits: found no token; log in with `hf auth login`, or set HF_TOKEN"):
        hub.check_repo_id("me/digits")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="me/digits: HF_HUB_OFFLINE is set"):
        hub.check_repo_id("me/digits")


@pytest.mark.parametrize("name", hub.NEEDED)
def test_a_folder_without_a_result(allowed, result, name):
    (result / name).unlink()
    with pytest.raises(InputError, match=f"found no {name} to push"):
        hub.push(result, "me/digits")
