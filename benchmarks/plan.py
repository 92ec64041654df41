"""The plan of a run on small data against the published defaults, a grid of settings, and other programs.

    python benchmarks/plan.py DATA WEIGHTS                                        # the plan and --plan published, each set
    python benchmarks/plan.py DATA WEIGHTS --sets letters faces --seeds 0 1 2
    python benchmarks/plan.py DATA WEIGHTS --others fastai timm=TRAIN.PY          # other programs, see others.py
    python benchmarks/plan.py DATA WEIGHTS --grid --sets cracks                   # 24 settings of one set
    python benchmarks/plan.py DATA WEIGHTS --flags= --flags="--sampling sqrt"     # the plan alone, and with flags

DATA is what small_data.py built, WEIGHTS a folder with config.json and model.safetensors of a timm model. All see each image
as often, at the same size, from the same weights, so that what they cost is alike on any machine, busy or not; the grid has
half and double the epochs too. The score is the best top-1 accuracy (mean IoU of sets named seg_…) over the epochs, as each
program reports it; ours comes with the best balanced accuracy, and with the best score of the averaged weights where
--model_ema is among its flags. Each run is appended to OUT as a line of JSON, and is not made again.
"""

import argparse
import functools
import itertools
import json
import pathlib
import sys
import tempfile

from others import OTHERS, architecture, run

ROOT = pathlib.Path(__file__).resolve().parent.parent
RATES, TIMES = (1e-4, 3e-4, 1e-3, 3e-3), (0.5, 1, 2)
AUGMENTATIONS = ("--aa none --reprob 0", "--aa rand-m9-mstd0.5-inc1 --reprob 0.25")


def ours(data, weights, size, epochs, seed, folder, *words):
    """Best scores in per cent of a run of train_recognition.py or, of sets named seg_…, train_segmentation.py."""
    seg = data.name.startswith("seg_")
    script, name = ("train_segmentation.py", "--backbone") if seg else ("train_recognition.py", "--model")
    words = [name, architecture(weights), "--finetune", weights, "--data_path", data, "--output_dir", folder, "--seed", seed,
             "--report_to", "none", "--save_ckpt", "false", *(() if seg else ("--input_size", size)), "--epochs", epochs,
             *words]  # fmt: skip
    run(sys.executable, ROOT / script, *words)
    records = [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
    score = "test_miou" if seg else "test_acc1"
    keys = {"score": score, "balanced": "test_balanced_acc", "ema": f"{score}_ema"}
    return {name: max(record[key] for record in records if key in record) for name, key in keys.items() if key in records[-1]}


def contenders(args):
    """{name: function of (data, weights, size, epochs, seed, folder)}"""

    def with_flags(flags):
        return lambda *words: ours(*words, *flags.split())

    if args.grid:
        settings = itertools.product(RATES, [max(1, round(args.epochs * times)) for times in TIMES], AUGMENTATIONS)
        args.flags = ["", *(f"--lr {rate:g} --epochs {epochs} {augmentation}" for rate, epochs, augmentation in settings)]
    published = f"--plan published --warmup_epochs {args.epochs / 10}"  # whose 20 are more than such a run has
    found = {flags or "plan": with_flags(flags) for flags in args.flags or ("", published)}
    for other in args.others:
        name, _, script = other.partition("=")
        found[name] = functools.partial(OTHERS[name], script=script)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("weights", type=pathlib.Path)
    parser.add_argument("--sets", nargs="+", help="folders of DATA; none: all")
    parser.add_argument("--others", nargs="+", default=(), metavar="NAME[=SCRIPT]", help="of others.py")
    parser.add_argument(
        "--flags", action="append", default=[], help="of ours instead of none and --plan published; again for others"
    )
    parser.add_argument("--grid", action="store_true")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--size", type=int, default=112, help="pixels of recognition's images")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("plan.jsonl"))
    args = parser.parse_args()
    known = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    for name, seed, (contender, scores) in itertools.product(
        args.sets or sorted(path.name for path in args.data.iterdir()), args.seeds, contenders(args).items()
    ):
        row = {"set": name, "seed": seed, "contender": contender, "epochs": args.epochs}
        if any(row.items() <= other.items() for other in known):
            continue
        if name.startswith("seg_") and contender in OTHERS:
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = scores(
                (args.data / name).resolve(), args.weights.resolve(), args.size, args.epochs, seed, pathlib.Path(folder, "run")
            )
        row |= {key: round(value, 2) for key, value in found.items()}
        with open(args.out, "a") as file:
            file.write(json.dumps(row) + "\n")
        known.append(row)
        told = "  ".join(f"{key} {value:6.2f}" for key, value in found.items())
        print(f"{name:16} seed {seed}  {contender:48} {told}", flush=True)


if __name__ == "__main__":
    main()
