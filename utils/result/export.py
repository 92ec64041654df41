"""A run's weights as one file that other programs run: ONNX, TorchScript or torch.export.

The file takes images (N, 3, S, S) float32, normalised by its mean and std, for any N, and gives logits: (N, classes), or
(N, classes, S, S) of a segmentation network. The file also holds S (input_size), mean, std, the class names and, as far as
config.json has them, SETTINGS as JSON: under these names in ONNX's metadata_props, in the extra file strata.json otherwise.
"""

import importlib.util
import io
import json
import pathlib
import tempfile
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch

from utils.cli.errors import InputError, choose_one, first_line
from utils.model.as_trained import as_trained
from utils.model.recognition import open_model
from utils.model.segmentation_weights import open_network, read_config
from utils.model.sizes import channels_of

FACTS = "strata.json"
# What config.json says of how an image is given to the model, and how its answer is read.
SETTINGS = ("value_range", "background", "in_chans", "crop_pct", "crop_mode", "interpolation", "task", "thresholds",
            "temperature")  # fmt: skip
TOLERANCE = 1e-4  # of the largest logit; ResNet-152, ConvNeXt V2-B and ViT-B differ by 1e-6 of it in onnxruntime


class OnlyLogits(torch.nn.Module):
    """A SegmentationNetwork as a function from images (N, 3, H, W) to logits (N, classes, H, W)."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images, only_logits=True)["logits"]


def check_export(kind):
    """InputError for a `kind` that is not in FORMATS, or that needs packages which are not installed."""
    choose_one(kind, FORMATS, "export format")
    missing = [name for name in ("onnx", "onnxscript") if kind == "onnx" and not importlib.util.find_spec(name)]
    if missing:
        raise InputError(f"export to ONNX: found no {' and no '.join(missing)}; pip install onnx onnxscript onnxruntime")


def export_run(folder, kind, say=print):
    """Export the weights in `folder` (such as RUN/best) to a file beside them, in the format `kind`; returns its path.

    Raises InputError where there are no weights, where torch cannot export the model, and where the file does not give
    the model's logits.
    """
    check_export(kind)
    model, facts = open_result(folder)
    config = json.loads((pathlib.Path(folder) / "config.json").read_text(encoding="utf-8"))
    config = config.get("pretrained_cfg", {}) | config
    path = export_model(model, folder, kind, **facts, **{name: config[name] for name in SETTINGS if name in config})
    shape = f"(N, {len(facts['mean'])}, {facts['input_size']}, {facts['input_size']})"
    say(f"exported: {path}, {path.stat().st_size / 2**20:.1f} MiB; images {shape}")
    known = as_trained(folder)
    if flag := next((flag for flag in ("tta_flip", "eval_flip") if known and known.evaluation.get(flag)), None):
        say(f"note: the file answers to the image alone; the run was scored with its mirror image too (--{flag})")
    return path


def open_result(folder):
    """(model from images to logits, in evaluation mode on the CPU; dict of its input_size, mean, std and classes).

    folder: such as RUN/best. Raises InputError where it holds no model.
    """
    folder = pathlib.Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: found no {name}; expected a folder such as RUN/best")
    if read_config(folder) is not None:
        network, config = open_network(folder)
        if not {"mean", "std"} <= config.keys():
            raise InputError(f"{folder}: its config.json has no mean and std; expected one as training writes it")
        facts = {"input_size": config["crop_size"]} | {name: config[name] for name in ("mean", "std", "classes")}
        return OnlyLogits(network).eval(), facts
    model = open_model(folder)
    try:
        config = model.pretrained_cfg
        facts = {"input_size": config["input_size"][-1], "mean": list(config["mean"]), "std": list(config["std"])}
    except (LookupError, TypeError) as error:
        raise InputError(f"{folder}: config.json describes no input ({first_line(error)}); expected one of training") from None
    return model, facts | {"classes": config.get("label_names") or [str(i) for i in range(model.num_classes)]}


@torch.no_grad()
def reopened_differs(model, folder):
    """What is wrong, in words, with the weights in `folder` when they are opened as others will open them; or None.

    model: which they were written from, on any device, not sharded. Its logits of one image of noise are compared in eval mode;
    it is in its own mode afterwards.
    """
    mode, device = model.training, next(model.parameters()).device
    only_logits = {"only_logits": True} if read_config(folder) is not None else {}
    try:
        reopened, facts = open_result(folder)
        size = facts["input_size"]
        images = torch.randn(1, channels_of(model), size, size, generator=torch.Generator().manual_seed(0)).to(device)
        # Its class's: an instance may have a forward in bfloat16 of Accelerate's, or a compiled one.
        own = type(model).forward(model.eval(), images, **only_logits)
        fault = _fault(own["logits"] if only_logits else own, reopened.to(device)(images), 1 if device.type == "cpu" else 100)
        return fault and fault.replace("the file gives", "opened again, they give").replace("the file's", "opened again, their")
    except Exception as error:  # libraries raise many kinds
        return f"they cannot be opened again ({first_line(error)})"
    finally:
        model.train(mode)


@torch.no_grad()
def export_model(model, folder, kind, *, input_size, mean, std, classes, **settings):
    """Write `model` to `folder` in the format `kind`; returns the path of the file.

    model: images (N, C, H, W) to logits, in evaluation mode on the CPU; input_size: pixels; mean, std: one float of each
    channel; classes: names in the order of the logits; settings: of SETTINGS. The file is run on 1 and on 3
    images of noise before it takes its place: InputError, and no new file, where its logits differ from the model's by more
    than TOLERANCE.
    """
    check_export(kind)
    folder, form = pathlib.Path(folder), FORMATS[kind]
    facts = {"input_size": input_size, "mean": mean, "std": std, "classes": classes, **settings}
    images = torch.randn(3, channels_of(model), input_size, input_size, generator=torch.Generator().manual_seed(0))
    other = f"try another of {', '.join(FORMATS)}"
    with _folder_aside(folder) as aside:
        path = pathlib.Path(aside, form.file)
        try:
            expected = [model(batch) for batch in (images[:1], images)]
            if not all(logits.isfinite().all() for logits in expected):
                raise InputError(f"export to {kind}: the model's own logits are not finite; nothing was written")
            with warnings.catch_warnings():  # that TorchScript is deprecated, and what tracing might miss: it is tested here
                warnings.simplefilter("ignore")
                form.save(model, images[:2], path, facts)  # two: a batch of one would be taken for a constant
                run = form.load(path)
                faults = [_fault(logits, run(images[: len(logits)])) for logits in expected]
        except InputError:
            raise
        except Exception as error:  # torch's exporters and onnxruntime raise many kinds
            raise InputError(f"export to {kind}: {type(error).__name__}: {first_line(error)}; {other}") from None
        if fault := faults[0] or faults[1]:
            raise InputError(f"export to {kind}: {fault}; nothing was written, {other}")
        for part in sorted(path.parent.iterdir(), key=lambda part: part == path):  # ONNX above 2 GB has a second file
            part.replace(folder / part.name)
    return folder / path.name


def _folder_aside(folder):
    try:
        return tempfile.TemporaryDirectory(dir=folder, prefix="tmp-export-")
    except OSError as error:
        raise InputError(f"export to {folder}: it cannot be written ({error.strerror})") from None


def _fault(expected, found, tolerances=1):
    """What is wrong with the logits `found`, or None. tolerances: so many times TOLERANCE is allowed."""
    if found.shape != expected.shape:
        return f"the file gives logits {tuple(found.shape)}, expected {tuple(expected.shape)}"
    difference, limit = (found - expected).abs().max().item(), tolerances * TOLERANCE * expected.abs().max().item()
    if not difference <= limit:  # NaN is a fault too
        return f"the file's logits differ from the model's by {difference:.2g}, expected {limit:.2g} at most"
    return None


# --- the formats ------------------------------------------------------------------------------------------------------


class Format(NamedTuple):
    file: str  # name of the file
    save: Callable  # function of (model, images (2, 3, H, W), path, facts), which writes the file
    load: Callable  # function of a path, which returns a function from images to logits


def _any_batch():
    return ({0: torch.export.Dim("batch", min=1)},)


def _save_onnx(model, images, path, facts):
    program = torch.onnx.export(
        model, (images,), dynamo=True, dynamic_shapes=_any_batch(), input_names=["images"], output_names=["logits"],
        verbose=False,
    )  # fmt: skip
    program.model.metadata_props.update({name: json.dumps(value, ensure_ascii=False) for name, value in facts.items()})
    program.save(path)


def _load_onnx(path):
    """The file in onnxruntime, or, where that is not installed, in onnx's own slow evaluator."""
    if importlib.util.find_spec("onnxruntime"):
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    else:
        from onnx.reference import ReferenceEvaluator

        session = ReferenceEvaluator(str(path))
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _save_torchscript(model, images, path, facts):
    traced, made = torch.jit.trace(model, images, check_trace=False), io.BytesIO()
    torch.jit.save(traced, made, _extra_files={FACTS: json.dumps(facts)})  # torch's own writing aborts on a full disk
    path.write_bytes(made.getbuffer())


def _save_torch_export(model, images, path, facts):
    program, made = torch.export.export(model, (images,), dynamic_shapes=_any_batch()), io.BytesIO()
    torch.export.save(program, made, extra_files={FACTS: json.dumps(facts)})
    path.write_bytes(made.getbuffer())


FORMATS = {
    "onnx": Format("model.onnx", _save_onnx, _load_onnx),
    "torchscript": Format("model.torchscript.pt", _save_torchscript, torch.jit.load),
    "torch_export": Format("model.pt2", _save_torch_export, lambda path: torch.export.load(path).module()),
}
