"""What the tests of reports share: the files that a run leaves, and the words of a page."""

import html
import json
import re

from utils.metrics.per_class import Pairs
from utils.pictures.confusion import confusion
from utils.pictures.curves import curves

EVIL = "<script>document.title='evil'</script><img src=http://127.0.0.1:1/a.png onerror=alert(1)>\"'&\x00\u202e"


def make_run(folder, *, name="cat", finished=True, segments=False, epochs=3, drawn=True, evaluated=False, **changed):
    """The files that a run leaves, with pictures; `name`: of the first class, of the data and of what else is text."""
    folder.mkdir(parents=True)
    args = {"model": "resnet18", "data_path": f"data of {name}", "epochs": 3, "batch_size": 8, "update_freq": 2, "lr": 0.1}
    args.update({"backbone": "resnet10t"} if segments else {}, **changed)
    record = {
        "settings": {"total_batch": 32, "train_images": 1438, "classes": 2}, "args": args, "commit": "abc123+",
        "command": ["train_recognition.py", "--data_path", f"data of {name}", "--output_dir", str(folder)],
        "versions": {"torch": "2.15.0"},
    }  # fmt: skip
    (folder / "args.json").write_text(json.dumps(record))
    metric = "test_miou" if segments else "test_acc1"
    scores = [50.0, 91.257, 80.0][:epochs]
    lines = [
        {"epoch": i, "train_loss": 2.0 - i / 2, metric: score, f"{metric}_ema": score / 2, "n_parameters": 11_000_000}
        | ({"test_iou": [score, None]} if segments else {"test_acc5": 99.0})
        for i, score in enumerate(scores)
    ]
    (folder / "log.txt").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finished:
        (folder / "finished.json").write_text(json.dumps({metric: max(scores)}))
    if evaluated:
        found = {metric.removeprefix("test_"): max(scores), "loss": 0.25, "images": 1020}
        facts = {"weights": "best", "epoch": 2, "metric": metric.removeprefix("test_"), "scores": found}
        (folder / "evaluation.json").write_text(json.dumps(facts | {"intervals": {facts["metric"]: [89.4, 92.8]}}))
    (folder / "best").mkdir()
    (folder / "best" / "model.safetensors").write_bytes(b"")
    (folder / "best" / "config.json").write_text(json.dumps({"classes": [name, "dog"]}))
    if not segments:
        rows = [
            {"name": name, "recall": 9.5, "precision": 99.0, "count": 1000, "taken_for": "dog", "taken_for_share": 90.5},
            {"name": "dog", "recall": 100.0, "precision": 2.0, "count": 20},
        ]
        (folder / "classes.json").write_text(json.dumps(rows))
    (folder / "timing.json").write_text(json.dumps({"forward+backward": 0.1, "data": 0.3}))
    (folder / "warnings.txt").write_text(f"broken image, replaced: {name}\n")
    if drawn:
        confusion(folder / "confusion.png", Pairs.of_matrix([[9, 1], [0, 5]]), [name, "dog"])
        updates = [{"update": i, "epoch": i // 20, "loss": 1.0, "lr": 0.1} for i in range(60)]
        curves(folder / "curves.png", lines, updates, metric)
    return folder


def text_of(path):
    """The words of a page as a reader sees them."""
    page = re.sub(r"<style>.*?</style>|<script>.*?</script>", "", path.read_text(), flags=re.S)
    return html.unescape(re.sub(r"<[^>]*>", " ", page))
