import numpy as np
import pytest
from ruamel.yaml import YAML

from stages.augmentation.copying import transformed
from stages.augmentation.presets import PHRASES, PRESETS, choose_policy, reason_against, refuse_unfit
from stages.augmentation.transforms import validate_policy
from stages.errors import WinnowError
from stages.workflow.params import parse_params

FLIPS = ["HorizontalFlip", "VerticalFlip", "Transpose", "D4", "SquareSymmetry", "RandomRotate90"]


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [8, 16, 32, 224])
def test_every_preset_holds_for_every_kind_of_image(name, channels, side):
    policy, key = choose_policy(name, None)
    validate_policy(policy, (side, side, channels), key)
    refuse_unfit(name, policy, side, key)
    images = np.random.default_rng(0).integers(0, 256, (2, side, side, channels), dtype=np.uint8)
    copies = transformed(images, np.array([0, 1, 0, 1]), list("abcd"), policy, 0, processes=1)
    assert copies.dtype == np.uint8
    assert (copies != images[[0, 1, 0, 1]]).any(axis=(1, 2, 3)).all()


def test_the_names_are_those_of_params_yaml(params_dict):
    for name in PRESETS:
        params_dict["augment"]["preset"] = name
        assert parse_params(params_dict).augment.preset == name
    params_dict["augment"]["preset"] = "drawings"
    with pytest.raises(WinnowError, match=", ".join(f"'{name}'" for name in list(PRESETS)[:-1])):
        parse_params(params_dict)


def test_the_policy_of_the_digits():
    affine = """
    - - Affine
      - {rotate: [-12, 12], scale: [0.9, 1.1], translate_percent: [-0.08, 0.08], shear: [-6, 6], p: 1.0}
    - - RandomBrightnessContrast
      - {brightness_limit: 0.15, contrast_limit: 0.15, p: 0.5}
    """
    wanted = [tuple(transform) for transform in YAML(typ="safe").load(affine)]
    assert PRESETS["digits"].policy == wanted


@pytest.mark.parametrize(
    ("preset", "transform", "args", "words"),
    [
        *[("digits", name, {}, ["digits", "refuses"]) for name in FLIPS],
        *[("medical", name, {}, ["medical", "refuses"]) for name in FLIPS],
        *[("photos", name, {}, ["refuses"]) for name in FLIPS if name != "HorizontalFlip"],
        ("digits", "Affine", {"rotate": 90}, ["by up to 90 degrees", "beyond 20"]),
        ("digits", "Affine", {"rotate": [-5, 21]}, ["by up to 21 degrees"]),
        ("digits", "Affine", {"scale": {"x": [-1, 1], "y": 1.0}}, ["mirrors left and right"]),
        ("digits", "Affine", {"scale": {"x": 1.0, "y": [-1, -1]}}, ["upside down", "a 6 becomes a 9"]),
        ("digits", "Affine", {"scale": 0.5}, ["by a factor of up to 2"]),
        ("digits", "Rotate", {}, ["by up to 90 degrees"]),
        ("digits", "ElasticTransform", {"alpha": 120, "sigma": 6}, ["moves parts", "loops"]),
        ("digits", "RandomResizedCrop", {"size": [16, 16]}, ["cuts off up to 92%"]),
        ("photos", "ColorJitter", {"hue": 0.5}, ["shifts hues by up to 50%", "colours tell things apart"]),
        ("photos", "ChannelShuffle", {}, ["shifts hues"]),
        ("medical", "ColorJitter", {"hue": 0.0}, ["strength of colours", "tissue and stain"]),
        ("medical", "HueSaturationValue", {}, ["shifts hues"]),
        ("medical", "ElasticTransform", {}, ["outline of organs and lesions"]),
        ("medical", "CoarseDropout", {}, ["the only lesion may be covered"]),
        ("medical", "InvertImg", {}, ["brightness is a measurement"]),
        ("digits", "CropAndPad", {"percent": -0.45}, ["cuts off up to 99%"]),
        ("digits", "CropAndPad", {"px": [-3, 2]}, ["cuts off up to 61%"]),
        ("digits", "CropAndPad", {"px": [0, [-6, 0], 0, 0]}, ["cuts off up to 38%"]),
        ("digits", "RandomSizedCrop", {"min_max_height": [4, 5], "size": [16, 16]}, ["cuts off up to 94%"]),
        (
            "digits",
            "RandomSizedBBoxSafeCrop",
            {"height": 16, "width": 16, "erosion_rate": 0.5},
            ["up to 75%"],
        ),
        ("textures", "RandomSizedCrop", {"min_max_height": [4, 16], "size": [16, 16]}, ["factor of up to 4"]),
        ("digits", "Affine", {"translate_percent": [0.9, 0.9]}, ["cuts off up to 99%"]),
        ("digits", "Affine", {"translate_px": {"x": [-8, 8]}}, ["cuts off up to 50%"]),
        ("digits", "ShiftScaleRotate", {"shift_limit": 0.5, "rotate_limit": 0}, ["cuts off up to 75%"]),
        ("digits", "GridDistortion", {"distort_limit": [-0.9, 0.9]}, ["moves parts", "up to 0.45"]),
        ("digits", "ThinPlateSpline", {}, ["moves parts"]),
        ("medical", "RandomBrightnessContrast", {"contrast_limit": [-2, -2]}, ["inverts or regroups"]),
        ("medical", "RandomBrightnessContrast", {"brightness_limit": [-1, 0]}, ["brightness by up to 100%"]),
        ("medical", "HEStain", {}, ["tissue and stain"]),
        ("medical", "ChromaticAberration", {}, ["tissue and stain"]),
        *[("medical", name, {}, ["inverts or regroups"]) for name in ("CLAHE", "AutoContrast", "Equalize")],
        ("medical", "RandomGamma", {"gamma_limit": [5, 500]}, ["brightness by up to 47%"]),
        ("medical", "RandomToneCurve", {"scale": 0.5}, ["brightness by up to 100%", "measurement"]),
        ("medical", "PlasmaShadow", {}, ["brightness by up to 70%"]),
        ("textures", "GaussianBlur", {"sigma_limit": [2, 3]}, ["blurs over up to 9 pixels"]),
        ("textures", "Downscale", {}, ["blurs"]),
        ("textures", "GaussNoise", {}, ["adds noise of up to 44%"]),
    ],
)
def test_what_a_preset_must_not_do_is_named_with_the_reason(preset, transform, args, words):
    policy = [("RandomGamma", {}), (transform, args)]
    with pytest.raises(WinnowError) as caught:
        refuse_unfit(preset, policy, 16)
    message = str(caught.value)
    assert message.startswith(f"augment.policy.1: {transform} ")
    assert "\n" not in message
    for word in words:
        assert word in message
    refuse_unfit(None, policy, 16)


@pytest.mark.parametrize(
    ("preset", "transform", "args"),
    [
        ("digits", "Affine", {"rotate": [-20, 20], "shear": [-10, 10], "scale": [0.8, 1.2]}),
        ("digits", "ElasticTransform", {"alpha": 10, "sigma": 4}),
        ("digits", "Affine", {"translate_percent": [-0.1, 0.1]}),
        ("digits", "CropAndPad", {"px": [[0, 2], 0, 0, 0]}),
        ("digits", "CropAndPad", {"percent": [-0.05, 0.05]}),
        ("digits", "GridDistortion", {"distort_limit": 0.3}),
        ("medical", "RandomGamma", {}),
        ("medical", "RandomToneCurve", {}),
        ("medical", "RandomBrightnessContrast", {"contrast_limit": [-0.2, 0.2]}),
        ("photos", "CLAHE", {}),
        ("photos", "HorizontalFlip", {}),
        ("photos", "HueSaturationValue", {}),
        ("photos", "RandomResizedCrop", {"size": [16, 16]}),
        ("medical", "ColorJitter", {"hue": 0.0, "saturation": [1.0, 1.0]}),
        ("medical", "GaussianBlur", {"blur_limit": [3, 3]}),
        ("medical", "MultiplicativeNoise", {"multiplier": [0.8, 1.2]}),
        *[("textures", name, {}) for name in FLIPS],
        ("textures", "GaussNoise", {"std_range": [0.02, 0.05]}),
    ],
)
def test_what_is_mild_or_does_no_harm_is_allowed(preset, transform, args):
    refuse_unfit(preset, [(transform, args)], 16)


def test_the_size_of_the_image_counts_where_the_argument_is_in_pixels():
    policy = [("ElasticTransform", {"alpha": 34, "sigma": 4})]  # moves by some 5 pixels
    refuse_unfit("digits", policy, 64)
    with pytest.raises(WinnowError, match="moves parts"):
        refuse_unfit("digits", policy, 16)


def test_nothing_hides_in_a_combination():
    inner = [{"name": "RandomGamma", "args": {}}, {"name": "Transpose", "args": {}}]
    outer = [{"name": "Sequential", "args": {"transforms": inner}}]
    with pytest.raises(WinnowError, match=r"policy\.0\.args\.transforms\.0\.args\.transforms\.1: Transpose"):
        refuse_unfit("digits", [("OneOf", {"transforms": outer})], 16)


def turns(*degrees):
    return [{"name": "Rotate", "args": {"limit": [-limit, limit], "p": 0.1}} for limit in degrees]


@pytest.mark.parametrize(
    ("policy", "degrees"),
    [
        ([("Rotate", {"limit": 15}), ("Affine", {"rotate": 15}), ("SafeRotate", {"limit": 15})], 45),
        ([("Sequential", {"transforms": turns(12, 13)})], 25),
        ([("OneOf", {"transforms": turns(5, 15)}), ("Rotate", {"limit": [10, 10]})], 25),
        ([("SomeOf", {"n": 2, "transforms": turns(5, 15, 12)})], 27),
        ([("SomeOf", {"n": 3, "replace": True, "transforms": turns(5, 7, 2)})], 21),
    ],
)
def test_rotations_add_up(policy, degrees):
    validate_policy(policy, (16, 16, 1))
    with pytest.raises(WinnowError) as caught:
        refuse_unfit("digits", policy, 16)
    message = str(caught.value)
    assert message.startswith(
        f"augment.policy: the policy as a whole rotates by up to {degrees} degrees, which augment.preset = "
    )
    assert "beyond 20" in message
    refuse_unfit("textures", policy, 16)


def test_rotations_of_which_an_image_meets_one_do_not_add_up():
    refuse_unfit("digits", [("OneOf", {"transforms": turns(15, 20, 18)})], 16)
    refuse_unfit("digits", [("SomeOf", {"n": 1, "transforms": turns(15, 20)})], 16)
    refuse_unfit("digits", [("Rotate", {"limit": 13.3}), ("Affine", {"rotate": 6.7})], 16)


def test_which_policy_is_used():
    own = [("Blur", {})]
    assert choose_policy("digits", own) == (own, "augment.policy")
    assert choose_policy("digits", []) == ([], "augment.policy")
    assert choose_policy(None, own) == (own, "augment.policy")
    assert choose_policy("photos", None) == (PRESETS["photos"].policy, "augment.preset.photos")


def test_which_presets_speak_against_flips():
    assert {name for name in PRESETS if reason_against(name, "mirror")} == {"digits", "medical"}
    assert reason_against(None, "mirror") is None
    assert reason_against("digits", "rotation") is None  # some is fine


def test_the_limits_are_on_effects_that_there_are():
    assert {effect for preset in PRESETS.values() for effect in preset.limits} <= set(PHRASES)
