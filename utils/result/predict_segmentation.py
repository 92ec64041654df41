"""Masks as palette PNGs, overlays on their images, and the legend of the classes."""

import pathlib

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torchvision.transforms import functional as F
from tqdm import tqdm

from utils.cli.errors import InputError
from utils.images import is_image, read_image

OPACITY = 0.55  # of the class colours in an overlay


def palette_image(mask, palette):
    """(H, W) class ids as a palette PNG that shows the class colours and holds the ids; 255 where a pixel has none."""
    image = Image.fromarray(np.where(mask < 0, 255, mask).astype(np.uint8))
    image.putpalette(np.concatenate([palette, np.zeros((256 - len(palette), 3), np.uint8)]).astype(np.uint8).tobytes())
    return image


def overlay(image, mask, palette):
    """The RGB `image` with the class colours of `mask` (H, W) over it; pixels without a class stay as they are."""
    pixels = np.asarray(image, dtype=np.float32)
    colours = palette[np.clip(mask, 0, len(palette) - 1)].astype(np.float32)
    mixed = np.where((mask >= 0)[..., None], (1 - OPACITY) * pixels + OPACITY * colours, pixels)
    return Image.fromarray(mixed.round().astype(np.uint8))


def legend(classes, palette, columns=None):
    """A picture of the class colours with their names, in columns of up to 30."""
    columns = columns or -(-len(classes) // 30)
    rows = -(-len(classes) // columns)
    font = ImageFont.load_default(14)
    width = 44 + max(round(font.getlength(name)) for name in classes)
    picture = Image.new("RGB", (columns * width + 8, rows * 24 + 8), "white")
    draw = ImageDraw.Draw(picture)
    for number, (name, colour) in enumerate(zip(classes, palette.tolist(), strict=True)):
        x, y = 8 + number // rows * width, 8 + number % rows * 24
        draw.rectangle((x, y, x + 22, y + 16), fill=tuple(colour), outline="black")
        draw.text((x + 30, y), name, fill="black", font=font)
    return picture


def picture_files(folder):
    """Paths of the images below `folder`, sorted. Raises InputError where there is none."""
    files = [path for path in sorted(pathlib.Path(folder).rglob("*")) if is_image(path.name)]
    if not files:
        what = "no images in it" if pathlib.Path(folder).is_dir() else "no such folder"
        raise InputError(f"--predict {folder}: {what}; expected a folder of .jpg, .png or other images")
    return files


@torch.no_grad()
def predict_folder(model, folder, output_dir, scores_of, classes, palette, device, norm, share=(0, 1), say=print):
    """Write output_dir/masks and output_dir/overlays (PNG, in the size of the images) and legend.png.

    scores_of: (logits of images, image (1, 3, H, W)) -> scores (1, C, H, W). share: (process, processes), which take
    turns. Raises InputError for a folder without images and for an image that cannot be read, naming it.
    """
    files = picture_files(folder)
    output_dir.mkdir(parents=True, exist_ok=True)
    legend(classes, palette).save(output_dir / "legend.png")
    for path in tqdm(files[share[0] :: share[1]], desc="predict", unit="image", disable=share[0] > 0):
        image = read_image(path)
        tensor = F.normalize(F.to_tensor(image), norm["mean"], norm["std"]).unsqueeze(0).to(device)
        found = scores_of(lambda x: model(x, only_logits=True)["logits"], tensor)
        mask = torch.where(found.isnan().any(1), -1, found.argmax(1))[0].cpu().numpy()
        for kind, picture in (("masks", palette_image(mask, palette)), ("overlays", overlay(image, mask, palette))):
            target = (output_dir / kind / path.relative_to(folder)).with_suffix(".png")
            target.parent.mkdir(parents=True, exist_ok=True)
            picture.save(target)
    say(f"predicted: {len(files)} images; masks, overlays and legend.png are in {output_dir}")
