"""What is safe to do to images of a kind, and what is not: policies, and limits with a reason each.

The limits hold for policies of one's own too. They are on what a transform can do at most, by its
arguments; how likely it is (`p`) does not matter. What a transform does to the classes at hand is
measured besides (`survival`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stages.errors import WinnowError
from stages.synthesis.augmentation.effects import ADDING, PHRASES, effects_of
from stages.synthesis.augmentation.transforms import (
    POLICY_KEY,
    Part,
    Policy,
    build_part,
    most_together,
    parts,
)

PRESET_KEY = "augment.preset"


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
    limits : by effect, of `effects.PHRASES`
    """

    policy: Policy
    limits: Mapping[str, Limit]


_REFLECT = 4  # OpenCV's BORDER_REFLECT_101: no black wedges beside what is not black

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
    """The policy that is to be used, and its key: one's own, else the preset's (empty without one)."""
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
    """Why a preset forbids an effect altogether, of `effects.PHRASES`; None where it does not."""
    limit = PRESETS[preset].limits.get(effect) if preset is not None else None
    return limit.why if limit is not None and limit.at_most == 0 else None
