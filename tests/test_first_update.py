"""One update of a recipe of each family: its loss, and how far each weight moves, by the published formulas written out here.

The flags are the recipe's own; images are 32 or 64 pixels of noise, and the weights random but for the seed. The update is
number UPDATE of the run, since the first has rate 0 where there is a warm-up.
"""

import math

import pytest
import torch
from conftest import ROOT

from lr_sched import make_schedule
from segmentation_networks.network import build_network
from utils.augment.mixup import make_mixup
from utils.cli.first import parse
from utils.cli.flags import Schedule
from utils.cli.recognition_flags import MixupOptions, ModelOptions
from utils.cli.segmentation_flags import LossOptions, network_options
from utils.losses.recognition import make_loss
from utils.losses.segmentation import make_segmentation_loss
from utils.model.optimizer import build_optimizer
from utils.model.recognition import build_model

UPDATE, IMAGES = 3, 1_281_167  # of ImageNet-1K
BETAS, EPSILON = (0.9, 0.999), 1e-8  # of AdamW, whatever is published


def recipe(kind, name):
    return parse(f"train_{kind}.py", "", [f"@{ROOT / 'recipes' / kind / name}.args"])


def step(args, model, updates_per_epoch, loss_of, total, *, head_lr_scale=None):
    """{name: (weight before, its gradient, weight after)} of the update, and its loss; drop path and dropout at work."""
    args.lr = args.blr * total / 256 if args.lr is None else args.lr
    optimizer, _ = build_optimizer(model, args, head_lr_scale=head_lr_scale, fused=False)
    wanted = Schedule.of(args)
    if getattr(args, "max_updates", None):
        wanted = wanted._replace(epochs=args.max_updates / updates_per_epoch)
    schedule = make_schedule(
        optimizer, updates_per_epoch, weight_decay=args.weight_decay, weight_decay_end=args.weight_decay_end,
        **wanted._asdict(),
    )  # fmt: skip
    schedule(UPDATE)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    loss = loss_of(model.train())
    loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    optimizer.step()
    return {name: (before[name], gradients[name], parameter.detach()) for name, parameter in model.named_parameters()}, loss


def check_adamw(weights, rate, decay, scale_of, decays):
    """AdamW's first step: m / (1 - b1) is the gradient and v / (1 - b2) its square, so that the step is the rate times the
    sign, but for epsilon; before it the weight shrinks by rate x decay."""
    for name, (before, gradient, after) in weights.items():
        lr = rate * scale_of(name)
        expected = before * (1 - lr * (decay if decays(name, before) else 0)) - lr * gradient / (gradient.abs() + EPSILON)
        torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-2 * lr, msg=lambda text, name=name: f"{name}: {text}")


def no_vectors(name, weight):
    """The rule of ConvNeXt and V2: vectors and biases never decay, nor GRN's."""
    return weight.ndim > 1 and not name.endswith((".bias", ".gamma", ".beta"))


def smoothed(logits, labels, share):
    """Label smoothing as timm 0.3.2 has it: the label's own loss, and the mean over all classes."""
    losses = -logits.log_softmax(1)
    return ((1 - share) * losses[range(len(labels)), labels] + share * losses.mean(1)).mean()


def watch(module):
    """The list of outputs that `module` will give."""
    outputs = []
    module.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    return outputs


def labelled_noise(classes, size=32, count=4):
    return torch.randn(count, 3, size, size), torch.arange(count) % classes


@pytest.mark.parametrize(
    ("name", "smoothing", "decay_rate", "rate", "decay"),
    [
        # 30 epochs x 2,502 updates of 512; the cosine of ConvNeXt begins at its peak, to a floor of 1e-6
        ("convnext_base_in22k_ft_in1k_224", 0.1, 0.8, (5e-5, 30, IMAGES // 512), 1e-8),
        # 600 epochs x 1,251 updates of 1,024, and 2e-4 for each 256 images
        ("convnextv2_atto_ft_in1k", 0.2, 0.9, (8e-4, 600, IMAGES // 1024), 0.3),
    ],
)
def test_convnext(name, smoothing, decay_rate, rate, decay):
    args = recipe("recognition", name)
    args.model_kwargs = [("dims", (8, 16, 32, 64))]  # narrow, but with all blocks
    torch.manual_seed(0)
    model = build_model(ModelOptions.of(args), [str(label) for label in range(args.nb_classes)], input_size=224)
    assert make_mixup(MixupOptions.of(args), args.nb_classes, args.smoothing) is None
    images, labels = labelled_noise(args.nb_classes)
    outputs, criterion = watch(model), make_loss(args.loss, args.smoothing)
    peak, epochs, per_epoch = rate
    weights, loss = step(args, model, per_epoch, lambda model: criterion(model(images), labels), args.total_batch_size)
    assert loss.item() == pytest.approx(smoothed(outputs[0].detach(), labels, smoothing).item(), rel=1e-6)
    lr = 1e-6 + 0.5 * (peak - 1e-6) * (1 + math.cos(math.pi * UPDATE / (epochs * per_epoch)))
    depths = (3, 3, 27, 3) if "base" in name else (2, 2, 6, 2)

    def layer(name):
        if name.startswith("stem"):
            return 0 if "base" in args.model else 1
        if not name.startswith("stages"):
            return 13  # norm and head
        _, stage, part, block = name.split(".")[:4]
        stage, block = int(stage), 0 if part == "downsample" else int(block)
        if "base" in args.model:  # 12 groups of up to three blocks; the last stages' downsampling layers stand alone
            if stage == 2 and part != "downsample":
                return 3 + block // 3
            return {0: 1, 1: 2, 2: 3, 3: 12}[stage]
        return sum(depths[:stage]) + block + 1

    check_adamw(weights, lr, decay, lambda name: decay_rate ** (13 - layer(name)), no_vectors)


def test_resnest():
    """SGD with momentum: the first step is the rate times the gradient plus decay. 270 epochs x 625 updates of 2,048 images."""
    args = recipe("recognition", "resnest50_in1k")
    torch.manual_seed(0)
    model = build_model(ModelOptions.of(args), [str(label) for label in range(1000)], input_size=224)
    images, labels = labelled_noise(1000, size=64)
    mixed, targets = make_mixup(MixupOptions.of(args), 1000, args.smoothing)(images, labels, seed=5)
    lam = ((mixed - images.flip(0)) / (images - images.flip(0))).median().item()
    assert 0 < lam < 1 and torch.allclose(mixed, lam * images + (1 - lam) * images.flip(0), atol=1e-5)
    outputs, criterion = watch(model), make_loss(args.loss, args.smoothing)
    weights, loss = step(args, model, IMAGES // 2048, lambda model: criterion(model(mixed), targets), 2048)
    logits = outputs[0].detach()
    both = lam * smoothed(logits, labels, 0.1) + (1 - lam) * smoothed(logits, labels.flip(0), 0.1)
    assert loss.item() == pytest.approx(both.item(), rel=1e-5)
    lr = 0.1 * 2048 / 256 * UPDATE / (5 * (IMAGES // 2048))  # five epochs of warm-up from 0
    for name, (before, gradient, after) in weights.items():
        decay = 0.0 if "bn" in name or "bias" in name else 1e-4  # by the name, so that other norms do decay
        torch.testing.assert_close(after, before - lr * (gradient + decay * before), rtol=1e-5, atol=1e-6)


def test_upernet_convnext():
    """160,000 updates of 16 images; 1,500 of warm-up from 1e-6 of the line that falls to 0; the auxiliary loss counts 0.4."""
    args = recipe("segmentation", "upernet_convnext_tiny_ade20k_512")
    args.backbone_kwargs, args.channels = [*args.backbone_kwargs, ("dims", (8, 16, 32, 64))], 16  # narrow, with all blocks
    torch.manual_seed(0)
    model = build_network(**network_options(args), classes=150, input_size=64, drop_path=args.drop_path)
    images, masks = torch.randn(2, 3, 64, 64), torch.randint(-1, 150, (2, 64, 64))
    outputs, criterion = watch(model), make_segmentation_loss(LossOptions.of(args), 150, aux=args.aux)
    weights, loss = step(args, model, 20_210 // 16, lambda model: criterion(model(images), masks), 16,
                         head_lr_scale=args.head_lr_scale)  # fmt: skip
    expected = 0
    for name, weight in (("logits", 1.0), ("aux", 0.4)):
        losses = -outputs[0][name].detach().log_softmax(1).gather(1, masks.clamp(min=0).unsqueeze(1)).squeeze(1)
        expected += weight * (losses * (masks >= 0)).sum().item() / masks.numel()  # over all pixels, ignored ones as 0
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    lr = 1e-4 * (1 - UPDATE / 160_000) * (1 - (1 - UPDATE / 1500) * (1 - 1e-6))

    def scale(name):  # stage_wise with 6 layers: 0.9 to the power of the stages above; stem and downsampling are the lowest
        if not name.startswith("backbone."):  # the heads, and the norms of the features
            return 1.0
        part, *rest = name.removeprefix("backbone.").split(".")
        return 0.9**7 if "stem" in part or "downsample" in rest else 0.9 ** (6 - int(part.removeprefix("stages_")))

    check_adamw(weights, lr, 0.05, scale, lambda name, weight: weight.ndim > 1)
