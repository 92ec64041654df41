"""EoMT: shapes, what its masks hide from a query, and how its attention is unmasked."""

import pytest
import torch
from tiny_networks import one_thread, tiny  # noqa: F401, a fixture

from utils.cli.errors import InputError

VITS = {  # timm's name -> options; of each kind of tokens and positions
    "vit_tiny_patch16_224": {"depth": 4, "embed_dim": 32, "num_heads": 2},  # class token, learned positions
    "vit_small_patch14_reg4_dinov2": {"depth": 4, "embed_dim": 32, "num_heads": 2, "init_values": 0.5},  # registers
    "vit_small_patch16_dinov3": {
        "depth": 4,
        "embed_dim": 32,
        "num_heads": 2,
        "rope_rescale_coords": 2.0,
    },  # rotated in training
    "vit_base_patch16_rope_mixed_ape_224": {"depth": 4, "embed_dim": 48, "num_heads": 3},  # a rotation for each block
}


def network(backbone="vit_tiny_patch16_224", **options):
    torch.manual_seed(0)
    options = {"queries": 7, "blocks": 2} | options
    return tiny(backbone, "eomt", backbone_kwargs=VITS.get(backbone, {}), head_kwargs=options)


@pytest.mark.parametrize("backbone", VITS)
def test_images_of_any_size_give_logits_and_every_parameter_learns(backbone):
    model, images = network(backbone), torch.randn(2, 3, 44, 70)
    with torch.no_grad():
        logits = model.eval()(images)["logits"]
    assert logits.shape == (2, 5, 44, 70) and logits.isfinite().all()
    found = model.train()(images)["queries"]
    side = 3 * 4 if "patch16" in backbone else 4 * 2  # of the masks: a quarter of the padded height, or a seventh
    assert [(classes.shape, masks.shape[:3]) for classes, masks in found] == [((2, 7, 6), (2, 7, side))] * 3
    sum(classes.sum() + masks.sum() for classes, masks in found).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_logits_are_logarithms_of_the_published_scores():
    model, images = network().eval(), torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        [(classes, masks)] = model.predictions(images)
        masks = torch.nn.functional.interpolate(masks, (32, 48), mode="bilinear").sigmoid()
        expected = sum(classes[0, q].softmax(0)[:-1, None, None] * masks[0, q] for q in range(7))
        assert torch.allclose(model(images)["logits"][0].exp(), expected, rtol=1e-4)


def test_rotations_in_training_are_those_of_the_blocks_before():
    model, turned = network("vit_small_patch16_dinov3").train(), []
    for block in model.backbone.blocks:
        block.register_forward_pre_hook(lambda module, words, options: turned.append(options["rope"]), with_kwargs=True)
    model(torch.randn(1, 3, 32, 32))
    width = turned[0].shape[-1]
    assert torch.equal(turned[0], turned[2][7:]) and not torch.equal(turned[0], model.eval()._rotations((2, 2), 0))
    assert torch.equal(turned[2][:7], torch.tensor([[0.0] * (width // 2) + [1.0] * (width // 2)] * 7))


@pytest.mark.parametrize("share, seen", [(1.0, False), (0.0, True)])
def test_a_query_does_not_see_the_patches_outside_of_its_mask(share, seen):
    model = network(blocks=1).train()
    model.masked.fill_(share)
    tokens = torch.randn(1, 1 + 4, 32)
    masks = torch.full((1, 7, 8, 8), 5.0)
    masks[:, 3, :4, :4] = -5  # the first patch is outside of the mask of query 3
    head, classes = model.decode_head, []
    forward = head.forward
    head.forward = lambda *given: (forward(*given)[0], masks)
    for change in (0, 3):
        moved = tokens.clone()
        moved[:, 1] += change * torch.randn(32)
        model._tokens = lambda images, moved=moved: moved
        classes.append(model(torch.zeros(1, 3, 32, 32))["queries"][-1][0][0])
    changed = (classes[0] - classes[1]).abs().amax(1) > 1e-6
    assert changed.tolist() == [True] * 3 + [seen] + [True] * 3


def test_attention_is_unmasked_block_after_block():
    def shares(model, updates, at):
        schedule = model.follow(lambda update: update, updates)
        return [(schedule(update) == update) and [round(x, 4) for x in model.masked.tolist()] for update in at]

    half = round(0.5**0.9, 4)
    assert shares(network(), 40, (0, 10, 15, 20, 30)) == [[1, 1], [1, 1], [half, 1], [0, 1], [0, 0]]
    given = network(mask_from=(0, 0.25), mask_to=(0.1, 0.5))
    assert shares(given, 40, (0, 2, 4, 15, 20)) == [[1, 1], [half, 1], [0, 1], [0, half], [0, 0]]


@pytest.mark.parametrize("backbone, options, message", [
    ("swin_tiny_patch4_window7_224", {}, "head eomt reads plain ViTs, such as vit_small_patch16_dinov3; found backbone swin"),
    ("resnet18", {}, "head eomt reads plain ViTs"),
    ("vit_tiny_patch16_224", {"aux_kwargs": {}}, "leave out --aux and --output_stride"),
    ("vit_tiny_patch16_224", {"output_stride": 8}, "leave out --aux and --output_stride"),
    ("vit_tiny_patch16_224", {"head_kwargs": {"blocks": 4}}, "blocks 4: expected fewer than the 4 of the backbone"),
    ("vit_tiny_patch16_224", {"head_kwargs": {"queries": 0}}, "queries 0"),
    ("vit_tiny_patch16_224", {"head_kwargs": {"mask_from": (1, 2, 3, 4)}}, "mask_to None: expected 4 shares of the run each"),
    ("vit_tiny_patch16_224", {"head_kwargs": {"dropout": 0.1}}, "head eomt takes queries, blocks, mask_from, mask_to"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_line(backbone, options, message):
    with pytest.raises(InputError) as error:
        tiny(backbone, "eomt", **{"backbone_kwargs": VITS.get(backbone, {})} | options)
    assert message in str(error.value) and "\n" not in str(error.value)
