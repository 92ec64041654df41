"""A trained model whose answers another one learns beside the labels: distillation (Hinton et al. 2015)."""

import functools

import torch
import torch.nn.functional as F

from utils.augment.mixup import smooth_one_hot
from utils.cli.errors import InputError
from utils.model.as_trained import as_trained
from utils.model.download import fetch_folder
from utils.result.export import open_result


def make_teacher(args, classes, norm, accelerator, say):
    """A function of a Mixup, or None, to what mixes in its place and puts the teacher's answers into the targets. Without
    --teacher it gives back what it got.

    norm: {"mean": …, "std": …}, as the images of the model are normalised. Raises InputError where the teacher lacks one of the
    classes, gives an image several, or takes images of other bands.
    """
    if not args.teacher:
        return lambda mixup: mixup
    with accelerator.local_main_process_first():  # one process of a machine downloads, the others find it in the cache
        folder = fetch_folder(args.teacher)
    trained = as_trained(str(folder))
    if trained is None or trained.network or trained.evaluation.get("task"):
        raise InputError(f"--teacher {args.teacher}: expected the folder of a model that gives an image one class, as RUN/best")
    if (bands := trained.evaluation.get("in_chans")) != args.in_chans:
        found, expected = (f"{number} bands" if number else "three colours" for number in (bands, args.in_chans))
        raise InputError(f"--teacher {args.teacher}: trained on images of {found}; expected one of {expected}")
    model, facts = open_result(folder)
    known = facts["classes"]
    if set(classes) <= set(known):
        columns, order = [known.index(name) for name in classes], ""
    elif known == [str(number) for number in range(len(classes))]:
        columns, order = list(range(len(classes))), "; its classes have no names: taken in the order of the data"
    else:
        missing = next(name for name in classes if name not in known)
        raise InputError(f"--teacher {args.teacher}: it knows no class {missing!r}; expected a model of the classes of the "
                         f"data, such as RUN/best of a run on it; it has {len(known)}")  # fmt: skip
    size = f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters, {facts['input_size']} pixels"
    say(f"teacher: {args.teacher}, {size}{order}")
    layout = torch.channels_last if args.channels_last else torch.preserve_format
    model = model.requires_grad_(False).to(accelerator.device, memory_format=layout)
    return Teacher(model, facts, columns, norm, args.teacher_share, args.smoothing, accelerator).after


class Teacher:
    """What `after` gives is called as a Mixup: (images (B, C, H, W) float32, labels (B,) int64, seed) -> (images, targets).

    A target (B, classes) float32 is `1 - share` of the label, smoothed and mixed, plus `share` of the teacher's probabilities.
    So the gradient of cross-entropy is that of `1 - share` of the usual loss plus `share` of KL(teacher, model), at temperature
    1. The teacher sees the very pixels that the model sees, mixed and erased as they are (Beyer et al. 2022, "Knowledge
    distillation: a good teacher is patient and consistent").

    model: from images to logits, in evaluation mode on the device; facts: its input_size, mean and std; columns: where its
    logits of the classes are; norm: mean and std of the images that come; smoothing: of labels.
    """

    def __init__(self, model, facts, columns, norm, share, smoothing, accelerator):
        self.model, self.size, self.columns = model, facts["input_size"], columns
        self.share, self.smoothing, self.autocast = share, smoothing, accelerator.autocast
        colours = norm["mean"], norm["std"], facts["mean"], facts["std"]
        mean, std, own_mean, own_std = (torch.tensor(values, device=accelerator.device).view(-1, 1, 1) for values in colours)
        self.scale, self.shift = std / own_std, (mean - own_mean) / own_std

    def after(self, mixup):
        """As `mixup`, None: none, with the teacher's answers in the targets."""
        return functools.partial(self._teach, mixup)

    @torch.no_grad()
    def _teach(self, mixup, images, labels, seed):
        if mixup is None:
            targets = smooth_one_hot(labels, len(self.columns), self.smoothing)
        else:
            images, targets = mixup(images, labels, seed)
        with self.autocast():
            answers = self.model(self._as_it_looks(images))[:, self.columns].float().softmax(-1)
        return images, targets.lerp(answers, self.share)

    def _as_it_looks(self, images):
        """The images at the teacher's size, and normalised as its own were."""
        images = images * self.scale + self.shift
        size = (self.size, self.size)
        return images if images.shape[-2:] == size else F.interpolate(images, size, mode="bicubic", antialias=True)
