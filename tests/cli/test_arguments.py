"""The command line: recipes, hyphens, misspellings, types, settings of a topic, and the arithmetic of the batch."""

import copy
import os
import pickle

import pytest
from conftest import ROOT
from hostile import fuzz, in_time, mutated, refusal

from utils.cli.arguments import (
    Parser,
    boolean,
    derive_batch,
    expand_recipes,
    key_value,
    number,
    refuse_idle,
    settings_of,
    whole,
)
from utils.cli.errors import InputError


def add_flags(parser):
    topic = parser.topic("a topic")
    topic.add("--drop_path", type=number(0, 0.99), default=0.0, help="a share")
    topic.add("--epochs", type=whole(1), default=100, help="passes")
    topic.add("--model", default="tiny", help="a name")
    topic.add("--scale", type=number(above=0), nargs=2, default=(0.5, 2.0), help="two numbers")
    topic.add("--model_kwargs", nargs="+", type=key_value, default=[], help="options")
    topic.add("--output_dir", free=True, help="a folder")
    topic.switch("--model_ema", False, "a switch")
    topic.switch("--save", True, "another switch", free=True)


Settings = settings_of("Settings", add_flags)


def parse(*words, **kwargs):
    parser = Parser("x.py", "a script")
    add_flags(parser)
    return parser.parse_args(list(map(str, words)), **kwargs)


@pytest.fixture
def error_of(capsys):
    """The one line that a wrong command line is answered with."""

    def error_of(*words, **kwargs):
        with pytest.raises(SystemExit) as stop:
            parse(*words, **kwargs)
        assert stop.value.code == 2
        text = capsys.readouterr().err
        assert text.startswith("x.py: error: ") and text.count("\n") == 1 and text[:-1].isprintable()
        return text[len("x.py: error: ") : -1]

    return error_of


# --- words and recipes ------------------------------------------------------------------------------------------------


def test_a_recipe_may_stand_anywhere_and_later_flags_win(tmp_path):
    (tmp_path / "a.args").write_text(f"# a comment\n--epochs 7  # why\n--model 'big one'\n@{tmp_path / 'b.args'}\n")
    (tmp_path / "b.args").write_text("--drop-path 0.25\n")
    args = parse("--epochs", 3, f"@{tmp_path}/a.args", "--drop-path=0.5", "--model_ema")
    assert (args.epochs, args.model, args.drop_path, args.model_ema) == (7, "big one", 0.5, True)
    assert parse(f"@{tmp_path}/a.args").drop_path == 0.25


def test_a_recipe_is_read_as_shell_words(tmp_path):
    (tmp_path / "r").write_text('--a "b c" d\\ e # f\n\n--g')
    assert expand_recipes([f"@{tmp_path}/r", "--h"], pytest.fail) == ["--a", "b c", "d e", "--g", "--h"]


def test_hyphens_of_a_flag_are_underscores_and_those_of_a_value_stay():
    assert parse("--output-dir", "my-run").output_dir == "my-run" and parse("--output-dir=--my-run").output_dir == "--my-run"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epoch", "3"], "unknown flag --epoch, did you mean --epochs?"),
        (["--drop-pth", "0.1"], "unknown flag --drop_pth, did you mean --drop_path?"),
        (["--zzz=3"], "unknown flag --zzz"),
        (["--epoch", "3", "--modle", "x"], "unknown flag --epoch, did you mean --epochs?; unknown flag --modle, did you mean"),
        (["photos"], "unexpected 'photos': every value belongs to a --flag before it"),
        (["--epochs", "0"], "argument --epochs: expected a whole number of 1 to 1,000,000,000, found '0'"),
        (["--epochs", "1.5"], "argument --epochs: expected a whole number of 1 to 1,000,000,000, found '1.5'"),
        (["--drop_path", "1"], "argument --drop_path: expected a number of 0 to 0.99, found '1'"),
        (["--drop_path", "nan"], "argument --drop_path: expected a number of 0 to 0.99, found 'nan'"),
        (["--scale", "0", "1"], "argument --scale: expected a number above 0, to 1,000,000, found '0'"),
        (["--scale", "1"], "argument --scale: expected 2 arguments"),
        (["--model_ema", "maybe"], "argument --model_ema: expected true or false, found 'maybe'"),
        (["--model_kwargs", "depths"], "argument --model_kwargs: expected key=value, found 'depths'"),
        (["--model"], "argument --model: expected one argument"),
    ],
)
def test_a_wrong_line_is_answered_with_one_line(error_of, words, message):
    assert error_of(*words).startswith(message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"--drop_pth 0.1", "did you mean --drop_path?"),
        (b"--model 'x", "No closing quotation; expected shell words"),
        (b"\xff\xfe\x00", "no text file"),
        (b"@HERE", "does a recipe name itself?"),
        (b"@HERE.args", "No such file or directory, did you mean good.args?"),
        (b" " * 200_000, "200,000 bytes; expected a text file of flags"),
    ],
)
def test_a_wrong_recipe_is_answered_with_one_line(error_of, tmp_path, content, message):
    path = tmp_path / "good.args"
    path.write_bytes(content.replace(b"HERE.args", bytes(tmp_path / "god.args")).replace(b"HERE", bytes(path)))
    assert message in error_of(f"@{path}")


@pytest.mark.parametrize(
    "text",
    [
        b"--lr \\",
        b"x" * 10**7,
        b"@r.args " * 1000,
        b"@/dev/zero",
        b"@pipe",
        b"@.",
        b"@a\nb\x1b[2J",
        b"@many",
        b"@" + b"x" * 5000,
    ],
)
def test_hostile_recipes(tmp_path, monkeypatch, error_of, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.args").write_bytes(text)
    os.mkfifo("pipe")
    for level in range(6):  # 10 to the 6th files
        (tmp_path / f"many{level or ''}").write_text(f"@many{level + 1} " * 10)
    (tmp_path / "many6").write_text("")
    with in_time():
        error_of("@r.args")


def test_mutated_recipes(tmp_path):
    text = (ROOT / "recipes/recognition/convnextv2_base_ft_in1k.args").read_bytes()

    def error(message):
        raise InputError(message)

    @fuzz(100)
    def mutate(edits):
        (tmp_path / "r.args").write_bytes(mutated(text, edits))
        refusal(expand_recipes, [f"@{tmp_path / 'r.args'}"], error)


@pytest.mark.parametrize("value", ["(" * 50_000, "[" * 200, "{[]: 1}", "9" * 9999, "-" * 9999 + "1", "\0", "__import__('os')"])
def test_values_of_options_are_literals_or_text(value):
    with in_time():
        assert key_value(f"depths={value}") == ("depths", value)


def test_of_several_processes_one_answers(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        parse("--epoch", 3)
    assert capsys.readouterr().err == ""


def test_switches_and_keys_as_published():
    assert parse("--model_ema").model_ema and parse("--model_ema", "True").model_ema and not parse("--save", "0").save
    assert [boolean(word) for word in ("yes", "off", "TRUE", "n")] == [True, False, True, False]
    args = parse("--model_kwargs", "depths=(1,1)", "act=gelu", "conv_mlp=True")
    assert args.model_kwargs == [("depths", (1, 1)), ("act", "gelu"), ("conv_mlp", True)]


# --- what was given, and settings -------------------------------------------------------------------------------------


def test_given_are_the_flags_of_the_line_and_of_its_recipes(tmp_path):
    (tmp_path / "r.args").write_text("--epochs 100")
    args = parse(f"@{tmp_path}/r.args", "--model_ema")
    assert args.given == {"epochs", "model_ema"} and parse().given == frozenset()
    assert args.free == {"output_dir", "save"}
    assert set(args.decisive()) == {"drop_path", "epochs", "model", "scale", "model_kwargs", "model_ema"}
    assert "given" not in vars(args)


def test_defaults_of_the_data_give_way_to_the_line():
    def defaults_for(args):
        return {"epochs": 10, "model": "small"} if args.output_dir is None else {}

    assert (parse(defaults_for=defaults_for).epochs, parse("--output_dir", "x", defaults_for=defaults_for).epochs) == (10, 100)
    args = parse("--epochs", 100, defaults_for=defaults_for)
    assert (args.epochs, args.model) == (100, "small")  # 100 is the ordinary default, but it was given


def test_settings_are_the_flags_of_their_topic():
    args = parse("--epochs", 3, "--scale", 1, 2)
    args.seed = 0  # a flag of another topic
    settings = Settings.of(args)
    assert (settings.epochs, settings.scale, settings.model) == (3, [1, 2], "tiny")
    assert Settings() == Settings.of(parse()) and Settings(epochs=3).epochs == 3
    assert pickle.loads(pickle.dumps(settings)) == copy.deepcopy(settings) == settings  # loader workers get them
    with pytest.raises(TypeError):
        Settings(epoch=3)


def test_a_flag_that_would_do_nothing_is_refused_on_the_line_but_not_in_a_recipe(error_of, tmp_path):
    def check(args, error):
        refuse_idle(args, error, ("scale drop_path", args.model_ema, "with --model_ema true"))

    parse(check=check)
    parse("--scale", 1, 2, "--model_ema", check=check)
    words = error_of("--scale", 1, 2, check=check)
    assert words == "--scale 1.0 2.0 would do nothing: it takes effect with --model_ema true; leave it out"
    assert error_of("--drop_path", 0, check=check).startswith("--drop_path 0.0 would do nothing")
    (tmp_path / "x.args").write_text("--scale 1 2 --model_ema")
    parse(f"@{tmp_path / 'x.args'}", "--model_ema", "false", check=check)


# --- batch ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch_size", "update_freq", "total", "processes", "expected"),
    [
        (None, None, None, 4, (64, 1)),
        (32, 2, None, 4, (32, 2)),
        (None, None, 4096, 8, (64, 8)),
        (128, None, 4096, 8, (128, 4)),
        (None, None, 512, 64, (8, 1)),  # a small total on many processes
        (None, 4, 512, 8, (16, 4)),
        (None, 1, 512, 1, (512, 1)),  # the user says how many micro-batches
        (32, 4, 1024, 8, (32, 4)),
    ],
)
def test_total_batch_size(batch_size, update_freq, total, processes, expected):
    batch = derive_batch(batch_size, update_freq, total, processes, 64)
    assert (batch.size, batch.update_freq) == expected and batch.total == (total or expected[0] * expected[1] * processes)


@pytest.mark.parametrize(
    "numbers", [(64, None, 100, 1), (48, None, 512, 2), (64, 3, 512, 2), (64, None, 32, 1), (None, None, 7, 2)]
)
def test_a_total_that_does_not_divide_names_the_numbers(numbers):
    with pytest.raises(InputError) as error:
        derive_batch(*numbers, 64)
    assert f"--total_batch_size {numbers[2]} cannot be made of {numbers[3]} process" in str(error.value)
