"""The command line: recipes, hyphens, switches, misspellings, and the arithmetic of the batch."""

import ast

import pytest
from conftest import ROOT, run

import train_segmentation
from train_recognition import DIGITS, parse_args
from utils.cli.arguments import derive_batch, expand_recipes
from utils.cli.errors import InputError


def error_of(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        parse_args(list(words))
    assert stop.value.code == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1 and text.startswith("train_recognition.py: error: ")
    return text


def test_published_commands_are_understood():
    """The flags of ConvNeXt-V2's TRAINING.md (base, fine-tuning) and of ConvNeXt's."""
    args = parse_args(
        "--model convnextv2_base --batch_size 32 --update_freq 4 --blr 6.25e-4 --epochs 100 --warmup_epochs 20 "
        "--layer_decay_type group --layer_decay 0.6 --weight_decay 0.05 --drop_path 0.1 --reprob 0.25 --mixup 0.8 "
        "--cutmix 1.0 --smoothing 0.1 --model_ema True --model_ema_eval True --use_amp True --finetune x.pt "
        "--data_path /data --output_dir /out --head_init_scale 0.001 --nb_classes 1000 --data_set image_folder "
        "--disable_eval true --layer_scale_init_value 0 --eval_data_path /data/val --model_key model_ema".split()
    )
    assert (args.blr, args.update_freq, args.layer_decay_type, args.model_ema) == (6.25e-4, 4, "group", True)
    assert args.input_size == 224 and args.aa == "rand-m9-mstd0.5-inc1"


def test_defaults_of_the_digits_give_way_to_flags_and_to_other_data():
    assert parse_args([]).epochs == DIGITS["epochs"] and parse_args([]).aa == "none"
    assert parse_args(["--epochs", "3"]).epochs == 3
    assert parse_args(["--data_path", "x"]).epochs == 100 and parse_args(["--dataset", "x"]).hflip == 0.5


def test_recipes_anywhere_and_later_flags_win(tmp_path):
    (tmp_path / "a.args").write_text("# a comment\n--epochs 7  # why\n--model 'convnext_tiny'\n@%s" % (tmp_path / "b.args"))
    (tmp_path / "b.args").write_text("--drop-path 0.25\n")
    args = parse_args(["--epochs", "3", f"@{tmp_path}/a.args", "--drop-path=0.5", "--model_ema", "--mixup", ".8"])
    assert (args.epochs, args.model, args.drop_path, args.model_ema, args.mixup) == (7, "convnext_tiny", 0.5, True, 0.8)
    assert parse_args([f"@{tmp_path}/a.args"]).drop_path == 0.25


def test_wrong_lines_are_one_line_with_the_nearest_flag(capsys, tmp_path):
    assert "unknown flag --layr_decay, did you mean --layer_decay?" in error_of(capsys, "--layr-decay", "0.7")
    (tmp_path / "good.args").write_text("--drop_pth 0.1")
    assert "did you mean --drop_path?" in error_of(capsys, f"@{tmp_path}/good.args")
    assert "did you mean good.args?" in error_of(capsys, f"@{tmp_path}/god.args")
    (tmp_path / "self.args").write_text(f"@{tmp_path}/self.args")
    assert "names itself" in error_of(capsys, f"@{tmp_path}/self.args").replace("name itself", "names itself")
    (tmp_path / "quote.args").write_text("--model 'x")
    assert "No closing quotation" in error_of(capsys, f"@{tmp_path}/quote.args")
    (tmp_path / "binary.args").write_bytes(b"\xff\xfe\x00")
    assert "no text file" in error_of(capsys, f"@{tmp_path}/binary.args")
    assert "at least 1, found '0'" in error_of(capsys, "--epochs", "0")
    assert "at least 1, found '0'" in error_of(capsys, "--batch_size", "0")
    assert "found 'nan'" in error_of(capsys, "--lr", "nan")
    assert "expected true or false, found 'maybe'" in error_of(capsys, "--model_ema", "maybe")
    assert "expected key=value, found 'depths'" in error_of(capsys, "--model_kwargs", "depths")
    assert "unexpected 'photos'" in error_of(capsys, "photos")
    assert "one of the two" in error_of(capsys, "--data_path", "a", "--dataset", "b")
    assert "--val_split needs images of yours" in error_of(capsys, "--val_split", "0.1")


def test_a_recipe_is_read_as_shell_words(tmp_path):
    (tmp_path / "r").write_text('--a "b c" d\\ e # f\n\n--g')
    assert expand_recipes([f"@{tmp_path}/r", "--h"], pytest.fail) == ["--a", "b c", "d e", "--g", "--h"]


@pytest.mark.parametrize(
    ("batch_size", "update_freq", "total", "processes", "expected"),
    [
        (None, None, None, 4, (64, 1)),
        (32, 2, None, 4, (32, 2)),
        (None, None, 4096, 8, (64, 8)),
        (128, None, 4096, 8, (128, 4)),
        (None, None, 512, 64, (8, 1)),  # a small total on many processes
        (None, 4, 512, 8, (16, 4)),
        (32, 4, 1024, 8, (32, 4)),
    ],
)
def test_total_batch_size(batch_size, update_freq, total, processes, expected):
    assert derive_batch(batch_size, update_freq, total, processes, 64) == expected


@pytest.mark.parametrize(
    "numbers", [(64, None, 100, 1), (48, None, 512, 2), (64, 3, 512, 2), (64, None, 32, 1), (None, None, 7, 2)]
)
def test_a_total_that_does_not_divide_names_the_numbers(numbers):
    with pytest.raises(InputError) as error:
        derive_batch(*numbers, 64)
    assert f"--total_batch_size {numbers[2]} cannot be made of {numbers[3]} process" in str(error.value)


@pytest.mark.parametrize(("script", "parse"), [("recognition", parse_args), ("segmentation", train_segmentation.parse_args)])
def test_every_flag_is_read(script, parse):
    """Every option takes effect: its name occurs as args.NAME (or among those compared on resume) outside the parser."""
    tree = ast.parse((ROOT / f"train_{script}.py").read_text())
    read = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "args"
    }
    read |= {
        "opt",
        "opt_eps",
        "opt_betas",
        "momentum",
        "weight_decay_filter",
    }  # read by create_optimizer, see test_optim_factory.py
    read |= {"data_set"}  # only checked: both of its values mean class folders
    assert set(vars(parse([]))) <= read


def test_help_and_errors_answer_before_torch_is_imported():
    for words, code in ((["--help"], 0), (["--epoch", "3"], 2)):
        done = run("-X", "importtime", ROOT / "train_recognition.py", *words)
        assert done.returncode == code
        assert "accelerate" not in done.stderr.replace("train_recognition.py: error", "") and " torch" not in done.stderr
