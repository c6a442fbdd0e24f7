# SPDX-License-Identifier: Apache-2.0
"""Random models small enough to compare two libraries in a second."""

import pytest
import torch

import mmpetl  # noqa: F401  (prepares mmaction2 for import)


def _randomise(model, seed=0, std=0.15):
    """Give every parameter a value of its own, so that no two tensors can be exchanged unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            one = parameter.ndim == 1 and name.endswith('weight') or name.endswith(
                ('gamma', 'lambda1', 'gamma_1', 'gamma_2'))
            parameter.copy_((1 if one else 0) + std * noise)
    model.train(False)
    return model


@pytest.fixture
def randomise():
    return _randomise


@pytest.fixture
def image():
    def make(*shape, seed=1):
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return make


@pytest.fixture
def fill():
    """Load ``state`` into a stock upstream module with strict=True after conversion; give back module and report."""
    from mmpetl.weights import convert

    def run(module, state, arch, as_name=None, grid=None):
        _randomise(module, seed=99)  # whatever conversion forgets stays wrong
        shapes = {key: tuple(value.shape) for key, value in module.state_dict().items()}
        converted, report = convert(state, shapes, arch, as_name, grid)
        module.load_state_dict({**{key: module.state_dict()[key] for key in report.initial}, **converted}, strict=True)
        module.train(False)
        assert sorted([*report.loaded, *(key for key, *_ in report.reshaped), *report.generated,
                       *report.initial]) == sorted({*shapes}), 'the report does not account for every key of the target'
        return module, report
    return run
