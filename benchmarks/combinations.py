"""Images/s, memory and loss after 50 updates for each way to run, with EMA, accumulation, evaluation and a resume.

    python benchmarks/combinations.py                                        # convnextv2_atto at 64 pixels on a CPU
    python benchmarks/combinations.py --model convnext_tiny --size 224 --launch "accelerate launch --config_file \\
        accelerate_configs/gpu_1.yaml"

Trains train_recognition.py on the digits for three epochs with each combination of flags. Images/s are those of the last epoch,
after compilation, and memory is the peak that the run reports. Then the run is resumed from a state within its last epoch:
"equal" says that it ended with the same losses, to the bit.
"""

import argparse
import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
DIGITS, EPOCHS, UPDATES = 1438, 3, 50
FLAGS = {
    "plain": "",
    "channels_last": "--channels_last",
    "gradient checkpointing": "--grad_checkpointing",
    "compile": "--torchcompile",
    "bf16": "--use_amp",
    "bf16, channels_last": "--use_amp --channels_last",
    "bf16, channels_last, compile": "--use_amp --channels_last --torchcompile",
    "bf16, channels_last, compile, checkpointing": "--use_amp --channels_last --torchcompile --grad_checkpointing",
}


def train(args, flags, folder):
    """Run to the end; its text."""
    command = [
        *shlex.split(args.launch), "train_recognition.py", *flags.split(), "--model", args.model, "--input_size", args.size,
        "--batch_size", args.batch, "--update_freq", 2, "--epochs", EPOCHS, "--warmup_epochs", 1, "--lr", args.lr,
        "--model_ema", "--model_ema_decay", 0.95, "--drop_path", 0.1, "--mixup", 0.5, "--report_to", "none",
        "--save_ckpt_updates", 5, "--save_ckpt_num", 3, "--output_dir", folder,
    ]  # fmt: skip
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{shlex.join(map(str, command))} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "updates.txt").read_text().splitlines()]


def measure(args, flags, folder):
    """(images/s, memory as the run tells it, loss of update 50, top-1 of the weights and the average, "equal" or how not)"""
    text = train(args, flags, folder)
    first, log = losses(folder), [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
    seconds = sum(json.loads((folder / "timing.json").read_text()).values())
    memory = re.findall(r"peak ([\d.]+ GiB)", text)[-1]
    (folder / "finished.json").unlink()
    states = sorted((folder / "checkpoints").iterdir())
    for path in states[1:]:
        shutil.rmtree(path)
    train(args, flags, folder)
    again = losses(folder)
    same = "equal" if first == again else f"differs by {max(abs(a - b) for a, b in zip(first, again, strict=True)):.1e}"
    images = 2 * args.batch * int(re.findall(r"processes: (\d+)", text)[0])
    tops = f"{log[-1]['test_acc1']:.1f} / {log[-1]['test_acc1_ema']:.1f}"
    return f"{images / seconds:.0f}", memory, f"{first[min(UPDATES, len(first)) - 1]:.4f}", tops, same


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launch", default=f"{sys.executable}", help="what comes before train_recognition.py")
    parser.add_argument("--model", default="convnextv2_atto")
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--batch", type=int, default=32, help="images per process and step; an update has two steps")
    parser.add_argument("--lr", default="2e-3")
    parser.add_argument("--only", nargs="+", choices=FLAGS, default=list(FLAGS), metavar="NAME", help=", ".join(FLAGS))
    args = parser.parse_args()
    if UPDATES * 2 * args.batch > DIGITS * EPOCHS:
        parser.error(
            f"--batch {args.batch}: less than {UPDATES} updates in {EPOCHS} epochs; expected {DIGITS * EPOCHS // 100} or less"
        )
    print("| | images/s | peak memory | loss of update 50 | top-1, weights / average | resumed |\n|---|---|---|---|---|---|")
    for name in args.only:
        with tempfile.TemporaryDirectory() as folder:
            row = measure(args, FLAGS[name], pathlib.Path(folder) / "run")
        print(f"| {name} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
