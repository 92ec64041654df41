"""Masks of class ids in the colours of their classes: as palette PNGs, over their image, and the legend."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

OPACITY = 0.55  # of the class colours over an image
LEGEND_ROWS = 30


def palette_image(mask, palette):
    """A palette image that shows the class colours and holds the class ids; 255 where a pixel has no class.

    mask: (H, W) int, below 0 where there is no class; palette: (C, 3) uint8. More than 255 classes do not fit: then the image
    is a grey one of 16 bits, and 65535 is no class.
    """
    if len(palette) > 255:
        return Image.fromarray(np.where(mask < 0, 65535, mask).astype(np.uint16))
    image = Image.fromarray(np.where(mask < 0, 255, mask).astype(np.uint8))
    image.putpalette(np.concatenate([palette, np.zeros((256 - len(palette), 3), np.uint8)]).astype(np.uint8).tobytes())
    return image


def overlay(image, mask, palette, clear=False):
    """The RGB `image` with the class colours of `mask` (H, W) over it; pixels without a class stay as they are, and with
    `clear` those of class 0, too."""
    pixels, colours = np.asarray(image), palette[np.clip(mask, 0, len(palette) - 1)]
    return Image.fromarray(np.where((mask >= clear)[..., None], mixed(pixels, colours), pixels))


def coloured(mask, palette):
    """(H, W) class ids in their colours, (H, W, 3) uint8; white with grey stripes where there is no class."""
    palette = np.asarray(palette, np.uint8)
    colours = palette[mask.clip(0, len(palette) - 1)]
    row, column = np.indices(mask.shape)
    width = max(1, min(mask.shape) // 40)
    stripes = np.where((row + column) // width % 4 == 0, 150, 255).astype(np.uint8)[..., None]
    return np.where(((mask >= 0) & (mask < len(palette)))[..., None], colours, stripes)


def mixed(pixels, colours):
    """`colours` over `pixels`, both (H, W, 3) uint8."""
    return ((1 - OPACITY) * pixels.astype(np.float32) + OPACITY * colours.astype(np.float32)).round().astype(np.uint8)


def legend(classes, palette):
    """An image of the class colours beside the class names, in columns of up to 30."""
    columns = -(-len(classes) // LEGEND_ROWS)
    rows = -(-len(classes) // columns)
    font = ImageFont.load_default(14)
    width = 44 + max(round(font.getlength(name)) for name in classes)
    image = Image.new("RGB", (columns * width + 8, rows * 24 + 8), "white")
    draw = ImageDraw.Draw(image)
    for number, (name, colour) in enumerate(zip(classes, palette.tolist(), strict=True)):
        x, y = 8 + number // rows * width, 8 + number % rows * 24
        draw.rectangle((x, y, x + 22, y + 16), fill=tuple(colour), outline="black")
        draw.text((x + 30, y), name, fill="black", font=font)
    return image
