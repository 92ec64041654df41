"""The configs of accelerate_configs/: the CPU ones are launched, the others are read as Accelerate reads them."""

import pathlib
import re
import subprocess
import sys

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from conftest import ROOT, TINY, free_port

CONFIGS = ROOT / "accelerate_configs"
ACCELERATE = str(pathlib.Path(sys.executable).parent / "accelerate")
JOB = [str(ROOT / "train_recognition.py"), *TINY, "--epochs", "1", "--warmup_epochs", "0", "--batch_size", "32"]


def launch(config, *words, output):
    return subprocess.Popen(
        [ACCELERATE, "launch", "--config_file", str(CONFIGS / config), *words, *JOB, "--output_dir", str(output)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.mark.parametrize(("config", "processes"), [("cpu_1.yaml", 1), ("cpu_2.yaml", 2)])
def test_cpu_configs_start_processes_that_see_each_other(config, processes, tmp_path):
    port = ["--main_process_port", str(free_port())] if processes > 1 else []
    job = launch(config, *port, output=tmp_path / "run")
    out = job.communicate(timeout=240)[0]
    assert job.returncode == 0, out
    assert f"processes: {processes}, each with" in out and f"32 x update_freq 1 x {processes} processes" in out
    assert out.count("epoch 1/1:") == 1  # one of them speaks


def test_two_machines_on_the_loopback(tmp_path):
    words = ["--main_process_port", str(free_port()), "--num_processes", "2", "--mixed_precision", "no"]
    jobs = [launch("two_machines.yaml", "--machine_rank", str(rank), *words, output=tmp_path / "run") for rank in range(2)]
    outs = [job.communicate(timeout=240)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], outs
    assert "processes: 2, each with" in outs[0] and "32 x update_freq 1 x 2 processes" in outs[0]
    assert "processes:" not in outs[1]


def test_processes_that_do_not_see_each_other_are_an_error(tmp_path):
    """WORLD_SIZE says two, Accelerate sees one."""
    code = "import accelerate, sys, runpy; sys.argv = sys.argv[1:]\n" + (
        "class Alone(accelerate.Accelerator):\n    num_processes = 1\n"
        "accelerate.Accelerator = Alone\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    )
    import os

    environment = os.environ | {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    environment |= {"MASTER_PORT": str(free_port()), "TORCHELASTIC_USE_AGENT_STORE": "False"}
    second = subprocess.Popen([sys.executable, "-c", code, *JOB], env=environment | {"RANK": "1", "LOCAL_RANK": "1"},
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, *JOB], env=environment, capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    second.wait(timeout=60)
    assert done.returncode == 1 and "the launcher started 2 processes, but Accelerate sees 1" in done.stderr, done.stderr


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_accepts_every_key_and_each_has_a_comment(path):
    config = load_config_from_file(str(path))  # raises on a key that it does not know
    assert config.num_processes >= 1 and config.mixed_precision in ("no", "bf16")
    flags = {action.dest for action in launch_command_parser()._actions}
    raw = yaml.safe_load(path.read_text())
    for key in raw.get("fsdp_config", {}):
        assert key in flags, key
    entries = [line for line in path.read_text().splitlines() if re.match(r"\s*\w+:", line)]
    assert all("  #" in line for line in entries if not line.endswith("_config:"))
    expected = {"gpu_1": 1, "gpu_8": 8, "two_machines": 16, "fsdp2": 8, "cpu_1": 1, "cpu_2": 2}
    assert config.num_processes == expected[path.stem]


def run_slurm_script(tmp_path, python):
    """slurm.sbatch with stand-ins for Slurm's commands: two machines with two tasks each; `python`: what a task does."""
    tools = tmp_path / "bin"
    tools.mkdir()
    stand_ins = {
        "scontrol": '[ "$1" = requeue ] && echo "requeued $2" || { echo node-a; echo node-b; }',
        "srun": """
            code=0
            for SLURM_PROCID in 0 1 2 3; do
                export SLURM_PROCID SLURM_LOCALID=$((SLURM_PROCID % 2)); "$@"; last=$?; [ $last -gt $code ] && code=$last
            done; exit $code""",
        "python": python,
    }
    for name, body in stand_ins.items():
        (tools / name).write_text(f"#!/bin/bash\n{body}\n")
        (tools / name).chmod(0o755)
    script = CONFIGS / "slurm.sbatch"
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    job = {"SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "12345"}
    return subprocess.run(
        ["bash", script, "--data_path", "/my data/x"], capture_output=True, text=True, cwd=ROOT,
        env={"PATH": f"{tools}:/usr/bin:/bin", **job},
    )  # fmt: skip


def test_slurm_script_starts_each_task_with_its_ranks(tmp_path):
    """Each task learns its ranks and where to meet, and arguments keep their spaces."""
    words = 'echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT $ACCELERATE_MIXED_PRECISION"'
    done = run_slurm_script(tmp_path, words + ' $(printf "[%s]" "$@" | tr " " _)')
    assert done.returncode == 0, done.stderr
    common = "4 node-a 22345 bf16 [train_recognition.py][--data_path][/my_data/x]"
    assert done.stdout.splitlines() == [f"{rank} {rank % 2} {common}" for rank in range(4)]


@pytest.mark.parametrize(("code", "requeued"), [(75, True), (1, False), (137, False)])
def test_slurm_script_requeues_what_was_stopped_by_a_signal(tmp_path, code, requeued):
    done = run_slurm_script(tmp_path, f"exit {code}")
    assert done.returncode == code and ("requeued 12345" in done.stdout) == requeued
