"""What albumentations' transforms do to an image at most, read from their arguments.

Only what a preset has reason to limit is listed. A transform that is not here has none of these
effects, or they cannot be told from its arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

# Each with its amount in braces where it has one.
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


def effects_of(name: str, transform: Any, side: int) -> dict[str, float]:
    """The effects of one transform, by name of `PHRASES`, with the most that each can amount to.

    Parameters
    ----------
    name : albumentations' name of it
    transform : as albumentations built it, with ranges in place of single numbers and defaults
        filled in
    side : pixels of the images, the shorter of height and width
    """
    found = {
        effect: float(amount(transform)) if callable(amount) else amount
        for effect, amount in _EFFECTS.get(name, {}).items()
    }
    if name in _IN_PIXELS:
        found["distortion"] /= side
    if name in _CROPS:
        found["crop"] = _CROPS[name](transform, side)
        found.setdefault("zoom", _magnified(found["crop"]))
    return {effect: amount for effect, amount in found.items() if amount > 0}


def _numbers(value: Any) -> list[float]:
    """All numbers in ranges, and in mappings of ranges."""
    if isinstance(value, Mapping):
        return [number for item in value.values() for number in _numbers(item)]
    if isinstance(value, list | tuple):
        return [number for item in value for number in _numbers(item)]
    return [float(value)] if isinstance(value, int | float) else []


def _most(attribute: str, scale: float = 1.0, around: float = 0.0) -> Amount:
    """The largest distance of an argument from `around`, times `scale`."""
    return lambda transform: (
        scale * max((abs(number - around) for number in _numbers(getattr(transform, attribute))), default=0.0)
    )


def _zoom(transform: Any) -> float:
    """The larger of magnification and reduction; 1 is neither, and does not count."""
    factors = [abs(number) for number in _numbers(transform.scale)]
    most = max((max(factor, 1 / factor) if factor else math.inf for factor in factors), default=1.0)
    return most if most > 1 else 0.0


def _negative(axis: str) -> Amount:
    """Whether a scale is below zero, which mirrors that axis."""
    return lambda transform: float(min(_numbers(transform.scale[axis])) < 0)


def _elastic(transform: Any) -> float:
    """Pixels that noise of unit variance moves by (2 standard deviations) once it is blurred."""
    return 2 * abs(transform.alpha) / (2 * math.sqrt(math.pi) * max(transform.sigma, 0.3))


def _resized(transform: Any, side: int) -> float:
    return 1.0 - min(_numbers(transform.scale))


def _shifted(transform: Any, side: int) -> float:
    """The share of the image that a shift moves out of it."""
    pixels = transform.translate_percent is None
    shifts = transform.translate_px if pixels else transform.translate_percent
    left = [1 - min(1.0, max(map(abs, _numbers(shifts[axis]))) / (side if pixels else 1)) for axis in "xy"]
    return 1 - left[0] * left[1]


def _cropped_sides(transform: Any, side: int) -> float:
    """Of `CropAndPad`, which crops by what is below zero: of all sides, or of top, right, bottom and left."""
    amount = transform.px if transform.percent is None else transform.percent
    each = list(amount) if isinstance(amount, list | tuple) and len(amount) == 4 else [amount] * 4
    scale = side if transform.percent is None else 1
    top, right, bottom, left = (max(0.0, -min(_numbers(one))) / scale for one in each)
    return 1 - max(0.0, 1 - top - bottom) * max(0.0, 1 - left - right)


def _cropped_height(transform: Any, side: int) -> float:
    height = min(_numbers(transform.min_max_height)) / side
    return 1 - min(1.0, height) * min(1.0, height * transform.w2h_ratio)


def _magnified(crop: float) -> float:
    """Of what is left, brought to the size of the whole."""
    return 1 / math.sqrt(1 - crop) if 0 < crop < 1 else math.inf if crop else 0.0


def _grid(transform: Any) -> float:
    """Steps of the grid that are all wider up to the middle, and narrower from there on."""
    return _most("distort_limit", 0.5 if transform.normalized else 1.0)(transform)


def _spline(transform: Any) -> float:
    """What the displacement that 1 in 20 images exceeds was measured to be, for 4 points a side."""
    return _most("scale_range", 0.1 * transform.num_control_points**2)(transform)


def _inverts(attribute: str) -> Amount:
    """Whether contrast is below -1, which turns dark into bright."""
    return lambda transform: float(min(_numbers(getattr(transform, attribute))) < -1)


def _brightness(brightness: str, contrast: str) -> Amount:
    """Of a medium grey: a change of contrast changes it by half as much."""
    return lambda transform: max(_most(brightness)(transform), _most(contrast, 0.5)(transform))


def _gamma(transform: Any) -> float:
    """Of a medium grey."""
    return max(abs(0.5 ** (number / 100) - 0.5) for number in _numbers(transform.gamma_limit))


def _gaussian(transform: Any) -> float:
    """The width of the kernel; where it is not given, albumentations chooses it by sigma."""
    return _most("blur_limit")(transform) or _most("sigma_limit", 3.0)(transform)


def _multiplied(transform: Any) -> float:
    """One factor for all pixels makes an image brighter, and no noise."""
    return _most("multiplier", around=1.0)(transform) if transform.elementwise else 0.0


_AFFINE: Mapping[str, float | Amount] = {
    "mirror": _negative("x"),
    "upside_down": _negative("y"),
    "rotation": _most("rotate"),
    "shear": _most("shear"),
    "zoom": _zoom,
}
_COVER = {"cover": 1.0}
_TONES = {"tones": 1.0}
_KERNEL = {"blur": _most("blur_limit")}
_COLOURS = {"hue": 0.1, "saturation": 1.0}
_CROPS: Mapping[str, Callable[[Any, int], float]] = {
    "Affine": _shifted,
    "ShiftScaleRotate": _shifted,
    "RandomResizedCrop": _resized,
    "RandomSizedCrop": _cropped_height,
    "RandomSizedBBoxSafeCrop": lambda transform, side: 1 - (1 - transform.erosion_rate) ** 2,
    "CropAndPad": _cropped_sides,
}
_IN_PIXELS = {"ElasticTransform", "GridElasticDeform"}
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
