"""JPEG files decoded by the GPU: the loader's workers read bytes and draw the crop; the rest happens in batches on the device.

torchvision's decode_jpeg does the decoding (nvJPEG). The crop, flips and erasing are those of utils/augment/fast.py, from
the same random numbers; the pixels differ as the decoders do. What changes pixels on the CPU (RandAugment, colour jitter) is
not for this: `why_not` says so before training.
"""

import io
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation

from utils.augment import fast as fast_transforms


class Encoded(NamedTuple):
    """Images of a batch before decoding. files: uint8 tensors, (bytes,) for a JPEG file, or (3, H, W) if decoded already.

    boxes: (top, left, height, width) in pixels each; flips: (horizontal, vertical) each; modes: of the resizing; size: pixels.
    """

    files: list
    boxes: list
    flips: list
    modes: list
    size: int


def why_not(device, transform):
    """Why images cannot be decoded by the GPU with this `fast_transforms.TrainTransform`, or None if they can."""
    if device.type != "cuda":
        return "there is no CUDA GPU"
    if transform.changes or not isinstance(transform.crop, fast_transforms.RandomResizedCrop):
        return "--aa, --color_jitter and images of up to 32 pixels are the CPU's work; give --aa none"
    try:
        decode_jpeg([_as_tensor(_small_jpeg())], device)
    except (RuntimeError, ImportError) as error:
        return f"this build of torchvision has no nvJPEG ({str(error).splitlines()[0]})"
    return None


class Draw:
    """In the place of a `TrainTransform`: draws what it would draw, and leaves the pixels to `decode`.

    Bytes of an image file or a PIL image -> ((file, box, flips, mode, size), erase).
    """

    takes_bytes = True

    def __init__(self, transform):
        self.transform = transform

    def __call__(self, image):
        data, crop = image, self.transform.crop
        image = fast_transforms.opened(data, load=False)
        box = RandomResizedCropAndInterpolation.get_params(image, crop.scale, crop.ratio)
        mode = crop.choose_mode()
        flips = tuple(bool(p and torch.rand(1) < p) for p in (self.transform.hflip, self.transform.vflip))
        if isinstance(data, bytes) and image.format == "JPEG":  # opened without being decoded: RGB and upright
            file = _as_tensor(data)
        else:
            file = torch.from_numpy(np.stack(image.split()))
        return (file, box, flips, mode, crop.size), self.transform.erased((3, crop.size, crop.size))


def collate(samples):
    """[((file, box, flips, mode, size), erase, …)] -> [Encoded, erase, …] as fast_transforms.collate does with the rest."""
    drawn = [sample[0] for sample in samples]
    files, boxes, flips, modes, sizes = map(list, zip(*drawn, strict=True))
    _, *others = fast_transforms.collate([(torch.empty(0), *sample[1:]) for sample in samples])
    return [Encoded(files, boxes, flips, modes, sizes[0]), *others]


def decode(encoded, device):
    """(B, 3, size, size) uint8 on `device`."""
    files = dict(enumerate(encoded.files))
    jpegs = [number for number, file in files.items() if file.ndim == 1]
    for number, pixels in zip(jpegs, decode_jpeg([files[number] for number in jpegs], device) if jpegs else (), strict=True):
        files[number] = pixels
    size, images = (encoded.size, encoded.size), []
    for number, (top, left, height, width) in enumerate(encoded.boxes):
        pixels = files[number].to(device, non_blocking=True)[:, top : top + height, left : left + width]
        image = torch.nn.functional.interpolate(pixels[None].float(), size, mode=encoded.modes[number], antialias=True)[0]
        axes = [axis for axis, flipped in zip((2, 1), encoded.flips[number], strict=True) if flipped]
        images.append(image.flip(axes))
    return torch.stack(images).round_().clamp_(0, 255).to(torch.uint8)


def _as_tensor(data):
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _small_jpeg():
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG")
    return file.getvalue()


def decode_jpeg(files, device):
    """JPEG files (bytes,) uint8 -> RGB images (3, H, W) uint8 on `device`, all in one call. The seam that tests replace."""
    import torchvision

    return torchvision.io.decode_jpeg(files, mode=torchvision.io.ImageReadMode.RGB, device=device)
