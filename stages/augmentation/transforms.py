"""Validate and build policies of transforms by albumentations' own names and arguments.

No other module imports albumentations; the version is the last one under the MIT licence. Its own seed is not
used: see `copying`.
"""

from __future__ import annotations

import difflib
import inspect
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from stages.errors import WinnowError

Policy = Sequence[tuple[str, Mapping[str, Any]]]
POLICY_KEY = "augment.policy"
# Their argument `transforms` is a list of {name, args}.
_COMBINED = ("OneOf", "SomeOf", "Sequential")


@dataclass(frozen=True)
class Part:
    """A single transform of a policy, wherever in it.

    Attributes
    ----------
    key : where it stands: `augment.policy.1`, or `augment.policy.1.args.transforms.0`
    name : albumentations'
    args : its arguments
    """

    key: str
    name: str
    args: Mapping[str, Any]

    @property
    def alone(self) -> Policy:
        """Return the policy that always applies this transform and no other."""
        return [(self.name, {**self.args, "p": 1.0})]


def validate_policy(
    policy: Policy, image_shape: tuple[int, int, int] | None = None, key: str = POLICY_KEY
) -> None:
    """Check every transform of a policy, its name and its arguments.

    Parameters
    ----------
    policy : (albumentations' name, arguments) of each transform; `OneOf`, `SomeOf` and `Sequential`
        hold a list of further ones, {name, args}, in their argument `transforms`
    image_shape : where given, each transform is also tried on an image of this height, width and
        channels; it must return one of the same shape
    key : of the policy, for messages

    Raises
    ------
    WinnowError
        For an unknown transform, a wrong argument, or a transform that does not keep the images'
        shape and type; the message names the key, such as `augment.policy.0`.
    """
    for index, (name, args) in enumerate(policy):
        _built(f"{key}.{index}", name, args)
    if image_shape is not None:
        for part in parts(policy, key):
            _try(part, image_shape)


def parts(policy: Policy, key: str = POLICY_KEY) -> list[Part]:
    """List the single transforms of a valid policy in their order, also those inside combined ones."""
    singles: list[Part] = []
    for index, (name, args) in enumerate(policy):
        place = f"{key}.{index}"
        if name in _COMBINED:
            singles += parts(_inner(place, args), f"{place}.args.transforms")
        else:
            singles.append(Part(place, name, args))
    return singles


def most_together(policy: Policy, amount: Callable[[Part], float], key: str = POLICY_KEY) -> float:
    """Return the largest sum of an amount over the transforms that a single copy can meet.

    Of `OneOf` it meets one, of `SomeOf` as many as its `n`; p does not matter.
    """
    total = 0.0
    for index, (name, args) in enumerate(policy):
        place = f"{key}.{index}"
        if name not in _COMBINED:
            total += amount(Part(place, name, args))
            continue
        each = [most_together([one], amount, place) for one in _inner(place, args)]
        chosen = len(each) if name == "Sequential" else args.get("n", 1)
        if name == "SomeOf" and args.get("replace", False):
            each *= chosen
        total += sum(sorted(each, reverse=True)[:chosen])
    return total


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress albumentations' warnings to programmers ("very slow", "already gray"), not its errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def without(policy: Policy, left_out: Set[str], key: str = POLICY_KEY) -> Policy:
    """Leave out the parts of these keys; a combined transform that loses all goes too."""
    return list(_without(policy, left_out, key))


def build_part(part: Part) -> Any:
    """Build the transform, its arguments checked and brought to albumentations' own form."""
    return _built(part.key, part.name, part.args)


@quiet()
def build_policy(policy: Policy, key: str = POLICY_KEY) -> Any:
    """Build the policy as one of albumentations' pipelines; a WinnowError as by `validate_policy`."""
    return _library().Compose(
        [_built(f"{key}.{index}", name, args) for index, (name, args) in enumerate(policy)]
    )


def _without(policy: Policy, left_out: Set[str], key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for index, (name, args) in enumerate(policy):
        place = f"{key}.{index}"
        if name not in _COMBINED:
            if place not in left_out:
                yield name, args
            continue
        inner = [
            {"name": inner_name, "args": inner_args}
            for inner_name, inner_args in _without(_inner(place, args), left_out, f"{place}.args.transforms")
        ]
        if inner:
            fewer = {"n": min(args.get("n", 1), len(inner))} if name == "SomeOf" else {}
            yield name, {**args, "transforms": inner, **fewer}


def _library() -> Any:
    """Import albumentations, late (it takes seconds) and without its look for updates."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations

    return albumentations


def _known(library: Any) -> list[str]:
    """List all transforms that can be used alone, and those that combine them."""
    return [
        name
        for name, value in vars(library).items()
        if inspect.isclass(value)
        and issubclass(value, library.BasicTransform)
        and not inspect.isabstract(value)
        and value not in (library.BasicTransform, library.DualTransform, library.ImageOnlyTransform)
        and "Lambda" not in name
    ] + list(_COMBINED)


@quiet()
def _built(key: str, name: str, args: Mapping[str, Any]) -> Any:
    """Build one transform, or raise a WinnowError that names its key."""
    library = _library()
    known = _known(library)
    if name not in known:
        raise WinnowError(f"{key}.name = {name!r}: albumentations has no such transform{_hint(name, known)}")
    transform = getattr(library, name)
    allowed = [argument for argument in inspect.signature(transform).parameters if argument != "strict"]
    allowed += [] if "p" in allowed else ["p"]
    for argument in args:
        if argument not in allowed:
            raise WinnowError(
                f"{key}.args.{argument}: {name} has no such argument{_hint(str(argument), allowed)}"
            )
    if name in _COMBINED:
        return _combined(key, name, transform, args)
    wanted = {argument: _tuples(value) for argument, value in args.items()}
    # Without strict, albumentations only warns of some mistakes and goes on with its defaults; the
    # few transforms whose arguments it does not check at all do not know the word.
    if "InitSchema" in vars(transform):
        wanted["strict"] = True
    try:
        return transform(**wanted)
    except (ValueError, TypeError) as error:
        raise WinnowError(f"{key}.args of {name}: {_one_line(error)}") from error


def _combined(key: str, name: str, transform: Any, args: Mapping[str, Any]) -> Any:
    """Build a transform that holds others; albumentations does not check its arguments."""
    inner = [
        _built(f"{key}.args.transforms.{index}", inner_name, inner_args)
        for index, (inner_name, inner_args) in enumerate(_inner(key, args))
    ]
    chance, count = args.get("p", 1.0), args.get("n", 1)
    if isinstance(chance, bool) or not isinstance(chance, int | float) or not 0.0 <= chance <= 1.0:
        raise WinnowError(f"{key}.args.p = {chance!r}: a number from 0 to 1")
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= len(inner):
        raise WinnowError(f"{key}.args.n = {count!r}: a number from 1 to that of its transforms")
    if name == "OneOf" and not any(each.p for each in inner):
        raise WinnowError(f"{key}.args.transforms: p of one of them must be above 0; OneOf chooses by them")
    return transform(**{**args, "transforms": inner})


def _inner(key: str, args: Mapping[str, Any]) -> Policy:
    """Return the policy inside a combined transform."""
    inner, place = args.get("transforms"), f"{key}.args.transforms"
    if not isinstance(inner, Sequence) or isinstance(inner, str) or not inner:
        raise WinnowError(f"{place}: a list of transforms, {{name, args}} each")
    for index, entry in enumerate(inner):
        if (
            not isinstance(entry, Mapping)
            or set(entry) != {"name", "args"}
            or not isinstance(entry["name"], str)
            or not isinstance(entry["args"], Mapping)
        ):
            raise WinnowError(f"{place}.{index} must be {{name: …, args: {{…}}}}")
    return [(entry["name"], entry["args"]) for entry in inner]


@quiet()
def _try(part: Part, image_shape: tuple[int, int, int]) -> None:
    """Apply a transform to an image of noise; it must keep shape and type."""
    probe = np.random.default_rng(0).integers(0, 256, image_shape, dtype=np.uint8)
    transform = build_part(part)
    transform.p = 1.0
    transform.set_random_seed(0)
    try:
        result = np.asarray(transform(image=probe)["image"])
    except Exception as error:  # whatever a transform raises, the policy is what is wrong
        raise WinnowError(
            f"{part.key}: {part.name} cannot be applied to the images: {_one_line(error)}"
        ) from error
    if result.size != probe.size or result.shape[:2] != probe.shape[:2] or result.dtype != probe.dtype:
        raise WinnowError(
            f"{part.key}: {part.name} turns {probe.dtype} images of {probe.shape} into {result.dtype} of "
            f"{result.shape}; a copy must keep the shape and type of its original"
        )


def _tuples(value: Any) -> Any:
    """Turn YAML's lists into the tuples that albumentations wants, also within mappings and lists."""
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return value


def _hint(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    if not close:
        lowered = {candidate.lower(): candidate for candidate in known}
        close = [lowered[match] for match in difflib.get_close_matches(name.lower(), lowered, n=3)]
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; it has {', '.join(known)}" if len(known) <= 20 else ""


def _one_line(error: Exception) -> str:
    """Say what is wrong, without pydantic's addresses and types."""
    problems = getattr(error.__cause__, "errors", None)
    if callable(problems):
        return "; ".join(dict.fromkeys(_problem(item) for item in problems()))
    return " ".join(str(error).split())[:300]


def _problem(item: Mapping[str, Any]) -> str:
    """Word one of pydantic's errors: the argument, its value where it has one, and what is allowed."""
    message = str(item["msg"]).removeprefix("Value error, ")
    if not item["loc"]:
        return message
    argument = item["loc"][0]
    return (
        f"{argument}: {message}"
        if item["type"] == "missing"
        else f"{argument} = {item['input']!r}: {message}"
    )
