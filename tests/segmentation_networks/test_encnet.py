"""The encoding layer against its formula."""

import math

import torch
from tiny_networks import one_thread  # noqa: F401, a fixture
from torch.utils._python_dispatch import TorchDispatchMode

from segmentation_networks.encnet import Encoding


def encoding_formula(x, codewords, scale):
    residuals = x.flatten(2).transpose(1, 2)[:, :, None] - codewords  # (B, N, K, C)
    weights = (scale * residuals.square().sum(3)).softmax(2)
    return (weights[..., None] * residuals).sum(1)


def test_encoding_and_its_gradients_equal_the_formula():
    torch.manual_seed(0)
    layer = Encoding(6, 4).double()
    x = torch.randn(2, 6, 5, 3, dtype=torch.float64, requires_grad=True)
    inputs = (x, layer.codewords, layer.scale)
    got, expected = layer(x), encoding_formula(*inputs)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    probe = torch.randn_like(got)
    for a, b in zip(torch.autograd.grad(got, inputs, probe), torch.autograd.grad(expected, inputs, probe), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_encoding_by_hand():
    layer = Encoding(1, 2)
    with torch.no_grad():
        layer.codewords.copy_(torch.tensor([[0.0], [2.0]]))
        layer.scale.copy_(torch.tensor([0.0, -math.log(3)]))
    # x = 1 and 2: distances (1, 1) and (4, 0), so weights (1, 1/3) / (4/3) = (.75, .25) and (.5, .5)
    got = layer(torch.tensor([[[1.0, 2.0]]]))
    torch.testing.assert_close(got, torch.tensor([[[0.75 * 1 + 0.5 * 2], [0.25 * -1 + 0.5 * 0]]]))


def test_encoding_is_not_done_in_half_precision():
    torch.manual_seed(0)
    layer, x = Encoding(256, 8), 5 * torch.randn(2, 256, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), layer(x).float())
        got = layer(x)
    assert torch.equal(got, layer(x))


def test_encoding_holds_no_tensor_of_pixels_times_codewords_times_channels():
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, (list, tuple)) else [out]:
                if isinstance(x, torch.Tensor) and x.untyped_storage().nbytes():
                    self.numel = max(self.numel, x.untyped_storage().nbytes() // x.element_size())
            return out

    layer, x = Encoding(64, 16), torch.randn(2, 64, 20, 20, requires_grad=True)
    with Largest() as largest:
        layer(x).sum().backward()
    assert x.grad is not None and largest.numel == x.numel()
    with Largest() as largest:
        encoding_formula(x, layer.codewords, layer.scale).sum().backward()
    assert largest.numel == 16 * x.numel()
