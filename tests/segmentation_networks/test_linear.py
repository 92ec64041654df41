"""The linear probe: what it computes, what it reads of each kind of backbone, and that a frozen backbone stays as it is."""

import pytest
import timm
import torch
from conftest import forked
from safetensors.torch import load_file
from tiny_networks import BACKBONES, one_thread, tiny  # noqa: F401, a fixture

from segmentation_networks.linear import LinearHead
from utils.model.processes import fit_to_hardware

DINO = {"depth": 4, "embed_dim": 48, "num_heads": 2}


def test_logits_are_dropout_norm_and_a_linear_map_of_the_last_map():
    head = LinearHead([4, 4, 4, 6], 3).train()
    assert head.classifier.weight.std().item() == pytest.approx(0.01, rel=0.5) and not head.classifier.bias.any()
    assert isinstance(head.dropout, torch.nn.Dropout2d) and head.dropout.p == 0.1 and not head.align_corners
    head.dropout.p, x = 0.0, torch.randn(2, 6, 5, 5)
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
    expected = torch.einsum("kc,bchw->bkhw", head.classifier.weight[:, :, 0, 0], (x - mean) / (variance + 1e-5).sqrt())
    torch.testing.assert_close(head([None, None, None, x]), expected)


def test_two_maps_stand_side_by_side_at_the_size_of_the_finer():
    head = LinearHead([4, 4, 2, 3], 3, maps=2).eval()
    fine, coarse = torch.randn(1, 2, 4, 4), torch.randn(1, 3, 2, 2)
    assert head.stages == (2, 3) and head([None, None, fine, coarse]).shape == (1, 3, 4, 4)
    with torch.no_grad():  # the last channel of the coarse map alone
        head.classifier.weight.copy_(torch.eye(5)[4:].expand(3, 5)[:, :, None, None])
    between = torch.nn.functional.interpolate(coarse[:, 2:], (4, 4), mode="bilinear")
    torch.testing.assert_close(head([None, None, fine, coarse])[:, :1], between / (1 + 1e-5) ** 0.5)


def test_a_vits_map_is_that_of_its_last_block_after_the_last_norm():
    network = tiny("vit_small_patch16_dinov3", "linear", backbone_kwargs=DINO, input_size=64).eval()
    whole = timm.create_model("vit_small_patch16_dinov3", **DINO, num_classes=0, img_size=64).eval()
    with torch.no_grad():
        network.backbone.model.norm.weight.normal_()
    whole.load_state_dict(network.backbone.model.state_dict())
    images = torch.randn(2, 3, 64, 64)
    tokens = whole.forward_features(images)[:, 5:]  # class token and four registers before them
    torch.testing.assert_close(network.features(images)[3], tokens.transpose(1, 2).unflatten(2, (4, 4)))
    assert network.feature_pyramid is None and network.feature_norms is None


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_frozen_backbone_has_no_gradient_and_no_training_mode(backbone):
    network = fit_to_hardware(tiny(backbone, "linear", drop_path=0.5, input_size=64), freeze="backbone").train()
    before = {name: tensor.clone() for name, tensor in network.backbone.state_dict().items()}
    network(torch.randn(2, 3, 64, 64))["logits"].square().sum().backward()
    learning = [name for name, parameter in network.named_parameters() if parameter.grad is not None]
    assert learning == [f"decode_head.{name}" for name in ("norm.weight", "norm.bias", "classifier.weight", "classifier.bias")]
    assert not any(module.training for module in network.backbone.modules()) and network.decode_head.norm.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.backbone.state_dict().items())


SCENE = (
    "--model linear --max_updates 2 --warmup_epochs 0 --crop_size 64 --batch_size 4 --disable_eval --report_to none --backbone"
)


@pytest.mark.slow
def test_a_run_says_what_is_no_probe_and_a_frozen_one_changes_the_head_alone(tmp_path):
    words = [*SCENE.split(), "vit_small_patch16_dinov3", "--backbone_kwargs", "depth=4", "embed_dim=24", "num_heads=2"]
    first = forked("train_segmentation", *words, "--output_dir", str(tmp_path / "first"))
    assert first.returncode == 0, first.stderr
    assert "--freeze backbone makes it a linear probe" in first.stdout
    frozen = [*words, "--freeze", "backbone"]
    refused = forked("train_segmentation", *frozen)
    assert refused.returncode == 2 and "--freeze backbone needs weights to start from" in refused.stderr
    probe = forked(
        "train_segmentation", *frozen, "--finetune", str(tmp_path / "first/last"), "--output_dir", str(tmp_path / "probe")
    )
    assert probe.returncode == 0 and "linear probe" not in probe.stdout, probe.stderr
    start, end = (load_file(tmp_path / name / "last/model.safetensors") for name in ("first", "probe"))
    assert {name for name in start if not torch.equal(start[name], end[name])} >= {"decode_head.classifier.weight"}
    assert not [name for name in start if name.startswith("backbone.") and not torch.equal(start[name], end[name])]
