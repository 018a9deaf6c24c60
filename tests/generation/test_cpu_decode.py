"""A wide matrix times a few rows, in pieces, is the same product."""

import pytest
import torch

from nanogpt.generation.cpu_decode import FEW, WIDE, multiply_in_pieces


@pytest.mark.parametrize("outputs", [WIDE, WIDE + 1, 8209, 100])  # even, odd, a prime, narrow
@pytest.mark.parametrize("rows", [1, 2, FEW, FEW + 1])
@pytest.mark.parametrize("transposed", [False, True])
def test_linear(rows: int, outputs: int, transposed: bool) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(1, rows, 24), torch.randn(outputs, 24), torch.randn(outputs)
    stored = weight.T.contiguous().T if transposed else weight
    expected = (x.double() @ weight.double().T).float()
    torch.testing.assert_close(multiply_in_pieces(x, stored), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(multiply_in_pieces(x, stored, bias), expected + bias, rtol=1e-5, atol=1e-5)
