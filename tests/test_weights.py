"""Reading weights: layouts, names, heads, and files that are damaged or hostile."""

import argparse
import os
import pickle

import pytest
import timm
import torch
from safetensors.torch import save_file

from utils.arguments import InputError
from utils.weights import load_weights, read_tensors, to_timm_name


def tiny(classes=10, name="convnextv2_atto"):
    return timm.create_model(name, depths=(1, 1, 2, 1), dims=(8, 8, 16, 16), num_classes=classes)


@pytest.mark.parametrize("size", ["convnext_tiny", "convnext_base", "convnextv2_atto", "convnextv2_large"])
def test_original_names_become_timm_names(golden, size):
    entry = next(m for m in golden("1_param_groups/names_to_timm.json.gz")["models"] if m["config"]["model"] == size)
    assert [to_timm_name(pair[0]) for pair in entry["pairs"]] == [pair[1] for pair in entry["pairs"]]


@pytest.mark.parametrize(
    "layout", ["safetensors", "folder", "plain", "model", "module.", "_orig_mod.", "namespace", "state_dict"]
)
def test_layouts(tmp_path, layout):
    source, target = tiny(), tiny()
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
    else:
        torch.save({layout: tensors, "epoch": 3}, path)
    (line,) = load_weights(target, path)
    assert f"{len(tensors)} tensors loaded" in line
    assert all(torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True))


def test_model_key_chooses_the_average(tmp_path):
    model = tiny()
    average = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    torch.save({"model": model.state_dict(), "model_ema": average}, tmp_path / "w.pth")
    load_weights(model, tmp_path / "w.pth", model_key="model_ema")
    assert torch.equal(model.state_dict()["stem.0.weight"], average["stem.0.weight"])


def original(golden, size):
    """A checkpoint with the original names and shapes, filled with noise: (tensors, timm model with the same numbers)."""
    entry = next(m for m in golden("1_param_groups/names_to_timm.json.gz")["models"] if m["config"]["model"] == size)
    torch.manual_seed(0)
    model = timm.create_model(size)
    state = model.state_dict()
    return {pair[0]: state[pair[1]].reshape(pair[2]).clone() for pair in entry["pairs"]}, model


@pytest.mark.parametrize("size", ["convnext_tiny", "convnextv2_atto"])
def test_original_checkpoints_give_the_same_outputs(golden, tmp_path, size):
    tensors, model = original(golden, size)
    torch.save({"model": tensors}, tmp_path / "w.pth")
    target = timm.create_model(size)
    lines = load_weights(target, tmp_path / "w.pth")
    assert "original ConvNeXt names" in lines[0] and len(lines) == 1
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(model.eval()(image), target.eval()(image))  # GRN too, whose tensors are 4-D there


def test_other_heads_start_anew_and_anything_else_is_refused(tmp_path):
    torch.save(tiny(7).state_dict(), tmp_path / "w.pth")
    lines = load_weights(tiny(10), tmp_path / "w.pth")
    assert "head has another size there" in lines[1]
    wrong = timm.create_model("convnextv2_atto", depths=(1, 1, 1, 1), dims=(8, 8, 16, 24), num_classes=10)
    with pytest.raises(InputError, match=r"missing 0|missing none; unexpected \d+ \(stages.2.blocks.1.*of another shape \d+"):
        load_weights(wrong, tmp_path / "w.pth")


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_hostile_and_damaged_files_give_one_line_and_run_nothing(tmp_path):
    trap = tmp_path / "ran"
    torch.save({"model": Hostile(trap)}, tmp_path / "hostile.pth")
    (tmp_path / "old.pth").write_bytes(pickle.dumps(Hostile(trap), protocol=2))
    torch.save(tiny().state_dict(), tmp_path / "cut.pth")
    data = (tmp_path / "cut.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.pth").write_text("not weights")
    (tmp_path / "text.safetensors").write_text("not weights")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save({"model": {"a": 3}}, tmp_path / "numbers.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(InputError) as error:
            read_tensors(path)
        assert "\n" not in str(error.value) and path.name in str(error.value)
    assert not trap.exists()
