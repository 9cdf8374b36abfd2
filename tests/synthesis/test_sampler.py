import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from imblearn.base import BaseSampler
from imblearn.pipeline import Pipeline
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

from stages.synthesis import GANOverSampler

SMALL = {"steps": 2, "batch_size": 8, "latent_dim": 8, "width": 8, "random_state": 0, "device": "cpu"}


def sampler(**changes):
    return GANOverSampler(**{"image_shape": (8, 8, 1), **SMALL, **changes})


def data(dtype=np.uint8):
    rng = np.random.default_rng(0)
    y = np.repeat(["many", "few", "some"], [20, 6, 12])
    X = rng.integers(0, 100, (38, 64)).astype(np.uint8)
    X[y == "few", :32] += np.uint8(150)
    return X.astype(dtype), y


def test_it_is_a_sampler_that_can_be_cloned():
    assert issubclass(GANOverSampler, BaseSampler)
    copied = clone(sampler(steps=7))
    assert copied.get_params()["steps"] == 7
    assert copied.get_params() == sampler(steps=7).get_params()


def test_it_balances_and_keeps_what_was_there():
    X, y = data()
    fitted = sampler()
    X_new, y_new = fitted.fit_resample(X, y)
    assert Counter(y_new) == {"many": 20, "few": 20, "some": 20}
    assert np.array_equal(X_new[:38], X)
    assert np.array_equal(y_new[:38], y)
    assert X_new.dtype == np.uint8
    assert fitted.sampling_strategy_ == {"few": 14, "some": 8}
    assert fitted.n_features_in_ == 64
    again, _ = sampler().fit_resample(X, y)
    assert np.array_equal(again, X_new)
    other, _ = sampler(random_state=1).fit_resample(X, y)
    assert not np.array_equal(other, X_new)


def test_a_strategy_by_class_is_followed():
    X, y = data()
    _, y_new = sampler(sampling_strategy={"few": 9}).fit_resample(X, y)
    assert Counter(y_new) == {"many": 20, "few": 9, "some": 12}
    with pytest.raises(ValueError, match="greater or equal"):
        sampler(sampling_strategy={"few": 2}).fit_resample(X, y)


def test_nothing_is_trained_where_nothing_is_needed():
    X, y = data()
    fitted = sampler(sampling_strategy={})
    X_new, _ = fitted.fit_resample(X, y)
    assert len(X_new) == len(X)
    assert fitted.gan_ is None


def test_floats_come_back_in_their_own_range():
    X, y = data()
    scaled = (X / 255.0 * 6 - 3).astype(np.float32)
    X_new, _ = sampler().fit_resample(scaled, y)
    assert X_new.dtype == np.float32
    assert X_new.min() >= scaled.min() - 1e-5
    assert X_new.max() <= scaled.max() + 1e-5
    assert X_new[38:].std() > 0


def test_colour_and_another_size():
    X = np.random.default_rng(0).integers(0, 256, (12, 16 * 16 * 3), dtype=np.uint8)
    X_new, y_new = sampler(image_shape=(16, 16, 3)).fit_resample(X, np.repeat([0, 1], [9, 3]))
    assert X_new.shape == (18, 768)
    assert y_new[12:].tolist() == [1] * 6


def test_it_works_in_a_pipeline_and_in_cross_validation():
    X, y = data()
    steps = [("gan", sampler()), ("model", LogisticRegression(max_iter=200))]
    pipeline = Pipeline(steps).fit(X, y)
    assert set(pipeline.predict(X)) == {"many", "few", "some"}
    assert len(cross_val_score(Pipeline(steps), X, y, cv=2)) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_shape": None}, "image_shape=\\(height, width, channels\\)"),
        ({"image_shape": (8, 8, 3)}, "192 values, but X has 64"),
        ({"image_shape": (4, 16, 1)}, "8 to 64 pixels"),
        ({"steps": 0}, "'steps' parameter"),
        ({"device": "abacus"}, "'device' parameter"),
    ],
)
def test_bad_arguments_say_what_is_wrong(changes, message):
    with pytest.raises(ValueError, match=message):
        sampler(**changes).fit_resample(*data())


def test_not_a_number_and_sparse_are_refused():
    from scipy import sparse

    X, y = data(np.float64)
    with pytest.raises(TypeError, match="parse"):
        sampler().fit_resample(sparse.csr_matrix(X), y)
    X[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        sampler().fit_resample(X, y)


def test_importing_the_room_does_not_import_torch():
    code = "import stages.synthesis.augmentation, sys; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
