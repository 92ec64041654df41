"""Layer ids, parameter groups and optimizers against the published code's."""

import argparse
import re
import shutil
import subprocess
import sys
import warnings

import pytest
import timm
import torch
import torchvision
from conftest import ROOT

import optim_factory
from optim_factory import (
    LayerDecayValueAssigner,
    convnext_depths,
    create_optimizer,
    get_no_bn_wd_groups,
    get_num_layer_for_convnext,
    get_num_layer_for_convnext_single,
    get_num_layer_layer_wise,
    get_num_layer_stage_wise,
    get_parameter_groups,
    layer_decay_assigner,
    layers_in_order,
)


class Named(torch.nn.Module):
    """Parameters with any names and shapes, in the order given."""

    def __init__(self, parameters, device="meta"):
        super().__init__()
        self.listed = [
            (name, torch.nn.Parameter(torch.empty(shape, device=device), requires_grad=grad))
            for name, shape, grad in parameters
        ]

    def named_parameters(self, *_, **__):
        return iter(self.listed)

    def parameters(self, *_, **__):
        return iter(param for _, param in self.listed)


def names_of(model, groups):
    names = {id(param): name for name, param in model.named_parameters()}
    return [{**group, "params": [names[id(param)] for param in group["params"]]} for group in groups]


def check_groups(groups, expected):
    assert [group["params"] for group in groups] == [group["params"] for group in expected]
    for mine, theirs in zip(groups, expected, strict=True):
        assert mine["weight_decay"] == theirs["weight_decay"]
        if "lr_scale" in theirs:
            assert mine["lr_scale"] == pytest.approx(theirs["lr_scale"], rel=1e-12)


def original_parameters(golden, model):
    entry = next(m for m in golden("1_param_groups/names_to_timm.json.gz")["models"] if m["config"]["model"] == model)
    if entry["pairs"] is None:
        return [(name, shape, True) for name, shape in entry["original"]]
    return [(pair[0], pair[2], True) for pair in entry["pairs"]]


def published_assigner(config):
    if config["scheme"] == "none":
        return None
    layers = config["num_layers"]
    values = [config["layer_decay"] ** (layers + 1 - i) for i in range(layers + 2)]
    if config["family"] == "v1":
        return LayerDecayValueAssigner(values)
    return LayerDecayValueAssigner(values, config["depths"], config["scheme"].removeprefix("v2_"))


@pytest.mark.parametrize("family", ["v1", "v2"])
def test_groups_equal_published(golden, family):
    suffixes = (".bias",) if family == "v1" else (".bias", ".gamma", ".beta")
    for case in golden(f"1_param_groups/{family}_groups.json.gz")["cases"]:
        config = case["config"]
        if "isotropic" in config["model"] and config["scheme"] != "none":
            continue  # the one intended difference, below
        model = Named(original_parameters(golden, config["model"]))
        assigner = published_assigner(config)
        by_layer = (assigner.get_layer_id, assigner.get_scale) if assigner else (None, None)
        groups = get_parameter_groups(model, config["weight_decay"], (), *by_layer, no_decay_suffixes=suffixes)
        check_groups(names_of(model, groups), case["groups"])
        if assigner:
            assert assigner.values == pytest.approx(case["assigner_values"], rel=1e-12)


def test_layer_decay_of_isotropic_models_has_an_id_per_block(golden):
    names = [name for name, *_ in original_parameters(golden, "convnext_isotropic_small")]
    depths = convnext_depths(names)
    assert depths == (18,)
    ids = {name: get_num_layer_for_convnext_single(name, depths) for name in names}
    assert ids["stem.weight"] == 1 and ids["head.weight"] == ids["norm.weight"] == 19
    assert [ids[f"blocks.{i}.gamma"] for i in range(18)] == list(range(1, 19))
    assert [get_num_layer_for_convnext(f"blocks.{i}.gamma") for i in range(18)] == list(range(1, 19))
    model = Named([(name, (2, 2), True) for name in names])
    for kind in ("single", "group"):
        assigner = layer_decay_assigner(model, 0.8, kind)
        scales = [assigner.get_scale(assigner.get_layer_id(f"blocks.{i}.gamma")) for i in range(18)]
        assert scales == pytest.approx([0.8 ** (18 - i) for i in range(18)])


def test_rules_on_odd_names_equal_published(golden):
    data = golden("1_param_groups/rules_probe.json")
    for case in data["cases"]:
        config = case["config"]
        model = Named(data["config"]["parameters"])
        assigner = None
        if config["layer_decay"] is not None:
            kind = config["layer_decay_type"] or "group"
            layers = sum(config["depths"]) if kind == "single" else 12
            values = [config["layer_decay"] ** (layers + 1 - i) for i in range(layers + 2)]
            assigner = LayerDecayValueAssigner(values, config["depths"], kind)
        by_layer = (assigner.get_layer_id, assigner.get_scale) if assigner else (None, None)
        suffixes = (".bias",) if config["family"] == "v1" else (".bias", ".gamma", ".beta")
        groups = get_parameter_groups(model, config["weight_decay"], config["skip_list"], *by_layer, suffixes)
        check_groups(names_of(model, groups), case["groups"])


def test_no_bn_wd_equals_published(golden):
    for case in golden("1_param_groups/encoding_no_bn_wd_groups.json.gz")["cases"]:
        model = Named([(name, shape, True) for name, shape in case["shapes"].items()])
        check_groups(names_of(model, get_no_bn_wd_groups(model, case["config"]["weight_decay"])), case["groups"])


def test_segmentation_groups_equal_published(golden):
    for case in golden("2_mm_groups/mm_layer_decay_groups.json.gz")["cases"]:
        config, cfg = case["config"], case["config"]["paramwise_cfg"]
        decay = {name: group["weight_decay"] for group in case["groups"] for name in group["param_names"]}
        shapes = [(name, (2,) if decay[name] == 0 else (2, 2), True) for name in decay]
        # the file lists names by group: the model's own order puts the first of each group where the group stands
        model = Named(shapes)
        layers = cfg["num_layers"]
        values = [cfg["decay_rate"] ** (layers + 1 - i) for i in range(layers + 2)]
        assigner = LayerDecayValueAssigner(values, config["backbone_depths"], cfg.get("decay_type", "layer_wise"))
        groups = get_parameter_groups(model, config["weight_decay"], (), assigner.get_layer_id, assigner.get_scale)
        expected = [{**group, "params": group["param_names"]} for group in case["groups"]]
        check_groups(names_of(model, groups), expected)
        for mine, theirs in zip(names_of(model, groups), expected, strict=True):
            assert mine["lr_scale"] * config["base_lr"] == pytest.approx(theirs["lr"], rel=1e-12)


@pytest.mark.parametrize("size", ["convnext_tiny", "convnext_base", "convnextv2_atto", "convnextv2_tiny", "convnextv2_large"])
def test_every_naming_gives_the_same_ids(golden, size):
    entry = next(m for m in golden("1_param_groups/names_to_timm.json.gz")["models"] if m["config"]["model"] == size)
    depths = convnext_depths([pair[0] for pair in entry["pairs"]])
    assert depths == convnext_depths([pair[1] for pair in entry["pairs"]])
    for original, timm_name, *_ in entry["pairs"]:
        flat = timm_name.replace("stem.", "stem_", 1).replace("stages.", "stages_", 1)
        spellings = [p + n for n in (original, timm_name, flat) for p in ("", "backbone.", "module.", "_orig_mod.module.")]
        assert len({get_num_layer_for_convnext(name) for name in spellings}) == 1, original
        assert len({get_num_layer_for_convnext_single(name, depths) for name in spellings}) == 1, original
        inside = [f"backbone.{original}", f"module.backbone.{flat}", f"_orig_mod.backbone.{timm_name}"]
        assert len({get_num_layer_layer_wise(name, 12) for name in inside}) == 1, original
        assert len({get_num_layer_stage_wise(name, 12) for name in inside}) == 1, original


def test_real_timm_models_get_an_id_for_every_parameter():
    layers = {"convnextv2_atto": 14, "convnext_base": 38, "resnet50": 18, "vit_tiny_patch16_224": 14, "resnest50d": 18}
    for name in [*layers, "swin_tiny_patch4_window7_224", "efficientnet_b0", "convnext_xxlarge", "edgenext_small"]:
        with torch.device("meta"):
            model = timm.create_model(name)
        assigner = layer_decay_assigner(model, 0.9)
        groups = get_parameter_groups(model, 0.05, (), assigner.get_layer_id, assigner.get_scale)
        assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
        scales = [group["lr_scale"] for group in groups]
        assert max(scales) == 1.0 and min(scales) < 0.9
        if name in layers:
            assert len(assigner.values) == layers[name], name
        head = model.get_classifier().weight
        assert next(g["lr_scale"] for g in groups if any(p is head for p in g["params"])) == 1.0


def test_features_only_and_wrapped_models():
    plain = timm.create_model("convnextv2_atto", features_only=True)
    ids = {name: get_num_layer_for_convnext_single(name, (2, 2, 6, 2)) for name, _ in plain.named_parameters()}
    assert ids["stem_0.weight"] == 1 and ids["stages_1.downsample.0.weight"] == 3 and max(ids.values()) == 12
    wrapped = torch.nn.ModuleDict({"module": timm.create_model("resnet18")})
    wrapped.module = wrapped["module"]
    assert layer_decay_assigner(wrapped, 0.5).get_layer_id("module.fc.weight") == 9
    upernet = Named(
        [("backbone.stages_2.blocks.0.conv_dw.weight", (1, 1, 7, 7), True), ("decode_head.conv.weight", (1, 1), True)]
    )
    groups = get_parameter_groups(upernet, 0.1, (), get_num_layer_stage_wise, lambda i: 0.9 ** (13 - i))
    assert [group["lr_scale"] for group in groups] == pytest.approx([0.9**10, 1.0])


def test_what_cannot_be_placed_is_an_error():
    with pytest.raises(ValueError, match=r"'stages\.1\.surprise\.weight' is no ConvNeXt parameter"):
        get_num_layer_for_convnext("stages.1.surprise.weight")
    with pytest.raises(ValueError, match="take them from the model"):
        get_num_layer_for_convnext_single("stages.2.8.gamma", [2, 2, 6, 2])
    with pytest.raises(ValueError, match="beyond the 8 multipliers"):
        LayerDecayValueAssigner([1.0] * 8, layer_decay_type="layer_wise").get_scale(9)
    with pytest.raises(ValueError, match="needs layers, Linear has one: use --layer_decay 1.0"):
        layer_decay_assigner(torch.nn.Linear(3, 4), 0.9)
    with pytest.raises(ValueError, match="needs the depths"):
        LayerDecayValueAssigner([1.0], None, "single")


def test_group_on_a_shallow_model_says_which_ids_stay_empty():
    with torch.device("meta"):
        model = timm.create_model("convnextv2_atto")
    with pytest.warns(UserWarning, match=r"ids \[5, 6, 7, 8, 9, 10, 11\] stay empty"):
        layer_decay_assigner(model, 0.7, "group")
    with torch.device("meta"):
        model = timm.create_model("convnextv2_base")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer_decay_assigner(model, 0.7, "group")


# --- other names, other models


def torchvision_name(name):
    """torchvision's name of ConvNeXt for an original one."""
    name = re.sub(r"^downsample_layers\.(\d)\.", lambda m: f"features.{2 * int(m[1])}.", name)
    name = re.sub(r"^stages\.(\d)\.(\d+)\.", lambda m: f"features.{2 * int(m[1]) + 1}.{m[2]}.", name)
    for ours, theirs in {"dwconv": "block.0", "norm": "block.2", "pwconv1": "block.3", "pwconv2": "block.5"}.items():
        name = re.sub(rf"^(features\..*)\.{ours}\.", rf"\1.{theirs}.", name)
    name = name.replace(".gamma", ".layer_scale").replace("head.", "classifier.2.")
    return re.sub(r"^norm\.", "classifier.0.", name)


def hugging_face_name(name):
    """Hugging Face's name of ConvNeXt for an original one."""
    name = re.sub(r"^downsample_layers\.0\.0\.", "embeddings.patch_embeddings.", name)
    name = re.sub(r"^downsample_layers\.0\.1\.", "embeddings.layernorm.", name)
    name = re.sub(r"^downsample_layers\.(\d)\.", r"encoder.stages.\1.downsampling_layer.", name)
    name = re.sub(r"^stages\.(\d)\.(\d+)\.", r"encoder.stages.\1.layers.\2.", name)
    name = re.sub(r"^(encoder.*)\.norm\.", r"\1.layernorm.", name).replace(".gamma", ".layer_scale_parameter")
    return "classifier." + name[5:] if name.startswith("head.") else "convnext." + re.sub(r"^norm\.", "layernorm.", name)


@pytest.mark.parametrize("spelling", [torchvision_name, hugging_face_name])
@pytest.mark.parametrize("kind", ["single", "group"])
def test_torchvisions_and_hugging_faces_convnext_have_the_ids_of_the_original(golden, spelling, kind):
    parameters = original_parameters(golden, "convnext_tiny")
    theirs = {name: spelling(name) for name, *_ in parameters}
    if spelling is torchvision_name:
        assert set(theirs.values()) == {name for name, _ in torchvision.models.convnext_tiny().named_parameters()}
    assert convnext_depths(theirs.values()) == (3, 3, 9, 3)
    ours = layer_decay_assigner(Named(parameters), 0.7, kind)
    other = layer_decay_assigner(Named([(theirs[name], *rest) for name, *rest in parameters]), 0.7, kind)
    assert {n: ours.get_layer_id(n) for n in theirs} == {n: other.get_layer_id(theirs[n]) for n in theirs}


def test_the_published_way_on_unknown_names_warns():
    assigner = LayerDecayValueAssigner([0.7 ** (13 - i) for i in range(14)])
    with torch.device("meta"):
        known, other = torchvision.models.convnext_tiny(), torchvision.models.swin_t()
        frozen = torchvision.models.swin_t()
    for param in list(frozen.parameters())[:-2]:
        param.requires_grad = False
    with pytest.warns(UserWarning, match=r"does nothing: \d+ of \d+ parameters \(.*features.* have one layer id, 13"):
        create_optimizer(simple("adamw"), other, assigner.get_layer_id, assigner.get_scale)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = create_optimizer(simple("adamw"), known, assigner.get_layer_id, assigner.get_scale)
        create_optimizer(simple("adamw"), frozen, assigner.get_layer_id, assigner.get_scale)
    assert len({group["lr_scale"] for group in optimizer.param_groups}) == 8  # 9 blocks by threes


@pytest.mark.parametrize(
    "name, options, layers",
    [  # the stem, a layer for each block and downsampling, the head; norms belong to the layer before them
        ("resnet18", {}, ["conv1", *(f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)), "fc"]),
        ("swin_t", {}, 1 + 12 + 3 + 1),
        ("vit_b_32", {}, ["conv_proj", *(f"encoder.layers.encoder_layer_{i}" for i in range(12)), "heads"]),
        ("efficientnet_b0", {}, 1 + 16 + 1 + 1),
        ("alexnet", {}, 5 + 3),
    ],
)
def test_layers_of_any_model_come_in_the_order_of_its_modules(name, options, layers):
    with torch.device("meta"):
        model = getattr(torchvision.models, name)(**options)
    with pytest.warns(UserWarning, match=r"\d+ layers are taken in the order of its modules, from .* which has the full rate"):
        assigner = layer_decay_assigner(model, 0.9)
    found = layers_in_order(model)
    assert len(found) == layers if isinstance(layers, int) else [name for name, _ in found] == layers
    ids = [assigner.get_layer_id(param) for _, names in found for param in names]
    assert ids == sorted(ids) and set(ids) == set(range(len(found)))
    assert len(ids) == len(list(model.parameters()))
    if name == "vit_b_32":
        assert assigner.get_layer_id("encoder.pos_embedding") == assigner.get_layer_id("class_token") == 0
        assert assigner.get_layer_id("encoder.ln.weight") == 12


@pytest.mark.parametrize("name", ["caformer_s18", "pit_ti_224", "csatv2"])
def test_timm_models_without_a_matcher(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.warns(UserWarning, match="in the order of its modules"):
        assigner = layer_decay_assigner(model, 0.9)
    order = [assigner.get_layer_id(param) for param, _ in model.named_parameters()]
    assert len(assigner.values) > 10 and order[0] == 0 and order[-1] == len(assigner.values) - 1


@pytest.mark.parametrize(
    "name, parameter, like",
    [
        ("vgg11", "pre_logits.fc1.weight", "features.18.weight"),
        ("hrnet_w18_small", "incre_modules.0.0.conv1.weight", "stage4.0.fuse_layers.0.1.0.weight"),
        ("samvit_base_patch16", "neck.0.weight", "blocks.11.mlp.fc2.weight"),
        ("vit_small_patch16_rope_mixed_224", "rope.freqs", "patch_embed.proj.weight"),
        ("mobilenetv3_small_100", "conv_head.weight", "blocks.5.0.conv.weight"),
    ],
)
def test_what_timms_matcher_does_not_name_learns_with_the_layer_before_it(name, parameter, like):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=10)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        assigner = layer_decay_assigner(model, 0.9)
    assert assigner.get_layer_id(parameter) == assigner.get_layer_id(like) < len(assigner.values) - 1
    assert ["does not name" in str(note.message) for note in notes] == [True]
    last = [param for param, _ in model.named_parameters()][-1]
    assert assigner.get_scale(assigner.get_layer_id(last)) == 1.0


def test_a_first_layer_that_learns_next_to_nothing_is_said():
    with torch.device("meta"):
        model = timm.create_model("convnext_base")
    with pytest.warns(UserWarning, match=r"0.7 over 36 layers: .* 3e-06 times .*--layer_decay 0.880 gives it 0.01"):
        layer_decay_assigner(model, 0.7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert layer_decay_assigner(model, 0.88).get_scale(1) >= 0.01
        assigner = layer_decay_assigner(model, 0.7, min_scale=0.05)
    assert assigner.get_scale(1) == 0.05 and assigner.get_scale(36) == pytest.approx(0.7)


# --- create_optimizer


def options(config, **more):
    return argparse.Namespace(
        opt=config["opt"], lr=config["lr"], weight_decay=config["weight_decay"], opt_eps=config["opt_eps"],
        opt_betas=config["opt_betas"], momentum=config["momentum"], **more,
    )  # fmt: skip


def problem(data):
    """The golden file's Linear(3, 4) with its points."""
    p = data["config"]["five_steps_problem"]
    model = torch.nn.Linear(3, 4)
    with torch.no_grad():
        model.weight.copy_(torch.tensor(p["weight"]))
        model.bias.copy_(torch.tensor(p["bias"]))
    return model, torch.tensor(p["x"]), torch.tensor(p["y"])


def five_steps(model, optimizer, x, y):
    losses = []
    for _ in range(5):
        loss = torch.nn.functional.mse_loss(model(x), y)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward(create_graph=getattr(optimizer, "is_second_order", False))
        optimizer.step()
    return losses


def test_create_optimizer_equals_published(golden):
    data = golden("4_create_optimizer/create_optimizer.json.gz")
    for case in data["cases"]:
        config = case["config"]
        model, x, y = problem(data)
        layers = {}
        if config["layer_decay"] < 1:
            # names of the same dimensions, in an order that puts the first of each group where the group stands
            dims = [(name, (2, 2) if group["weight_decay"] else (2,)) for group in case["groups"] for name in group["params"]]
            model = Named([(name, shape, True) for name, shape in dims], device="cpu")
            assigner = layer_decay_assigner(model, config["layer_decay"], config["layer_decay_type"])
            layers = {"get_num_layer": assigner.get_layer_id, "get_layer_scale": assigner.get_scale}
        args = options(config)
        if case["raises"]:
            if config["opt"] in ("lion", "lamb", "fusedsgd", "fusedmomentum", "fusedadam", "fusedadamw"):
                create_optimizer(args, model)  # an error there, works here
            else:
                with pytest.raises(ValueError, match="gone from timm|takes no betas|cannot be built here"):
                    create_optimizer(args, model)
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer = create_optimizer(args, model, filter_bias_and_bn=config["filter_bias_and_bn"], **layers)
        assert type(optimizer).__name__ == case["class"]
        if case.get("base_class"):
            assert type(optimizer._base_optimizer).__name__ == case["base_class"]
        named = names_of(model, optimizer.param_groups)
        assert [group["params"] for group in named] == [group["params"] for group in case["groups"]]
        for mine, theirs in zip(optimizer.param_groups, case["groups"], strict=True):
            for key, value in theirs.items():
                if key != "params":
                    close = pytest.approx(value, rel=1e-12) if isinstance(value, float) else value
                    assert (list(mine[key]) if isinstance(mine[key], tuple) else mine[key]) == close, (config["opt"], key)
        if case.get("five_steps"):
            losses = five_steps(model, optimizer, x, y)
            assert losses == pytest.approx(case["five_steps"]["losses_before_each_step"], rel=1e-5)
            assert torch.allclose(model.weight, torch.tensor(case["five_steps"]["final_weight"]), rtol=1e-4, atol=1e-6)


def simple(opt, **more):
    return argparse.Namespace(opt=opt, lr=0.01, weight_decay=0.05, opt_eps=None, opt_betas=None, momentum=0.9, **more)


def test_every_other_name_of_timm_and_the_fused_ones():
    for name in ("lion", "lamb", "adan", "muon", "adopt", "lookahead_lamb"):
        model = torch.nn.Linear(3, 4)
        optimizer = create_optimizer(simple(name), model)
        losses = five_steps(model, optimizer, torch.ones(2, 3), torch.zeros(2, 4))
        assert losses[-1] < losses[0], name
    for name in ("fusedadamw", "fusedsgd"):
        assert create_optimizer(simple(name), torch.nn.Linear(3, 4)).param_groups[0]["fused"] is True
    assert create_optimizer(simple("adamw", fused=True), torch.nn.Linear(3, 4)).param_groups[0]["fused"] is True
    assert create_optimizer(simple("adadelta", fused=True), torch.nn.Linear(3, 4)).param_groups[0]["weight_decay"] == 0.05


def test_wrong_optimizers_are_explained():
    model = torch.nn.Linear(3, 4)
    with pytest.raises(ValueError, match="unknown optimizer 'adamv': did you mean .*adam.* or "):
        create_optimizer(simple("adamv"), model)
    with pytest.warns(UserWarning, match="'foo_' means nothing"):
        create_optimizer(simple("foo_adamw"), model)


# --- alone


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """A folder with the two files alone, and a Python that finds torch but neither timm nor this project."""
    folder = tmp_path_factory.mktemp("alone")
    shutil.copy(ROOT / "optim_factory.py", folder)
    shutil.copy(ROOT / "lr_sched.py", folder)
    block = "import sys; [sys.modules.__setitem__(n, None) for n in ('timm', 'torchvision', 'accelerate', 'numpy')]\n"

    def call(code):
        return subprocess.run(
            [sys.executable, "-c", block + code], cwd=folder, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}
        )

    return call


@pytest.mark.slow
def test_copied_alone_the_files_need_torch_only(bare_python):
    code = """
import torch, optim_factory as o, lr_sched, argparse
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stages = torch.nn.ModuleList([torch.nn.ModuleList([torch.nn.ModuleDict({'dwconv': torch.nn.Conv2d(4, 4, 7)})])])
        self.head = torch.nn.Linear(4, 2)
net = Net()
a = o.layer_decay_assigner(net, 0.5)
args = argparse.Namespace(opt='adamw', lr=1.0, weight_decay=0.1, opt_eps=None, opt_betas=None, momentum=0.9)
opt = o.create_optimizer(args, net, a.get_layer_id, a.get_scale)
lr_sched.set_learning_rate(opt, 0.2)
print(sorted({g['lr'] for g in opt.param_groups}))
args.opt = 'lamb'
try: o.create_optimizer(args, net)
except ValueError as e: print(e)
"""
    done = bare_python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "[0.1, 0.2]",
        "optimizer 'lamb' needs timm (pip install timm); without it there are sgd, nesterov, momentum, adam, adamw, "
        "adadelta, rmsprop",
    ]
    alone = bare_python("import lr_sched; print([m for m in sys.modules if m in ('torch', 'math')])")
    assert alone.stdout.strip() == "['math']", alone.stderr


def test_the_table(monkeypatch, capsys):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # which the program replaces
    monkeypatch.setattr(sys, "argv", "optim_factory.py convnextv2_atto --layer_decay 0.7 --layer_decay_type group".split())
    optim_factory.main()
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("note: layer_decay_type group has 12 groups")
    assert out[1].split() == "id lr x wd tensors parameters first name last name".split()
    assert out[2].split() == ["0", "0.009689", "0.05", "1", "1,920", "stem.0.weight", "stem.0.weight"]
    tensors = len(list(timm.create_model("convnextv2_atto").parameters()))
    assert out[-1] == f"14 groups, {tensors} tensors, 3,708,400 parameters"
    monkeypatch.setattr(sys, "argv", ["optim_factory.py", "convnextv3_atto"])
    with pytest.raises(SystemExit) as stop:
        optim_factory.main()
    assert stop.value.code == 2 and "did you mean convnextv2_atto" in capsys.readouterr().err
