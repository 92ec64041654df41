"""The flags of both scripts: published commands, defaults that the data brings, and lines that contradict themselves."""

import argparse
import ast
import subprocess
import sys

import pytest
from conftest import ROOT

from utils.cli import recognition_flags, segmentation_flags
from utils.cli.arguments import Parser
from utils.cli.first import parse

RECOGNITION, SEGMENTATION = "train_recognition.py", "train_segmentation.py"


def parsed(script, line):
    return parse(script, "", line.split())


@pytest.fixture
def error_of(capsys):
    """The one line that a wrong command line is answered with."""

    def error_of(script, line):
        with pytest.raises(SystemExit) as stop:
            parsed(script, line)
        assert stop.value.code == 2
        text = capsys.readouterr().err
        assert text.startswith(f"{script}: error: ") and text.count("\n") == 1
        return text[len(f"{script}: error: ") : -1]

    return error_of


# --- what is taken ----------------------------------------------------------------------------------------------------


def test_published_commands_are_understood(golden):
    """Each command of ConvNeXt's and ConvNeXt-V2's TRAINING.md, after `accelerate launch train_recognition.py`."""
    rows = [
        row for row in golden("published_settings.json") if row["kind"] == "command" and row["family"].startswith("convnext")
    ]
    for row in rows:
        settings = {"data_path": "x"} | row["settings"]
        args = parsed(RECOGNITION, " ".join(f"--{flag} {value}" for flag, value in settings.items()))
        assert set(settings) == args.given
        for flag in ("lr", "blr", "epochs", "drop_path", "layer_decay", "model_ema", "input_size"):
            assert getattr(args, flag) == row["settings"].get(flag, getattr(args, flag)), (row["id"], flag)
    assert len(rows) > 20


def test_the_published_bce_loss_is_a_name_of_a_loss():
    assert [parsed(RECOGNITION, line).loss for line in ("", "--bce_loss true", "--bce_loss false", "--loss bce")] == [
        "ce", "bce", "ce", "bce"
    ]  # fmt: skip


def test_defaults_of_the_digits_give_way_to_the_line_and_to_other_data():
    digits = parsed(RECOGNITION, "")
    assert {name: getattr(digits, name) for name in recognition_flags.DIGITS} == recognition_flags.DIGITS
    assert parsed(RECOGNITION, "--epochs 3").epochs == 3 and parsed(RECOGNITION, "--epochs 3").aa == "none"
    for line in ("--data_path x", "--dataset x"):
        args = parsed(RECOGNITION, line)
        assert (args.epochs, args.input_size, args.aa, args.hflip) == (100, 224, "rand-m9-mstd0.5-inc1", 0.5)


def test_defaults_of_the_scenes_and_of_published_data_give_way_to_the_line():
    scenes = parsed(SEGMENTATION, "")
    assert {name: getattr(scenes, name) for name in segmentation_flags.SCENES} == segmentation_flags.SCENES
    assert (scenes.opt, scenes.sched) == ("adamw", "poly")
    own = parsed(SEGMENTATION, "--data_path x")
    assert (own.opt, own.epochs, own.blr, own.weight_decay) == ("momentum", 100, 5e-4, 1e-4)
    ade20k = parsed(SEGMENTATION, "--data_path x --data_set ade20k")
    assert (ade20k.epochs, ade20k.blr, ade20k.opt) == (180, 0.064, "momentum")
    assert parsed(SEGMENTATION, "--data_path x --data_set ade20k --epochs 100").epochs == 100
    assert parsed(SEGMENTATION, "--data_path x --data_set pets").epochs == 100


@pytest.mark.parametrize(
    ("script", "line"),
    [
        (RECOGNITION, "--model_ema_eval false --model_ema_warmup false --hub_private false"),  # off, as it is
        (RECOGNITION, "--color_jitter 0"),
        (RECOGNITION, "--input_size 224 --color_jitter 0.4 --aa none"),
        (RECOGNITION, "--input_size 224 --color_jitter 0.4 --aa 3a"),  # timm: three policies, and the jitter
        (RECOGNITION, "--transforms encoding --color_jitter 0.4 --aa rand-n2-m12 --input_size 32 --scale 0.1 1 --crop_pct 0.9"),
        (RECOGNITION, "--data_path x --input_size 32 --train_interpolation bilinear"),  # RandAugment's too
        (RECOGNITION, "--cutmix_minmax 0.2 0.5 --mixup 0.8 --mixup_switch_prob 0.3 --mixup_mode elem"),
        (RECOGNITION, "--layer_decay_type group --layer_decay 0.7 --sched step --step_epochs 3 --lr 0.1 --weight_decay_end 0"),
        (RECOGNITION, "--predict photos --topk 3 --finetune run/best"),
        (RECOGNITION, "--dataset x --streaming true --shuffle_buffer 10 --train_images 100"),
        (RECOGNITION, "--data_path x --val_split 0.1 --eval_data_path y --data_set IMNET"),
        (SEGMENTATION, "--aux true --aux_weight 0.4 --aux_channels 64 --transforms mmseg --cat_max_ratio 0.5"),
        (SEGMENTATION, "--model encnet --se_loss true --se_weight 0.1 --transforms encoding --ratio_range 1 1"),
        (SEGMENTATION, "--max_updates 100 --warmup_steps 10 --power 0.5 --eval_freq 2"),
    ],
)
def test_flags_that_take_effect_are_taken(script, line):
    given = parsed(script, line).given
    assert all(f"--{flag}" in line for flag in given)


# --- what is refused --------------------------------------------------------------------------------------------------

DATA = "--data_path x "  # with the ordinary defaults
IDLE = [
    (RECOGNITION, DATA + "--input_size 32 --scale 0.5 1", "--scale 0.5 1.0 would do nothing: it takes effect above 32 pixels"),
    (RECOGNITION, DATA + "--input_size 32 --ratio 0.9 1.1", "above 32 pixels of --input_size"),
    (RECOGNITION, "--input_size 32 --train_interpolation bilinear", "above 32 pixels of --input_size, or with --aa"),
    (RECOGNITION, DATA + "--input_size 32 --crop_pct 0.9", "between 32 and 384 pixels of --input_size"),
    (RECOGNITION, DATA + "--input_size 384 --crop_pct 0.9", "between 32 and 384 pixels of --input_size"),
    (RECOGNITION, DATA + "--color_jitter 0.4", "with --aa none"),
    (RECOGNITION, "--remode rand", "with --reprob above 0"),
    (RECOGNITION, DATA + "--reprob 0 --recount 3", "with --reprob above 0"),
    (RECOGNITION, "--mixup_prob 0.5", "with --mixup or --cutmix"),
    (RECOGNITION, "--mixup_mode pair", "with --mixup or --cutmix"),
    (RECOGNITION, "--mixup_off_epoch 5", "with --mixup or --cutmix"),
    (RECOGNITION, "--mixup 0.8 --mixup_switch_prob 0.3", "with both --mixup and --cutmix"),
    (RECOGNITION, "--cutmix 0.5 --cutmix_minmax 0.2 0.5", "without --cutmix_minmax"),
    (RECOGNITION, "--topk 3", "with --predict"),
    (RECOGNITION, DATA + "--shuffle_buffer 10", "with --streaming true"),
    (RECOGNITION, DATA + "--train_images 10", "with --streaming true"),
    (RECOGNITION, DATA + "--image_column x", "with --dataset or --labels"),
    (RECOGNITION, "--model_ema_decay 0.9", "with --model_ema true"),
    (RECOGNITION, "--model_ema_warmup false --model_ema_eval true", "--model_ema_eval true would do nothing"),
    (SEGMENTATION, "--pretrained true --freeze backbone --drop_path 0.1", "--drop_path 0.1 would do nothing"),
    (RECOGNITION, "--model_ema_warmup true", "with --model_ema true"),
    (RECOGNITION, "--layer_decay_type group", "with --layer_decay below 1"),
    (RECOGNITION, "--lr 0.1 --blr 0.1", "without --lr, which wins"),
    (RECOGNITION, "--warmup_steps 10 --warmup_epochs 1", "without --warmup_steps, which wins"),
    (RECOGNITION, "--sched constant --min_lr 0.1", "with every --sched but constant"),
    (RECOGNITION, "--power 0.5", "with --sched poly or poly_mmseg"),
    (RECOGNITION, "--step_epochs 3", "with --sched step"),
    (RECOGNITION, "--step_rate 0.5", "with --sched step"),
    (RECOGNITION, "--decay_epochs 3", "with --sched wsd"),
    (RECOGNITION, "--save_ckpt false --save_ckpt_num 3", "with --save_ckpt true"),
    (RECOGNITION, "--hub_private true", "with --push_to_hub"),
    (RECOGNITION, "--model_key model_ema", "with --finetune"),
    (RECOGNITION, "--resume run/checkpoints/update_1 --model_prefix x.", "with --finetune"),
    (
        SEGMENTATION,
        "--predict photos --finetune run/best --output_dir out --model_key model_ema",
        "with --finetune, in training",
    ),
    *(
        (script, f"--eval true --finetune run/best {flag}", "in training")
        for script in (RECOGNITION, SEGMENTATION)
        for flag in (
            "--export onnx",
            "--push_to_hub me/it",
            "--license mit",
            "--check_data only",
            "--check_data true",
        )
    ),
    (SEGMENTATION, "--aux_weight 0.4", "with --aux true"),
    (SEGMENTATION, "--aux_channels 64", "with --aux true"),
    (SEGMENTATION, "--model encnet --se_weight 0.1", "with --se_loss true"),
    (SEGMENTATION, "--loss lovasz --class_weights balanced", "with --loss ce, ce+dice, focal or masks"),
    (SEGMENTATION, DATA + "--cat_max_ratio 0.5", "with --transforms mmseg"),
    (SEGMENTATION, "--ratio_range 1 2", "with --transforms encoding, mmseg or eomt"),
    (SEGMENTATION, "--max_updates 3 --epochs 3", "without --max_updates, which wins"),
    (SEGMENTATION, "--disable_eval true --eval_freq 2", "without --disable_eval"),
]


@pytest.mark.parametrize(("script", "line", "words"), IDLE, ids=[line for _, line, _ in IDLE])
def test_a_flag_without_effect_is_refused(error_of, script, line, words):
    message = error_of(script, line)
    assert words in message and "would do nothing: it takes effect " in message and message.endswith("; leave it out")


@pytest.mark.parametrize(
    ("script", "line", "message"),
    [
        (RECOGNITION, "--data_path a --dataset b", "--data_path and --dataset: found both, expected one; leave the other out"),
        (RECOGNITION, "--predict photos", "--predict needs --finetune RUN/best"),
        (RECOGNITION, "--val_split 0.1", "--val_split needs images of yours: give --data_path too"),
        (RECOGNITION, "--label_column x", "--label_column needs images of yours: give --dataset too"),
        (RECOGNITION, "--data_set CIFAR10", "--data_set needs images of yours: give --data_path too"),
        (RECOGNITION, "--data_path x --data_set CIFAR11", "argument --data_set: invalid choice: 'CIFAR11'"),
        (RECOGNITION, "--dataset x --streaming true --val_split 0.1", "--streaming needs --dataset, and goes neither with"),
        (RECOGNITION, "--scale 1 0.08", "--scale 1.0 0.08: expected the smaller number first"),
        (RECOGNITION, "--cutmix_minmax 0.5 0.2", "--cutmix_minmax 0.5 0.2: expected the smaller number first"),
        (RECOGNITION, "--bce_loss true --loss ce", "--bce_loss true and --loss ce: found both, expected one"),
        (SEGMENTATION, "--data_set ade20k", "--data_set needs --data_path too"),
        (SEGMENTATION, "--data_path x --train_split trainval", "--train_split needs --data_set too"),
        (SEGMENTATION, "--val_split 0.1", "--val_split needs --data_path too"),
        (SEGMENTATION, "--data_path x --data_set ade20k --mask_values 0=a", "found --mask_values with --data_set ade20k"),
        (SEGMENTATION, "--data_path x --mask_values a=0", "argument --mask_values: expected value=name, such as 255=crack"),
        (SEGMENTATION, "--se_loss true", "--se_loss is for --model encnet; found upernet"),
        (SEGMENTATION, "--predict photos --finetune run/best", "--predict needs --finetune RUN/best, and --output_dir"),
        (SEGMENTATION, "--data_path x --ratio_range 2 0.5", "--ratio_range 2.0 0.5: expected the smaller number first"),
        (SEGMENTATION, "--model upernett", "argument --model: invalid choice: 'upernett'"),
    ],
)
def test_a_line_that_contradicts_itself_is_refused(error_of, script, line, message):
    assert error_of(script, line).startswith(message)


# --- the whole --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", [RECOGNITION, SEGMENTATION])
def test_every_flag_is_read_somewhere(script):
    """As an attribute of args or of the settings of its topic, by getattr, or as a parameter of the schedule."""
    files = [ROOT / script, ROOT / "optim_factory.py", ROOT / "lr_sched.py", *ROOT.glob("utils/**/*.py")]
    read = set()
    for node in (node for path in files for node in ast.walk(ast.parse(path.read_text()))):
        if isinstance(node, ast.Attribute):
            read.add(node.attr)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr":
            read.add(getattr(node.args[1], "value", None))
        elif isinstance(node, ast.FunctionDef) and node.name == "learning_rate":
            read.update(argument.arg for argument in node.args.kwonlyargs)
    assert sorted(set(vars(parsed(script, ""))) - read) == []


@pytest.mark.parametrize("script", [RECOGNITION, SEGMENTATION])
def test_help_and_wrong_flags_are_answered_before_torch_is_imported(script):
    for word, code in (("--help", 0), ("--epoch=3", 2)):
        done = subprocess.run([sys.executable, "-X", "importtime", script, word], cwd=ROOT, capture_output=True, text=True)
        imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
        assert done.returncode == code and "argparse" in imported
        assert not imported & {"torch", "numpy", "accelerate", "timm"}
    assert "unknown flag --epoch, did you mean --epochs?" in done.stderr


# --- numbers ----------------------------------------------------------------------------------------------------------


def numeric_flags():
    for script, flags in ((RECOGNITION, recognition_flags), (SEGMENTATION, segmentation_flags)):
        parser = Parser(script, "")
        flags.add_flags(parser)
        for action in parser._actions:
            if hasattr(action.type, "range") or action.type in (int, float):
                yield script, action


def test_every_number_has_a_range_which_its_help_names():
    found = list(numeric_flags())
    assert len(found) > 80
    for _, action in found:
        assert action.choices or f"[{action.type.range}]" in action.help, action.dest


@pytest.mark.parametrize(
    "text", ["1e-320", "-1e-320", "1e308", "-1e308", "nan", "-inf", "1" * 5000, "\uff11\uff16", "1_0", "0x10", "", " "]
)
def test_no_flag_takes_a_number_that_overflows_or_is_written_otherwise(text):
    for _, action in numeric_flags():
        if not action.choices:
            with pytest.raises(argparse.ArgumentTypeError, match="expected a (whole )?number (of|above) "):
                action.type(text)


def test_the_largest_and_the_smallest_values_are_taken(error_of):
    args = parsed(
        RECOGNITION, f"--seed {2**63 - 1} --epochs 1000000 --lr 1000 --opt_eps 1e-30 --ratio 0.01 100 --input_size 65536"
    )
    assert args.seed == 2**63 - 1 and args.opt_eps == 1e-30
    assert error_of(RECOGNITION, "--background reddish").endswith("expected a name such as white, or #rrggbb, found 'reddish'")
    assert error_of(RECOGNITION, f"--seed {2**63}").endswith(f"0 to 9,223,372,036,854,775,807, found '{2**63}'")
