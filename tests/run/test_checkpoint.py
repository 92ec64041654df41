"""States are whole or absent, and nothing in them is run."""

import json
import os
import pickle

import pytest
import torch

from utils.cli.errors import InputError
from utils.run.checkpoint import check, find_fault, load_state, newest_state, save_state, states

WEIGHTS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(3)}
OPTIMIZER = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]).state_dict()


def save(folder, update, keep=3):
    return save_state(folder, update, WEIGHTS, OPTIMIZER, WEIGHTS, {"update": update, "x": 0.1}, keep)


def test_round_trip_and_the_newest_are_kept(tmp_path):
    for update in (5, 10, 15, 100):
        save(tmp_path, update, keep=2)
    assert [path.name for path in states(tmp_path)] == ["update_00000015", "update_00000100"]
    assert sorted(os.listdir(tmp_path)) == ["update_00000015", "update_00000100"]
    model, optimizer, ema, state = load_state(newest_state(tmp_path))
    assert all(torch.equal(model[name], tensor) and torch.equal(ema[name], tensor) for name, tensor in WEIGHTS.items())
    assert optimizer == OPTIMIZER and state == {"update": 100, "x": 0.1}


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "state.json", "ema.safetensors", "manifest.json"])
@pytest.mark.parametrize("harm", ["cut", "flip", "remove"])
def test_a_broken_state_is_named_and_passed_over(tmp_path, name, harm):
    save(tmp_path, 1)
    path = save(tmp_path, 2) / name
    data = bytearray(path.read_bytes())
    if harm == "remove":
        path.unlink()
    else:
        data[len(data) // 2] ^= 255
        path.write_bytes(data[: len(data) // 2] if harm == "cut" else data)
    said = []
    assert newest_state(tmp_path, said.append).name == "update_00000001"
    assert len(said) == 1 and "update_00000002 is broken" in said[0]
    with pytest.raises(InputError, match="broken checkpoint|found no manifest"):
        check(tmp_path / "update_00000002")


def test_a_save_that_dies_leaves_the_old_states_whole(tmp_path, monkeypatch):
    save(tmp_path, 1)
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2)
    assert [path.name for path in states(tmp_path)] == ["update_00000001"] and find_fault(states(tmp_path)[0]) is None
    monkeypatch.undo()
    save(tmp_path, 2)  # what was left aside is no hindrance
    assert find_fault(states(tmp_path)[1]) is None


def test_nothing_in_a_state_is_run(tmp_path):
    path = save(tmp_path / "run", 1)
    trap = tmp_path / "ran"

    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {trap}",)

    (path / "optimizer.pt").write_bytes(pickle.dumps(Hostile()))
    manifest = json.loads((path / "manifest.json").read_text())
    from utils.run.checkpoint import _sha256

    manifest["optimizer.pt"] = {"size": (path / "optimizer.pt").stat().st_size, "sha256": _sha256(path / "optimizer.pt")}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="not run"):
        load_state(path)
    assert not trap.exists()
