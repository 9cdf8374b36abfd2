"""Run DVC's graph as a Prefect flow: `python -m flows.pipeline`.

The flow holds no copy of the graph: it reads it from DVC, asks DVC which stages are stale, and lets
DVC run them. DVC is the only cache. What it adds: a log and a state for every stage, stages that
run side by side, retries, a limit on the GPU, schedules (`flows.serve`), and a parent run in MLflow.

Hints stand in `dvc.yaml` under `meta.prefect` of a stage: `gpu` (one at a time on this Prefect
server), `retries` and `retry_delay` (seconds).
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")  # else its lock noise on SQLite
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "90")

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.objects import State
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.futures import PrefectFuture
from prefect.states import Completed, Failed

from flows.parent import Parent
from flows.processes import StoppedError
from flows.workspace import Outcome, Workspace, workspace_lock
from stages.errors import WinnowError
from stages.workflow.executions import CACHED, FAILED, SKIPPED
from stages.workflow.lineage import Node, open_repo, pipeline_nodes
from stages.workflow.params import load_params
from stages.workflow.stage import clean_exit
from stages.workflow.store import without_password

GPU = "gpu"
REFUSED = "Refused"  # the name of the state where the user has something to put right
STOPPED = "Stopped"  # and where the flow was told to end
_LOCK_PATIENCE = 600.0  # seconds
_SERVER_SECONDS = 30.0  # where none listens it is known at once; a busy machine answers late


class Walk:
    """One walk over the graph: the state that its tasks share."""

    def __init__(self, nodes: Sequence[Node], workspace: Workspace) -> None:
        self.nodes = nodes
        self.workspace = workspace
        self.outcomes: dict[str, Outcome] = {}
        # Prefect's limit is polled: within a flow the stages take turns without that delay.
        self.gpu = threading.Lock()

    def bring_up_to_date(self, node: Node) -> Outcome:
        """Run the stage if it is stale, with its output in the log of the task."""
        start = time.monotonic()
        if not self.workspace.stale(node.name):
            return Outcome(node.name, CACHED, time.monotonic() - start)
        say = get_run_logger().info
        with ExitStack() as stack:
            if node.hints.get("gpu"):
                stack.enter_context(self.gpu)
                stack.enter_context(concurrency(GPU, occupy=1, strict=True))
            return self.workspace.reproduce(node.name, lambda line: say("%s", line))

    def table(self) -> list[Outcome]:
        """Return the outcomes in the order of the graph; a stage without one was skipped."""
        return [self.outcomes.get(node.name, Outcome(node.name, SKIPPED, 0.0)) for node in self.nodes]


def _not_a_mistake(_task: object, _run: object, state: State[Any]) -> bool:
    """Tell whether it may help to try again: not where the input is wrong, nor at the end."""
    return state.name not in (REFUSED, STOPPED)


@task(name="stage", cache_policy=NO_CACHE, persist_result=False)
def stage_task(walk: Walk, node: Node) -> State[Any]:
    """Bring one stage of DVC's graph up to date."""
    try:
        outcome = walk.bring_up_to_date(node)
    except StoppedError as error:
        return Failed(name=STOPPED, message=f"{node.name}: {error}")
    walk.outcomes[node.name] = outcome
    if outcome.result == FAILED:
        return Failed(name=REFUSED if outcome.mistake else "Failed", message=outcome.message)
    return Completed(name=outcome.result.capitalize(), message=f"{node.name}: {outcome.result}")


@flow(name="winnow", log_prints=True, persist_result=False, validate_parameters=True)
def pipeline(targets: list[str] | None = None, jobs: int = 2, promote: bool = False) -> State[Any]:
    """Bring the pipeline up to date.

    Parameters
    ----------
    targets : stages as DVC calls them; without any, those of the root `dvc.yaml`. What they need
        is brought up to date too.
    jobs : stages that run at the same time, at most
    promote : then let `flows.promote` decide whether the model becomes champion
    """
    logger = get_run_logger()
    try:
        load_params()
        with workspace_lock(_LOCK_PATIENCE, logger.warning):
            with open_repo() as repo:
                nodes = pipeline_nodes(repo, targets or ())
            parent = Parent(logger.warning)
            walk = Walk(nodes, Workspace(jobs, {**parent.environment, "WINNOW_FLOW_PID": str(os.getpid())}))
            state = _execute(walk, parent)
            if promote and state.is_completed():
                _promote(parent.execution.run_id)
            return state
    except WinnowError as error:
        return Failed(name=REFUSED, message=str(error))


def _execute(walk: Walk, parent: Parent) -> State[Any]:
    """Walk the graph; the parent run is completed however it ends."""
    status = "KILLED"
    try:
        if any(node.hints.get("gpu") for node in walk.nodes):
            ensure_limit(GPU, 1)
        _submit(walk)
        status = "FAILED" if _failures(walk) else "FINISHED"
    except BaseException:
        # Before the task runner waits for its threads: they wait for these processes.
        walk.workspace.groups.stop()
        raise
    finally:
        parent.complete(walk.table(), status)
    rows = walk.table()
    print(format_table(rows))
    create_table_artifact(
        key="winnow-stages",
        table=[{"stage": row.stage, "result": row.result, "seconds": round(row.seconds, 1)} for row in rows],
        description="What ran, what was cached, and how long it took",
    )
    failures = _failures(walk)
    if not failures:
        return Completed(message=summary(rows))
    skipped = [row.stage for row in rows if row.result == SKIPPED]
    message = "; ".join(outcome.message for outcome in failures)
    return Failed(message=message + (f"; skipped: {', '.join(skipped)}" if skipped else ""))


def _submit(walk: Walk) -> None:
    """Submit a task for each stage, after its upstreams' tasks, and wait until all have ended."""
    futures: dict[str, PrefectFuture[Any]] = {}
    for node in walk.nodes:
        hints: Mapping[str, Any] = node.hints
        stage = stage_task.with_options(
            name=node.name,
            task_run_name=node.name,
            retries=int(hints.get("retries", 0)),
            retry_delay_seconds=float(hints.get("retry_delay", 5)),
            retry_condition_fn=_not_a_mistake,
        )
        futures[node.name] = stage.submit(
            walk, node, return_state=False, wait_for=[futures[name] for name in node.upstream]
        )
    for name, future in futures.items():
        future.wait()
        state = future.state
        if name not in walk.outcomes and (state.is_failed() or state.is_crashed()):
            walk.outcomes[name] = Outcome(name, FAILED, 0.0, f"{name} failed: {state.message}")


def _failures(walk: Walk) -> list[Outcome]:
    return [row for row in walk.table() if row.result == FAILED]


def _promote(run_id: str | None) -> None:
    from flows.promote import promotion

    state: State[Any] = promotion(run=run_id, return_state=True)
    if not state.is_completed():
        get_run_logger().warning("not promoted: %s", state.message)


def ensure_limit(name: str, limit: int) -> None:
    """Make a global concurrency limit where there is none; one that is there stays as it is."""
    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            try:
                client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=limit))
            except ObjectAlreadyExists:
                return  # another flow was faster


def check_server(*, needed: bool) -> str | None:
    """Return the address of the Prefect server that the settings name, if it answers.

    Parameters
    ----------
    needed : without one, raise; else return None (a one-off run starts a temporary server)

    Raises
    ------
    WinnowError
        Where the server that the settings name does not answer, or none is named but needed.
    """
    import httpx
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    if not url:
        if not needed:
            return None
        raise WinnowError(
            "a schedule needs a Prefect server: start one with `make ui` (or `prefect server start`), then "
            "set PREFECT_API_URL=http://127.0.0.1:4200/api"
        )
    try:
        httpx.get(f"{url.rstrip('/')}/health", timeout=_SERVER_SECONDS).raise_for_status()
    except httpx.HTTPError as error:
        detail = str(error) or type(error).__name__
        raise WinnowError(
            f"the Prefect server at {without_password(url)} does not answer ({detail}): "
            "start one with `make ui`, or unset PREFECT_API_URL"
        ) from error
    return url


def format_table(rows: Sequence[Outcome]) -> str:
    """Lay out the outcomes as a table of text."""
    width = max([5, *(len(row.stage) for row in rows)])
    body = [f"{row.stage:<{width}}  {row.result:<8}  {row.seconds:7.1f}" for row in rows]
    return "\n".join([f"{'stage':<{width}}  {'result':<8}  seconds", *body])


def summary(rows: Sequence[Outcome]) -> str:
    """Count the stages by result: `3 ran, 7 cached`."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.result] = counts.get(row.result, 0) + 1
    return ", ".join(f"{count} {result}" for result, count in counts.items())


def main(argv: list[str] | None = None) -> None:
    """Bring the pipeline up to date through Prefect: run what is stale, and nothing else."""
    parser = argparse.ArgumentParser(prog="python -m flows.pipeline", description=main.__doc__)
    parser.add_argument(
        "targets", nargs="*", metavar="TARGET", help="stages of dvc.yaml; default: all of them"
    )
    parser.add_argument("--jobs", type=_positive, default=2, help="stages at the same time (default: 2)")
    parser.add_argument(
        "--promote", action="store_true", help="then let flows.promote decide on the champion"
    )
    options = parser.parse_args(argv)
    with clean_exit("flow"):
        # Mistakes are said before a server is started for them.
        load_params()
        with open_repo() as repo:
            pipeline_nodes(repo, options.targets)
        check_server(needed=False)
        state: State[Any] = pipeline(
            options.targets or None, options.jobs, options.promote, return_state=True
        )
    if not state.is_completed():
        print(f"flow: {' '.join(str(state.message).split())}", file=sys.stderr)
        raise SystemExit(2 if state.name == REFUSED else 1)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


if __name__ == "__main__":
    main()
