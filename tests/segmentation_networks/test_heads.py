"""Heads with the published weights and features give the published outputs."""

import functools
import gzip
import json
import math
import zlib

import pytest
import torch
from conftest import GOLDEN
from safetensors.torch import load_file
from tiny_networks import one_thread, tiny  # noqa: F401, a fixture
from torch import nn

from segmentation_networks.deeplab import DeepLabV3Head
from segmentation_networks.encnet import EncHead, EncModule, Encoding
from segmentation_networks.fcn import FCNHead
from segmentation_networks.fpn import FPNHead
from segmentation_networks.network import SegmentationNetwork
from segmentation_networks.psp import PSPHead, PyramidPooling, grid_means
from segmentation_networks.upernet import UPerNetHead


def golden_cases():
    if not GOLDEN.is_dir():
        return []
    cases = json.loads(gzip.decompress((GOLDEN / "5_heads/heads.json.gz").read_bytes()))["cases"]
    return [case for case in cases if not case["kind"].startswith("ATTEN")]


def from_recipe(name, shape):
    """Numbers of the words of config.recipe."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    last = name.rpartition(".")[2]
    if last == "num_batches_tracked":
        return torch.tensor(0)
    if last == "weight" and x.ndim > 1:
        return x * math.sqrt(2 / math.prod(shape[1:]))
    rules = {
        "running_mean": lambda: 0.1 * x,
        "running_var": lambda: 0.5 + x.abs(),
        "codewords": lambda: 0.5 * x,
        "scale": lambda: -0.5 * x.abs(),
        "weight": lambda: 1 + 0.1 * x,
        "bias": lambda: 0.05 * x,
    }
    return rules[last]() if last in rules else x


class Features(nn.Module):
    """A backbone that gives the same maps for any images."""

    def __init__(self, maps):
        super().__init__()
        self.maps = maps

    def forward(self, images):
        return self.maps


def published_head(kind, config, widths, state):
    classes, se = config.get("nclass"), config.get("se_loss", False)
    if kind in ("Encoding", "EncModule", "PyramidPooling"):
        return {
            "Encoding": lambda: Encoding(config["D"], config["K"]),
            "EncModule": lambda: EncModule(widths, classes, codewords=config["ncodes"], se_loss=se),
            "PyramidPooling": lambda: PyramidPooling(widths),
        }[kind]()
    width = state.get("c4conv.0.weight", [256])[0]
    options = {"channels": width, "fusion_channels": 512, "align_corners": True}
    return {
        "FCN": lambda: FCNHead(widths, classes, with_global=config.get("with_global", False)),
        "PSP": lambda: PSPHead(widths, classes),
        "DeepLabV3": lambda: DeepLabV3Head(widths, classes, atrous_rates=config.get("atrous_rates")),
        "Enc": lambda: EncHead(widths, classes, se_loss=se, lateral=config.get("lateral", False)),
        "FCFPN": lambda: FPNHead(widths, classes, **options),
        "UperNet": lambda: UPerNetHead(widths, classes, pyramid_channels=widths[-1] // 4, **options),
    }[kind]()


@functools.cache
def stored():
    return load_file(GOLDEN / "5_heads/heads.safetensors")


def deviation(case, number, output):
    """Largest difference, relative to the largest value."""
    assert list(output.shape) == case["output_shapes"][number]
    if case["stored"]:
        expected = stored()[f"{case['id']}.output.{number}"]
        return (output - expected).abs().max() / expected.abs().max()
    summary = case["outputs"][number]
    expected = torch.tensor(summary["sample_values"])
    sample = output.flatten()[summary["sample_flat_index"]]
    output = output.double()
    return max(
        (sample - expected).abs().max() / expected.abs().max(),
        abs(output.mean() - summary["mean"]) / summary["std"],
        abs(output.std() / summary["std"] - 1),
    )


@pytest.mark.parametrize("case", golden_cases(), ids=lambda case: f"{case['id']}-{case['kind'].split()[0]}")
def test_same_weights_and_features_give_the_published_outputs(case):
    config, prefix, shapes = case["config"], case["prefix"], case["state_dict"]
    if case["stored"]:
        state = {name: stored()[f"{case['id']}.state.{name}"] for name in shapes}
        inputs = {name: stored()[f"{case['id']}.input.{name}"] for name in case["input_shapes"]}
    else:
        state = {name: from_recipe(prefix + name, shape) for name, shape in shapes.items()}
        for name, mean in case["weight_means_to_check_the_recipe"].items():
            assert state[name].double().mean() == pytest.approx(mean, abs=1e-7)
        inputs = {name: from_recipe(f"{prefix}input.{name}", shape) for name, shape in case["input_shapes"].items()}
        inputs = {name: x.relu() for name, x in inputs.items()} if case["input_relu"] else inputs
    maps = [inputs.get(f"c{stage}") for stage in (1, 2, 3, 4)]

    kind, _, whole = case["kind"].partition(" ")
    kind = kind.removesuffix("Head").removesuffix("Net")
    if whole:
        widths = [256, 512, 1024, 2048]
        head = published_head("UperNet" if kind == "Uper" else kind, config, widths, shapes)
        aux = FCNHead(widths[:3], config["nclass"]) if config["aux"] else None
        model = SegmentationNetwork(Features(maps), head, aux)
        ours = {"head": "decode_head", "auxlayer": "auxiliary_head"}
        state = {f"{ours[n.partition('.')[0]]}.{n.partition('.')[2]}": tensor for n, tensor in state.items()}
        argument = torch.zeros(1, 3, *config["image_size"])
    else:
        widths = config.get("fpn_inchannels") or config.get("in_channels")
        widths = [8, 512, 1024, widths] if config.get("lateral") else widths
        model = published_head("UperNet" if kind == "Uper" else kind, config, widths, shapes)
        argument = maps if "c4" in inputs else inputs["x"]
    model.load_state_dict(state)  # strict: the names are the published ones
    with torch.no_grad():
        outputs = model.eval()(argument)
    if whole:
        names = {"prediction": "logits", "se prediction": "se", "aux prediction": "aux"}
        outputs = [outputs.pop(names[name]) for name in config["outputs_in_order"]] + list(outputs.values())
    outputs = [x for x in (outputs if isinstance(outputs, (list, tuple)) else [outputs]) if x is not None]
    assert len(outputs) == case["n_outputs"]
    for number, output in enumerate(outputs):
        assert deviation(case, number, output) < 2e-6


def test_first_weights_and_dropout_of_upernet_are_mmsegmentations():
    """Classifiers N(0, 0.01) with bias 0, convolutions N(0, sqrt(2 / (k k out))), norms 1 and 0; dropout of whole channels."""
    torch.manual_seed(0)
    options = {"channels": 64, "dropout": 0.3, "mmsegmentation": True}
    network = tiny("convnextv2_atto", "upernet", 150, head_kwargs=options, aux_kwargs={"dropout": 0.4})
    for head, share in ((network.decode_head, 0.3), (network.auxiliary_head, 0.4)):
        *_, dropout, classifier = head.conv5
        assert type(dropout) is nn.Dropout2d and dropout.p == share and not classifier.bias.any()
        assert classifier.weight.std().item() == pytest.approx(0.01, rel=0.1)
        convolutions = [module for module in head.modules() if isinstance(module, nn.Conv2d) and module is not classifier]
        for conv in convolutions:
            expected = math.sqrt(2 / (conv.kernel_size[0] ** 2 * conv.out_channels))
            assert conv.weight.std().item() == pytest.approx(expected, rel=0.1) and conv.bias is None
            assert conv.weight.abs().max() > 2.5 * expected  # normal: a uniform one ends at 1.73
        norms = [module for module in head.modules() if isinstance(module, nn.BatchNorm2d)]
        assert len(norms) == len(convolutions) and all((n.weight == 1).all() and not n.bias.any() for n in norms)


@pytest.mark.parametrize("head", ["fcn", "psp", "deeplab", "encnet", "upernet"])
def test_first_weights_of_pytorch_encodings_heads_are_torchs(head):
    torch.manual_seed(0)
    network = tiny("resnet18", head, aux_kwargs=None if head == "fcn" else {})
    heads = [each for each in (network.decode_head, network.auxiliary_head) if each is not None]
    for module in (module for each in heads for module in each.modules() if isinstance(module, nn.Conv2d)):
        most = 1 / math.sqrt(module.weight[0].numel())  # uniform
        assert 0.6 * most < module.weight.abs().max() <= most
    if head != "upernet":
        assert all(type(each.get_submodule(each.classifiers[0].rpartition(".")[0])[-2]) is nn.Dropout for each in heads)


@pytest.mark.parametrize("scale", [1, 2, 3, 6])
def test_the_deterministic_means_over_a_grid_are_those_of_adaptive_pooling(scale, monkeypatch):
    found = []
    for deterministic in (False, True):
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda chosen=deterministic: chosen)
        x = torch.randn(2, 3, 7, 13, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
        means = grid_means(x, scale)
        (means * torch.arange(means.numel()).view_as(means)).sum().backward()
        found.append((means.detach(), x.grad))
    torch.testing.assert_close(found[1], found[0])
