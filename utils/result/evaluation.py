"""What `--eval true` leaves in a folder: the same files, pictures and page as of a run's own evaluation."""

import functools
import os
import pathlib
import sys

from utils import versions
from utils.images.bands import bands_of
from utils.pictures.gallery import Gallery
from utils.report.evaluation import worst_line
from utils.result.heat_maps import heat_maps

NAME = "evaluation"  # the folder beside the weights


def keep_evaluation(args, scores, answers, source, shown, device, say, warn):
    """Write the files, pictures and page of an evaluation, and say where; what cannot be written is warned of.

    args: Arguments; scores, answers: of `evaluate`; source: of the images; shown: as Gallery's, without `size` and `classes`;
    device: to make heat maps on.
    """
    if worst := worst_line(answers.class_rows(source.classes)):
        say(worst)
    folder = folder_for(args.output_dir, args.finetune or args.resume)
    if folder is None:
        return say("note: --output_dir OUT would keep this evaluation, with pictures, a page, and a list of all images")
    size = args.input_size if hasattr(args, "input_size") else args.crop_size
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.listdir(folder)
    except OSError as error:
        return warn(f"{folder} cannot be written ({error.strerror}): --output_dir OUT keeps the evaluation elsewhere")
    gallery = Gallery(
        folder, None, warn=warn, shown={"classes": source.classes, "size": size, "bands": bands_of(source), **shown}
    )
    weights = args.finetune or args.resume or "timm's weights"
    facts = {
        "weights": os.path.abspath(weights) if os.path.exists(weights) else weights, "args": vars(args), "command": sys.argv,
        "settings": {"val_images": len(source), "classes": len(source.classes)}, "commit": versions.commit(),
        "versions": versions.versions(),
    }  # fmt: skip
    gallery.keep(answers, source, scores, args.best_metric, **facts)
    has_weights = os.path.isfile(os.path.join(args.finetune, "config.json"))
    gallery.finish(functools.partial(heat_maps, args.finetune, device=device) if has_weights else None)
    gallery.end()
    return say(f"next: look at {folder / 'report.html'}; each image is in {folder / 'predictions.csv'}")


def folder_for(output_dir, weights):
    """The folder that an evaluation may write into, or None where nobody named one.

    That is `output_dir` where it is new, empty, or holds an earlier evaluation, else "evaluation" in it; without it,
    "evaluation" beside the folder of `weights`, or in the run of a state.
    """
    if output_dir:
        folder = pathlib.Path(output_dir)
        there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        ours = not there or ("evaluation.json" in there and not there & {"args.json", "log.txt"})
        return folder if ours else folder / NAME
    path = pathlib.Path(os.path.abspath(weights)) if weights else None
    if path is None or not path.exists():
        return None
    run = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    return run / NAME
