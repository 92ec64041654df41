"""No weights, config, table or mask runs code, leads outside its folder, hangs, or leaves a model half loaded.

Each is read, or refused in one line. Lists, labels and columns stand with the tests of their sources.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import struct
import zipfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from hostile import VALUES, Trap, fuzz, mutated, refusal, refused
from made_result import write_result
from PIL import Image
from safetensors.torch import save_file
from scipy.io import savemat

from segmentation_networks.network import build_network
from utils.data.masks import draw_instances, read_values
from utils.model.segmentation_weights import load_segmentation_weights, open_network
from utils.model.weights import load_weights, read_weights
from utils.result.export import open_result
from utils.sources.hub import load_splits
from utils.sources.hub_files import encoded_image

# --- weights ----------------------------------------------------------------------------------------------------------


def recognition():
    return load_weights, timm.create_model("convnextv2_atto", num_classes=3, depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))


def segmentation():
    body = {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8)}
    return load_segmentation_weights, build_network("resnet10t", "fcn", 3, head_kwargs={"channels": 4}, backbone_kwargs=body)


@pytest.fixture(scope="module", params=[recognition, segmentation])
def loading(request):
    """`refusal` of a file of weights; after it the weights are as before, to the bit, or else they are put back."""
    load, model = request.param()

    def loading(path):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        if said := refusal(load, model, path):
            assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        model.load_state_dict(before)
        return said

    loading.tensors = model.state_dict()
    return loading


def legacy(tensors, path):
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


def zipped(tensors, path):
    torch.save(tensors, inner := io.BytesIO())
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../w.pth", inner.getvalue())


@pytest.mark.parametrize("write", [save_file, torch.save, legacy, zipped])
def test_mutated_weights(loading, tmp_path, write):
    path, said = tmp_path / ("w.safetensors" if write is save_file else "w.pth"), set()
    write(loading.tensors, path)
    assert loading(path) is None
    data = path.read_bytes()
    head = 8 + struct.unpack("<Q", data[:8])[0] if write is save_file else 3000  # a header has few of the bytes

    @fuzz(20)
    def mutate(edits):
        for changed in (mutated(data, edits), mutated(data[:head], edits) + data[head:]):
            path.write_bytes(changed)
            said.add(loading(path))

    assert said - {None}


@pytest.mark.parametrize("write", [torch.save, legacy])
@pytest.mark.parametrize("call", [(os.system, "touch {}"), (eval, "open('{}', 'w')"), (getattr, "torch", "load")])
def test_pickled_code_is_not_run(loading, tmp_path, call, write):
    trap = Trap(call[0], *(word.format(tmp_path / "ran") for word in call[1:]))
    (tmp_path / "run").mkdir()
    for content in (trap, {"model": {}, "args": argparse.Namespace(a=trap)}, {"model": {}, "optimizer": {"state": [trap]}}):
        write(content, tmp_path / "w.pth")
        loading(tmp_path / "w.pth")
        refused("nothing of it was run", read_weights, tmp_path / "w.pth")
        shutil.copy(tmp_path / "w.pth", tmp_path / "run" / "model.safetensors")
        refused("not a weights file", read_weights, tmp_path / "run")
    assert not (tmp_path / "ran").exists()


def test_tensors_that_do_not_fit_leave_the_model_alone(loading, tmp_path):
    more = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in loading.tensors.items()}
    name = [name for name, tensor in more.items() if tensor.ndim == 4 and "head" not in name][-1]
    for change, match in (
        (lambda t: t.flatten()[:1], "of another shape"),
        (lambda t: t.new_zeros(()).expand(10**6, 10**6), "of another shape"),
        (lambda t: t.to(torch.complex64), "of another type (torch.complex64)"),
        (lambda t: t.to(torch.bool), "of another type (torch.bool)"),
        (lambda t: t.to_sparse(), "no plain tensor"),
        (lambda t: t.to("meta"), "no plain tensor"),
        (lambda t: 3, "expected tensors by name"),
    ):
        torch.save(more | {name: change(more[name])}, tmp_path / "w.pth")
        assert match in loading(tmp_path / "w.pth")


def test_odd_names_lengths_and_archives(loading, tmp_path):
    path = tmp_path / "w.pth"
    for name in (3, None, "a\nb\x1b[2J\udcff", "x" * 10**6, f"module.{'9' * 5000}"):
        torch.save({name: torch.ones(1)}, path)
        assert loading(path)
    one = {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}
    headers = [{"a": one | {"shape": [2**40, 2**40]}}, {"a": one | {"data_offsets": [0, 2**60]}}, {"a": one, "b": one}]
    for text in (*(json.dumps(header).encode() for header in headers), b"[" * 100_000):
        for length in (len(text), 2**63):
            path.with_suffix(".safetensors").write_bytes(struct.pack("<Q", length) + text + bytes(64))
            assert loading(path.with_suffix(".safetensors"))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("w.pth", bytes(1 << 27))
    assert "which no weights do" in loading(path)
    os.mkfifo(tmp_path / "pipe.pth")
    assert all(map(loading, (tmp_path / "pipe.pth", tmp_path / ("x" * 5000), "a\0b")))


# --- configs ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path):
    """The config of a run in tmp_path, beside its weights."""
    body = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}
    network = {"backbone": "resnet10t", "head": "fcn", "classes": 3, "output_stride": None, "head_kwargs": {"channels": 4},
               "aux_kwargs": None, "backbone_kwargs": body}  # fmt: skip
    save_file(segmentation()[1].state_dict(), tmp_path / "model.safetensors")
    return {"network": network, "classes": ["a", "b", "c"], "palette": [[0, 0, 0], [1, 2, 3], [255, 0, 0]], "crop_size": 32,
            "base_size": 32, "transforms": "none"}  # fmt: skip


def opening(folder, config):
    """`refusal` of the run in `folder` with this config."""
    (folder / "config.json").write_bytes(config if isinstance(config, bytes) else json.dumps(config).encode())
    return refusal(open_network, folder)


def test_a_config_has_nothing_looked_for_elsewhere(tmp_path, config, monkeypatch):
    assert opening(tmp_path, config) is None
    for place in ("_factory.load_model_config_from_hf", "_factory.load_model_config_from_path", "_factory.load_checkpoint",
                  "_builder.load_pretrained"):  # fmt: skip
        monkeypatch.setattr(f"timm.models.{place}", lambda *words, **options: pytest.fail("looked elsewhere"))
    network = config["network"]
    for name in ("hf-hub:timm/resnet18", "LOCAL-DIR:.", "../resnet18", "resnet18.nothing", "", "resnet18\0", "x" * 10**6):
        assert "backbone" in opening(tmp_path, config | {"network": network | {"backbone": name}})
    for option in (
        {"checkpoint_path": "w.pth"}, {"pretrained": True}, {"pretrained_cfg": {"file": "w.pth"}}, {"cache_dir": "/tmp"},
        {"pretrained_cfg_overlay": {"url": "http://127.0.0.1/"}}, {"features_only": False}, {"layers": [10**9, 1, 1, 1]},
        {"layers": [[[]]]}, {"channels": [10**4] * 4}, {"nothing": 1}, {"in_chans": -3}, {"layers": float("nan")},
    ):  # fmt: skip
        kwargs = {"backbone_kwargs": network["backbone_kwargs"] | option}
        assert opening(tmp_path, config | {"network": network | kwargs}), option


def test_configs_with_any_value_anywhere(tmp_path, config):
    network = config["network"]
    places = [(config, key) for key in config] + [(network, key) for key in network] + [(network["head_kwargs"], "channels")]
    places += [(network["backbone_kwargs"], "layers"), (config["classes"], 0), (config["palette"], 1)]
    places += [(config["palette"][1], 0)]
    for where, key in places:
        before = where[key]
        for value in VALUES:
            where[key] = value
            opening(tmp_path, config)
        where[key] = before

    @fuzz(100)
    def mutate(edits):
        opening(tmp_path, mutated(json.dumps(config).encode(), edits))

    for odd in (b"[" * 100_000, b"\xff\xfe", b"9" * 100_000, b'{"network": ' + b"9" * 5000 + b"}", b" " * (1 << 25)):
        assert opening(tmp_path, odd)
    network["head_kwargs"] = {"channels": 16_384}  # gigabytes, unlike its weights
    assert "do not fit" in opening(tmp_path, config)


@pytest.mark.filterwarnings("ignore:Overwriting")
def test_a_config_of_recognition_describes_the_model_of_its_weights(tmp_path, monkeypatch):
    monkeypatch.setattr("timm.models._factory.load_model_config_from_hf", lambda *_, **__: pytest.fail("looked elsewhere"))
    write_result(tmp_path, ["a", "b"])
    config = json.loads((tmp_path / "config.json").read_text())
    model, described = config["model_args"], config["pretrained_cfg"]

    def opening(config):
        (tmp_path / "config.json").write_bytes(config if isinstance(config, bytes) else json.dumps(config).encode())
        return refusal(open_result, tmp_path)

    assert opening(config) is None
    for options in (
        {"pretrained_strict": False}, {"depths": [1, 1, 200_000, 1]}, {"depths": [1, 1, 100, 1]}, {"device": "meta"},
        {"dims": [200] * 4}, {"checkpoint_path": "w.pth"}, {"pretrained_cfg": {"file": "w.pth"}}, {"dims": [-8] * 4},
        {"features_only": True}, {"dtype": "float16"}, {"depths": [[[]]]}, {"nothing": 1}, {"num_classes": 10**9},
    ):  # fmt: skip
        assert opening(config | {"model_args": model | options}), options
    for number in (0, 3, 10**6, 10**9, -1, "x", None):
        assert opening(config | {"num_classes": number}), number
    for options in ({"input_size": [3, 10**6, 10**6]}, {"std": [0, 1, 1]}, {"mean": [float("nan")] * 3}, {"crop_pct": 2}):
        assert opening(config | {"pretrained_cfg": described | options}), options
    for name in ("hf-hub:timm/resnet18", "local-dir:.", "../resnet18", "resnet18\0", "", 3):
        assert opening(config | {"architecture": name}), name
    others = {"file": "w.pth", "url": "http://127.0.0.1:9/x", "state_dict": {"a": 1}, "hf_hub_id": "timm/resnet18"}
    assert opening(config | {"pretrained_cfg": described | others}) is None  # which nobody looks at
    for odd in (b"[]", b"[" * 100_000, b"\xff\xfe", b"null"):
        assert opening(odd)

    @fuzz(40)
    def mutate(edits):
        opening(mutated(json.dumps(config).encode(), edits))


# --- tables -----------------------------------------------------------------------------------------------------------


def png(value=0):
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(out := io.BytesIO(), "PNG")
    return out.getvalue()


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A folder with x.parquet, beside it secret.parquet and secret.png."""
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "table").mkdir()
    for path in (tmp_path / "table" / "x.parquet", tmp_path / "secret.parquet"):
        pq.write_table(pa.table({"image": [png()] * 4, "label": [0, 1, 0, 1]}), path)
    (tmp_path / "secret.png").write_bytes(png(9))
    return tmp_path / "table"


def split(folder):
    return load_splits(str(folder), val_split=0.5)[0]["train"]


def test_cards_scripts_and_links_of_a_data_set(table, tmp_path):
    for files, match in (
        ("data_files: ../secret.parquet", "outside of it"),
        ("data_files: [{split: train, path: [HERE/../secret.parquet]}]", "outside of it"),
        ("data_files: http://127.0.0.1:9/x.parquet", "outside of it"),
        ("data_files: 'zip://x.parquet::../secret.parquet'", "outside of it"),
        ("data_dir: ..", "outside of it"),
        ("data_files: {a: b}", "cannot load it"),
        ("data_files: !!python/object/apply:os.system ['touch HERE/../ran']", "cannot load it"),
        ("data_files: x*.parquet", ""),
    ):
        text = "configs:\n- config_name: default\n  " + files.replace("HERE", str(table)) + "\n"
        for file, content in (("README.md", f"---\n{text}---\n"), (".huggingface.yaml", text)):
            (table / file).write_text(content)
            said = refusal(split, table)
            assert match in said if match else said is None
            (table / file).unlink()
    (table / "table.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    refusal(split, table)
    assert not (tmp_path / "ran").exists()
    (table / "table.py").unlink()
    (table / "y.parquet").symlink_to(tmp_path / "secret.parquet")
    refused("outside of it", split, table)


def test_image_folders_and_saved_data_sets_that_lead_elsewhere(table, tmp_path):
    folder, saved = tmp_path / "images", tmp_path / "saved"
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "x.png").write_bytes(png())
    for name in ("../../secret.png", str(tmp_path / "secret.png"), "/etc/hostname", "http://127.0.0.1:9/x.png"):
        (folder / "train" / "metadata.csv").write_text(f"file_name,label\nx.png,0\n{name},1\n")
        if refusal(split, folder) is None:
            rows = split(folder).cast_column("image", datasets.Image(decode=False))
            assert refusal(lambda rows=rows: [encoded_image(row["image"], str(folder), "row") for row in rows])
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


def test_encoded_images_stay_in_the_data_set(table, tmp_path):
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
    paths = ["/etc/hostname", "../secret.png", "http://127.0.0.1:9/x.png", "zip://x.png::../secret.zip", "zip://bomb.png::in.zip",
             "a\0b", ".", "x" * 9999, "link.png", "pipe.png", "none\n.png", "zip://x.png::x.png", 3]  # fmt: skip
    for value in (None, 3, {"bytes": "text", "path": None}, *({"path": path} for path in paths)):
        assert refusal(encoded_image, value, str(table), "row 3"), value
    assert encoded_image({"path": "x.png", "bytes": None}, str(table), "row 3") == png(5)
    assert encoded_image({"path": f"zip://x.png::{table / 'in.zip'}"}, str(table), "row 3") == png(6)
    assert encoded_image({"path": "/etc/hostname", "bytes": b"abc"}, str(table), "row 3") == b"abc"
    refused("outside of the data set", encoded_image, {"path": str(table / "x.png")}, None, "row 3")


# --- masks and shapes -------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name, mode", [("m.png", "L"), ("m.tif", "L"), ("m.webp", "RGB"), ("m.mat", None)])
def test_mutated_masks(tmp_path, name, mode):
    values, path = (np.arange(64).reshape(8, 8) % 7).astype(np.uint8), tmp_path / name
    if mode:
        Image.fromarray(values).convert(mode).save(path)
    else:
        savemat(path, {"GTcls": {"Segmentation": values}}, do_compression=True)
    data = path.read_bytes()

    @fuzz(40)
    def mutate(edits):
        path.write_bytes(mutated(data, edits))
        if refusal(read_values, str(path)) is None:
            assert read_values(str(path)).ndim == 2 and read_values(str(path)).dtype in (np.uint8, np.uint16)


def test_mutated_shapes():
    shapes = [[1, [[1, 1, 3, 1, 3, 3, 1, 3]]], [2, {"counts": "4450"}], [3, {"size": [4, 4], "counts": [2, 4, 10]}]]
    assert draw_instances(4, 4, shapes[:1], "x.jpg").sum() == 4

    @fuzz(200)
    def mutate(edits):
        with contextlib.suppress(ValueError):  # json's own errors are the reader's of the whole file
            refusal(draw_instances, 4, 4, json.loads(mutated(json.dumps(shapes).encode(), edits)), "x.jpg")
