"""The pictures and the report of a run, drawn while it trains, for at most a hundredth of its time.

The main process draws. What cannot be drawn is warned of once, and the training goes on.
"""

import functools
import pathlib
import time
from typing import NamedTuple

import numpy as np
import torch
from PIL import ImageOps

from utils.files import write_json
from utils.pictures.confusion import confusion
from utils.pictures.curves import curves
from utils.pictures.images import SHOWN_PREDICTIONS, SHOWN_SAMPLES, mistakes, predictions, samples
from utils.report import report
from utils.report.run_files import read_records

BUDGET = 0.01  # fraction of the training time that may go into drawing
FIRST_COST = 3.0  # seconds that drawing is expected to take before it was measured
SHOWN_MISTAKES = 24


class Answers(NamedTuple):
    """What a model answered in an evaluation, image by image; each column (N,) on the CPU."""

    index: torch.Tensor  # of the image in its source
    label: torch.Tensor
    predicted: torch.Tensor  # the likeliest class
    probability: torch.Tensor  # of that class, 0..1


class Gallery:
    """Holds what each picture is to be drawn from, and draws: in `refresh` when time allows, in `finish` at the end.

    folder: of the run; None, as on processes other than the main one: nothing is drawn. metric: the score in curves.png, by
    its name in log.txt, such as test_acc1. lr_scales: smallest and largest multiple of the learning rate among the layers.
    warn: takes a line about what could not be drawn.
    """

    def __init__(self, folder, metric, lr_scales=(1.0, 1.0), warn=print):
        self.folder, self.warn = pathlib.Path(folder) if folder else None, warn
        self.start, self.spent, self.cost = time.perf_counter(), 0.0, FIRST_COST  # seconds; cost: of the last `finish`
        self.batches, self.broken = 0, set()  # batches shown to `first_batch`, up to 2; names that were warned of
        self.waiting = {}  # name of a picture -> function of its path
        self.curves = functools.partial(_draw_curves, folder=self.folder, metric=metric, lr_scales=lr_scales)

    def put(self, name, draw, **options):
        """The picture `name`.png is made by draw(path=…, **options) when pictures are drawn next."""
        if self.folder:
            self.waiting[name] = functools.partial(draw, **options)

    def first_batch(self, images, targets, **options):
        """Take each training batch, (B, 3, H, W) and its targets, and make samples.png of the first one.

        options: of `pictures.samples`. It is drawn when the second batch comes, so that the first update does not wait.
        """
        if self.folder is None or self.batches == 2:
            return
        self.batches += 1
        if self.batches == 1:
            images, targets = (tensor[:SHOWN_SAMPLES].detach().cpu() for tensor in (images, targets))
            self.put("samples", samples, images=images.float(), targets=targets, **options)
        elif "samples" in self.waiting:
            self._draw({"samples": self.waiting.pop("samples")})

    def put_answers(self, answers, source, input_size):
        """Write classes.json of an evaluation, and put confusion.png and mistakes.png of it.

        answers: Answers, or what has its columns. source: of the images, with read(index) -> PIL image, and `classes`.
        input_size: side of the square in pixels to which a mistake is resized and cropped.
        """
        if self.folder is None:
            return
        columns = (answers.index, answers.label, answers.predicted, answers.probability)
        index, label, predicted, probability = map(np.asarray, columns)
        scores = class_scores(label, predicted, source.classes)
        self._try("classes.json", lambda: write_json(self.folder / "classes.json", scores))
        self.put("confusion", confusion, labels=label, predicted=predicted, classes=source.classes)
        wrong = np.flatnonzero(label != predicted)
        wrong = wrong[np.argsort(-probability[wrong], kind="stable")][:SHOWN_MISTAKES]
        worst = [(int(label[i]), int(predicted[i]), float(probability[i])) for i in wrong]
        self.put("mistakes", _draw_mistakes, indices=index[wrong], answers=worst, source=source, size=input_size)

    def put_examples(self, examples, *, classes, palette, mean, std, size):
        """Put predictions.png: samples of an evaluation with what the model makes of them, the first six.

        examples: list of (image (3, H, W) float, normalised by mean and std, mask (H, W) int64, predicted mask (H, W) int64).
        palette: (C, 3) uint8. size: side of the square in pixels to which they are resized.
        """
        if self.folder and examples:
            images, *masks = zip(*examples[:SHOWN_PREDICTIONS], strict=True)
            images = torch.cat([_resized(image, size, mode="bilinear", antialias=True) for image in images])
            truth, predicted = (torch.cat([_resized(mask[None], size)[0] for mask in column]) for column in masks)
            shown = {"images": images, "truth": truth, "predicted": predicted, "classes": classes, "palette": palette}
            self.put("predictions", predictions, **shown, mean=mean, std=std)

    def refresh(self):
        """Draw what is new, and the report, if the budget allows it; returns whether it did."""
        if not self.folder or self.spent + self.cost > BUDGET * (time.perf_counter() - self.start):
            return False
        self.finish()
        return True

    def finish(self):
        """Draw what is new, and the report."""
        if self.folder:
            before = self.spent
            self._draw({**self.waiting, "curves": self.curves})
            self.waiting = {}
            self.write_report()
            self.cost = self.spent - before

    def write_report(self):
        """Write report.html of what there is by now."""
        if self.folder:
            self._draw({"report": lambda path: report.write_report(self.folder)})

    def files(self):
        """Paths of the pictures there are."""
        return sorted(self.folder.glob("*.png")) if self.folder else []

    def _draw(self, pictures):
        start = time.perf_counter()
        for name, draw in pictures.items():
            self._try(name, functools.partial(draw, path=self.folder / f"{name}.png"))
        self.spent += time.perf_counter() - start

    def _try(self, name, make):
        try:
            make()
        except Exception as error:  # a font, a full disk: no reason to lose a run
            if name not in self.broken:
                self.warn(f"{name} could not be made ({type(error).__name__}: {error})")
            self.broken.add(name)


def class_scores(label, predicted, classes):
    """[{"name", "accuracy" in per cent or None without images, "count" of images, "predicted": how many are taken for it}] of
    each class; label, predicted: (N,)."""
    count, said = (np.bincount(column, minlength=len(classes)) for column in (label, predicted))
    right = np.bincount(label[label == predicted], minlength=len(classes))
    return [
        {
            "name": name,
            "accuracy": 100 * right[i] / count[i] if count[i] else None,
            "count": int(count[i]),
            "predicted": int(said[i]),
        }
        for i, name in enumerate(classes)
    ]


def _draw_curves(path, folder, metric, lr_scales):
    epochs, updates = read_records(folder / "log.txt", "epoch"), read_records(folder / "updates.txt", "update", "epoch")
    curves(path, epochs, updates, metric, lr_scales)


def _draw_mistakes(path, indices, answers, source, size):
    images = [np.asarray(ImageOps.fit(source.read(int(index)), (size, size))) for index in indices]
    mistakes(path, images, answers, source.classes)


def _resized(image, size, **options):
    """(C, H, W) on any device -> (1, C, size, size) on the CPU; without options by the nearest pixel, which keeps ids."""
    resized = torch.nn.functional.interpolate(image[None].cpu().float(), (size, size), **options)
    return resized.to(image.dtype)
