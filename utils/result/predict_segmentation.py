"""The classes of every pixel of images without masks, by the network of a run: palette PNGs, overlays and a legend.

In Python, `open_segmenter("RUN/best")` gives the function from a PIL image to its mask that --predict uses.
"""

import os
import pathlib
from types import SimpleNamespace

import torch
from tqdm import tqdm

from utils.augment.segmentation import Rest, finish, to_tensor
from utils.cli.errors import InputError
from utils.cli.segmentation_flags import View
from utils.data.sampling import spread
from utils.images.bands import to_picture
from utils.images.read import AS_STORED, IGNORE, read_image, size_of
from utils.metrics.published_views import view_options
from utils.metrics.windows import predict, resized_to
from utils.model.segmentation_weights import open_network
from utils.pictures.mask_colours import legend, overlay, palette_image
from utils.result.image_files import few, find_images, is_written, mark, png_names

LOOKED_AT = 9  # images of a source, whose size is noted
LARGER = 1.25  # times the training images' side: from there on a picture is looked at in windows


class Segmenter:
    """A function from an image, as `read_image` gives it, to its mask (H, W) int64, IGNORE where a pixel has no class.

    network: SegmentationNetwork in evaluation mode. view: options of `windows.predict`, as an evaluation looks at an image.
    trained_on: (W, H) in pixels of a usual training image, or None where nobody knows it.

    A picture larger than those is resized by the factor of the training images, whatever its size, and looked at in windows of
    the training crop, blended at their edges: what was learned at a size is found at that size.
    """

    def __init__(self, network, view, trained_on=None):
        self.network, self.view, self.trained_on = network, view | {"blend": True}, trained_on

    @torch.no_grad()
    def __call__(self, image):
        device = next(self.network.parameters()).device
        image = to_tensor(image)
        image = finish(image[None].to(device), [Rest(tuple(image.shape[1:]))], self.view["mean"], self.view["std"])
        scores = predict(
            lambda images: self.network(images, only_logits=True)["logits"], image, **self.view_of(*image.shape[2:])
        )
        return torch.where(scores.isnan().any(1), IGNORE, scores.max(1).indices)[0].cpu().numpy()

    def view_of(self, height, width):
        """Options of `windows.predict` for an image of this size."""
        if not self.is_large(height, width):
            return self.view
        long = round(max(height, width) * self.factor())
        short = round(min(height, width) * self.factor())
        edge = {"edge": "shift"} if short >= self.view["crop_size"] else {}
        return self.view | {"mode": "slide", "base_size": long, **edge}

    def is_large(self, height, width):
        """Whether an image of this size is looked at in windows: it is larger than the training's images and its crop."""
        if self.trained_on is None or self.view["mode"] == "crop":
            return False
        larger = max(height, width) > LARGER * max(self.trained_on)
        return larger and max(height, width) * self.factor() > self.view["crop_size"]

    def factor(self):
        """By which the training's images were resized, at scale 1."""
        width, height = self.trained_on
        return max(resized_to(height, width, self.view.get("base_size"))) / max(height, width)


def open_segmenter(folder, device="cpu"):
    """(`Segmenter`, names of its classes) by the weights in `folder` (RUN/best); it looks at images as --predict does."""
    network, config = open_network(folder)
    view = View(**{name: config[name] for name in View._fields if name in config})
    norm = {name: config[name] for name in ("mean", "std")}
    options = view_options(SimpleNamespace(**config), view, classes=len(config["classes"]), **norm)
    return Segmenter(network.to(device), options, config.get("image_size")), config["classes"]


def usual_size(source):
    """(W, H) in pixels of the image of middle length among a few of the `source`, or None where none can be read."""
    if not hasattr(source, "read"):  # of a dry run
        return None
    sizes = []
    for index in spread(len(source), LOOKED_AT):
        try:
            sizes.append(size_of(source.read(index)[0]))
        except InputError:  # which who trains on it says
            continue
    return sorted(sizes, key=max)[len(sizes) // 2] if sizes else None


def predict_folder(segment, images, output_dir, *, classes, palette, process=0, processes=1, gather=None, say=print,
                   reading=AS_STORED):  # fmt: skip
    """Write output_dir/masks and output_dir/overlays (PNG, in the size of the images), and legend.png.

    segment: image -> mask (H, W) int, below 0 where a pixel has no class. images: a folder, or one file. classes: names;
    palette: (C, 3) uint8. process, processes: they take turns. gather: list of a process -> list of all of them, needed where
    there are several. reading: images.Reading. An image that cannot be read is named and left out.
    Raises InputError for a path without images, images none of which can be read, and for files in the way that no prediction
    wrote.
    """
    assert gather is not None or processes == 1, "several processes need gather"
    files, output_dir, palette = find_images(images, say, reading), pathlib.Path(output_dir), palette[: len(classes)]
    targets = png_names([name for _, name in files])
    _make_room(output_dir, targets, say)
    clear = classes[0].strip("_ ").lower() == "background"
    faults, large = [], []
    numbers = range(process, len(files), processes)
    for number in tqdm(numbers, desc="predict", unit="image", disable=process > 0):
        path, name = files[number]
        try:
            image = read_image(path, reading=reading)
            mask = segment(image)
        except InputError as error:
            faults.append(str(error))
            continue
        large += [name] * (hasattr(segment, "is_large") and segment.is_large(*mask.shape))
        _save(palette_image(mask, palette), output_dir / "masks" / targets[number])
        _save(overlay(to_picture(image, reading.show_bands), mask, palette, clear), output_dir / "overlays" / targets[number])
    faults, large = (gather(found) if gather else found for found in (faults, large))
    if len(faults) == len(files):
        others = f"; nor can the other {len(files) - 1} below {images}" if len(files) > 1 else ""
        raise InputError(f"--predict: {faults[0]}{others}")
    if process > 0:
        return
    _save(legend(classes, palette), output_dir / "legend.png")
    for fault in faults:
        say(f"warning: {fault}")
    if large:
        say(
            f"windows: {len(large)} of {len(files)} pictures are larger than the training's ({few(large)}): looked at in "
            f"windows of {segment.view['crop_size']} pixels at the training's scale ({segment.factor():.3g}), blended"
        )
    unread = f", {len(faults)} more could not be read" if faults else ""
    whole = len(files) - len(faults)
    say(f"predicted: {whole} image{'s' * (whole != 1)}{unread}; masks, overlays and legend.png are in {output_dir}")


def _make_room(output_dir, targets, say):
    """Raise InputError if a file is in the way that no prediction wrote; say that those of an earlier one are replaced."""
    try:
        for folder in ("masks", "overlays"):
            (output_dir / folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{output_dir}: cannot be written ({error.strerror}); name another --output_dir") from None
    paths = [output_dir / folder / target for target in targets for folder in ("masks", "overlays")]
    there = [path for path in (*paths, output_dir / "legend.png") if os.path.lexists(path)]
    if foreign := [path for path in there if not is_written(path)]:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise InputError(f"{foreign[0]}{more}: would be replaced, and no --predict wrote it; name another --output_dir")
    if masks := sum(path.parent != output_dir for path in there) // 2:
        say(f"replaced: {masks} masks of an earlier prediction in {output_dir}")


def _save(picture, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, pnginfo=mark())
