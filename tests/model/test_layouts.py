"""Files that people hold: each layout, written from a model whose weights are known, gives the same logits."""

import warnings

import pytest
import timm
import torch
import torchvision
from published_convnext import noisy, timm_model
from safetensors.torch import save_file
from timm.models import adapt_input_conv
from tiny_networks import one_thread  # noqa: F401, a fixture
from torchvision.models import swin_transformer

from segmentation_networks.network import build_network
from utils.cli.errors import InputError
from utils.model.segmentation_weights import load_segmentation_weights
from utils.model.weights import load_weights

VIT = {"depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 5}
SWIN = {"depths": (2, 2), "embed_dim": 16, "num_heads": (1, 2), "num_classes": 5}


def drawn(model):
    """`model` with every parameter and statistic drawn anew."""
    generator = torch.Generator().manual_seed(0)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return noisy(model)


def images(size, channels=3):
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def check_equal(source, target, size=32):
    expected, got = source.eval()(images(size)), target.eval()(images(size))
    assert expected.std() > 1e-3
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def saved(tensors, folder):
    path = folder / "w.pth"
    torch.save(tensors, path)
    return path


# --- torchvision --------------------------------------------------------------------------------------------------------


def tv(name, **options):
    return getattr(torchvision.models, name)(weights=None, num_classes=5, **options)


def tv_convnext():
    sizes = ((8, 16, 2), (16, 24, 1), (24, 32, 3), (32, None, 1))
    blocks = [torchvision.models.convnext.CNBlockConfig(*size) for size in sizes]
    return torchvision.models.ConvNeXt(blocks, num_classes=5)


def tv_swin(block=None, merge=None):
    return torchvision.models.SwinTransformer(
        [4, 4], 16, [2, 2], [1, 2], [8, 8], num_classes=5, **({"block": block, "downsample_layer": merge} if block else {})
    )


TORCHVISION = {
    "convnext_tiny": (tv_convnext, {"depths": (2, 1, 3, 1), "dims": (8, 16, 24, 32)}, 64),
    "swin_tiny_patch4_window7_224": (tv_swin, SWIN | {"window_size": 8, "img_size": 64}, 64),
    "swinv2_tiny_window8_256": (
        lambda: tv_swin(swin_transformer.SwinTransformerBlockV2, swin_transformer.PatchMergingV2),
        SWIN | {"img_size": 64},
        64,
    ),
    "vit_base_patch16_224": (
        lambda: torchvision.models.VisionTransformer(32, 16, 2, 2, 32, 128, num_classes=5),
        VIT | {"img_size": 32},
        32,
    ),
    "efficientnet_b0": (lambda: tv("efficientnet_b0"), {}, 64),
    "efficientnetv2_s": (lambda: tv("efficientnet_v2_s"), {"bn_eps": 1e-3}, 64),
    "mobilenetv3_small_100": (lambda: tv("mobilenet_v3_small"), {"bn_eps": 1e-3}, 64),
    "mobilenetv3_large_100": (lambda: tv("mobilenet_v3_large"), {"bn_eps": 1e-3}, 64),
    "regnety_004": (lambda: tv("regnet_y_400mf"), {}, 64),
    "resnet18": (lambda: tv("resnet18"), {}, 64),
}  # fmt: skip


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_files(tmp_path, name):
    make, options, size = TORCHVISION[name]
    source = drawn(make())
    target = timm.create_model(name, **{"num_classes": 5} | options)
    content = source.state_dict()
    if name == "regnety_004":  # its reference script saves the average as torch does, beside the model
        average = torch.optim.swa_utils.AveragedModel(source)
        content = {"model": {}, "model_ema": average.state_dict(), "epoch": 3}
    lines = load_weights(target, saved(content, tmp_path), model_key="model_ema|model")
    assert lines[2].endswith("new none")
    left = "left out 1 (n_averaged)" if name == "regnety_004" else "left out none"
    assert left in lines[2] or ("swin" in name and "relative_position_index" in lines[2])
    check_equal(source, target, size)


def test_what_torchvision_counts_otherwise_is_refused(tmp_path):
    path = saved(tv("mobilenet_v3_small").state_dict(), tmp_path)
    with pytest.raises(InputError, match=r"BatchNorm's eps was 0.001, the model's is 1e-05: give --model_kwargs bn_eps=0.001"):
        load_weights(timm.create_model("mobilenetv3_small_100", num_classes=5), path)
    with pytest.raises(InputError, match="take the one without tf_"):
        load_weights(timm.create_model("tf_mobilenetv3_small_100", num_classes=5), path)
    with pytest.raises(InputError, match="missing .* unexpected"):
        load_weights(timm.create_model("efficientnet_b0", num_classes=5), path)


@pytest.mark.parametrize("name", ["convnext_tiny", "efficientnet_b0", "regnety_004", "swin_tiny_patch4_window7_224"])
def test_torchvision_files_give_a_backbone(tmp_path, name):
    make, options, size = TORCHVISION[name]
    source = drawn(make())
    options = {key: value for key, value in options.items() if key not in ("num_classes", "img_size")}
    if name.startswith("swin"):  # timm's options of the size would be others for a backbone
        source, options, size = drawn(torchvision.models.swin_t(num_classes=5)), {}, 224
    whole = timm.create_model(name, num_classes=5, **options)
    path = saved(source.state_dict(), tmp_path)
    load_weights(whole, path)
    network = build_network(name, "fcn", 3, backbone_kwargs=options, input_size=size, head_kwargs={"channels": 4})
    lines = load_segmentation_weights(network, path)
    assert ", for the backbone; new: decode_head" in lines[1]
    plain = timm.create_model(name, features_only=True, **options).eval()
    state = {n.removeprefix("backbone."): t for n, t in network.state_dict().items() if n.startswith("backbone.")}
    plain.load_state_dict(state)
    kept = {n.replace(".", "_", 1): t for n, t in whole.state_dict().items()} | whole.state_dict()
    assert state and all(torch.equal(tensor, kept[n]) for n, tensor in state.items())


# --- pretraining, positions, channels -----------------------------------------------------------------------------------


def resampled(positions, size, prefix=1):
    return timm.layers.resample_abs_pos_embed(positions, [size, size], num_prefix_tokens=prefix)


def test_dinov2_files(tmp_path):
    source = drawn(timm.create_model("vit_small_patch14_dinov2", img_size=56, depth=2, embed_dim=32, num_heads=2))
    tensors = source.state_dict() | {"mask_token": torch.zeros(1, 32)}
    target = timm.create_model("vit_small_patch14_dinov2", img_size=28, depth=2, embed_dim=32, num_heads=2, num_classes=5)
    lines = load_weights(target, saved(tensors, tmp_path))
    assert lines[1] == "timm names, resized pos_embed; head new" and "left out 1 (mask_token)" in lines[2]
    expected = resampled(source.pos_embed, 2)
    torch.testing.assert_close(target.pos_embed, expected)
    same = {n: t for n, t in source.state_dict().items() if n != "pos_embed"}
    assert all(torch.equal(target.state_dict()[name], tensor) for name, tensor in same.items())


def test_dinov2_files_with_registers(tmp_path):
    options = {"img_size": 28, "depth": 2, "embed_dim": 32, "num_heads": 2}
    source = drawn(timm.create_model("vit_small_patch14_reg4_dinov2", **options))
    tensors = source.state_dict()  # under the names of DINOv2, whose class token has a position
    tensors["register_tokens"] = tensors.pop("reg_token")
    first = torch.randn(1, 1, 32)
    tensors["pos_embed"] = torch.cat([first, tensors["pos_embed"]], dim=1)
    tensors["cls_token"] = tensors["cls_token"] - first
    target = timm.create_model("vit_small_patch14_reg4_dinov2", **options)
    load_weights(target, saved(tensors | {"mask_token": torch.zeros(1, 32)}, tmp_path))
    check_equal(source, target, 28)


def test_dinov3_files(tmp_path):
    options = {"img_size": 32, "depth": 2, "embed_dim": 32, "num_heads": 2}
    source = drawn(timm.create_model("vit_small_patch16_dinov3", **options))
    tensors = {}
    for name, tensor in source.state_dict().items():
        name = name.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma").replace("reg_token", "storage_tokens")
        tensors[name] = tensor
    tensors |= {"rope_embed.periods": torch.ones(4), "mask_token": torch.zeros(1, 32)}
    tensors |= {f"blocks.{i}.attn.qkv.bias": torch.zeros(96) for i in range(2)}
    tensors |= {f"blocks.{i}.attn.qkv.bias_mask": torch.zeros(96) for i in range(2)}
    target = timm.create_model("vit_small_patch16_dinov3", **options)
    lines = load_weights(target, saved(tensors, tmp_path))
    assert lines[1] == "names converted by timm" and "new none" in lines[2] and "left out 6" in lines[2]
    check_equal(source, target)


@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize("decoder", [True, False])
def test_mae_pretraining_files(tmp_path, pool, decoder):
    source = drawn(timm.create_model("vit_base_patch16_224", img_size=32, **VIT | {"num_classes": 0}))
    tensors = source.state_dict()
    if decoder:
        names = (
            "mask_token",
            "decoder_pos_embed",
            "decoder_embed.weight",
            "decoder_blocks.0.norm1.weight",
            "decoder_pred.bias",
        )
        tensors |= {name: torch.zeros(3) for name in names}
    target = timm.create_model("vit_base_patch16_224", img_size=32, global_pool=pool, **VIT)
    lines = load_weights(target, saved({"model": tensors}, tmp_path))
    assert lines[1] == ("MAE checkpoint; decoder left out, head new" if decoder else "timm names; head new")
    norm = pool == "avg"
    left = 5 * decoder + 2 * norm
    assert f"left out {left or 'none'}" in lines[2] and f"new {2 + 2 * norm} (" in lines[2]
    assert ("fc_norm.weight" in lines[2]) == norm
    with torch.no_grad():
        theirs = source.blocks(source.norm_pre(source._pos_embed(source.patch_embed(images(32)))))
        ours = target.blocks(target.norm_pre(target._pos_embed(target.patch_embed(images(32)))))
    assert torch.equal(theirs, ours)


def test_swin_as_published_with_its_buffers(tmp_path):
    source = drawn(timm.create_model("swin_tiny_patch4_window7_224", **SWIN, window_size=4, img_size=32))
    tensors = {}
    for name, tensor in source.state_dict().items():  # as Swin's authors name it, downsampling at the end of a stage
        name = name.replace("layers.1.downsample", "layers.0.downsample").replace("head.fc.", "head.")
        tensors[name] = tensor
    tensors["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 16, 16)
    tensors["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.int64)
    target = timm.create_model("swin_tiny_patch4_window7_224", **SWIN, window_size=4, img_size=32)
    lines = load_weights(target, saved({"model": tensors}, tmp_path))
    assert lines[1] == "names converted by timm" and "left out 2 (layers.0.blocks.1.attn_mask" in lines[2]
    check_equal(source, target)


@pytest.mark.parametrize("name", ["vit_base_patch16_224", "beit_base_patch16_224", "swin_tiny_patch4_window7_224"])
def test_positions_of_another_input_size(tmp_path, name):
    options = SWIN if "swin" in name else VIT
    more = {"window_size": 4} if "swin" in name else {}
    source = drawn(timm.create_model(name, img_size=32, **options, **more))
    path = saved(source.state_dict(), tmp_path)
    target = timm.create_model(name, img_size=64, **options, **({"window_size": 8} if more else {}))
    lines = load_weights(target, path)
    assert "resized " in lines[1] and "left out none; new none" in lines[2]
    if name.startswith("vit"):
        torch.testing.assert_close(target.pos_embed, resampled(source.pos_embed, 4))
    with torch.no_grad():
        assert target.eval()(images(64)).isfinite().all()


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
@pytest.mark.parametrize("name", ["resnet18", "vit_base_patch16_224"])
def test_another_number_of_channels(tmp_path, name, channels):
    options = VIT | {"img_size": 32} if "vit" in name else {"num_classes": 5}
    source = drawn(timm.create_model(name, **options))
    target = timm.create_model(name, in_chans=channels, **options)
    lines = load_weights(target, saved(source.state_dict(), tmp_path))
    first = target.pretrained_cfg["first_conv"] + ".weight"
    assert lines[1].endswith(f"{first} for {channels} channels instead of 3")
    expected = adapt_input_conv(channels, source.state_dict()[first])
    assert torch.equal(target.state_dict()[first], expected)
    same = {n: t for n, t in source.state_dict().items() if n != first}
    assert all(torch.equal(target.state_dict()[n], tensor) for n, tensor in same.items())


# --- wrappers and files -------------------------------------------------------------------------------------------------

WRAPPED = ["model.", "net.", "module._orig_mod.", "_orig_mod.module.model.", "lightning"]


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_wrappers(tmp_path, wrapper):
    source, target = noisy(timm_model()), timm_model()
    prefix = "model." if wrapper == "lightning" else wrapper
    tensors = {prefix + name: tensor for name, tensor in source.state_dict().items()}
    content, left_out = tensors, "left out none"
    if wrapper == "lightning":
        tensors |= {"criterion.weight": torch.ones(10), "train_acc.confmat": torch.zeros(3)}
        content = {"pytorch-lightning_version": "2.4.0", "epoch": 3, "state_dict": tensors, "callbacks": {}, "loops": {}}
        left_out = "left out 2 (criterion.weight, train_acc.confmat)"
    torch.save(content, tmp_path / "w.ckpt")
    lines = load_weights(target, tmp_path / "w.ckpt")
    assert left_out in lines[2] and "new none" in lines[2]
    check_equal(source, target, 64)


def test_timms_checkpoint_says_that_the_average_is_there_too(tmp_path):
    source, average, target = noisy(timm_model()), noisy(timm_model()), timm_model()
    with torch.no_grad():
        average.head.fc.bias += 1
    content = {"epoch": 3, "arch": "x", "state_dict": source.state_dict(), "state_dict_ema": average.state_dict(), "version": 2}
    torch.save(content, tmp_path / "w.pth.tar")
    lines = load_weights(target, tmp_path / "w.pth.tar")
    assert lines[1].endswith("; state_dict_ema is there too: --model_key state_dict_ema")
    check_equal(source, target, 64)
    lines = load_weights(target, tmp_path / "w.pth.tar", model_key="state_dict_ema")
    assert "there too" not in lines[1]
    check_equal(average, target, 64)


def test_a_folder_with_pytorch_model_bin(tmp_path):
    source, target = noisy(timm_model()), timm_model()
    torch.save(source.state_dict(), tmp_path / "pytorch_model.bin")
    load_weights(target, tmp_path)
    check_equal(source, target, 64)
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "model.safetensors.index.json").write_text("{}")
    save_file({"a": torch.ones(1)}, tmp_path / "parts" / "model-00001-of-00002.safetensors")
    with pytest.raises(InputError, match="they lie in several files"):
        load_weights(target, tmp_path / "parts")


def test_programs_and_whole_models_are_refused_with_what_to_do(tmp_path):
    model = timm_model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(3, 4)).save(str(tmp_path / "script.pt"))
    with pytest.raises(InputError, match=r"TorchScript.*torch.jit.load\(FILE\).state_dict\(\)"):
        load_weights(model, tmp_path / "script.pt")
    for content in (model, {"model": model, "epoch": 3}):
        torch.save(content, tmp_path / "whole.pth")
        with pytest.raises(InputError, match=r"nothing of it was run; it is a whole pickled model: .*save model.state_dict"):
            load_weights(model, tmp_path / "whole.pth")
