"""The pictures and the report of a run, drawn while it goes, for at most a hundredth of its time.

The main process draws; what cannot be drawn is warned of, once, and training goes on.
"""

import functools
import json
import time

import numpy as np
import torch

from utils.augment.timm import eval_transform
from utils.report import pictures, report
from utils.run import log as run_log

SHARE = 0.01  # of the training time that may go into drawing


class Gallery:
    """Keeps how each picture is drawn, and draws them when time allows: `refresh` after an epoch, `finish` at the end.

    log: RunLog of the run, of whose folder nothing is drawn where there is none (other processes).
    """

    def __init__(self, log, metric, lr_scales=(1.0, 1.0)):
        self.log, self.folder = log, log.folder
        self.start, self.spent, self.expected, self.broken = time.perf_counter(), 0.0, 0.0, set()
        self.waiting = {}  # name -> function of a path
        self.curves = functools.partial(_curves, folder=self.folder, metric=metric, lr_scales=lr_scales)

    def put(self, name, draw, **options):
        """`draw(path=…, **options)` makes the picture `name` when it is next drawn."""
        if self.folder:
            self.waiting[name] = functools.partial(draw, **options)

    def first_batch(self, images, targets, **options):
        """samples.png of the first batch of an epoch; in the first epoch it is drawn soon, for whoever has just started a run.

        Returns what is to be called with the next batch: drawing before it does not hold up the first update. Or None.
        """
        if self.folder is None:
            return None
        images, targets = images[:32].detach().cpu().float(), targets[:32].detach().cpu()
        self.put("samples", pictures.samples, images=images, targets=targets, **options)
        return None if self.spent else lambda *_: self._draw({"samples": self.waiting.pop("samples")})

    def refresh(self):
        """Draw what is new, and the report, unless that would cost more than its share of the time so far; whether it did."""
        if not self.folder or self.spent + (self.expected or 3.0) > SHARE * (time.perf_counter() - self.start):
            return False
        self.finish()
        return True

    def finish(self):
        """Draw what is new, and the report."""
        if self.folder:
            before = self.spent
            self._draw({**self.waiting, "curves": self.curves})
            self.waiting = {}
            self._draw({"report": lambda path: report.write_report(self.folder)})
            self.expected = self.spent - before

    def files(self):
        """The pictures there are."""
        return sorted(self.folder.glob("*.png")) if self.folder else []

    def _draw(self, jobs):
        start = time.perf_counter()
        for name, draw in jobs.items():
            try:
                draw(path=self.folder / f"{name}.png")
            except Exception as error:  # a font, a full disk: no reason to lose a run
                if name not in self.broken:
                    self.log.warn(f"{name} could not be drawn ({type(error).__name__}: {error})")
                self.broken.add(name)
        self.spent += time.perf_counter() - start


def _curves(path, folder, metric, lr_scales):
    epochs, updates = (_records(folder / name) for name in ("log.txt", "updates.txt"))
    pictures.curves(path, epochs, updates, metric, lr_scales)


def _records(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def lr_range(groups):
    """(smallest, largest) multiplier of the learning rate among the rows of `group_table`."""
    scales = [row["lr_scale"] for row in groups]
    return min(scales), max(scales)


# --- recognition ----------------------------------------------------------------------------------------------------


def put_recognition(gallery, answers, source, classes, input_size, mean, std):
    """confusion.png, mistakes.png and classes.json of an evaluation.

    answers: (N, 4) float: index of the image, label, predicted class, its probability; source: of the images.
    """
    if gallery.folder is None:
        return
    answers = answers.double().numpy()
    label, said = answers[:, 1].astype(np.int64), answers[:, 2].astype(np.int64)
    count = np.bincount(label, minlength=len(classes))
    right = np.bincount(label[label == said], minlength=len(classes))
    rows = [
        {"name": name, "accuracy": 100 * right[i] / count[i] if count[i] else None, "count": int(count[i])}
        for i, name in enumerate(classes)
    ]
    run_log.write_json(gallery.folder / "classes.json", rows)
    pairs = torch.from_numpy(np.stack([label, said]))
    shape = (len(classes), len(classes))
    matrix = torch.sparse_coo_tensor(pairs, torch.ones(len(label), dtype=torch.int64), shape, check_invariants=True)
    gallery.put("confusion", pictures.confusion, matrix=matrix.coalesce(), classes=classes)
    wrong = answers[label != said]
    wrong = wrong[np.argsort(-wrong[:, 3], kind="stable")][:24]
    gallery.put("mistakes", _mistakes, wrong=wrong, source=source, classes=classes, size=input_size, mean=mean, std=std)


def _mistakes(path, wrong, source, classes, size, mean, std):
    transform = eval_transform(size, mean=mean, std=std)
    images = [transform(source.read(int(row[0]))) for row in wrong]
    images = torch.stack(images) if images else torch.empty(0, 3, size, size)
    rows = [(int(label), int(said), float(sure)) for _, label, said, sure in wrong]
    pictures.mistakes(path, images, rows, classes, mean, std)


# --- segmentation ---------------------------------------------------------------------------------------------------


def put_segmentation(gallery, data, scores_of, classes, palette, mean, std, size, device):
    """predictions.png: six samples of `data` with what the model says of them; scores_of: images -> (1, C, H, W)."""
    if gallery.folder is None:
        return
    indices = np.unique(np.linspace(0, len(data) - 1, min(6, len(data))).astype(int))

    def draw(path):
        images, truth, said = [], [], []
        for index in indices:
            image, mask = data[int(index)]
            with torch.no_grad():
                prediction = scores_of(image[None].to(device)).argmax(1).cpu()
            images.append(torch.nn.functional.interpolate(image[None], (size, size), mode="bilinear", antialias=True))
            for kept, found in ((truth, mask[None]), (said, prediction)):
                kept.append(torch.nn.functional.interpolate(found[None].float(), (size, size))[0].long())
        pictures.predictions(path, torch.cat(images), torch.cat(truth), torch.cat(said), classes, palette, mean, std)

    gallery.put("predictions", draw)
