"""Exported files, opened without this project: the network's logits at any batch size, and what they tell about input."""

import json
import shutil
import sys

import accelerate
import pytest
import timm
import torch
from conftest import Batches, begin_run
from made_result import NORM, TINY, shaken, write_result

from segmentation_networks.network import build_network
from utils.cli.errors import InputError
from utils.cli.recognition_flags import ModelOptions
from utils.model.recognition import build_model, timm_config
from utils.model.segmentation_weights import open_network
from utils.result import export
from utils.run.checkpoint import export_weights

MODELS = {  # beside the segmentation network, which is of ConvNeXt V2
    "resnet18": {"channels": (8, 8, 16, 16), "stem_width": 8},
    "vit_tiny_patch16_224": {"depth": 2, "embed_dim": 24},
}
CLASSES = ["cat", "dog", 'a "quoted" {name}', "Ümläut 猫"]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Networks this small only wait for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Folders as training leaves them, by the name of the network."""
    folders = {}
    for name, kwargs in MODELS.items():
        folders[name] = write_result(tmp_path_factory.mktemp(name) / "best", CLASSES, name=name, model_kwargs=kwargs)
    network = {"backbone": "convnextv2_atto", "head": "upernet", "classes": 4, "backbone_kwargs": TINY}
    network |= {"head_kwargs": {"channels": 8}, "aux_kwargs": {"channels": 8}}
    folders["upernet"] = tmp_path_factory.mktemp("upernet") / "best"
    config = {"network": network, "classes": CLASSES, "palette": [[0, 0, 0]] * 4, "crop_size": 40, "base_size": 40}
    config |= {"transforms": "none", **NORM}
    export_weights(folders["upernet"], shaken(build_network(**network, input_size=40)).state_dict(), config)
    return folders


def in_python(folder):
    """The network of `folder`, opened as the README says, as a function to logits."""
    if "network" in json.loads((folder / "config.json").read_text()):
        network, _ = open_network(folder)
        return lambda images: network(images)["logits"]
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def opened(path, kind):
    """(function to logits, the facts in the file), with nothing but the format's own library."""
    if kind == "onnx":
        import onnx

        onnxruntime = pytest.importorskip("onnxruntime")
        session = onnxruntime.InferenceSession(path)
        facts = {prop.key: json.loads(prop.value) for prop in onnx.load(path).metadata_props}
        return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0]), facts
    extra = {export.FACTS: ""}
    if kind == "torchscript":
        model = torch.jit.load(path, _extra_files=extra)
    else:
        model = torch.export.load(path, extra_files=extra).module()
    return model, json.loads(extra[export.FACTS])


def needs(kind):
    if kind == "onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxscript")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.load. is deprecated")
@pytest.mark.parametrize("kind", export.FORMATS)
@pytest.mark.parametrize("name", [*MODELS, "upernet"])
def test_the_file_gives_the_logits_of_the_network(results, tmp_path, name, kind):
    needs(kind)
    folder = shutil.copytree(results[name], tmp_path / "best")
    said = []
    path = export.export_run(folder, kind, said.append)
    assert path == folder / export.FORMATS[kind].file and str(path) in said[0]
    assert {p.name for p in folder.iterdir()} == {"config.json", "model.safetensors", path.name}

    size = 40 if name == "upernet" else 32
    run, facts = opened(path, kind)
    cropped = {} if name == "upernet" else {"crop_pct": 1.0, "crop_mode": "center", "interpolation": "bicubic"}
    assert facts == {"input_size": size, "classes": CLASSES, **NORM, **cropped}
    network = in_python(folder)  # beside the new file
    for batch in (1, 2, 5):
        images = torch.randn(batch, 3, size, size)
        with torch.no_grad():
            expected, found = network(images), run(images)
        assert found.shape == ((batch, 4, 40, 40) if name == "upernet" else (batch, 4))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_run_that_was_scored_with_mirror_images_says_that_the_file_is_not(results, tmp_path):
    folder, said = shutil.copytree(results["resnet18"], tmp_path / "best"), []
    config = json.loads((folder / "config.json").read_text()) | {"tta_flip": True}
    (folder / "config.json").write_text(json.dumps(config))
    export.export_run(folder, "torch_export", said.append)
    assert len(said) == 2 and said[1].endswith("the run was scored with its mirror image too (--tta_flip)")


def test_the_file_tells_how_images_are_given_and_answers_are_read(results, tmp_path):
    folder = shutil.copytree(results["resnet18"], tmp_path / "best")
    told = {"value_range": [0.0, 1.5], "background": [9, 9, 9], "task": "multilabel", "thresholds": [0.5, 0.25, 0.5, 0.5]}
    config = json.loads((folder / "config.json").read_text()) | told | {"temperature": 1.25}
    (folder / "config.json").write_text(json.dumps(config))
    _, facts = opened(export.export_run(folder, "torch_export", lambda line: None), "torch_export")
    assert {name: facts.get(name) for name in told} == told and facts["temperature"] == 1.25


class CountsItsBatch(torch.nn.Module):
    """Takes the size of the batch into a number, which a trace keeps for ever."""

    def forward(self, images):
        return images.mean((2, 3)) * float(images.shape[0])


class NotFinite(torch.nn.Module):
    def forward(self, images):
        return images.mean((2, 3)) * float("nan")


FACTS = {"input_size": 8, "classes": ["r", "g", "b"], **NORM}


@pytest.mark.parametrize(
    "model, reason",
    [
        (
            CountsItsBatch(),
            r"the file's logits differ from the model's by [\d.]+, expected \S+ at most; nothing was written, try",
        ),
        (NotFinite(), "the model's own logits are not finite; nothing was written$"),
    ],
)
def test_a_file_with_other_logits_is_not_kept(tmp_path, model, reason):
    old = tmp_path / export.FORMATS["torchscript"].file
    old.write_text("of an earlier run")
    with pytest.raises(InputError, match=rf"^export to torchscript: {reason}"):
        export.export_model(model.eval(), tmp_path, "torchscript", **FACTS)
    assert [path.name for path in tmp_path.iterdir()] == [old.name] and old.read_text() == "of an earlier run"


def test_a_graph_that_cannot_be_exported(tmp_path):
    class Branches(torch.nn.Module):
        def forward(self, images):
            return images if images.sum() > 0 else -images

    line = r"^export to torch_export: \w+: [^\n]+; try another of onnx, torchscript, torch_export$"
    with pytest.raises(InputError, match=line):
        export.export_model(Branches(), tmp_path, "torch_export", **FACTS)
    assert not list(tmp_path.iterdir())


def test_onnx_without_onnxruntime(results, tmp_path, monkeypatch):
    needs("onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    folder = shutil.copytree(results["vit_tiny_patch16_224"], tmp_path / "best")
    assert export.export_run(folder, "onnx", lambda line: None).is_file()
    monkeypatch.setattr(export, "TOLERANCE", -1)  # so that whatever looked at the file has to refuse it
    with pytest.raises(InputError, match="logits differ"):
        export.export_run(folder, "onnx")


def test_onnx_without_its_packages(results, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match="found no .*onnxscript; pip install onnx onnxscript onnxruntime"):
        export.check_export("onnx")
    with pytest.raises(InputError, match="pip install onnx onnxscript onnxruntime"):
        export.export_run(results["resnet18"], "onnx")
    export.check_export("torchscript")


def test_an_unknown_format():
    with pytest.raises(InputError, match="unknown export format 'torchscrip', did you mean torchscript"):
        export.check_export("torchscrip")


@pytest.mark.parametrize(
    "name, content",
    [("config.json", None), ("model.safetensors", None), ("config.json", "{}"), ("model.safetensors", "no tensors")],
)
def test_a_folder_without_a_whole_result(results, tmp_path, name, content):
    folder = shutil.copytree(results["resnet18"], tmp_path / "best")
    (folder / name).unlink() if content is None else (folder / name).write_text(content)
    line = rf"^[^\n]+found no {name}; expected a folder such as RUN/best$" if content is None else r"^[^\n]+$"
    with pytest.raises(InputError, match=line):
        export.export_run(folder, "torchscript")
    assert not (folder / export.FORMATS["torchscript"].file).exists()


def test_weights_open_as_the_model_that_they_are_of_and_what_does_not_is_said(tmp_path):
    """timm gives fbnetc_100 another epsilon where it is to have pretrained weights, as it does when it opens a folder."""
    model = shaken(build_model(ModelOptions(model="fbnetc_100"), ["a", "b"], input_size=32))
    config = timm_config(model, "fbnetc_100", ["a", "b"], input_size=32, crop_pct=1.0, crop_mode="center", **NORM)
    export_weights(tmp_path, model.train().state_dict(), config)
    assert export.reopened_differs(model, tmp_path) is None and model.training
    export_weights(tmp_path, model.state_dict(), config | {"model_args": {}})
    assert "opened again, their logits differ from the model's by" in export.reopened_differs(model, tmp_path)
    export_weights(tmp_path, model.state_dict(), config | {"num_classes": 3})
    assert "they cannot be opened again (" in export.reopened_differs(model, tmp_path)


def test_a_run_compares_its_first_weights(tmp_path):
    accelerator = accelerate.Accelerator(cpu=True)
    model = torch.nn.Linear(2, 2)
    optimizer = accelerator.prepare_optimizer(torch.optim.SGD(model.parameters(), 0.1))
    run = begin_run(accelerator, tmp_path / "run", model, optimizer, Batches([], 1))
    for name in ("best", "last"):
        run.results.keep(name)
    said = (tmp_path / "run" / "warnings.txt").read_text()
    assert said.count("the weights in") == 1 and "run/best are not the model's: they cannot be opened again" in said
