"""The folder of a run: a new one, or an unfinished one to go on with; never one that holds another run."""

import contextlib
import datetime
import errno
import itertools
import json
import math
import os
import pathlib
import platform
import shutil
import stat
import sys

import accelerate

from utils import files, versions
from utils.cli.errors import InputError, one_line
from utils.report.evaluation import FILES
from utils.report.run_files import number, of_type, read_json, read_records
from utils.report.scores import is_better
from utils.run import checkpoint

FINISHED = "finished.json"
OF_THE_BEST = (*FILES, "answers.npz")  # what is kept of its evaluation
LATER = ("val_data", "values_read")  # settings that runs of before do not tell, which may go on
_records = {}  # of the runs of this process, by folder
_locks = []  # descriptors of open files, held until this process ends


def open_folder(folder, script, settings, args, *, resume="", auto_resume=True, say=print):
    """(folder, state to go on from or None). Makes the folder and its args.json.

    settings: what decides the result; args: all flags, for the record. A state of the folder's own wins over `resume` where
    an earlier start of the same command saved it after that one. Everything is checked before anything is touched: raises
    InputError where the folder holds a finished run, one with other settings, one whose states are gone or broken, or
    files of another program; for a broken `resume`; and where the folder cannot be written.
    """
    try:
        folder = pathlib.Path(folder) if folder else _fresh_name(script)
    except OSError as error:
        raise InputError(f"output/ cannot be made here ({error.strerror}): name a folder with --output_dir") from None
    try:
        str(folder.absolute()).encode()
    except UnicodeEncodeError:  # safetensors, and what else is written in Rust, opens no such path
        raise InputError(f"--output_dir {folder}: its name is no UTF-8; choose another folder") from None
    try:
        return _open(folder, settings, args, resume, auto_resume, say)
    except OSError as error:
        raise InputError(f"--output_dir {folder} cannot be written ({error.strerror}): choose another folder") from None


def _open(folder, settings, args, resume, auto_resume, say):
    """`open_folder`, with the errors of the disk as they come."""
    record, states_folder = folder / "args.json", folder / "checkpoints"
    if resume:
        checkpoint.check(resume)
    known = None
    _refuse_odd_files(folder)
    if record.exists():
        known = _known(folder, record, settings, resume, auto_resume)
    elif foreign := [name for name in ("log.txt", "updates.txt", "best", "last") if (folder / name).exists()]:
        raise InputError(f"--output_dir {folder} holds {foreign[0]} of another program: choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    _lock(folder)
    if known is None and record.exists():  # another start was at it, and is over by now
        known = _known(folder, record, settings, resume, auto_resume)
    state = pathlib.Path(resume) if resume else None
    if known and (not resume or known["args"].get("resume") == resume):
        own = checkpoint.newest_state(states_folder, say)
        if own is None and not resume:
            _refuse_lost_states(folder, known)
        if own is not None and resume and own.resolve() != state.resolve():
            say(f"note: {own} was saved after {resume} by this same command, and wins; --output_dir elsewhere goes back")
        state = own or state
    if checkpoint.set_aside_newer(states_folder, state) and _best_is_later(folder, state):
        _set_aside_best(folder, say)
    record_of_this_start = {
        "settings": settings, "args": args, "command": sys.argv, "cwd": os.getcwd(),
        "launcher": _launcher(), "commit": versions.commit(), "versions": versions.versions(),
    }  # fmt: skip
    files.write_json(record, record_of_this_start)
    _records[str(folder)] = record_of_this_start
    return str(folder), state and str(state)


def _refuse_odd_files(folder):
    """InputError for a pipe or a device in `folder`, at which whoever opens it waits for ever."""
    for entry in os.scandir(folder) if folder.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):  # a link that leads nowhere
            if not (entry.is_dir() or entry.is_file() or stat.S_ISSOCK(entry.stat().st_mode)):
                raise InputError(f"--output_dir {folder} holds {entry.name}, which is no file: choose another folder")


def _known(folder, record, settings, resume, auto_resume):
    """What args.json of an unfinished run says. InputError where this command must not go on with that run."""
    if (folder / FINISHED).exists():
        raise InputError(f"--output_dir {folder} holds a finished run: choose another folder, or remove this one")
    if not (auto_resume or resume):
        raise InputError(f"--output_dir {folder} holds an unfinished run: choose another folder, or --auto_resume true")
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
        differ = differences(known["settings"], settings)
        known["args"].get("resume")
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError):
        raise InputError(f"--output_dir {folder}: its args.json cannot be read; choose another folder") from None
    is_its_own = resume and (folder / "checkpoints").resolve() in pathlib.Path(resume).resolve().parents
    if differ and not is_its_own:
        raise InputError(f"--output_dir {folder} holds a run with other settings ({differ}): choose another folder")
    return known


def _refuse_lost_states(folder, known):
    """InputError where the run had states once, all of which are broken or gone: starting over would overwrite its results."""
    there, args = checkpoint.states(folder / "checkpoints"), known["args"]
    try:
        epochs = len((folder / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines())
    except OSError:
        epochs = 0
    if there or (args.get("save_ckpt") and epochs >= (args.get("save_ckpt_freq") or 1)):
        found = f"its {len(there)} states are broken" if there else "its states are gone from checkpoints/"
        raise InputError(
            f"--output_dir {folder} holds a run of {epochs} epochs, but {found}: choose another folder, and start there from "
            f"its weights with --finetune {folder / 'best'} if they will do"
        )


def before_restart(accelerator, script):
    """The folder that this run chose before its launcher started it again (--max_restarts), "" where it did not.

    All processes call it together.
    """
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) == 0:
        return ""
    found = [""]
    if accelerator.is_main_process:
        for record in sorted(pathlib.Path("output", script).glob("*/args.json")):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                if json.loads(record.read_text(encoding="utf-8")).get("launcher") == _launcher():
                    found = [str(record.parent)]
    accelerate.utils.broadcast_object_list(found)
    return found[0]


def put_back(folder):
    """Make the folder of a run again, if it was removed while the run went on; returns whether it was. May raise OSError."""
    path = pathlib.Path(folder)
    if str(folder) not in _records or (path / "args.json").exists():
        return False
    path.mkdir(parents=True, exist_ok=True)
    _lock(path)
    files.write_json(path / "args.json", _records[str(folder)])
    return True


def open_together(accelerator, *words, say, **settings):
    """`open_folder` by the main process; all processes learn what it found, an error too, so that none waits for ever."""
    found = [None, None, None]
    if accelerator.is_main_process:
        try:
            found[:2] = open_folder(*words, say=say, **settings)
        except InputError as error:
            found[2] = str(error)
    accelerate.utils.broadcast_object_list(found)
    if found[2]:
        raise InputError(found[2])
    folder, state = found[:2]
    if not seen_by_all(os.path.join(folder, "args.json")):
        lack = f"--output_dir {folder} is not one folder for all processes"
        if state:
            raise InputError(f"{lack}: to go on with a run, it must lie on a file system that all machines share")
        say(f"warning: {lack}: such a run cannot go on after a stop, and test images are scored by its last weights; give a "
            "folder on a file system that all machines share")  # fmt: skip
    return folder, state


def seen_by_all(path):
    """Whether each process sees the file; all call it together."""
    return all(accelerate.utils.gather_object([os.path.isfile(path)]))


def take_best(accelerator, state, folder, best):
    """The scores in `best`, of a state, whose weights lie in `folder`; all processes call it together.

    A state of another run brings scores without weights. These are copied, with what is known of that evaluation, if no later
    state is in that run, whose best they may be; otherwise the next evaluation finds a best anew.
    """
    kept = [best]
    if accelerator.is_main_process:
        run, folder = pathlib.Path(state).resolve().parent.parent, pathlib.Path(folder)
        newest = [path.resolve() for path in checkpoint.states(run / "checkpoints")[-1:]] == [pathlib.Path(state).resolve()]
        for name in sorted({_kept_in(score) for score in best}):
            if newest and not (folder / name / "model.safetensors").is_file() and (run / name / "model.safetensors").is_file():
                with contextlib.suppress(OSError):
                    shutil.copytree(run / name, folder / name, dirs_exist_ok=True)
                    for file in OF_THE_BEST if name == "best" else ():
                        if (run / file).is_file():
                            shutil.copy(run / file, folder / file)
        kept = [{key: value for key, value in best.items() if _has_weights(folder, key)}]
    accelerate.utils.broadcast_object_list(kept)
    return kept[0]


def _best_is_later(folder, state):
    """Whether, by log.txt, the best weights of `folder` may be of a later epoch than the `state` that the run goes back to."""
    is_own = (folder / "checkpoints").resolve() in state.resolve().parents
    known = read_json(state / "state.json", dict) if is_own else {}  # that of another run knows none of these weights
    best, losses = of_type(known.get("best"), dict), of_type(known.get("best_loss"), dict)
    metric, epoch = of_type(known.get("settings"), dict).get("best_metric"), of_type(known.get("epoch"), int)
    left = [record for record in read_records(folder / "log.txt", "epoch") if record["epoch"] >= epoch]
    for record, suffix in itertools.product(left, ("", "_ema")):
        key = f"test_{metric}{suffix}"
        value, loss, best_loss = number(record.get(key)), number(record.get(f"test_loss{suffix}")), number(losses.get(key))
        both = (math.nan if loss is None else loss for loss in (loss, best_loss))
        if value is not None and is_better(metric, value, number(best.get(key)), *both):
            return True
    return not is_own


def _set_aside_best(folder, say):
    """Move the best weights, and what is known of their evaluation, to old-best/: they are of a branch that is left."""
    aside = checkpoint.free_name(folder / "old-best")
    for path in [folder / name for name in ("best", "best_ema", *OF_THE_BEST) if (folder / name).exists()]:
        aside.mkdir(exist_ok=True)
        path.rename(aside / path.name)
    if aside.exists():
        say(f"note: the best weights were of a later epoch: they are in {aside} now, and the next evaluation finds a best anew")


def _has_weights(folder, score):
    return (folder / _kept_in(score) / "model.safetensors").is_file()


def _kept_in(score):
    return "best_ema" if score.endswith("_ema") else "best"


def mark_finished(accelerator, log, folder, best, fault):
    """Mark the run as finished, all processes together. fault: of its last save or of last/; InputError says what to do."""
    if accelerator.is_main_process and not fault:
        try:
            log.flush()
            files.write_json(os.path.join(folder, FINISHED), best)
        except OSError as error:
            fault = str(error)
    if fault:
        goes_on = f"run the same command with --output_dir {folder}, which goes on from the last whole state"
        if not checkpoint.states(pathlib.Path(folder, "checkpoints")):
            goes_on = "run the same command with another --output_dir: no state of this run could be saved"
        raise InputError(f"trained to the end, but the last save failed: {fault}; make room and {goes_on}")


def differences(old, new):
    """The settings that differ, in words; "" if none does. Those that came LATER than `old` was written do not."""
    old, new = json.loads(json.dumps(old)), json.loads(json.dumps(new))
    old = {key: new[key] for key in LATER if key in new} | old
    differ = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return one_line(", ".join(f"{key} was {old.get(key)} and is {new.get(key)} now" for key in differ))


def _lock(folder):
    """InputError if another process is training in `folder`; the lock goes with this process, however it ends."""
    try:
        import fcntl  # not on Windows, where nothing is locked

        file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        _locks.append(file)
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with contextlib.suppress(OSError):  # a full disk
            os.truncate(file, 0)
            os.write(
                file, f"process {os.getpid()} on {platform.node()} since {datetime.datetime.now():%Y-%m-%d %H:%M}".encode()
            )
    except ImportError:
        return
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            whose = os.pread(file, 200, 0).decode(errors="replace") or "nothing is known of it"
            raise InputError(
                f"--output_dir {folder}: another process is training there ({whose}); wait for it or choose another"
            ) from None
        if isinstance(error, PermissionError) or error.errno == errno.EROFS:
            raise  # some network drives have no locks, which is no reason to stop; a folder that cannot be written is


def _launcher():
    """What stays the same when torchrun or `accelerate launch` starts its processes again."""
    return f"{platform.node()} {os.getppid()}"


def _fresh_name(script):
    base = pathlib.Path("output") / script
    stamp = datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
    for name in [stamp, *(f"{stamp}-{i}" for i in range(2, 100))]:  # two runs may start within one second
        with contextlib.suppress(FileExistsError):
            (base / name).mkdir(parents=True)
            return base / name
    raise InputError(f"{base}: a hundred runs began within one second; name one with --output_dir")
