import numpy as np
import pytest

from rqtoolkit.semantic_ids import Standardization


def test_by_hand():
    x = np.array([[0.0, 1.0], [4.0, 1.0]], np.float32)
    plain = Standardization.fit(x)
    # Spreads 2 and 0: their squares average to 2.
    np.testing.assert_allclose(plain.center, [2, 1])
    np.testing.assert_allclose(plain.scale, np.sqrt(2))
    np.testing.assert_allclose(plain.apply(x), [[-np.sqrt(2), 0], [np.sqrt(2), 0]], rtol=1e-6)


def test_columns_are_scaled_each_and_constant_ones_left_alone():
    x = np.random.default_rng(0).normal(size=(500, 4)) * [1, 10, 100, 0] + [0, 0, 0, 0.3]
    x = x.astype(np.float16).astype(np.float32)
    fitted = Standardization.fit(x, scale_columns=True)
    standard = fitted.apply(x)
    np.testing.assert_allclose(standard[:, :3].std(axis=0), 1, rtol=1e-3)
    assert (np.abs(standard[:, 3]) < 1e-6).all()
    # A value that the constant column never had counts no more than it would without the option.
    assert fitted.scale[3] == pytest.approx(float(Standardization.fit(x).scale[3]))


@pytest.mark.parametrize("scale_columns", [False, True])
def test_restore_inverts_apply(scale_columns):
    x = np.random.default_rng(1).normal(3, 2, size=(40_000, 5))
    fitted = Standardization.fit(x, scale_columns=scale_columns)
    np.testing.assert_allclose(fitted.restore(fitted.apply(x)), x, atol=1e-5)
    np.testing.assert_allclose(fitted.center, x.mean(axis=0), rtol=1e-6)
    spread = x.std(axis=0) if scale_columns else np.sqrt(x.var(axis=0).mean())
    np.testing.assert_allclose(fitted.scale, spread, rtol=1e-5)


def test_vectors_all_equal_keep_a_scale():
    fitted = Standardization.fit(np.ones((3, 2), np.float32), scale_columns=True)
    assert (fitted.scale == 1).all()
    assert (fitted.apply(np.ones((1, 2))) == 0).all()
