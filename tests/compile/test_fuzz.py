"""Random models in native code and in Pyro: `make fuzz` compares a thousand of them."""

import os
import warnings

import pytest
import torch

import probdl
from probdl.compile.engine import choose
from tests.compile.random_models import KINDS, random_model

MODELS = int(os.environ.get("PROBDL_FUZZ", "6"))  # of each kind
LOG = os.environ.get("PROBDL_FUZZ_LOG")  # a file for the engine of each model
POINTS = 10
TOLERANCE = 1e-8  # relative
# Of what rounding of the point changes in Pyro's own values, as in chaotic dynamics.
ROUNDING, ROUNDING_MAX = 1e-13, 10


def relative(x, y):
    return float((x - y).abs().max() / (1 + y.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(MODELS))
def test_values_and_gradients_are_those_of_pyro(kind, seed):
    source, model, data = random_model(kind, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        density = probdl.LogDensity.from_model(model, data)
        evaluator, _ = choose(density, "auto", seed)
    if LOG is not None:
        with open(LOG, "a") as file:
            file.write(f"{kind}: {evaluator.engine}\n")
    generator = torch.Generator().manual_seed(seed)
    compared = 0
    for i in range(POINTS):
        z = density.initial(generator)
        if i % 2:  # far from typical points
            z = 1.5 * torch.randn(density.dim, generator=generator, dtype=torch.float64)
        value, grad = density.value_and_grad(z)
        found, found_grad = evaluator.value_and_grad(z)
        if not torch.isfinite(value):
            assert not torch.isfinite(found), source
            continue
        moved, moved_grad = density.value_and_grad(z * (1 + ROUNDING))
        limit = TOLERANCE + ROUNDING_MAX * relative(moved, value)
        assert relative(found, value) <= limit, source
        if torch.isfinite(grad).all():
            limit = TOLERANCE + ROUNDING_MAX * relative(moved_grad, grad)
            assert relative(found_grad, grad) <= limit, source
        compared += 1
    assert compared
