"""The plan: what a run on own images that starts from trained weights sets by itself, when, and what wins over it."""

import argparse
import functools
import json
import os
import re

import pytest
import timm
import torch
from conftest import ROOT, TINY, forked, lines, make_folder
from PIL import Image
from safetensors.torch import load_file, save_file
from test_train_segmentation import data  # noqa: F401, a fixture

from utils.cli.arguments import Batch, flags_text
from utils.cli.errors import InputError
from utils.cli.first import parse
from utils.images.read import BadImage
from utils.plan.rules import Facts, images_per_update, plan
from utils.plan.take import SAMPLED, _usual_side, plan_of_the_run, take_plan

NO_FLAGS = [*TINY[: TINY.index("--epochs")], "--report_to", "none", "--num_workers", "0"]  # the model and its size only


def facts(images, **others):
    usual = {"validation": images // 4, "total": images_per_update(images, 1, 16), "processes": 1}
    return Facts(images, **{**usual, "opt": "adamw", "parameters": 4_000_000, "batch_norm": True, **others})


def test_few_images_are_looked_at_often_by_small_updates():
    plans = {images: plan(facts(images)) for images in (36, 300, 5000, 100_000)}
    assert [plans[images]["epochs"] for images in plans] == [100, 40, 10, 10]
    assert [images_per_update(images, 1, 16) for images in (10, *plans)] == [10, 16, 16, 32, 64]
    assert [images_per_update(300, processes, 16) for processes in (2, 8, 64)] == [32, 128, 256]
    assert [plans[images]["lr"] for images in plans] == [2.5e-3] * 4 and plan(facts(9999, total=256))["lr"] == 5e-3
    updates = [plans[images]["epochs"] * images / images_per_update(images, 1, 16) for images in plans]
    assert updates == sorted(updates) and updates[0] > 200
    assert all(0.5 <= made["warmup_epochs"] <= made["epochs"] / 5 for made in plans.values())


def test_a_long_run_changes_images_strongly_and_averages_its_weights():
    flags = "aa reprob model_ema model_ema_warmup".split()
    found = {images: [*map(plan(facts(images)).get, flags)] for images in (12, 36, 300, 5000)}
    strong = ["rand-m9-mstd0.5-inc1", 0.25, True, True]
    assert found == {12: ["none", 0.0, None, None], 36: strong, 300: strong, 5000: strong}
    assert plan(facts(300, epochs=8))["aa"] == "none" != plan(facts(300, epochs=16))["aa"]  # which its user has set


def test_a_short_run_on_a_gpu_does_without_the_search_for_kernels():
    assert plan(facts(300, cudnn=True))["cudnn_benchmark"] is False
    assert "cudnn_benchmark" not in plan(facts(300)) and "cudnn_benchmark" not in plan(facts(9000, cudnn=True, epochs=20))


def test_the_rate_follows_the_optimizer_and_the_network():
    assert plan(facts(300, opt="sgd"))["lr"] == pytest.approx(10 * plan(facts(300))["lr"], rel=0.02)
    assert plan(facts(300, batch_norm=False))["lr"] < plan(facts(300))["lr"] / 2
    assert plan(facts(10))["freeze"] == "bn" and "freeze" not in plan(facts(300))  # statistics of 10 images are noise
    assert (
        plan(facts(10))["lr"] == plan(facts(10, batch_norm=False))["lr"] == 3e-4 < plan(facts(300))["lr"]
    )  # frozen: as without
    assert plan(facts(300, processes=8, total=64))["freeze"] and "freeze" not in plan(facts(10, batch_norm=False))
    assert "lr" not in plan(facts(300, opt="lion"))  # of which nothing is known
    assert plan(facts(300, parameters=28_000_000))["drop_path"] > 0
    assert plan(facts(300, epochs=3))["warmup_epochs"] == 0.3
    made = plan(facts(80, side=160))
    assert (made["opt"], made["crop_size"], made["base_size"]) == ("adamw", 160, 160)
    assert plan(facts(80, side=3000))["crop_size"] == 480


def test_images_of_bands_are_planned_without_changes_of_colours():
    assert plan(facts(6000))["aa"].startswith("rand-") and plan(facts(6000, bands=True))["aa"] == "none"
    assert {name for name in plan(facts(6000)) if plan(facts(6000))[name] != plan(facts(6000, bands=True))[name]} == {"aa"}


def test_the_plans_of_the_documentation_are_those_that_are_made():
    text = (ROOT / "docs" / "PLAN.md").read_text()
    shown = re.findall(r"planned for ([\d,]+) images: (.*)", text[text.index("## What it plans") :])
    assert [images for images, _ in shown] == ["36", "300", "5,000", "100,000", "300"]
    for number, (images, flags) in enumerate(shown):
        images, segments = int(images.replace(",", "")), number == len(shown) - 1
        total = images_per_update(images, 1, 8 if segments else 16)
        network = {"parameters": 30_000_000, "batch_norm": segments, "side": 640 if segments else None}
        made = {"total_batch_size": total, "update_freq": 1} | plan(facts(images, total=total, **network))
        assert flags == flags_text(made)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Own images, and weights to start from."""
    folder = tmp_path_factory.mktemp("own")
    make_folder(folder / "images" / "train", per_class=20)
    make_folder(folder / "images" / "val", per_class=4, seed=1)
    model = timm.create_model("convnextv2_atto", depths=(1, 1, 2, 1), dims=(8, 8, 16, 16), num_classes=3)
    save_file(model.state_dict(), folder / "weights.safetensors")
    return folder


def start(own, folder, *words, script="train_recognition", code=0):
    words = ("--data_path", own / "images", "--finetune", own / "weights.safetensors", "--output_dir", folder, *words)
    done = forked(script, *NO_FLAGS, *words)
    assert done.returncode == code, done.stderr
    return done.stderr if code else done.stdout


def test_a_run_without_flags_plans_itself_and_goes_on_with_its_plan(own, tmp_path):
    text = start(own, tmp_path / "run", "--epochs", 2, "--save_ckpt_updates", 1)
    planned = re.search(r"planned for 40 images: (.*)", text)[1]
    assert (
        "--lr 0.0003" in planned and "--total_batch_size 16 --update_freq 1" in planned and "--epochs" not in planned
    )  # which the line has
    assert "loss 0.69" in text.replace("loss 0.70", "loss 0.69")  # the new head begins at ln 2
    assert re.search(r"time: all 4 updates take about \d+:\d\d on this machine", text)
    args = json.loads((tmp_path / "run" / "args.json").read_text())["args"]
    assert args["lr"] == args["planned"]["lr"] == 3e-4 and args["aa"] == "none"
    # The images that came since do not change the plan of a run that goes on.
    (tmp_path / "run" / "finished.json").unlink()
    record = json.loads((tmp_path / "run" / "args.json").read_text())
    record["args"]["planned"]["smoothing"] = record["settings"]["smoothing"] = 0.2
    (tmp_path / "run" / "args.json").write_text(json.dumps(record))
    assert "--smoothing 0.2" in start(own, tmp_path / "run", "--epochs", 2, "--save_ckpt_updates", 1)


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        (["--plan", "published"], {"lr": 6.25e-5, "layer_decay": 1.0, "reprob": 0.25, "head_init_scale": 1.0}),
        (["--lr", "1e-4", "--reprob", "0.5"], {"lr": 1e-4, "reprob": 0.5, "layer_decay": 0.8}),
        (["--blr", "8e-4", "--remode", "const"], {"reprob": 0.25, "lr": 5e-5}),
        (["@RECIPE"], {"lr": 6.25e-5, "layer_decay": 0.9, "reprob": 0.25}),
    ],
)
def test_what_is_given_wins(own, tmp_path, words, flags):
    recipe = tmp_path / "own.args"
    recipe.write_text("--layer_decay 0.9 --batch_size 32")
    words = [word.replace("@RECIPE", f"@{recipe}") for word in words]
    if "published" in words:
        words += ["--batch_size", "32"]
    text = start(own, tmp_path / "run", *words, "--epochs", 30, "--dry_run", "json")
    args = json.loads(text[text.index("{") :])["args"]
    assert {name: args[name] for name in flags} == pytest.approx(flags)


def test_a_run_keeps_its_plan_and_takes_no_other(own, tmp_path, monkeypatch):
    """On another number of processes too; and a plan that lies in the folder where it is started is none of it."""
    weights = tmp_path / "w.safetensors"
    words = ("--model", "resnet10t", "--model_kwargs", "layers=(1,1,1,1)", "channels=(8,8,16,16)", "--finetune", weights,
             "--input_size", 32, "--epochs", 1)  # fmt: skip
    network = timm.create_model("resnet10t", layers=(1, 1, 1, 1), channels=(8, 8, 16, 16), num_classes=3)
    save_file(network.state_dict(), weights)
    first = start(own, tmp_path / "run", *words, "--save_ckpt_updates", 1)
    assert "--freeze" not in first and "--scale" not in first  # crops of 32 pixels have no scale
    (tmp_path / "run" / "finished.json").unlink()
    again = forked("train_recognition", *NO_FLAGS, "--data_path", own / "images", *words, "--save_ckpt_updates", 1,
                   "--output_dir", tmp_path / "run", processes=2)  # fmt: skip
    assert again.returncode == 0 and "--freeze" not in again.stdout and "resumed: " in again.stdout, again.stderr
    monkeypatch.chdir(tmp_path / "run")
    assert plan_of_the_run(argparse.Namespace(resume="", output_dir=None)) == {}
    assert plan_of_the_run(argparse.Namespace(resume="", output_dir=str(tmp_path / "run")))["lr"] == 2.5e-3


def test_a_broken_image_does_not_stop_the_plan():
    class Source:
        def __len__(self):
            return 100

        def read(self, index):
            if index == 0:
                raise BadImage("broken")
            self.looked = getattr(self, "looked", 0) + 1
            return Image.new("RGB", (90, 60)), None

    source = Source()
    assert _usual_side(source) == 90 and source.looked <= SAMPLED


def test_without_an_average_its_decay_is_not_planned(own, tmp_path):
    text = start(own, tmp_path / "run", "--model_ema", "false", "--dry_run")
    assert "--reprob 0.25 --smoothing 0.1\n" in text.replace("\n ", "") and "model_ema_warmup true" not in text
    assert "--model_ema true --model_ema_warmup true" in start(own, tmp_path / "run", "--dry_run").replace("\n ", "")


def test_a_dry_run_shows_the_plan(own, tmp_path):
    text = start(own, tmp_path / "run", "--dry_run", "--minutes", 1)
    shown = " ".join(text[text.index("planned for") : text.index("flags: ")].split())
    assert shown.startswith("planned for 40 images: --total_batch_size 16 --update_freq 1 --epochs 100 --warmup_epochs 10.0 ")
    assert "100 epochs x 2 updates = 200, the first 20 of them warm-up" in text  # it measures nothing


@pytest.mark.slow
def test_minutes(own, tmp_path):
    text = start(own, tmp_path / "run", "--minutes", 0.1)
    epochs = len(lines(tmp_path / "run" / "log.txt"))
    assert epochs and f"updates: {epochs} epochs" in text
    fitted = f"--epochs {epochs} --warmup_epochs {round(epochs / 10, 1)}"
    assert f"planned for 0.1 minutes: {fitted}\n" in text and text.count("--warmup_epochs") == 1  # the flags that repeat it
    assert fitted in (tmp_path / "run" / "report.html").read_text()
    error = start(own, tmp_path / "other", "--minutes", 1, "--resume", tmp_path / "run", code=2)
    assert "--minutes 1.0 would do nothing: it takes effect without --resume" in error
    error = start(own, tmp_path / "none", "--minutes", 1e-6, code=1)
    assert re.search(r"error: --minutes 1e-06: an epoch takes about 0.\d minutes here; give more", error)
    assert not (tmp_path / "none").exists()


def in_folder(folder, restarts, rank):
    """A process that a launcher has started in this folder, after so many restarts."""
    os.chdir(folder)
    os.environ["TORCHELASTIC_RESTART_COUNT"] = str(restarts)


def test_a_run_that_its_launcher_restarts_keeps_its_minutes(own, tmp_path):
    words = ("--data_path", own / "images", "--finetune", own / "weights.safetensors", "--minutes", 0.05)
    first = forked("train_recognition", *NO_FLAGS, *words, prepare=functools.partial(in_folder, tmp_path, 0))
    assert first.returncode == 0, first.stderr
    (folder,) = (tmp_path / "output" / "train_recognition").iterdir()
    record = json.loads((folder / "args.json").read_text())
    record["args"]["planned"]["epochs"] = record["settings"]["epochs"] = 1234  # what would not be measured again
    (folder / "args.json").write_text(json.dumps(record))
    again = forked("train_recognition", *NO_FLAGS, *words, prepare=functools.partial(in_folder, tmp_path, 1))
    assert f"--output_dir {folder.relative_to(tmp_path)} holds a finished run" in again.stderr
    assert "planned for 0.05 minutes: --epochs 1234" in again.stdout


def test_what_is_planned_for_nobody_is_refused_and_minutes_need_no_dry_run(own, tmp_path):
    done = forked(
        "train_recognition", *NO_FLAGS, "--plan", "auto", "--data_path", own / "images", "--output_dir", tmp_path / "a"
    )
    assert done.returncode == 1 and "--plan auto: nothing is planned without trained weights" in done.stderr
    done = forked("train_recognition", *NO_FLAGS, "--minutes", 1, "--epochs", 3)
    assert done.returncode == 2 and "--epochs 3 would do nothing: it takes effect without --minutes" in done.stderr
    assert '"epochs": 100' in start(own, tmp_path / "b", "--minutes", 1, "--dry_run", "json")


def test_the_rate_is_that_of_the_optimizer_that_the_run_has(own, tmp_path):
    text = start(own, tmp_path / "run", "--opt", "momentum", "--dry_run", "json")
    assert json.loads(text[text.index("{") :])["args"]["lr"] == pytest.approx(3e-3)
    doubt = "warning: no rate is planned for --opt lion; --blr makes it 3.1e-05"
    assert doubt in start(own, tmp_path / "lion", "--opt", "lion", "--epochs", 1)
    assert "no rate" not in start(own, tmp_path / "given", "--opt", "lion", "--blr", "1e-3", "--epochs", 1)
    words = ("--data_path", own / "images", "--finetune", own / "weights.safetensors", "--opt", "lion", "--dry_run", "json")
    dry = forked("train_recognition", *NO_FLAGS, *words)
    assert json.loads(dry.stdout) and doubt in dry.stderr


@pytest.mark.parametrize(
    "planned", [{"lr": "much", "total_batch_size": -3, "scale": [1]}, {"predict": "x"}, [1], None, {"lr": 1e400}]
)
def test_a_plan_that_no_run_wrote_is_not_followed(own, tmp_path, planned):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "args.json").write_text(json.dumps({"args": {"planned": planned}}))
    assert "--lr 0.0003 --" in start(own, tmp_path / "run", "--dry_run")


@pytest.mark.parametrize("words, searches", [([], False), (["--cudnn_benchmark", "true"], True)])
def test_a_planned_search_for_kernels_counts_for_the_run(words, searches, monkeypatch):
    monkeypatch.setattr("utils.plan.take.has_accelerator", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    args, said = parse("train_recognition.py", "", ["--data_path", "x", "--finetune", "w", *words]), []
    take_plan(args, Batch(64), range(300), range(60), lambda: torch.nn.Linear(3, 3), said.append)
    assert torch.backends.cudnn.benchmark is searches and ("--cudnn_benchmark false" in said[0]) is not searches


@pytest.mark.parametrize("takes_it", [True, False])
def test_a_large_network_without_blocks_to_leave_out_is_planned_without_drop_path(takes_it):
    args, said = parse("train_recognition.py", "", ["--data_path", "x", "--finetune", "w"]), []

    def build():
        if args.drop_path and not takes_it:
            raise InputError("no such option")
        return torch.nn.Linear(5000, 5000)

    take_plan(args, Batch(64), range(300), range(60), build, said.append)
    assert args.drop_path == (0.1 if takes_it else 0.0) and ("--drop_path 0.1" in said[0]) == takes_it


def test_every_second_epoch_is_evaluated_and_the_last(own, tmp_path):
    start(own, tmp_path / "run", "--epochs", 3, "--eval_freq", 2, "--save_ckpt", "false")
    assert ["test_acc1" in record for record in lines(tmp_path / "run" / "log.txt")] == [False, True, True]


def test_fewer_images_than_batch_norm_needs_leave_its_statistics_as_they_were(tmp_path):
    make_folder(tmp_path / "images" / "train", per_class=4)
    make_folder(tmp_path / "images" / "val", per_class=2, seed=1)
    model = timm.create_model("test_resnet", num_classes=3)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    words = ["--model", "test_resnet", "--input_size", "32", "--report_to", "none", "--num_workers", "0", "--epochs", 2]
    words += ["--data_path", tmp_path / "images", "--finetune", tmp_path / "weights.safetensors"]
    done = forked("train_recognition", *words, "--output_dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "--total_batch_size 8 --update_freq 1" in done.stdout and "--freeze bn" in done.stdout
    assert "--freeze bn" in forked("train_recognition", *words, "--dry_run").stdout
    after = timm.create_model(f"local-dir:{tmp_path / 'run' / 'last'}", pretrained=True).state_dict()
    same = {name for name, tensor in model.state_dict().items() if after[name].equal(tensor)}
    assert {name for name in same if "bn" in name} == {name for name in after if "bn" in name}
    assert "conv1.0.weight" in after and "conv1.0.weight" not in same  # the rest learns
    scores = [re.search(r"top-1 [\d.]+ %|loss [\d.]+", line)[0] for line in done.stdout.splitlines() if "epoch 2/2" in line]
    done = forked("train_recognition", "--eval", "true", "--finetune", tmp_path / "run" / "last", "--data_path",
                  tmp_path / "images", "--num_workers", "0")  # fmt: skip
    assert done.returncode == 0 and scores, done.stderr
    done = forked("train_recognition", *words, "--freeze", "bn", "--model", "convnextv2_atto", "--finetune", "")
    assert done.returncode == 2 and "--freeze bn needs weights to start from" in done.stderr


def test_the_warm_up_of_a_run_of_so_many_updates_is_a_tenth_of_them(data, tmp_path):  # noqa: F811
    model = timm.create_model("test_resnet", num_classes=3)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    words = "--model fcn --channels 8 --backbone test_resnet --max_updates 30 --total_batch_size 2 --num_workers 0".split()
    words += ["--finetune", tmp_path / "weights.safetensors", "--data_path", data, "--dry_run", "json"]
    done = forked("train_segmentation", *words)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout[done.stdout.index("{") :])
    updates = found["args"]["warmup_epochs"] * 24 / 2  # of 24 images, two an update
    assert updates == pytest.approx(3, abs=0.05 * 12)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train_recognition", "train_segmentation"])
def test_a_frozen_backbone_stays_to_the_bit_while_the_rest_learns(tmp_path, script):
    segments = script == "train_segmentation"
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    small = "--model fcn --channels 8 --backbone test_resnet --crop_size 32 --max_updates 2"
    words = small if segments else "--model test_resnet --input_size 32 --epochs 1"
    words = [
        *words.split(),
        "--warmup_epochs",
        "0",
        "--freeze",
        "backbone",
        "--report_to",
        "none",
        "--num_workers",
        "0",
        "--batch_size",
        "8",
    ]
    start = ("--finetune", tmp_path / "weights.safetensors", "--lr", "0.1", "--output_dir", tmp_path / "run")
    done = forked(script, *words, *start, processes=2)
    assert done.returncode == 0, done.stderr
    after = load_file(tmp_path / "run" / "last" / "model.safetensors")
    prefix, learns = ("backbone.", "decode_head.") if segments else ("", "fc.")
    before = {prefix + name: tensor for name, tensor in model.state_dict().items() if "fc" not in name}
    before = {name: tensor for name, tensor in before.items() if "num_batches" not in name}
    assert len(before) > 30 and all(after[name].equal(tensor) for name, tensor in before.items())
    assert any(name.startswith(learns) for name in after)
    if not segments:
        assert not after["fc.weight"].equal(torch.zeros_like(after["fc.weight"]))
        parameters = sum(tensor.numel() for name, tensor in after.items() if name.startswith("fc."))
        assert lines(tmp_path / "run" / "log.txt")[-1]["n_parameters"] == parameters
    done = forked(script, *words, "--dry_run")
    assert done.returncode == 2 and "--freeze backbone needs weights to start from" in done.stderr
