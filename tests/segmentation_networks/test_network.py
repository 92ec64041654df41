"""Networks of every head and every kind of backbone: their options, what does not go together, layer decay."""

import pytest
import torch
from tiny_networks import BACKBONES, one_thread, tiny  # noqa: F401, the second is a fixture
from torch import nn

from optim_factory import get_parameter_groups, layer_decay_assigner
from segmentation_networks import HEADS
from segmentation_networks.network import build_network, classifier_prefixes
from utils.cli.errors import InputError

PAIRS = [(backbone, "upernet") for backbone in BACKBONES] + [
    ("resnet18", head) for head in HEADS if head not in ("upernet", "eomt")
]


@pytest.mark.parametrize("backbone, head", PAIRS)
def test_every_head_and_every_kind_of_backbone(backbone, head):
    torch.manual_seed(0)
    network = tiny(backbone, head, aux_kwargs=None if head == "fcn" else {})
    images = torch.randn(2, 3, 70, 101)
    outputs = network(images)
    assert set(outputs) == ({"logits"} if head == "fcn" else {"logits", "aux"})
    assert all(x.shape == (2, 5, 70, 101) for x in outputs.values())
    sum(x.square().mean() for x in outputs.values()).backward()
    unused = [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert unused == []  # distributed training stops at the first of them
    assert list(network.eval()(images[:1], only_logits=True)) == ["logits"]


def test_published_widths():
    with torch.device("meta"):
        upernet = build_network("convnext_tiny", "upernet", 150, aux_kwargs={"channels": 256})
        fcn = build_network("resnet50s", "fcn", 150, aux_kwargs={}, output_stride=8)
    assert upernet.decode_head.c4conv[0].weight.shape == (512, 768 + 4 * 512, 3, 3)
    assert upernet.decode_head.conv5[4].weight.shape == (150, 512, 1, 1)
    assert upernet.auxiliary_head.conv5[0].weight.shape == (256, 384, 3, 3)
    assert not upernet.decode_head.align_corners and not upernet.auxiliary_head.align_corners
    assert fcn.decode_head.align_corners and fcn.auxiliary_head.align_corners
    assert fcn.decode_head.conv5[0].weight.shape == (512, 2048, 3, 3)
    assert fcn.auxiliary_head.conv5[0].weight.shape == (256, 1024, 3, 3)
    assert fcn.backbone["conv1"][0].weight.shape == (64, 3, 3, 3)  # the deep stem of PyTorch-Encoding's resnet50s


def test_options_take_effect():
    options = [
        ("se_loss", True),
        ("lateral", True),
        ("codewords", 7),
        ("align_corners", False),
    ]  # pairs, as the flag gives them
    network = tiny("resnet18", "encnet", output_stride=8, head_kwargs=options)
    assert network.decode_head.encmodule.encoding[3].codewords.shape == (7, 16)
    outputs = network(torch.randn(2, 3, 40, 40))
    assert {name: tuple(x.shape) for name, x in outputs.items()} == {"logits": (2, 5, 40, 40), "se": (2, 5)}
    assert not network.decode_head.align_corners
    assert tiny("resnet18", "fcn", head_kwargs={"with_global": True}).decode_head.conv5[5].weight.shape == (5, 16, 1, 1)
    dropped = tiny("convnextv2_atto", "fcn", drop_path=0.3, head_kwargs={"dropout": 0.25}, aux_kwargs={"dropout": 0.2})
    assert dropped.backbone["stages_3"].blocks[0].drop_path.drop_prob == pytest.approx(0.3)
    assert [module.p for module in dropped.modules() if isinstance(module, nn.Dropout)][-2:] == [0.25, 0.2]


@pytest.mark.parametrize("backbone, output_stride", [("resnet18", None), ("resnet18", 16), ("vit_tiny_patch16_224", None)])
def test_lateral_at_any_output_stride(backbone, output_stride):
    network = tiny(backbone, "encnet", head_kwargs={"lateral": True}, output_stride=output_stride)
    network(torch.randn(2, 3, 80, 96))["logits"].sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(
    "output_stride, given, rates",
    [(8, None, [12, 24, 36]), (16, None, [6, 12, 18]), (None, None, [3, 6, 9]), (8, [2, 3, 4], [2, 3, 4])],
)
def test_atrous_rates_follow_the_output_stride(output_stride, given, rates):
    aspp = tiny("resnet18", "deeplab", output_stride=output_stride, head_kwargs={"atrous_rates": given}).decode_head.aspp
    assert [branch[0].dilation[0] for branch in (aspp.b1, aspp.b2, aspp.b3)] == rates


@pytest.mark.parametrize("head", HEADS)
def test_classifier_prefixes_are_what_depends_on_the_classes(head):
    options = {"head_kwargs": {"se_loss": True} if head == "encnet" else {}, "aux_kwargs": {}}
    backbone, options = ("vit_tiny_patch16_224", {"head_kwargs": {"blocks": 2}}) if head == "eomt" else ("resnet18", options)
    few, many = (tiny(backbone, head, classes, **options) for classes in (5, 8))
    shapes = {name: x.shape for name, x in many.state_dict().items()}
    differ = {name for name, x in few.state_dict().items() if x.shape != shapes[name]}
    assert differ == {name for name in shapes if name.startswith(classifier_prefixes(few))}


@pytest.mark.parametrize("backbone, head", [("resnet18", "psp"), ("resnet18", "deeplab"), ("resnest14d", "encnet")])
def test_one_image_where_a_block_pools_says_what_to_do(backbone, head):
    network = tiny(backbone, head)
    with pytest.raises(InputError, match="two images per process.*SyncBN"):
        network(torch.randn(1, 3, 64, 64))
    network(torch.randn(2, 3, 64, 64))
    network.eval()(torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize(
    "backbone, head, options, message",
    [
        ("resnet18", "pspp", {}, "unknown head 'pspp', did you mean psp?"),
        ("resnet8", "psp", {}, "unknown backbone 'resnet8', did you mean resnet18?"),
        ("resnet18", "psp", {"head_kwargs": {"latral": 1}}, "head psp takes channels, dropout, align_corners; found latral"),
        ("resnet18", "encnet", {"head_kwargs": [("latral", 1)]}, "found latral, did you mean lateral?"),
        ("resnet18", "encnet", {"head_kwargs": {"lateral": 1}}, "lateral 1: expected true or false"),
        ("resnet18", "encnet", {"head_kwargs": {"codewords": 5000}}, "codewords 5000: expected a whole number, 1 to 4,096"),
        ("resnet18", "upernet", {"head_kwargs": {"pool_scales": [1, 0]}}, "pool_scales [1, 0]: expected one or more whole"),
        ("resnet18", "deeplab", {"head_kwargs": {"output_stride": 8}}, "found output_stride"),
        ("resnet18", "psp", {"head_kwargs": 5}, "head_kwargs 5: expected names and values"),
        ("resnet18", "psp", {"aux_kwargs": {"chanels": 8}}, "the auxiliary head takes channels, dropout"),
        ("resnet18", "psp", {"aux_kwargs": {"dropout": 1}}, "dropout 1: expected a probability below 1"),
        ("resnet18", "psp", {"output_stride": 4}, "expected 8, 16 or 32"),
        ("resnet18", "psp", {"backbone_kwargs": {"output_stride": 8}}, "expected --output_stride"),
        ("vit_tiny_patch16_224", "psp", {"output_stride": 8}, "no output stride 8"),
        ("swin_tiny_patch4_window7_224", "psp", {"output_stride": 16}, "no output stride 16"),
        ("vgg11", "psp", {"output_stride": 8}, "no output stride 8"),
        ("levit_128", "psp", {}, "no four feature maps"),
        ("vgg11", "psp", {"drop_path": 0.1}, "drop_path_rate"),
        ("resnet18", "psp", {"backbone_kwargs": {"nothing": 1}}, "nothing"),
    ],
)
def test_what_does_not_go_together_is_one_line(backbone, head, options, message):
    with pytest.raises(InputError) as error, torch.device("meta"):
        build_network(backbone, head, 5, **options)
    assert message in str(error.value)


# --- layer decay ------------------------------------------------------------------------------------------------------


def test_layer_decay_of_upernet_convnext_is_the_published_one(golden):
    from utils.model.segmentation_weights import mm_name

    checked = 0
    for case in golden("2_mm_groups/mm_layer_decay_groups.json.gz")["cases"]:
        config, rules = case["config"], case["config"]["paramwise_cfg"]
        if "upernet" not in config["model"] or rules["num_layers"] != (12 if config["backbone_depths"][2] > 9 else 6):
            continue
        with torch.device("meta"):
            network = build_network(config["model"].replace("upernet", "convnext"), "upernet", 150, aux_kwargs={})
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


def test_layer_decay_of_convnext_v2_by_hand():
    """Stage-wise, of ten blocks in stage 3: stem and downsampling 0.9^13, the stages 0.9^12 to 0.9^9, all else 1."""
    body = {"depths": (1, 1, 10, 1), "dims": (8, 16, 24, 32)}
    network = tiny("convnextv2_atto", "upernet", backbone_kwargs=body, aux_kwargs={})
    assigner = layer_decay_assigner(network, 0.9, "stage_wise")
    scales = {
        "backbone.stem_0.weight": 13, "backbone.stages_3.downsample.1.weight": 13,
        "backbone.stages_0.blocks.0.mlp.grn.weight": 12, "backbone.stages_2.blocks.9.mlp.grn.bias": 10,
        "backbone.stages_3.blocks.0.conv_dw.weight": 9,
        "feature_norms.0.weight": 0, "decode_head.conv5.4.weight": 0, "auxiliary_head.conv5.0.weight": 0,
    }  # fmt: skip
    assert set(scales) <= {name for name, _ in network.named_parameters()}
    found = {name: assigner.get_scale(assigner.get_layer_id(name)) for name in scales}
    assert found == pytest.approx({name: 0.9**power for name, power in scales.items()}, rel=1e-12)
    groups = get_parameter_groups(network, 0.05, (), assigner.get_layer_id, assigner.get_scale)
    free = {id(parameter) for group in groups if not group["weight_decay"] for parameter in group["params"]}
    assert all(id(parameter) in free for name, parameter in network.named_parameters() if ".grn." in name)


def test_layer_decay_for_convnext_alone_is_refused_elsewhere():
    with pytest.raises(ValueError, match="is for ConvNeXt"):
        layer_decay_assigner(tiny("vit_tiny_patch16_224", "fcn"), 0.9, "stage_wise")
