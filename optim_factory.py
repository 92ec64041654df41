"""Layer-wise learning rate decay, parameter groups and optimizers for ConvNeXt, ConvNeXt V2 and any timm model.

This file travels alone: it needs torch; timm only for timm's optimizers and for the layers of timm's models. ConvNeXt is
known under its own names, timm's, torchvision's and Hugging Face's; other models by the order of their modules.
The names and signatures are those of ConvNeXt's and ConvNeXt-V2's optim_factory.py. See the groups of a model:

    python optim_factory.py convnextv2_base --layer_decay 0.7 --layer_decay_type group

Every parameter group carries `lr_scale`; multiply the scheduled rate by it (lr_sched.py does).
"""

import math
import re
import types
import warnings

import torch

# --- layer ids by parameter name: from 0 (nearest the image, learns slowest) to num_layers + 1 (the head) -----------

_WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod|backbone)\.)+")
_SPELLINGS = (  # torchvision's and Hugging Face's names of ConvNeXt -> the original ones
    (r"^features\.0\.([01]\.(?:weight|bias))$", r"downsample_layers.0.\1"),
    (r"^features\.([246])\.([01]\.(?:weight|bias))$", lambda m: f"downsample_layers.{int(m[1]) // 2}.{m[2]}"),
    (r"^features\.([1357])\.(\d+)\.block\.0\.(?=weight|bias)", lambda m: f"stages.{int(m[1]) // 2}.{m[2]}.dwconv."),
    (r"^features\.([1357])\.(\d+)\.(?=(?:layer_scale|block\.[235]\.(?:weight|bias))$)",
     lambda m: f"stages.{int(m[1]) // 2}.{m[2]}."),
    (r"^(?:convnext(?:v2)?\.)?embeddings\.(?=(?:patch_embeddings|layernorm)\.(?:weight|bias)$)", "downsample_layers.0."),
    (r"^(?:convnext(?:v2)?\.)?encoder\.stages\.(\d+)\.downsampling_layer\.(?=[01]\.)", r"downsample_layers.\1."),
    (r"^(?:convnext(?:v2)?\.)?encoder\.stages\.(\d+)\.layers\.(\d+)\.(?=dwconv|layernorm|pwconv|layer_scale|grn)",
     r"stages.\1.\2."),
)  # fmt: skip
_DOWNSAMPLE = re.compile(r"^(?:downsample_layers\.(\d+)|stages[._](\d+)\.downsample)\.")
_STEM = re.compile(r"^stem[._]")
_BLOCK = re.compile(r"^(?:stages[._](\d+)\.(?:blocks\.)?|blocks\.)(\d+)\.")
_DEPTHWISE = re.compile(r"^(?:stages[._](\d+)\.(?:blocks\.)?|blocks\.)(\d+)\.(?:dwconv|conv_dw)\.weight$")


def _locate(var_name):
    """("downsample", stage), ("block", stage, index), or ("head",) for a ConvNeXt parameter, in any of its namings.

    Understood: the original names (`downsample_layers.1.0.weight`, `stages.2.7.…`), timm's (`stem.0`,
    `stages.1.downsample.0`, `stages.2.blocks.7`), timm's features_only names (`stem_0`, `stages_2.blocks.7`), the
    isotropic ones (`stem`, `blocks.7`: stage None), torchvision's (`features.3.1.block.0`), Hugging Face's
    (`convnext.encoder.stages.2.layers.7.dwconv`), and all of them behind `backbone.`, `module.` or `_orig_mod.`.
    As published, whatever is not of the backbone (norm, head, tokens) counts as head; a name that is of the backbone
    and cannot be placed is a ValueError, for it would silently learn at the head's full rate.
    """
    name = _original(var_name)
    if match := _DOWNSAMPLE.match(name):
        return ("downsample", int(match[1] or match[2]))
    if _STEM.match(name):
        return ("downsample", 0)
    if match := _BLOCK.match(name):
        return ("block", int(match[1]) if match[1] else None, int(match[2]))
    if re.match(r"(?:downsample_layers|stages|blocks)\b|stages_", name):
        raise ValueError(
            f"'{var_name}' is no ConvNeXt parameter name that a layer id is known for; expected names like "
            "'stages.2.7.dwconv.weight' or 'stages.2.blocks.7.conv_dw.weight'"
        )
    return ("head",)


def _original(var_name):
    """A name without wrappers, and as the original code spells it if it is torchvision's or Hugging Face's."""
    name = _WRAPPERS.sub("", var_name)
    for pattern, replacement in _SPELLINGS:
        name, found = re.subn(pattern, replacement, name)
        if found:
            break
    return name


def get_num_layer_for_convnext(var_name):
    """Layer id 0..13 of the published 12 groups: stem, stage 1, stage 2, stage 3 by threes, stage 4, head.

    Isotropic names, which the published rule sends into the last layer without exception, get one id per block.
    Source: ConvNeXt, optim_factory.py (same name); ConvNeXt-V2's layer_decay_type `group`.
    """
    kind, *place = _locate(var_name)
    if kind == "head":
        return 13
    stage = place[0]
    if kind == "downsample":
        return (0, 2, 3, 12)[stage]
    if stage is None:
        return place[1] + 1
    return (1, 2, min(3 + place[1] // 3, 12), 12)[stage]


def get_num_layer_for_convnext_single(var_name, depths):
    """Layer id 1..sum(depths) + 1, one per block; the stem and each downsampling share the id of the block after them.

    As published, id 0 is never used. depths: blocks per stage, one number for an isotropic model.
    Source: ConvNeXt-V2, optim_factory.py, function of the same name.
    """
    kind, *place = _locate(var_name)
    if kind == "head":
        return sum(depths) + 1
    stage, block = (place[0], 0) if kind == "downsample" else (place[0] or 0, place[1])
    if stage >= len(depths) or block >= depths[stage]:
        raise ValueError(f"'{var_name}' does not belong to a model of depths {list(depths)}: take them from the model")
    return sum(depths[:stage]) + block + 1


def get_num_layer_layer_wise(var_name, num_layers=12):
    """Layer id 0..num_layers + 1 of a segmentation or detection network; use 12, or 6 for 9 blocks in stage 3.

    Everything outside `backbone.`, and the norms after the stages, learn at the full rate (the last id).
    Source: ConvNeXt, semantic_segmentation/mmcv_custom/layer_decay_optimizer_constructor.py.
    """
    kind, *place = _locate_in_backbone(var_name)
    if kind == "head":
        return num_layers + 1
    if kind == "downsample":
        return (0, 2, 3, num_layers)[place[0]]
    return (1, 2, 3 + place[1] // 3, num_layers)[place[0]]


def get_num_layer_stage_wise(var_name, num_layers=12):
    """Layer id 0 for the stem and every downsampling, 1..4 for the stages, num_layers + 1 for the rest.

    Source: ConvNeXt, semantic_segmentation/mmcv_custom/layer_decay_optimizer_constructor.py (which is handed
    num_layers + 2 here).
    """
    kind, *place = _locate_in_backbone(var_name)
    if kind == "head":
        return num_layers + 1
    return 0 if kind == "downsample" else place[0] + 1


def _locate_in_backbone(var_name):
    name = re.sub(r"^(?:(?:module|_orig_mod)\.)+", "", var_name)
    return _locate(name) if name.startswith("backbone.") else ("head",)


# --- decay assigners: layer id -> multiplier of the learning rate ---------------------------------------------------


class LayerDecayValueAssigner:
    """Layer ids by name and their multipliers, for `get_parameter_groups`.

    values: multiplier per layer id, from 0 to num_layers + 1. depths: blocks per stage (of `single` only).
    layer_decay_type: `single` (default as in ConvNeXt-V2), `group` (ConvNeXt), `layer_wise` or `stage_wise` (UPerNet).
    """

    def __init__(self, values, depths=None, layer_decay_type=None):
        self.values = list(values)
        self.depths = None if depths is None else tuple(depths)
        # ConvNeXt's own class takes nothing but `values` and means the 12 groups
        self.layer_decay_type = layer_decay_type or ("group" if depths is None else "single")
        if self.layer_decay_type not in ("single", "group", "layer_wise", "stage_wise"):
            raise ValueError(f"layer_decay_type is '{layer_decay_type}': expected single, group, layer_wise or stage_wise")
        if self.layer_decay_type == "single" and self.depths is None:
            raise ValueError("layer_decay_type single needs the depths of the model, as in depths=[2, 2, 6, 2]")

    def get_scale(self, layer_id):
        if not 0 <= layer_id < len(self.values):
            raise ValueError(
                f"layer id {layer_id} is beyond the {len(self.values)} multipliers given: num_layers does not fit this model"
            )
        return self.values[layer_id]

    def get_layer_id(self, var_name):
        if self.layer_decay_type == "single":
            return get_num_layer_for_convnext_single(var_name, self.depths)
        if self.layer_decay_type == "group":
            return get_num_layer_for_convnext(var_name)
        rule = get_num_layer_layer_wise if self.layer_decay_type == "layer_wise" else get_num_layer_stage_wise
        return rule(var_name, len(self.values) - 2)


class ModelDecayAssigner:
    """The same two methods for any other model: layer ids by parameter name, told by `model_layer_ids`.

    min_scale: no multiplier is smaller.
    """

    def __init__(self, model, layer_decay, min_scale=0.0):
        self.layer_ids = model_layer_ids(_unwrap(model))
        self.values = _multipliers(layer_decay, max(self.layer_ids.values()) + 1, min_scale)

    def get_scale(self, layer_id):
        return self.values[layer_id]

    def get_layer_id(self, var_name):
        name = var_name if var_name in self.layer_ids else re.sub(r"^(?:(?:module|_orig_mod)\.)+", "", var_name)
        if name not in self.layer_ids:
            raise ValueError(f"layer decay knows no layer for the parameter '{var_name}'")
        return self.layer_ids[name]


def _multipliers(layer_decay, layers, min_scale):
    return [max(layer_decay ** (layers - 1 - i), min_scale) for i in range(layers)]


# --- layers of any model --------------------------------------------------------------------------------------------


def model_layer_ids(model):
    """{parameter name: layer id} from 0, the layer nearest the image, to the head.

    Of a timm model by its own `group_matcher`; what that does not name learns with the layer that the model has before it.
    Of any other model by the order of its modules, see `layers_in_order`. Of a network with `backbone` and `decode_head`
    the ids of the backbone are those of the recognition model, and all that is not the backbone has the last id.
    Warns of each parameter that had to be placed. Raises ValueError for a model of one layer.
    """
    backbone = getattr(model, "backbone", None)
    if isinstance(backbone, torch.nn.Module) and hasattr(model, "decode_head"):
        ids = _backbone_ids(backbone)
        last = max(ids.values()) + 1
        names = [name for name, _ in model.named_parameters()]
        return {name: ids.get(name.removeprefix("backbone."), last) if name.startswith("backbone.") else last for name in names}
    if hasattr(model, "group_matcher"):
        return _matched_ids(model, {name: name for name, _ in model.named_parameters()}, model)
    return _ordered_ids(model)


def _backbone_ids(backbone):
    """Ids of the parameters of a feature extractor, those that they have in the recognition model that it is taken from."""
    inner = getattr(backbone, "model", None)  # timm's extractors hold the model whole, or its parts under joined names
    if hasattr(inner, "group_matcher"):
        return _matched_ids(inner, {f"model.{name}": name for name, _ in inner.named_parameters()}, backbone)
    if hasattr(backbone, "group_matcher"):
        return _matched_ids(backbone, {name: name for name, _ in backbone.named_parameters()}, backbone)
    whole = _recognition_model(backbone)
    if whole is None:
        return _ordered_ids(backbone)
    theirs = {name for name, _ in whole.named_parameters()}
    names = {}
    for name, _ in backbone.named_parameters():
        parts = re.sub(r"^(?:model|body)\.", "", name)
        split = re.sub(r"^([A-Za-z]\w*?)_(?=\w+\.)", r"\1.", parts)  # stages_0.blocks.1 is stages.0.blocks.1 there
        numbered = re.sub(r"^(\w+?)_(\d+)\.", r"\1.\2.", parts)
        names[name] = next((n for n in (parts, numbered, split) if n in theirs), numbered)
    if hasattr(whole, "group_matcher"):
        return _matched_ids(whole, names, backbone)
    ids = _ordered_ids(whole)
    unknown = [name for name in names.values() if name not in ids]
    if unknown:
        raise ValueError(f"layer decay knows no layer for {_some(unknown)} of the backbone: use --layer_decay 1.0")
    return {name: ids[whole_name] for name, whole_name in names.items()}


def _recognition_model(backbone):
    """The model on the meta device that timm's feature extractor is made from, or None."""
    name = (getattr(backbone, "pretrained_cfg", None) or {}).get("architecture")
    try:
        import timm
    except ModuleNotFoundError:
        return None
    if not name or not timm.is_model(name):
        return None
    with torch.device("meta"):
        return timm.create_model(name)


def _matched_ids(model, names, owner):
    """Ids by timm's group_matcher of `model`. names: {name in `owner`: name in `model`}, in the order of the modules."""
    from timm.models import group_parameters

    nothing = "?"  # a name that no matcher knows: what has its id is not known either
    listed = types.SimpleNamespace(named_parameters=lambda: [(name, None) for name in (*names.values(), nothing)])
    grouped = group_parameters(listed, model.group_matcher(coarse=False), reverse=True)
    head = grouped.pop(nothing, None)
    tops = _heads(model)
    sizes = dict(owner.named_parameters())
    big = {whole.partition(".")[0] for name, whole in names.items() if sizes[name].ndim > 1}
    ids, placed, before = {}, [], 0
    for name, whole in names.items():
        layer, top = grouped.get(whole, head), whole.partition(".")[0]
        if layer != head:
            ids[name] = before = layer
        elif top in tops or top not in big:  # norms of the classifier and the like learn with it
            ids[name] = head
        else:
            ids[name] = before
            placed.append(name)
    if placed:
        share = sum(sizes[name].numel() for name in placed) / sum(param.numel() for param in sizes.values())
        where = sorted({ids[name] for name in placed})
        warnings.warn(
            f"layer decay: timm's group_matcher of {type(model).__name__} does not name {_some(placed)}, {share:.1%} of the "
            f"numbers; they learn with the layer before them ({'id' if len(where) == 1 else 'ids'} "
            f"{', '.join(map(str, where))})",
            stacklevel=2,
        )
    return ids


def _heads(model):
    """First parts of the names of a timm model's classifiers."""
    named = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    found = {name.partition(".")[0] for name in ((named,) if isinstance(named, str) else named)}
    classifier = model.get_classifier() if hasattr(model, "get_classifier") else None
    modules = classifier if isinstance(classifier, (tuple, list)) else (classifier,)
    return found | {name.partition(".")[0] for name, module in model.named_modules() if any(module is m for m in modules)}


def _ordered_ids(model):
    layers = layers_in_order(model)
    if len(layers) < 2:
        raise ValueError(f"layer decay needs layers, {type(model).__name__} has one: use --layer_decay 1.0")
    warnings.warn(
        f"layer decay: {type(model).__name__} is neither a ConvNeXt nor a model with timm's group_matcher; its "
        f"{len(layers)} layers are taken in the order of its modules, from {layers[0][0]} to {layers[-1][0]}, which has the "
        "full rate",
        stacklevel=2,
    )
    return {name: i for i, (_, names) in enumerate(layers) for name in names}


def layers_in_order(model):
    """[(name of a layer, names of its parameters)] of any model, in the order in which it holds its modules.

    A layer is a block: a module in which no list of blocks stands. A list of blocks is a Sequential, ModuleList or
    ModuleDict with two or more modules of one class that have modules of their own. Norms learn with the layer before
    them, tokens and positions too, or with the first. Where this makes fewer than four layers, each module with a weight
    of two or more dimensions is one.
    """
    listed = {name for name, _ in model.named_parameters()}  # without those that are tied to one before
    weights = {name for name, param in model.named_parameters() if param.ndim > 1}
    lists = {
        id(module)
        for module in model.modules()
        if isinstance(module, (torch.nn.Sequential, torch.nn.ModuleList, torch.nn.ModuleDict)) and _has_blocks(module)
    }

    def collect(finest):
        layers, waiting = [], []

        def add(name, module, inside):
            names = [n for n, _ in module.named_parameters(name, recurse=inside) if n in listed]
            if not names:
                return
            if inside and (not layers or weights.intersection(names)):
                layers.append((name, [*waiting, *names]))
                waiting.clear()
            else:
                (layers[-1][1] if layers else waiting).extend(names)

        def visit(name, module):
            children = list(module.named_children())
            add(name, module, inside=finest and not children)
            for child_name, child in children:
                child_name = f"{name}.{child_name}" if name else child_name
                if (finest and list(child.children())) or any(id(part) in lists for part in child.modules()):
                    visit(child_name, child)
                else:
                    add(child_name, child, inside=True)

        visit("", model)
        return layers

    layers = collect(finest=False)
    return layers if len(layers) > 3 else collect(finest=True)


def _has_blocks(container):
    kinds = [type(c) for c in container.children() if list(c.children()) and not isinstance(c, torch.nn.Sequential)]
    return len(kinds) > len(set(kinds))


def _some(names):
    return f"{len(names)} parameter{'s' if names[1:] else ''} ({', '.join(names[:3])}{', …' if names[3:] else ''})"


def convnext_depths(names):
    """Blocks per stage, e.g. (2, 2, 6, 2), read off ConvNeXt parameter names; (18,) if isotropic; None if no ConvNeXt."""
    blocks, with_depthwise = set(), set()
    for name in map(_original, names):
        if match := _BLOCK.match(name):
            blocks.add((int(match[1] or 0), int(match[2])))
        if match := _DEPTHWISE.match(name):
            with_depthwise.add((int(match[1] or 0), int(match[2])))
    if not blocks or blocks != with_depthwise:  # e.g. EdgeNeXt, whose last block of a stage has no depthwise conv
        return None
    stages = 1 + max(stage for stage, _ in blocks)
    depths = tuple(sum(stage == s for s, _ in blocks) for stage in range(stages))
    return depths if blocks == {(s, b) for s in range(stages) for b in range(depths[s])} else None


def layer_decay_assigner(model, layer_decay, layer_decay_type="single", min_scale=0.0):
    """The assigner that fits `model`, with its depths and multipliers, or None where layer_decay is 1.

    ConvNeXt and ConvNeXt V2: `single` (one id per block) or `group` (the published 12, on every size); isotropic
    ConvNeXt always one id per block; any other model by `model_layer_ids`. A network with `backbone`, `decode_head` and
    `auxiliary_head`: the same, or `stage_wise` or `layer_wise` if its backbone is a ConvNeXt.
    min_scale: no multiplier is smaller. Warns where the first layer learns less than 1e-4 times as fast as the head.
    Raises ValueError where no rule fits.
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay is {layer_decay}: expected a number above 0 and up to 1 (1 is no decay)")
    if not 0 <= min_scale <= 1:
        raise ValueError(f"min_scale is {min_scale}: expected a number from 0 to 1")
    if layer_decay == 1.0:
        return None
    names = [name for name, _ in model.named_parameters()]
    depths = convnext_depths(names)
    if depths is None:
        if layer_decay_type != "single":
            raise ValueError(f"layer_decay_type {layer_decay_type} is for ConvNeXt; this model only has single")
        assigner = ModelDecayAssigner(model, layer_decay, min_scale)
    else:
        assigner = _convnext_assigner(names, depths, layer_decay, layer_decay_type, min_scale)
    _warn_of_small_scales(assigner, names, layer_decay)
    return assigner


def _convnext_assigner(names, depths, layer_decay, layer_decay_type, min_scale):
    if layer_decay_type == "single" or len(depths) == 1:
        layer_decay_type, num_layers = "single", sum(depths)
    elif layer_decay_type == "group":
        num_layers = 12
    else:
        num_layers = 12 if depths[2] > 9 else 6
    assigner = LayerDecayValueAssigner(_multipliers(layer_decay, num_layers + 2, min_scale), depths, layer_decay_type)
    if layer_decay_type == "group":
        empty = sorted(set(range(14)) - {assigner.get_layer_id(name) for name in names})
        if empty:
            warnings.warn(
                f"layer_decay_type group has 12 groups for stages of depths {depths}: ids {empty} stay empty, and all "
                "before them learn more slowly than the depth alone asks for; `single` has no such gap",
                stacklevel=3,
            )
    return assigner


def _warn_of_small_scales(assigner, names, layer_decay):
    first = min(assigner.get_layer_id(name) for name in names)
    steps = len(assigner.values) - 1 - first
    if assigner.get_scale(first) < 1e-4:
        enough = math.ceil(1000 * 0.01 ** (1 / steps)) / 1000
        warnings.warn(
            f"layer_decay {layer_decay} over {steps} layers: the first learns {assigner.get_scale(first):.1g} times as fast as "
            f"the head, next to nothing; --layer_decay {enough:.3f} gives it 0.01, --layer_decay_min_scale 0.01 too",
            stacklevel=3,
        )


# --- parameter groups -----------------------------------------------------------------------------------------------


def get_parameter_groups(
    model,
    weight_decay=1e-5,
    skip_list=(),
    get_num_layer=None,
    get_layer_scale=None,
    no_decay_suffixes=(".bias", ".gamma", ".beta"),
):
    """List of {"weight_decay", "params", "lr_scale"}, in the order in which the model names its parameters.

    No weight decay on 1-D parameters, on names in `skip_list`, and on names that end in one of `no_decay_suffixes`
    (the default is ConvNeXt-V2's; ConvNeXt has (".bias",), which only differs on 4-D `gamma` and `beta`).
    get_num_layer: name -> layer id; get_layer_scale: layer id -> multiplier; both None: one learning rate.
    Source: ConvNeXt and ConvNeXt-V2, optim_factory.py, function of the same name.
    """
    groups = {}
    for name, param in model.named_parameters():
        if not param.requires_grad:
            continue
        decays = not (param.ndim == 1 or name.endswith(tuple(no_decay_suffixes)) or name in skip_list)
        layer_id = None if get_num_layer is None else get_num_layer(name)
        if (layer_id, decays) not in groups:
            groups[layer_id, decays] = {
                "weight_decay": weight_decay if decays else 0.0,
                "params": [],
                "lr_scale": 1.0 if get_layer_scale is None else get_layer_scale(layer_id),
            }
        groups[layer_id, decays]["params"].append(param)
    if get_num_layer is not None:
        _warn_of_unknown_names(model, get_num_layer)
    return list(groups.values())


def _warn_of_unknown_names(model, get_num_layer):
    """A warning where the names are not those that the rule `get_num_layer` knows, so that all learn at the head's rate."""
    named = list(model.named_parameters())
    if len(named) < 8 or not all(param.requires_grad for _, param in named):
        return
    ids = [get_num_layer(name) for name, _ in named]
    most = max(set(ids), key=ids.count)
    if len(set(ids)) < 3 and ids.count(most) > 0.8 * len(ids):
        unknown = [name for (name, _), layer in zip(named, ids, strict=True) if layer == most]
        warnings.warn(
            f"layer decay does nothing: {len(unknown)} of {len(ids)} parameters ({', '.join(unknown[:2])}, …) have one layer "
            f"id, {most}, for the rule does not know their names; layer_decay_assigner(model, layer_decay) finds the layers of "
            "any model",
            stacklevel=4,
        )


def get_no_bn_wd_groups(model, weight_decay=1e-4):
    """Two groups: no weight decay for names with `bn` or `bias` anywhere in them, `weight_decay` for the others.

    To the letter of PyTorch-Encoding, experiments/recognition/train_dist.py, --no-bn-wd, for its published runs; by
    that letter norms with other names (`downsample.1.weight`, those of a deep stem, all of ConvNeXt's) do decay.
    """
    params = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    free = [param for name, param in params if "bn" in name or "bias" in name]
    rest = [param for name, param in params if not ("bn" in name or "bias" in name)]
    return [{"weight_decay": 0.0, "params": free}, {"weight_decay": weight_decay, "params": rest}]


# --- optimizers -----------------------------------------------------------------------------------------------------

_TORCH = ("sgd", "nesterov", "momentum", "adam", "adamw", "adadelta", "rmsprop")
_TIMM_CLASSES = {  # published name -> class of timm.optim with the published behaviour, where timm's registry differs
    "nadam": "NAdamLegacy",
    "radam": "RAdamLegacy",
    "adamp": "AdamP",
    "sgdp": "SGDP",
    "adafactor": "Adafactor",
    "adahessian": "Adahessian",
    "rmsproptf": "RMSpropTF",
    "nvnovograd": "NvNovoGrad",
}


def create_optimizer(args, model, get_num_layer=None, get_layer_scale=None, filter_bias_and_bn=True, skip_list=None):
    """The optimizer `args.opt`, over the groups of `get_parameter_groups` (or over all parameters as they are).

    args: has opt, lr, weight_decay, momentum, opt_eps and opt_betas (None: the optimizer's own), and may have `fused`
    (True: torch's fused kernels, where the device of the parameters has them) and `weight_decay_filter` (what is free
    of weight decay; it stands before `filter_bias_and_bn`): norm_bias, see `get_parameter_groups`; bn_names, see
    `get_no_bn_wd_groups`; none.
    opt: sgd and nesterov (both with Nesterov momentum), momentum, adam, adamw, adadelta, rmsprop; nadam, radam,
    adamp, sgdp, adafactor, adahessian, rmsproptf, nvnovograd and any other name of timm's registry; `fused` before
    sgd, momentum, adam, adamw; `lookahead_` before any.
    Raises ValueError for an unknown name, for options that the optimizer does not take and for one that is gone.
    Source: ConvNeXt and ConvNeXt-V2, optim_factory.py, function of the same name.
    """
    weight_decay = args.weight_decay
    free = getattr(args, "weight_decay_filter", None) or ("norm_bias" if filter_bias_and_bn else "none")
    by_layer = get_num_layer is not None and hasattr(args, "weight_decay_filter")
    if free == "bn_names" and by_layer:
        raise ValueError("weight_decay_filter bn_names knows no layers: use norm_bias or none, or no layer decay")
    if free == "norm_bias" or (free == "none" and by_layer):
        if skip_list is None:
            skip_list = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
        parameters = get_parameter_groups(model, weight_decay, skip_list, get_num_layer, get_layer_scale)
        for group in parameters if free == "none" else ():
            group["weight_decay"] = weight_decay
        weight_decay = 0.0
    elif free == "bn_names":
        parameters = get_no_bn_wd_groups(model, weight_decay)
    elif free != "none":
        raise ValueError(f"weight_decay_filter is '{free}': expected norm_bias, bn_names or none")
    else:
        parameters = [param for param in model.parameters() if param.requires_grad]

    prefix, _, name = args.opt.lower().rpartition("_")  # as published, the part after the last "_" is the name
    if prefix not in ("", "lookahead"):
        warnings.warn(f"optimizer '{args.opt}': '{prefix}_' means nothing and is left out", stacklevel=2)
    fused = bool(getattr(args, "fused", None))
    if name.startswith("fused") and name.removeprefix("fused") in ("sgd", "momentum", "adam", "adamw"):
        name, fused = name.removeprefix("fused"), True
    options = {"lr": args.lr, "weight_decay": weight_decay}
    if getattr(args, "opt_eps", None) is not None:
        options["eps"] = args.opt_eps
    if getattr(args, "opt_betas", None) is not None:
        options["betas"] = tuple(args.opt_betas)

    try:
        optimizer = _build(name, parameters, options, args.momentum, fused and _fuses(model))
    except TypeError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown is None:
            raise
        raise ValueError(f"optimizer '{name}' takes no {unknown[1]}: leave out --opt_{unknown[1]}") from None
    if "lookahead" in prefix.split("_"):
        optimizer = _timm_optim("lookahead").Lookahead(optimizer)
    return optimizer


def _build(name, parameters, options, momentum, fused):
    if name in ("sgd", "nesterov", "momentum"):
        options.pop("eps", None)
        nesterov = name != "momentum"
        return torch.optim.SGD(parameters, momentum=momentum, nesterov=nesterov, **options, **_fuse(fused))
    if name == "adam":
        return torch.optim.Adam(parameters, **options, **_fuse(fused))
    if name == "adamw":
        return torch.optim.AdamW(parameters, **options, **_fuse(fused))
    if name == "adadelta":
        return torch.optim.Adadelta(parameters, **options)
    if name == "rmsprop":
        return torch.optim.RMSprop(parameters, alpha=0.9, momentum=momentum, **options)

    timm_optim = _timm_optim(name)
    if name in _TIMM_CLASSES:
        if name == "adamp":
            options.update(wd_ratio=0.01, nesterov=True)
        elif name == "sgdp":
            options.update(momentum=momentum, nesterov=True)
        elif name == "rmsproptf":
            options.update(alpha=0.9, momentum=momentum)
        elif name == "adafactor" and not options["lr"]:
            options["lr"] = None  # Adafactor then finds its own step size
        return getattr(timm_optim, _TIMM_CLASSES[name])(parameters, **options)
    if name == "novograd":
        raise ValueError("optimizer 'novograd' is gone from timm: use nvnovograd")
    known = timm_optim.list_optimizers()
    if name not in known:
        import difflib

        near = difflib.get_close_matches(name, sorted({*_TORCH, *_TIMM_CLASSES, *known}), n=3)
        raise ValueError(
            f"unknown optimizer '{name}': "
            + (f"did you mean {' or '.join(near)}?" if near else f"timm's registry has {len(known)}, torch's are {_TORCH}")
        )
    info = timm_optim.get_optimizer_info(name)
    if not info.has_eps:
        options.pop("eps", None)
    if info.has_momentum:
        options["momentum"] = momentum
    try:
        return timm_optim.create_optimizer_v2(parameters, opt=name, **options)
    except (AssertionError, ImportError) as error:  # NVIDIA Apex or bitsandbytes is missing
        raise ValueError(f"optimizer '{name}' cannot be built here: {error}") from None


def _timm_optim(name):
    try:
        import timm.optim
    except ModuleNotFoundError:
        raise ValueError(
            f"optimizer '{name}' needs timm (pip install timm); without it there are {', '.join(_TORCH)}"
        ) from None
    return timm.optim


def _fuses(model):
    """Whether torch has fused kernels for the device of the parameters."""
    return next(model.parameters()).device.type in ("cpu", "cuda", "xpu", "mps")


def _fuse(fused):
    return {"fused": True} if fused else {}


def _unwrap(model):
    while not hasattr(model, "group_matcher") and isinstance(getattr(model, "module", None), torch.nn.Module):
        model = model.module
    return getattr(model, "_orig_mod", model)


# --- the table ------------------------------------------------------------------------------------------------------


def group_table(model, groups, get_num_layer=None):
    """Rows of dicts, one per parameter group: id, lr_scale, weight_decay, tensors, parameters, first, last name.

    groups: of `get_parameter_groups`, or an optimizer's; get_num_layer: name -> layer id, or None.
    """
    names = {param: name for name, param in model.named_parameters()}
    rows = []
    for group in groups:
        if not group["params"]:
            continue
        first, last = names[group["params"][0]], names[group["params"][-1]]
        rows.append(
            {
                "id": get_num_layer(first) if get_num_layer else 0,
                "lr_scale": group.get("lr_scale", 1.0),
                "weight_decay": group["weight_decay"],
                "tensors": len(group["params"]),
                "parameters": sum(param.numel() for param in group["params"]),
                "first": first,
                "last": last,
            }
        )
    return sorted(rows, key=lambda row: (row["id"], -row["weight_decay"]))


def format_group_table(rows):
    """The rows of `group_table` as lines of text."""
    width = max(len("first name"), *(len(row["first"]) for row in rows))
    lines = [f"{'id':>3} {'lr x':>10} {'wd':>7} {'tensors':>7} {'parameters':>12}  {'first name':<{width}}  last name"]
    for row in rows:
        lines.append(
            f"{row['id']:>3} {row['lr_scale']:>10.4g} {row['weight_decay']:>7.3g} {row['tensors']:>7} "
            f"{row['parameters']:>12,}  {row['first']:<{width}}  {row['last']}"
        )
    total = sum(row["parameters"] for row in rows)
    tensors = sum(row["tensors"] for row in rows)
    lines.append(f"{len(rows)} groups, {tensors} tensors, {total:,} parameters")
    return "\n".join(lines)


def main():
    import argparse
    import sys

    parser = argparse.ArgumentParser(
        description="Print the parameter groups of a timm model.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("model", help="a name that timm knows, such as convnextv2_base")
    parser.add_argument("--layer_decay", type=float, default=0.7, help="multiplier from each layer to the one before")
    parser.add_argument("--layer_decay_type", choices=("single", "group"), default="single", help="one id per block, or 12")
    parser.add_argument("--layer_decay_min_scale", type=float, default=0.0, help="no layer has a smaller multiplier")
    parser.add_argument("--weight_decay", type=float, default=0.05, help="of all but norms, biases and GRN")
    args = parser.parse_args()
    try:
        import timm
    except ModuleNotFoundError:
        sys.exit("optim_factory.py: error: the table of a model by name needs timm (pip install timm)")
    if not timm.is_model(args.model):
        import difflib

        near = difflib.get_close_matches(args.model, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        print(f"optim_factory.py: error: timm has no model '{args.model}'{hint}", file=sys.stderr)
        sys.exit(2)
    warnings.showwarning = lambda message, *_: print(f"note: {message}")
    try:
        with torch.device("meta"):
            model = timm.create_model(args.model)
        assigner = layer_decay_assigner(model, args.layer_decay, args.layer_decay_type, args.layer_decay_min_scale)
        by_layer = (assigner.get_layer_id, assigner.get_scale) if assigner else (None, None)
        skip_list = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
        groups = get_parameter_groups(model, args.weight_decay, skip_list, *by_layer)
        print(format_group_table(group_table(model, groups, by_layer[0])))
    except ValueError as error:
        print(f"optim_factory.py: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
