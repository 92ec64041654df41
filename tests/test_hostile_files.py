"""No file runs code, leads outside its folder, hangs, or leaves a model half loaded: it loads, or is refused in one line."""

import argparse
import contextlib
import copy
import hashlib
import io
import json
import os
import pathlib
import shutil
import signal
import struct
import types
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from segmentation_networks.network import build_network
from utils.cli.arguments import Parser, expand_recipes, key_value
from utils.cli.errors import InputError
from utils.data.masks import draw_instances, read_values
from utils.model.ema import EMA
from utils.model.recognition import build_model
from utils.model.segmentation_weights import load_segmentation_weights, open_network, read_config
from utils.model.weights import load_weights, read_tensors
from utils.run import checkpoint
from utils.run import state as run_state
from utils.run.folder import open_folder as run_folder_of
from utils.run.log import RunLog
from utils.sources.hub import encoded_image, load_splits
from utils.sources.recognition import hub_table, scan_folder
from utils.sources.segmentation import folder as segmentation_folder
from utils.sources.segmentation import hub_table as masks_table
from utils.sources.segmentation import open_data

BODY = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}


class Trap:
    """Runs a command where it is unpickled."""

    def __init__(self, function, *words):
        self.call = (function, words)

    def __reduce__(self):
        return self.call


def fuzz(examples):
    """Mutations of a file as a list of (what, where, bytes), the same in every run."""
    what = st.sampled_from(["flip", "cut", "insert", "drop", "double", "swap", "zero", "large"])
    edits = st.lists(st.tuples(what, st.floats(0, 1), st.binary(min_size=1, max_size=9)), min_size=1, max_size=5)
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    usual = settings(max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=checks)
    return lambda test: usual(given(edits=edits)(test))


def mutated(data, edits):
    data = bytearray(data)
    for what, where, some in edits:
        at, size = int(where * len(data)), len(some) * 7
        if what == "flip":
            data[at : at + 1] = bytes([b ^ some[0] for b in data[at : at + 1]])
        elif what == "cut":
            del data[at:]
        elif what == "insert":
            data[at:at] = some
        elif what == "drop":
            del data[at : at + size]
        elif what == "double":
            data[at:at] = data[at : at + size]
        elif what == "swap":
            data[at : at + 2 * size] = data[at + size : at + 2 * size] + data[at : at + size]
        else:
            data[at : at + len(some)] = (b"\0" if what == "zero" else b"\xff") * len(some)
    return bytes(data)


@contextlib.contextmanager
def in_time(seconds=20):
    def stop(*_):
        raise AssertionError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def refusal(read, *words):
    """What `read` says in refusing its file; None where it takes it. Anything but an InputError of one line fails."""
    with in_time():
        try:
            read(*words)
        except InputError as error:
            assert str(error).isprintable() and 0 < len(str(error)) < 2100
            return str(error)
    return None


def refused(match, read, *words):
    said = refusal(read, *words)
    assert said is not None and match in said, said


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return timm.create_model("convnextv2_atto", num_classes=3, **BODY)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_network("resnet10t", "fcn", 3, channels=4, backbone_kwargs={"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8)})


def legacy(tensors, path):
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


def zipped(tensors, path):
    torch.save(tensors, inner := io.BytesIO())
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../w.pth", inner.getvalue())


WRITERS = {
    "w.safetensors": save_file,
    "new.pth": torch.save,
    "old.pth": legacy,
    "namespace.pth": lambda tensors, path: torch.save({"model": tensors, "args": argparse.Namespace(a=1)}, path),
    "w.zip": zipped,
}


def untouched(loading, model, *words):
    """`refusal` of `loading`, and after it, that the weights are as before, to the bit; otherwise they are put back."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if said := refusal(loading, model, *words):
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.load_state_dict(before)
    return said


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("kind", ["model", "network"])
def test_mutated_weights(request, tmp_path, kind, name):
    model = request.getfixturevalue(kind)
    loading = load_weights if kind == "model" else load_segmentation_weights
    path, seen = tmp_path / name, set()
    WRITERS[name](model.state_dict(), path)
    assert refusal(loading, model, path) is None
    data = path.read_bytes()

    @fuzz(25)
    def mutate(edits):
        path.write_bytes(mutated(data, edits))
        seen.add(untouched(loading, model, path) is None)

    mutate()
    # bytes of the header are few: mutate that of safetensors, and the pickle, on their own
    head = slice(0, 8 + struct.unpack("<Q", data[:8])[0]) if name == "w.safetensors" else slice(0, 3000)

    @fuzz(25)
    def mutate_head(edits):
        path.write_bytes(mutated(data[head], edits) + data[head.stop :])
        seen.add(untouched(loading, model, path) is None)

    mutate_head()
    assert False in seen


@pytest.mark.parametrize("saver", [torch.save, legacy])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda trap: trap,
        lambda trap: {"model": trap},
        lambda trap: {"state_dict": {"a": torch.ones(1), "b": trap}},
        lambda trap: {"model": {"a": torch.ones(1)}, "args": argparse.Namespace(a=trap)},
        lambda trap: {"model": {"a": torch.ones(1)}, "optimizer": {"state": [trap]}},
    ],
)
@pytest.mark.parametrize(
    "call",
    [
        (os.system, "touch {}"),
        (eval, "open('{}', 'w')"),
        (exec, "open('{}', 'w')"),
        (torch.hub.download_url_to_file, "file:///etc/hostname", "{}"),
        (open, "{}", "w"),
        (getattr, torch, "load"),
    ],
    ids=lambda call: call[0].__name__,
)
def test_pickled_code_is_not_run(model, tmp_path, call, wrap, saver):
    marker = tmp_path / "ran"
    words = [word.format(marker) if isinstance(word, str) else word for word in call[1:]]
    words = ["torch" if word is torch else word for word in words]
    saver(wrap(Trap(call[0], *words)), tmp_path / "w.pth")
    untouched(load_weights, model, tmp_path / "w.pth")
    refused("nothing of it was run", read_tensors, tmp_path / "w.pth")
    (tmp_path / "run").mkdir()
    shutil.copy(tmp_path / "w.pth", tmp_path / "run" / "model.safetensors")
    refused("not a weights file", read_tensors, tmp_path / "run")
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["model", "network"])
@pytest.mark.parametrize(
    "change, match",
    [
        (lambda t: t.flatten()[:1], "of another shape"),
        (lambda t: t.new_zeros(()).expand(10**6, 10**6), "of another shape"),
        (lambda t: t.new_zeros((0, *t.shape[1:])), "of another shape"),
        (lambda t: t.to(torch.complex64), "of another type (torch.complex64)"),
        (lambda t: t.to(torch.int64), "of another type (torch.int64)"),
        (lambda t: t.to(torch.bool), "of another type (torch.bool)"),
        (lambda t: t.to_sparse(), "no plain tensor"),
        (lambda t: t.to("meta"), "no plain tensor"),
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.quint8), "no plain tensor"),
        (lambda t: 3, "expected tensors by name"),
    ],
)
def test_tensors_that_do_not_fit_leave_the_model_alone(request, tmp_path, kind, change, match):
    model = request.getfixturevalue(kind)
    tensors = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()}
    name = [name for name, tensor in tensors.items() if tensor.ndim == 4 and "head" not in name][-1]
    tensors[name] = change(tensors[name])
    torch.save(tensors, tmp_path / "w.pth")
    loading = load_weights if kind == "model" else load_segmentation_weights
    assert match in (untouched(loading, model, tmp_path / "w.pth") or "")


@pytest.mark.parametrize("names", [[3], [("a", "b")], [None], ["a\nb\x1b[2J\udcff"], ["x" * 10**6], [f"module.{'9' * 5000}"]])
def test_odd_names_of_tensors(model, tmp_path, names):
    torch.save({name: torch.ones(1) for name in names}, tmp_path / "w.pth")
    assert untouched(load_weights, model, tmp_path / "w.pth")
    assert untouched(load_weights, model, tmp_path / ("x" * 5000))
    assert untouched(load_weights, model, "a\0b")


def test_hostile_lengths_and_archives(model, tmp_path):
    def safetensors(header):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + bytes(64)

    one = {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}
    for number, data in enumerate(
        [
            struct.pack("<Q", 2**63) + bytes(100),
            safetensors({"a": one | {"shape": [2**40, 2**40]}}),
            safetensors({"a": one | {"data_offsets": [0, 2**60]}}),
            safetensors({"a": one | {"shape": [-4]}}),
            safetensors({"a": one, "b": one}),
            safetensors(b"[" * 100_000),
        ]
    ):
        (tmp_path / f"{number}.safetensors").write_bytes(data)
        assert untouched(load_weights, model, tmp_path / f"{number}.safetensors")

    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.pth", bytes(1 << 27))
    refused("which no weights do", read_tensors, tmp_path / "bomb.zip")
    os.mkfifo(tmp_path / "pipe.pth")
    refused("no such file", read_tensors, tmp_path / "pipe.pth")


# --- configs ----------------------------------------------------------------------------------------------------------

HOSTILE_VALUES = (
    None,
    True,
    -1,
    0,
    1.5,
    10**12,
    float("nan"),
    float("inf"),
    "",
    "x\ny",
    "../..",
    [],
    [[]],
    {},
    {"a": 1},
    [10**9] * 9,
)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, network):
    folder = tmp_path_factory.mktemp("run")
    body = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}
    settings = {
        "backbone": "resnet10t", "head": "fcn", "classes": 3, "output_stride": None, "channels": 4, "dropout": 0.1,
        "aux": False, "aux_channels": None, "se_loss": False, "lateral": False, "codewords": None, "with_global": False,
        "atrous_rates": None, "backbone_kwargs": body,
    }  # fmt: skip
    config = {
        "network": settings, "classes": ["a", "b", "c"], "palette": [[0, 0, 0], [1, 2, 3], [255, 0, 0]], "crop_size": 32,
        "base_size": 32, "transforms": "none", "mean": [0, 0, 0], "std": [1, 1, 1],
    }  # fmt: skip
    save_file(network.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def config(run_folder):
    text = (run_folder / "config.json").read_text()
    yield json.loads(text)
    (run_folder / "config.json").write_text(text)


def test_a_run_opens(run_folder, network):
    opened, config = open_network(run_folder)
    assert config["classes"] == ["a", "b", "c"] and not opened.training
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in opened.state_dict().items())


@pytest.mark.parametrize(
    "backbone",
    ["hf-hub:timm/resnet18", "hf_hub:a/b", "local-dir:.", "LOCAL-DIR:.", "../resnet18", "/etc", "resnet18.tag/../x",
     "resnet18.nothing", "timm/resnet18", "", "resnet18\0", "x" * 10**6],
)  # fmt: skip
def test_no_backbone_of_a_config_is_looked_for_elsewhere(run_folder, config, monkeypatch, backbone):
    monkeypatch.setattr("timm.models._factory.load_model_config_from_hf", lambda *a, **k: pytest.fail("asked the Hub"))
    monkeypatch.setattr("timm.models._factory.load_model_config_from_path", lambda *a, **k: pytest.fail("read a folder"))
    config["network"]["backbone"] = backbone
    (run_folder / "config.json").write_text(json.dumps(config))
    refused("backbone", open_network, run_folder)


@pytest.mark.parametrize(
    "option",
    [
        {"checkpoint_path": "w.pth"}, {"pretrained": True}, {"pretrained_cfg": {"file": "w.pth"}}, {"cache_dir": "/tmp"},
        {"pretrained_cfg_overlay": {"url": "http://127.0.0.1/"}}, {"pretrained_cfg": "a1_in1k"}, {"features_only": False},
        {"out_indices": [0]}, {"feature_cls": "fx"}, {"pretrained_filter_fn": "x"}, {"pretrained_model_args": {}},
        {"layers": [10**9, 1, 1, 1]}, {"layers": -1}, {"layers": [[[]]]}, {"channels": [10**4] * 4}, {"nothing": 1},
        {"in_chans": -3}, {"layers": float("nan")},
    ],
    ids=lambda option: str(next(iter(option))),
)  # fmt: skip
def test_options_that_would_load_something(run_folder, config, monkeypatch, tmp_path, option):
    monkeypatch.setattr(timm.models._factory, "load_checkpoint", lambda *words, **k: pytest.fail("read a checkpoint"))
    monkeypatch.setattr(timm.models._builder, "load_pretrained", lambda *words, **k: pytest.fail("read weights"))
    config["network"]["backbone_kwargs"] |= option
    (run_folder / "config.json").write_text(json.dumps(config))
    assert refusal(open_network, run_folder)
    with torch.device("meta"):
        assert refusal(lambda: build_model("resnet10t", ["a", "b"], model_kwargs=option))
        assert refusal(lambda: build_network("resnet10t", "fcn", 3, backbone_kwargs=option))


def test_configs_with_any_value_anywhere(run_folder, config):
    places = [(config, key) for key in config] + [(config["network"], key) for key in config["network"]]
    body = config["network"]["backbone_kwargs"]
    places += [(body, "layers"), (body["layers"], 0), (config["classes"], 0), (config["palette"], 1), (config["palette"][1], 0)]
    for where, key in places:
        before = where[key]
        for value in HOSTILE_VALUES:
            where[key] = value
            (run_folder / "config.json").write_text(json.dumps(config))
            said = refusal(read_config, run_folder)
            if not said and where is not config:
                refusal(open_network, run_folder)
        where.pop(key)
        (run_folder / "config.json").write_text(json.dumps(config))
        refusal(open_network, run_folder)
        if isinstance(where, list):
            where.insert(key, before)
        else:
            where[key] = before


def test_mutated_configs(run_folder, config):
    text = json.dumps(config).encode()

    @fuzz(150)
    def mutate(edits):
        (run_folder / "config.json").write_bytes(mutated(text, edits))
        refusal(open_network, run_folder)

    mutate()
    for odd in (b"[" * 100_000, b"\xff\xfe", b"9" * 100_000, b'{"network": ' + b"9" * 5000 + b"}", b" " * (1 << 25)):
        (run_folder / "config.json").write_bytes(odd)
        assert refusal(open_network, run_folder)


def test_a_network_larger_than_its_weights_is_not_built(run_folder, config, monkeypatch):
    config["network"] |= {"head": "upernet", "channels": 16_384}  # tens of gigabytes
    (run_folder / "config.json").write_text(json.dumps(config))
    refused("do not fit", open_network, run_folder)


def test_a_network_of_which_the_file_has_only_a_part_is_not_built(run_folder, config, network, tmp_path):
    config["network"] |= {"channels": 16_384}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(network.backbone.state_dict(), tmp_path / "model.safetensors")
    refused("not those of the network", open_network, tmp_path)


# --- tables -----------------------------------------------------------------------------------------------------------


def png(value=0):
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(out := io.BytesIO(), "PNG")
    return out.getvalue()


def parquet(rows):
    pq.write_table(pa.table(rows), out := io.BytesIO())
    return out.getvalue()


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A folder with x.parquet, beside it secret.parquet and secret.png."""
    import datasets

    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "table"
    folder.mkdir()
    for path in (folder / "x.parquet", tmp_path / "secret.parquet"):
        path.write_bytes(parquet({"image": [png()] * 4, "label": [0, 1, 0, 1]}))
    (tmp_path / "secret.png").write_bytes(png(9))
    return folder


def split(folder):
    return load_splits(str(folder), val_split=0.5)[0]["train"]


@pytest.mark.parametrize("file", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize(
    "files, match",
    [
        ("data_files: ../secret.parquet", "outside of it"),
        ("data_files: [x.parquet, ../secret.parquet]", "outside of it"),
        ("data_files: [{split: train, path: [HERE/../secret.parquet]}]", "outside of it"),
        ("data_files: http://127.0.0.1:9/x.parquet", "outside of it"),
        ("data_files: 'zip://x.parquet::../secret.parquet'", "outside of it"),
        ("data_files: ~/x.parquet", "outside of it"),
        ("data_dir: ..", "outside of it"),
        ("data_files: {a: b}", "cannot load it"),
        ("data_files: 3", "cannot load it"),
        ("features: [1]", "cannot load it"),
        ("data_files: !!python/object/apply:os.system ['touch HERE/ran']", "cannot load it"),
    ],
)
def test_cards_that_lead_elsewhere(table, file, files, match):
    text = "configs:\n- config_name: default\n  " + files.replace("HERE", str(table)) + "\n"
    (table / file).write_text(f"---\n{text}---\n" if file == "README.md" else text)
    refused(match, split, table)
    assert not (table / "ran").exists()


def test_a_card_within_the_folder_is_followed(table):
    (table / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: x*.parquet\n---\n")
    assert len(split(table)) == 4


def test_scripts_and_links_of_a_data_set(table, tmp_path):
    (table / "table.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    refusal(split, table)
    assert not (tmp_path / "ran").exists()
    (table / "table.py").unlink()
    (table / "y.parquet").symlink_to(tmp_path / "secret.parquet")
    refused("outside of it", split, table)
    (table / "y.parquet").unlink()
    (table / "below").symlink_to(tmp_path)
    refusal(split, table)


def test_imagefolder_with_paths_that_lead_elsewhere(tmp_path, table):
    folder = tmp_path / "images"
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "x.png").write_bytes(png())
    for name in (
        "../../secret.png",
        "../secret.png",
        str(tmp_path / "secret.png"),
        "/etc/hostname",
        "http://127.0.0.1:9/x.png",
    ):
        (folder / "train" / "metadata.csv").write_text(f"file_name,label\nx.png,0\n{name},1\n")
        if refusal(split, folder) is None:
            import datasets

            rows = split(folder).cast_column("image", datasets.Image(decode=False))
            assert refusal(lambda rows=rows: [encoded_image(row["image"], str(folder), "row") for row in rows])


def test_saved_data_sets_that_lead_elsewhere(table, tmp_path):
    saved = tmp_path / "saved"
    split(table).save_to_disk(saved)
    assert len(split(saved)) == 4
    state = json.loads((saved / "state.json").read_text())
    inside = saved / state["_data_files"][0]["filename"]
    shutil.copy(inside, tmp_path / "out.arrow")
    for name in ("../out.arrow", str(tmp_path / "out.arrow"), 3, None):
        (saved / "state.json").write_text(json.dumps(state | {"_data_files": [{"filename": name}]}))
        assert refusal(split, saved)
    (saved / "state.json").write_text(json.dumps(state))
    inside.unlink()
    inside.symlink_to(tmp_path / "out.arrow")
    refused("outside of it", split, saved)
    (tmp_path / "dict").mkdir()
    (tmp_path / "dict" / "dataset_dict.json").write_text(json.dumps({"splits": ["../saved"]}))
    refused("outside of it", split, tmp_path / "dict")


@pytest.mark.parametrize(
    "value",
    [None, {}, 3, {"path": 3}, {"path": "/etc/hostname"}, {"path": "../secret.png"}, {"path": "http://127.0.0.1:9/x.png"},
     {"path": "file:///etc/hostname"}, {"path": "zip://x.png::/etc/hostname"}, {"path": "zip://x.png::../secret.zip"},
     {"path": "zip://none.png::in.zip"}, {"path": "zip://bomb.png::in.zip"}, {"path": "a\0b"}, {"path": ""}, {"path": "."},
     {"path": "x" * 9999}, {"path": "link.png"}, {"path": "pipe.png"}, {"path": "none\n.png"}, {"bytes": "text", "path": None},
     {"path": "hf://datasets/a/b@main/x.png"}, {"path": "zip://x.png::none.zip"}, {"path": "zip://x.png::x.png"}],
)  # fmt: skip
def test_encoded_images_stay_in_the_data_set(table, tmp_path, value):
    (table / "x.png").write_bytes(png(5))
    (table / "link.png").symlink_to(tmp_path / "secret.png")
    os.mkfifo(table / "pipe.png")
    with zipfile.ZipFile(table / "in.zip", "w") as archive:
        archive.writestr("x.png", png(6))
        archive.writestr("bomb.png", b"small")
    data = bytearray((table / "in.zip").read_bytes())
    at = data.rindex(b"PK\1\2")  # the record of bomb.png: its size unpacked
    data[at + 24 : at + 28] = struct.pack("<I", 2**31)
    (table / "in.zip").write_bytes(data)
    assert refusal(encoded_image, value, str(table), "row 3")
    for root in (str(table), str(tmp_path)):
        path = os.path.relpath(table / "x.png", root)
        assert encoded_image({"path": path, "bytes": None}, root, "row 3") == png(5)
    assert encoded_image({"path": f"zip://x.png::{table / 'in.zip'}"}, str(table), "row 3") == png(6)
    assert encoded_image({"path": "/etc/hostname", "bytes": b"abc"}, str(table), "row 3") == b"abc"
    refused("outside of the data set", encoded_image, {"path": str(table / "x.png")}, None, "row 3")


def test_mutated_tables(table):
    data = (table / "x.parquet").read_bytes()

    @fuzz(12)
    def mutate(edits):
        (table / "x.parquet").write_bytes(mutated(data, edits))
        refusal(split, table)

    mutate()


# --- recipes ----------------------------------------------------------------------------------------------------------


def parse(path):
    """The words of the recipe; where it is refused, as InputError what the command line would show."""

    def error(message):
        raise InputError(message)

    return expand_recipes([f"@{path}"], error)


@pytest.mark.parametrize(
    "text",
    [b"\xff\xfe\0", b"--lr 'a", b'--lr "', b"--lr \\", b"x" * 10**7, b"@r.args", b"@r.args " * 1000, b"@/dev/zero", b"@pipe",
     b"@.", b"@a\nb\x1b[2J", b"@many", b"@" + b"x" * 5000],
)  # fmt: skip
def test_hostile_recipes(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.args").write_bytes(text)
    os.mkfifo("pipe")
    for level in range(6):  # 10 to the 6th files
        pathlib.Path(f"many{level or ''}").write_text(f"@many{level + 1} " * 10)
    pathlib.Path("many6").write_text("")
    assert refusal(parse, "r.args")


def test_mutated_recipes(tmp_path):
    text = (pathlib.Path(__file__).parent.parent / "recipes/recognition/convnextv2_base_ft_in1k.args").read_bytes()

    @fuzz(150)
    def mutate(edits):
        (tmp_path / "r.args").write_bytes(mutated(text, edits))
        refusal(parse, tmp_path / "r.args")

    mutate()


@pytest.mark.parametrize("value", ["(" * 50_000, "[" * 200, "{[]: 1}", "9" * 9999, "-" * 9999 + "1", "\0", "__import__('os')"])
def test_values_of_options_are_literals_or_text(value):
    with in_time():
        assert key_value(f"depths={value}") == ("depths", value)


def test_no_message_breaks_its_line_or_steers_the_terminal(capsys):
    assert str(InputError("a\nb\r\x1b[2J\u202e\udcff\x85c")) == "a\\nb\\r\\x1b[2J\\u202e\\udcff\\x85c"
    assert str(InputError("Zoë/猫 🐈.jpg: no image")) == "Zoë/猫 🐈.jpg: no image"
    with pytest.raises(SystemExit):
        Parser(prog="x").parse_args(["--a\nb"])
    assert capsys.readouterr().err == "x: error: unknown flag --a\\nb\n"


class Raising(torch.utils.data.Dataset):
    def __getitem__(self, index):
        raise InputError("row\n3 is no image")

    def __len__(self):
        return 1


def test_errors_of_loader_workers_are_one_line_too():
    with pytest.raises(InputError) as error:
        list(torch.utils.data.DataLoader(Raising(), num_workers=1))
    assert str(error.value) == "row\\n3 is no image"


# --- masks and shapes -------------------------------------------------------------------------------------------------


def mat(path):
    from scipy.io import savemat

    savemat(path, {"GTcls": {"Segmentation": np.arange(64, dtype=np.uint8).reshape(8, 8)}}, do_compression=True)


def picture(mode):
    def save(path):
        Image.fromarray((np.arange(256).reshape(16, 16) % 7).astype(np.uint8)).convert(mode).save(path)

    return save


MASKS = {"m.png": picture("L"), "p.png": picture("P"), "one.png": picture("1"), "m.tif": picture("L"), "m.gif": picture("P"),
         "m.webp": picture("RGB"), "m.jpg": picture("L"), "m.bmp": picture("L"), "m.mat": mat}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MASKS)
def test_mutated_masks(tmp_path, name):
    path = tmp_path / name
    MASKS[name](path)
    assert read_values(str(path)).ndim == 2 or name == "m.webp"
    data = path.read_bytes()

    @fuzz(60)
    def mutate(edits):
        path.write_bytes(mutated(data, edits))
        if refusal(read_values, str(path)) is None:
            values = read_values(str(path))
            assert values.ndim == 2 and values.dtype in (np.uint8, np.uint16)

    mutate()


@pytest.mark.parametrize(
    "content",
    [{"GTcls": 3}, {"x": 1}, {"GTcls": {"Segmentation": "text"}}, {"GTcls": {"Segmentation": 300.0}},
     {"GTcls": {"Segmentation": np.full((4, 4), 300)}}, {"GTcls": {"Segmentation": np.zeros((2, 2, 2), np.uint8)}}],
)  # fmt: skip
def test_mat_files_that_hold_no_mask(tmp_path, content):
    from scipy.io import savemat

    savemat(tmp_path / "m.mat", content)
    refused("m.mat", read_values, str(tmp_path / "m.mat"))


def test_masks_that_are_no_files_or_bombs(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe.png", "folder.png", "none.png", "a\0.png", "x" * 5000):
        refused("is no file", read_values, str(tmp_path / name))
    picture("L")(tmp_path / "m.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 16)
    refused("decompression bomb", read_values, str(tmp_path / "m.png"))


@pytest.mark.parametrize("name", ["x.eps", "x.png", "x.jpg"])
def test_postscript_is_not_run(tmp_path, monkeypatch, name):
    from PIL import EpsImagePlugin

    from utils.images import is_image, read_image

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *words, **kwargs: pytest.fail("ran Ghostscript"))
    (tmp_path / name).write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(ran) (w) file\n%%EOF\n")
    assert refusal(read_image, str(tmp_path / name)) and refusal(read_values, str(tmp_path / name))
    assert not is_image("x.eps") and is_image("x.PNG")


SQUARE = [1, 1, 3, 1, 3, 3, 1, 3]


@pytest.mark.parametrize(
    "height, width, segmentation",
    [
        (10**6, 10**6, []), (-1, 4, []), (0, 4, []), ("4", 4, []), (4.0, 4, []), (None, 4, []), (True, [], []),
        (4, 4, [[float("nan")] * 6]), (4, 4, [[float("inf"), 1, 2, 3, 4, 5]]), (4, 4, [[1e300] * 6]), (4, 4, [[]]),
        (4, 4, [SQUARE[:-1]]), (4, 4, ["text"]), (4, 4, 3), (4, 4, None), (4, 4, [[[1, 2], [3, 4]], 3]),
        (4000, 4000, [[0, 0, 1, 4000] * 100_000]), (4, 4, {}), (4, 4, {"counts": []}), (4, 4, {"counts": [10**12]}),
        (4, 4, {"counts": [2**63, 2**63 + 16]}), (4, 4, {"counts": [-4, 20]}), (4, 4, {"counts": [16.0]}),
        (4, 4, {"counts": [10**30]}), (4, 4, {"counts": ["16"]}), (4, 4, {"counts": None}), (4, 4, {"counts": "o" * 10**6}),
        (4, 4, {"counts": "\udcff\n"}), (4, 4, {"counts": "0" * 10**6}), (4, 4, {"counts": {"a": 1}}),
    ],
)  # fmt: skip
def test_shapes_that_cannot_be_drawn(height, width, segmentation):
    assert refusal(draw_instances, height, width, [[1, segmentation]], "x.jpg")


def test_mutated_shapes():
    packed = {"size": [4, 4], "counts": "4450"}
    record = json.dumps([4, 4, [[1, [SQUARE]], [2, packed], [3, {"size": [4, 4], "counts": [2, 4, 10]}]]]).encode()

    @fuzz(300)
    def mutate(edits):
        with contextlib.suppress(ValueError):  # json's own errors are the reader's of the whole file
            changed = json.loads(mutated(record, edits))
            if isinstance(changed, list) and len(changed) == 3:
                refusal(draw_instances, *changed, "x.jpg")

    mutate()
    assert draw_instances(4, 4, [[1, [SQUARE]]], "x.jpg").sum() == 4


# --- folders and lists ------------------------------------------------------------------------------------------------


@pytest.fixture
def coco_root(tmp_path):
    """COCO's layout with one image in each split, and an image beside it."""
    images = [{"id": 1, "file_name": "x.png", "height": 40, "width": 40}]
    shape = {"id": 5, "image_id": 1, "category_id": 5, "segmentation": [[0, 0, 40, 0, 40, 40, 0, 40]], "area": 1600}
    (tmp_path / "annotations").mkdir()
    for part in ("train", "val"):
        (tmp_path / f"{part}2017").mkdir()
        Image.new("RGB", (40, 40)).save(tmp_path / f"{part}2017" / "x.png")
        text = json.dumps({"images": images, "annotations": [shape]})
        (tmp_path / "annotations" / f"instances_{part}2017.json").write_text(text)
    Image.new("RGB", (40, 40)).save(tmp_path / "x.png")
    return tmp_path


def read_coco(root):
    for source in open_data("coco", str(root)):
        for index in range(len(source)):
            source.read(index)


def test_instances_with_any_value_anywhere(coco_root):
    file = coco_root / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    read_coco(coco_root)
    places = [(content, "images"), (content, "annotations"), *((content[key], 0) for key in ("images", "annotations"))]
    places += [(content[key][0], name) for key in ("images", "annotations") for name in content[key][0]]
    for where, key in places:
        before = where[key]
        for value in (*HOSTILE_VALUES, "../x.png", "../val2017/x.png", str(coco_root / "x.png"), "x.png\0"):
            where[key] = value
            file.write_text(json.dumps(content))
            assert refusal(read_coco, coco_root) or (key in ("id", "area", "image_id", "category_id") or value is True)
        where[key] = before
    for odd in (b"[" * 100_000, b"\xff\xfe\0", b"", b"3"):
        file.write_bytes(odd)
        refused("instances_train2017.json", read_coco, coco_root)


def test_mutated_instances(coco_root):
    file = coco_root / "annotations" / "instances_train2017.json"
    text = file.read_bytes()

    @fuzz(150)
    def mutate(edits):
        file.write_bytes(mutated(text, edits))
        refusal(read_coco, coco_root)

    mutate()


@pytest.mark.parametrize(
    "lines",
    [b"../../x", b"/etc/hostname", b"../SegmentationClass/x", b"\xff\xfe", b"\0", b"x\x1b[2J", b"..", b"x" * 10**6],
)
def test_lists_that_lead_elsewhere(tmp_path, lines):
    base = tmp_path / "VOCdevkit" / "VOC2012"
    for below in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (base / below).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(base / "JPEGImages" / "x.jpg")
    Image.new("L", (8, 8)).save(base / "SegmentationClass" / "x.png")
    Image.new("L", (8, 8)).save(base / "x.png")
    for name in ("train", "val"):
        (base / "ImageSets" / "Segmentation" / f"{name}.txt").write_bytes(b"x\n" + lines)
    said = refusal(open_data, "pascal_voc", str(tmp_path))
    if said is None:  # the last part of a path is the name, as in PyTorch-Encoding's lists; it is one in the folder
        assert [open_data("pascal_voc", str(tmp_path))[0].name(0)] == [str(base / "JPEGImages" / "x.jpg")]


@pytest.mark.parametrize("text", [b"", b"sky\n", b"\xff\xfe", b"a\n" * 70_000])
def test_hostile_lists_of_classes(tmp_path, text):
    pairs(tmp_path)
    (tmp_path / "classes.txt").write_bytes(text)
    refused("classes.txt", segmentation_folder, str(tmp_path))
    (tmp_path / "classes.txt").write_bytes(b"a\x1b[2J\nb")
    assert segmentation_folder(str(tmp_path))[0].classes == ["a\\x1b[2J", "b"]


def pairs(root):
    for split in ("train", "val"):
        for kind, mode in (("images", "RGB"), ("masks", "L")):
            (root / kind / split).mkdir(parents=True)
            Image.new(mode, (8, 8), 1).save(root / kind / split / "x.png")


def test_links_in_a_circle_are_left(tmp_path):
    pairs(tmp_path)
    (tmp_path / "classes.txt").write_text("a\nb")
    for name in ("one", "two", "three"):
        for kind in ("images", "masks"):
            (tmp_path / kind / "train" / name).symlink_to(tmp_path / kind / "train")
        (tmp_path / "images" / name).symlink_to(tmp_path / "images")
    with in_time():
        assert len(segmentation_folder(str(tmp_path))[0]) == 1
        assert len(scan_folder(tmp_path / "images").labels) >= 1


def test_names_of_files_do_not_break_a_line(tmp_path):
    (tmp_path / "a\nb").mkdir()
    for name in ("c\x1b[2J.png", "d\udcff.png", "'e\"; rm .png"):
        path = tmp_path / "a\nb" / name
        path.write_bytes(b"no image")
        refused("is no image", scan_folder(tmp_path).read, 0)
        path.unlink()


@pytest.mark.parametrize("labels", [[10**12] * 4, [-1] * 4, [0.5] * 4, [[1]] * 4, [None] * 4, [{"a": 1}] * 4, [b"x"] * 4])
def test_hostile_labels(table, labels):
    (table / "x.parquet").write_bytes(parquet({"image": [png()] * 4, "label": labels}))
    refused("label", lambda: hub_table(str(table), label_column="label", val_split=0.5))


@pytest.mark.parametrize("images", [[3] * 4, ["/etc/hostname"] * 4, [{"path": "../secret.png"}] * 4, [[b"x"]] * 4, [None] * 4,
                                    [b""] * 4, [b"\x89PNG\r\n\x1a\n"] * 4])  # fmt: skip
def test_hostile_image_columns(table, images):
    (table / "x.parquet").write_bytes(parquet({"image": images, "label": [0, 1, 0, 1]}))
    assert refusal(lambda: hub_table(str(table), image_column="image", val_split=0.5)[0].read(0))
    (table / "x.parquet").write_bytes(parquet({"image": [png()] * 4, "mask": images}))
    assert refusal(lambda: masks_table(str(table), image_column="image", mask_column="mask", val_split=0.5)[0].read(0))


# --- states and run folders -------------------------------------------------------------------------------------------


def bits(tree):
    """Dicts and lists of tensors as something that == compares, to the bit."""
    if isinstance(tree, dict):
        return {key: bits(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [bits(value) for value in tree]
    return (tree.dtype, tree.shape, tree.numpy().tobytes()) if torch.is_tensor(tree) else tree


class Run:
    """A model, its average and an optimizer with moments, and a state of them."""

    def __init__(self, folder):
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
        self.ema = EMA(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.step()
        state = {**run_state.new_state("one"), "settings": {"a": 1}, "scaler": None, "update": 1, "best": {"test_acc1": 3.5}}
        weights = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.path = checkpoint.save_state(folder, 1, weights, self.optimizer.state_dict(), self.ema.state_dict(), state, 3)
        self.files = {path.name: path.read_bytes() for path in self.path.iterdir()}
        self.step()
        self.before = bits(self.held())
        self.saved = copy.deepcopy(self.held())

    def step(self):
        for parameter in self.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        self.optimizer.step()

    def held(self):
        return self.model.state_dict(), self.ema.state_dict(), self.optimizer.state_dict()

    def load(self):
        accelerator = types.SimpleNamespace(scaler=None)
        optimizer = types.SimpleNamespace(optimizer=self.optimizer)
        run_state.load(self.path, accelerator, self.model, optimizer, self.ema, {"a": 1}, "one", lambda line: None)

    def refusal(self, with_checksums=True, **files):
        """`refusal` of the state with other `files`, after which nothing may have changed; what it takes must train on."""
        for name, data in {**self.files, **files}.items():
            (self.path / name).write_bytes(data)
        if with_checksums:
            names = [name for name in self.files if name != "manifest.json"]
            sums = {name: (self.path / name).read_bytes() for name in names}
            sums = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in sums.items()}
            (self.path / "manifest.json").write_text(json.dumps(sums))
        said = refusal(self.load)
        if said:
            assert bits(self.held()) == self.before
        else:
            self.step()
            self.model.load_state_dict(self.saved[0])
            self.ema.load_state_dict(self.saved[1])
            self.optimizer.load_state_dict(copy.deepcopy(self.saved[2]))
            self.before = bits(self.held())
        return said


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    return Run(tmp_path_factory.mktemp("state"))


def test_a_state_loads(state):
    assert state.refusal() is None


@pytest.mark.parametrize("checksums", [True, False])
@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "optimizer.pt", "state.json", "manifest.json"])
def test_mutated_states(state, name, checksums):
    @fuzz(40)
    def mutate(edits):
        data = mutated(state.files[name], edits)
        said = state.refusal(checksums, **{name: data})
        assert said or checksums or data == state.files[name] or name == "manifest.json"

    mutate()


def saved_tensors(tensors):
    save_file(tensors, "w")
    return pathlib.Path("w").read_bytes()


def saved_pickle(content):
    torch.save(content, out := io.BytesIO())
    return out.getvalue()


def test_states_of_other_shapes(state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    right = state.saved[0]
    last = list(right)[-2]  # after all others were put in, if they were put in one by one
    for change in (
        {last: torch.ones(7)}, {last: torch.ones(2, dtype=torch.int64)}, {last: torch.ones(1, 2)}, {"more": torch.ones(1)},
    ):  # fmt: skip
        for name in ("model.safetensors", "ema.safetensors"):
            assert "does not fit" in state.refusal(**{name: saved_tensors(right | change)})
    for name in ("model.safetensors", "ema.safetensors"):
        assert "missing 1" in state.refusal(**{name: saved_tensors({n: t for n, t in right.items() if n != last})})


def test_states_with_any_value_anywhere(state, tmp_path):
    content = json.loads(state.files["state.json"])
    places = [(content, key) for key in content] + [(content["best"], "test_acc1"), (content["settings"], "a")]
    for where, key in places:
        before = where[key]
        for value in (*HOSTILE_VALUES, ["x"], [1.5], {"a": "x"}):
            where[key] = value
            state.refusal(**{"state.json": json.dumps(content).encode()})
        del where[key]
        said = state.refusal(**{"state.json": json.dumps(content).encode()})
        assert said or where is not content
        where[key] = before
    for odd in (b"3", b"[]", b"null", b"[" * 100_000, b"\xff\xfe"):
        assert state.refusal(**{"state.json": odd})


def test_hostile_optimizers(state, tmp_path):
    def with_change(change):
        content = copy.deepcopy(state.saved[2])
        change(content)
        return saved_pickle(content)

    def group(**options):
        return lambda content: content["param_groups"][0].update(options)

    def moment(number, **values):
        return lambda content: content["state"].update({number: content["state"].get(number, {}) | values})

    for change in (
        group(lr="x"), group(lr=float("nan")), group(lr=[1]), group(betas=(0.9,)), group(betas="ab"), group(params=[0]),
        group(params=[3, 2, 1, 0]), group(eps="x"), group(weight_decay={}),
        moment(0, exp_avg=torch.ones(7)),
        moment(0, exp_avg=3), moment(99, exp_avg=torch.ones(2)), moment("a", exp_avg=torch.ones(2)),
        moment(0, exp_avg_sq=torch.ones(2, 3).to_sparse()), moment(0, exp_avg=torch.ones(2, 3, device="meta")),
        lambda content: content["param_groups"].append({}), lambda content: content.pop("state"),
        lambda content: content.update(param_groups=3), lambda content: content.update(state=[1]),
        lambda content: content["state"].update({0: 3}), moment(0, step="x"), moment(0, step=torch.ones(5)),
        moment(0, exp_avg=torch.ones(2, 3, dtype=torch.complex64)),
    ):  # fmt: skip
        assert state.refusal(**{"optimizer.pt": with_change(change)})
    assert state.refusal(**{"optimizer.pt": saved_pickle([1, 2])})
    assert "not run" in state.refusal(**{"optimizer.pt": saved_pickle({"state": Trap(os.system, f"touch {tmp_path}/ran")})})
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/hostname", "../update_00000001/state.json", "..", "", "x\n.pt", "a\0", "extra"]
)
def test_manifests_that_lead_elsewhere(state, tmp_path, name):
    there = json.loads(state.files["manifest.json"])
    entry = {"size": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    for manifest in (there | {name: entry}, {name: entry}, {**there, "state.json": {"size": True}}, [name], name, {name: None}):
        said = state.refusal(False, **{"manifest.json": json.dumps(manifest).encode()})
        assert "broken checkpoint" in said
        lines = []
        assert checkpoint.newest_state(state.path.parent, lines.append) is None and lines[0].isprintable()


def test_states_of_pipes_and_links(tmp_path):
    run = Run(tmp_path)
    (tmp_path / "out").write_bytes(run.files["state.json"])
    (run.path / "state.json").unlink()
    (run.path / "state.json").symlink_to(tmp_path / "out")
    refused("broken checkpoint", run.load)
    (run.path / "state.json").unlink()
    os.mkfifo(run.path / "state.json")
    refused("broken checkpoint", run.load)
    refused("found no manifest", checkpoint.load_state, tmp_path / ("x" * 5000))
    refused("found no manifest", checkpoint.load_state, "a\0b")


def test_mutated_logs_and_records(tmp_path):
    usual = b'{"epoch": 0, "update": 3, "loss": 1.5}\n' * 5
    (tmp_path / "checkpoints").mkdir()
    record = json.dumps({"settings": {"a": 1}, "args": {}}).encode()

    @fuzz(80)
    def mutate(edits):
        for name in ("log.txt", "updates.txt"):
            (tmp_path / name).write_bytes(mutated(usual, edits))
        log = RunLog(tmp_path)
        refusal(log.cut, 5, 10)
        for name in ("log.txt", "updates.txt"):
            assert all(isinstance(json.loads(line), dict) for line in (tmp_path / name).read_text().splitlines())
        (tmp_path / "args.json").write_bytes(mutated(record, edits))
        refusal(run_folder_of, tmp_path, "x", {"a": 1}, {})

    mutate()
    for odd in (b"[" * 100_000, b"\xff\xfe", b"null", b'{"settings": 3}', b'{"settings": {"a\\n": "\\u001b"}}'):
        (tmp_path / "args.json").write_bytes(odd)
        (tmp_path / "log.txt").write_bytes(odd)
        assert refusal(run_folder_of, tmp_path, "x", {"a": 1}, {})
        refusal(RunLog(tmp_path).cut, 5, 10)
