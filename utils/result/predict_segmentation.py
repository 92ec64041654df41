"""The classes of every pixel of images without masks, by the network of a run: palette PNGs, overlays and a legend."""

import pathlib

import torch
from torchvision.transforms import functional as F
from tqdm import tqdm

from utils.images import read_image
from utils.report.mask_colours import legend, overlay, palette_image
from utils.result.image_files import find_images


@torch.no_grad()
def predict_folder(
    segment, images, output_dir, *, classes, palette, mean, std, device, process=0, processes=1, say=print
):  # fmt: skip
    """Write output_dir/masks and output_dir/overlays (PNG, in the size of the images), and legend.png.

    segment: images (1, 3, H, W) float32 on `device`, normalised by mean and std -> scores (1, C, H, W), NaN where a pixel has
    none. images: a folder, or one file. classes: names; palette: (C, 3) uint8. process, processes: they take turns.
    Raises InputError for a path without images, and for an image that cannot be read, naming it.
    """
    files, output_dir = find_images(images), pathlib.Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    legend(classes, palette).save(output_dir / "legend.png")
    for path, name in tqdm(files[process::processes], desc="predict", unit="image", disable=process > 0):
        image = read_image(path)
        tensor = F.normalize(F.to_tensor(image), mean, std).unsqueeze(0).to(device)
        scores = segment(tensor)
        mask = torch.where(scores.isnan().any(1), -1, scores.argmax(1))[0].cpu().numpy()
        for folder, picture in (("masks", palette_image(mask, palette)), ("overlays", overlay(image, mask, palette))):
            target = (output_dir / folder / name).with_suffix(".png")
            target.parent.mkdir(parents=True, exist_ok=True)
            picture.save(target)
    say(f"predicted: {len(files)} images; masks, overlays and legend.png are in {output_dir}")
