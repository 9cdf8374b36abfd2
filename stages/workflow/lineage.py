"""Ask DVC about a stage: its inputs, the key that names them, and its place in the graph.

The stage key is a hash over command, dependency hashes and parameter values. Equal keys mean equal
inputs, so the MLflow run that carries a key made the outputs that lie here, also where DVC skipped
the stage or brought the outputs back from its run cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.errors import WinnowError

DIGEST_LENGTH = 36  # MLflow's limit: an md5 and DVC's `.dir` just fit


@dataclass(frozen=True)
class Lineage:
    """The inputs of a stage as they are in the workspace now.

    Attributes
    ----------
    stage : DVC's address, such as `train` or `data/raw/dvc.yaml:digits`
    command : what DVC runs
    key : 32 hex of SHA-256 over command, inputs and params
    inputs : hash of each dependency by its path from the root of the repository
    params : the values that the stage depends on, by the names in `dvc.yaml` (whole sections)
    outputs : paths from the root of the repository
    """

    stage: str
    command: str
    key: str
    inputs: dict[str, str]
    params: dict[str, Any]
    outputs: list[str]


@dataclass(frozen=True)
class Node:
    """A stage in the graph.

    Attributes
    ----------
    name : DVC's address
    upstream : the stages whose outputs it needs
    hints : `meta.prefect` of the stage in `dvc.yaml`
    """

    name: str
    upstream: tuple[str, ...] = ()
    hints: Mapping[str, Any] = field(default_factory=dict)


@contextmanager
def open_repo() -> Iterator[Any]:
    """Open the repository that the current folder lies in, as DVC sees it.

    Not of `DVC_ROOT`: in `dvc exp run --temp` that is the repository which ordered the experiment.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            yield repo
    except DvcException as error:
        raise WinnowError(f"DVC: {' '.join(str(error).split())}") from error


def stage_key(command: str, inputs: Mapping[str, str], params: Mapping[str, Any]) -> str:
    """Return 32 hex that name a stage's inputs, whatever the order they come in."""
    content = {"command": command, "inputs": dict(inputs), "params": dict(params)}
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def stage_lineage(repo: Any, address: str) -> Lineage:
    """Hash the inputs of a stage as they are now.

    Never read from `dvc.lock`: while a stage runs, its entry there is the previous run's.

    Raises
    ------
    WinnowError
        Where a dependency is not there.
    """
    from dvc.dependency.param import ParamsDependency
    from dvc.exceptions import DvcException

    stage = _load(repo, address)
    try:
        stage.save_deps()
    except DvcException as error:
        raise WinnowError(f"stage {address}: {' '.join(str(error).split())}") from error
    inputs: dict[str, str] = {}
    params: dict[str, Any] = {}
    for dependency in stage.deps:
        if isinstance(dependency, ParamsDependency):
            params.update(dependency.hash_info.value or {})
        else:
            inputs[_path(repo, dependency)] = str(dependency.hash_info.value)
    command = stage.cmd if isinstance(stage.cmd, str) else "\n".join(stage.cmd)
    params = json.loads(json.dumps(params, default=str))  # plain values, as JSON gives them back
    return Lineage(
        stage=stage.addressing,
        command=command,
        key=stage_key(command, inputs, params),
        inputs=inputs,
        params=params,
        outputs=[_path(repo, out) for out in stage.outs],
    )


def is_stale(repo: Any, address: str) -> bool:
    """Tell whether `dvc repro` would run the stage, or bring it back from the run cache."""
    from dvc.exceptions import DvcException
    from dvc.rwlock import RWLockFileFormatError

    try:
        with repo.lock:
            return bool(_load(repo, address).changed())
    except (DvcException, RWLockFileFormatError):
        # A busy path, or a dependency that is not there: DVC itself says it best, when it runs.
        return True


def pipeline_nodes(repo: Any, targets: Sequence[str] = ()) -> list[Node]:
    """List the stages that `targets` need, each after its upstreams.

    Parameters
    ----------
    repo : from `open_repo`
    targets : addresses; without any, the stages of the root `dvc.yaml`. The catalogue and the
        ablation are in DVC's index too: only what the targets need of them is returned.

    Raises
    ------
    WinnowError
        For a target that is no stage.
    """
    from dvc.exceptions import DvcException

    try:
        graph = repo.index.graph
    except DvcException as error:
        raise WinnowError(f"dvc.yaml: {' '.join(str(error).split())}") from error
    runnable = {stage.addressing: stage for stage in graph if stage.cmd}
    root = [name for name, stage in runnable.items() if Path(stage.path_in_repo) == Path("dvc.yaml")]
    unknown = [name for name in targets if name not in runnable]
    if unknown:
        raise WinnowError(f"no stage {unknown[0]!r} in dvc.yaml; there are: {', '.join(sorted(root))}")
    order: dict[str, Node] = {}
    seen: set[str] = set()

    def visit(stage: Any) -> None:
        if stage.addressing in seen:
            return
        seen.add(stage.addressing)
        # An edge leads from a stage to what it needs; files tracked by themselves have no command.
        for needed in sorted(graph.successors(stage), key=lambda other: str(other.addressing)):
            visit(needed)
        if stage.cmd:
            hints = dict((stage.meta or {}).get("prefect") or {})
            order[stage.addressing] = Node(stage.addressing, tuple(sorted(_upstream(graph, stage))), hints)

    for name in targets or root:
        visit(runnable[name])
    return list(order.values())


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings and lists into one level of dotted names: `augment.policy.0.name`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{key}.")
        elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
            flat |= flatten({str(i): item for i, item in enumerate(value)}, f"{key}.")
        else:
            flat[key] = value
    return flat


def git_state(folder: Path = Path()) -> tuple[str | None, bool]:
    """Return the commit that is checked out, and whether tracked files differ from it.

    `dvc.lock` does not count: every execution that has something to do changes it. Without git,
    or without a commit: (None, False).
    """
    git = shutil.which("git")
    if git is None:
        return None, False

    def ask(*arguments: str) -> str | None:
        answer = subprocess.run(
            [git, "-C", os.fspath(folder), *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        return answer.stdout.strip() if answer.returncode == 0 else None

    commit = ask("rev-parse", "--verify", "--quiet", "HEAD")
    changes = ask("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)dvc.lock")
    return commit, bool(commit and changes)


def _load(repo: Any, address: str) -> Any:
    """Load a stage by its address; outside the root file that is `path:name`."""
    from dvc.exceptions import DvcException

    path, _, name = address.rpartition(":")
    try:
        return repo.stage.load_one(os.path.join(repo.root_dir, path or "dvc.yaml"), name)  # noqa: PTH118
    except DvcException as error:
        raise WinnowError(f"stage {address}: {' '.join(str(error).split())}") from error


def _path(repo: Any, item: Any) -> str:
    """Return the path of a dependency or output from the root of the repository; a URL as it is."""
    if not item.is_in_repo:
        return str(item.def_path)
    return Path(os.path.relpath(item.fs_path, repo.root_dir)).as_posix()


def _upstream(graph: Any, stage: Any) -> set[str]:
    """Name the nearest stages with a command that `stage` needs; files tracked by themselves have none."""
    names: set[str] = set()
    for needed in graph.successors(stage):
        names |= {needed.addressing} if needed.cmd else _upstream(graph, needed)
    return names
