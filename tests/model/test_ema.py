"""The average against NumPy, and its exchange with the model's own weights."""

import numpy as np
import pytest
import torch

from utils.model.ema import EMA


def model_with_buffers():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))


@pytest.mark.parametrize("warmup", [False, True])
def test_equals_numpy(warmup):
    model = model_with_buffers()
    ema = EMA(model, 0.9, warmup)
    expected = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}
    for update in range(6):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        model(torch.randn(5, 3))  # moves the buffers of the norm
        ema.update(update)
        decay = min(0.9, 1 - (1 + update) ** (-2 / 3)) if warmup else 0.9
        for name, tensor in model.state_dict().items():
            old, new = expected[name], tensor.numpy()
            expected[name] = old * decay + new * (1 - decay) if new.dtype == np.float32 else new.copy()
    state = ema.state_dict()
    assert state.keys() == model.state_dict().keys()
    for name, value in expected.items():
        np.testing.assert_allclose(state[name].numpy(), value, rtol=1e-5, atol=1e-6)
    assert state["1.num_batches_tracked"] == 6


def test_in_model_lends_the_average_and_gives_the_weights_back_to_the_bit():
    model = model_with_buffers()
    ema = EMA(model, 0.5)
    with torch.no_grad():
        model[0].weight.add_(1.0)
    ema.update(0)
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    averaged = {name: tensor.clone() for name, tensor in ema.state_dict().items()}
    with pytest.raises(RuntimeError), ema.in_model():
        assert all(torch.equal(model.state_dict()[name], averaged[name]) for name in averaged)
        raise RuntimeError
    assert all(torch.equal(model.state_dict()[name], own[name]) for name in own)
    assert all(torch.equal(ema.state_dict()[name], averaged[name]) for name in own)


def test_state_survives_a_round_trip():
    model = model_with_buffers()
    ema, other = EMA(model), EMA(model)
    with torch.no_grad():
        model[0].bias.add_(3.0)
    ema.update(0)
    other.load_state_dict({name: tensor.clone() for name, tensor in ema.state_dict().items()})
    assert all(torch.equal(a, b) for a, b in zip(ema.shadow, other.shadow, strict=True))
