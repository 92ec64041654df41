"""Model cards: read back as the Hub reads them, with nothing but what is known, whatever the names are made of."""

import json
import shlex

import pytest
import timm
import yaml
from huggingface_hub import ModelCard, metadata_load
from made_result import write_result
from PIL import Image

from utils.cli.errors import InputError
from utils.result.card import About, Cards, card_text, check_license, shareable

RECOGNITION = {
    "architecture": "convnextv2_atto",
    "label_names": ["cat", "dog", "emu"],
    "pretrained_cfg": {"input_size": [3, 64, 64]},
}
SEGMENTATION = {
    "network": {"head": "upernet", "backbone": "resnet18", "classes": 2}, "classes": ["sky", "road"], "crop_size": 96,
    "mean": [0.5] * 3, "std": [0.5] * 3,
}  # fmt: skip
SETTINGS = {
    "epochs": 10, "lr": 0.004, "opt": "adamw", "total_batch": 64, "mixup": 0.0, "clip_grad": None, "seed": 0,
    "train_images": 1438, "val_images": 359,
}  # fmt: skip
RECORD = {
    "epoch": 7, "train_loss": 0.5, "test_acc1": 97.5, "test_acc5": 99.75, "test_loss": 0.125, "test_acc1_ema": 96.25,
    "n_parameters": 3390000,
}  # fmt: skip
# What a folder of classes, or the user, may be called.
HOSTILE = [
    "---", "a: b", "null", "'", '"', "\\", "````", "{}", "#", "&a", "!!python/object:os", "\n---\nlicense: mit\n---\n",
    "line\u2028two\x85three", "\x00\x1b[31m", "<script>alert(1)</script>", "a | b", "猫", "\ud800", "1e3", "", "x" * 5000,
]  # fmt: skip


def card(config=RECOGNITION, *, record=RECORD, best=None, ema=False, **changes):
    facts = {
        "settings": SETTINGS, "title": "my pets", "weights": "from scratch", "commit": "0123abc+",
        "command": ["train_recognition.py", "--epochs", "10"], "versions": {"python": "3.11", "torch": "2.15.0"},
    }  # fmt: skip
    best = {"test_acc1": 97.5, "test_miou": 61.5} if best is None else best
    return card_text(About(config, **facts | changes), record, best, ema)


def parsed(text):
    """(metadata as a dict, text below it), as the Hub's own library sees them."""
    read = ModelCard(text, ignore_metadata_errors=False)
    return read.data.to_dict(), read.text


def score(data):
    [model] = data["model-index"]
    [result] = model["results"]
    [metric] = result["metrics"]
    return result, metric


def test_recognition():
    data, text = parsed(card(license="apache-2.0", data_id="user/pets"))
    result, metric = score(data)
    assert (data["license"], data["library_name"], data["pipeline_tag"]) == ("apache-2.0", "timm", "image-classification")
    assert data["datasets"] == ["user/pets"] and data["metrics"] == ["accuracy"] and "license_name" not in data
    assert result["dataset"] == {"name": "my pets", "type": "user/pets", "split": "validation"}
    assert (metric["type"], metric["value"]) == ("accuracy", 97.5)
    table = "| top-1 accuracy, % | top-5 accuracy, % | validation loss | validation images |\n"
    assert table + "| --- | --- | --- | --- |\n| 97.5 | 99.75 | 0.125 | 359 |" in text
    for known in ("3,390,000 parameters", "1,438 training images", "64 x 64", "```\ncat\ndog\nemu\n```", "after epoch 8."):
        assert known in text
    assert (
        "`0123abc+`" in text
        and "| lr | 0.004 |" in text
        and "| seed | 0 |" in text
        and "mixup" not in text
        and "clip_grad" not in text
    )


def test_segmentation():
    data, text = parsed(card(SEGMENTATION, record={"epoch": 7, "test_miou": 61.5, "test_pixacc": 80.25}))
    _, metric = score(data)
    assert data["pipeline_tag"] == "image-segmentation" and "library_name" not in data
    assert (metric["type"], metric["value"]) == ("mean_iou", 61.5)
    assert "upernet-resnet18" in text and "| 61.5 | 80.25 | 359 |" in text and "open_segmenter(" in text


def test_what_nobody_said_is_not_in_it():
    data, text = parsed(card(record={"epoch": 9}, best={}, commit="", settings={}))
    assert (data["license"], data["license_name"]) == ("other", "unknown") and "License: unknown" in text
    assert not {"model-index", "datasets"} & set(data)
    assert "They were not evaluated." in text and "unknown training images" in text and "Commit unknown" in text
    assert "parameters" not in text and "top-1" not in text


@pytest.mark.parametrize("value", [float("nan"), None])
def test_a_score_that_is_no_number_is_no_score(value):
    data, text = parsed(card(record={"epoch": 0, "test_acc1": value}))
    assert "model-index" not in data and "not evaluated" in text


def test_the_average_has_its_own_score():
    data, text = parsed(card(ema=True, best={"test_acc1": 97.5, "test_acc1_ema": 96.25}))
    assert score(data)[1]["value"] == 96.25 and "(their moving average)" in text and "97.5" not in text


def test_how_the_epoch_was_chosen():
    assert "choosing by it flatters it" in card()
    last = card(best={"test_acc1": 98.125})
    assert "The run's best top-1 accuracy was 98.12, at another epoch." in last and "flatters" not in last


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_stay_names(name):
    config = RECOGNITION | {"label_names": ["cat", name]}
    text = card(config, title=name, command=["train.py", name], weights=name, settings={"opt": name}, commit=name, data_id=name)
    data, below = parsed(text.encode().decode())
    assert data["license"] == "other" and data["pipeline_tag"] == "image-classification" and len(data) <= 9
    assert len(list(yaml.safe_load_all(text.split("\n---\n")[0]))) == 1
    headings = [line for line in below.splitlines() if line.startswith("## ")]
    assert headings == ["## Score", "## Data", "## Use", "## Recipe", "## Limits"]
    assert all(len(line) < 1500 for line in below.splitlines())
    fence, *block = below.partition("order of the logits:\n\n")[2].splitlines()
    assert block[0] == "cat" and block[2] == fence and fence not in block[1] and set(fence) == {"`"}


def test_many_classes():
    text = card(RECOGNITION | {"label_names": [f"class {i}" for i in range(1000)]})
    assert "1000 classes" in text and "class 19\n```" in text and "(the first 20 of 1000; config.json has all)" in text


@pytest.mark.parametrize(
    "word, shown",
    [
        ("/home/ann/secret/pets", "pets"),
        ("/home/ann/pets/train", "pets/train"),
        ("~/pets", "pets"),
        ("../../ann/pets", "pets"),
        ("pets/train", "pets/train"),
        ("/", "."),
        ("@/home/ann/my.args", "@my.args"),
        ("@recipes/recognition/a.args", "@recipes/recognition/a.args"),
        ("--data_path=/home/ann/pets", "--data_path=pets"),
        ("local-dir:/home/ann/run/best", "local-dir:run/best"),
        ("https://ann:pw@host:8080/a/w.pth?token=x#y", "https://host:8080/a/w.pth"),
        ("https://[half", "URL"),
        ("hf-hub:timm/resnet18", "hf-hub:timm/resnet18"),
        ("depths=(1,1,2,1)", "depths=(1,1,2,1)"),
        ("0.004", "0.004"),
    ],
)
def test_what_is_nobody_elses_business(word, shown):
    assert shareable(word) == shown
    text = card(title=word, weights=word, command=["/home/ann/train.py", word])
    assert "ann" not in text and shlex.join(["train.py", shown]) in text


@pytest.mark.parametrize(
    "name, listed", [("user/pets", True), ("mnist", True), ("tests", False), ("a/b/c", False), ("a b", False)]
)
def test_only_a_hub_id_is_listed_as_a_data_set(name, listed, monkeypatch, tmp_path):
    (tmp_path / "tests").mkdir()
    monkeypatch.chdir(tmp_path)
    data, _ = parsed(card(data_id=name))
    assert data.get("datasets") == ([name] if listed else None)


@pytest.mark.parametrize("license", ["apache-2.0", "cc-by-nc-sa-4.0", None, ""])
def test_licenses(license):
    check_license(license)


@pytest.mark.parametrize("license", ["Apache License 2.0", "MIT", "mit\nmit"])
def test_no_licenses(license):
    with pytest.raises(InputError, match=r"^license [^\n]+: expected an identifier of the Hub, such as apache-2.0"):
        check_license(license)


@pytest.fixture
def run_folder(tmp_path):
    """A run with weights in best/."""
    record = {"settings": SETTINGS, "command": ["train.py"], "commit": "0123abc", "versions": {"torch": "2.15.0"}}
    (tmp_path / "args.json").write_text(json.dumps(record))
    (tmp_path / "log.txt").write_text(json.dumps({"epoch": 0, "test_acc1": 50.0}) + "\n" + json.dumps(RECORD) + "\n")
    write_result(tmp_path / "best", ["cat", "dog", "emu"])
    return tmp_path


def cards_of(folder, **options):
    config = json.loads((folder / "best" / "config.json").read_text())
    return Cards(folder, config=config, title="my pets", weights="from scratch", **options)


def test_a_card_tells_what_the_folder_of_its_run_holds(run_folder):
    (run_folder / "best" / "README.md").write_text("of an earlier epoch")
    cards = cards_of(run_folder)
    cards.write("best", {"epoch": 2, "test_acc1": 51.0}, {"test_acc1": 51.0})
    text = (run_folder / "best" / "README.md").read_text()
    assert "after epoch 3." in text and "`0123abc`; torch 2.15.0" in text and "| epochs | 10 |" in text and "train.py" in text
    cards.write("best", best={"test_acc1": 98.0})  # by the last record of log.txt
    text = (run_folder / "best" / "README.md").read_text()
    assert "after epoch 8." in text and "best top-1 accuracy was 98, at another epoch" in text
    Cards(None, config={}, title="", weights="").write("best")


def test_a_card_that_cannot_be_written_is_warned_of(run_folder):
    warnings = []
    cards_of(run_folder, warn=warnings.append).write("last")
    assert len(warnings) == 1 and warnings[0].startswith("the model card of last/ could not be written")


def test_the_lines_under_use_run_with_the_card_beside_the_weights(run_folder, tmp_path, monkeypatch):
    cards_of(run_folder).write("best")
    folder = run_folder / "best"
    assert {path.name for path in folder.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert metadata_load(folder / "README.md")["library_name"] == "timm"
    assert timm.create_model(f"local-dir:{folder}", pretrained=True).num_classes == 3
    printed = []
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    code = code.replace("FOLDER_OF_THIS_FILE", str(folder))
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (80, 60)).save("image.jpg")
    exec(code, {"print": lambda *words: printed.extend(words)})
    assert printed[0] in ("cat", "dog", "emu")


@pytest.mark.parametrize("config, line", [
    (RECOGNITION, 'timm.create_model("hf-hub:me/pets", pretrained=True)'),
    (SEGMENTATION, 'open_segmenter(huggingface_hub.snapshot_download("me/pets"))'),
])  # fmt: skip
def test_use_names_the_repository(config, line):
    text = card(config, repo_id="me/pets")
    assert line in text and "FOLDER_OF_THIS_FILE" not in text
    compile(text.split("```python\n")[1].split("```")[0], "card", "exec")
