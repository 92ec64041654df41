"""What the launchers start: `accelerate launch`, torchrun and Slurm's, with the configs of accelerate_configs/ and without."""

import functools
import json
import multiprocessing
import os
import pathlib
import re
import subprocess
import sys

import accelerate
import pytest
import sharded_on_cpu
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from conftest import ROOT, TINY, free_port, lines, make_folder
from faults import Job

CONFIGS = ROOT / "accelerate_configs"
PROCESSES = {"cpu_1": 1, "cpu_2": 2, "gpu_1": 1, "gpu_8": 8, "two_machines": 16, "fsdp2": 8, "fsdp2_zero2": 8}
ACCELERATE = str(pathlib.Path(sys.executable).parent / "accelerate")
ONE_UPDATE = [*TINY, "--epochs", "1", "--warmup_epochs", "0", "--total_batch_size", "1024", "--batch_size", "512"]
# Stops after the line that names the processes, and makes nothing.
STOPS_EARLY = ["--predict", "no_such_folder", "--finetune", "no_such_folder", "--output_dir", "no_such_folder"]


# --- what they are asked for is what a run says


def exported(launcher, words, folder):
    """The environments, by rank, of the processes that the launcher starts for these words. Started from what is imported."""
    folder.mkdir()
    child = multiprocessing.get_context("forkserver").Process(target=_launch, args=(launcher, words, str(folder)))
    child.start()
    child.join(60)
    texts = [(folder / str(rank)).read_text() for rank in range(len([*folder.iterdir()]))]
    return [dict(line.split("=", 1) for line in text.split("\0") if line) for text in texts]


def _launch(launcher, words, folder):
    """In a process of its own: what the launcher's command does, with a script that writes down its environment."""
    if launcher == "python":
        return pathlib.Path(folder, "0").write_text("\0".join(f"{name}={value}" for name, value in os.environ.items()))
    words = [*words, "--no_python", "bash", "-c", f'env -0 > {folder}/"${{RANK:-0}}"']
    if launcher == "accelerate":
        from accelerate.commands.launch import launch_command

        return launch_command(launch_command_parser().parse_args(words))
    from torch.distributed.run import main

    main(words)


def as_launched(environments, sharded, rank):
    """For `Job`: the process `rank` is one of these, but that its launcher has gone. sharded: FSDP2 works on CPUs too."""
    meeting = {name: os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT") if name in os.environ}
    os.environ.update(environments[rank] | meeting, TORCHELASTIC_USE_AGENT_STORE="False")
    if sharded:
        accelerate.accelerator.AcceleratorState = sharded_on_cpu.Sharded


def started(environments, *words, tmp_path, script="train_recognition", sharded=False, code=0):
    """What the script prints where its processes have these environments."""
    prepare = functools.partial(as_launched, environments, sharded)
    job = Job(script, words, tmp_path / "text", len(environments), prepare, threads=None)
    codes, text = job.wait(), (tmp_path / "text").read_text()
    assert set(codes) == {code}, text
    return text


def asked(processes, precision):
    """The line of a run with so many processes on this CPU."""
    threads = os.environ.get("OMP_NUM_THREADS", max(1, len(os.sched_getaffinity(0)) // processes))
    return f"processes: {processes}, each with {threads} CPU threads; precision {precision}\n"


AMP, SAID_NO = ["--use_amp", "true"], "bf16, as --use_amp asks (the launcher said no)"


@pytest.mark.parametrize(
    ("launcher", "words", "flags", "expected"),
    [
        ("python", "", [], (1, "no")),
        ("python", "", AMP, (1, "bf16")),
        ("accelerate", "", [], (1, "no")),
        ("accelerate", "", AMP, (1, SAID_NO)),
        ("accelerate", "--mixed_precision no", AMP, (1, SAID_NO)),
        ("accelerate", "--mixed_precision bf16", [], (1, "bf16")),
        ("accelerate", "--mixed_precision bf16", AMP, (1, "bf16")),
        ("accelerate", f"--config_file {CONFIGS}/cpu_1.yaml", AMP, (1, SAID_NO)),
        ("accelerate", f"--config_file {CONFIGS}/cpu_2.yaml --main_process_port 0", [], (2, "no")),
        ("accelerate", "--multi_gpu --num_processes 2 --main_process_port 0", AMP, (2, SAID_NO)),
        ("torchrun", "--standalone --nproc_per_node 1", AMP, (1, "bf16")),
        ("torchrun", "--standalone --nproc_per_node 2", [], (2, "no")),
        ("torchrun", "--standalone --nproc_per_node 2", AMP, (2, "bf16")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("script", ["train_recognition", "train_segmentation"])
def test_processes_and_precision_are_what_was_asked_for(launcher, words, flags, expected, script, tmp_path):
    environments = exported(launcher, words.split(), tmp_path / "environments")
    assert len(environments) == expected[0]
    text = started(environments, *flags, *STOPS_EARLY, tmp_path=tmp_path, script=script, code=1)
    assert asked(*expected) in text


def test_fp16_on_a_cpu_is_refused(tmp_path):
    """Accelerate would compute in float32, and say fp16."""
    environments = exported("accelerate", ["--mixed_precision", "fp16"], tmp_path / "environments")
    text = started(environments, *STOPS_EARLY, tmp_path=tmp_path, code=1)
    assert "error: the launcher asks for fp16, which is for GPUs: expected bf16 or no on a CPU" in text


def alone(rank):
    class Alone(accelerate.Accelerator):
        num_processes = 1

    accelerate.Accelerator = Alone


def test_processes_that_do_not_see_each_other_are_an_error(tmp_path):
    """WORLD_SIZE says two, Accelerate sees one."""
    job = Job("train_recognition", ONE_UPDATE, tmp_path / "text", 2, alone)
    assert job.wait() == [1, 1]
    assert "the launcher started 2 processes, but Accelerate sees 1" in (tmp_path / "text").read_text()


# --- the configs


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_accepts_every_key_and_each_has_a_comment(path):
    config = load_config_from_file(str(path))  # raises on a key that it does not know
    assert config.num_processes == PROCESSES[path.stem] and config.mixed_precision in ("no", "bf16")
    assert not config.enable_cpu_affinity, "it needs nvidia-ml-py, which requirements.txt has not"
    flags = {action.dest for action in launch_command_parser()._actions}
    raw = yaml.safe_load(path.read_text())
    for key in raw.get("fsdp_config", {}):
        assert key in flags, key
    entries = [line for line in path.read_text().splitlines() if re.match(r"\s*\w+:", line)]
    assert all("  #" in line for line in entries if not line.endswith("_config:"))
    assert f"| `{path.name}` | {PROCESSES[path.stem]} |" in (ROOT / "docs" / "GPUS.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", PROCESSES)
def test_each_config_starts_up_to_an_update(name, tmp_path):
    """With two processes where it has more; on CPUs, as they run where there is no GPU."""
    words = ["--config_file", str(CONFIGS / f"{name}.yaml")]
    if PROCESSES[name] > 1:
        words += ["--num_processes", "2", "--num_machines", "1", "--main_process_port", str(free_port())]
    environments = exported("accelerate", words, tmp_path / "environments")
    processes = min(2, PROCESSES[name])
    assert len(environments) == processes
    sharded = name.startswith("fsdp2")
    text = started(environments, *ONE_UPDATE, "--output_dir", tmp_path / "run", tmp_path=tmp_path, sharded=sharded)
    assert asked(processes, "no" if name.startswith("cpu") else "bf16") in text
    assert "updates: 1 epochs x 1, of 1024 images" in text and text.count("epoch 1/1:") == 1


@pytest.mark.parametrize(("name", "reshards"), [("fsdp2", True), ("fsdp2_zero2", False)])
def test_weights_are_sharded_between_forward_and_backward_or_not(name, reshards, monkeypatch, tmp_path):
    words = ["--config_file", str(CONFIGS / f"{name}.yaml"), "--num_processes", "2", "--main_process_port", str(free_port())]
    for variable, text in exported("accelerate", words, tmp_path / "environments")[0].items():
        if "FSDP" in variable:
            monkeypatch.setenv(variable, text)
    plugin = accelerate.FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is reshards


def launch(config, *words, output):
    return subprocess.Popen(
        [ACCELERATE, "launch", "--config_file", str(CONFIGS / config), *words, str(ROOT / "train_recognition.py"), *ONE_UPDATE,
         "--output_dir", str(output)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("config", "processes"), [("cpu_1.yaml", 1), ("cpu_2.yaml", 2)])
def test_cpu_configs_start_processes_that_see_each_other(config, processes, tmp_path):
    port = ["--main_process_port", str(free_port())] if processes > 1 else []
    job = launch(config, *port, output=tmp_path / "run")
    out = job.communicate(timeout=240)[0]
    assert job.returncode == 0, out
    assert asked(processes, "no") in out and f"x {processes} processes" in out
    assert out.count("epoch 1/1:") == 1  # one of them speaks


@pytest.mark.slow
def test_two_machines_on_the_loopback(tmp_path):
    words = ["--main_process_port", str(free_port()), "--num_processes", "2", "--mixed_precision", "no"]
    jobs = [launch("two_machines.yaml", "--machine_rank", str(rank), *words, output=tmp_path / "run") for rank in range(2)]
    outs = [job.communicate(timeout=240)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], outs
    assert asked(2, "no") in outs[0] and "512 x update_freq 1 x 2 processes" in outs[0]
    assert "processes:" not in outs[1]


# --- processes that differ


def evaluate_differently(rank):
    """The main process finds 10 and 15 per cent, the other 20 and 12: as processes do that look at all images on GPUs."""
    import train_recognition

    found = iter(([10.0, 15.0], [20.0, 12.0])[rank])
    evaluate = train_recognition.evaluate

    def differently(*words):
        scores, answers = evaluate(*words)
        return scores | {"acc1": next(found)}, answers

    train_recognition.evaluate = differently


@pytest.mark.slow
def test_the_main_process_decides_which_weights_are_the_best(tmp_path):
    """Otherwise one would call a collective that the other does not."""
    words = [*ONE_UPDATE, "--epochs", "2", "--dist_eval", "false", "--output_dir", tmp_path / "run"]
    job = Job("train_recognition", words, tmp_path / "text", 2, evaluate_differently)
    assert job.wait(60) == [0, 0], (tmp_path / "text").read_text()
    assert "best test_acc1 15.000" in (tmp_path / "text").read_text()
    assert [record["test_acc1"] for record in lines(tmp_path / "run" / "log.txt")] == [10, 15]


CORES = [(range(8), range(8, 16)), (range(8), range(8)), (range(8), range(4, 12))]  # of two processes


def look(folder, rank, port):
    """Writes the cores of this one of two processes for each pair of CORES, and its limits of time."""
    import torch

    from utils.cli.flags import Speed
    from utils.model.processes import cores_per_process, start_processes
    from utils.run.signals import Signals

    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    os.environ.update(where, RANK=str(rank), WORLD_SIZE="2")
    start_processes(None, None, None, Speed(), default_batch_size=8)
    cores = []
    for pair in CORES:
        os.sched_getaffinity = lambda _, pair=pair: set(pair[rank])
        cores.append(cores_per_process())
    groups = torch.distributed.group.WORLD, Signals(processes=2).group
    hours = [group._get_backend(torch.device("cpu")).options._timeout.total_seconds() / 3600 for group in groups]
    pathlib.Path(folder, str(rank)).write_text(json.dumps([cores, hours]))
    torch.distributed.barrier()  # the first process serves the other until both are done


def test_processes_share_the_cores_they_may_both_use_and_wait_for_each_other_for_hours(tmp_path):
    """With enable_cpu_affinity a process has the cores near its GPU: those only are shared, with the processes that are there.

    A download or the preparation of a data set by one process may take longer than torch's own limits of minutes.
    """
    context, port = multiprocessing.get_context("forkserver"), free_port()
    children = [context.Process(target=look, args=(str(tmp_path), rank, port)) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    found = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(2)]
    assert [cores for cores, _ in found] == [[8, 4, 6], [8, 4, 6]]
    assert [hours for _, hours in found] == [[12, 12], [12, 12]]


# --- two machines


def on_two_machines(folders, *words):
    """(exit codes, texts) of the two processes of a run of train_recognition.py, each in a folder of its own."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
    command = [sys.executable, ROOT / "train_recognition.py", *TINY, *words]
    children = [
        subprocess.Popen(
            list(map(str, command)), cwd=folder, env=os.environ | where | {"RANK": str(rank), "LOCAL_RANK": "0"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank, folder in enumerate(folders)
    ]  # fmt: skip
    texts = [child.communicate(timeout=240)[0] for child in children]
    return [child.returncode for child in children], texts


@pytest.mark.slow
def test_machines_without_a_shared_disk(tmp_path):
    machines = [tmp_path / "a", tmp_path / "b"]
    for machine in machines:
        for split in ("train", "val", "test"):
            make_folder(machine / "data" / split, per_class=4, seed=len(split))
    words = ("--data_path", "data", "--batch_size", 2, "--epochs", 1, "--output_dir", "out")
    codes, (text, _) = on_two_machines(machines, *words)
    assert codes == [0, 0], text
    assert "warning: --output_dir out is not one folder for all processes: such a run cannot go on" in text
    assert "test, by last/" in text  # as the second machine has no other weights
    (machines[0] / "out" / "finished.json").unlink()
    codes, (text, _) = on_two_machines(machines, *words)
    assert codes == [1, 1] and "--output_dir out is not one folder for all processes: to go on with a run, it must lie" in text

    next((machines[1] / "data" / "train" / "cat").iterdir()).unlink()  # a copy that is not complete
    codes, (text, _) = on_two_machines(machines, *words[:-1], "new")
    assert codes == [1, 1]
    images = ["8 training and 8 validation images", "7 training and 8 validation images"]
    assert f"the machines have other data: found {images[0]} on one, {images[1]} on another, or other names" in text


# --- Slurm

SRUN = """
import os, subprocess, sys, time
kill = sys.argv[1] == "--kill-on-bad-exit=1"
command = sys.argv[1 + kill :]
tasks = [
    subprocess.Popen(command, env=os.environ | {"SLURM_PROCID": str(n), "SLURM_LOCALID": str(n % 2)}) for n in range(4)
]
while not any(task.poll() for task in tasks) and None in [task.poll() for task in tasks]:
    time.sleep(0.01)
if kill and any(task.poll() for task in tasks):
    for signal in ("terminate", "kill"):
        [getattr(task, signal)() for task in tasks if task.poll() is None]
        time.sleep(1)
codes = [task.wait() for task in tasks]
sys.exit(128 - min(codes) if min(codes) < 0 else max(codes))  # a signal counts more than any code
"""


def run_slurm_script(tmp_path, python):
    """slurm.sbatch with stand-ins for Slurm's commands: two machines with two tasks each; `python`: what a task does.

    As Slurm does, srun sends SIGTERM to all tasks after the first failure, and SIGKILL after a while.
    """
    tools = tmp_path / "bin"
    tools.mkdir()
    scontrol = '[ "$1" = requeue ] && echo "requeued $2" || { echo node-a; echo node-b; }'
    for name, body in {"scontrol": scontrol, "srun": f"exec {sys.executable} -S -c '{SRUN}' \"$@\"", "python": python}.items():
        (tools / name).write_text(f"#!/bin/bash\n{body}\n")
        (tools / name).chmod(0o755)
    script = CONFIGS / "slurm.sbatch"
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    job = {"SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "12345"}
    return subprocess.run(
        ["bash", script, "--data_path", "/my data/x"], capture_output=True, text=True, cwd=ROOT, timeout=20,
        env={"PATH": f"{tools}:/usr/bin:/bin", **job},
    )  # fmt: skip


def test_slurm_script_starts_each_task_with_its_ranks(tmp_path):
    """Each task learns its ranks and where to meet, and arguments keep their spaces."""
    words = 'echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT $ACCELERATE_MIXED_PRECISION"'
    done = run_slurm_script(tmp_path, words + ' $(printf "[%s]" "$@" | tr " " _)')
    assert done.returncode == 0, done.stderr
    common = "4 node-a 22345 bf16 [train_recognition.py][--data_path][/my_data/x]"
    assert sorted(done.stdout.splitlines()) == [f"{rank} {rank % 2} {common}" for rank in range(4)]


@pytest.mark.parametrize(("code", "requeued"), [(75, True), (1, False), (137, False)])
def test_slurm_script_requeues_what_was_stopped_by_a_signal(tmp_path, code, requeued):
    """Also where one task leaves before the others."""
    done = run_slurm_script(tmp_path, f"sleep 0.$((5 + RANK)); exit {code}")
    assert done.returncode == code and ("requeued 12345" in done.stdout) == requeued


def test_slurm_script_ends_all_tasks_when_one_fails(tmp_path):
    done = run_slurm_script(tmp_path, "[ $RANK = 2 ] && exit 1; exec sleep 60")
    assert done.returncode in (137, 143) and "requeued" not in done.stdout
