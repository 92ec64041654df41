"""Prediction for recognition: timm's own numbers for every image, in a CSV file that survives odd names and broken files."""

import csv
import json
import shutil

import numpy as np
import pytest
import timm
import torch
from conftest import forked
from made_result import write_result
from PIL import Image

from utils.cli.errors import InputError
from utils.images.read import AS_STORED, Reading
from utils.result.predict_recognition import predict, table
from utils.run.checkpoint import export_weights

CLASSES = ["cat", 'a "quoted", name', "Ümläut 猫"]
EARLIER = "image,label_1,probability_1\nold"
GEOMETRIES = {"center": (48, 0.75), "squash": (32, 1.0)}  # crop_mode: (input_size, crop_pct)
ODD = ["a.png", "b, c.jpg", 'deep/er/"quoted".png', "deep/猫\nline.png", "grey.png", "alpha.png", "sixteen.png", "palette.gif"]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Networks this small only wait for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=GEOMETRIES)
def folder(request, tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp(request.param) / "best", request.param)


@pytest.fixture(scope="module")
def one_folder(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("one") / "best", "squash")


def model_folder(path, crop_mode):
    """As training leaves it, with weights large enough that the classes' probabilities are apart."""
    size, crop_pct = GEOMETRIES[crop_mode]
    write_result(path, CLASSES, input_size=size, crop_pct=crop_pct, crop_mode=crop_mode)
    model = timm.create_model(f"local-dir:{path}", pretrained=True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    export_weights(path, model.state_dict(), json.loads((path / "config.json").read_text()))
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """ODD: names, depths, modes, and sizes from 1 x 1 on."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    modes = {"grey.png": "L", "alpha.png": "RGBA", "sixteen.png": "I;16", "palette.gif": "P"}
    for number, name in enumerate(ODD):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        size = (1, 1) if number == 0 else tuple(rng.integers(5, 120, 2))
        image = Image.fromarray(rng.integers(0, 255, (*size, 3)).astype(np.uint8))
        if modes.get(name) == "I;16":
            image = Image.fromarray(rng.integers(0, 65535, size).astype(np.uint16))
        elif name in modes:
            image = image.convert(modes[name])
        image.save(root / name)
    (root / "notes.txt").write_text("no image")
    return root


def read(path):
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def quiet(folder, images, output, **kwargs):
    """The lines that `predict` says."""
    said = []
    predict(folder, images, output, **{"device": "cpu", "say": said.append} | kwargs)
    return said


@pytest.mark.parametrize("workers", [0, 2])
def test_the_numbers_are_those_of_timm_for_each_image_alone(folder, images, tmp_path, workers):
    quiet(folder, images, tmp_path / "out.csv", batch_size=3, workers=workers)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    rows = read(tmp_path / "out.csv")
    assert sorted(row["image"] for row in rows) == sorted(ODD)
    seen = set()
    for row in rows:
        image = Image.open(images / row["image"])
        if image.mode.startswith("I"):  # the upper 8 bits, where Pillow would make white of it
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        with torch.no_grad():
            expected = model(transform(image.convert("RGB"))[None])[0].softmax(0)
        found = {row[f"label_{i}"]: float(row[f"probability_{i}"]) for i in (1, 2, 3)}
        assert [found[name] for name in CLASSES] == pytest.approx(expected.tolist(), abs=1e-6)
        assert list(found.values()) == sorted(found.values(), reverse=True)
        seen.add(round(found["cat"], 5))
    assert len(seen) > 3  # the images are told apart


def test_what_cannot_be_read_is_named_and_has_empty_cells(one_folder, images, tmp_path):
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    (mixed / "broken.jpg").write_text("no picture")
    (mixed / "whole.png").write_bytes((images / "grey.png").read_bytes())
    (mixed / "truncated.png").write_bytes((images / "grey.png").read_bytes()[:60])
    said = quiet(one_folder, mixed, tmp_path / "new/deep/out.csv", topk=2)
    rows = {row.pop("image"): row for row in read(tmp_path / "new/deep/out.csv")}
    assert list(rows) == ["broken.jpg", "truncated.png", "whole.png"]
    assert list(rows["whole.png"]) == ["label_1", "probability_1", "label_2", "probability_2"] and all(
        rows["whole.png"].values()
    )
    assert not any([*rows["broken.jpg"].values(), *rows["truncated.png"].values()])
    warnings = [line for line in said if line.startswith("warning: ")]
    assert len(warnings) == 2 and "broken.jpg is no image" in warnings[0] and "truncated.png" in warnings[1]
    assert "predicted: 1 image, 2 more could not be read" in said[-1]
    assert sorted(path.name for path in (tmp_path / "new/deep").iterdir()) == ["out.csv"]


def test_two_processes_write_what_one_writes(one_folder, images, tmp_path):
    quiet(one_folder, images, tmp_path / "one.csv")
    parts, said = [], []

    class Gathered(Exception):
        pass

    def hand_in(part):
        parts.extend(part)
        raise Gathered

    with pytest.raises(Gathered):
        quiet(one_folder, images, tmp_path / "two.csv", process=1, processes=2, gather=hand_in)
    assert len(parts) == len(ODD) // 2 and not (tmp_path / "two.csv").exists()
    said = quiet(one_folder, images, tmp_path / "two.csv", process=0, processes=2, gather=lambda part: part + parts)
    assert [row["image"] for row in read(tmp_path / "two.csv")] == [row["image"] for row in read(tmp_path / "one.csv")]
    for one, two in zip(read(tmp_path / "one.csv"), read(tmp_path / "two.csv"), strict=True):
        for column in one:
            same = float(one[column]) == pytest.approx(float(two[column])) if "prob" in column else one[column] == two[column]
            assert same
    assert "predicted: 8 images" in said[-1]
    whole = [(number, None, [(0, 1.0)]) for number in range(len(ODD))]
    assert quiet(one_folder, images, tmp_path / "none.csv", process=1, processes=2, gather=lambda part: whole) == []
    assert not (tmp_path / "none.csv").exists()


def test_one_file_and_a_name_that_is_no_text(one_folder, images, tmp_path):
    said = quiet(one_folder, images / "a.png", tmp_path / "out.csv", topk=1)
    assert [row["image"] for row in read(tmp_path / "out.csv")] == ["a.png"]
    assert len(said) == 3 and said[1].split()[0] == "a.png" and "predicted: 1 image;" in said[2]
    odd = tmp_path / "odd"
    odd.mkdir()
    name = b"\xff\x1b[31m.png".decode(errors="surrogateescape")
    try:
        (odd / name).write_bytes((images / "a.png").read_bytes())
    except OSError:
        pytest.skip("this disk takes no such name")
    said = quiet(one_folder, odd, tmp_path / "odd.csv")
    assert [row["image"] for row in read(tmp_path / "odd.csv")] == ["\udcff\\x1b[31m.png"]
    assert all(line.isprintable() for line in said) and "\\udcff\\x1b[31m.png" in said[1]


def test_the_table_is_aligned_and_short(one_folder, images, tmp_path):
    lines = table([("猫.png", [("cat", 0.75), ("dog", 0.25)]), ("d/" * 60 + "long.png", [("猫", 1.0)]), ("bad.png", None)])
    assert lines[0].split() == ["image", "label", "probability", "others"]
    assert lines[1].index("cat") == lines[0].index("label") - 1  # a wide letter takes two columns
    assert lines[1].endswith("dog 0.2500") and "long.png  猫" in lines[2] and lines[2].startswith("…")
    assert lines[3].index("cannot be read") == lines[0].index("label")
    many = tmp_path / "many"
    many.mkdir()
    for number in range(23):
        (many / f"{number:02}.png").write_bytes((images / "a.png").read_bytes())
    said = quiet(one_folder, many, tmp_path / "out.csv", batch_size=8)
    assert len(said) == 22 and said[20].startswith("19.png") and "23 images, the first 20" in said[21]
    assert len(read(tmp_path / "out.csv")) == 23


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_names": None}, "found no label_names.*expected a list of 3 names"),
        ({"label_names": ["cat"]}, "found 1 label_names"),
        ({"pretrained_cfg": {"crop_pct": "all"}}, "config.json: describes no model"),
    ],
)
def test_a_model_without_names_or_geometry_is_refused(one_folder, images, tmp_path, change, message):
    config = json.loads((one_folder / "config.json").read_text())
    change = {name: config[name] | value if isinstance(value, dict) else value for name, value in change.items()}
    config |= change
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((one_folder / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match=message):
        quiet(tmp_path, images, tmp_path / "out.csv")


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18.a1_in1k", "nowhere"])
def test_a_model_that_is_not_on_the_disk_is_refused(images, tmp_path, name):
    with pytest.raises(InputError, match="found no config.json; expected a folder such as RUN/best"):
        quiet(name, images, tmp_path / "out.csv")


def test_weights_that_are_not_finite_are_refused_and_leave_the_old_file(one_folder, images, tmp_path):
    broken, output = tmp_path / "best", tmp_path / "out.csv"
    model = timm.create_model(f"local-dir:{one_folder}", pretrained=True)
    torch.nn.init.constant_(model.get_classifier().weight, float("nan"))
    export_weights(broken, model.state_dict(), json.loads((one_folder / "config.json").read_text()))
    output.write_text(EARLIER)
    with pytest.raises(InputError, match="not finite"):
        quiet(broken, images, output)
    assert output.read_text() == EARLIER


def test_names_do_not_steer_a_terminal_or_run_in_a_spreadsheet(tmp_path):
    folder = write_result(tmp_path / "model", ["=1+1", "-1", "a\x1b[2J"])
    for name in ("=cmd.png", "@x.png", "a\x1b[2J\t.png", "-x.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
        predict(folder, tmp_path / name, tmp_path / "out.csv", device="cpu", say=lambda line: None)
        text = (tmp_path / "out.csv").read_text()
        (row,) = list(csv.reader(text.splitlines()))[1:]
        assert row[0] == {"a": "a\\x1b[2J\\t.png"}.get(name[0], f"'{name}") and "\x1b" not in text
        assert {row[1], row[3], row[5]} == {"'=1+1", "-1", "a\\x1b[2J"}


def test_images_none_of_which_can_be_read_are_one_line(one_folder, tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    (tmp_path / "b.png").write_text("no picture")
    with pytest.raises(InputError, match=r"a\.png is no image.*nor can the other 1 below"):
        quiet(one_folder, tmp_path, tmp_path / "out.csv")
    with pytest.raises(InputError, match=r"b\.png is no image.*replace it$"):
        quiet(one_folder, tmp_path / "b.png", tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_an_earlier_prediction_is_replaced_with_a_word_and_no_other_file(one_folder, images, tmp_path):
    (tmp_path / "out.csv").write_text("image,price\na.png,5\n")
    with pytest.raises(InputError, match="out.csv: would be replaced, and no --predict wrote it; name another --output_dir"):
        quiet(one_folder, images / "a.png", tmp_path / "out.csv")
    assert "price" in (tmp_path / "out.csv").read_text()
    assert not any("replaced" in line for line in quiet(one_folder, images / "a.png", tmp_path / "new.csv"))
    said = quiet(one_folder, images / "b, c.jpg", tmp_path / "new.csv")
    assert said[0].startswith(f"replaced: {tmp_path}/new.csv, of an earlier prediction")
    assert [row["image"] for row in read(tmp_path / "new.csv")] == ["b, c.jpg"]


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_read(one_folder, images, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for output, message in ((tmp_path, "it is a folder"), (tmp_path / "file" / "out.csv", "cannot be written")):
        with pytest.raises(InputError, match=message):
            quiet(one_folder, images, output)


def test_a_file_that_breaks_off_leaves_the_old_one_and_nothing_aside(one_folder, images, tmp_path):
    (tmp_path / "out.csv").write_text(EARLIER)
    config = json.loads((one_folder / "config.json").read_text()) | {"label_names": ["\ud800", "cat", "dog"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((one_folder / "model.safetensors").read_bytes())
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match="cannot be written .*surrogates"):
        quiet(tmp_path, images, tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == EARLIER and sorted(tmp_path.iterdir()) == before


def test_a_temperature_makes_it_less_sure_and_what_is_unsure_is_said(one_folder, images, tmp_path):
    quiet(one_folder, images, tmp_path / "before.csv")
    warm = tmp_path / "warm"
    shutil.copytree(one_folder, warm)
    config = json.loads((warm / "config.json").read_text())
    (warm / "config.json").write_text(json.dumps(config | {"temperature": 2.0}))
    quiet(warm, images, tmp_path / "after.csv", unsure=0.7)
    before, after = read(tmp_path / "before.csv"), read(tmp_path / "after.csv")
    for old, new in zip(before, after, strict=True):
        probabilities = np.array([float(old[f"probability_{i}"]) for i in (1, 2, 3)]) ** 0.5
        assert float(new["probability_1"]) == pytest.approx(probabilities[0] / probabilities.sum(), rel=1e-4)
        assert new["label_1"] == old["label_1"] and "answer" not in old
        assert new["answer"] == (new["label_1"] if float(new["probability_1"]) >= 0.7 else "unsure")
    (warm / "config.json").write_text(json.dumps(config | {"temperature": 0}))
    with pytest.raises(InputError, match="temperature 0 in config.json; expected a number of 0.01 to 100"):
        quiet(warm, images, tmp_path / "after.csv")


def test_the_mean_of_several_models(one_folder, images, tmp_path):
    """Each looks at images in its own size, and is calibrated by its own temperature."""
    second = model_folder(tmp_path / "second", "center")
    config = json.loads((second / "config.json").read_text())
    (second / "config.json").write_text(json.dumps(config | {"temperature": 2.0}))
    found = {}
    for name, folders in {"one": [one_folder], "two": [second], "both": [one_folder, second]}.items():
        first, *others = folders
        quiet(first, images, tmp_path / f"{name}.csv", topk=3, others=[(other, None, None, AS_STORED) for other in others])
        rows = read(tmp_path / f"{name}.csv")
        found[name] = [{row[f"label_{i}"]: float(row[f"probability_{i}"]) for i in (1, 2, 3)} for row in rows]
    for one, two, both in zip(*found.values(), strict=True):
        assert both == pytest.approx({name: (one[name] + two[name]) / 2 for name in one}, abs=1e-6)
    for names, message in ((CLASSES[::-1], "the same classes in another order"), (["a", "b", "c"], "3 other classes")):
        (second / "config.json").write_text(json.dumps(config | {"label_names": names}))
        with pytest.raises(InputError, match=f"second: found {message} than .*; expected the same ones"):
            quiet(one_folder, images, tmp_path / "no.csv", others=[(second, None, None, AS_STORED)])
    (second / "config.json").write_text(json.dumps(config | {"task": "multilabel"}))
    with pytest.raises(InputError, match="one names several labels an image, the other one"):
        quiet(one_folder, images, tmp_path / "no.csv", others=[(second, None, None, AS_STORED)])


def test_the_mirror_image_counts_where_the_weights_or_the_line_say_so(one_folder, images, tmp_path):
    """Their temperature was found on such logits."""
    flipped = tmp_path / "flipped"
    shutil.copytree(one_folder, flipped)
    config = json.loads((one_folder / "config.json").read_text())
    (flipped / "config.json").write_text(json.dumps(config | {"tta_flip": True, "temperature": 2.0}))
    model = timm.create_model(f"local-dir:{one_folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    image = transform(Image.open(images / "grey.png").convert("RGB"))[None]
    with torch.no_grad():
        one, mirrored = model(image)[0], model(image.flip(-1))[0]
    assert (one - mirrored).abs().max() > 1e-3
    for folder, words, expected in (
        (one_folder, [], one),
        (one_folder, ["--tta_flip", "true"], (one + mirrored) / 2),
        (flipped, [], (one + mirrored) / 4),
        (flipped, ["--tta_flip", "false"], one / 2),
    ):
        flip = {"flip": words[1] == "true"} if words else {}
        quiet(folder, images / "grey.png", tmp_path / "out.csv", **flip)
        (row,) = read(tmp_path / "out.csv")
        found = [{row[f"label_{i}"]: float(row[f"probability_{i}"]) for i in (1, 2, 3)}[name] for name in CLASSES]
        assert found == pytest.approx(expected.softmax(0).tolist(), abs=1e-6)
        done = forked(
            "train_recognition", "--predict", images / "grey.png", "--finetune", folder, *words, "--output_dir", tmp_path
        )
        assert done.returncode == 0, done.stderr
        (row,) = read(tmp_path / "predictions.csv")
        assert float(row["probability_1"]) == pytest.approx(max(found), abs=1e-5)


def test_the_number_of_classes_is_of_one_label_an_image(one_folder, images, tmp_path):
    several = tmp_path / "several"
    shutil.copytree(one_folder, several)
    config = json.loads((one_folder / "config.json").read_text())
    (several / "config.json").write_text(json.dumps(config | {"task": "multilabel"}))
    with pytest.raises(InputError, match="--topk: .*several names several labels an image"):
        quiet(several, images / "grey.png", tmp_path / "out.csv", topk=3)


def test_each_of_several_models_reads_images_as_it_was_trained(one_folder, images, tmp_path):
    second, image = model_folder(tmp_path / "second", "center"), images / "sixteen.png"
    config = json.loads((second / "config.json").read_text())
    (second / "config.json").write_text(json.dumps(config | {"value_range": [0, 200_000]}))
    probabilities = []
    for folder, reading in ((one_folder, AS_STORED), (second, Reading((0, 200_000)))):
        quiet(folder, image, tmp_path / "one.csv", topk=3, reading=reading)
        probabilities.append(probabilities_of(tmp_path / "one.csv"))
    done = forked(
        "train_recognition", "--predict", image, "--finetune", one_folder, second, "--topk", 3, "--output_dir", tmp_path / "out"
    )
    assert done.returncode == 0, done.stderr
    expected = {name: (probabilities[0][name] + probabilities[1][name]) / 2 for name in CLASSES}
    assert probabilities_of(tmp_path / "out/predictions.csv") == pytest.approx(expected, abs=1e-5)


def probabilities_of(path):
    (row,) = read(path)
    return {row[f"label_{place}"]: float(row[f"probability_{place}"]) for place in (1, 2, 3)}
