"""Make transformed copies of images, on all cores.

A copy's randomness comes from its id alone, so that neither order nor the number of processes
changes it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.augmentation.transforms import POLICY_KEY, Policy, build_policy, quiet, validate_policy
from stages.dataset.ids import derived_id, sample_seed
from stages.errors import WinnowError

METHOD = "augment"
_TASK = 256  # copies that a process makes at a time
_TASK_BYTES = 4 * 2**20  # of their pixels, at most: on many cores many tasks are under way
_PATIENCE = 10.0  # seconds of work from which processes pay: each takes some four to start
_IDLE = 20  # seconds after which a process that has nothing to do ends


def augment_copies(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    sample_ids: Sequence[str],
    quota: NDArray[np.int64],
    policy: Policy,
    seed: int,
    *,
    processes: int | None = None,
    description: str = "",
) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[str]]:
    """Make transformed copies of the images of the classes that need some.

    The images of a class take turns, in the order of their ids; the result depends on neither the
    order of the samples, nor the rest of the data, nor the number of processes.

    Parameters
    ----------
    images : uint8, N×H×W×C
    labels : int64, N; class indices
    sample_ids : N ids of the images
    quota : int64, K; copies of each class
    policy : (albumentations' name, arguments) of each transform, applied one after another
    seed, processes, description : as for `transformed`

    Returns
    -------
    copies : uint8, M×H×W×C, by class, then by parent
    parents : int64, M; the index of the image that each is a copy of
    ids : M ids, hashes of parent, method and counter

    Raises
    ------
    WinnowError
        For a policy that `transforms.validate_policy` refuses for these images.
    """
    height, width, channels = (int(side) for side in images.shape[1:])
    validate_policy(policy, (height, width, channels))
    parents, ids = _plan(labels, sample_ids, quota)
    copies = transformed(images, parents, ids, policy, seed, processes=processes, description=description)
    return copies, parents, ids


def transformed(
    images: NDArray[np.uint8],
    parents: NDArray[np.int64],
    names: Sequence[str],
    policy: Policy,
    seed: int,
    *,
    processes: int | None = None,
    description: str = "",
    key: str = POLICY_KEY,
) -> NDArray[np.uint8]:
    """Make a transformed copy for each of `parents`, uint8 M×H×W×C.

    Parameters
    ----------
    images : uint8, N×H×W×C
    parents : int64, M; which of the images each is a copy of
    names : M; each copy's randomness comes from `seed` and its name
    policy : one that is valid for the images
    seed : of the transforms
    processes : 1 makes all copies in this one; None is one for every core where that saves time
    description : stands before the progress bar; empty for none
    key : of the policy, for messages
    """
    from tqdm import tqdm

    copies = np.empty((len(parents), *images.shape[1:]), np.uint8)
    size = max(1, min(_TASK, _TASK_BYTES // int(np.prod(images.shape[1:]))))
    starts = range(0, len(parents), size)
    # One by one as they are taken: a task holds its own originals, and not all of them do at once.
    tasks = (
        _task(images, parents[start : start + size], names[start : start + size], policy, seed, key)
        for start in starts
    )
    bar = tqdm(total=len(parents), desc=description, unit="img", mininterval=0.5, disable=not description)
    with bar as progress:
        for start, part in zip(starts, _make_all(tasks, len(starts), processes), strict=True):
            copies[start : start + len(part)] = part
            progress.update(len(part))
    return copies


class _Task(NamedTuple):
    """Copies for one process to make: `which` of the originals each is of, and its name."""

    originals: NDArray[np.uint8]
    which: NDArray[np.int64]
    names: list[str]
    policy: Policy
    seed: int
    key: str


def _task(
    images: NDArray[np.uint8],
    parents: NDArray[np.int64],
    names: Sequence[str],
    policy: Policy,
    seed: int,
    key: str,
) -> _Task:
    wanted, which = np.unique(parents, return_inverse=True)
    return _Task(np.asarray(images[wanted]), which, list(names), policy, seed, key)


def _make_all(tasks: Iterator[_Task], count: int, processes: int | None) -> Iterator[NDArray[np.uint8]]:
    """Yield the copies of each task, in order."""
    import joblib

    wanted = joblib.cpu_count() if processes is None else processes
    if wanted == 1:
        yield from map(_make, tasks)
        return
    if processes is None:
        yield from _make_here(tasks, count)
    run = joblib.Parallel(
        n_jobs=wanted,
        backend="loky",
        return_as="generator",
        batch_size=1,
        max_nbytes=None,  # else large tasks would go by way of files
        idle_worker_timeout=_IDLE,
    )
    try:
        yield from run(joblib.delayed(_make)(task) for task in tasks)
    except BrokenExecutor as error:
        raise WinnowError(
            "a process that transforms images was ended from outside, likely for want of memory: free some, "
            "or lower ingest.image_size"
        ) from error


def _make_here(tasks: Iterator[_Task], count: int) -> Iterator[NDArray[np.uint8]]:
    """Make copies in this process for as long as others would not pay."""
    spent = 0.0
    for done, task in enumerate(tasks, start=1):
        began = time.monotonic()
        made = _make(task)
        spent += time.monotonic() - began
        yield made
        if spent / done * (count - done) > _PATIENCE:
            return


@quiet()
def _make(task: _Task) -> NDArray[np.uint8]:
    pipeline = build_policy(task.policy, task.key)
    copies = np.empty((len(task.which), *task.originals.shape[1:]), np.uint8)
    for place, (parent, name) in enumerate(zip(task.which, task.names, strict=True)):
        seed = sample_seed(task.seed, name)
        # One stream for all transforms: set_random_seed would give each the same one.
        pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))  # noqa: S311
        result = pipeline(image=np.array(task.originals[parent]))["image"]
        copies[place] = result.reshape(copies.shape[1:])
    return copies


def _plan(
    labels: NDArray[np.int64], sample_ids: Sequence[str], quota: NDArray[np.int64]
) -> tuple[NDArray[np.int64], list[str]]:
    """Choose the parent and the id of each copy."""
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
