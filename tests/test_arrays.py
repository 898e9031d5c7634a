"""What the score needs of torch and of numpy is the same in both."""

import numpy as np
import pytest
import torch

from suma.arrays import constant, library, no_grad, to_numpy, unit


def test_each_array_is_of_its_library():
    rows = np.array([[3.0, 4.0], [0.0, 0.0], [-1.0, 1.0]], np.float32)
    assert library(rows) is np and library(torch.from_numpy(rows)) is torch
    for x in (rows, torch.from_numpy(rows)):
        assert type(unit(x)) is type(constant(x)) is type(x)
        assert to_numpy(unit(x)) == pytest.approx(np.array([[0.6, 0.8], [0, 0], [-(0.5**0.5), 0.5**0.5]]))
        assert to_numpy(unit(x)).dtype == np.float32


def test_no_gradient_goes_through_a_constant_and_none_stops_at_numpy():
    x = torch.ones(2, requires_grad=True)
    assert not constant(x).requires_grad and to_numpy(x).tolist() == [1, 1]


def test_gradients_are_off_in_functions_and_in_generators_and_on_again_behind_them():
    @no_grad
    def function(x: int) -> tuple[int, bool]:
        """Named."""
        return x, torch.is_grad_enabled()

    @no_grad
    def generator():
        for n in range(2):
            yield n, torch.is_grad_enabled()

    assert function(3) == (3, False) and function.__doc__ == "Named."
    seen = []
    for n, on in generator():
        seen.append((n, on, torch.is_grad_enabled()))
    assert seen == [(0, False, True), (1, False, True)] and torch.is_grad_enabled()
