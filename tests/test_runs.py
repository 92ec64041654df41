"""What a run leaves beside its weights, and where its data may come from: both scripts, as users run them."""

import importlib.util
import io
import json
import re
import shutil

import numpy as np
import pytest
import timm
from accelerate.state import AcceleratorState, GradientState
from conftest import TINY, lines, make_folder, train
from faults import Job
from PIL import Image
from small_sources import write_tar
from test_hub import StandIn
from test_torchvision_sets import make_cifar, make_pets
from test_train_recognition import assert_same_run
from test_train_segmentation import TINY as TINY_MASKS
from test_train_segmentation import data  # noqa: F401, a fixture

import train_recognition
import train_segmentation
from utils.model.segmentation_weights import open_network
from utils.run.checkpoint import states

HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript"))
ARGS = {"train_recognition": TINY, "train_segmentation": TINY_MASKS}


def start(script, *words, folder, processes=1):
    """A run that must succeed: its text."""
    job = Job(script, [*ARGS[script], "--output_dir", folder, *words], f"{folder}.txt", processes)
    codes = job.wait()
    assert set(codes) == {0}, job.text.read_text()
    return job.text.read_text()


def points(folder, tag):
    """{step: value} of a TensorBoard folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(tag)}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A finished run of recognition, with a tracker and an exported file."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    words = ("--report_to", "tensorboard", "--export", "torchscript", "--license", "mit", "--layer_decay", 0.8, "--mixup", 0.5)
    start("train_recognition", *words, folder=folder)
    return folder


@pytest.mark.slow
def test_a_run_of_recognition_explains_itself(digits):
    for name in ("samples", "curves", "lr_groups", "confusion", "mistakes", "reliability"):
        with Image.open(digits / f"{name}.png") as picture:
            assert min(picture.size) > 200 and len(picture.convert("RGB").getcolors(1 << 24)) > 5
    red, _, blue = np.asarray(Image.open(digits / "mistakes.png").convert("RGB"), int).transpose(2, 0, 1)
    assert (red - blue > 60).mean() > 0.05  # the digits are grey, the heat maps beside them are red
    log = lines(digits / "log.txt")
    classes = json.loads((digits / "classes.json").read_text())
    assert sum(row["count"] for row in classes) == 359
    right = sum(row["recall"] * row["count"] for row in classes) / 359
    assert right == pytest.approx(max(record["test_acc1"] for record in log), abs=1e-3)  # of the best epoch, as the whole page
    timing = json.loads((digits / "timing.json").read_text())
    assert timing.keys() == {"data", "forward and backward", "optimizer", "logging and saving"} and min(timing.values()) >= 0
    page = (digits / "report.html").read_text()
    assert f"{max(record['test_acc1'] for record in log):.2f}" in page and page.count("data:image/png;base64") == 6
    assert not re.search(r"""(?:src|href)=["']https?:""", page)
    steps = points(digits / "tensorboard", "test_acc1")
    assert list(steps) == [21, 43] and steps[43] == pytest.approx(log[-1]["test_acc1"], abs=1e-3)
    for name in ("best", "last"):
        card = (digits / name / "README.md").read_text()
        assert "license: mit" in card and f"{log[-1]['n_parameters']:,} parameters" in card and str(digits.parent) not in card
        assert timm.create_model(f"local-dir:{digits / name}", pretrained=True).num_classes == 10
    assert (digits / "best" / "model.torchscript.pt").stat().st_size > 10_000


def test_prediction_of_recognition(digits, tmp_path):
    make_folder(tmp_path / "pictures", ("some", "more"), 3, size=(50, 20))
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        words = ("--predict", tmp_path / "pictures", "--finetune", digits / "best", "--topk", 2)
        assert "6 images" in start("train_recognition", *words, folder=folder, processes=processes)
    one, two = ((tmp_path / name / "predictions.csv").read_text() for name in "12")
    assert one == two and len(one.splitlines()) == 7 and one.startswith("image,label_1,probability_1,label_2,probability_2\n")


def test_a_run_of_segmentation_explains_itself(data, tmp_path):  # noqa: F811
    start("train_segmentation", "--data_path", data, "--export", "torchscript", folder=tmp_path / "run")
    for name in ("samples", "curves", "lr_groups", "confusion", "predictions"):
        with Image.open(tmp_path / "run" / f"{name}.png") as picture:
            assert min(picture.size) > 200
    page = (tmp_path / "run" / "report.html").read_text()
    assert "green" in page and page.count("data:image/png;base64") == 5
    network, config = open_network(tmp_path / "run" / "best")
    assert config["classes"] == ["red", "green", "blue"] and not network.training
    assert "semantic-segmentation" in (tmp_path / "run" / "best" / "README.md").read_text()
    assert (tmp_path / "run" / "best" / "model.torchscript.pt").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--export tensorrt", "unknown export format 'tensorrt'"),
        ("--push_to_hub nobody", "Hub repository 'nobody': expected USER/NAME"),
        ("--push_to_hub some/body", "HF_HUB_OFFLINE is set"),
        ("--license MIT!", "expected an identifier of the Hub"),
        ("--report_to tensorbord", "did you mean tensorboard?"),
        ("--streaming", "--streaming needs --dataset"),
        ("--predict pictures", "--predict needs --finetune"),
    ],
)
def test_what_cannot_be_done_after_training_is_said_before(tmp_path, words, message):
    job = Job("train_recognition", [*TINY, "--output_dir", tmp_path / "run", *words.split()], tmp_path / "text")
    assert job.wait()[0] in (1, 2) and message in job.text.read_text() and not (tmp_path / "run").exists()


# --- streams


def encoded(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


@pytest.fixture(scope="module")
def parquet(data, tmp_path_factory):  # noqa: F811
    """Two data sets of three Parquet files of unequal length for training and one for validation: labels, and masks."""
    import datasets

    root, rng = tmp_path_factory.mktemp("parquet"), np.random.default_rng(0)
    features = {
        "labels": datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}),
        "masks": datasets.Features({"image": datasets.Image(), "mask": datasets.Image()}),
    }
    paths = sorted((data / "images" / "train").iterdir())
    images = [Image.open(path).convert("RGB") for path in paths]
    masks = [
        np.asarray(Image.open(data / "masks" / "train" / f"{path.name}"))
        for path in sorted((data / "images" / "train").iterdir())
    ]
    for kind in features:
        (root / kind).mkdir()
        for name, count in (("train-0", 11), ("train-1", 21), ("train-2", 8), ("validation-0", 9)):
            rows = []
            for number in range(count):
                if kind == "labels":
                    pixels = rng.integers(0, 120, (40, 50, 3)) + np.array([120 * (number % 2), 0, 0])
                    rows.append({"image": encoded(pixels.astype(np.uint8)), "label": number % 2})
                else:
                    pick = number % len(images)
                    rows.append({"image": encoded(np.asarray(images[pick])), "mask": encoded(masks[pick])})
            datasets.Dataset.from_list(rows, features=features[kind]).to_parquet(root / kind / f"{name}.parquet")
    (root / "masks" / "classes.txt").write_text("red\ngreen\nblue\n")
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "kind", "processes", "workers"),
    [
        ("train_recognition", "labels", 1, 1),
        pytest.param("train_recognition", "labels", 2, 0, marks=pytest.mark.slow),
        pytest.param("train_segmentation", "masks", 1, 0, marks=pytest.mark.slow),
    ],
)
def test_a_stream_resumes_to_the_bit(parquet, tmp_path, script, kind, processes, workers):
    words = ["--dataset", parquet / kind, "--streaming", "--total_batch_size", 4, "--batch_size", 4 // processes,
             "--shuffle_buffer", 7, "--num_workers", workers, "--save_ckpt_updates", 3, "--save_ckpt_num", 100]  # fmt: skip
    out = start(script, *words, folder=tmp_path / "a", processes=processes)
    assert "40 training and 9 validation images" in out
    assert len(lines(tmp_path / "a" / "updates.txt")) == 20  # two epochs of ten
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for path in states(tmp_path / "b" / "checkpoints"):
        if path.name > "update_00000006":
            shutil.rmtree(path)
    (tmp_path / "b" / "finished.json").unlink()
    assert "after 6 updates" in start(script, *words, folder=tmp_path / "b", processes=processes)
    assert_same_run(tmp_path / "a", tmp_path / "b")


def shards(root, data):  # noqa: F811
    """WebDataset shards of coloured images: two for training, of 11 and 21 images, and one for validation; labels, masks."""
    rng, colored = np.random.default_rng(0), sorted((data / "images" / "train").iterdir())
    for name, count in (("train-0", 11), ("train-1", 21), ("val-0", 9)):
        for kind in ("labels", "masks"):
            members = []
            for i in range(count):
                if kind == "labels":
                    pixels = rng.integers(0, 120, (40, 50, 3)) + np.array([120 * (i % 2), 0, 0])
                    members += [(f"{i:04}.png", encoded(pixels.astype(np.uint8))["bytes"]), (f"{i:04}.cls", b"%d" % (i % 2))]
                else:
                    picture = colored[i % len(colored)]
                    members += [(f"{i:04}.{picture.suffix[1:]}", picture.read_bytes())]
                    members += [(f"{i:04}.mask.png", (data / "masks" / "train" / picture.name).read_bytes())]
            write_tar(root / kind / f"{name}.tar", members)
    (root / "masks" / "classes.txt").write_text("red\ngreen\nblue\n")


@pytest.mark.parametrize(
    ("script", "kind", "words"),
    [
        ("train_recognition", "labels", []),
        ("train_recognition", "labels", ["--streaming", "--train_images", 32]),
        ("train_segmentation", "masks", []),
    ],
)
def test_webdataset(data, tmp_path, script, kind, words):  # noqa: F811
    shards(tmp_path / "shards", data)
    words = ["--dataset", tmp_path / "shards" / kind, "--batch_size", 8, "--epochs", 1, "--warmup_epochs", 0, *words]
    assert "32 training and 9 validation images" in start(script, *words, folder=tmp_path / "run")
    (record,) = lines(tmp_path / "run" / "log.txt")
    assert np.isfinite(record["train_loss"]) and len(lines(tmp_path / "run" / "updates.txt")) == 4


# --- torchvision's data sets, with small archives in their place; so the scripts run in this process


@pytest.fixture
def here(monkeypatch):
    """Runs a script in this process, which can then be tampered with."""

    def call(script, *words):
        script.main(script.parse_args([*ARGS[script.__name__], *map(str, words)]))
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    def refuse(*_, **__):
        raise OSError("there is no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    yield call
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def test_cifar_and_pets_by_name(here, tmp_path, monkeypatch):
    make_cifar(tmp_path, monkeypatch, "CIFAR10")
    short = ["--batch_size", 2, "--epochs", 1, "--warmup_epochs", 0]
    here(train_recognition, "--data_set", "CIFAR10", "--data_path", tmp_path, *short, "--output_dir", tmp_path / "a")
    (record,) = lines(tmp_path / "a" / "log.txt")
    wilson = {0: [0, 65.76], 50: [9.45, 90.55], 100: [34.24, 100]}  # of two images, in per cent
    assert record["test_acc1_interval"] == pytest.approx(wilson[record["test_acc1"]], abs=0.01)
    assert record["test_images"] == 2 and json.loads((tmp_path / "a" / "best" / "config.json").read_text())["num_classes"] == 3
    make_pets(tmp_path, monkeypatch)
    here(train_segmentation, "--data_set", "pets", "--data_path", tmp_path, *short, "--output_dir", tmp_path / "b")
    assert json.loads((tmp_path / "b" / "best" / "config.json").read_text())["classes"] == ["pet", "background", "border"]


@pytest.mark.parametrize(
    ("script", "name", "images", "val"),
    [
        (train_recognition, "CIFAR", 50_000, 10_000),
        (train_recognition, "FLOWERS", 2_040, 6_149),
        (train_segmentation, "pets", 3_680, 3_669),
    ],
)
def test_a_dry_run_downloads_nothing(here, tmp_path, capsys, script, name, images, val):
    here(script, "--data_set", name, "--data_path", tmp_path / "none", "--dry_run", "json")
    told = json.loads(capsys.readouterr().out)
    assert (told["train_images"], told["val_images"]) == (images, val) and not (tmp_path / "none").exists()


@pytest.mark.slow
def test_fast_transforms_teach_what_timm_does(tmp_path):
    """Both draw the same boxes, operations and strengths, so that losses and accuracy on the digits are nearly the same."""
    words = "--input_size 48 --scale 0.5 1 --aa rand-m9-mstd0.5-inc1 --reprob 0.25 --epochs 4 --lr 4e-3".split()
    found = {}
    for kind in ("fast", "timm"):
        start("train_recognition", *words, "--transforms", kind, folder=tmp_path / kind)
        found[kind] = lines(tmp_path / kind / "log.txt")[-1]
    assert found["timm"]["test_acc1"] > 50
    assert abs(found["fast"]["test_acc1"] - found["timm"]["test_acc1"]) < 4
    assert found["fast"]["train_loss"] == pytest.approx(found["timm"]["train_loss"], rel=0.02)


# --- where results go


@pytest.mark.slow
def test_a_result_goes_to_the_hub(tmp_path):
    """--push_to_hub, against a server that stands in for the Hub."""
    with StandIn() as server:
        settings = {"HF_ENDPOINT": server.url, "HF_TOKEN": "hf_test", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
        words = ["--epochs", 1, "--warmup_epochs", 0, "--export", "onnx" if HAS_ONNX else "torchscript"]
        done = train(*words, "--push_to_hub", "me/digits", "--output_dir", tmp_path / "run", env=settings)
        assert done.returncode == 0 and "me/digits" in done.stdout, done.stdout + done.stderr
    best = {path.name: path.read_bytes() for path in (tmp_path / "run" / "best").iterdir()}
    exported = "model.onnx" if HAS_ONNX else "model.torchscript.pt"
    assert {"model.safetensors", "config.json", "README.md", exported} <= server.files.keys()
    assert all(server.files[name] == best[name] for name in ("model.safetensors", "config.json", "README.md", exported))
    assert "digits" in best["README.md"].decode()
