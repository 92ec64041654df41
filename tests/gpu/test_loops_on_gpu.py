"""The loops on a GPU: batches one ahead, updates that never wait for the device, and memory as docs/GPUS.md promises it."""

import gc

import pytest
import torch
from on_device import batches_in_memory, loader_of, on, small_model, train_in_memory

BOTH = {"recognition": "recognition", "segmentation": "segmentation"}


@on(BOTH, cpu=BOTH)
def test_batches_under_load_are_the_cpus(device, case):
    """The device works on something long, and each batch is spoiled and freed right after its use."""
    expected = list(loader_of(case, batches_in_memory(case, 24), "cpu"))
    kept, load = [], torch.randn(2 * [4096 if device == "cuda" else 64], device=device)
    for images, labels, *_ in loader_of(case, batches_in_memory(case, 24, pinned=device == "cuda"), device):
        for _ in range(20):
            load = torch.nn.functional.normalize(load @ load)
        kept.append((images.clone(), labels.clone()))
        images.fill_(float("nan"))
        labels.fill_(-7)
        del images, labels
    assert len(kept) == len(expected)
    for (images, labels), (wanted, wanted_labels, _) in zip(kept, expected, strict=True):
        assert torch.equal(images.cpu(), wanted) and torch.equal(labels.cpu(), wanted_labels)


@on({"recognition": "recognition"}, cpu=("recognition",))
def test_a_loader_keeps_its_lane_and_its_memory_over_epochs(device, case):
    loader = loader_of(case, batches_in_memory(case, 8, pinned=device == "cuda"), device)
    lanes, reserved = set(), []
    for epoch in range(6):
        loader.start(epoch, 0)
        for images, *_ in loader:
            images.mul_(2)
        lanes.add(id(loader.lane))
        reserved.append(torch.cuda.memory_reserved() if device == "cuda" else 0)
    assert len(lanes) == 1 and reserved[-1] <= 1.5 * reserved[1]  # a stream for each epoch would have three times as much


class Watched(list):
    """Batches from the `first` of which on torch raises an error where the host waits for the device, but for the last two.

    What is before it draws the first batch; after the last update the losses are read.
    """

    def __init__(self, batches, first, device):
        super().__init__(batches)
        self.first, self.device, self.watched = first, device, 0

    def __iter__(self):
        for number, batch in enumerate(super().__iter__()):
            if number == self.first:
                self.watch("error")
            self.watched += number >= self.first
            yield batch
        self.watch("default")

    def watch(self, mode):
        if self.device == "cuda":
            torch.cuda.set_sync_debug_mode(mode)


# (script, precision, flags, with a moving average)
STEPS = {
    "recognition": ("recognition", "no", [], True),
    "recognition-bf16-clipped": ("recognition", "bf16", ["--clip_grad", 1], True),
    "segmentation-bf16": ("segmentation", "bf16", [], False),
}


@on(STEPS, cpu=STEPS)
def test_no_update_waits_for_the_device(device, case, tmp_path):
    script, precision, flags, ema = case
    batches = Watched(batches_in_memory(script, 16, pinned=device == "cuda"), 6, device)
    words = [*flags, "--log_every", 1000]
    options = {"precision": precision, "update_freq": 2, "ema": ema, "channels_last": precision == "bf16"}
    try:
        *_, run = train_in_memory(script, device, tmp_path / "run", batches, *words, **options)
    finally:
        batches.watch("default")
    assert batches.watched == 10 and run.counters.update == 8


@on({"fp16": "fp16"})
def test_an_update_that_overflows_is_left_out_and_halves_the_scale(device, case, tmp_path):
    batches = batches_in_memory("recognition", 8)
    batches[3][1][1].fill_(float("inf"))  # the noise that parts of the images are erased with
    _, _, run = train_in_memory("recognition", device, tmp_path / "run", batches, precision=case)
    assert run.accelerator.scaler.get_scale() == 2.0**15
    assert all(parameter.isfinite().all() for parameter in run.model.parameters())


# --- memory


def kept_by_forward(device, model, images, precision):
    """Bytes that a forward pass keeps for the backward pass."""
    model, images, kept = model.to(device).train(), images.to(device), {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
        model(images)  # weights in bf16 are made anew in each forward pass
        if device == "cuda":
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            output = model(images)
            held = torch.cuda.memory_allocated() - before
            del output
            return held
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            model(images)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    return sum(size for place, size in kept.items() if place not in weights)


def deep_model():
    return small_model("recognition", depths=(2, 2, 6, 2), dims=(16, 32, 64, 128))


@on({"half": 0.5}, cpu=("half",))
def test_checkpointing_keeps_less_than_half_of_the_activations(device, case):
    images, model = torch.randn(16, 3, 64, 64), deep_model()
    plain = kept_by_forward(device, model, images, "no")
    model.set_grad_checkpointing(True)
    assert 0 < kept_by_forward(device, model, images, "no") < case * plain


@on({"bf16": "bf16"}, cpu=("bf16",))
def test_bf16_keeps_less_than_float32(device, case):
    images, model = torch.randn(16, 3, 64, 64), deep_model()
    assert kept_by_forward(device, model, images, case) < 0.85 * kept_by_forward(device, model, images, "no")


class LargeAtFirst(list):
    """Batches before the first of which as much memory is taken for a moment as cuDNN's search may take."""

    def __iter__(self):
        torch.empty(2**30, dtype=torch.uint8, device="cuda")
        yield from super().__iter__()


@on({"recognition": "recognition"})
def test_the_peak_of_a_run_is_without_that_of_its_first_update(device, case, tmp_path):
    train_in_memory(case, device, tmp_path / "run", LargeAtFirst(batches_in_memory(case, 4)))
    assert torch.cuda.max_memory_allocated() < 2**29


def bytes_of(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@on({"no": "no", "bf16": "bf16"}, cpu=("no",))
def test_a_moving_average_is_one_copy_of_the_weights_and_adamw_twelve_bytes_more(device, case, tmp_path):
    """docs/GPUS.md: AdamW needs 16 bytes for each parameter (weight, gradient, two moments), and 20 with an average."""
    batches = batches_in_memory("recognition", 2)
    if device == "cuda":
        train_in_memory("recognition", device, tmp_path / "first", batches, precision=case)  # the libraries' own memory
    model = small_model("recognition", depths=(1, 1, 1, 1), dims=(64, 128, 256, 512))
    weights = bytes_of(model.parameters())
    gc.collect()
    allocated = torch.cuda.memory_allocated() if device == "cuda" else 0
    model, average, run = train_in_memory(
        "recognition", device, tmp_path / "run", batches, model=model, ema=True, precision=case
    )
    assert bytes_of(average.shadow) == weights
    moments = [value for state in run.optimizer.state.values() for value in state.values() if value.dim()]
    assert bytes_of(moments) == 2 * weights and all(parameter.grad is None for parameter in model.parameters())
    if device == "cuda":
        gc.collect()
        held = torch.cuda.memory_allocated() - allocated
        assert held == pytest.approx(4 * weights, rel=0.1)  # blocks are whole multiples of 512 bytes


@on({"recognition": "recognition"}, cpu=("recognition",))
def test_a_run_holds_no_more_after_more_updates(device, case, tmp_path):
    held = []
    for count in (8, 24):
        model, average, _ = train_in_memory(case, device, tmp_path / str(count), batches_in_memory(case, count), ema=True)
        gc.collect()
        held.append(torch.cuda.memory_allocated() if device == "cuda" else bytes_of(average.shadow))
        del model, average
    assert held[1] <= held[0] * 1.05
