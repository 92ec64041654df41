"""Segmentation networks: heads against the published numbers, every head on every kind of backbone, bad combinations."""

import gzip
import json
import math
import zlib

import pytest
import torch
import torch.nn.functional as F
from conftest import GOLDEN
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from optim_factory import get_parameter_groups, layer_decay_assigner
from segmentation_networks import HEADS, SegmentationNetwork, build_network, classifier_prefixes
from segmentation_networks.deeplab import DeepLabV3Head
from segmentation_networks.encnet import EncHead, EncModule, Encoding
from segmentation_networks.fcn import FCNHead
from segmentation_networks.fpn import FPNHead
from segmentation_networks.psp import PSPHead, PyramidPooling
from segmentation_networks.upernet import UPerNetHead
from utils.cli.errors import InputError

TINY = {  # backbones that build and run in a blink: timm's name -> its options
    "convnextv2_atto": {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)},
    "resnet18": {"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32)},
    "resnest14d": {"channels": (8, 16, 24, 32), "stem_width": 8},
    "vit_tiny_patch16_224": {"depth": 4, "embed_dim": 32, "num_heads": 2},
    "swin_tiny_patch4_window7_224": {"depths": (1, 1, 1, 1), "embed_dim": 8, "num_heads": (1, 1, 1, 1)},
    "mobilenetv3_small_050": {},
}
SMALL = {"fcn": {}, "psp": {}, "deeplab": {}, "encnet": {"channels": 16}, "upernet": {"channels": 16}}
SMALL["fpn"] = {"channels": 8, "head_kwargs": {"fusion_channels": 16}}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Networks this small only wait for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny(backbone, head, classes=5, **options):
    return build_network(backbone, head, classes, **SMALL[head] | {"backbone_kwargs": TINY[backbone]} | options)


# --- the published numbers --------------------------------------------------------------------------------------------


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
        "DeepLabV3": lambda: DeepLabV3Head(widths, classes, atrous_rates=config.get("atrous_rates", (12, 24, 36))),
        "Enc": lambda: EncHead(widths, classes, se_loss=se, lateral=config.get("lateral", False)),
        "FCFPN": lambda: FPNHead(widths, classes, **options),
        "UperNet": lambda: UPerNetHead(widths, classes, pyramid_channels=widths[-1] // 4, **options),
    }[kind]()


def deviation(case, number, output):
    """Largest difference, relative to the largest value."""
    assert list(output.shape) == case["output_shapes"][number]
    if case["stored"]:
        expected = load_file(GOLDEN / "5_heads/heads.safetensors")[f"{case['id']}.output.{number}"]
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
        stored = load_file(GOLDEN / "5_heads/heads.safetensors")
        state = {name: stored[f"{case['id']}.state.{name}"] for name in shapes}
        inputs = {name: stored[f"{case['id']}.input.{name}"] for name in case["input_shapes"]}
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


# --- the encoding layer -----------------------------------------------------------------------------------------------


def encoding_formula(x, codewords, scale):
    residuals = x.flatten(2).transpose(1, 2)[:, :, None] - codewords  # (B, N, K, C)
    weights = (scale * residuals.square().sum(3)).softmax(2)
    return (weights[..., None] * residuals).sum(1)


def test_encoding_and_its_gradients_equal_the_formula():
    torch.manual_seed(0)
    layer = Encoding(6, 4).double()
    x = torch.randn(2, 6, 5, 3, dtype=torch.float64, requires_grad=True)
    inputs = (x, layer.codewords, layer.scale)
    got, expected = layer(x), encoding_formula(*inputs)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    probe = torch.randn_like(got)
    for a, b in zip(torch.autograd.grad(got, inputs, probe), torch.autograd.grad(expected, inputs, probe), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_encoding_by_hand():
    layer = Encoding(1, 2)
    with torch.no_grad():
        layer.codewords.copy_(torch.tensor([[0.0], [2.0]]))
        layer.scale.copy_(torch.tensor([0.0, -math.log(3)]))
    # x = 1 and 2: distances (1, 1) and (4, 0), so weights (1, 1/3) / (4/3) = (.75, .25) and (.5, .5)
    got = layer(torch.tensor([[[1.0, 2.0]]]))
    torch.testing.assert_close(got, torch.tensor([[[0.75 * 1 + 0.5 * 2], [0.25 * -1 + 0.5 * 0]]]))


def test_encoding_is_not_done_in_half_precision():
    torch.manual_seed(0)
    layer, x = Encoding(256, 8), 5 * torch.randn(2, 256, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), layer(x).float())
        got = layer(x)
    assert torch.equal(got, layer(x))


def test_encoding_holds_no_tensor_of_pixels_times_codewords_times_channels():
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, (list, tuple)) else [out]:
                if isinstance(x, torch.Tensor) and x.untyped_storage().nbytes():
                    self.numel = max(self.numel, x.untyped_storage().nbytes() // x.element_size())
            return out

    layer, x = Encoding(64, 16), torch.randn(2, 64, 20, 20, requires_grad=True)
    with Largest() as largest:
        layer(x).sum().backward()
    assert x.grad is not None and largest.numel == x.numel()
    with Largest() as largest:
        encoding_formula(x, layer.codewords, layer.scale).sum().backward()
    assert largest.numel == 16 * x.numel()


# --- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("backbone", TINY)
def test_every_head_on_every_kind_of_backbone(backbone, head):
    torch.manual_seed(0)
    network = tiny(backbone, head, aux=head != "fcn")
    images = torch.randn(2, 3, 70, 101)
    outputs = network(images)
    assert set(outputs) == ({"logits"} if head == "fcn" else {"logits", "aux"})
    assert all(x.shape == (2, 5, 70, 101) for x in outputs.values())
    sum(x.square().mean() for x in outputs.values()).backward()
    unused = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert unused == []  # distributed training stops at the first of them
    assert list(network.eval()(images[:1], only_logits=True)) == ["logits"]


@pytest.mark.parametrize("backbone", ["convnextv2_atto", "resnet18", "resnest14d", "mobilenetv3_small_050"])
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_output_stride(backbone, output_stride):
    network = tiny(backbone, "fpn", output_stride=output_stride).eval()
    maps = network.features(torch.zeros(1, 3, 64, 96))
    strides = [min(stride, output_stride) for stride in (4, 8, 16, 32)]
    assert [tuple(x.shape[-2:]) for x in maps] == [(64 // stride, 96 // stride) for stride in strides]


def test_plain_backbones_go_through_a_simple_pyramid():
    network = tiny("vit_tiny_patch16_224", "upernet").eval()
    maps = network.features(torch.zeros(1, 3, 64, 96))
    assert [tuple(x.shape[1:]) for x in maps] == [(8, 16, 24), (16, 8, 12), (32, 4, 6), (32, 2, 3)]
    blocks = network.backbone(torch.zeros(1, 3, 64, 96))[-1]
    assert torch.equal(maps[2], blocks) and torch.equal(maps[3], F.max_pool2d(blocks, 2))
    assert {"backbone.model.pos_embed", "backbone.model.cls_token"} <= network.no_weight_decay()
    single = tiny("vit_tiny_patch16_224", "fcn").eval().features(torch.zeros(1, 3, 64, 96))
    assert [x is None for x in single] == [True, True, True, False]


@pytest.mark.parametrize("backbone, multiple", [("vit_tiny_patch16_224", 16), ("swin_tiny_patch4_window7_224", 4)])
def test_images_of_any_size_are_padded_for_patches(backbone, multiple):
    network, images = tiny(backbone, "psp").eval(), torch.randn(1, 3, 70, 101)
    padded = F.pad(images, (0, -101 % multiple, 0, -70 % multiple))
    assert padded.shape != images.shape
    assert torch.equal(network(images)["logits"], network(padded)["logits"][..., :70, :101])


def test_convnext_features_are_normed_per_stage():
    network = tiny("convnextv2_atto", "upernet").eval()
    assert [norm.weight.shape[0] for norm in network.feature_norms] == [8, 16, 24, 32]
    assert all(norm.eps == 1e-6 for norm in network.feature_norms)
    raw, normed = network.backbone(torch.randn(1, 3, 64, 64)), network.features(torch.randn(1, 3, 64, 64))
    for x, y in zip(raw, normed, strict=True):
        assert x.shape == y.shape
        assert y.mean(1).abs().max() < 1e-5 and (y.var(1, unbiased=False) - 1).abs().max() < 1e-2
    assert tiny("resnet18", "upernet").feature_norms is None
    assert [len(list(norm.parameters())) for norm in tiny("convnextv2_atto", "psp").feature_norms] == [0, 0, 0, 2]


def test_dilated_resnest_is_the_published_one():
    """First block of a dilated stage: average over 3x3 after the split attention, a shortcut of convolution and norm."""
    network = tiny("resnest14d", "fcn", output_stride=8).eval()
    x = torch.rand(1, network.backbone.feature_info.channels()[1], 9, 11)
    for stage, dilation in (("layer3", 1), ("layer4", 2)):
        block = network.backbone[stage][0]
        assert block.conv2.conv.dilation == (dilation, dilation) and block.conv2.conv.stride == (1, 1)
        y = F.avg_pool2d(block.conv2(block.bn1(block.conv1(x)).relu()), 3, stride=1, padding=1)
        _, conv, norm = block.downsample
        expected = (block.bn3(block.conv3(y)) + norm(conv(x))).relu()
        x = block(x)
        torch.testing.assert_close(x, expected)


def test_published_widths():
    with torch.device("meta"):
        upernet = build_network("convnext_tiny", "upernet", 150, aux=True, aux_channels=256)
        fcn = build_network("resnet50s", "fcn", 150, aux=True, output_stride=8)
        deeplab = build_network("resnest50d", "deeplab", 59, output_stride=8)
    assert upernet.decode_head.c4conv[0].weight.shape == (512, 768 + 4 * 512, 3, 3)
    assert upernet.decode_head.conv5[4].weight.shape == (150, 512, 1, 1)
    assert upernet.auxiliary_head.conv5[0].weight.shape == (256, 384, 3, 3)
    assert not upernet.decode_head.align_corners and fcn.decode_head.align_corners
    assert fcn.decode_head.conv5[0].weight.shape == (512, 2048, 3, 3)
    assert fcn.auxiliary_head.conv5[0].weight.shape == (256, 1024, 3, 3)
    assert fcn.backbone["conv1"][0].weight.shape == (64, 3, 3, 3)  # the deep stem of PyTorch-Encoding's resnet50s
    assert deeplab.decode_head.aspp.b3[0].dilation == (36, 36)


def test_options_take_effect():
    network = tiny("resnet18", "encnet", output_stride=8, se_loss=True, lateral=True, codewords=7, align_corners=False)
    assert network.decode_head.encmodule.encoding[3].codewords.shape == (7, 16)
    assert {name: tuple(x.shape) for name, x in network(torch.randn(2, 3, 40, 40)).items()} == {
        "logits": (2, 5, 40, 40),
        "se": (2, 5),
    }
    assert not network.decode_head.align_corners
    assert -1 < network.decode_head.encmodule.encoding[3].scale.min() < 0
    rates = tiny("resnet18", "deeplab", atrous_rates=(2, 3)).decode_head.aspp
    assert [branch[0].dilation[0] for branch in (rates.b1, rates.b2)] == [2, 3] and not hasattr(rates, "b4")
    assert tiny("resnet18", "fcn", with_global=True).decode_head.conv5[5].weight.shape == (5, 16, 1, 1)
    dropped = tiny("convnextv2_atto", "fcn", drop_path=0.3, dropout=0.25)
    assert dropped.backbone["stages_3"].blocks[0].drop_path.drop_prob == pytest.approx(0.3)
    assert [m.p for m in dropped.modules() if isinstance(m, nn.Dropout)][-1] == 0.25


@pytest.mark.parametrize("backbone, output_stride", [("resnet18", None), ("resnet18", 16), ("vit_tiny_patch16_224", None)])
def test_lateral_at_any_output_stride(backbone, output_stride):
    network = tiny(backbone, "encnet", lateral=True, output_stride=output_stride)
    network(torch.randn(2, 3, 80, 96))["logits"].sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("output_stride, rates", [(8, [12, 24, 36]), (16, [6, 12, 18]), (None, [3, 6, 9])])
def test_atrous_rates_follow_the_output_stride(output_stride, rates):
    aspp = tiny("resnet18", "deeplab", output_stride=output_stride).decode_head.aspp
    assert [branch[0].dilation[0] for branch in (aspp.b1, aspp.b2, aspp.b3)] == rates


@pytest.mark.parametrize("backbone", ["convnextv2_atto", "vit_tiny_patch16_224"])
def test_gradient_checkpointing_changes_no_gradient(backbone):
    torch.manual_seed(0)
    network, images = tiny(backbone, "fpn", dropout=0.0), torch.randn(2, 3, 64, 64)
    gradients = []
    for enable in (False, True):
        network.set_grad_checkpointing(enable)
        network.zero_grad()
        network(images)["logits"].square().mean().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    network.backbone = Features([])
    with pytest.raises(InputError, match="no gradient checkpointing"):
        network.set_grad_checkpointing()


def test_a_second_network_is_like_the_first():
    widths = [8, 16, 24, 32]
    first, second = (UPerNetHead(widths, 3, channels=8).state_dict() for _ in range(2))
    assert {name: x.shape for name, x in first.items()} == {name: x.shape for name, x in second.items()}
    assert widths == [8, 16, 24, 32]


@pytest.mark.parametrize("head", HEADS)
def test_classifier_prefixes_are_what_depends_on_the_classes(head):
    options = {"aux": True} | ({"se_loss": True} if head == "encnet" else {})
    few, many = (tiny("resnet18", head, classes, **options) for classes in (5, 8))
    shapes = {name: x.shape for name, x in many.state_dict().items()}
    differ = {name for name, x in few.state_dict().items() if x.shape != shapes[name]}
    assert differ == {name for name in shapes if name.startswith(classifier_prefixes(few))}


@pytest.mark.parametrize("head", ["psp", "upernet", "deeplab", "fcn"])
def test_one_image_under_pyramid_pooling_says_what_to_do(head):
    network = tiny("resnet18", head, **{"with_global": True} if head == "fcn" else {})
    with pytest.raises(InputError, match="two images per process.*SyncBN"):
        network(torch.randn(1, 3, 64, 64))
    network(torch.randn(2, 3, 64, 64))
    network.eval()(torch.randn(1, 3, 64, 64))


def test_one_image_where_it_is_enough_and_where_the_backbone_pools():
    tiny("resnet18", "encnet")(torch.randn(1, 3, 64, 64))
    with pytest.raises(InputError, match="two images per process"):
        tiny("resnest14d", "encnet")(torch.randn(1, 3, 64, 64))


def test_all_batch_norms_become_sync_bn():
    network = nn.SyncBatchNorm.convert_sync_batchnorm(tiny("resnet18", "encnet", aux=True))
    kinds = [type(module) for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert set(kinds) == {nn.SyncBatchNorm}
    assert isinstance(network.decode_head.encmodule.encoding[4], nn.SyncBatchNorm)
    network.eval()(torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize(
    "words, message",
    [
        (("resnet18", "pspp"), "unknown head 'pspp': did you mean psp"),
        (("resnet8", "psp"), "unknown backbone 'resnet8': did you mean resnet18"),
        (("resnet18", "psp", {"se_loss": True}), "psp has no se_loss, which belongs to encnet"),
        (("resnet18", "encnet", {"with_global": True}), "encnet has no with_global"),
        (("resnet18", "psp", {"output_stride": 4}), "expected 8, 16 or 32"),
        (("vit_tiny_patch16_224", "psp", {"output_stride": 8}), "no output stride 8"),
        (("swin_tiny_patch4_window7_224", "psp", {"output_stride": 16}), "no output stride 16"),
        (("vgg11", "psp", {"output_stride": 8}), "no output stride 8"),
        (("crossvit_tiny_240", "psp"), r"strides \[12, 17, 17, 17\]; expected 4, 8, 16 and 32|cannot be made"),
        (("levit_128", "psp"), "no four feature maps"),
        (("vgg11", "psp", {"drop_path": 0.1}), "drop_path_rate"),
        (("resnet18", "psp", {"backbone_kwargs": {"nothing": 1}}), "nothing"),
        (("resnet18", "psp", {"head_kwargs": {"nothing": 1}}), "nothing"),
        (("resnet18", "psp", {"aux_channels": 8}), "without an auxiliary head"),
    ],
)
def test_what_does_not_go_together_is_one_line(words, message):
    backbone, head, *options = words
    with pytest.raises(InputError, match=message) as error, torch.device("meta"):
        build_network(backbone, head, 5, **(options[0] if options else {}))
    assert "\n" not in str(error.value)


# --- layer decay ------------------------------------------------------------------------------------------------------


def test_layer_decay_of_upernet_convnext_is_the_published_one(golden):
    from utils.model.segmentation_weights import mm_name

    checked = 0
    for case in golden("2_mm_groups/mm_layer_decay_groups.json.gz")["cases"]:
        config, rules = case["config"], case["config"]["paramwise_cfg"]
        if "upernet" not in config["model"] or rules["num_layers"] != (12 if config["backbone_depths"][2] > 9 else 6):
            continue
        with torch.device("meta"):
            network = build_network(config["model"].replace("upernet", "convnext"), "upernet", 150, aux=True)
        assigner = layer_decay_assigner(network, rules["decay_rate"], rules.get("decay_type", "layer_wise"))
        groups = get_parameter_groups(network, 0.05, (), assigner.get_layer_id, assigner.get_scale)
        names = {parameter: name for name, parameter in network.named_parameters()}
        ours = {names[p]: (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
        published = {}
        for group in case["groups"]:
            for name in group["param_names"]:
                published[mm_name(name, ours)] = (pytest.approx(group["lr_scale"], rel=1e-12), group["weight_decay"])
        assert ours == published
        checked += 1
    assert checked >= 4


def test_layer_decay_of_other_backbones_is_refused_clearly():
    with pytest.raises(ValueError, match="use --layer_decay 1.0"):
        layer_decay_assigner(tiny("resnet18", "fcn"), 0.9)
    with pytest.raises(ValueError, match="is for ConvNeXt"):
        layer_decay_assigner(tiny("vit_tiny_patch16_224", "fcn"), 0.9, "stage_wise")
