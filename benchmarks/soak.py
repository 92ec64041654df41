"""A long run on two processes, killed as a whole every minute on average, against the same run left alone.

    python benchmarks/soak.py --epochs 600

Prints how often it was killed and after how long it ended, and fails unless both logged the same loss for every update, to
the bit, and ended with the same weights.
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
JOB = (
    "--model convnextv2_atto --model_kwargs depths=(1,1,2,1) dims=(8,8,16,16) --input_size 32 --batch_size 32 --num_workers 1 "
    "--aa rand-m5 --reprob 0.2 --mixup 0.8 --cutmix 1.0 --drop_path 0.1 --update_freq 2 --model_ema true --clip_grad 1 "
    "--save_ckpt_updates 50 --log_every 10 --max_bad_samples 0"
).split()


def start(folder, epochs):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "train_recognition.py"]
    words = [*command, *JOB, "--epochs", str(epochs), "--output_dir", str(folder)]
    with open(f"{folder}.txt", "a") as text:
        return subprocess.Popen(words, cwd=ROOT, stdout=text, stderr=text)


def family(pid):
    """`pid` and all processes below it."""
    found = [pid]
    with contextlib.suppress(OSError):  # one may end while we look
        for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
            for child in task.read_text().split():
                found += family(int(child))
    return found


def soak(folder, epochs, every, seed=0):
    """Run to the end through kills, one every `every` seconds on average; returns their number."""
    rng, kills = random.Random(seed), 0
    while True:
        job = start(folder, epochs)
        try:
            code = job.wait(timeout=rng.expovariate(1 / every))
        except subprocess.TimeoutExpired:
            for pid in family(job.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            job.wait()
            kills += 1
            if (folder / "finished.json").exists():  # nothing was left to do but to end
                return kills
            continue
        if code != 0:
            raise SystemExit(f"the run ended with {code}; see {folder}.txt")
        return kills


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=600)
    parser.add_argument("--every", type=float, default=60, help="seconds between kills, on average")
    parser.add_argument("--folder", help="where both runs go; none: a temporary one")
    args = parser.parse_args()
    base = pathlib.Path(args.folder or tempfile.mkdtemp())
    base.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    alone = start(base / "alone", args.epochs)  # at the same time, on the same machine
    kills = soak(base / "killed", args.epochs, args.every)
    print(f"killed {kills} times in {(time.perf_counter() - begin) / 60:.1f} minutes", flush=True)
    if alone.wait() != 0:
        raise SystemExit(f"the run left alone failed; see {base / 'alone'}.txt")
    for name in ("updates.txt", "log.txt", "last/model.safetensors", "best/model.safetensors"):
        if (base / "alone" / name).read_bytes() != (base / "killed" / name).read_bytes():
            raise SystemExit(f"{name} differs; see {base}")
    updates = [json.loads(line) for line in (base / "killed" / "updates.txt").read_text().splitlines()]
    if [record["update"] for record in updates] != list(range(len(updates))):
        raise SystemExit("an update was logged twice or not at all")
    print(f"equal: {len(updates)} losses, log.txt and weights, to the bit")


if __name__ == "__main__":
    main()
