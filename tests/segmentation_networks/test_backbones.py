"""Four feature maps out of every kind of timm's models, and gradient checkpointing of them."""

import pytest
import torch
import torch.nn.functional as F
from tiny_networks import one_thread, tiny  # noqa: F401, the first is a fixture

from utils.model.processes import fit_to_hardware

IMAGES = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("backbone", ["convnextv2_atto", "resnet18", "resnest14d", "mobilenetv3_small_050"])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_output_stride(backbone, output_stride):
    maps = tiny(backbone, "fpn", output_stride=output_stride).eval().features(IMAGES)
    strides = [min(stride, output_stride) for stride in (4, 8, 16, 32)]
    assert [tuple(x.shape[-2:]) for x in maps] == [(64 // stride, 96 // stride) for stride in strides]


def test_plain_backbones_go_through_a_simple_pyramid():
    network = tiny("vit_tiny_patch16_224", "upernet").eval()
    maps = network.features(IMAGES)
    assert [tuple(x.shape[1:]) for x in maps] == [(8, 16, 24), (16, 8, 12), (32, 4, 6), (32, 2, 3)]
    blocks = network.backbone(IMAGES)[-1]
    assert torch.equal(maps[2], blocks) and torch.equal(maps[3], F.max_pool2d(blocks, 2))
    assert {"backbone.model.pos_embed", "backbone.model.cls_token"} <= network.no_weight_decay()
    single = tiny("vit_tiny_patch16_224", "fcn").eval().features(IMAGES)
    assert [x is None for x in single] == [True, True, True, False]  # no parameters without a gradient


@pytest.mark.parametrize("backbone, multiple", [("vit_tiny_patch16_224", 16), ("swin_tiny_patch4_window7_224", 4)])
def test_images_of_any_size_are_padded_for_patches(backbone, multiple):
    network, images = tiny(backbone, "psp").eval(), torch.randn(1, 3, 70, 101)
    padded = F.pad(images, (0, -101 % multiple, 0, -70 % multiple))
    assert padded.shape != images.shape
    assert torch.equal(network(images)["logits"], network(padded)["logits"][..., :70, :101])


def test_convnext_features_are_normed_per_stage():
    network = tiny("convnextv2_atto", "upernet").eval()
    for raw, normed in zip(network.backbone(IMAGES), network.features(IMAGES), strict=True):
        expected = F.layer_norm(raw.permute(0, 2, 3, 1), raw.shape[1:2], eps=1e-6).permute(0, 3, 1, 2)
        torch.testing.assert_close(normed, expected)
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


@pytest.mark.parametrize("backbone", ["convnextv2_atto", "vit_tiny_patch16_224"])  # an extractor, and one that holds a model
def test_gradient_checkpointing_changes_no_gradient(backbone):
    torch.manual_seed(0)
    network = tiny(backbone, "fpn", head_kwargs={"dropout": 0.0})
    gradients = []
    for checkpointing in (False, True):
        fit_to_hardware(network, grad_checkpointing=checkpointing)
        network.zero_grad()
        network(IMAGES.expand(2, -1, -1, -1))["logits"].square().mean().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backbone", ["hrnet_w18_small", "dla46_c"])
def test_a_backbone_that_joins_its_maps_takes_images_of_any_size(backbone):
    network = tiny(backbone, "fpn", backbone_kwargs={}).eval()
    assert network(torch.zeros(1, 3, 45, 67), only_logits=True)["logits"].shape[2:] == (45, 67)
