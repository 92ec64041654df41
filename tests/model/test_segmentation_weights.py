"""Weights of segmentation networks: own files, PyTorch-Encoding's, UPerNet-ConvNeXt's, and recognition models'."""

import json
import re
import zipfile

import pytest
import timm
import torch
from conftest import GOLDEN
from published_convnext import SIZES, Original, noisy, sparse
from published_upernet import EncoderDecoder
from safetensors.torch import save_file
from tiny_networks import BACKBONES, one_thread, tiny  # noqa: F401, the second is a fixture

from segmentation_networks.network import build_network, classifier_prefixes
from utils.cli.errors import InputError
from utils.model.segmentation_weights import load_segmentation_weights, mm_name, open_network
from utils.model.weights import load_weights

IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
CONVNEXT = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}


def drawn(network):
    """`network` with every parameter and statistic drawn anew."""
    generator = torch.Generator().manual_seed(0)
    for name, buffer in network.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return noisy(network)


def same(a, b):
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def shown(tensors):
    """Tensors of the same shapes that hold one number each: files of a few kilobytes."""
    return {name: torch.zeros(()).expand(shape) for name, shape in tensors.items()}


# --- own files --------------------------------------------------------------------------------------------------------


ENCNET = {"head_kwargs": {"se_loss": True}, "aux_kwargs": {}}


@pytest.mark.parametrize("kind", ["folder", "module.", "ema"])
def test_own_files(tmp_path, kind):
    source, target = drawn(tiny("resnet18", "encnet", **ENCNET)), tiny("resnet18", "encnet", **ENCNET)
    tensors, path = source.state_dict(), tmp_path / "w.pth"
    if kind == "folder":
        path = tmp_path
        save_file(tensors, path / "model.safetensors")
    elif kind == "module.":
        torch.save({"model": {f"module._orig_mod.{name}": tensor for name, tensor in tensors.items()}}, path)
    else:
        torch.save({"model": target.state_dict(), "model_ema": tensors}, path)
    lines = load_segmentation_weights(target, path, model_key="model_ema|model")
    count = f"{len(tensors)} tensors loaded; left out none; new none"
    assert lines == [str(path), "segmentation checkpoint of this project", count]
    assert same(source.state_dict(), target.state_dict())


def test_classifiers_of_another_size_start_anew(tmp_path):
    source, target = drawn(tiny("resnet18", "encnet", 5, **ENCNET)), tiny("resnet18", "encnet", 8, **ENCNET)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    lines = load_segmentation_weights(target, tmp_path / "w.pth")
    classifiers = classifier_prefixes(target)
    assert classifiers == ("decode_head.conv6.1.", "decode_head.encmodule.selayer.", "auxiliary_head.conv5.4.")
    assert lines[1].endswith("; new: decode_head.conv6.1, decode_head.encmodule.selayer, auxiliary_head.conv5.4")
    assert "left out 6 (" in lines[2] and "new 6 (" in lines[2]
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, before[name] if name.startswith(classifiers) else source.state_dict()[name])


def test_what_only_training_needs_may_be_absent_on_either_side(tmp_path):
    trained, plain = drawn(tiny("resnet18", "encnet", **ENCNET)), tiny("resnet18", "encnet")
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    lines = load_segmentation_weights(plain, tmp_path / "w.pth")
    extra = [name for name in trained.state_dict() if name not in plain.state_dict()]
    assert f"left out {len(extra)} (" in lines[2] and lines[2].endswith("new none")
    assert torch.equal(plain.eval()(IMAGES)["logits"], trained.eval()(IMAGES)["logits"])
    torch.save(plain.state_dict(), tmp_path / "w.pth")
    lines = load_segmentation_weights(tiny("resnet18", "encnet", **ENCNET), tmp_path / "w.pth")
    assert lines[1].endswith("new: decode_head.encmodule.selayer, auxiliary_head")
    assert "left out none" in lines[2] and f"new {len(extra)} (auxiliary_head.conv5.0.weight," in lines[2]


def test_anything_else_is_refused_and_changes_nothing(tmp_path):
    torch.save(tiny("resnet18", "psp").state_dict(), tmp_path / "w.pth")
    narrow = tiny("resnet18", "psp", head_kwargs={"channels": 5})
    for target in (tiny("resnet18", "deeplab"), tiny("convnextv2_atto", "psp"), narrow):
        before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
        with pytest.raises(InputError, match=r"w.pth \(segmentation.*do not fit the network: missing.*unexpected") as error:
            load_segmentation_weights(target, tmp_path / "w.pth")
        assert "\n" not in str(error.value) and same(before, target.state_dict())
    # four branches and the 3x3 convolution, each of a convolution and four of a norm; the classifier starts anew
    assert "of another shape 25 (decode_head.conv5.0.conv1.0.weight" in str(error.value)
    with pytest.raises(InputError, match="w.pth: this is a segmentation network"):
        load_weights(timm.create_model("resnet18"), tmp_path / "w.pth")
    with pytest.raises(InputError, match="no such file"):
        load_segmentation_weights(target, tmp_path / "none.pth")


# --- PyTorch-Encoding -------------------------------------------------------------------------------------------------


def encoding_name(name):
    for ours, published in (("backbone.", "pretrained."), ("decode_head.", "head."), ("auxiliary_head.", "auxlayer.")):
        name = published + name.removeprefix(ours) if name.startswith(ours) else name
    return name


@pytest.mark.parametrize("layout", ["state_dict", "module.", "zip"])
def test_pytorch_encoding_files(tmp_path, layout):
    options = {"aux_kwargs": {}, "head_kwargs": {"se_loss": True, "lateral": True}, "output_stride": 8}
    source, target = drawn(tiny("resnest14d", "encnet", **options)), tiny("resnest14d", "encnet", **options)
    tensors = {encoding_name(name): tensor for name, tensor in source.state_dict().items()}
    tensors |= {"pretrained.fc.weight": torch.ones(1000, 32), "pretrained.fc.bias": torch.ones(1000)}
    counters = {name for name in tensors if name.endswith("num_batches_tracked")}
    path = tmp_path / "w.pth.tar"
    if layout == "state_dict":
        torch.save({"epoch": 1, "state_dict": tensors, "optimizer": {}, "best_pred": 0.4}, path)
    elif layout == "module.":  # older, without counters of batches
        torch.save({f"module.{name}": tensor for name, tensor in tensors.items() if name not in counters}, path)
    else:
        torch.save(tensors, tmp_path / "w.pth")
        path = tmp_path / "w.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(tmp_path / "w.pth", "w.pth")
    lines = load_segmentation_weights(target, path)
    new = counters if layout == "module." else set()
    assert lines[1] == "PyTorch-Encoding segmentation checkpoint"
    loaded = f"{len(tensors) - 2 - len(new)} tensors loaded; left out 2 (pretrained.fc.weight, pretrained.fc.bias); new "
    assert lines[2].startswith(loaded + (f"{len(new)} (" if new else "none"))
    got, expected = target.eval()(IMAGES), source.eval()(IMAGES)
    assert same(got, expected) and set(got) == {"logits", "aux", "se"}


WHOLE = {  # published model -> head and options that make the same
    "FCN": ("fcn", {}),
    "PSP": ("psp", {}),
    "DeepLabV3": ("deeplab", {}),
    "EncNet": ("encnet", {}),
    "FCFPN": ("fpn", {}),
    "UperNet": (
        "upernet",
        {"channels": 256, "align_corners": True, "pyramid_channels": 512, "fusion_channels": 512},
    ),
}


@pytest.mark.parametrize("backbone", ["resnet50", "resnest50d"])
def test_published_names_and_shapes_fit(tmp_path, golden, backbone):
    groups = golden("1_param_groups/encoding_no_bn_wd_groups.json.gz")["cases"]
    published = next(
        {name for group in case["groups"] for name in group["params"]}
        for case in groups
        if case["config"]["model"] == backbone.removesuffix("d") and case["config"]["family"] == "encoding"
    )
    with torch.device("meta"):
        full = timm.create_model(backbone)
    assert published == {name for name, _ in full.named_parameters()}
    body = {f"pretrained.{name}": tensor.shape for name, tensor in full.state_dict().items()}
    for case in golden("5_heads/heads.json.gz")["cases"]:
        config, kind = case["config"], case["kind"].partition(" (whole model")[0]
        if kind not in WHOLE:
            continue
        head, options = WHOLE[kind]
        options = options | {key: True for key in ("se_loss", "lateral", "with_global") if config.get(key)}
        with torch.device("meta"):
            network = build_network(
                backbone, head, config["nclass"], output_stride=8 if config.get("lateral") else None, head_kwargs=options,
                aux_kwargs={} if config["aux"] else None,
            )  # fmt: skip
        tensors = shown(body | case["state_dict"])
        torch.save(tensors, tmp_path / "w.pth")
        lines = load_segmentation_weights(network, tmp_path / "w.pth")
        left_out = "left out 2 (pretrained.fc.weight, pretrained.fc.bias); new none"
        assert lines[2] == f"{len(tensors) - 2} tensors loaded; {left_out}"
        assert len(tensors) - 2 == len(network.state_dict())


# --- UPerNet-ConvNeXt as mmsegmentation saves it -----------------------------------------------------------------------


@pytest.mark.parametrize("key", ["state_dict", "model", "module."])
def test_upernet_convnext_files(tmp_path, key):
    source = drawn(EncoderDecoder(**CONVNEXT, classes=7, channels=12, aux_channels=10))
    tensors = source.state_dict()
    content = {f"module.{name}": x for name, x in tensors.items()} if key == "module." else {key: tensors, "meta": {"iter": 1}}
    torch.save(content, tmp_path / "w.pth")
    target = build_network(
        "convnext_tiny", "upernet", 7, head_kwargs={"channels": 12}, aux_kwargs={"channels": 10}, backbone_kwargs=CONVNEXT
    )
    lines = load_segmentation_weights(target, tmp_path / "w.pth")
    assert lines[1] == "mmsegmentation UPerNet checkpoint"
    assert lines[2] == f"{len(tensors)} tensors loaded; left out none; new none"
    assert len(tensors) == len(target.state_dict())
    with torch.no_grad():
        expected, got = source(IMAGES), target.eval()(IMAGES)
    for name in ("logits", "aux"):
        assert expected[name].std() > 0.1
        torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-5)


def test_upernet_convnext_of_other_classes_and_without_auxiliary_head(tmp_path):
    source = drawn(EncoderDecoder(**CONVNEXT, classes=7, channels=12, aux_channels=10))
    torch.save({"state_dict": source.state_dict()}, tmp_path / "w.pth")
    target = build_network("convnext_tiny", "upernet", 3, head_kwargs={"channels": 12}, backbone_kwargs=CONVNEXT)
    lines = load_segmentation_weights(target, tmp_path / "w.pth")
    assert lines[1] == "mmsegmentation UPerNet checkpoint; new: decode_head.conv5.4"
    # the classifier's 2 tensors and all 8 of the auxiliary head
    assert "left out 10 (" in lines[2] and "new 2 (decode_head.conv5.4.bias, decode_head.conv5.4.weight)" in lines[2]
    three = {"state_dict": source.state_dict() | {"decode_head.fpn_bottleneck.conv.weight": torch.ones(12, 3, 3, 3)}}
    torch.save(three, tmp_path / "w.pth")
    with pytest.raises(InputError, match="expected shapes"):
        load_segmentation_weights(target, tmp_path / "w.pth")


@pytest.mark.parametrize("size", ["convnext_tiny", "convnext_xlarge"])
def test_a_size_of_upernet_convnext_fits(tmp_path, size):
    with torch.device("meta"):
        published = EncoderDecoder(*SIZES[size], classes=150).state_dict()
        network = build_network(size, "upernet", 150, aux_kwargs={"channels": 256})
    torch.save({"state_dict": shown({name: tensor.shape for name, tensor in published.items()})}, tmp_path / "w.pth")
    lines = load_segmentation_weights(network, tmp_path / "w.pth")
    assert lines[2] == f"{len(network.state_dict())} tensors loaded; left out none; new none"


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="needs the published code's numbers")
@pytest.mark.parametrize("size", ["tiny", "base"])
def test_names_are_the_published_ones(golden, size):
    case = next(
        c for c in golden("2_mm_groups/mm_layer_decay_groups.json.gz")["cases"] if c["config"]["model"] == f"upernet_{size}"
    )
    published = {name for group in case["groups"] for name in group["param_names"]}
    with torch.device("meta"):
        assert published == {name for name, _ in EncoderDecoder(*SIZES[f"convnext_{size}"], classes=150).named_parameters()}
        ours = {name for name, _ in build_network(f"convnext_{size}", "upernet", 150, aux_kwargs={}).named_parameters()}
    assert {mm_name(name, ours) for name in published} == ours and len(published) == len(ours)


# --- recognition models -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("v2, layout", [(False, "dense"), (True, "dense"), (True, "fcmae")])
def test_convnext_recognition_files_give_the_backbone(tmp_path, v2, layout):
    source = noisy(Original(*CONVNEXT.values(), v2))
    tensors = source.state_dict()
    torch.save({"model": sparse(tensors) if layout == "fcmae" else tensors}, tmp_path / "w.pth")
    name = "convnextv2_atto" if v2 else "convnext_tiny"
    network = tiny(name, "upernet", aux_kwargs={}, backbone_kwargs=CONVNEXT).eval()
    heads = {n: x.clone() for n, x in network.state_dict().items() if not n.startswith("backbone.")}
    lines = load_segmentation_weights(network, tmp_path / "w.pth")
    family = "ConvNeXt V2" if v2 else "ConvNeXt"
    what = f"{family} FCMAE checkpoint, sparse layout" if layout == "fcmae" else f"{family} checkpoint, original names"
    assert lines[1] == f"{what}, for the backbone; new: auxiliary_head, decode_head, feature_norms"
    body = [n for n in network.state_dict() if n.startswith("backbone.")]
    left_out = "left out 7 (mask_token" if layout == "fcmae" else "left out 4 (head.norm.weight"
    assert lines[2].startswith(f"{len(body)} tensors loaded; {left_out}") and f"; new {len(heads)} (" in lines[2]
    assert all(torch.equal(network.state_dict()[n], x) for n, x in heads.items())
    x = IMAGES
    with torch.no_grad():
        for downsample, stage, got in zip(source.downsample_layers, source.stages, network.backbone(IMAGES), strict=True):
            x = stage(downsample(x))
            torch.testing.assert_close(got, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_timm_recognition_files_give_the_backbone(tmp_path, backbone):
    source = drawn(timm.create_model(backbone, num_classes=10, **BACKBONES[backbone]))
    path = tmp_path / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in source.state_dict().items()}, path)
    network = tiny(backbone, "fcn")
    lines = load_segmentation_weights(network, path)
    left_out = int(re.search(r"left out (\d+)", lines[2])[1])
    body = {name: x for name, x in network.state_dict().items() if name.startswith("backbone.")}
    assert lines[2].startswith(f"{len(body)} tensors loaded") and len(body) + left_out == len(source.state_dict())
    assert "decode_head" in lines[1] and "auxiliary_head" not in lines[1]
    ours, theirs = list(body.values()), list(source.state_dict().values())
    assert all(any(a.shape == b.shape and torch.equal(a, b) for b in theirs) for a in ours)


def test_a_recognition_model_of_another_kind_is_refused(tmp_path):
    torch.save(timm.create_model("resnet18", **BACKBONES["resnet18"]).state_dict(), tmp_path / "w.pth")
    with pytest.raises(
        InputError, match=r"ResNet checkpoint, for the backbone\) do not fit the network: missing \d+ \(backbone"
    ):
        load_segmentation_weights(tiny("convnextv2_atto", "fcn"), tmp_path / "w.pth")
    deep = BACKBONES["resnet18"] | {"layers": (1, 1, 2, 1)}
    deeper = tiny("resnet18", "fcn", backbone_kwargs=deep)
    with pytest.raises(InputError, match=r"missing \d+ \(backbone.layer3.1.*unexpected none; of another shape none"):
        load_segmentation_weights(deeper, tmp_path / "w.pth")
    torch.save(timm.create_model("resnet18", **deep).state_dict(), tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"missing none; unexpected \d+ \(backbone.layer3.1"):
        load_segmentation_weights(tiny("resnet18", "fcn"), tmp_path / "w.pth")


# --- folders that open by themselves ----------------------------------------------------------------------------------


def test_a_folder_opens_in_the_form_of_today_and_of_older_runs(tmp_path):
    body = {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]}
    options = {"head_kwargs": {"channels": 16, "dropout": 0.3, "lateral": True}, "aux_kwargs": {"channels": 5, "dropout": 0.3}}
    network = {"backbone": "resnet18", "head": "encnet", "classes": 2, "output_stride": 8, "backbone_kwargs": body}
    older = network | {
        "channels": 16, "dropout": 0.3, "aux": True, "aux_channels": 5, "se_loss": False, "lateral": True, "codewords": None,
        "with_global": False, "atrous_rates": None,
    }  # fmt: skip
    trained = drawn(build_network(**network, **options))
    save_file(trained.state_dict(), tmp_path / "model.safetensors")
    rest = {"classes": ["a", "b"], "palette": [[0, 0, 0], [1, 1, 1]], "crop_size": 64, "base_size": 64, "transforms": "none"}
    for form in (network | options, older):
        (tmp_path / "config.json").write_text(json.dumps({"network": form, **rest}))
        opened, config = open_network(tmp_path)
        assert config["network"] == network | options
        assert same(opened(IMAGES), trained(IMAGES))
    for wrong, message in (
        (network | options | {"lateral": True}, "network: found"),
        (older | {"with_global": 0}, "found with_global"),
        (older | {"channels": 0}, "channels 0"),
        (older | {"head": "psp"}, "head psp takes"),
        (network | options | {"backbone": "hf-hub:timm/resnet18"}, "plain name"),
        (network | options | {"aux_kwargs": None, "head_kwargs": {"se_loss": True, "channels": 16}}, "do not fit|not those"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({"network": wrong, **rest}))
        with pytest.raises(InputError, match=message):
            open_network(tmp_path)
