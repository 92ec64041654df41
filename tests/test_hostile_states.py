"""No file of a run runs code, hangs, or leaves a run half resumed: a state is put into place whole, or refused in one line."""

import copy
import hashlib
import io
import json
import os
import types

import pytest
import torch
from hostile import VALUES, Trap, fuzz, mutated, refusal, refused
from safetensors.torch import save

from utils.cli.arguments import Batch
from utils.model.ema import EMA
from utils.run import checkpoint
from utils.run import state as run_state
from utils.run.folder import open_folder
from utils.run.log import RunLog


def bits(tree):
    """Dicts and lists of tensors as something that == compares, to the bit."""
    if isinstance(tree, dict):
        return {key: bits(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [bits(value) for value in tree]
    return (tree.dtype, tree.shape, tree.numpy().tobytes()) if torch.is_tensor(tree) else tree


class Saved:
    """A model, its average and an optimizer with moments, and a state of them."""

    def __init__(self, folder):
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
        self.ema, self.optimizer = EMA(self.model), torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.accelerator = types.SimpleNamespace(scaler=None, is_main_process=True)
        self.parts = (self.model, types.SimpleNamespace(optimizer=self.optimizer), self.ema)
        self.step()
        counters = run_state.Counters(
            update=1, best={"test_acc1": 3.5}, batch=str(Batch(8)), updates_per_epoch=5, batch_total=8
        )
        run_state.save(self.accelerator, RunLog(), folder, *self.parts, counters, {"a": 1}, keep=3)
        (self.path,) = checkpoint.states(folder / "checkpoints")
        self.files = {path.name: path.read_bytes() for path in self.path.iterdir()}
        self.saved = copy.deepcopy(self.held())
        self.step()
        self.before = bits(self.held())

    def step(self):
        for parameter in self.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        self.optimizer.step()

    def held(self):
        return self.model.state_dict(), self.ema.state_dict(), self.optimizer.state_dict()

    def load(self):
        checkpoint.check(self.path)
        run_state.load(self.path, self.accelerator, *self.parts, {"a": 1}, Batch(8), 5, lambda line: None)

    def refusal(self, name=None, data=None, checksums=True):
        """`refusal` of the state with `data` as its file `name`. Then nothing may have changed; what it takes must train on."""
        for file, content in (self.files | ({name: data} if name else {})).items():
            (self.path / file).write_bytes(content)
        if checksums:
            sums = {file: (self.path / file).read_bytes() for file in self.files if file != "manifest.json"}
            sums = {file: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for file, data in sums.items()}
            (self.path / "manifest.json").write_text(json.dumps(sums))
        said = refusal(self.load)
        if said:
            assert bits(self.held()) == self.before
        else:
            self.step()
            for part, saved in zip((self.model, self.ema, self.optimizer), self.saved, strict=True):
                part.load_state_dict(copy.deepcopy(saved))
            self.before = bits(self.held())
        return said


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    return Saved(tmp_path_factory.mktemp("state"))


@pytest.mark.parametrize("checksums", [True, False])
@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "optimizer.pt", "state.json", "manifest.json"])
def test_mutated_states(state, name, checksums):
    assert state.refusal() is None

    @fuzz(20)
    def mutate(edits):
        data = mutated(state.files[name], edits)
        said = state.refusal(name, data, checksums)
        assert said or checksums or data == state.files[name] or name == "manifest.json"


def test_states_of_other_shapes(state):
    right = state.saved[0]
    last = list(right)[-2]  # after all others were put in, if they were put in one by one
    for name in ("model.safetensors", "ema.safetensors"):
        for change in ({last: torch.ones(7)}, {last: torch.ones(2, dtype=torch.int64)}, {"more": torch.ones(1)}):
            assert "does not fit" in state.refusal(name, save(right | change))
        assert "missing 1" in state.refusal(name, save({n: t for n, t in right.items() if n != last}))


def test_counters_with_any_value_anywhere(state):
    content = json.loads(state.files["state.json"])
    for where, key in [*((content, key) for key in content), (content["best"], "test_acc1"), (content["settings"], "a")]:
        before = where[key]
        for value in (*VALUES, ["x"], {"a": "x"}):
            where[key] = value
            state.refusal("state.json", json.dumps(content).encode())
        del where[key]
        older = key in ("waited", "best_loss")  # which older states have not
        assert state.refusal("state.json", json.dumps(content).encode()) or where is not content or older
        where[key] = before
    for odd in (b"3", b"[]", b"null", b"[" * 100_000, b"\xff\xfe"):
        assert state.refusal("state.json", odd)


def test_hostile_optimizers(state, tmp_path):
    def refusal_of(content):
        torch.save(content, out := io.BytesIO())
        return state.refusal("optimizer.pt", out.getvalue())

    for options in (
        {"lr": "x"},
        {"lr": float("nan")},
        {"betas": (0.9,)},
        {"params": [0]},
        {"params": [3, 2, 1, 0]},
        {"eps": {}},
    ):
        content = copy.deepcopy(state.saved[2])
        content["param_groups"][0].update(options)
        assert refusal_of(content)
    for number, moments in (
        (0, {"exp_avg": torch.ones(7)}), (0, {"exp_avg": 3}), (0, {"exp_avg_sq": torch.ones(2, 3).to_sparse()}),
        (0, {"step": "x"}), (0, {"step": torch.ones(5)}), (0, {"exp_avg": torch.ones(2, 3, device="meta")}),
        (0, {"exp_avg": torch.ones(2, 3, dtype=torch.complex64)}), (99, {"exp_avg": torch.ones(2)}),
    ):  # fmt: skip
        content = copy.deepcopy(state.saved[2])
        content["state"].setdefault(number, {}).update(moments)
        assert refusal_of(content)
    usual = state.saved[2]
    assert all(map(refusal_of, ([1, 2], usual | {"state": {0: 3}}, usual | {"param_groups": 3}, {"state": usual["state"]})))
    assert "not run" in refusal_of({"state": Trap(os.system, f"touch {tmp_path}/ran")}) and not (tmp_path / "ran").exists()


def test_manifests_pipes_and_links_that_lead_elsewhere(tmp_path):
    state = Saved(tmp_path)
    there, entry = json.loads(state.files["manifest.json"]), {"size": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    for name in ("../../x", "/etc/hostname", "../update_00000001/state.json", "", "x\n.pt", "a\0", "extra"):
        for manifest in (
            there | {name: entry},
            {name: entry},
            there | {"state.json": {"size": True}},
            [name],
            name,
            {name: None},
        ):
            assert "broken checkpoint" in state.refusal("manifest.json", json.dumps(manifest).encode(), checksums=False)
            lines = []
            assert checkpoint.newest_state(state.path.parent, lines.append) is None and lines[0].isprintable()
    assert state.refusal() is None
    (tmp_path / "out").write_bytes(state.files["state.json"])
    for put in (lambda path: path.symlink_to(tmp_path / "out"), os.mkfifo):
        (state.path / "state.json").unlink()
        put(state.path / "state.json")
        refused("broken checkpoint", state.load)


def test_mutated_logs_and_records(tmp_path):
    usual, record = b'{"epoch": 0, "update": 3, "loss": 1.5}\n' * 5, json.dumps({"settings": {"a": 1}, "args": {}}).encode()
    log = RunLog()
    log.open(tmp_path)

    @fuzz(60)
    def mutate(edits):
        for name in ("log.txt", "updates.txt"):
            (tmp_path / name).write_bytes(mutated(usual, edits))
        refusal(log.cut, 5, 10)
        for name in ("log.txt", "updates.txt"):
            assert all(isinstance(json.loads(line), dict) for line in (tmp_path / name).read_text().splitlines())
        (tmp_path / "args.json").write_bytes(mutated(record, edits))
        refusal(open_folder, tmp_path, "x", {"a": 1}, {})

    for odd in (b"[" * 100_000, b"\xff\xfe", b"null", b'{"settings": 3}', b'{"settings": {"a\\n": "\\u001b"}}'):
        for name in ("args.json", "log.txt"):
            (tmp_path / name).write_bytes(odd)
        assert refusal(open_folder, tmp_path, "x", {"a": 1}, {})
        refusal(log.cut, 5, 10)
