"""The pictures and the report of a run, drawn while it trains, for at most a hundredth of its time.

The main process draws. What cannot be drawn is warned of once, and the training goes on.
"""

import functools
import pathlib
import time

import numpy as np
from PIL import ImageOps

from utils.files import replace
from utils.images.bands import to_picture
from utils.images.read import AS_STORED
from utils.metrics.multilabel import SeveralAnswers
from utils.metrics.recognition import Answers
from utils.metrics.segmentation import MaskAnswers
from utils.pictures.confusion import confusion
from utils.pictures.curves import curves
from utils.pictures.images import SHOWN_SAMPLES, answered, predictions, samples
from utils.pictures.reliability import reliability
from utils.report import report
from utils.report.evaluation import write_evaluation
from utils.report.run_files import read_records

BUDGET = 0.01  # fraction of the training time that may go into drawing
FIRST_COST = 3.0  # seconds that drawing is expected to take before it was measured
SHOWN_MISTAKES = 24
ANSWERS = "answers.npz"


class Gallery:
    """Holds what each picture is to be drawn from, and draws: in `refresh` when time allows, in `finish` at the end.

    folder: of the run; None, as on processes other than the main one: nothing is drawn. metric: the score in curves.png, by
    its name in log.txt, such as test_acc1; None: there is no training to draw. lr_scales: smallest
    and largest multiple of the learning rate among the layers.
    warn: takes a line about what could not be drawn. shown: how a batch is shown (mean, std, bands, classes, and palette where
    it has masks), and the side in pixels to which images of an evaluation are resized, `size`.
    """

    def __init__(self, folder, metric, lr_scales=(1.0, 1.0), warn=print, shown=None):
        self.folder, self.warn = pathlib.Path(folder) if folder else None, warn
        self.start, self.spent, self.cost = time.perf_counter(), 0.0, FIRST_COST  # seconds; cost: of the last `finish`
        self.shown = shown or {}
        there = folder and (self.folder / "samples.png").is_file()  # drawn by an earlier start, of the run's first batch
        self.batches, self.broken = 2 * bool(there), set()  # batches shown to `first_batch`, up to 2; names that were warned of
        self.waiting = {}  # name of a picture -> function of its path
        self.mistakes = None  # the one of mistakes.png, which may be drawn again with heat maps
        draw = functools.partial(_draw_curves, folder=self.folder, metric=metric, lr_scales=lr_scales)
        self.curves = {"curves": draw} if metric else {}

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

    def keep(self, answers, source, scores, metric, **facts):
        """Write what an evaluation leaves (utils/report/evaluation.py), and put its pictures; arguments as there.

        The answers are kept in a file until `end`, so that a run that is killed before it draws makes up for it.
        """
        if self.folder:
            self._try("evaluation", lambda: write_evaluation(self.folder, answers, source, scores, metric, **facts))
            self._try(ANSWERS, lambda: save_arrays(self.folder / ANSWERS, answers._asdict()))
            self.put_answers(answers, source)

    def recover(self, source):
        """Put the pictures of the answers that an earlier start has kept, if it has."""
        if self.folder and (self.folder / ANSWERS).is_file():
            self._try(ANSWERS, lambda: self.put_answers(read_answers(self.folder / ANSWERS), source))

    def put_answers(self, answers, source):
        """Put confusion.png of an evaluation, where a class can be taken for another, and mistakes.png, or predictions.png
        where it has masks.

        answers: Answers, SeveralAnswers or MaskAnswers; source: of the images, with name(index), `classes`, and read(index)
        -> image.
        """
        if answers.pairs is not None:
            self.put("confusion", confusion, pairs=answers.pairs, classes=source.classes)
        if answers.calibration:
            self.put("reliability", reliability, calibration=answers.calibration)
        if hasattr(answers, "truth"):
            images = {name: getattr(answers, name) for name in ("images", "truth", "predicted")}
            if len(answers.shown):
                names = [short_name(source.name(int(index))) for index in answers.shown]
                norm = {name: self.shown.get(name) for name in ("classes", "palette", "mean", "std", "bands")}
                self.put("predictions", predictions, names=names, of=len(answers.index), **images, **norm)
            return
        worst = answers.mistakes(source.classes, SHOWN_MISTAKES)
        shown = {"title": answers.mistakes_title, "source": source, "size": self.shown["size"]}
        self.mistakes = functools.partial(_draw_mistakes, worst=worst, **shown)
        self.put("mistakes", self.mistakes)

    def refresh(self):
        """Draw what is new, and the report, if the budget allows it; returns whether it did."""
        if not self.folder or self.spent + self.cost > BUDGET * (time.perf_counter() - self.start):
            return False
        self.finish()
        return True

    def finish(self, look=None):
        """Draw what is new, and the report. look: a function of (pictures, classes) to the heat maps of mistakes.png, as
        result/heat_maps.py makes them, or None."""
        if self.folder:
            before = self.spent
            if look and self.mistakes:
                self.put("mistakes", self.mistakes, look=look)
            self._draw({**self.waiting, **self.curves})
            self.waiting = {}
            self.write_report()
            self.cost = self.spent - before

    def write_report(self):
        """Write report.html of what there is by now."""
        if self.folder:
            self._draw({"report": lambda path: report.write_report(self.folder)})

    def end(self):
        """The run is finished, and its pictures are drawn: write the report, which says so now."""
        if self.folder:
            (self.folder / ANSWERS).unlink(missing_ok=True)
            self.write_report()

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


def save_arrays(path, arrays):
    """Replace a file of NumPy arrays in one step."""
    with replace(path) as aside, open(aside, "wb") as file:
        np.savez(file, **arrays)


def read_answers(path):
    """The Answers, SeveralAnswers or MaskAnswers that were kept at `path`."""
    with np.load(path) as file:
        arrays = dict(file)
    return (MaskAnswers if "truth" in arrays else SeveralAnswers if "thresholds" in arrays else Answers)(**arrays)


def short_name(path):
    """A file's name with the folder that it lies in."""
    return "/".join(pathlib.PurePath(path).parts[-2:])


def _draw_curves(path, folder, metric, lr_scales):
    epochs, updates = read_records(folder / "log.txt", "epoch"), read_records(folder / "updates.txt", "update", "epoch")
    curves(path, epochs, updates, metric, lr_scales)


def _draw_mistakes(path, worst, title, source, size, look=None):
    reading = getattr(source, "reading", AS_STORED)
    images = [np.array(ImageOps.fit(to_picture(source.read(index), reading.show_bands), (size, size))) for index, _, _ in worst]
    names = [short_name(source.name(index)) for index, _, _ in worst]
    lines, asked = [lines for _, _, lines in worst], [label for _, label, _ in worst]
    heats = None
    try:
        if look and images and not reading.in_chans:  # heat maps are of pictures, which bands are not
            heats = look(images, asked)
    finally:  # without them if they fail
        glow = "" if heats is None else "; glowing: where the model saw it"
        answered(path, images, lines, names, title + glow if worst else "Most confident mistakes: there are none", heats)
