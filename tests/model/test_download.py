"""Weights from a URL and from the Hub, served by this machine."""

import argparse
import base64
import csv
import hashlib
import http.server
import json
import socket
import threading

import huggingface_hub
import pytest
import torch
from conftest import ROOT, run, train
from PIL import Image
from published_convnext import noisy, timm_model
from safetensors.torch import save_file
from timm.data import ImageNetInfo

from utils.cli.errors import InputError
from utils.cli.first import parse
from utils.cli.urls import full_address, hide_secrets
from utils.model.download import cached_path, check_reachable, fetch
from utils.model.weights import load_weights


@pytest.fixture
def server(tmp_path):
    """A server of tmp_path/www on this machine; `cut` breaks answers off, `seen` are the requests."""
    root = tmp_path / "www"
    root.mkdir()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET(body=False)

        def do_GET(self, body=True):
            box.seen.append((self.command, self.path))
            box.logins += self.headers.get("Authorization", "")
            file = root / self.path.partition("?")[0].rsplit("/", 1)[-1]
            if not file.exists():
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.end_headers()
                return
            data = file.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')  # under which the Hub's cache keeps it
            self.send_header("X-Repo-Commit", "0" * 40)
            self.end_headers()
            if body:
                self.wfile.write(data[: len(data) // 2] if box.cut else data)

        def log_message(self, *_):
            pass

    instance = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    box = argparse.Namespace(root=root, cut=False, seen=[], logins="", address=f"http://127.0.0.1:{instance.server_port}")
    threading.Thread(target=instance.serve_forever, daemon=True).start()
    yield box
    instance.shutdown()


def test_a_url_is_downloaded_once_and_never_used_in_part(server, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    source = noisy(timm_model())
    save_file(source.state_dict(), server.root / "w.safetensors")
    url = f"{server.address}/a/w.safetensors"
    server.cut = True
    with pytest.raises(InputError, match=r"ended after [\d,]+ of [\d,]+ bytes"):
        fetch(url)
    assert not list((tmp_path / "hub/checkpoints").iterdir())
    server.cut = False
    target = timm_model()
    load_weights(target, url)
    assert torch.equal(target.state_dict()["stem.0.weight"], source.state_dict()["stem.0.weight"])
    load_weights(timm_model(), url)
    assert [command for command, _ in server.seen] == ["GET", "GET"]  # the third came from the cache
    assert cached_path(url) != cached_path(f"{server.address}/b/w.safetensors")
    for bad in (f"{server.address}/none.pth", "http://127.0.0.1:9/w.pth"):
        with pytest.raises(InputError, match="cannot be downloaded") as error:
            fetch(bad)
        assert "\n" not in str(error.value)


def test_the_hash_in_a_name_is_checked(server, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    data = b"weights"
    mark = hashlib.sha256(data).hexdigest()[:8]
    for name in (f"w-{mark}.pth", "w-0badf00d.pth", "w-20210315.pth"):
        (server.root / name).write_bytes(data)
    assert fetch(f"{server.address}/w-{mark}.pth").read_bytes() == data
    assert fetch(f"{server.address}/w-20210315.pth").read_bytes() == data  # a date
    with pytest.raises(InputError, match=f"its name says SHA-256 0badf00d, the file has {mark}"):
        fetch(f"{server.address}/w-0badf00d.pth?download=1")
    assert len(list((tmp_path / "hub/checkpoints").glob("w-*.pth"))) == 2


@pytest.mark.slow
def test_a_hub_id_is_fetched_from_the_hub(server, tmp_path):
    save_file(noisy(timm_model()).state_dict(), server.root / "model.safetensors")
    (server.root / "config.json").write_text(json.dumps({}))
    env = {"HF_ENDPOINT": server.address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    words = ("--eval", "true", "--finetune")
    done = train(*words, "hf-hub:someone/tiny", env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "weights: ConvNeXt V2 checkpoint, timm names" in done.stdout and "result: top-1" in done.stdout
    assert any("/someone/tiny/resolve/main/model.safetensors" in path for _, path in server.seen)
    env["HF_HUB_OFFLINE"] = "1"
    again = train(*words, "hf-hub:someone/tiny", env=env, cwd=tmp_path)
    assert again.returncode == 0 and again.stdout.count("result: top-1") == 1
    absent = train(*words, "timm/none", env=env, cwd=tmp_path)
    assert absent.returncode == 1 and len(absent.stderr.splitlines()) == 1
    assert "Hub id timm/none: not in the cache" in absent.stderr
    assert not (tmp_path / "output").exists()
    # a prediction needs no other flag; config.json is fetched too, and the classes are ImageNet's where it names none
    save_file(noisy(timm_model(1000)).state_dict(), server.root / "model.safetensors")
    shape = {"depths": [1, 1, 2, 1], "dims": [8, 8, 16, 16]}
    config = {"architecture": "convnextv2_atto", "num_classes": 1000, "model_args": shape}
    config["pretrained_cfg"] = {"input_size": [3, 32, 32], "num_classes": 1000, "first_conv": "stem.0", "classifier": "head.fc"}
    (server.root / "config.json").write_text(json.dumps(config))
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    words = ("--predict", "red.png", "--finetune", "hf-hub:someone/photos")
    done = run(ROOT / "train_recognition.py", *words, env=env | {"HF_HUB_OFFLINE": "0"}, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((tmp_path / "predictions.csv").read_text().splitlines()))
    assert rows[0]["label_1"] in [ImageNetInfo().index_to_description(label) for label in range(1000)]


def test_a_hub_that_does_not_answer_is_said_at_once(server, tmp_path, monkeypatch):
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", f"{server.address}/none")
    check_reachable("resnet18")  # it answers 404, and so it is there
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for address, fault in ("127.0.0.1:9", "refused"), (f"127.0.0.1:{silent.getsockname()[1]}", "no answer|timed out"):
            monkeypatch.setattr(constants, "ENDPOINT", f"http://{address}")
            with pytest.raises(InputError, match=rf"timm/resnet18.* are not in the cache.*({fault}).*--finetune"):
                check_reachable("resnet18", seconds=0.3)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"timm/resnet18.* are not in the cache.*HF_HUB_OFFLINE is set.*--finetune"):
        check_reachable("resnet18")
    check_reachable("local-dir:somewhere")
    cached = tmp_path / "models--timm--resnet18.a1_in1k"
    (cached / "snapshots" / "abc").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    (cached / "snapshots" / "abc" / "model.safetensors").touch()
    check_reachable("resnet18")


def test_a_cached_download_that_was_changed_is_not_used_again(server, tmp_path, monkeypatch):
    url = server.address
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    (server.root / "w.bin").write_bytes(b"weights" * 1000)
    path = fetch(f"{url}/w.bin")
    for damaged in (b"weights", b"x" * 7000):
        path.write_bytes(damaged)
        assert fetch(f"{url}/w.bin").read_bytes() == b"weights" * 1000
    path.write_bytes(b"weights")
    (server.root / "w.bin").unlink()
    with pytest.raises(InputError, match="cannot be downloaded"):
        fetch(f"{url}/w.bin")


@pytest.mark.parametrize(
    "page", [b"<!DOCTYPE html><title>Sign in</title>", b"\n <html lang=en>", b"<?xml version='1.0'?><Error/>"]
)
def test_a_login_page_is_no_weights(server, tmp_path, monkeypatch, page):
    url = server.address
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    (server.root / "w.pth").write_bytes(page)
    with pytest.raises(InputError, match="found a web page"):
        fetch(f"{url}/w.pth")
    assert not list((tmp_path / "cache" / "checkpoints").iterdir())


def test_what_is_secret_in_an_address_is_sent_and_shown_nowhere(server, tmp_path, monkeypatch):
    url = server.address
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    (server.root / "w.bin").write_bytes(b"weights")
    place = url.partition("://")[2]
    for given, shown in (
        (f"HTTP://anna:hunter2@{place}/w.bin", f"http://{place}/w.bin"),
        (f"http://{place}/w.bin?download=true&token=hunter2", f"http://{place}/w.bin?download=true&token=hidden"),
        (f"http://{place}/w.bin?x=hunter2hunter2hunter2", f"http://{place}/w.bin?x=hidden"),
    ):
        assert hide_secrets(f"--finetune={given}") == f"--finetune={shown}"
        assert fetch(shown).read_bytes() == b"weights"
        assert hide_secrets(shown) == shown and full_address(shown) == given
    assert base64.b64encode(b"anna:hunter2").decode() in server.logins
    (server.root / "w.bin").unlink()
    secret = f"http://anna:hunter2@{place}/other.bin?sig=hunter2"
    done = train("--finetune", secret, "--output_dir", tmp_path / "run")
    assert done.returncode == 1 and "cannot be downloaded" in done.stderr and "hunter2" not in done.stdout + done.stderr
    (tmp_path / "w.args").write_text(f"--finetune {secret}")
    args = parse("train_recognition.py", "", [f"@{tmp_path}/w.args"])
    assert "hunter2" not in args.finetune and full_address(args.finetune) == secret
