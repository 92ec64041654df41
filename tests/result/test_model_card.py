"""Model cards: read back as the Hub reads them, with nothing but what is known, whatever the names are made of."""

import json
import shlex

import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard, metadata_load

from utils.cli.errors import InputError
from utils.model.recognition import build_model, timm_config
from utils.result import card as model_card
from utils.run.checkpoint import export_weights

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
    "test_miou": 61.5, "test_pixacc": 80.25, "n_parameters": 3390000,
}  # fmt: skip
# What a folder of classes, or the user, may be called.
HOSTILE = [
    "---", "a: b", "- x", "null", "'", '"', "\\", "```", "````", "`", "{}", "[", "#", "%", "&a", "*a", "!!python/object:os",
    "\n---\nlicense: mit\n---\n", "line\u2028two\x85three", "\x00\x1b[31m", "<script>alert(1)</script>", "|", "a | b", "猫",
    "\ud800", "yes", "1e3", " ", "", "x" * 5000,
]  # fmt: skip


def card(config=RECOGNITION, **changes):
    facts = {
        "record": RECORD, "best": {"test_acc1": 97.5, "test_miou": 61.5}, "settings": SETTINGS, "title": "my pets",
        "weights": "from scratch", "command": ["train_recognition.py", "--epochs", "10"], "commit": "0123abc+",
        "versions": {"python": "3.11", "torch": "2.15.0"},
    }  # fmt: skip
    return model_card.text(config, **facts | changes)


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
    assert (
        "| top-1, % | top-5, % | cross-entropy | validation images |\n| --- | --- | --- | --- |\n| 97.5 | 99.75 | 0.125 | 359 |"
        in text
    )
    for known in (
        "3,390,000 parameters",
        "1,438 training images",
        "64 x 64",
        "```\ncat\ndog\nemu\n```",
        "after epoch 8.",
        "0123abc+",
    ):
        assert known in text
    assert "| lr | 0.004 |" in text and "| seed | 0 |" in text and "mixup" not in text and "clip_grad" not in text


def test_segmentation():
    data, text = parsed(card(SEGMENTATION))
    _, metric = score(data)
    assert data["pipeline_tag"] == "image-segmentation" and "library_name" not in data
    assert (metric["type"], metric["value"]) == ("mean_iou", 61.5)
    assert (
        "upernet-resnet18" in text
        and "| 61.5 | 80.25 | 359 |" in text
        and "open_network(" in text
        and "timm.create" not in text
    )


def test_what_nobody_said_is_not_in_it():
    data, text = parsed(card(record={"epoch": 9}, best={}, commit=None, settings={}))
    assert (data["license"], data["license_name"]) == ("other", "unknown") and "License: unknown" in text
    assert not {"model-index", "datasets"} & set(data)
    assert "They were not evaluated." in text and "unknown training images" in text and "Commit unknown" in text
    assert "parameters" not in text and "top-1" not in text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_a_score_that_is_no_number_is_no_score(value):
    data, text = parsed(card(record={"epoch": 0, "test_acc1": value}))
    assert "model-index" not in data and "not evaluated" in text


def test_the_average_has_its_own_score():
    data, text = parsed(card(ema=True, best={"test_acc1": 97.5, "test_acc1_ema": 96.25}))
    assert score(data)[1]["value"] == 96.25 and "(their moving average)" in text and "97.5" not in text


def test_how_the_epoch_was_chosen():
    assert "choosing by it flatters it" in card()
    last = card(best={"test_acc1": 98.125})
    assert "The run's best top-1 was 98.12, at another epoch." in last and "flatters" not in last


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_stay_names(name):
    config = RECOGNITION | {"label_names": ["cat", name]}
    text = card(config, title=name, command=["train.py", name], weights=name, settings={"opt": name}, commit=name, data_id=name)
    text = text.encode("utf-8").decode("utf-8")
    data, below = parsed(text)
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
    assert model_card.shareable(word) == shown
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


@pytest.mark.parametrize("license", ["apache-2.0", "mit", "cc-by-nc-sa-4.0", None, ""])
def test_licenses(license):
    model_card.check_license(license)


@pytest.mark.parametrize("license", ["Apache License 2.0", "MIT", "-", "mit\nmit"])
def test_no_licenses(license):
    with pytest.raises(InputError, match=r"^license [^\n]+: expected an identifier of the Hub, such as apache-2.0"):
        model_card.check_license(license)


def test_beside_the_weights(tmp_path, monkeypatch):
    """The lines under "Use" run as they stand there, and timm opens the folder with the card in it."""
    kwargs = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}
    model = build_model("convnextv2_atto", ["cat", "dog", "emu"], model_kwargs=kwargs)
    geometry = {"mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0, "crop_mode": "center"}
    config = timm_config(model, "convnextv2_atto", ["cat", "dog", "emu"], input_size=64, model_kwargs=kwargs, **geometry)
    export_weights(tmp_path / "best", model.state_dict(), config)
    (tmp_path / "best" / "README.md").write_text("of an earlier epoch")
    model_card.write(tmp_path / "best", card(config))

    assert {path.name for path in (tmp_path / "best").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert metadata_load(tmp_path / "best" / "README.md")["library_name"] == "timm"
    again = timm.create_model(f"local-dir:{tmp_path / 'best'}", pretrained=True)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))

    from PIL import Image

    said = []
    code = (tmp_path / "best" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    code = code.replace("FOLDER_OF_THIS_FILE", str(tmp_path / "best"))
    exec(code, {"image": Image.new("RGB", (80, 60)), "print": said.append})
    assert said[0] in ("cat", "dog", "emu")


@pytest.mark.parametrize("config, line", [
    (RECOGNITION, 'timm.create_model("hf-hub:me/pets", pretrained=True)'),
    (SEGMENTATION, 'open_network(huggingface_hub.snapshot_download("me/pets"))'),
])  # fmt: skip
def test_use_names_the_repository(config, line):
    text = card(json.loads(json.dumps(config)), repo_id="me/pets")
    assert line in text and "FOLDER_OF_THIS_FILE" not in text
    compile(text.split("```python\n")[1].split("```")[0], "card", "exec")
