"""Reading weights: every published layout, heads, sources, and files that are damaged or hostile."""

import argparse
import os
import pickle
import zipfile

import pytest
import timm
import torch
from conftest import GOLDEN
from published_convnext import SIZES, Original, noisy, sparse, timm_model
from safetensors.torch import load_file, save_file
from tiny_networks import one_thread  # noqa: F401, a fixture

from utils.cli.errors import InputError
from utils.model.layouts import to_timm_name
from utils.model.weights import load_weights, read_weights


@pytest.mark.parametrize("size", ["convnext_tiny", "convnext_xlarge", "convnextv2_atto", "convnextv2_huge"])
def test_a_size_loads_without_a_missing_or_unexpected_tensor(tmp_path, size):
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


@pytest.mark.parametrize(
    "size, layout",
    [("convnext_tiny", "dense"), ("convnext_tiny", "model_ema"), ("convnextv2_atto", "dense"), ("convnextv2_tiny", "fcmae")],
)
def test_outputs_are_equal_after_conversion(tmp_path, size, layout):
    v2 = "v2" in size
    depths, dims = SIZES[size][0], tuple(dim // 8 for dim in SIZES[size][1])
    source = noisy(Original(depths, dims, v2, classes=10))
    content = {"model": source.state_dict(), "epoch": 3}
    if layout == "model_ema":
        content = {"model": noisy(timm_model()).state_dict(), "model_ema": source.state_dict()}
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


def test_a_key_that_is_asked_for_and_missing_is_refused(tmp_path):
    """The raw weights would be taken for the average."""
    tensors = {"a": torch.ones(1)}
    torch.save({"model": tensors, "state_dict_ema": tensors, "epoch": 3}, tmp_path / "w.pth")
    torch.save(tensors, tmp_path / "plain.pth")
    save_file(tensors, tmp_path / "model.safetensors")
    for key, name in (("model", "plain.pth"), ("module", "w.pth"), ("model_ema|model", "w.pth"), ("model|module", "")):
        assert read_weights(tmp_path / name, key)[0] == tensors
    assert read_weights(tmp_path / "w.pth", "model_ema|state_dict_ema")[0] == tensors
    with pytest.raises(InputError, match="--model_key model_ema: found the names model, state_dict_ema in .*w.pth; take one"):
        read_weights(tmp_path / "w.pth", "model_ema")
    for name in ("plain.pth", "model.safetensors", ""):
        with pytest.raises(InputError, match="--model_key model_ema: found weights alone, .* lie in RUN/best_ema"):
            read_weights(tmp_path / name, "model_ema")


# --- files ------------------------------------------------------------------------------------------------------------


LAYOUTS = ["safetensors", "folder", "plain", "model", "module.", "_orig_mod.", "namespace", "state_dict", "zip"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, layout):
    source, target = noisy(timm_model()), timm_model()
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
    torch.save(timm_model(7).state_dict(), tmp_path / "w.pth")
    lines = load_weights(timm_model(10), tmp_path / "w.pth")
    assert lines[1].endswith("head new") and "new 2 (head.fc.bias, head.fc.weight)" in lines[2]
    assert "left out 2 (head.fc.weight, head.fc.bias)" in lines[2]
    wrong = timm.create_model("convnextv2_atto", depths=(1, 1, 1, 1), dims=(8, 8, 16, 24), num_classes=10)
    before = {name: tensor.clone() for name, tensor in wrong.state_dict().items()}
    with pytest.raises(InputError, match=r"missing none; unexpected \d+ \(stages.2.blocks.1.*of another shape \d+"):
        load_weights(wrong, tmp_path / "w.pth")
    assert all(torch.equal(tensor, before[name]) for name, tensor in wrong.state_dict().items())
    with pytest.raises(InputError, match=r"missing \d+ \(conv1.*is it another --model\?$"):
        load_weights(timm.create_model("test_resnet"), tmp_path / "w.pth")
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
    torch.save(timm_model().state_dict(), files / "cut.pth")
    data = (files / "cut.pth").read_bytes()
    (files / "cut.pth").write_bytes(data[: len(data) // 2])
    save_file(timm_model().state_dict(), files / "cut.safetensors")
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
            load_weights(timm_model(), path)
        assert "\n" not in str(error.value) and path.name in str(error.value)
    with pytest.raises(InputError, match="no such file"):
        load_weights(timm_model(), tmp_path / "none.pth")
    with pytest.raises(InputError, match=r"posix.system; nothing of it was run"):
        load_weights(timm_model(), files / "hostile.pth")
    assert not trap.exists()
    pickle.loads(pickle.dumps(Hostile(trap)))  # and the trap does work
    assert trap.exists()
