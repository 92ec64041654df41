"""What the model of a run says of images without labels: a CSV file of all of them and a table of the first."""

import contextlib
import csv
import os
import pathlib
import unicodedata
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data import create_transform, resolve_model_data_config
from tqdm import tqdm

from utils.augment.recognition import eval_transform
from utils.cli.errors import InputError, first_line, one_line
from utils.data.classes import imagenet_names
from utils.data.loaders import in_worker
from utils.files import csv_cell, replace
from utils.images.bands import to_picture
from utils.images.read import AS_STORED, Reading, naming, read_image
from utils.model.as_trained import as_trained
from utils.pictures.images import answered
from utils.result.decisions import AboveThresholds, Likeliest, decision_of, together
from utils.result.export import OnlyLogits, open_result
from utils.result.heat_maps import heat_maps
from utils.result.image_files import find_images, is_written, mark

SHOWN = 20  # rows of the table
DRAWN, LINES = 24, 5  # images of a picture, and labels of each
FIRST_COLUMNS = (b"image,label_1,probability_1", b"image,labels,p_", b'image,labels,"p_')
NAME_WIDTH = 48  # columns of the terminal that an image's or a label's name may take in the table


def predict(
    folder, images, output, *, settings=None, flip=None, topk=None, batch_size=64, device, workers=0, process=0, processes=1,
    gather=None, say=print, reading=AS_STORED, unsure=None, cam=False, others=(),
):  # fmt: skip
    """Write what the model says of every image at or below `images` to the CSV file `output`, in one step: the `topk` likeliest
    classes (None: 5), or of several labels an image those above their thresholds.

    folder: with config.json and model.safetensors as training writes them (RUN/best). settings: Augmentation, how images are
    looked at, and flip: whether the logits are the mean of those of the image and of its mirror image; None: as its config.json
    says, by which its temperature and thresholds were found. reading: images.Reading. process, processes: they take turns; only
    process 0 writes and says anything. gather: list of a process -> list of all of them, needed where there are several.
    unsure: None, or a probability: a column `answer` has the likeliest class, or "unsure" where it is less probable. The
    probabilities are those at the `temperature` of config.json, if it has one (utils/metrics/calibration.py).
    cam: a PNG beside `output` shows the first images, each beside what made the model of `folder` give its answer.
    others: [(folder, settings, flip, reading)] of further models, with whose probabilities the mean is taken.
    Columns: image (its path below `images`, or its name), label_1, probability_1 (0..1), label_2, …, or labels, p_CLASS, …;
    empty where an image cannot be read, which is also said. Raises InputError for a folder without such a model, a path
    without images, images none of which can be read, and an output that cannot be written.
    """
    assert gather is not None or processes == 1, "several processes need gather"
    members = [_open(*member, topk, unsure, device) for member in ((folder, settings, flip, reading), *others)]
    decision = together([member.decision for member in members], [folder, *(folder for folder, *_ in others)])
    files = find_images(images, say if process == 0 else _say_nothing, reading)
    output = pathlib.Path(output)
    picture = output.with_suffix(".png") if decision.draws or cam else None
    if process == 0:
        _check_output(output, say)  # now, not after an hour
        if picture and os.path.lexists(picture) and not is_written(picture):
            raise InputError(f"{picture}: would be replaced, and no --predict wrote it; name another --output_dir")
        for note in [member.decision.note for member in members if member.decision.note]:
            say(note)
    mine = _Images(files, range(process, len(files), processes), [(member.transform, member.reading) for member in members])
    answers = _predict(members, mine, decision, batch_size, torch.device(device), workers, show=process == 0)
    answers = sorted(gather(answers) if gather else answers, key=lambda answer: answer[0])
    faults = [fault for _, fault, _ in answers if fault]
    if len(faults) == len(files):
        nor = f"; nor can the other {len(files) - 1} below {images}" if len(files) > 1 else ""
        raise InputError(f"--predict: {faults[0]}{nor}")
    if process > 0:
        return
    rows = [(files[i][1], answer) for i, _, answer in answers]
    _write(output, rows, decision)
    for fault in faults:
        say(f"warning: {fault}")
    shown = [
        (name, None if fault else decision.shown(answer)) for (name, answer), (_, fault, _) in zip(rows, answers, strict=True)
    ]
    for line in table(shown[:SHOWN]):
        say(line)
    if picture:
        read = [(files[i], decision.shown(answer), decision.likeliest(answer)) for i, fault, answer in answers if not fault]
        _draw(picture, read, reading, decision.about, folder if cam else None, device, say)
    whole = len(files) - len(faults)
    more = f", the first {SHOWN} of them above" if len(files) > SHOWN else ""
    unread = f", {len(faults)} more could not be read" if faults else ""
    say(f"predicted: {whole} image{'s' * (whole != 1)}{unread}{more}; all are in {one_line(str(output))}")


class _Member(NamedTuple):
    """A model on its device, how it looks at images, and what its logits mean."""

    model: torch.nn.Module
    transform: Callable
    decision: Likeliest | AboveThresholds
    flip: bool
    reading: Reading

    def logits(self, images):
        """(B, C) float32 of images (B, 3, H, W)."""
        logits = self.model(images).float()
        return (logits + self.model(images.flip(-1)).float()) / 2 if self.flip else logits


def _open(folder, settings, flip, reading, topk, unsure, device):
    model, transform, classes = open_classifier(folder)
    transform = transform if settings is None else eval_transform(settings)
    flip = as_trained(folder).evaluation.get("tta_flip", False) if flip is None else flip
    return _Member(model.to(device), transform, decision_of(folder, classes, topk, unsure), flip, reading)


def open_classifier(folder):
    """(timm model in evaluation mode on the CPU, its transform of a PIL image to (3, H, W) float32, its class names)."""
    model, _ = open_result(folder)
    if isinstance(model, OnlyLogits):
        raise InputError(f"{folder}: holds a segmentation network; expected a classifier, use train_segmentation.py")
    names = model.pretrained_cfg.get("label_names")
    if names is None and (of_imagenet := imagenet_names(model.num_classes)):
        names = of_imagenet[1]  # timm's own weights do not name them
    if not isinstance(names, list) or len(names) != model.num_classes or not all(isinstance(name, str) for name in names):
        there = f"{len(names)} label_names" if isinstance(names, list | dict) else "no label_names"
        raise InputError(
            f"{folder}: found {there} in config.json; expected a list of {model.num_classes} names, as training writes it"
        )
    try:
        transform = create_transform(**resolve_model_data_config(model))
    except Exception as error:  # timm takes the values of config.json as they are
        raise InputError(f"{folder}: config.json describes no input ({first_line(error)}); expected one of training") from None
    return model, transform, names


class _Images(torch.utils.data.Dataset):
    """The images with these `numbers` among `files`: (number, [image (3, H, W) of each of the `views`, (transform, Reading)] or
    None, why it cannot be read or None)."""

    def __init__(self, files, numbers, views):
        self.files, self.numbers, self.views = files, numbers, views

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, index):
        number = self.numbers[index]
        path, _ = self.files[number]
        try:
            images = {reading: read_image(path, reading=reading) for reading in {reading for _, reading in self.views}}
            with naming(path):  # 1 x 60,000 pixels are soon read, but enlarged they need more memory than there is
                return number, [transform(images[reading]) for transform, reading in self.views], None
        except InputError as error:
            return number, None, str(error)


def _collate(samples):
    """(numbers, [images (B, 3, H, W) for each model]) of what can be read, and [(number, why not)] of the rest."""
    whole = [(number, images) for number, images, fault in samples if fault is None]
    images = [torch.stack(views) for views in zip(*(images for _, images in whole), strict=True)]
    return [number for number, _ in whole], images, [(number, fault) for number, _, fault in samples if fault]


@torch.no_grad()
def _predict(members, images, decision, batch_size, device, workers, show):
    """[(number of the image, why it cannot be read or None, its answer as of decisions.py)] of `images`."""
    loader = torch.utils.data.DataLoader(
        images, batch_size, num_workers=workers, collate_fn=_collate, pin_memory=device.type == "cuda", worker_init_fn=in_worker
    )
    answers = []
    with tqdm(total=len(images), desc="predict", unit="image", disable=not show) as progress:
        for numbers, views, faults in loader:
            if numbers:
                views = [view.to(device, non_blocking=device.type != "mps") for view in views]
                logits = [member.logits(view) for member, view in zip(members, views, strict=True)]
                said = [member.decision.probabilities(part) for member, part in zip(members, logits, strict=True)]
                probabilities = sum(said) / len(said)
                if not probabilities.isfinite().all():
                    path, _ = images.files[numbers[0]]
                    raise InputError(f"{path}: the model's output is not finite; its weights are broken")
                of_batch = zip(numbers, decision.answers(probabilities), strict=True)
                answers += [(number, None, answer) for number, answer in of_batch]
            answers += [(number, fault, []) for number, fault in faults]
            progress.update(len(numbers) + len(faults))
    return answers


def _check_output(path, say):
    """Raise InputError if the file `path` cannot be written, or is there and no prediction; say that one is replaced."""
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(0, "its folder is not to be written to")
        if not path.exists():
            return
        with open(path, "rb") as file:
            ours = file.read(max(map(len, FIRST_COLUMNS))).startswith(FIRST_COLUMNS)
    if not ours:
        raise InputError(f"{one_line(str(path))}: would be replaced, and no --predict wrote it; name another --output_dir")
    say(f"replaced: {one_line(str(path))}, of an earlier prediction; --output_dir names another folder")


def _say_nothing(line):
    pass


def _write(path, rows, decision):
    """rows: (name, answer). Names that are no UTF-8 keep their bytes."""
    with (
        _writing(path),
        replace(path) as aside,
        open(aside, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["image", *map(csv_cell, decision.head)])
        for name, answer in rows:
            cells = decision.cells(answer)
            writer.writerow([csv_cell(name), *cells, *[""] * (len(decision.head) - len(cells))])


@contextlib.contextmanager
def _writing(path):
    """Within this, an error of the disk becomes an InputError that names the path."""
    try:
        yield
    except (OSError, UnicodeError) as error:  # the latter for half a letter in a class name
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"{path}: cannot be written ({reason}); name another .csv file") from None


def _draw(path, answers, reading, about, folder, device, say):
    """Draw the first images with their labels.

    answers: ((path, name), [(label, probability)], number of the likeliest class); about: the labels, in words; folder: of the
    model whose heat maps for that class are drawn beside the images; None: they are not.
    """
    shown, side, heats = answers[:DRAWN], 224, None
    pictures = [to_picture(read_image(file, reading=reading), reading.show_bands) for (file, _), _, _ in shown]
    pixels = [np.array(ImageOps.fit(picture, (side, side))) for picture in pictures]
    title = f"The first {len(shown)} of {len(answers):,} images, {about}"
    if folder and not reading.in_chans:
        heats = heat_maps(folder, pixels, [label for _, _, label in shown], device)
        title += "; glowing: where the model saw it" * (heats is not None)
    if folder and heats is None:
        of = "pictures, and these are bands" if reading.in_chans else "models whose features have places that are known"
        say(f"note: --cam: heat maps are of {of}; there are none")
    lines = [
        [("", name, f" {p:.0%}", False) for name, p in best[: 1 if folder else LINES]] or [("", "no label", "", False)]
        for _, best, _ in shown
    ]
    with _writing(path), replace(path) as aside:
        answered(aside, pixels, lines, [name for (_, name), _, _ in shown], title, heats)
        with Image.open(aside) as drawn:
            drawn.load()
        drawn.save(aside, "PNG", pnginfo=mark())


# --- the table ---------------------------------------------------------------------------------------------------------


def table(rows):
    """Lines of aligned columns: image, likeliest label, its probability, the others. rows: (name, [(label, probability)]), or
    (name, None) where the image cannot be read."""
    cells = [("image", "label", "probability", "others")]
    for name, best in rows:
        nothing = ("cannot be read" if best is None else "no label", "")
        labels = [(_cut(label), f"{p:.4f}") for label, p in best or ()] or [nothing]
        cells.append((_cut(name), *labels[0], ", ".join(map(" ".join, labels[1:]))))
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def _cut(text):
    """`text` as it can be shown, and the end of it where it is too long: names of a folder differ there."""
    text = one_line(text)
    if _width(text) <= NAME_WIDTH:
        return text
    while _width(text) > NAME_WIDTH - 1:
        text = text[1:]
    return "…" + text


def _width(text):
    """Columns that `text` takes in a terminal: two for each wide letter, none for accents on their own."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
