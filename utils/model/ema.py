"""Exponential moving average of a model's weights."""

import contextlib

import torch

from utils.model.sharding import local, reshard, shard_like


class EMA:
    """The average of the parameters and buffers of `model`. Make it after `accelerator.prepare`, when all processes agree.

    decay: after an update the average keeps this share of itself and takes the rest from the model. warmup: the decay of
    update number n, from 0, is min(decay, 1 - (1 + n) ** (-2/3)), for short runs (timm, ModelEmaV3).
    As in timm's ModelEma of the published code, floating point buffers are averaged too; other buffers are copied.
    """

    def __init__(self, model, decay=0.9999, warmup=False):
        self.model, self.decay, self.warmup = model, decay, warmup
        saved = model.state_dict().keys()
        live = [*model.named_parameters(), *model.named_buffers()]
        self.names = [name for name, _ in live if name in saved]
        self.live = [tensor.detach() for name, tensor in live if name in saved]
        self.shadow = [tensor.clone() for tensor in self.live]

    @torch.no_grad()
    def update(self, update):
        """Take in the model after an optimizer step; `update` is its number, from 0."""
        decay = min(self.decay, 1 - (1 + update) ** (-2 / 3)) if self.warmup else self.decay
        pairs = [(local(shadow), local(live)) for shadow, live in zip(self.shadow, self.live, strict=True)]
        averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_(*map(list, zip(*averaged, strict=True)), 1 - decay)
        for shadow, live in pairs:
            if not shadow.is_floating_point():
                shadow.copy_(live)

    @contextlib.contextmanager
    def in_model(self):
        """Within this, the model holds the averaged weights; after it, its own again, to the bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self):
        reshard(self.model)  # the last forward pass left whole weights behind, which the next one would compute with
        for shadow, live in zip(self.shadow, self.live, strict=True):
            held = live.clone()
            live.copy_(shadow)
            shadow.copy_(held)

    def state_dict(self):
        """{name: tensor} of the average, under the model's names; sharded where the model is."""
        return dict(zip(self.names, self.shadow, strict=True))

    @torch.no_grad()
    def load_state_dict(self, state):
        """Put whole tensors {name: tensor} in the place of the average."""
        for name, shadow in zip(self.names, self.shadow, strict=True):
            shadow.copy_(shard_like(state[name], shadow))
