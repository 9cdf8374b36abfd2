"""Transformed copies by albumentations; the only module that imports it.

The version is the last one under the MIT licence. Its own seed is not used: a copy's randomness
comes from its id alone, so that neither order nor the number of processes changes it.
"""

from __future__ import annotations

import difflib
import inspect
import os
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.dataset import derived_id, sample_seed
from stages.errors import WinnowError

METHOD = "augment"
Policy = Sequence[tuple[str, Mapping[str, Any]]]


def validate_policy(policy: Policy, image_shape: tuple[int, int, int] | None = None) -> None:
    """Check every transform of a policy, its name and its arguments.

    Parameters
    ----------
    policy : (albumentations' name, arguments) of each transform
    image_shape : where given, each transform is also tried on an image of this height, width and
        channels; it must return one of the same shape

    Raises
    ------
    WinnowError
        For an unknown transform, a wrong argument, or a transform that does not keep the images'
        shape and type; the message names the key `augment.policy.<i>`.
    """
    for index, (name, args) in enumerate(policy):
        transform = _transform(index, name, args)
        if image_shape is not None:
            _try(index, name, transform, image_shape)


def augment_copies(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    sample_ids: Sequence[str],
    quota: NDArray[np.int64],
    policy: Policy,
    seed: int,
) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[str]]:
    """Transformed copies of the images of the classes that need some.

    The images of a class take turns, in the order of their ids; the result depends on neither the
    order of the samples nor the rest of the data.

    Parameters
    ----------
    images : uint8, N×H×W×C
    labels : int64, N; class indices
    sample_ids : N ids of the images
    quota : int64, K; copies of each class
    policy : (albumentations' name, arguments) of each transform, applied one after another
    seed : of the transforms

    Returns
    -------
    copies : uint8, M×H×W×C, by class, then by parent
    parents : int64, M; the index of the image that each is a copy of
    ids : M ids, hashes of parent, method and counter

    Raises
    ------
    WinnowError
        For a policy that `validate_policy` refuses for these images.
    """
    shape = (int(images.shape[1]), int(images.shape[2]), int(images.shape[3]))
    validate_policy(policy, shape)
    parents, ids = _plan(labels, sample_ids, quota)
    copies = np.empty((len(ids), *shape), np.uint8)
    if len(ids):
        pipeline = _library().Compose([_transform(i, name, args) for i, (name, args) in enumerate(policy)])
        for place, (parent, copy_id) in enumerate(zip(parents, ids, strict=True)):
            own = sample_seed(seed, copy_id)
            # One stream for all transforms: set_random_seed would give each the same one.
            pipeline.set_random_state(np.random.default_rng(own), random.Random(own))  # noqa: S311
            copies[place] = pipeline(image=np.array(images[parent]))["image"].reshape(shape)
    return copies, parents, ids


def _plan(
    labels: NDArray[np.int64], sample_ids: Sequence[str], quota: NDArray[np.int64]
) -> tuple[NDArray[np.int64], list[str]]:
    """The parent and the id of each copy."""
    names = np.asarray(sample_ids, dtype=object)
    parents: list[int] = []
    ids: list[str] = []
    for label in np.flatnonzero(quota):
        members = np.flatnonzero(labels == label)
        if len(members) == 0:
            continue
        members = members[np.argsort(names[members].astype(str))]
        rounds, rest = divmod(int(quota[label]), len(members))
        for position, parent in enumerate(members):
            for counter in range(rounds + (position < rest)):
                parents.append(int(parent))
                ids.append(derived_id(str(names[parent]), METHOD, counter))
    return np.asarray(parents, dtype=np.int64), ids


def _library() -> Any:
    """albumentations, imported late (seconds) and without its look for updates."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations

    return albumentations


def _known(library: Any) -> list[str]:
    """The names of all transforms that can be used alone."""
    return [
        name
        for name, value in vars(library).items()
        if inspect.isclass(value)
        and issubclass(value, library.BasicTransform)
        and not inspect.isabstract(value)
        and value not in (library.BasicTransform, library.DualTransform, library.ImageOnlyTransform)
        and "Lambda" not in name
    ]


def _transform(index: int, name: str, args: Mapping[str, Any]) -> Any:
    """One transform, or a WinnowError that names its key."""
    key = f"augment.policy.{index}"
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
    wanted = {argument: _tuples(value) for argument, value in args.items()}
    # Without strict, albumentations only warns of some mistakes and goes on with its defaults; the
    # few transforms whose arguments it does not check at all do not know the word.
    if "InitSchema" in vars(transform):
        wanted["strict"] = True
    try:
        return transform(**wanted)
    except (ValueError, TypeError) as error:
        raise WinnowError(f"{key}.args of {name}: {_one_line(error)}") from error


def _try(index: int, name: str, transform: Any, image_shape: tuple[int, int, int]) -> None:
    """Apply a transform to an image of noise; it must keep shape and type."""
    key = f"augment.policy.{index}"
    probe = np.random.default_rng(0).integers(0, 256, image_shape, dtype=np.uint8)
    transform.p = 1.0
    transform.set_random_seed(0)
    try:
        result = np.asarray(transform(image=probe)["image"])
    except Exception as error:  # whatever a transform raises, the policy is what is wrong
        raise WinnowError(f"{key}: {name} cannot be applied to the images: {_one_line(error)}") from error
    if result.size != probe.size or result.shape[:2] != probe.shape[:2] or result.dtype != probe.dtype:
        raise WinnowError(
            f"{key}: {name} turns {probe.dtype} images of {probe.shape} into {result.dtype} of "
            f"{result.shape}; a copy must keep the shape and type of its original"
        )


def _tuples(value: Any) -> Any:
    """YAML's lists as the tuples that albumentations wants, also within mappings and lists."""
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
    """What is wrong, without pydantic's addresses and types."""
    problems = getattr(error.__cause__, "errors", None)
    if callable(problems):
        return "; ".join(dict.fromkeys(_problem(item) for item in problems()))
    return " ".join(str(error).split())[:300]


def _problem(item: Mapping[str, Any]) -> str:
    """One of pydantic's errors: the argument, its value where it has one, and what is allowed."""
    message = str(item["msg"]).removeprefix("Value error, ")
    if not item["loc"]:
        return message
    argument = item["loc"][0]
    return (
        f"{argument}: {message}"
        if item["type"] == "missing"
        else f"{argument} = {item['input']!r}: {message}"
    )
