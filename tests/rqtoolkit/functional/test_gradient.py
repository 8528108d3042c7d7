import pytest
import torch

from rqtoolkit.functional.gradient import rotation_trick, straight_through, with_gradient


def test_value_of_the_quantized_and_gradient_of_the_identity():
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    quantized = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 3, dtype=torch.float64)
    out = straight_through(x, quantized)
    torch.testing.assert_close(out, quantized)
    (out * weight).sum().backward()
    assert torch.equal(x.grad, weight)
    assert quantized.grad is None


def rotation(e, q):
    """The matrix R that turns the direction of e into that of q within their plane, as printed.

    Fifty et al., section 4.2: R = I - 2 r rᵀ + 2 q̂ êᵀ, r = (ê + q̂) / ‖ê + q̂‖.
    """
    e, q = e / e.norm(), q / q.norm()
    r = (e + q) / (e + q).norm()
    return torch.eye(len(e), dtype=e.dtype) - 2 * torch.outer(r, r) + 2 * torch.outer(q, e)


def test_the_rotation_trick_has_the_gradient_of_the_paper_s_matrix():
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    quantized = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 5, dtype=torch.float64)
    out = rotation_trick(x, quantized)
    torch.testing.assert_close(out, quantized)
    (out * weight).sum().backward()
    assert quantized.grad is None
    for row in range(6):
        e, q = x[row].detach(), quantized[row].detach()
        turn = rotation(e, q)
        torch.testing.assert_close(turn @ turn.T, torch.eye(5, dtype=torch.float64))
        assert torch.linalg.det(turn) > 0  # a rotation, not a reflection
        torch.testing.assert_close(q.norm() / e.norm() * turn @ e, q)
        torch.testing.assert_close(x.grad[row], q.norm() / e.norm() * turn.T @ weight[row])


def test_the_rotation_trick_keeps_the_angle_between_gradient_and_vector():
    x = torch.randn(20, 7, dtype=torch.float64, requires_grad=True)
    quantized, weight = torch.randn(2, 20, 7, dtype=torch.float64)
    (rotation_trick(x, quantized) * weight).sum().backward()
    angle = torch.nn.functional.cosine_similarity(x.grad, x.detach())
    torch.testing.assert_close(
        angle, torch.nn.functional.cosine_similarity(weight, quantized), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("x", "quantized", "slope"),
    [
        ([0.0, 0.0, 0.0], [10.0, 20.0, 30.0], 1.0),  # no direction to turn from
        ([1.0, 2.0, 2.0], [0.0, 0.0, 0.0], 1.0),  # none to turn to
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0], 1.0),
        ([1.0, 2.0, 2.0], [-2.0, -4.0, -4.0], 1.0),  # opposite: no plane
        ([1.0, 2.0, 2.0], [3.0, 6.0, 6.0], 3.0),  # parallel: scaling alone
        ([1.0, 2.0, 2.0], [1.0, 2.0, 2.0], 1.0),
        ([1e-23, 0.0, 0.0], [1e15, 0.0, 0.0], 1.0),  # a ratio beyond float32
        ([1e15, 0.0, 0.0], [0.0, 1e15, 0.0], None),
    ],
)
def test_degenerate_vectors_have_finite_gradients(x, quantized, slope, dtype):
    x = torch.tensor([x], dtype=dtype, requires_grad=True)
    quantized = torch.tensor([quantized], dtype=dtype)
    out = rotation_trick(x, quantized)
    torch.testing.assert_close(out, quantized)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert gradient.isfinite().all()
    if slope is not None:
        torch.testing.assert_close(gradient, torch.full_like(x, slope))


def test_a_known_gradient_is_passed_on():
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    value = x.detach().square().sum()
    out = with_gradient(value, x, 2 * x.detach())
    assert out.item() == value.item()
    (gradient,) = torch.autograd.grad(3 * out, x)
    torch.testing.assert_close(gradient, 6 * x.detach())
