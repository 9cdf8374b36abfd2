"""Define presets for kinds of images: a safe policy, and limits of transforms with a reason each.

The limits hold for policies of one's own too. They are on what a transform can do to an image at most, read
from its arguments; how likely it is (`p`) does not matter. Only effects that a preset has reason to limit are
listed: a transform that is not here has none of them, or they cannot be told from its arguments. What a
transform does to the classes at hand is measured besides (`survival`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stages.augmentation.transforms import POLICY_KEY, Part, Policy, build_part, most_together, parts
from stages.errors import WinnowError

# Effects in words, with their amount in braces.
PHRASES = {
    "mirror": "mirrors left and right",
    "upside_down": "turns images upside down",
    "rotation": "rotates by up to {:.4g} degrees",
    "shear": "shears by up to {:.4g} degrees",
    "zoom": "scales by a factor of up to {:.3g}",
    "distortion": "moves parts of the image by up to {:.2g} of its side",
    "growth": "grows or shrinks what is bright",
    "crop": "cuts off up to {:.0%} of the image",
    "cover": "covers parts of the image",
    "hue": "shifts hues by up to {:.0%} of their range",
    "saturation": "changes the strength of colours by up to {:.0%}",
    "tones": "inverts or regroups brightness",
    "brightness": "shifts brightness by up to {:.0%} of its range",
    "blur": "blurs over up to {:.3g} pixels",
    "noise": "adds noise of up to {:.0%} of the range of values",
}


# Those of several transforms that are applied one after another add up, at most.
ADDING = ("rotation", "shear")

Amount = Callable[[Any], float]
_COVER = {"cover": 1.0}
_TONES = {"tones": 1.0}
_COLOURS = {"hue": 0.1, "saturation": 1.0}
_IN_PIXELS = {"ElasticTransform", "GridElasticDeform"}
PRESET_KEY = "augment.preset"
_REFLECT = 4  # OpenCV's BORDER_REFLECT_101: no black wedges beside what is not black


def effects_of(name: str, transform: Any, side: int) -> dict[str, float]:
    """Return the effects of one transform, by name of `PHRASES`, with the most that each can amount to.

    Parameters
    ----------
    name : albumentations' name of it
    transform : as albumentations built it, with ranges in place of single numbers and defaults
        filled in
    side : pixels of the images, the shorter of height and width
    """
    effects = {
        effect: float(amount(transform)) if callable(amount) else amount
        for effect, amount in _EFFECTS.get(name, {}).items()
    }
    if name in _IN_PIXELS:
        effects["distortion"] /= side
    if name in _CROPS:
        effects["crop"] = _CROPS[name](transform, side)
        effects.setdefault("zoom", _magnified(effects["crop"]))
    return {effect: amount for effect, amount in effects.items() if amount > 0}


def _numbers(value: Any) -> list[float]:
    """Return all numbers in ranges, and in mappings of ranges."""
    if isinstance(value, Mapping):
        return [number for item in value.values() for number in _numbers(item)]
    if isinstance(value, list | tuple):
        return [number for item in value for number in _numbers(item)]
    return [float(value)] if isinstance(value, int | float) else []


def _most(attribute: str, scale: float = 1.0, around: float = 0.0) -> Amount:
    """Measure the largest distance of an argument from `around`, times `scale`."""
    return lambda transform: (
        scale * max((abs(number - around) for number in _numbers(getattr(transform, attribute))), default=0.0)
    )


def _zoom(transform: Any) -> float:
    """Return the larger of magnification and reduction; 1 is neither, and does not count."""
    factors = [abs(number) for number in _numbers(transform.scale)]
    most = max((max(factor, 1 / factor) if factor else math.inf for factor in factors), default=1.0)
    return most if most > 1 else 0.0


def _negative(axis: str) -> Amount:
    """Tell whether a scale is below zero, which mirrors that axis."""
    return lambda transform: float(min(_numbers(transform.scale[axis])) < 0)


def _elastic(transform: Any) -> float:
    """Return how far blurred noise of unit variance moves pixels: 2 standard deviations."""
    return 2 * abs(transform.alpha) / (2 * math.sqrt(math.pi) * max(transform.sigma, 0.3))


def _resized(transform: Any, side: int) -> float:
    return 1.0 - min(_numbers(transform.scale))


def _shifted(transform: Any, side: int) -> float:
    """Return the share of the image that a shift moves out of it."""
    pixels = transform.translate_percent is None
    shifts = transform.translate_px if pixels else transform.translate_percent
    left = [1 - min(1.0, max(map(abs, _numbers(shifts[axis]))) / (side if pixels else 1)) for axis in "xy"]
    return 1 - left[0] * left[1]


def _cropped_sides(transform: Any, side: int) -> float:
    """Return the share that `CropAndPad` cuts off: it crops by negative amounts, of all sides or of each."""
    amount = transform.px if transform.percent is None else transform.percent
    each = list(amount) if isinstance(amount, list | tuple) and len(amount) == 4 else [amount] * 4
    scale = side if transform.percent is None else 1
    top, right, bottom, left = (max(0.0, -min(_numbers(amount))) / scale for amount in each)
    return 1 - max(0.0, 1 - top - bottom) * max(0.0, 1 - left - right)


def _cropped_height(transform: Any, side: int) -> float:
    height = min(_numbers(transform.min_max_height)) / side
    return 1 - min(1.0, height) * min(1.0, height * transform.w2h_ratio)


def _magnified(crop: float) -> float:
    """Return the magnification of the rest of a crop, brought to the size of the whole."""
    return 1 / math.sqrt(1 - crop) if 0 < crop < 1 else math.inf if crop else 0.0


def _grid(transform: Any) -> float:
    """Return the shift at the middle where all steps before it are wider, and all after it narrower."""
    return _most("distort_limit", 0.5 if transform.normalized else 1.0)(transform)


def _spline(transform: Any) -> float:
    """Return the displacement that 1 in 20 images exceeds, as measured for 4 points a side."""
    return _most("scale_range", 0.1 * transform.num_control_points**2)(transform)


def _inverts(attribute: str) -> Amount:
    """Tell whether contrast is below -1, which turns dark into bright."""
    return lambda transform: float(min(_numbers(getattr(transform, attribute))) < -1)


def _brightness(brightness: str, contrast: str) -> Amount:
    """Measure the change of a medium grey, which contrast changes by half as much."""
    return lambda transform: max(_most(brightness)(transform), _most(contrast, 0.5)(transform))


def _gamma(transform: Any) -> float:
    """Return the change of a medium grey."""
    return max(abs(0.5 ** (number / 100) - 0.5) for number in _numbers(transform.gamma_limit))


def _gaussian(transform: Any) -> float:
    """Return the width of the kernel; where it is not given, albumentations chooses it by sigma."""
    return _most("blur_limit")(transform) or _most("sigma_limit", 3.0)(transform)


def _multiplied(transform: Any) -> float:
    """Return the noise of factors for each pixel; one factor for all makes an image brighter instead."""
    return _most("multiplier", around=1.0)(transform) if transform.elementwise else 0.0


_AFFINE: Mapping[str, float | Amount] = {
    "mirror": _negative("x"),
    "upside_down": _negative("y"),
    "rotation": _most("rotate"),
    "shear": _most("shear"),
    "zoom": _zoom,
}


_KERNEL = {"blur": _most("blur_limit")}


_CROPS: Mapping[str, Callable[[Any, int], float]] = {
    "Affine": _shifted,
    "ShiftScaleRotate": _shifted,
    "RandomResizedCrop": _resized,
    "RandomSizedCrop": _cropped_height,
    "RandomSizedBBoxSafeCrop": lambda transform, side: 1 - (1 - transform.erosion_rate) ** 2,
    "CropAndPad": _cropped_sides,
}


_EFFECTS: Mapping[str, Mapping[str, float | Amount]] = {
    "HorizontalFlip": {"mirror": 1.0},
    "TimeReverse": {"mirror": 1.0},
    "VerticalFlip": {"upside_down": 1.0},
    "Transpose": {"mirror": 1.0, "rotation": 90.0},
    "RandomRotate90": {"rotation": 180.0},
    "D4": {"mirror": 1.0, "upside_down": 1.0, "rotation": 180.0},
    "SquareSymmetry": {"mirror": 1.0, "upside_down": 1.0, "rotation": 180.0},
    "Rotate": {"rotation": _most("limit")},
    "Affine": _AFFINE,
    "SafeRotate": _AFFINE,
    "ShiftScaleRotate": _AFFINE,
    "Perspective": {"distortion": _most("scale")},
    "GridDistortion": {"distortion": _grid},
    "OpticalDistortion": {"distortion": _most("distort_limit", 0.35)},
    "PiecewiseAffine": {"distortion": _most("scale")},
    "ThinPlateSpline": {"distortion": _spline},
    "RandomGridShuffle": {"distortion": 1.0},
    "ElasticTransform": {"distortion": _elastic},
    "GridElasticDeform": {"distortion": _most("magnitude")},
    "Morphological": {"growth": 1.0},
    "CoarseDropout": _COVER,
    "ConstrainedCoarseDropout": _COVER,
    "Erasing": _COVER,
    "GridDropout": _COVER,
    "MaskDropout": _COVER,
    "XYMasking": _COVER,
    "TimeMasking": _COVER,
    "FrequencyMasking": _COVER,
    "RandomFog": _COVER,
    "RandomGravel": _COVER,
    "RandomRain": _COVER,
    "RandomShadow": _COVER,
    "RandomSnow": _COVER,
    "RandomSunFlare": _COVER,
    "Spatter": _COVER,
    "TextImage": _COVER,
    "ColorJitter": {
        "hue": _most("hue"),
        "saturation": _most("saturation", around=1.0),
        "brightness": _most("brightness", around=1.0),
    },
    "HueSaturationValue": {
        "hue": _most("hue_shift_limit", 1 / 180),
        "saturation": _most("sat_shift_limit", 1 / 255),
    },
    "RGBShift": {"hue": _most("noise_params")},
    "ChannelShuffle": {"hue": 1.0},
    "ChannelDropout": {"hue": 1.0},
    "FancyPCA": {"hue": _most("alpha")},
    "PlanckianJitter": {"hue": 0.1},
    "ChromaticAberration": {"hue": 0.1},
    "HEStain": _COLOURS,
    "ISONoise": {"hue": _most("color_shift"), "noise": _most("intensity")},
    "ToGray": {"saturation": 1.0},
    "ToSepia": {"saturation": 1.0},
    "InvertImg": _TONES,
    "Solarize": _TONES,
    "Posterize": _TONES,
    "Equalize": _TONES,
    "CLAHE": _TONES,
    "AutoContrast": _TONES,
    "RandomBrightnessContrast": {
        "tones": _inverts("contrast_limit"),
        "brightness": _brightness("brightness_limit", "contrast_limit"),
    },
    "PlasmaBrightnessContrast": {
        "tones": _inverts("contrast_range"),
        "brightness": _brightness("brightness_range", "contrast_range"),
    },
    "RandomGamma": {"brightness": _gamma},
    "RandomToneCurve": {"brightness": _most("scale", 2.0)},  # standard deviations of points of the curve
    "Illumination": {"brightness": _most("intensity_range")},
    "PlasmaShadow": {"brightness": _most("shadow_intensity_range")},
    "Blur": _KERNEL,
    "MedianBlur": _KERNEL,
    "MotionBlur": _KERNEL,
    "AdvancedBlur": _KERNEL,
    "GaussianBlur": {"blur": _gaussian},
    "Defocus": {"blur": _most("radius", 2.0)},
    "GlassBlur": {"blur": _most("max_delta", 2.0)},
    "ZoomBlur": {"blur": math.inf},
    "Superpixels": {"blur": math.inf},
    "Downscale": {"blur": lambda transform: 1 / min(_numbers(transform.scale_range))},
    "GaussNoise": {"noise": _most("std_range")},
    "AdditiveNoise": {"noise": _most("noise_params")},
    "MultiplicativeNoise": {"noise": _multiplied},
    "ShotNoise": {"noise": _most("scale_range")},
    "SaltAndPepper": {"noise": _most("amount")},
    "PixelDropout": {"noise": _most("dropout_prob")},
}


@dataclass(frozen=True)
class Limit:
    """How much of an effect is allowed at most (0: none), and why no more."""

    at_most: float
    why: str


@dataclass(frozen=True)
class Preset:
    """A policy for images of a kind, and what must not be done to such images.

    Attributes
    ----------
    policy : for images of any size from 8 pixels on, grey or RGB
    limits : by effect, of `PHRASES`
    """

    policy: Policy
    limits: Mapping[str, Limit]


PRESETS: Mapping[str, Preset] = {
    "digits": Preset(
        policy=[
            (
                "Affine",
                {
                    "rotate": [-12, 12],
                    "scale": [0.9, 1.1],
                    "translate_percent": [-0.08, 0.08],
                    "shear": [-6, 6],
                    "p": 1.0,
                },
            ),
            ("RandomBrightnessContrast", {"brightness_limit": 0.15, "contrast_limit": 0.15, "p": 0.5}),
        ],
        limits={
            "mirror": Limit(0, "a mirrored character is none, or another one (b and d, 2 and 5)"),
            "upside_down": Limit(0, "a 6 becomes a 9"),
            "rotation": Limit(20, "a 1 turned far reads as a 7 or a dash, and a 6 as a 9 in the end"),
            "shear": Limit(20, "a slanted 1 reads as a 7"),
            "crop": Limit(0.25, "a character without one of its strokes is another one"),
            "zoom": Limit(1.5, "strokes are cut off, or vanish"),
            "distortion": Limit(0.2, "loops close and open: a 0 becomes a 6, a 3 an 8"),
        },
    ),
    "photos": Preset(
        policy=[
            ("HorizontalFlip", {"p": 0.5}),
            (
                "Affine",
                {
                    "rotate": [-10, 10],
                    "scale": [0.9, 1.15],
                    "translate_percent": [-0.08, 0.08],
                    "border_mode": _REFLECT,
                    "p": 0.9,
                },
            ),
            ("ColorJitter", {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.02, "p": 0.8}),
        ],
        limits={
            "upside_down": Limit(0, "cameras are held upright, and things stand on the ground"),
            "rotation": Limit(30, "cameras are held upright, and things stand on the ground"),
            "shear": Limit(30, "no camera sees things so"),
            "distortion": Limit(0.2, "shapes tell things apart"),
            "hue": Limit(0.15, "colours tell things apart"),
        },
    ),
    "medical": Preset(
        policy=[
            (
                "Affine",
                {
                    "rotate": [-10, 10],
                    "scale": [0.95, 1.05],
                    "translate_percent": [-0.05, 0.05],
                    "p": 1.0,
                },
            ),
            ("RandomBrightnessContrast", {"brightness_limit": 0.1, "contrast_limit": 0.1, "p": 0.5}),
        ],
        limits={
            "mirror": Limit(0, "left and right matter: the heart changes sides, as do findings"),
            "upside_down": Limit(0, "views are standardised, and no patient is seen so"),
            "rotation": Limit(20, "views are standardised, and no patient is seen so"),
            "shear": Limit(10, "the proportions of organs and lesions are findings"),
            "distortion": Limit(0, "the outline of organs and lesions is a finding"),
            "growth": Limit(0, "the size of lesions is a finding"),
            "crop": Limit(0.2, "the only lesion may be cut off"),
            "zoom": Limit(1.25, "the size of organs and lesions is a finding"),
            "cover": Limit(0, "the only lesion may be covered"),
            "hue": Limit(0, "the colour of tissue and stain is a finding"),
            "saturation": Limit(0, "the colour of tissue and stain is a finding"),
            "tones": Limit(0, "brightness is a measurement: density, attenuation, uptake"),
            "brightness": Limit(0.25, "brightness is a measurement: density, attenuation, uptake"),
            "blur": Limit(3, "small lesions vanish"),
            "noise": Limit(0.1, "small lesions vanish"),
        },
    ),
    "textures": Preset(
        policy=[
            ("D4", {"p": 1.0}),
            ("RandomBrightnessContrast", {"brightness_limit": 0.15, "contrast_limit": 0.15, "p": 0.5}),
        ],
        limits={
            "zoom": Limit(1.5, "a texture's scale is what tells it from another"),
            "distortion": Limit(0.1, "a texture's direction and scale are what tell it from another"),
            "blur": Limit(3, "the fine structure is all there is"),
            "noise": Limit(0.1, "the fine structure is all there is"),
        },
    ),
}


def choose_policy(preset: str | None, policy: Policy | None) -> tuple[Policy, str]:
    """Return the policy to use, and its key: one's own, else the preset's (empty without one)."""
    if policy is not None:
        return policy, POLICY_KEY
    return (PRESETS[preset].policy if preset else []), f"{PRESET_KEY}.{preset}"


def refuse_unfit(preset: str | None, policy: Policy, side: int, key: str = POLICY_KEY) -> None:
    """Refuse a policy that does what its preset must not do.

    Parameters
    ----------
    preset : of `PRESETS`; None refuses nothing
    policy : a valid one
    side : pixels of the images, the shorter of height and width
    key : of the policy, for messages

    Raises
    ------
    WinnowError
        For the first such transform, or for rotations that add up to too much; the message names the
        key, what it does, and why that is wrong.
    """
    if preset is None:
        return
    limits = PRESETS[preset].limits
    for part in parts(policy, key):
        effects = effects_of(part.name, build_part(part), side)
        for effect, limit in limits.items():
            if effects.get(effect, 0.0) > limit.at_most:
                raise _refusal(preset, f"{part.key}: {part.name}", effect, effects[effect], "leave it out")

    for effect in (effect for effect in ADDING if effect in limits):

        def amount(part: Part, effect: str = effect) -> float:
            return effects_of(part.name, build_part(part), side).get(effect, 0.0)

        together = round(most_together(policy, amount, key), 6)
        if together > limits[effect].at_most:
            raise _refusal(preset, f"{key}: the policy as a whole", effect, together, "leave one out")


def _refusal(preset: str, who: str, effect: str, amount: float, without: str) -> WinnowError:
    limit, phrase = PRESETS[preset].limits[effect], PHRASES[effect]
    number = phrase[phrase.find("{") : phrase.find("}") + 1]
    allowed = f" beyond {number.format(limit.at_most)}" if limit.at_most else ""
    return WinnowError(
        f"{who} {phrase.format(amount)}, which {PRESET_KEY} = {preset!r} refuses{allowed}: {limit.why}; "
        f"{without}{' or make it milder' if allowed else ''}, or set {PRESET_KEY} to null, which refuses "
        "nothing"
    )


def reason_against(preset: str | None, effect: str) -> str | None:
    """Explain why a preset forbids an effect altogether, of `PHRASES`; None where it does not."""
    limit = PRESETS[preset].limits.get(effect) if preset is not None else None
    return limit.why if limit is not None and limit.at_most == 0 else None
