"""The optimizer of a run: layers of backbones, rates of heads, what is said."""

import argparse
import re

import pytest
import timm
import torch
from tiny_networks import tiny

from optim_factory import layer_decay_assigner
from segmentation_networks.network import build_network
from utils.cli.errors import InputError
from utils.model.optimizer import build_optimizer

BACKBONES_WITH_LAYERS = [
    "resnet18", "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224", "vit_small_patch16_dinov3", "efficientvit_b0",
    "fastvit_t8", "caformer_s18", "hrnet_w18_small", "legacy_xception", "efficientnet_b0",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:layer decay")
@pytest.mark.parametrize("name", BACKBONES_WITH_LAYERS)
def test_a_backbone_has_the_layer_ids_of_its_recognition_model(name):
    with torch.device("meta"):
        whole = timm.create_model(name, num_classes=10)
        network = build_network(name, "fcn", 3, head_kwargs={"channels": 4}, aux_kwargs={}, input_size=224)
    theirs, ours = layer_decay_assigner(whole, 0.9), layer_decay_assigner(network, 0.9)
    known = {param: theirs.get_layer_id(param) for param, _ in whole.named_parameters()}
    joined = {re.sub(r"[._]", "", param): layer for param, layer in known.items()}  # stages_0.blocks is stages.0.blocks there
    for param, _ in network.named_parameters():
        if param.startswith("backbone."):
            plain = re.sub(r"^backbone\.(?:(?:model|body)\.)?", "", param)
            assert ours.get_layer_id(param) == joined[re.sub(r"[._]", "", plain)], param
        else:
            assert ours.get_layer_id(param) == len(ours.values) - 1 == len(theirs.values) - 1
            assert ours.get_scale(ours.get_layer_id(param)) == 1.0


def settings(**more):
    return argparse.Namespace(**{
        "opt": "adamw", "lr": 0.1, "weight_decay": 0.05, "weight_decay_end": None, "momentum": 0.9, "opt_eps": None,
        "opt_betas": None, "layer_decay": 0.5, "layer_decay_type": "stage_wise", "layer_decay_min_scale": 0.0, **more,
    })  # fmt: skip


def test_layer_decay_of_any_backbone_with_the_heads_rate_on_top():
    network, said = tiny("resnet18", "fcn"), []
    optimizer, rows = build_optimizer(network, settings(), head_lr_scale=10.0, say=said.append)
    assert said == ["note: layer_decay_type stage_wise is for ConvNeXt: an id per block (single) instead"]
    names = {param: name for name, param in network.named_parameters()}
    scales = {names[param]: group["lr_scale"] for group in optimizer.param_groups for param in group["params"]}
    assert {scale for name, scale in scales.items() if not name.startswith("backbone.")} == {10.0}
    last = max(row["id"] for row in rows)
    assert scales["backbone.conv1.weight"] == 0.5**last and max(v for n, v in scales.items() if n[:3] == "bac") == 0.5
    floor = build_optimizer(network, settings(layer_decay_min_scale=0.1), head_lr_scale=10.0, say=said.append)[0]
    assert min(group["lr_scale"] for group in floor.param_groups) == 0.1


def test_layers_of_eomt_are_the_vits_and_its_backbone_warms_up_late():
    network = tiny("vit_tiny_patch16_224", "eomt", head_kwargs={"blocks": 2})
    optimizer, _ = build_optimizer(network, settings(backbone_warmup_steps=3), head_lr_scale=1.0, say=lambda line: None)
    names = {param: name for name, param in network.named_parameters()}
    found = {
        names[param]: (group["lr_scale"], group["late_warmup"]) for group in optimizer.param_groups for param in group["params"]
    }
    assert {value for name, value in found.items() if name.startswith("decode_head.")} == {(1.0, 0)}
    assert found["backbone.norm.weight"] == found["backbone.blocks.3.mlp.fc2.weight"] == (0.5, 3)
    assert found["backbone.blocks.0.attn.qkv.weight"] == (0.5**4, 3) and found["backbone.patch_embed.proj.weight"] == (
        0.5**5,
        3,
    )


def test_other_rules_for_convnext_are_refused_for_other_backbones():
    with pytest.raises(InputError, match="layer_decay_type layer_wise is for ConvNeXt"):
        build_optimizer(tiny("resnet18", "fcn"), settings(layer_decay_type="layer_wise"), head_lr_scale=1.0)


@pytest.mark.parametrize(
    ("opt", "betas", "takes"),
    [
        ("adamw", [0.9], "another number"), ("adamw", [0.9, 0.9, 0.9], "2, such as 0.9 0.999"),
        ("adan", [0.9, 0.9], "another number"), ("lookahead_adamw", [0.9] * 4, "2, such as"),
    ],
)  # fmt: skip
def test_betas_of_another_length_than_the_optimizer_takes(opt, betas, takes):
    with pytest.raises(InputError, match=f"--opt_betas .*: --opt {opt} takes {takes}"):
        build_optimizer(torch.nn.Linear(2, 2), settings(opt=opt, opt_betas=betas, layer_decay=1.0))
