"""Exponential moving average of a model's weights."""

import contextlib

import torch

from utils.model.sharding import local, shard_like


class EMA:
    """Shadow of the parameters and buffers of `model`; make it after `accelerator.prepare`, when all processes agree.

    As in the timm ModelEma of the published code, floating point buffers are averaged too; other buffers are copied.
    decay: constant, unless `warmup`: then min(decay, 1 - (1 + update) ** (-2/3)) (timm, ModelEmaV3), for short runs.
    """

    def __init__(self, model, decay=0.9999, warmup=False):
        self.decay, self.warmup = decay, warmup
        saved = model.state_dict().keys()
        live = [*model.named_parameters(), *model.named_buffers()]
        self.names = [name for name, _ in live if name in saved]
        self.live = [tensor.detach() for name, tensor in live if name in saved]
        self.shadow = [tensor.clone() for tensor in self.live]

    @torch.no_grad()
    def update(self, update):
        """Call after each optimizer step; `update` is its number, from 0."""
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
        for shadow, live in zip(self.shadow, self.live, strict=True):
            held = live.clone()
            live.copy_(shadow)
            shadow.copy_(held)

    def state_dict(self):
        return dict(zip(self.names, self.shadow, strict=True))

    @torch.no_grad()
    def load_state_dict(self, state):
        for name, shadow in zip(self.names, self.shadow, strict=True):
            shadow.copy_(shard_like(state[name], shadow))
