"""Every recipe's flags against the published settings, field by field; dry runs of one recipe of each kind; the tables."""

import json
import math
import runpy

import pytest
from accelerate.state import AcceleratorState
from conftest import GOLDEN, ROOT

from utils.cli.first import parse
from utils.cli.recognition_flags import ModelOptions
from utils.model.recognition import build_model

RECIPES = {path.stem: path for path in sorted((ROOT / "recipes").glob("*/*.args"))}
# the published name -> timm's, where they differ
TIMM = {"resnest50": "resnest50d", "resnest101": "resnest101e", "resnest200": "resnest200e", "resnest269": "resnest269e"}
GPUS_PER_NODE = 8  # PyTorch-Encoding does not state them; its recipes say that they assume eight


def rows():
    """{recipe: its published row}: no FCMAE, nothing with --rectify (no score)."""
    published = json.loads((GOLDEN / "published_settings.json").read_text()) if GOLDEN.is_dir() else []
    due = [row for row in published if row["kind"] in ("command", "config") and "mask_ratio" not in (row["defaults"] or {})]
    return {row["id"]: row for row in due if not row["settings"].get("rectify")}


ROWS = rows()


def script_of(name):
    return f"train_{RECIPES[name].parent.name}.py"


def equal(ours, published):
    if isinstance(published, float) and isinstance(ours, (int, float)):
        return math.isclose(ours, published, rel_tol=1e-12)
    return ours == published


def expected_fields(row):
    """{flag: published value} of recognition, from what the row's command says and from the defaults it relies on."""
    flags, effective = {**row["defaults"], **row["settings"]}, row["effective"]
    model = flags.get("model") or row["settings_by_launch"]["multi_node"]["model"]
    fields = {
        "model": TIMM.get(model, model),
        "input_size": row["resolution"]["train"],
        "epochs": effective["epochs"],
        "warmup_epochs": effective["warmup_epochs"],
        "mixup": flags["mixup"],
        "weight_decay": flags["weight_decay"],
        "nb_classes": flags.get("nb_classes", 1000),
    }
    if row["family"] == "pytorch_encoding_recognition":
        total = flags["batch_size"] * flags["world_size"] * GPUS_PER_NODE
        return fields | {
            "total_batch_size": total, "lr": effective["lr_per_256_images"] * total / 256, "sched": "cosine", "cutmix": 0.0,
            "smoothing": flags["label_smoothing"], "momentum": flags["momentum"], "opt": "momentum",
            "last_gamma": False,  # whatever the command says: the published network fills all norms with 1 in the end
            "bn_images": flags["batch_size"],
            "weight_decay_filter": "bn_names" if flags["no_bn_wd"] else "none", "transforms": "encoding", "min_lr": 0.0,
            "aa": "rand-n2-m12" if flags["rand_aug"] else "none", "reprob": 0.0, "scale": (0.1, 1.0), "model_ema": False,
            "layer_decay": 1.0, "drop_path": 0.0, "drop_block": flags["dropblock_prob"],
        }  # fmt: skip
    same = (  # without color_jitter, which timm leaves out beside RandAugment
        "drop_path", "layer_decay", "smoothing", "cutmix", "reprob", "remode", "recount", "aa", "opt",
        "train_interpolation", "mixup_prob", "mixup_switch_prob", "mixup_mode", "cutmix_minmax", "crop_pct", "clip_grad",
        "weight_decay_end", "min_lr", "model_ema_decay", "model_ema", "opt_betas", "warmup_steps", "head_init_scale",
        "imagenet_default_mean_and_std", "model_key", "disable_eval",
    )  # fmt: skip
    fields |= {name: flags[name] for name in same if name in flags}
    if "isotropic" in model:  # two of them have no layer scale; the third, as all others, the default of main.py
        fields["layer_scale_init_value"] = flags.get("layer_scale_init_value", 1e-6)
    v1 = row["family"] == "convnext"
    return fields | {
        "total_batch_size": effective["total_batch_size"],
        "lr": effective["lr_absolute"],
        "sched": "cosine_v1" if v1 else "cosine",
        "layer_decay_type": flags.get("layer_decay_type", "group") if flags["layer_decay"] < 1 else "single",
        "transforms": "timm",
        "scale": (0.08, 1.0),
        "weight_decay_filter": "norm_bias",
    }


SIZES = {"ade20k": (20_210, 150), "pcontext": (4_998, 59), "pascal_voc": (1_464 + 1_449, 21), "pascal_aug": (8_498, 21)}


def expected_segmentation_fields(row):
    """{flag: published value} of segmentation."""
    settings, effective = row["settings"], row["effective"]
    fields = {"total_batch_size": effective["total_batch_size"], "lr": effective["lr_absolute"]}
    if row["kind"] == "config":
        optimizer, schedule = settings["optimizer"], settings["lr_config"]
        base = row["defaults"]["_base_/models/upernet_convnext.py"]
        head, aux, side = base["decode_head"], base["auxiliary_head"], settings["crop_size"][0]
        external = row["defaults"]["external_base_configs"]
        return fields | {
            "model": "upernet", "backbone": "convnext_" + row["id"].split("_")[2], "nb_classes": settings["num_classes"],
            "crop_size": side, "base_size": side, "opt": optimizer["type"].lower(), "weight_decay": optimizer["weight_decay"],
            "layer_decay": optimizer["paramwise_cfg"]["decay_rate"], "sched": "poly_mmseg", "power": schedule["power"],
            "layer_decay_type": optimizer["paramwise_cfg"]["decay_type"], "warmup_steps": schedule["warmup_iters"],
            "min_lr": schedule["min_lr"], "max_updates": effective["iterations"], "aux": True, "head_lr_scale": 1.0,
            "aux_weight": aux["loss_decode"]["loss_weight"], "aux_channels": aux["channels"], "dropout": head["dropout_ratio"],
            "drop_path": settings["backbone"]["drop_path_rate"], "transforms": "mmseg", "clip_grad": settings["grad_clip"],
            "ratio_range": tuple(external["ratio_range"]), "cat_max_ratio": external["cat_max_ratio"], "sync_bn": True,
            "eval_mode": settings["test_cfg"]["ss"]["mode"], "use_amp": settings["use_fp16"], "data_set": settings["dataset"],
            "backbone_kwargs": [("ls_init_value", settings["backbone"]["layer_scale_init_value"])],
            "weight_decay_filter": "norm_bias", "loss_mean": "all", "bn_images": 16,
            "head_kwargs": [("mmsegmentation", True)],
        }  # fmt: skip
    flags = {**row["defaults"], **settings}
    backbone = flags["backbone"] if row["id"] != "encnet_resnet101s_voc_stage1_aug" else "resnet101"  # see its header
    data = settings["dataset"].lower()
    return fields | {
        "model": flags.get("model", "encnet").lower(), "backbone": TIMM.get(backbone, f"{backbone}.tv_in1k"), "data_set": data,
        "nb_classes": SIZES[data][1], "crop_size": flags["crop_size"], "base_size": flags["base_size"], "opt": "momentum",
        "momentum": flags["momentum"], "weight_decay": flags["weight_decay"], "sched": flags["lr_scheduler"], "power": 0.9,
        "epochs": effective["epochs"], "warmup_epochs": 0, "aux": flags["aux"], "aux_weight": flags["aux_weight"],
        "se_loss": flags["se_loss"], "se_weight": flags["se_weight"], "min_lr": 0.0,
        "head_kwargs": [("lateral", True)] if flags.get("lateral") else [],
        "head_lr_scale": effective["lr_head"] / effective["lr_absolute"], "output_stride": 8, "transforms": "encoding",
        "ratio_range": (0.5, 2.0), "weight_decay_filter": "none", "layer_decay": 1.0, "sync_bn": True, "model_ema": False,
        "loss_mean": "labelled", "best_metric": "pixacc+miou", "bn_images": 16,
    }  # fmt: skip


def expected_of(row):
    return (expected_fields if row["task"] == "recognition" else expected_segmentation_fields)(row)


def test_there_is_a_recipe_for_every_row(golden):
    assert set(ROWS) <= set(RECIPES)  # others may be of one's own


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_understood(name):
    assert parse(script_of(name), "", [f"@{RECIPES[name]}"]).given


@pytest.mark.parametrize("name", ROWS)
def test_a_recipe_has_the_published_settings(name, golden):
    row, text = ROWS[name], RECIPES[name].read_text()
    args = parse(script_of(name), "", [f"@{RECIPES[name]}"])
    ours = {
        flag: tuple(value) if isinstance(value, list) and "kwargs" not in flag else value for flag, value in vars(args).items()
    }
    ours["lr"] = args.blr * args.total_batch_size / 256 if args.lr is None else args.lr
    expected = expected_of(row)
    differ = {flag: (ours[flag], value) for flag, value in expected.items() if not equal(ours[flag], value)}
    assert not differ and len(expected) >= 23, f"(ours, published): {differ}"

    assert f"row {name}." in text and args.batch_size is None
    if start := row["init"].get("published_file_matching_description"):
        assert args.finetune.endswith(start)
    if row["init"].get("url"):
        assert args.finetune == row["init"]["url"]
    if row["task"] == "recognition":
        assert f"# Start: {args.finetune or 'scratch'}\n" in text
        assert (row["expected"]["published_as"] + " % top-1" if row["expected"] else "none published") in text
    else:
        score = row["expected"] and row["expected"]["published_as"][0 if row["kind"] == "config" else 1].rstrip("%")
        assert f"# Expected: {score} % mIoU" in text if score else "# Expected: none published." in text


@pytest.mark.parametrize(
    ("name", "settings"),  # ResNet strikes back, table 2
    [
        ("a1", (224, 600, 5e-3, 0.01, "rand-m7-mstd0.5-inc1", 0.2, 0.1, 0.05, 3)),
        ("a2", (224, 300, 5e-3, 0.02, "rand-m7-mstd0.5-inc1", 0.1, 0.0, 0.05, 3)),
        ("a3", (160, 100, 8e-3, 0.02, "rand-m6-mstd0.5-inc1", 0.1, 0.0, 0.0, 1)),
    ],
)
def test_resnet_strikes_back(name, settings):
    args = parse("train_recognition.py", "", [f"@{RECIPES[f'resnet50_rsb_{name}_in1k']}"])
    names = "input_size epochs lr weight_decay aa mixup smoothing drop_path aug_repeats".split()
    assert tuple(getattr(args, flag) for flag in names) == settings
    shared = (
        "opt total_batch_size warmup_epochs cutmix mixup_switch_prob loss bce_target_thresh crop_pct reprob model_ema".split()
    )
    assert [getattr(args, flag) for flag in shared] == ["lamb", 2048, 5, 1.0, 0.5, "bce", 0.2, 0.95, 0.0, False]


@pytest.mark.parametrize("size, score", [("base", None), ("large", 53.7), ("huge", 55.0)])
def test_upernet_on_convnext_v2_takes_the_settings_of_convnext(size, score):
    path = RECIPES[f"upernet_convnextv2_{size}_ade20k_512"]
    v1 = vars(parse("train_segmentation.py", "", [f"@{RECIPES['upernet_convnext_base_ade20k_512']}"]))
    ours = vars(parse("train_segmentation.py", "", [f"@{path}"]))
    differ = {flag for flag in ours if ours[flag] != v1[flag]} - {"given", "typed"}
    assert differ == {"backbone", "backbone_kwargs", "finetune"} and ours["backbone_kwargs"] == []  # V2 has no layer scale
    assert ours["backbone"] == f"convnextv2_{size}" and ours["finetune"].endswith(f"/convnextv2_{size}_1k_224_ema.pt")
    expected = f"# Expected: {score} % mIoU on ADE20K" if score else "# Expected: none published that this project could check."
    assert expected in path.read_text()


DINOV3 = {  # recipe's size -> timm's model, ADE20k and IN-ReaL in MODEL_CARD.md
    "vits16": ("vit_small_patch16_dinov3", 47.0, 87.0), "vits16plus": ("vit_small_plus_patch16_dinov3", 48.8, 88.0),
    "vitb16": ("vit_base_patch16_dinov3", 51.8, 89.3), "vitl16": ("vit_large_patch16_dinov3", 54.9, 90.2),
    "vith16plus": ("vit_huge_plus_patch16_dinov3", 54.8, 90.3), "vit7b16": ("vit_7b_patch16_dinov3", 55.9, 90.4),
}  # fmt: skip


@pytest.mark.parametrize("size", DINOV3)
def test_dinov3_linear_classification(size):
    """The defaults of eval/linear.py, eight GPUs of 128 images; its 13 rates are in steps of 1, 2, 5 from 1e-5 to 0.1."""
    path, (model, _, score) = RECIPES[f"linear_dinov3_{size}_in1k"], DINOV3[size]
    args = parse("train_recognition.py", "", [f"@{path}"])
    expected = {
        "model": f"{model}_probe.lvd1689m", "pretrained": True, "freeze": "backbone", "opt": "momentum", "momentum": 0.9,
        "total_batch_size": 8 * 128, "blr": 1e-3, "weight_decay": 0, "sched": "cosine", "min_lr": 0, "warmup_epochs": 0,
        "epochs": 10, "mixup": 0, "cutmix": 0, "smoothing": 0, "aa": "none", "reprob": 0, "color_jitter": None, "hflip": 0.5,
        "scale": (0.08, 1), "input_size": 224, "crop_pct": 224 / 256, "train_interpolation": "bicubic", "clip_grad": None,
        "model_ema": False,
    }  # fmt: skip
    assert {flag: getattr(args, flag) for flag in expected} == expected
    assert f"# Expected: {score} % top-1 of ReaL's labels on ImageNet-1K" in path.read_text()


@pytest.mark.parametrize("size", DINOV3)
def test_dinov3_linear_segmentation(size):
    """config-ade20k-linear-training.yaml, and what its code does whatever a config says."""
    path, (model, score, _) = RECIPES[f"linear_dinov3_{size}_ade20k"], DINOV3[size]
    args = parse("train_segmentation.py", "", [f"@{path}"])
    expected = {
        "model": "linear", "backbone": f"{model}.lvd1689m", "pretrained": True, "freeze": "backbone", "dropout": 0.1,
        "lr": 1e-3, "opt": "adamw", "weight_decay": 1e-3, "weight_decay_filter": "none", "clip_grad": None, "opt_betas": None,
        "total_batch_size": 16, "bn_images": 16, "sync_bn": True, "max_updates": 40_000, "sched": "cosine_dinov3", "min_lr": 0,
        "warmup_steps": 1500, "head_lr_scale": 1, "layer_decay": 1, "aux": False, "loss": "ce", "loss_mean": "all",
        "crop_size": 512, "base_size": 512, "ratio_range": (0.5, 2.0), "cat_max_ratio": 0.75, "eval_mode": "slide",
        "model_ema": False, "use_amp": False, "output_stride": None, "nb_classes": 150,
    }  # fmt: skip
    assert {flag: getattr(args, flag) for flag in expected} == expected
    assert f"# Expected: {score} % mIoU on ADE20K" in path.read_text()


# --- dry runs ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def dry_run(capsys, tmp_path, monkeypatch):
    """What `--dry_run` prints for a recipe, which leaves no file behind. `--dry_run json` is read."""
    AcceleratorState._reset_state(reset_partial_state=True)  # each run in this process may ask for another precision
    monkeypatch.chdir(tmp_path)

    def dry_run(name, form):
        import train_recognition
        import train_segmentation

        script = train_recognition if "recognition" in script_of(name) else train_segmentation
        script.main(parse(script_of(name), "", [f"@{RECIPES[name]}", "--dry_run", form]))
        assert not list(tmp_path.iterdir())
        out = capsys.readouterr().out
        return json.loads(out) if form == "json" else out

    return dry_run


@pytest.mark.parametrize(
    "name",
    [
        "convnext_tiny_in1k_224",
        "convnext_base_in22k_ft_in1k_384",
        "convnextv2_tiny_ft_in1k",
        "resnest50_in1k",
        "convnext_isotropic_large_in1k_224",
    ],
)
def test_a_recognition_run_has_the_published_size_and_schedule(name, dry_run, golden):
    row = ROWS[name]
    run, expected = dry_run(name, "json"), expected_of(row)
    assert run["lr"]["peak"] == pytest.approx(expected["lr"], rel=1e-12)
    assert run["train_images"] == 1_281_167 and run["updates_per_epoch"] == 1_281_167 // expected["total_batch_size"]
    assert run["lr"]["after_warmup"] == pytest.approx(run["lr"]["peak"], rel=1e-12)
    assert run["lr"]["start"] == (0 if run["warmup_updates"] else run["lr"]["peak"])
    floor = run["args"]["min_lr"]
    share = (run["updates"] / 2 - run["warmup_updates"]) / (run["updates"] - run["warmup_updates"])
    middle = floor + (run["lr"]["peak"] - floor) * (1 + math.cos(math.pi * share)) / 2
    assert run["lr"]["middle"] == pytest.approx(middle, rel=1e-3) and run["lr"]["end"] < run["lr"]["peak"] * 1e-4 + floor
    if row["flops"]:
        assert run["multiply_adds"] / 1e9 == pytest.approx(float(row["flops"].rstrip("G")), rel=0.05)
    if row["params"]:
        assert run["parameters"] / 1e6 == pytest.approx(float(row["params"].rstrip("M")), rel=0.03)


@pytest.mark.parametrize(
    "name",
    ["upernet_convnext_tiny_ade20k_512", "encnet_resnet50s_pcontext", "deeplab_resnest50_ade20k", "fcn_resnet50s_ade20k",
     "psp_resnet50s_ade20k"],
)  # fmt: skip
def test_a_segmentation_run_has_the_published_rates_and_schedule(name, dry_run, golden):
    row = ROWS[name]
    run, expected = dry_run(name, "json"), expected_of(row)
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


def test_a_dry_run_counts_the_groups_and_names_the_weights(dry_run):
    text = dry_run("convnextv2_base_ft_in1k", "text")
    assert "convnextv2_base_1k_224_fcmae.pt" in text and "ImageNet-1K by its published size" in text
    assert "--layer_decay 0.6" in text and "28 groups" in text and "88,717,800 parameters" in text
    assert "64 x update_freq 16 x 1 processes = 1024 images per update" in text


@pytest.mark.parametrize(
    "name, line",
    [
        ("resnest269_in1k", "batch norm: statistics over 64 images, over 32 in the published run"),
        ("resnest50_in1k", None),  # 64 there too
        ("encnet_resnet50s_pcontext", None),  # one process has all 16
        ("convnext_tiny_in1k_224", None),  # no batch norm
    ],
)
def test_a_dry_run_says_where_batch_norm_sees_other_images_than_in_the_published_run(name, line, dry_run):
    text = dry_run(name, "text")
    assert line in text if line else "batch norm:" not in text


def test_the_last_norms_of_a_resnest_start_at_one_as_in_the_published_run():
    for name in ("resnest50_in1k", "resnest269_in1k"):
        args = parse(script_of(name), "", [f"@{RECIPES[name]}"])
        options = ModelOptions.of(args)._replace(model="resnest14d")
        model = build_model(options, [str(number) for number in range(10)], input_size=64)
        last = [module for name, module in model.named_modules() if name.endswith("bn3")]
        assert len(last) == 4 and all((norm.weight == 1).all() for norm in last)


def test_eomt_has_the_settings_of_its_config():
    """tue-mps/eomt, configs/dinov3/ade20k/semantic/eomt_large_512.yaml, and the defaults of its main.py and modules."""
    args = parse("train_segmentation.py", "", [f"@{RECIPES['eomt_dinov3_large_ade20k_512']}"])
    options, updates = dict(args.head_kwargs), 16 * (20_210 // 16)
    for name, published in (("mask_from", [0, 6520, 9780, 13040]), ("mask_to", [3000, 9780, 13040, 16300])):
        assert [share * updates for share in options.pop(name)] == pytest.approx(published, abs=0.02)
    expected = {
        "model": "eomt", "loss": "masks", "max_updates": updates, "total_batch_size": 16, "opt": "adamw", "lr": 2e-4,
        "weight_decay": 0.05, "weight_decay_filter": "none", "layer_decay": 1.0, "head_lr_scale": 1.0, "sched": "poly",
        "power": 0.9, "warmup_steps": 2000, "backbone_warmup_steps": 3000, "min_lr": 0, "clip_grad": 0.01, "drop_path": 0.0,
        "crop_size": 512, "base_size": 512, "ratio_range": (0.5, 2.0), "nb_classes": 150, "transforms": "eomt",
        "eval_mode": "slide", "use_amp": True, "opt_betas": None, "opt_eps": None, "model_ema": False,
    }  # fmt: skip
    assert {name: getattr(args, name) for name in expected} == expected and options == {"queries": 100, "blocks": 4}


# --- tables -----------------------------------------------------------------------------------------------------------


def test_the_tables_are_in_step_with_the_recipes():
    assert f"All {len(RECIPES)} recipes," in (ROOT / "README.md").read_text()
    make_tables = runpy.run_path(str(ROOT / "recipes" / "make_tables.py"))
    page = make_tables["PAGE"].read_text()
    assert make_tables["with_tables"](page) == page, "run python recipes/make_tables.py"
    assert all(f"(../{path.relative_to(ROOT).as_posix()})" in page for path in RECIPES.values())
    assert "| ConvNeXt-T | ImageNet-1K | 224 | 82.1 % top-1 |  | scratch | [convnext_tiny_in1k_224](" in page
