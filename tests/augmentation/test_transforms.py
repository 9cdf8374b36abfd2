import numpy as np
import pytest

from stages.augmentation.transforms import build_policy, parts, validate_policy, without
from stages.errors import WinnowError

POLICY = [("Affine", {"rotate": [-12, 12], "p": 1.0}), ("RandomBrightnessContrast", {"p": 0.5})]
BLUR, NOISE = {"name": "Blur", "args": {}}, {"name": "GaussNoise", "args": {}}
NESTED = [
    ("HorizontalFlip", {}),
    (
        "OneOf",
        {"transforms": [BLUR, {"name": "SomeOf", "args": {"n": 2, "transforms": [NOISE, BLUR]}}], "p": 0.5},
    ),
]
INNER = "augment.policy.1.args.transforms.1.args.transforms"


@pytest.mark.parametrize(
    ("transform", "args", "words"),
    [
        ("Afine", {}, ["augment.policy.1.name = 'Afine'", "did you mean Affine"]),
        ("affine", {}, ["did you mean Affine"]),
        ("Lambda", {}, ["no such transform"]),
        ("Compose", {}, ["no such transform"]),
        ("Affine", {"rotat": [-5, 5]}, ["augment.policy.1.args.rotat", "did you mean rotate"]),
        ("Affine", {"strict": False}, ["augment.policy.1.args.strict"]),
        ("Affine", {"p": 3}, ["augment.policy.1.args of Affine", "p = 3", "less than or equal to 1"]),
        ("Affine", {"rotate": "far"}, ["rotate = 'far'"]),
        ("RandomCrop", {}, ["height: Field required"]),
        ("MedianBlur", {"blur": 3}, ["augment.policy.1.args.blur"]),
    ],
)
def test_a_wrong_policy_is_one_line_that_names_the_key(transform, args, words):
    with pytest.raises(WinnowError) as error:
        validate_policy([POLICY[0], (transform, args)])
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_right_policy_passes():
    validate_policy(POLICY)
    validate_policy(POLICY, (16, 16, 1))
    validate_policy([])


@pytest.mark.parametrize(
    ("transform", "args", "shape"),
    [
        ("RandomCrop", {"height": 8, "width": 8}, (16, 16, 1)),
        ("Normalize", {}, (16, 16, 3)),
        ("ToRGB", {}, (16, 16, 1)),
        ("ISONoise", {"p": 0.01}, (16, 16, 1)),
    ],
)
def test_a_transform_that_does_not_keep_these_images_is_refused(transform, args, shape):
    with pytest.raises(WinnowError, match=f"augment.policy.0: {transform}"):
        validate_policy([(transform, args)], shape)


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        ("OneOf", {}, r"policy\.0\.args\.transforms: a list of transforms"),
        ("OneOf", {"transforms": []}, "a list of transforms"),
        ("OneOf", {"transforms": "Blur"}, "a list of transforms"),
        ("OneOf", {"transforms": ["Blur"]}, r"transforms\.0 must be {name: …, args: {…}}"),
        ("OneOf", {"transforms": [BLUR, {"name": "Blur"}]}, r"transforms\.1 must be"),
        ("OneOf", {"transforms": [BLUR], "p": 2}, r"args\.p = 2: a number from 0 to 1"),
        ("OneOf", {"transforms": [BLUR], "n": 2}, r"args\.n: OneOf has no such argument"),
        ("OneOf", {"transforms": [{"name": "Blur", "args": {"p": 0.0}}]}, "p of one of them must be above 0"),
        ("SomeOf", {"transforms": [BLUR], "n": 2}, r"args\.n = 2"),
        ("Sequential", {"transforms": [{"name": "Blurr", "args": {}}]}, r"transforms\.0\.name = 'Blurr'"),
    ],
)
def test_a_wrong_combination_names_the_key(name, args, said):
    with pytest.raises(WinnowError, match=said):
        validate_policy([(name, args)], (16, 16, 1))


def test_what_is_inside_a_combination_is_tried_on_the_images():
    crop = {"name": "RandomCrop", "args": {"height": 8, "width": 8}}
    with pytest.raises(WinnowError, match=r"augment\.policy\.0\.args\.transforms\.1: RandomCrop turns"):
        validate_policy([("OneOf", {"transforms": [BLUR, crop]})], (16, 16, 1))
    validate_policy(NESTED, (16, 16, 3))


def test_the_parts_are_the_single_transforms_with_their_keys():
    found = parts(NESTED)
    assert [part.name for part in found] == ["HorizontalFlip", "Blur", "GaussNoise", "Blur"]
    assert [part.key for part in found] == [
        "augment.policy.0",
        "augment.policy.1.args.transforms.0",
        f"{INNER}.0",
        f"{INNER}.1",
    ]
    assert found[0].alone == [("HorizontalFlip", {"p": 1.0})]


def test_parts_can_be_left_out_wherever_they_are():
    fewer = without(NESTED, {"augment.policy.0", f"{INNER}.0"})
    assert [part.name for part in parts(fewer)] == ["Blur", "Blur"]
    validate_policy(fewer, (16, 16, 3))  # SomeOf is not asked for more than it has left
    assert without(NESTED, {part.key for part in parts(NESTED)}) == []
    assert without(NESTED, set()) == NESTED


def test_a_combination_is_applied():
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 1), dtype=np.uint8)
    flips = [{"name": name, "args": {"p": 1.0}} for name in ("HorizontalFlip", "VerticalFlip")]
    made = build_policy([("OneOf", {"transforms": flips, "p": 1.0})])(image=image)["image"]
    assert made.tobytes() in (image[:, ::-1].tobytes(), image[::-1].tobytes())
    made = build_policy([("Sequential", {"transforms": flips, "p": 1.0})])(image=image)["image"]
    assert made.tobytes() == image[::-1, ::-1].tobytes()
