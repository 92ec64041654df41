"""Other programs with their own defaults, as their documentation has a beginner start, for plan.py.

Each is a function of (folder with {train,val}/CLASS, folder with config.json and model.safetensors of a timm model, pixels,
epochs, seed, folder to write to, script) that returns {"score": best top-1 accuracy over the epochs in per cent}, and its best
balanced accuracy as "balanced" where the program can be asked for it.
"""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import torch


def architecture(weights):
    return json.loads((weights / "config.json").read_text())["architecture"]


def of_timm(data, weights, size, epochs, seed, folder, script):
    """timm's train.py with its own defaults."""
    classes = len(list((data / "train").iterdir()))
    run(sys.executable, script, "--data-dir", data, "--train-split", "train", "--val-split", "val", "--seed", seed, "--model",
        architecture(weights), "--pretrained", "--pretrained-path", weights / "model.safetensors", "--num-classes", classes,
        "--input-size", 3, size, size, "--epochs", epochs, "--output", folder, "--experiment", "run", "-j", 1,
        "--device", "cuda" if torch.cuda.is_available() else "cpu")  # fmt: skip
    with open(folder / "run" / "summary.csv") as file:
        return {"score": max(float(row["eval_top1"]) for row in csv.DictReader(file))}


def of_fastai(data, weights, size, epochs, seed, folder, script):
    """fastai's fine_tune with its own defaults, as its first lesson does it: the first epoch with a frozen body."""
    from fastai.vision.all import (
        BalancedAccuracy,
        ImageDataLoaders,
        Normalize,
        RandomResizedCrop,
        accuracy,
        aug_transforms,
        set_seed,
        vision_learner,
    )
    from safetensors.torch import load_file

    set_seed(seed)
    config = json.loads((weights / "config.json").read_text())["pretrained_cfg"]
    normalize = Normalize.from_stats(config["mean"], config["std"])
    dls = ImageDataLoaders.from_folder(
        data, train="train", valid="val", bs=16, item_tfms=RandomResizedCrop(size, min_scale=0.5),
        batch_tfms=[*aug_transforms(), normalize],
    )  # fmt: skip
    learner = vision_learner(dls, architecture(weights), metrics=[accuracy, BalancedAccuracy()], pretrained=False, path=folder)
    body = learner.model[0].model
    tensors = load_file(weights / "model.safetensors")
    missing = body.load_state_dict({name: tensor for name, tensor in tensors.items() if name in body.state_dict()}).missing_keys
    assert not missing, missing
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(epochs - 1)
    columns = list(zip(*learner.recorder.values, strict=True))
    return {"score": 100 * max(columns[-2]), "balanced": 100 * max(columns[-1])}


def run(*words):
    words = list(map(str, words))
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\n{done.stdout[-500:]}{done.stderr[-1500:]}")


def of_transformers(data, weights, size, epochs, seed, folder, script):
    """The Trainer's defaults with the transforms of the example run_image_classification.py; weights by timm's wrapper."""
    from sklearn.metrics import balanced_accuracy_score
    from torchvision import transforms
    from torchvision.datasets import ImageFolder
    from transformers import AutoConfig, AutoModelForImageClassification, Trainer, TrainingArguments

    config = json.loads((weights / "config.json").read_text())["pretrained_cfg"]
    last = [transforms.ToTensor(), transforms.Normalize(config["mean"], config["std"])]
    views = {
        "train": [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()],
        "val": [transforms.Resize(size), transforms.CenterCrop(size)],
    }
    sets = {split: ImageFolder(data / split, transforms.Compose([*view, *last])) for split, view in views.items()}
    wrapped = AutoConfig.from_pretrained(weights, num_labels=len(sets["train"].classes))
    wrapped.model_args = {}  # in which timm says num_classes, which the wrapper says too
    model = AutoModelForImageClassification.from_pretrained(weights, config=wrapped, ignore_mismatched_sizes=True)
    trainer = Trainer(
        model, TrainingArguments(str(folder), num_train_epochs=epochs, seed=seed, eval_strategy="epoch", save_strategy="no",
                                 report_to="none", use_cpu=not torch.cuda.is_available()),
        train_dataset=sets["train"], eval_dataset=sets["val"],
        data_collator=lambda rows: {"pixel_values": torch.stack([row[0] for row in rows]),
                                    "labels": torch.tensor([row[1] for row in rows])},
        compute_metrics=lambda said: {"score": float(np.mean(said.predictions.argmax(1) == said.label_ids)),
                                      "balanced": balanced_accuracy_score(said.label_ids, said.predictions.argmax(1))},
    )  # fmt: skip
    trainer.train()
    records = [row for row in trainer.state.log_history if "eval_score" in row]
    return {name: 100 * max(row[f"eval_{name}"] for row in records) for name in ("score", "balanced")}


def of_ultralytics(data, weights, size, epochs, seed, folder, script):
    """yolo11n-cls from scratch: its weights are not those of timm."""
    from ultralytics import YOLO

    model = YOLO("yolo11n-cls.yaml")
    model.train(data=str(data), imgsz=size, epochs=epochs, seed=seed, project=str(folder), name="run", verbose=False, workers=1)
    with open(folder / "run" / "results.csv") as file:
        return {"score": 100 * max(float(row["metrics/accuracy_top1"]) for row in csv.DictReader(file))}


OTHERS = {"timm": of_timm, "fastai": of_fastai, "transformers": of_transformers, "ultralytics": of_ultralytics}
