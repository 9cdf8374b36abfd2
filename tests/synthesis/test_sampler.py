import subprocess
import sys
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from imblearn.base import BaseSampler
from imblearn.pipeline import Pipeline
from imblearn.utils.estimator_checks import (
    check_dataframe_column_names_consistency,
    check_param_validation,
    parametrize_with_checks,
)
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

from stages.synthesis.sampler import GANOverSampler, _crop, _pad, _set_aside

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


@pytest.mark.parametrize(
    ("dtype", "kind"), [(np.int16, "levels"), (np.int64, "levels"), (bool, "two"), (np.float64, "levels")]
)
def test_other_types_come_back_as_they_were(dtype, kind):
    X, y = data()
    X = (X > 100 if kind == "two" else X.astype(np.float64) * 3 - 200).astype(dtype)
    X_new, _ = sampler().fit_resample(X, y)
    assert X_new.dtype == dtype
    assert np.array_equal(X_new[:38], X)
    assert X_new.min() >= X.min()
    assert X_new.max() <= X.max()


def test_a_data_frame_comes_back_as_one():
    X, y = data()
    frame = pd.DataFrame(X, columns=[f"pixel_{i}" for i in range(64)])
    X_new, y_new = sampler().fit_resample(frame, pd.Series(y, name="kind"))
    assert list(X_new.columns) == list(frame.columns)
    assert set(X_new.dtypes) == {np.dtype(np.uint8)}
    assert y_new.name == "kind"
    assert len(X_new) == 60


@pytest.mark.parametrize(
    "shape", [(16, 16, 3), (28, 28, 1), (9, 13, 2), (1, 1, 1), (4, 20, 4), (64, 3, 1), (7, 8, 3)]
)
def test_images_of_any_size_up_to_64_pixels_with_up_to_four_channels(shape):
    X = np.random.default_rng(0).integers(0, 256, (12, np.prod(shape)), dtype=np.uint8)
    fitted = sampler(image_shape=shape, steps=1)
    X_new, y_new = fitted.fit_resample(X, np.repeat([0, 1], [9, 3]))
    assert X_new.shape == (18, np.prod(shape))
    assert y_new[12:].tolist() == [1] * 6
    assert fitted.image_shape_ == shape
    made = fitted.gan_.generate(np.ones(1, np.int64), seed=0)[0]
    assert made.shape[2] == shape[2]
    assert all(side % 8 == 0 for side in made.shape[:2])


def test_padding_is_taken_away_again():
    images = np.random.default_rng(0).integers(0, 256, (3, 11, 28, 2), dtype=np.uint8)
    padded = _pad(images)
    assert padded.shape == (3, 16, 32, 2)
    assert np.array_equal(_crop(padded, (11, 28, 2)), images)
    assert np.array_equal(padded[:, 0], padded[:, 1])
    square = images[:, :8, :8]
    assert np.array_equal(_pad(square), square)


@pytest.mark.parametrize(
    ("features", "shape"), [(64, (8, 8, 1)), (192, (8, 8, 3)), (49, (7, 7, 1)), (2, None)]
)
def test_without_a_shape_square_images_are_known_by_their_size(features, shape):
    X, y = np.random.default_rng(0).random((9, features)), np.repeat([0, 1], [6, 3])
    fitted = sampler(image_shape=None, steps=1)
    if shape is None:
        with pytest.raises(ValueError, match=r"give it \(X has 2 features\)"):
            fitted.fit_resample(X, y)
    else:
        fitted.fit_resample(X, y)
        assert fitted.image_shape_ == shape


def test_images_of_more_than_64_pixels_are_refused():
    X = np.zeros((4, 65 * 8), np.uint8)
    with pytest.raises(ValueError, match=r"up to 64 pixels .* not 65×8"):
        sampler(image_shape=(65, 8, 1)).fit_resample(X, [0, 0, 0, 1])


def test_validation_images_are_not_trained_on_and_choose_the_snapshots():
    X, y = data()
    fitted = sampler(validation_fraction=0.5, steps=6, snapshots=3)
    _, y_new = fitted.fit_resample(X, y)
    assert Counter(y_new) == {"many": 20, "few": 20, "some": 20}
    # classes: few, many, some; of 20 images 10 are for validation, of 12 and 6 too few
    assert {row["class"] for row in fitted.gan_.scores} == {1}
    best = min(fitted.gan_.scores, key=lambda row: row["score"])["step"]
    assert fitted.gan_.chosen.tolist() == [best] * 3
    assert fitted.gan_.steps == [4, 5, 6]
    labels = np.repeat([0, 1, 2], [7, 1, 4])
    aside = _set_aside(labels, 0.5, 0)
    assert np.bincount(labels[aside], minlength=3).tolist() == [3, 0, 2]
    assert np.array_equal(aside, _set_aside(labels, 0.5, 0))


@pytest.mark.parametrize("counts", [[7, 1], [2, 1], [1, 1, 5]])
def test_one_image_in_a_class_and_two_classes(counts):
    y = np.repeat(np.arange(len(counts)), counts)
    X = np.random.default_rng(0).integers(0, 256, (len(y), 64), dtype=np.uint8)
    X_new, y_new = sampler().fit_resample(X, y)
    assert set(Counter(y_new).values()) == {max(counts)}
    assert len(X_new) == max(counts) * len(counts)


@pytest.mark.parametrize("value", [0, 255, 0.5])
def test_constant_images(value):
    X, y = np.full((9, 64), value), np.repeat([0, 1], [6, 3])
    X_new, _ = sampler().fit_resample(X, y)
    assert np.isfinite(X_new).all()
    assert np.array_equal(X_new[:9], X)
    assert (X_new == value).all()


def test_integers_of_few_values_come_back_as_such():
    X, y = data()
    X = (X // 16).astype(np.uint8)  # as scikit-learn's digits have them, 0 to 16
    fitted = sampler()
    X_new, _ = fitted.fit_resample(X, y)
    assert fitted.value_range_ == (0.0, float(X.max()))
    assert X_new.dtype == np.uint8
    assert X_new.max() <= X.max()


@pytest.mark.parametrize("shape", [(-1, 8, 8), (-1, 8, 8, 1)])
def test_images_that_are_not_flat_get_a_hint(shape):
    X, y = data()
    with pytest.raises(
        ValueError, match=rf"X has {len(shape)} dimensions: give it as X.reshape\(len\(X\), -1\)"
    ):
        sampler().fit_resample(X.reshape(shape), y)


def test_the_generator_is_told_in_a_line():
    fitted = sampler(steps=4)
    fitted.fit_resample(*data())
    assert "image_shape=(8, 8, 1)" in repr(fitted.gan_)
    assert len(repr(fitted.gan_)) < 300


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("minority", {"many": 20, "few": 20, "some": 12}),
        ("not minority", {"many": 20, "few": 6, "some": 20}),
        ("not majority", {"many": 20, "few": 20, "some": 20}),
        ("all", {"many": 20, "few": 20, "some": 20}),
        ({"some": 15}, {"many": 20, "few": 6, "some": 15}),
        (lambda y: {"few": 10, "many": 25}, {"many": 25, "few": 10, "some": 12}),
    ],
    ids=["minority", "not-minority", "not-majority", "all", "dict", "callable"],
)
def test_every_form_of_the_strategy(strategy, expected):
    _, y_new = sampler(sampling_strategy=strategy, steps=1).fit_resample(*data())
    assert Counter(y_new) == expected


def test_the_strategy_as_a_ratio_of_two_classes():
    X, y = data()
    two = y != "some"
    _, y_new = sampler(sampling_strategy=0.5).fit_resample(X[two], y[two])
    assert Counter(y_new) == {"many": 20, "few": 10}
    with pytest.raises(ValueError, match="remove samples"):
        sampler(sampling_strategy=0.1).fit_resample(X[two], y[two])
    with pytest.raises(ValueError, match="multi-class"):
        sampler(sampling_strategy=0.5).fit_resample(X, y)


class Strips(GANOverSampler):
    """Rows of any length, as the checks bring them, for images of one line."""

    def _shape(self, X):
        return 1, X.shape[1], 1


# The only exception.
EXCEPTIONS = {"check_samplers_pandas_sparse": "images are dense; sparse input is refused (TypeError)"}


@parametrize_with_checks([Strips(**{**SMALL, "steps": 1})], expected_failed_checks=lambda _: EXCEPTIONS)
def test_imbalanced_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize(
    "check", [check_param_validation, check_dataframe_column_names_consistency], ids=lambda c: c.__name__
)
def test_its_checks_that_stand_beside_the_list(check):
    check("Strips", Strips(**{**SMALL, "steps": 1}))


def test_it_works_in_a_pipeline_and_in_cross_validation():
    X, y = data()
    steps = [("gan", sampler()), ("model", LogisticRegression(max_iter=200))]
    pipeline = Pipeline(steps).fit(X, y)
    assert set(pipeline.predict(X)) == {"many", "few", "some"}
    assert len(cross_val_score(Pipeline(steps), X, y, cv=2)) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_shape": (8, 8)}, "image_shape=\\(height, width, channels\\)"),
        ({"image_shape": (8, 8, 3)}, "192 values, but X has 64"),
        ({"image_shape": (-8, -8, 1)}, "1 to 4 channels, not -8×-8"),
        ({"image_shape": (2, 4, 8)}, "1 to 4 channels, not 2×4 with 8"),
        ({"steps": 0}, "'steps' parameter"),
        ({"validation_fraction": 1.0}, "'validation_fraction' parameter"),
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
    code = "import stages.augmentation.copying, sys; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
