"""Whatever flag changes an architecture: after an update the run's weights open as others open them, with equal logits."""

import pytest
import timm
import torch
from accelerate.state import AcceleratorState, GradientState

import train_recognition
import train_segmentation
from utils.cli import recognition_flags, segmentation_flags
from utils.cli.arguments import settings_of
from utils.model.segmentation_weights import open_network
from utils.pictures.gallery import Gallery

COMMON = "--opt momentum --lr 0.1 --warmup_epochs 0 --num_workers 0 --report_to none --save_ckpt false".split()
RECOGNITION = "--epochs 1 --input_size 32 --batch_size 1438 --sched constant".split()
SEGMENTATION = "--max_updates 1 --crop_size 64 --batch_size 2 --head_lr_scale 1 --disable_eval".split()
NEXT = "depths=(1,1,1,1) dims=(8,8,16,16)"
RESNET = "layers=(1,1,1,1) channels=(8,8,16,16)"

CLASSIFIERS = [
    f"--model convnextv2_atto --model_kwargs {NEXT} --layer_scale_init_value 0.5 --drop_path 0.2",
    f"--model convnextv2_atto --model_kwargs {NEXT} patch_size=2 conv_mlp=True --head_init_scale 0.5",
    f"--model convnextv2_atto --model_kwargs {NEXT} --layer_scale_init_value 0",
    f"--model convnext_atto --model_kwargs {NEXT} drop_rate=0.2 global_pool=max act_layer=relu",
    f"--model resnet18 --model_kwargs {RESNET} stem_type=deep stem_width=8 --last_gamma false --drop_block 0.1",
    "--model resnest14d --model_kwargs channels=(8,8,16,16) stem_width=8 --last_gamma true",
    "--model vit_tiny_patch16_224 --model_kwargs depth=2 embed_dim=24 patch_size=8 init_values=0.1 class_token=False "
    "global_pool=avg",
]
NETWORKS = [
    f"--model upernet --channels 8 --backbone convnextv2_atto --backbone_kwargs {NEXT} ls_init_value=0.5 --drop_path 0.2",
    f"--model fcn --channels 8 --backbone resnet18 --backbone_kwargs {RESNET} --output_stride 8 --aux true --aux_channels 4",
    f"--model fcn --backbone resnet18 --backbone_kwargs {RESNET} --head_kwargs with_global=True --dropout 0.3",
    f"--model deeplab --channels 8 --backbone resnet18 --backbone_kwargs {RESNET} --head_kwargs atrous_rates=(2,3,4)",
    f"--model encnet --channels 8 --backbone resnet18 --backbone_kwargs {RESNET} --head_kwargs lateral=True --se_loss true",
    "--model upernet --channels 8 --backbone vit_tiny_patch16_224 --backbone_kwargs depth=4 embed_dim=24 num_heads=2",
    "--model linear --backbone vit_small_patch16_dinov3 --backbone_kwargs depth=4 embed_dim=24 --head_kwargs maps=2",
]


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """(the model of a run of one update, on images of this size; the run's folder). It draws no pictures."""
    monkeypatch.setattr(Gallery, "finish", lambda gallery, look=None: None)
    monkeypatch.setattr(Gallery, "refresh", lambda gallery: None)
    threads = torch.get_num_threads()

    def run(script, builder, words):
        build, models = getattr(script, builder), []
        monkeypatch.setattr(script, builder, lambda *args, **options: models.append(build(*args, **options)) or models[-1])
        try:
            script.main(script.parse_args([*words, *COMMON, "--output_dir", str(tmp_path / "run")]))
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
        return models[-1].eval(), tmp_path / "run"

    yield run
    torch.set_num_threads(threads)


def same_logits(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
    assert expected.std() > 0


@pytest.mark.slow
@pytest.mark.parametrize("words", CLASSIFIERS, ids=range(len(CLASSIFIERS)))
def test_timm_opens_a_classifier_after_an_update(trained, words):
    model, folder = trained(train_recognition, "build_model", [*words.split(), *RECOGNITION])
    opened, images = timm.create_model(f"local-dir:{folder / 'best'}", pretrained=True).eval(), torch.randn(2, 3, 32, 32)
    same_logits(opened(images), model(images))


@pytest.mark.slow
@pytest.mark.parametrize("words", NETWORKS, ids=range(len(NETWORKS)))
def test_a_network_opens_after_an_update(trained, words):
    model, folder = trained(train_segmentation, "build_network", [*words.split(), *SEGMENTATION])
    (opened, _), images = open_network(folder / "last"), torch.randn(2, 3, 64, 64)
    same_logits(*(network.eval()(images)["logits"] for network in (opened, model)))


@pytest.mark.parametrize(
    ("flags", "cases"),
    [
        (settings_of("ModelOptions", recognition_flags.add_model_flags)._fields, CLASSIFIERS),
        (settings_of("NetworkOptions", segmentation_flags.add_network_flags)._fields, NETWORKS),
    ],
)
def test_every_flag_of_an_architecture_has_a_case(flags, cases):
    assert [flag for flag in flags if not any(f"--{flag} " in words for words in cases)] == []
