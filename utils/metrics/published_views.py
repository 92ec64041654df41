"""How `windows.predict` looks at an image: as the repository does whose transforms train the network."""

from utils.cli.errors import InputError

LONGEST = 1 << 20  # pixels of a long side: no image has more


def view_options(settings, view, *, classes, mean, std, sharded=False):
    """Options of `windows.predict`.

    settings: has transforms, crop_size and base_size (segmentation_flags.Augmentation). view: segmentation_flags.View.
    classes: their number. sharded: the processes run the network together, so that each needs as many windows as the others;
    InputError for slide then.
    """
    if sharded and view.eval_mode == "slide":
        raise InputError("--eval_mode slide with FSDP: the processes would wait for each other's windows; use whole or crop")
    options = {"classes": classes, "mode": view.eval_mode, "crop_size": settings.crop_size, "mean": mean, "std": std}
    options |= {"flip": view.eval_flip, "scales": tuple(view.eval_scales)}
    if settings.transforms == "mmseg":
        base_size = (4 * settings.base_size, settings.base_size)
        resizing = {"align_corners": False, "whole_levels": True}
        return options | {"base_size": base_size, "edge": "shift", "combine": "softmax", **resizing}
    if settings.transforms == "eomt":
        resizing = {"align_corners": False, "whole_levels": True, "antialias": True}
        return options | {"base_size": (LONGEST, settings.crop_size), "edge": "spread", "combine": "exp", **resizing}
    base_size = settings.base_size if settings.transforms == "encoding" else None
    several = view.eval_flip or len(view.eval_scales) > 1
    return options | {"base_size": base_size, "combine": "exp" if several else "softmax"}
