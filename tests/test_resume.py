"""Where a resumed run goes on: the position in other batches, other data, which state wins, and what is refused untouched."""

import json
import shutil

import accelerate
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from conftest import Batches, begin_run, lines, make_folder, train
from faults import Job
from hypothesis import given
from hypothesis import strategies as st

import train_recognition
from utils.cli.errors import InputError
from utils.losses.recognition import make_loss
from utils.run.checkpoint import states
from utils.run.state import Counters

EPOCH = ("--epochs", 3, "--warmup_epochs", 0, "--save_ckpt_num", 100)


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 40), st.integers(0, 4), st.data())
def test_a_position_in_other_batches_is_the_same_images_or_refused(images, old, new, epoch, data):
    """Over numbers of images, batches before and after, and positions."""
    per_epoch, now = images // old, images // new
    done = data.draw(st.integers(0, max(per_epoch - 1, 0)))
    counters = Counters(epoch=epoch, update=epoch * per_epoch + done, updates_per_epoch=per_epoch, batch_total=old)
    try:
        counters.move_to(now, new)
    except ValueError:
        assert done and (done * old % new or per_epoch * old // new != now)
        return
    assert counters.epoch == epoch and (counters.update - epoch * now) * new == done * old
    assert 0 <= counters.update - epoch * now <= now


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of three epochs of 22 updates of 64 images, saved every 8 updates."""
    folder = tmp_path_factory.mktemp("resume") / "run"
    done = train(*EPOCH, "--save_ckpt_updates", 8, "--output_dir", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def main(capsys):
    def call(*words):
        from conftest import TINY

        try:
            train_recognition.main(train_recognition.parse_args([*TINY, *map(str, words)]))
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
        return capsys.readouterr().out

    return call


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "per_epoch"), [(32, 44), (128, 11)])
def test_another_batch_from_the_end_of_an_epoch_trains_the_epochs_that_are_left(finished, tmp_path, main, batch, per_epoch):
    state = finished / "checkpoints" / "update_00000022"
    out = main(*EPOCH, "--batch_size", batch, "--resume", state, "--output_dir", tmp_path / "run")
    assert f"after {per_epoch} updates" in out
    updates = [record["update"] for record in lines(tmp_path / "run" / "updates.txt")]
    assert updates == list(range(per_epoch, 3 * per_epoch))
    assert [record["epoch"] for record in lines(tmp_path / "run" / "log.txt")] == [1, 2]


@pytest.mark.slow
def test_another_batch_within_an_epoch_goes_on_after_the_same_images_or_is_refused(finished, tmp_path, main):
    state = finished / "checkpoints" / "update_00000008"
    main(*EPOCH, "--batch_size", 128, "--resume", state, "--output_dir", tmp_path / "run")
    assert lines(tmp_path / "run" / "updates.txt")[0]["update"] == 4  # 8 updates of 64 images
    with pytest.raises(InputError, match="after 8 of 22 updates of 64 images, which are no whole number of updates of 96"):
        main(*EPOCH, "--batch_size", 96, "--resume", state, "--output_dir", tmp_path / "other")


def test_a_wrong_resume_touches_nothing(finished, tmp_path, main):
    run = unfinished(finished, tmp_path)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"found no manifest.json"):
        main(*EPOCH, "--resume", run / "checkpoints" / "update_0000008", "--output_dir", run)
    with pytest.raises(InputError, match="holds a run with other settings"):  # of another folder's
        main(*EPOCH, "--smoothing", 0, "--resume", finished / "checkpoints" / "update_00000008", "--output_dir", run)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"} == before


def unfinished(finished, tmp_path, last=24):
    """A copy of the run as it was when it was killed after the state of update `last`."""
    run = tmp_path / "unfinished"
    shutil.copytree(finished, run)
    for state in states(run / "checkpoints"):
        if state.name > f"update_{last:08d}":
            shutil.rmtree(state)
    for name in ("finished.json", ".lock"):
        (run / name).unlink(missing_ok=True)
    return run


@pytest.mark.slow
def test_what_a_resumed_run_saved_itself_wins_when_its_command_is_given_again(finished, tmp_path, main):
    start = ["--resume", finished / "checkpoints" / "update_00000008", "--output_dir", tmp_path / "run"]
    main(*EPOCH, "--save_ckpt_updates", 8, *start)
    (tmp_path / "run" / "finished.json").unlink()
    for state in states(tmp_path / "run" / "checkpoints"):
        if state.name > "update_00000048":
            shutil.rmtree(state)
    out = main(*EPOCH, "--save_ckpt_updates", 8, *start)
    assert "after 48 updates" in out and "wins" in out


def test_a_run_whose_states_are_broken_or_gone_is_not_started_over(finished, tmp_path, main):
    run = unfinished(finished, tmp_path)
    for state in states(run / "checkpoints"):
        (state / "optimizer.pt").write_bytes(b"")
    best = (run / "best" / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match=r"holds a run of 3 epochs, but its \d+ states are broken"):
        main(*EPOCH, "--output_dir", run)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(InputError, match="its states are gone from checkpoints/"):
        main(*EPOCH, "--output_dir", run)
    assert (run / "best" / "model.safetensors").read_bytes() == best


def test_files_of_another_program_are_left_alone(tmp_path, main):
    (tmp_path / "convnext").mkdir()
    (tmp_path / "convnext" / "log.txt").write_text("{'epoch': 3}")
    with pytest.raises(InputError, match="holds log.txt of another program"):
        main(*EPOCH, "--output_dir", tmp_path / "convnext")
    assert (tmp_path / "convnext" / "log.txt").read_text() == "{'epoch': 3}"


def test_a_class_folder_with_another_name_does_not_shift_the_labels(tmp_path, main):
    for split, count in (("train", 4), ("val", 2)):
        make_folder(tmp_path / "images" / split, ("cat", "dog"), count)
    words = ["--data_path", tmp_path / "images", "--batch_size", 4, "--epochs", 1, "--warmup_epochs", 0]
    main(*words, "--output_dir", tmp_path / "run")
    (tmp_path / "run" / "finished.json").unlink()
    for split in ("train", "val"):
        (tmp_path / "images" / split / "cat").rename(tmp_path / "images" / split / "zebra")
    changed = r"classes was \['cat', 'dog'\] and is \['dog', 'zebra'\] now"
    with pytest.raises(InputError, match=changed):
        main(*words, "--output_dir", tmp_path / "run")
    (state,) = (tmp_path / "run" / "checkpoints").iterdir()
    with pytest.raises(InputError, match=changed + "; expected the same names in the same order"):
        main(*words, "--output_dir", tmp_path / "other", "--resume", state)


def test_another_data_set_of_the_same_size_and_another_precision_are_refused(tmp_path, main):
    for name in "ab":
        make_folder(tmp_path / name / "train", ("cat", "dog"), 4)
        make_folder(tmp_path / name / "val", ("cat", "dog"), 2)
    for path in (tmp_path / "b" / "train" / "cat").iterdir():
        path.rename(path.with_name(f"other_{path.name}"))
    words = ["--batch_size", 4, "--epochs", 1, "--warmup_epochs", 0, "--output_dir", tmp_path / "run"]
    main(*words, "--data_path", tmp_path / "a")
    (tmp_path / "run" / "finished.json").unlink()
    shutil.move(tmp_path / "a", tmp_path / "moved")
    with pytest.raises(InputError, match="other settings .data was .* and is .* now"):
        main(*words, "--data_path", tmp_path / "b")
    record = json.loads((tmp_path / "run" / "args.json").read_text())
    record["settings"]["precision"] = "bf16"
    (tmp_path / "run" / "args.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="precision was bf16 and is no now"):
        main(*words, "--data_path", tmp_path / "moved")
    record["settings"]["precision"] = "no"
    (tmp_path / "run" / "args.json").write_text(json.dumps(record))
    assert "resumed" in main(*words, "--data_path", tmp_path / "moved")  # the same images at another place


def killed_while_drawing(_rank):
    import os
    import signal

    from utils.pictures.gallery import Gallery

    Gallery.finish = lambda self, look=None: os.kill(os.getpid(), signal.SIGKILL)


def test_a_run_that_is_killed_while_it_draws_makes_its_pictures_later(tmp_path, main):
    words = ["--epochs", 1, "--warmup_epochs", 0, "--output_dir", tmp_path / "run"]
    from conftest import TINY

    assert Job("train_recognition", [*TINY, *map(str, words)], tmp_path / "text", prepare=killed_while_drawing).wait() == [-9]
    assert not (tmp_path / "run" / "finished.json").exists()
    main(*words)
    assert (tmp_path / "run" / "finished.json").exists()
    page = (tmp_path / "run" / "report.html").read_text()
    assert "not finished" not in page and "In words" in page
    assert all((tmp_path / "run" / f"{name}.png").is_file() for name in ("confusion", "mistakes", "reliability"))


def test_a_broken_validation_image_is_found_after_the_state_is_saved(tmp_path, main):
    make_folder(tmp_path / "data" / "train", ("cat", "dog"), 4, suffix=".jpg")
    make_folder(tmp_path / "data" / "val", ("cat", "dog"), 4, suffix=".jpg", seed=1)
    broken = tmp_path / "data" / "val" / "dog" / "2.jpg"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-200])
    words = ["--data_path", tmp_path / "data", "--batch_size", 4, "--epochs", 1, "--warmup_epochs", 0, "--output_dir",
             tmp_path / "run"]  # fmt: skip
    with pytest.raises(InputError, match="cannot be read as an image"):
        main(*words)
    assert [path.name for path in states(tmp_path / "run" / "checkpoints")] == ["update_00000002"]
    broken.write_bytes(whole)
    assert "after 2 updates" in main(*words)


# --- fp16: a loss scaler leaves updates out


def scaled_run(folder, bad_updates, updates, ema=None):
    """A run of one layer under a loss scaler, whose losses are not finite in `bad_updates`; (run, accelerator)."""
    accelerator = accelerate.Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1000)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 10))
    network, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    calls = iter(range(updates))

    def criterion(logits, labels):
        loss = make_loss("ce", 0.0)(logits, labels)
        return loss * float("nan") if next(calls) in bad_updates else loss

    loader = Batches([(torch.rand(8, 3, 2, 2), torch.arange(8))] * updates, updates)
    average = ema(model) if ema else None
    run = begin_run(accelerator, folder, model, optimizer, loader, "--log_every", 5, ema=average)
    try:
        with run:
            run.start_epoch(updates)
            train_recognition.train_one_epoch(
                accelerator, network, criterion, loader, optimizer, lambda update: 0.1, run, ema=average
            )
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
    return run, average


def test_updates_that_a_loss_scaler_leaves_out_are_counted_and_not_averaged(tmp_path):
    class Counting:
        calls = ()

        def __init__(self, model):
            pass

        def update(self, update):
            self.calls = (*self.calls, update)

        def state_dict(self):
            return {}

    run, average = scaled_run(tmp_path / "run", {2, 5}, 10, Counting)
    assert run.counters.skipped == 2 and average.calls == (0, 1, 3, 4, 6, 7, 8, 9)
    assert [record["update"] for record in lines(tmp_path / "run" / "updates.txt") if record.get("skipped")] == [2, 5]


def test_a_run_in_fp16_whose_losses_are_never_finite_stops(tmp_path):
    with pytest.raises(InputError, match="fp16: 31 updates in a row, up to update 30"):
        scaled_run(tmp_path / "run", set(range(100)), 100)
