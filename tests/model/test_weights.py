"""Reading weights: every published layout, heads, sources, and files that are damaged or hostile."""

import argparse
import http.server
import itertools
import json
import os
import pathlib
import pickle
import threading
import zipfile

import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import GOLDEN, train
from safetensors.torch import load_file, save_file
from torch import nn

from utils.cli.errors import InputError
from utils.model.download import cached_path, fetch
from utils.model.weights import load_weights, read_tensors, to_timm_name

SIZES = {  # model -> depths, dims (arXiv 2201.03545 section 3, 2301.00808 appendix A)
    "convnext_tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "convnext_small": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "convnext_base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "convnext_large": ((3, 3, 27, 3), (192, 384, 768, 1536)),
    "convnext_xlarge": ((3, 3, 27, 3), (256, 512, 1024, 2048)),
    "convnextv2_atto": ((2, 2, 6, 2), (40, 80, 160, 320)),
    "convnextv2_femto": ((2, 2, 6, 2), (48, 96, 192, 384)),
    "convnextv2_pico": ((2, 2, 6, 2), (64, 128, 256, 512)),
    "convnextv2_nano": ((2, 2, 8, 2), (80, 160, 320, 640)),
    "convnextv2_tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "convnextv2_base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "convnextv2_large": ((3, 3, 27, 3), (192, 384, 768, 1536)),
    "convnextv2_huge": ((3, 3, 27, 3), (352, 704, 1408, 2816)),
}


# --- ConvNeXt and ConvNeXt V2 from the papers' words, under the names of their published code -------------------------


class ChannelsFirst(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class GRN(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.zeros(1, 1, 1, dim)), nn.Parameter(torch.zeros(1, 1, 1, dim))

    def forward(self, x):  # (B, H, W, C)
        energy = x.norm(dim=(1, 2), keepdim=True)
        return self.gamma * (x * energy / (energy.mean(-1, keepdim=True) + 1e-6)) + self.beta + x


class Block(nn.Module):
    def __init__(self, dim, v2):
        super().__init__()
        self.dwconv, self.norm = nn.Conv2d(dim, dim, 7, padding=3, groups=dim), nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        if v2:
            self.grn = GRN(4 * dim)
        else:
            self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        y = F.gelu(self.pwconv1(self.norm(self.dwconv(x).permute(0, 2, 3, 1))))
        y = self.pwconv2(self.grn(y)) if hasattr(self, "grn") else self.gamma * self.pwconv2(y)
        return x + y.permute(0, 3, 1, 2)


class Original(nn.Module):
    def __init__(self, depths, dims, v2, classes=1000):
        super().__init__()
        self.downsample_layers = nn.ModuleList([nn.Sequential(nn.Conv2d(3, dims[0], 4, 4), ChannelsFirst(dims[0], eps=1e-6))])
        for narrow, wide in itertools.pairwise(dims):
            self.downsample_layers.append(nn.Sequential(ChannelsFirst(narrow, eps=1e-6), nn.Conv2d(narrow, wide, 2, 2)))
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(dim, v2) for _ in range(depth))) for depth, dim in zip(depths, dims, strict=True)
        )
        self.norm, self.head = nn.LayerNorm(dims[-1], eps=1e-6), nn.Linear(dims[-1], classes)

    def forward(self, x):
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
        return self.head(self.norm(x.mean((-2, -1))))


def noisy(model):
    """`model` with every parameter drawn anew, so that none is left at a value that hides a mistake."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise / max(parameter[0].numel(), 1) ** 0.5 if parameter.ndim > 1 else 1 + 0.1 * noise)
    return model.eval()


def sparse(tensors):
    """The layout of FCMAE's encoder, from a dense state dict: kernels by position, columns first; no norm, no head."""
    content = {}
    for name, tensor in tensors.items():
        stem = name.startswith("downsample_layers.0.")
        is_conv = name.endswith(("dwconv.weight", ".1.weight")) and tensor.ndim == 4 and not stem
        part = "linear" if ".pwconv" in name else ""
        part = "ln" if ".norm." in name or (name.startswith("downsample_layers.") and not stem) else part
        if name.startswith(("norm.", "head.")):
            continue
        if is_conv:
            columns_first = tensor.transpose(2, 3).flatten(2)  # (C_out, C_in / groups, positions)
            kernel = columns_first.permute(2, 1, 0)  # (positions, C_in / groups, C_out)
            content["encoder." + name.removesuffix("weight") + "kernel"] = kernel[:, 0] if "dwconv" in name else kernel
        elif name.endswith(("dwconv.bias", ".1.bias")) and not stem:
            content["encoder." + name] = tensor[None]
        elif ".grn." in name:
            content["encoder." + name] = tensor.flatten()[None]
        else:
            module, _, leaf = name.rpartition(".")
            content[f"encoder.{module}.{part}.{leaf}" if part else f"encoder.{name}"] = tensor
    for name in (
        "mask_token",
        "proj.weight",
        "proj.bias",
        "pred.weight",
        "pred.bias",
        "decoder.0.grn.gamma",
        "decoder.0.norm.bias",
    ):
        content[name] = torch.zeros(2)
    return content


def tiny(classes=10, name="convnextv2_atto"):
    return timm.create_model(name, depths=(1, 1, 2, 1), dims=(8, 8, 16, 16), num_classes=classes)


@pytest.mark.parametrize("size", SIZES)
def test_every_size_loads_without_a_missing_or_unexpected_tensor(tmp_path, size):
    depths, dims = SIZES[size]
    with torch.device("meta"):
        names = [(name, tensor.shape) for name, tensor in Original(depths, dims, "v2" in size).state_dict().items()]
        target = timm.create_model(size)
    # one number, shown in every shape: a file of a few kilobytes, even for 660 million parameters
    torch.save({"model": {name: torch.zeros(1).expand(shape) for name, shape in names}}, tmp_path / "w.pth")
    lines = load_weights(target, tmp_path / "w.pth")
    family = "ConvNeXt V2" if "v2" in size else "ConvNeXt"
    assert lines[1:] == [f"{family} checkpoint, original names", f"{len(names)} tensors loaded; left out none; new none"]
    assert len(names) == len(target.state_dict())


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="needs the published code's numbers")
def test_names_are_the_published_ones(golden):
    for entry in golden("1_param_groups/names_to_timm.json.gz")["models"]:
        if entry["pairs"] is None:
            continue
        assert [to_timm_name(pair[0]) for pair in entry["pairs"]] == [pair[1] for pair in entry["pairs"]]
        with torch.device("meta"):
            ours = Original(*SIZES[entry["config"]["timm_model"]], entry["config"]["family"] == "v2").state_dict()
        assert {name: list(tensor.shape) for name, tensor in ours.items()} == {pair[0]: pair[2] for pair in entry["pairs"]}


CASES = [(size, layout) for size in SIZES for layout in ("dense", "model_ema", "fcmae") if layout != "fcmae" or "v2" in size]


@pytest.mark.parametrize("size, layout", CASES)
def test_outputs_are_equal_after_conversion(tmp_path, size, layout):
    v2 = "v2" in size
    depths, dims = SIZES[size][0], tuple(dim // 8 for dim in SIZES[size][1])
    source = noisy(Original(depths, dims, v2, classes=10))
    content = {"model": source.state_dict(), "epoch": 3}
    if layout == "model_ema":
        content = {"model": noisy(tiny()).state_dict(), "model_ema": source.state_dict(), "args": argparse.Namespace(lr=1)}
    if layout == "fcmae":
        content = {"model": sparse(source.state_dict())}
    torch.save(content, tmp_path / "w.pth")
    target = timm.create_model(size, depths=depths, dims=dims, num_classes=10).eval()
    lines = load_weights(target, tmp_path / "w.pth", model_key="model_ema|model")
    if layout == "fcmae":
        assert lines[1] == "ConvNeXt V2 FCMAE checkpoint, sparse layout; decoder left out, head new"
        assert "left out 7" in lines[2] and "new 4 (head.fc.bias, head.fc.weight, head.norm.bias, head.norm.weight)" in lines[2]
        load = {"head.fc": source.head, "head.norm": source.norm}
        for name, module in load.items():
            target.get_submodule(name).load_state_dict(module.state_dict())
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, got = source(image), target(image)
    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", ["fcmae_a", "fcmae_b"])
def test_fcmae_equals_the_published_conversion(golden, tmp_path, case):
    entry = next(c for c in golden("7_fcmae/fcmae.json.gz")["cases"] if c["id"] == case)
    config = entry["config"]
    torch.save({"model": load_file(GOLDEN / f"7_fcmae/{case}.checkpoint.safetensors")}, tmp_path / "w.pt")
    classes = config["num_classes_of_dense_model"]
    model = timm.create_model("convnextv2_atto", depths=config["depths"], dims=config["dims"], num_classes=classes).eval()
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load_weights(model, tmp_path / "w.pt")
    expected, names = load_file(GOLDEN / f"7_fcmae/{case}.expected.safetensors"), dict(entry["dense_to_timm_names"])
    state = model.state_dict()
    for dense, timm_name in names.items():
        if dense in entry["not_loaded_kept_from_model"]:
            assert torch.equal(state[timm_name], kept[timm_name])
        else:
            assert torch.equal(state[timm_name], expected[dense].reshape(state[timm_name].shape))
    with torch.no_grad():
        features = model.head.norm(model.head.global_pool(model.forward_features(expected["check.image"]))).flatten(1)
    torch.testing.assert_close(features, expected["check.pooled_features"], rtol=0, atol=1e-5)


# --- files ------------------------------------------------------------------------------------------------------------


LAYOUTS = ["safetensors", "folder", "plain", "model", "module.", "_orig_mod.", "namespace", "state_dict", "zip"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, layout):
    source, target = noisy(tiny()), tiny()
    tensors = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    path = tmp_path / "w.pth"
    if layout == "safetensors":
        path = tmp_path / "w.safetensors"
        save_file(tensors, path)
    elif layout == "folder":
        path = tmp_path
        save_file(tensors, tmp_path / "model.safetensors")
    elif layout == "plain":
        torch.save(tensors, path)
    elif layout.endswith("."):
        torch.save({layout + name: tensor for name, tensor in tensors.items()}, path)
    elif layout == "namespace":
        torch.save({"model": tensors, "args": argparse.Namespace(lr=0.1)}, path)
    elif layout == "zip":  # as PyTorch-Encoding publishes its files
        torch.save(tensors, path)
        with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
            archive.write(path, "w.pth")
        path = tmp_path / "w.zip"
    else:
        torch.save({layout: tensors, "epoch": 3}, path)
    lines = load_weights(target, path)
    assert lines[1:] == ["ConvNeXt V2 checkpoint, timm names", f"{len(tensors)} tensors loaded; left out none; new none"]
    assert all(torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True))


@pytest.mark.parametrize("model, what", [("resnest50d", "ResNeSt checkpoint"), ("resnet50", "ResNet checkpoint")])
def test_pytorch_encoding_files(tmp_path, golden, model, what):
    """Its names are timm's own; its files keep the weights under state_dict, and older ones count no batches."""
    source = timm.create_model(model, num_classes=10)
    cases = golden("1_param_groups/encoding_no_bn_wd_groups.json.gz")["cases"]
    names = next(
        {name for group in case["groups"] for name in group["params"]}
        for case in cases
        if case["config"]["model"] == model.removesuffix("d") and case["config"]["family"] == "encoding"
    )
    assert names == {name for name, _ in source.named_parameters()}
    tensors = {n: t for n, t in source.state_dict().items() if not n.endswith("num_batches_tracked")}
    torch.save({"epoch": 1, "state_dict": tensors, "optimizer": {}, "best_pred": 81.03}, tmp_path / "w.pth.tar")
    target = timm.create_model(model, num_classes=10)
    lines = load_weights(target, tmp_path / "w.pth.tar")
    assert lines[1] == what and f"{len(tensors)} tensors loaded; left out none" in lines[2]
    assert all(torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True))


def test_other_heads_start_anew_and_anything_else_is_refused(tmp_path):
    torch.save(tiny(7).state_dict(), tmp_path / "w.pth")
    lines = load_weights(tiny(10), tmp_path / "w.pth")
    assert lines[1].endswith("head new") and "new 2 (head.fc.bias, head.fc.weight)" in lines[2]
    assert "left out 2 (head.fc.weight, head.fc.bias)" in lines[2]
    wrong = timm.create_model("convnextv2_atto", depths=(1, 1, 1, 1), dims=(8, 8, 16, 24), num_classes=10)
    before = {name: tensor.clone() for name, tensor in wrong.state_dict().items()}
    with pytest.raises(InputError, match=r"missing none; unexpected \d+ \(stages.2.blocks.1.*of another shape \d+"):
        load_weights(wrong, tmp_path / "w.pth")
    assert all(torch.equal(tensor, before[name]) for name, tensor in wrong.state_dict().items())
    torch.save({"backbone.stem.0.weight": torch.ones(1), "decode_head.conv_seg.bias": torch.ones(2)}, tmp_path / "seg.pth")
    with pytest.raises(InputError, match="segmentation network"):
        load_weights(wrong, tmp_path / "seg.pth")


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_hostile_and_damaged_files_give_one_line_and_run_nothing(tmp_path):
    trap = tmp_path / "ran"
    files = tmp_path / "files"
    files.mkdir()
    torch.save({"model": Hostile(trap)}, files / "hostile.pth")
    (files / "old.pth").write_bytes(pickle.dumps(Hostile(trap), protocol=2))
    with zipfile.ZipFile(files / "hostile.zip", "w") as archive:
        archive.writestr("../w.pth", pickle.dumps(Hostile(trap)))
    with zipfile.ZipFile(files / "two.zip", "w") as archive:
        archive.writestr("a.pth", b"")
        archive.writestr("b.pth", b"")
    torch.save(tiny().state_dict(), files / "cut.pth")
    data = (files / "cut.pth").read_bytes()
    (files / "cut.pth").write_bytes(data[: len(data) // 2])
    save_file(tiny().state_dict(), files / "cut.safetensors")
    (files / "cut.safetensors").write_bytes((files / "cut.safetensors").read_bytes()[:-100])
    (files / "text.pth").write_text("not weights")
    (files / "text.safetensors").write_text("not weights")
    (files / "empty.pth").write_bytes(b"")
    torch.save({"model": {"a": 3}}, files / "numbers.pth")
    torch.save({"model": {3: torch.ones(1)}}, files / "numbered.pth")
    torch.save([1, 2], files / "list.pth")
    kernel = {"encoder.stages.0.0.dwconv.kernel": torch.ones(48, 8), "mask_token": torch.ones(1)}
    torch.save({"model": kernel}, files / "kernel.pth")
    for path in sorted(files.iterdir()):
        with pytest.raises(InputError) as error:
            load_weights(tiny(), path)
        assert "\n" not in str(error.value) and path.name in str(error.value)
    with pytest.raises(InputError, match="no such file"):
        load_weights(tiny(), tmp_path / "none.pth")
    pickle.loads(pickle.dumps(Hostile(trap)))  # and the trap does work
    assert trap.exists()


def test_the_trap_is_not_sprung_by_reading(tmp_path):
    trap = tmp_path / "ran"
    torch.save({"model": Hostile(trap)}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"posix.system; nothing of it was run"):
        read_tensors(tmp_path / "w.pth")
    assert not trap.exists()


# --- sources ----------------------------------------------------------------------------------------------------------


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
            file = root / self.path.partition("?")[0].rsplit("/", 1)[-1]
            if not file.exists():
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.end_headers()
                return
            data = file.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", '"0123"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.end_headers()
            if body:
                self.wfile.write(data[: len(data) // 2] if box.cut else data)

        def log_message(self, *_):
            pass

    instance = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    box = argparse.Namespace(root=root, cut=False, seen=[], address=f"http://127.0.0.1:{instance.server_port}")
    threading.Thread(target=instance.serve_forever, daemon=True).start()
    yield box
    instance.shutdown()


def test_a_url_is_downloaded_once_and_never_used_in_part(server, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    source = noisy(tiny())
    save_file(source.state_dict(), server.root / "w.safetensors")
    url = f"{server.address}/a/w.safetensors"
    server.cut = True
    with pytest.raises(InputError, match=r"ended after [\d,]+ of [\d,]+ bytes"):
        fetch(url)
    assert not list((tmp_path / "hub/checkpoints").iterdir())
    server.cut = False
    target = tiny()
    load_weights(target, url)
    assert torch.equal(target.state_dict()["stem.0.weight"], source.state_dict()["stem.0.weight"])
    load_weights(tiny(), url)
    assert [command for command, _ in server.seen] == ["GET", "GET"]  # the third came from the cache
    assert cached_path(url) != cached_path(f"{server.address}/b/w.safetensors")
    for bad in (f"{server.address}/none.pth", "http://127.0.0.1:9/w.pth"):
        with pytest.raises(InputError, match="cannot be downloaded") as error:
            fetch(bad)
        assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_hub_id_is_fetched_from_the_hub(server, tmp_path):
    save_file(noisy(tiny()).state_dict(), server.root / "model.safetensors")
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
    assert (
        absent.returncode == 1
        and len(absent.stderr.splitlines()) == 1
        and "Hub id timm/none: not in the cache" in absent.stderr
    )
    assert not (pathlib.Path(tmp_path) / "output").exists()
