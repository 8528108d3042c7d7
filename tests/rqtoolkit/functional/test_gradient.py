import torch

from rqtoolkit.functional.gradient import straight_through


def test_value_of_the_quantized_and_gradient_of_the_identity():
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    quantized = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 3, dtype=torch.float64)
    out = straight_through(x, quantized)
    torch.testing.assert_close(out, quantized)
    (out * weight).sum().backward()
    assert torch.equal(x.grad, weight)
    assert quantized.grad is None
