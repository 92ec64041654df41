"""What the flags become by the start weights: what stands on the line wins, and is said."""

import json

import pytest
import torch
from accelerate import Accelerator
from conftest import make_folder
from small_sources import images, names, write_image, write_mask, write_parquet

from utils.cli import segmentation_flags
from utils.cli.errors import InputError, fail
from utils.cli.first import parse
from utils.cli.recognition_flags import DIGITS, Data
from utils.model.as_trained import as_trained
from utils.model.weights import check_fit
from utils.run.checkpoint import find_fault, save_state
from utils.run.start import license_of, load_start, network_of, open_held_out, refuse_new_head, take_start
from utils.sources.recognition import open_recognition_data
from utils.sources.segmentation import open_segmentation_data

DATA = "--data_path images "
CLIP = "--model vit_base_patch32_clip_256.datacompxl --pretrained true "


@pytest.fixture(autouse=True)
def weights_can_be_had(monkeypatch):
    monkeypatch.setattr("utils.run.start.check_reachable", lambda name: None)


def taken(words, script="train_recognition.py", defaults=()):
    args = parse(script, "", words.split())
    start, told = take_start(args, args.model if script == "train_recognition.py" else args.backbone, defaults)
    return args, start, told


def folder(path, **config):
    cfg = {"input_size": [3, 40, 40], "mean": [0.5] * 3, "std": [0.2] * 3, "crop_pct": 0.8, "crop_mode": "center"}
    whole = {"architecture": "resnet10t", "num_classes": 2, "label_names": ["cat", "dog"], "pretrained_cfg": cfg, **config}
    (path / "config.json").write_text(json.dumps(whole))
    return path


def test_from_scratch_nothing_is_taken():
    args, start, told = taken(DATA)
    assert (args.input_size, args.crop_pct, args.crop_mode, args.mean, args.std, start, told) == (224, *[None] * 5, [])


def test_a_file_says_nothing_and_that_is_said():
    args, start, (line,) = taken(DATA + "--finetune weights.pth")
    assert start is None and args.input_size == 224
    assert line == "weights.pth does not say how it was trained: 224 pixels, mean of ImageNet, licence unknown"
    with pytest.raises(InputError, match="--mean model: the weights do not tell"):
        taken(DATA + "--finetune weights.pth --mean model")


def test_pretrained_weights_are_fed_as_they_were_trained():
    args, start, (line,) = taken(DATA + CLIP)
    assert (args.input_size, args.crop_pct, args.crop_mode, args.eval_interpolation) == (256, 1.0, "center", "bicubic")
    assert args.mean == list(start.images["mean"]) and args.mean[0] == pytest.approx(0.48145466)
    assert line == "as the weights were trained: 256 pixels, crop 1.0, mean of CLIP, licence apache-2.0"


def test_a_flag_wins_and_is_said():
    args, _, told = taken(DATA + CLIP + "--input_size 128 --mean imagenet --crop_pct 0.9")
    assert (args.input_size, args.crop_pct, args.mean, args.std) == (128, 0.9, "imagenet", None)
    assert told[1] == "--input_size 128 wins over 256, as the weights were trained" and len(told) == 4
    args, _, _ = taken(DATA + CLIP + "--imagenet_default_mean_and_std false")
    assert args.mean is None and args.std is None
    args, start, _ = taken(DATA + CLIP + "--mean 0.1 0.2 0.3 --std model")
    assert args.mean == [0.1, 0.2, 0.3] and args.std == start.images["std"]
    args, _, _ = taken(DATA + CLIP + "--input_size 32")
    assert args.crop_pct is None and args.crop_mode is None  # padded crops are of whole images


def test_the_data_sets_its_flags_in_training_but_not_in_an_evaluation(tmp_path):
    words = f"--finetune {folder(tmp_path)} "
    args, _, _ = taken(words, defaults=DIGITS)
    assert (args.input_size, args.crop_pct, args.mean) == (64, 1.0, [0.5] * 3)
    args, start, _ = taken(words + "--eval true", defaults=DIGITS)
    assert (args.input_size, args.crop_pct, args.model, start.classes) == (40, 0.8, "resnet10t", ["cat", "dog"])


def test_a_training_takes_the_model_that_the_weights_are_of(tmp_path):
    words = DATA + f"--finetune {folder(tmp_path, model_args={'depths': [1, 1, 1, 1]})} "
    args, _, told = taken(words)
    assert (args.model, dict(args.model_kwargs)) == ("resnet10t", {"depths": [1, 1, 1, 1]})
    assert told[1:] == ["--model resnet10t, of which they are"]
    args, _, told = taken(words + "--model resnet18")
    assert (
        args.model == "resnet18"
        and not args.model_kwargs
        and told[1] == ("--model resnet18 wins over resnet10t, as the weights were trained")
    )
    args, _, told = taken(words, "train_segmentation.py")
    assert (args.backbone, args.model, dict(args.backbone_kwargs)) == ("resnet10t", "upernet", {"depths": [1, 1, 1, 1]})
    assert taken(words + "--backbone resnet18", "train_segmentation.py")[0].backbone == "resnet18"


@pytest.mark.parametrize("how", ["", "--eval true "])
def test_a_name_with_its_tag_names_the_same_model_and_its_options_stay(tmp_path, how):
    """Else weights trained with SiLU would be trained on, and scored, with ReLU: the shapes are the same."""
    words = DATA + how + f"--finetune {folder(tmp_path, model_args={'act_layer': 'silu'})} "
    args, _, told = taken(words + "--model resnet10t.c3_in1k")
    assert (args.model, dict(args.model_kwargs)) == ("resnet10t.c3_in1k", {"act_layer": "silu"}) and len(told) == 1
    if not how:
        args, _, told = taken(words + "--backbone resnet10t.c3_in1k", "train_segmentation.py")
        assert dict(args.backbone_kwargs) == {"act_layer": "silu"} and len(told) == 1
    taken(f"--predict pictures --finetune {tmp_path} --model resnet10t.c3_in1k")


def test_a_recipe_wins_in_training_only(tmp_path):
    (tmp_path / "recipe.args").write_text("--input_size 96 --model resnet18\n")
    words = DATA + f"@{tmp_path / 'recipe.args'} --finetune {folder(tmp_path)} "
    assert taken(words)[0].input_size == 96
    args, _, _ = taken(words + "--eval true")
    assert (args.input_size, args.model) == (40, "resnet10t")
    args, _, told = taken(words + "--eval true --input_size 64")
    assert args.input_size == 64 and "--input_size 64 wins over 40" in told[1]


def test_a_state_is_evaluated_as_its_run_was(tmp_path):
    for name in ("checkpoints/update_00000001", "best"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "checkpoints/update_00000001/manifest.json").write_text("{}")
    folder(tmp_path / "best", tta_flip=True)
    args, _, _ = taken(f"--eval true --resume {tmp_path / 'checkpoints/update_00000001'}")
    assert args.input_size == 40 and args.tta_flip


def test_a_state_tells_itself_how_it_was_trained_and_an_older_one_is_said_not_to(tmp_path):
    """Of a run that was killed before its first evaluation, without best/ and last/."""
    state = save_state(tmp_path / "checkpoints", 3, {}, {}, None, {}, 1, {"label_names": ["dog", "cat"]})
    assert find_fault(state) is None
    folder(state, label_names=["dog", "cat"])
    args, start, _ = taken(f"--eval true --resume {state}")
    assert (args.input_size, args.crop_pct, args.mean, start.classes) == (40, 0.8, [0.5] * 3, ["dog", "cat"])
    older = save_state(tmp_path / "checkpoints", 4, {}, {}, None, {}, 1)
    assert find_fault(older) is None
    _, start, (line,) = taken(DATA + f"--eval true --resume {older}")
    assert start is None and line.startswith(f"{older} does not say how it was trained: 224 pixels, mean of ImageNet")


def test_a_prediction_has_the_model_of_the_weights(tmp_path):
    words = f"--predict pictures --finetune {folder(tmp_path)} "
    assert taken(words + "--model resnet10t")[0].input_size == 40
    with pytest.raises(InputError, match="--model resnet18: the weights have resnet10t, which --predict takes; leave it out"):
        taken(words + "--model resnet18")


SEGMENTS = {
    "network": {"backbone": "resnet10t", "head": "fcn", "classes": 2, "head_kwargs": {"channels": 16, "dropout": 0.2}},
    "classes": ["cat", "dog"], "palette": [[0, 0, 0], [1, 1, 1]], "crop_size": 48, "base_size": 56, "transforms": "encoding",
    "mean": [0.5] * 3, "std": [0.5] * 3, "eval_mode": "slide", "eval_scales": [1.0, 1.5], "eval_flip": True, "license": "mit",
}  # fmt: skip


def test_segmentation_takes_network_view_and_colours(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SEGMENTS))
    words, script = DATA + f"--finetune {tmp_path} ", "train_segmentation.py"
    args, start, (line, *_) = taken(words, script)
    assert (args.crop_size, args.mean) == (480, [0.5] * 3)  # training goes on with its own crops
    assert line == "as the weights were trained: mean of Inception, licence mit"
    args, start, told = taken(words + "--eval true --base_size 64 --dropout 0.3", script)
    assert (args.crop_size, args.base_size, args.eval_mode, args.eval_flip) == (48, 64, "slide", True)
    assert told[1:] == ["--base_size 64 wins over 56, as the weights were trained"]
    network = network_of(start, args, {"head_kwargs": {"dropout": 0.3}, "head": "upernet"})
    assert network == SEGMENTS["network"] | {"head_kwargs": {"channels": 16, "dropout": 0.3}}
    args, _, _ = taken(f"--predict pictures --output_dir out --finetune {tmp_path} --base_size 64", script)
    assert (args.transforms, args.base_size, args.crop_size) == ("encoding", 64, 48)  # whatever suits the built-in scenes
    with pytest.raises(InputError, match="this is a segmentation network"):
        taken(words)
    assert taken(words.replace("--data_path images", ""), script, defaults=("crop_size",))[0].crop_size == 96


def test_a_training_of_segmentation_takes_the_network_that_the_weights_are_of(tmp_path):
    wanted = {"aux_kwargs": {"channels": 4, "dropout": 0.2}, "output_stride": 16, "backbone_kwargs": {"depths": [1, 1, 1, 1]}}
    (tmp_path / "config.json").write_text(json.dumps(SEGMENTS | {"network": SEGMENTS["network"] | wanted}))
    words, script = DATA + f"--finetune {tmp_path} ", "train_segmentation.py"
    args, start, told = taken(words, script)
    assert segmentation_flags.network_options(args) | {"classes": 2} == start.network and args.aux
    assert told[1:] == ["--model fcn, of which they are", "--backbone resnet10t, of which they are"]
    assert taken(words + "--channels 8", script)[0].channels == 8
    args, _, _ = taken(words + "--model psp", script)
    assert (args.backbone, args.channels, args.aux) == ("convnextv2_atto", None, False)  # another network is the line's alone


def of_head(head, backbone):
    return SEGMENTS | {"network": {"head": head, "backbone": backbone, "classes": 2}}


@pytest.mark.parametrize("data", [DATA, ""], ids=["own data", "the built-in scenes"])
def test_flags_of_the_network_are_checked_once_the_weights_have_named_it(tmp_path, data):
    config = of_head("encnet", "resnet10t")
    config["network"] |= {"head_kwargs": {"se_loss": True, "channels": 16}, "aux_kwargs": {"channels": 4, "dropout": 0.1}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    words, script = data + f"--finetune {tmp_path} --se_weight 0.3 --aux_weight 0.1 ", "train_segmentation.py"
    defaults = segmentation_flags.SCENES if not data else ()
    args, _, _ = taken(words, script, defaults)
    segmentation_flags.check_network(args, fail)
    assert (args.model, args.backbone, args.channels, args.se_loss, args.aux) == ("encnet", "resnet10t", 16, True, True)
    args, _, told = taken(words + "--model encnet --backbone resnet10t.c3_in1k", script, defaults)
    assert (args.channels, args.aux_channels) == (16, 4) and len(told) == 1  # the line names the same network
    args, _, _ = taken(words + "--model psp", script, defaults)
    with pytest.raises(InputError, match="--aux_weight 0.1 would do nothing"):
        segmentation_flags.check_network(args, fail)


@pytest.mark.parametrize(
    ("script", "config", "words", "said"),
    [
        ("train_segmentation.py", SEGMENTS, "--model psp", "they are of --model fcn --backbone resnet10t"),
        ("train_segmentation.py", of_head("eomt", "vit_tiny_patch16_224"), "",
         "they are of --model eomt --backbone vit_tiny_patch16_224"),
        ("train_recognition.py", None, "--model resnet18", "they are of --model resnet10t"),
    ],
)  # fmt: skip
def test_weights_of_another_model_are_named(tmp_path, script, config, words, said):
    folder(tmp_path) if config is None else (tmp_path / "config.json").write_text(json.dumps(config))
    args, start, _ = taken(DATA + f"--finetune {tmp_path} {words}", script)

    def load(model, source, **options):
        check_fit("weights do not fit the network", ["a"], ["b"], [], "; is it another --model or --backbone?")

    with pytest.raises(InputError, match=f"unexpected 1 .b.; of another shape none; {said}$"):
        load_start(Accelerator(), torch.nn.Linear(1, 1), args, load, start)


def test_the_mean_of_a_backbone():
    words = DATA + "--backbone vit_small_patch16_siglip_512.webli --pretrained true"
    args, start, _ = taken(words.replace("small", "base"), "train_segmentation.py")
    assert args.mean == [0.5] * 3 and start.license == "apache-2.0"


def test_licences():
    start = as_trained(None, "convnextv2_atto.fcmae_ft_in1k")
    assert license_of(start, None) == {"license": "cc-by-nc-4.0", "start_license": "cc-by-nc-4.0"}
    assert license_of(start, "mit") == {"license": "mit", "start_license": "cc-by-nc-4.0"}
    assert license_of(None, None) == {}


def test_a_new_head_is_no_result():
    for layout in ("timm names; head new", "segmentation checkpoint of this project; new: auxiliary_head, decode_head.conv5.4"):
        with pytest.raises(InputError, match="a new one would be scored"):
            refuse_new_head("weights.pth", ["weights.pth", layout, ""])
    refuse_new_head("weights.pth", ["weights.pth", "segmentation checkpoint of this project; new: auxiliary_head", ""])


def test_colours_are_three_numbers_or_a_word(capsys):
    for words, line in (
        ("--mean 0.5", "expected three numbers, or one of imagenet"), ("--std 0.5 0 0.5", "expected three numbers above 0"),
        ("--mean 0.5 clip 0.5", "expected three numbers"), ("--mean 0.5 0.5 0.5 --imagenet_default_mean_and_std true", "wins"),
    ):  # fmt: skip
        with pytest.raises(SystemExit):
            parse("train_recognition.py", "", (DATA + words).split())
        assert line in capsys.readouterr().err


def evaluated(root, words, data="--data_path"):
    """(the names of the images that an evaluation of RUN/best scores, what it says of them)"""
    args, said = parse("train_recognition.py", "", f"--eval true {data} {root / 'data'} {words}".split()), []

    def open_data():
        return open_recognition_data(Data.of(args), seed=args.seed, need_train=False, say=lambda line: None)

    return names(open_held_out(args, open_data, said.append)), said


@pytest.mark.parametrize("held_out", ["--val_split 0.25 --seed 3", "--folds 4 --fold 2 --seed 3"])
def test_an_evaluation_scores_what_the_run_held_out_of_the_same_tree(tmp_path, held_out):
    for number, name in enumerate(("cat", "dog")):
        make_folder(tmp_path / "data", (name,), 12, seed=number)
    trained = parse("train_recognition.py", "", f"--data_path {tmp_path / 'data'} {held_out}".split())
    (tmp_path / "args.json").write_text(json.dumps({"args": vars(trained)}))
    _, val = open_recognition_data(Data.of(trained), seed=3)
    (tmp_path / "checkpoints/update_1").mkdir(parents=True)
    (tmp_path / "checkpoints/update_1/manifest.json").touch()
    weights, whole = f"--finetune {tmp_path / 'best'}", [f"data: the images that the run held out are scored: {held_out}"]
    for words in (weights, f"{weights} {held_out.removesuffix(' --seed 3')}", f"--resume {tmp_path}/checkpoints/update_1"):
        assert evaluated(tmp_path, words) == (names(val), whole)
    relative = {"args": vars(trained) | {"data_path": "data"}, "cwd": str(tmp_path)}  # as its user named it, there
    (tmp_path / "args.json").write_text(json.dumps(relative))
    assert evaluated(tmp_path, weights) == (names(val), whole)
    (tmp_path / "args.json").write_text(json.dumps({"args": vars(trained)}))
    _, (line,) = evaluated(tmp_path, f"{weights} --val_split 0.5")
    assert line.startswith(f"warning: the run held out {held_out}: with --val_split 0.5 --seed 3 images are scored that were")
    make_folder(tmp_path / "other", ("cat", "dog"), 3)
    assert evaluated(tmp_path, f"{weights} --data_path {tmp_path / 'other'}") == (["0.png", "1.png", "2.png"] * 2, [])
    (tmp_path / "args.json").write_text(json.dumps({"args": vars(trained) | {"val_split": None, "folds": None}}))
    found, said = evaluated(tmp_path, weights)
    assert len(found) == 24 and said == ["warning: the whole tree is scored, images that these weights were trained on too"]
    make_folder(tmp_path / "data" / "val", ("cat", "dog"), 2)  # of its own, which hides the classes beside it
    (tmp_path / "data" / "cat").rename(tmp_path / "cat")
    (tmp_path / "data" / "dog").rename(tmp_path / "dog")
    assert evaluated(tmp_path, weights) == (["0.png", "1.png"] * 2, [])


@pytest.mark.parametrize("held_out", ["--val_split 0.25 --seed 3", "--folds 4 --fold 2 --seed 3"])
def test_an_evaluation_scores_what_the_run_held_out_of_a_data_set(tmp_path, held_out):
    write_parquet(tmp_path / "data" / "train.parquet", image=images(12), label=[number % 2 for number in range(12)])
    trained = parse("train_recognition.py", "", f"--dataset {tmp_path / 'data'} {held_out}".split())
    (tmp_path / "args.json").write_text(json.dumps({"args": vars(trained)}))
    _, val = open_recognition_data(Data.of(trained), seed=3)
    found, said = evaluated(tmp_path, f"--finetune {tmp_path / 'best'}", data="--dataset")
    assert found == names(val) and said == [f"data: the images that the run held out are scored: {held_out}"]


def test_masks_and_tables_without_splits_are_whole(tmp_path):
    for number in range(4):
        write_image(tmp_path / "images" / f"{number}.png", shade=number)
        write_mask(tmp_path / "masks" / f"{number}.png", 0, 1)
    (tmp_path / "t.csv").write_text("image,label\n" + "".join(f"images/{i}.png,{'ab'[i % 2]}\n" for i in range(4)))
    masks = segmentation_flags.Data(data_path=str(tmp_path), max_val_images=2)
    table = Data(data_path=str(tmp_path), labels=[str(tmp_path / "t.csv")], max_val_images=2)
    quiet = {"seed": 0, "need_train": False, "say": lambda line: None}
    assert all(source.whole and len(source) == 2 for source in open_segmentation_data(masks, crop_size=16, **quiet))
    assert all(source.whole and len(source) == 2 for source in open_recognition_data(table, **quiet))
    (tmp_path / "t.csv").write_text("image,label,split\nimages/0.png,a,train\nimages/1.png,b,train\nimages/2.png,a,test\n")
    assert not open_recognition_data(table, **quiet)[1].whole
