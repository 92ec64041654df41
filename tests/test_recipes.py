"""Every recipe's resolved run against the published settings, field by field; the README's tables against the recipes."""

import json
import math
import re
import runpy

import pytest
from accelerate.state import AcceleratorState
from conftest import GOLDEN, ROOT

import train_recognition
import train_segmentation

RECIPES = sorted((ROOT / "recipes" / "recognition").glob("*.args"))
SEGMENTATION = sorted((ROOT / "recipes" / "segmentation").glob("*.args"))
# the published name -> timm's, where they differ
TIMM = {"resnest50": "resnest50d", "resnest101": "resnest101e", "resnest200": "resnest200e", "resnest269": "resnest269e"}
GPUS_PER_NODE = 8  # PyTorch-Encoding does not state them; its recipes say that they assume eight


def published_rows():
    """The rows that a recipe is due for: no FCMAE, no isotropic models (timm has none), no --rectify (no score)."""
    rows = json.loads((GOLDEN / "published_settings.json").read_text()) if GOLDEN.is_dir() else []
    due = [row for row in rows if row["task"] == "recognition" and row["kind"] == "command"]
    due = [row for row in due if "mask_ratio" not in (row["defaults"] or {}) and "isotropic" not in row["id"]]
    return {row["id"]: row for row in due if not row["settings"].get("rectify")}


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Each run in this process may ask for another precision."""
    AcceleratorState._reset_state(reset_partial_state=True)


def resolve(recipe, capsys, script=train_recognition):
    """What `--dry_run json` prints for a recipe."""
    script.main(script.parse_args([f"@{recipe}", "--dry_run", "json"]))
    return json.loads(capsys.readouterr().out)


def expected_fields(row):
    """{field of our dry run: published value}, from what the row's command says and from the defaults it relies on."""
    flags, effective = {**row["defaults"], **row["settings"]}, row["effective"]
    model = flags.get("model") or row["settings_by_launch"]["multi_node"]["model"]
    fields = {
        "model": TIMM.get(model, model),
        "input_size": row["resolution"]["train"],
        "epochs": effective["epochs"],
        "warmup_epochs": effective["warmup_epochs"],
        "mixup": flags["mixup"],
        "weight_decay": flags["weight_decay"],
        "classes": flags.get("nb_classes", 1000),
    }
    if row["family"] == "pytorch_encoding_recognition":
        total = flags["batch_size"] * flags["world_size"] * GPUS_PER_NODE
        return fields | {
            "total_batch_size": total, "lr": effective["lr_per_256_images"] * total / 256, "sched": "cosine", "cutmix": 0.0,
            "smoothing": flags["label_smoothing"], "momentum": flags["momentum"], "opt": "momentum",
            "last_gamma": flags["last_gamma"],
            "weight_decay_filter": "bn_names" if flags["no_bn_wd"] else "none", "transforms": "encoding", "min_lr": 0.0,
            "aa": "rand-n2-m12" if flags["rand_aug"] else "none", "reprob": 0.0, "scale": [0.1, 1.0], "model_ema": False,
            "layer_decay": 1.0, "drop_path": 0.0, "drop_block": flags["dropblock_prob"],
        }  # fmt: skip
    same = (
        "drop_path", "layer_decay", "smoothing", "cutmix", "reprob", "remode", "recount", "aa", "color_jitter", "opt",
        "train_interpolation", "mixup_prob", "mixup_switch_prob", "mixup_mode", "cutmix_minmax", "crop_pct", "clip_grad",
        "weight_decay_end", "min_lr", "model_ema_decay", "model_ema", "opt_betas", "warmup_steps", "head_init_scale",
        "imagenet_default_mean_and_std", "model_key", "disable_eval",
    )  # fmt: skip
    fields |= {name: flags[name] for name in same if name in flags}
    v1 = row["family"] == "convnext"
    return fields | {
        "total_batch_size": effective["total_batch_size"],
        "lr": effective["lr_absolute"],
        "sched": "cosine_v1" if v1 else "cosine",
        "layer_decay_type": flags.get("layer_decay_type", "group") if flags["layer_decay"] < 1 else "single",
        "transforms": "timm",
        "scale": [0.08, 1.0],
        "weight_decay_filter": "norm_bias",
    }


def test_there_is_a_recipe_for_every_row(golden):
    assert len(RECIPES) == 23 and {path.stem for path in RECIPES} == set(published_rows())


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_equals_the_published_settings(recipe, capsys, golden):
    row = published_rows()[recipe.stem]
    run = resolve(recipe, capsys)
    ours = {**run["args"], **{name: run[name] for name in ("classes", "total_batch_size")}}
    expected = expected_fields(row)
    assert len(expected) >= 24
    differ = {name: (ours[name], value) for name, value in expected.items() if not _equal(ours[name], value)}
    assert not differ, f"(ours, published): {differ}"

    assert run["lr"]["peak"] == pytest.approx(expected["lr"], rel=1e-12)
    images = {1000: 1_281_167, 21_841: 14_197_122}[run["classes"]]
    assert run["updates_per_epoch"] == images // run["total_batch_size"] and run["train_images"] == images
    assert run["lr"]["after_warmup"] == pytest.approx(run["lr"]["peak"], rel=1e-12)
    assert run["lr"]["start"] == (0 if run["warmup_updates"] else run["lr"]["peak"])
    floor = run["args"]["min_lr"]
    half = run["updates"] / 2
    share = (half - run["warmup_updates"]) / (run["updates"] - run["warmup_updates"])
    middle = floor + (run["lr"]["peak"] - floor) * (1 + math.cos(math.pi * share)) / 2
    assert run["lr"]["middle"] == pytest.approx(middle, rel=1e-3) and run["lr"]["end"] < run["lr"]["peak"] * 1e-4 + floor
    if row["flops"]:
        assert run["multiply_adds"] / 1e9 == pytest.approx(float(row["flops"].rstrip("G")), rel=0.05)
    if row["params"]:
        assert run["parameters"] / 1e6 == pytest.approx(float(row["params"].rstrip("M")), rel=0.03)

    start = row["init"].get("published_file_matching_description")
    text = recipe.read_text()
    assert run["args"]["finetune"].endswith(start) if start else not run["args"]["finetune"]
    assert f"# Start: {run['args']['finetune'] or 'scratch'}\n" in text and f"row {row['id']}." in text
    assert (row["expected"]["published_as"] + " % top-1" if row["expected"] else "none published") in text
    assert "total_batch_size" in text and "--batch_size" not in text


# --- segmentation

SIZES = {"ade20k": (20_210, 150), "pcontext": (4_998, 59), "pascal_voc": (1_464 + 1_449, 21), "pascal_aug": (8_498, 21)}


def published_segmentation_rows():
    rows = json.loads((GOLDEN / "published_settings.json").read_text()) if GOLDEN.is_dir() else []
    return {row["id"]: row for row in rows if row["task"] == "segmentation"}


def expected_segmentation_fields(row):
    """{field of our dry run: published value}."""
    settings, effective = row["settings"], row["effective"]
    fields = {"total_batch_size": effective["total_batch_size"], "lr": effective["lr_absolute"]}
    if row["kind"] == "config":
        optimizer, schedule = settings["optimizer"], settings["lr_config"]
        base = row["defaults"]["_base_/models/upernet_convnext.py"]
        head, aux, side = base["decode_head"], base["auxiliary_head"], settings["crop_size"][0]
        external = row["defaults"]["external_base_configs"]
        return fields | {
            "model": "upernet", "backbone": "convnext_" + row["id"].split("_")[2], "classes": settings["num_classes"],
            "crop_size": side, "base_size": side, "opt": optimizer["type"].lower(), "weight_decay": optimizer["weight_decay"],
            "layer_decay": optimizer["paramwise_cfg"]["decay_rate"], "sched": "poly_mmseg", "power": schedule["power"],
            "layer_decay_type": optimizer["paramwise_cfg"]["decay_type"], "warmup_steps": schedule["warmup_iters"],
            "min_lr": schedule["min_lr"], "max_updates": effective["iterations"], "aux": True, "head_lr_scale": 1.0,
            "aux_weight": aux["loss_decode"]["loss_weight"], "aux_channels": aux["channels"], "dropout": head["dropout_ratio"],
            "drop_path": settings["backbone"]["drop_path_rate"], "transforms": "mmseg", "clip_grad": settings["grad_clip"],
            "ratio_range": external["ratio_range"], "cat_max_ratio": external["cat_max_ratio"], "sync_bn": True,
            "eval_mode": settings["test_cfg"]["ss"]["mode"], "use_amp": settings["use_fp16"], "data_set": settings["dataset"],
            "backbone_kwargs": [["ls_init_value", settings["backbone"]["layer_scale_init_value"]]],
            "weight_decay_filter": "norm_bias",
        }  # fmt: skip
    flags = {**row["defaults"], **settings}
    backbone = flags["backbone"] if row["id"] != "encnet_resnet101s_voc_stage1_aug" else "resnet101"  # see its header
    data = settings["dataset"].lower()
    return fields | {
        "model": flags.get("model", "encnet").lower(), "backbone": TIMM.get(backbone, f"{backbone}.tv_in1k"), "data_set": data,
        "classes": SIZES[data][1], "crop_size": flags["crop_size"], "base_size": flags["base_size"], "opt": "momentum",
        "momentum": flags["momentum"], "weight_decay": flags["weight_decay"], "sched": flags["lr_scheduler"], "power": 0.9,
        "epochs": effective["epochs"], "warmup_epochs": 0, "aux": flags["aux"], "aux_weight": flags["aux_weight"],
        "se_loss": flags["se_loss"], "se_weight": flags["se_weight"], "lateral": flags.get("lateral", False), "min_lr": 0.0,
        "head_lr_scale": effective["lr_head"] / effective["lr_absolute"], "output_stride": 8, "transforms": "encoding",
        "ratio_range": [0.5, 2.0], "weight_decay_filter": "none", "layer_decay": 1.0, "sync_bn": True, "model_ema": False,
    }  # fmt: skip


def test_there_is_a_recipe_for_every_segmentation_row(golden):
    assert len(SEGMENTATION) == 26 and {path.stem for path in SEGMENTATION} == set(published_segmentation_rows())


@pytest.mark.parametrize("recipe", SEGMENTATION, ids=lambda path: path.stem)
def test_segmentation_recipe_equals_the_published_settings(recipe, capsys, golden):
    row = published_segmentation_rows()[recipe.stem]
    run = resolve(recipe, capsys, train_segmentation)
    ours = {**run["args"], **{name: run[name] for name in ("classes", "total_batch_size")}}
    expected = expected_segmentation_fields(row)
    assert len(expected) >= 25
    differ = {name: (ours[name], value) for name, value in expected.items() if not _equal(ours[name], value)}
    assert not differ, f"(ours, published): {differ}"

    images, _ = SIZES[expected["data_set"]]
    assert run["train_images"] == images and run["updates_per_epoch"] == images // 16
    assert run["updates"] == (row["effective"]["iterations"] or row["effective"]["epochs"] * (images // 16))
    scales = {round(group["lr_scale"], 6) for group in run["groups"] if group["first"].startswith("backbone.")}
    if row["kind"] == "config":
        published = row["effective"]["lr_scale_by_group"]
        assert scales == {value for name, value in published.items() if not name.startswith("backbone norm")}
        assert run["lr"]["start"] == pytest.approx(1e-6 * expected["lr"], rel=1e-9)
        assert run["lr"]["middle"] == pytest.approx(expected["lr"] / 2, rel=1e-9)
    else:
        assert scales == {1.0} and {group["lr_scale"] for group in run["groups"]} == {1.0, 10.0}
        assert run["lr"]["middle"] == pytest.approx(expected["lr"] * 0.5**0.9, rel=1e-3)
    text = recipe.read_text()
    assert f"row {row['id']}." in text and "total_batch_size" in text and "--batch_size" not in text
    if row["init"].get("url"):
        assert run["args"]["finetune"] == row["init"]["url"] and f"# Start: {row['init']['url']}\n" in text
    score = row["expected"] and row["expected"]["published_as"][0 if row["kind"] == "config" else 1].rstrip("%")
    assert f"# Expected: {score} % mIoU" in text if score else "# Expected: none published." in text


def _equal(ours, published):
    if isinstance(published, float) and isinstance(ours, (int, float)):
        return math.isclose(ours, published, rel_tol=1e-12)
    return ours == published


def test_a_dry_run_counts_the_groups_and_names_the_weights(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = ROOT / "recipes/recognition/convnextv2_base_ft_in1k.args"
    train_recognition.main(train_recognition.parse_args([f"@{recipe}", "--dry_run"]))
    text = capsys.readouterr().out
    assert "convnextv2_base_1k_224_fcmae.pt" in text and "ImageNet-1K by its published size" in text
    assert "--layer_decay 0.6" in text and "28 groups" in text and "88,717,800 parameters" in text
    assert "64 x update_freq 16 x 1 processes = 1024 images per update" in text
    assert not list(tmp_path.iterdir())


def test_the_tables_of_the_readme_are_in_step():
    make_tables = runpy.run_path(str(ROOT / "recipes" / "make_tables.py"))
    readme = (ROOT / "README.md").read_text()
    assert make_tables["with_tables"](readme) == readme, "run python recipes/make_tables.py"
    table = make_tables["table"]("recognition")
    assert len(table.splitlines()) == 2 + len(RECIPES)
    assert "| ConvNeXt-T | ImageNet-1K | 224 | 82.1 % top-1 |  | scratch | [convnext_tiny_in1k_224](" in table


def test_every_flag_that_the_readme_maps_exists():
    known = train_recognition.parse_args([])
    mapped = re.search(r"\| PyTorch-Encoding \| timm \| here \|\n(.*?)\n\n", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    flags = {flag for line in mapped.splitlines()[1:] for flag in re.findall(r"--(\w+)", line.split("|")[3])}
    assert len(flags) > 20 and flags - set(vars(known)) == {"mixed_precision"}  # which is Accelerate's
