"""Which weights are kept in best/, which ones the page is about, and when nothing better is to be expected."""

import json
import shlex

import accelerate
import numpy as np
import pytest
import torch
from conftest import Batches, begin_run
from safetensors.torch import load_file

from utils.cli.errors import InputError, Stopped
from utils.metrics.recognition import Answers
from utils.model.ema import EMA
from utils.run.checkpoint import states
from utils.run.folder import differences
from utils.run.state import Counters

EPOCHS = [{"acc1": 60.0, "loss": 0.9}, {"acc1": 50.0, "loss": 0.3}, {"acc1": 55.0, "loss": 0.4}]
ANSWERS = Answers(np.array([0]), np.array([3]), np.array([3]), np.array([0.5]), np.int64(10))


def begin(folder, *words):
    accelerator, model = accelerate.Accelerator(cpu=True), torch.nn.Linear(1, 1)
    optimizer = accelerator.prepare_optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    return begin_run(accelerator, folder, model, optimizer, Batches([], 1), *words), model


@pytest.mark.parametrize("metric, best", [("acc1", 0), ("loss", 1)])
def test_best_metric_decides_which_weights_are_kept(tmp_path, metric, best):
    run, model = begin(tmp_path / "run", "--best_metric", metric)
    for epoch, scores in enumerate(EPOCHS):
        torch.nn.init.constant_(model.weight, epoch)
        run.score(scores | {"images": 1}, ANSWERS)
    assert load_file(tmp_path / "run/best/model.safetensors")["weight"].item() == best
    assert run.counters.best == {f"test_{metric}": EPOCHS[best][metric]}


def test_the_page_is_about_the_highest_score_of_the_weights_and_their_average(tmp_path):
    run, _ = begin(tmp_path / "run")
    evaluations = [("best", 60, "best 60"), ("best_ema", 70, "best_ema 70"), ("best", 65, "best_ema 70")]
    evaluations += [("best_ema", 70, "best_ema 70"), ("best", 75, "best 75"), ("best_ema", 74, "best 75")]
    for name, score, shown in evaluations:
        run.score({"acc1": float(score), "loss": 1.0, "images": 1}, ANSWERS, name)
        found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
        assert f"{found['weights']} {found['scores']['acc1']:.0f}" == shown


def test_of_equal_scores_the_lower_loss_wins(tmp_path):
    run, model = begin(tmp_path / "run")
    evaluations = [("best", 0.9, "best 0.9"), ("best", 0.5, "best 0.5"), ("best", 0.7, "best 0.5")]
    evaluations += [("best_ema", 0.6, "best 0.5"), ("best_ema", 0.4, "best_ema 0.4"), ("best", 0.4, "best_ema 0.4")]
    for name, loss, shown in evaluations:
        torch.nn.init.constant_(model.weight, loss)
        run.score({"acc1": 60.0, "loss": loss, "images": 1}, ANSWERS, name)
        found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
        assert f"{found['weights']} {found['scores']['loss']}" == shown
    assert run.counters.best_loss == {"test_acc1": 0.4, "test_acc1_ema": 0.4}
    assert load_file(tmp_path / "run/best/model.safetensors")["weight"].item() == pytest.approx(0.4)


@pytest.mark.parametrize("ema, named", [(70.0, "best_ema"), (50.0, "best")])
def test_what_is_exported_and_uploaded_is_what_the_last_lines_name(tmp_path, monkeypatch, ema, named):
    run, model = begin(tmp_path / "run", "--push_to_hub", "me/it", "--report_to", "none")
    run.results.cards.folder, published = None, []
    monkeypatch.setattr("utils.run.results.publish", lambda folder, *_: published.append(folder))
    with run:
        for name, score in (("best", 60.0), ("best_ema", ema)):
            torch.nn.init.constant_(model.weight, score)
            run.score({"acc1": score, "loss": 1.0, "images": 1}, ANSWERS, name)
        run.finish(lambda: None)
    assert published == [str(tmp_path / "run" / named)]
    assert any(line.endswith(f"weights in {published[0]}") for line in run.results.lines("train_recognition", "1 s"))
    assert run.results.load_named() == named and model.weight.item() == max(ema, 60.0)  # the test images', too


def test_a_failed_export_is_warned_of_and_the_run_is_tested_and_finished(tmp_path, monkeypatch):
    run, _ = begin(tmp_path / "run", "--export", "torchscript", "torch_export")
    run.results.cards.folder, tested = None, []
    with run:
        run.score({"acc1": 60.0, "loss": 1.0, "images": 1}, ANSWERS)  # best/ of no architecture: nothing can open it
        run.finish(lambda: tested.append(run.results.named))
    assert tested == ["best"] and (tmp_path / "run" / "finished.json").is_file()
    best = tmp_path / "run" / "best"
    told = (tmp_path / "run" / "warnings.txt").read_text().splitlines()
    again = [shlex.split(line.rpartition("this does it again: ")[2]) for line in told if "does it again" in line]
    called = []
    monkeypatch.setattr("utils.result.export.export_run", lambda *words: called.append(words))
    for python, c, code in again:
        assert (python, c) == ("python", "-c")
        exec(code, {})
    assert called == [(str(best), "torchscript"), (str(best), "torch_export")]


def test_a_state_that_another_metric_chose_the_best_of_finds_a_best_anew(tmp_path):
    """acc1 fell, so that `best/` of the first start is its first epoch; by F1 the later ones are better."""
    epochs_of(tmp_path / "run", [70.0, 60.0], "--patience", 5, stop=2)
    state = states(tmp_path / "run" / "checkpoints")[-1]
    for folder in (tmp_path / "run", tmp_path / "other"):
        run, model = begin(folder, "--resume", state, "--best_metric", "f1")
        assert (run.counters.best, run.counters.best_loss, run.counters.waited) == ({}, {}, 0)
        for f1 in (20.0, 30.0, 25.0):
            torch.nn.init.constant_(model.weight, f1)
            run.score({"acc1": 50.0, "f1": f1, "loss": 1.0, "images": 1}, ANSWERS)
        assert load_file(folder / "best/model.safetensors")["weight"].item() == 30.0
        assert json.loads((folder / "evaluation.json").read_text())["scores"]["f1"] == 30.0
        assert run.counters.best == {"test_f1": 30.0}


@pytest.mark.parametrize("later, kept", [(70.0, False), (50.0, True)])
def test_who_goes_back_to_an_earlier_state_leaves_a_best_of_later_epochs_behind(tmp_path, capsys, later, kept):
    folder = tmp_path / "run"
    epochs_of(folder, [60.0, 55.0, later], stop=3)
    state = states(folder / "checkpoints")[1]
    for _ in range(2):  # killed before the first evaluation, and started again: the log knows nothing more of epoch 3
        run, model = begin(folder, "--resume", state, "--lr", "1e-4")
        assert run.counters.best == ({"test_acc1": 60.0} if kept else {})
    assert (folder / "best").is_dir() == (folder / "evaluation.json").is_file() == kept
    assert (folder / "old-best/best/model.safetensors").is_file() == (folder / "old-best/evaluation.json").is_file() != kept
    assert ("they are in" in capsys.readouterr().out) != kept
    torch.nn.init.constant_(model.weight, 5.0)
    run.score({"acc1": 58.0, "loss": 1.0, "images": 1}, ANSWERS)
    shown = 60.0 if kept else 58.0
    assert json.loads((folder / "evaluation.json").read_text())["scores"]["acc1"] == shown
    assert run.counters.best == {"test_acc1": shown}


def test_the_average_at_the_end_is_kept_where_nothing_is_evaluated(tmp_path):
    accelerator, model = accelerate.Accelerator(cpu=True), torch.nn.Linear(1, 1)
    optimizer = accelerator.prepare_optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    torch.nn.init.constant_(model.weight, 2.0)
    ema, words = EMA(model, decay=0.5), ("--model_ema", "true", "--disable_eval", "true", "--save_ckpt", "false")
    run = begin_run(accelerator, tmp_path / "run", model, optimizer, Batches([], 1), *words, ema=ema)
    run.results.cards.folder = None
    torch.nn.init.constant_(model.weight, 4.0)
    ema.update(0)
    with run:
        run.finish(lambda: None)
    kept = [load_file(tmp_path / f"run/{name}/model.safetensors")["weight"].item() for name in ("last", "last_ema")]
    assert kept == [4.0, 3.0] and model.weight.item() == 4.0


def test_other_validation_images_are_other_settings_by_which_a_best_is_found_anew(tmp_path, monkeypatch):
    def images(val):
        found = iter(["train", val])
        monkeypatch.setattr("utils.run.run.fingerprint", lambda source: next(found))

    images("a")
    epochs_of(tmp_path / "run", [90.0], stop=1)
    images("b")
    with pytest.raises(InputError, match="holds a run with other settings .val_data was a and is b now"):
        begin(tmp_path / "run")
    state = states(tmp_path / "run" / "checkpoints")[-1]
    for val, best in (("a", {"test_acc1": 90.0}), ("b", {})):
        images(val)
        run, _ = begin(tmp_path / val, "--resume", state)
        assert run.counters.best == best and (tmp_path / val / "best").is_dir() == bool(best)
    new = {"lr": 0.1, "val_data": "b", "values_read": [0, 4095]}
    assert differences({"lr": 0.1}, new) == ""  # an older run does not tell
    assert differences(new, new | {"values_read": [0, 255]}) == "values_read was [0, 4095] and is [0, 255] now"


def test_what_holds_of_other_images_is_forgotten():
    def after(saved, settings):
        counters = Counters(best={"test_acc1": 1.0}, best_loss={"test_acc1": 2.0}, waited=3, bad_samples=[4])
        counters.forget_others(saved, settings)
        return len(counters.best), len(counters.best_loss), counters.waited, counters.bad_samples

    settings = {"data": "a", "val_data": "b", "best_metric": "acc1"}
    assert after(settings, settings) == after({}, settings) == (1, 1, 3, [4])
    assert after(settings, settings | {"data": "x"}) == (1, 1, 3, [])
    assert after(settings, settings | {"val_data": "x"}) == after(settings, settings | {"best_metric": "f1"}) == (0, 0, 0, [4])


def test_a_stop_while_the_test_images_are_scored_leaves_the_last_state_and_the_same_command_goes_on(tmp_path):
    run, model = begin(tmp_path / "run")
    run.results.cards.folder = None  # there is no architecture to write about
    torch.nn.init.constant_(model.weight, 3.0)

    def stopped():
        assert run.results.load_named() == "best" and model.weight.item() == 3.0
        raise Stopped("stopped by SIGTERM")

    with pytest.raises(Stopped, match="the same command with --output_dir .* goes on"), run:
        run.score({"acc1": 60.0, "loss": 1.0, "images": 1}, ANSWERS)
        torch.nn.init.constant_(model.weight, 7.0)
        run.start_epoch(1)
        run.end_epoch(train_lr=0.1)
        run.finish(stopped)
    (state,) = states(tmp_path / "run" / "checkpoints")
    assert load_file(state / "model.safetensors")["weight"].item() == 7.0  # of the last epoch, as its optimizer is
    assert load_file(tmp_path / "run/last/model.safetensors")["weight"].item() == 7.0
    again, model = begin(tmp_path / "run")
    again.results.cards.folder = None
    with again:
        assert list(again.epochs(1)) == []
        again.finish(lambda: None)
    assert model.weight.item() == 7.0 and (tmp_path / "run" / "finished.json").is_file()


def epochs_of(folder, scores, *words, stop=None):
    """The epochs that a start trains, of a run of ten whose evaluations give `scores`, and a loss that falls: an equal score
    of a lower loss is kept, but is no progress. stop: after so many."""
    run, _ = begin(folder, *words)
    run.results.cards.folder = None  # there is no architecture to write about
    seen = []
    with run:
        for epoch in run.epochs(10):
            seen.append(epoch)
            if run.evaluates:
                run.score({"acc1": scores[epoch], "loss": 1 / (1 + epoch), "images": 1}, ANSWERS)
            run.counters.update += 1
            run.end_epoch(train_lr=0.1)
            if len(seen) == stop:
                break
    return seen


def test_a_run_without_progress_ends_and_ends_at_the_same_epoch_when_resumed(tmp_path):
    scores = [10.0, 30.0, 20.0, 30.0, 25.0, 50.0, *[0.0] * 4]
    assert epochs_of(tmp_path / "a", scores, "--patience", 3) == [0, 1, 2, 3, 4]  # 20, 30 and 25 are no better than 30
    assert epochs_of(tmp_path / "a", scores, "--patience", 3) == []  # killed after it: nothing is left to train
    parts = [epochs_of(tmp_path / "stop", scores, "--patience", 3, stop=3) for _ in range(2)]
    assert parts == [[0, 1, 2], [3, 4]]
    assert epochs_of(tmp_path / "b", scores, "--patience", 4) == list(range(10))
    assert epochs_of(tmp_path / "c", scores, "--patience", 1, "--eval_freq", 2) == [0, 1, 2, 3]  # epochs 2 and 4: 30 and 30
    assert epochs_of(tmp_path / "d", scores, "--eval_freq", 4) == list(range(10))


@pytest.mark.parametrize("left", [0, 3])
def test_a_state_of_another_run_brings_its_best_or_finds_one_anew(tmp_path, capsys, left):
    first = tmp_path / "first"
    epochs_of(first, [50.0, 70.0, 60.0], stop=3)
    states = sorted((first / "checkpoints").iterdir())
    assert json.loads((states[-1] / "config.json").read_text()) == json.loads((first / "best/config.json").read_text())
    run, _ = begin(tmp_path / "more", "--resume", states[-1])
    assert (
        run.counters.best == {"test_acc1": 70.0}
        and run.counters.best_loss == {"test_acc1": 0.5}
        and (tmp_path / "more/best/model.safetensors").is_file()
    )
    assert (tmp_path / "more/evaluation.json").read_text() == (first / "evaluation.json").read_text()
    run, _ = begin(tmp_path / "older", "--resume", states[0])  # best/ of the run may be of a later epoch
    assert run.counters.best == {} and not (tmp_path / "older/best").exists()
    run, _ = begin(tmp_path / "again", "--resume", states[-1])
    with run:
        for epoch in run.epochs(3 + left):
            run.counters.epoch = epoch + 1
    assert run.counters.epoch == 3 + left
    assert ("nothing left to do: 3 epochs are done" in capsys.readouterr().out) == (left == 0)
