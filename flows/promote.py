"""Register an execution's fine-tuned model, and let the better one be champion.

The gate looks at state outside DVC, the registry, and is therefore a step of the flow and no cached
stage. Two models are compared only on the same test set, told by its hash.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Failed

from stages.errors import WinnowError
from stages.workflow.models import as_tracking_uri
from stages.workflow.stage import clean_exit, require_root
from stages.workflow.store import TAG, Store, brief, open_store, shown_uri, tracking_off

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

REGISTERED, ALIAS, STAGE = "winnow", "champion", "finetune"
METRICS = ("macro_f1", "balanced_accuracy", "worst_class_recall")


@dataclass(frozen=True)
class Candidate:
    """An execution's fine-tuned model and what it reached.

    Attributes
    ----------
    execution : MLflow's id of the parent run
    run : of the stage that made the model
    model_id : of the logged model
    test_set : hash of the test split that it was scored on
    value : of the metric that decides
    interval : its lower and upper bound, where the report has them
    """

    execution: str
    run: str
    model_id: str
    test_set: str
    value: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Verdict:
    """The decision of the gate: whether the champion moves, and why, in one line."""

    promote: bool
    reason: str


def judge(
    candidate: Candidate, champion: tuple[str, float, str] | None, metric: str, *, force: bool = False
) -> Verdict:
    """Compare a candidate to the champion.

    Parameters
    ----------
    candidate : the model that wants to be champion
    champion : the test set of the present one, its value there, and its model id; None without one
    metric : the name of the value, for the reason
    force : take a candidate from another test set without a comparison

    Raises
    ------
    WinnowError
        Where the champion was scored on another test set, and `force` is not given.
    """
    score = f"{metric} {candidate.value:.4f}"
    if candidate.interval is not None:
        score += f" [{candidate.interval[0]:.4f}, {candidate.interval[1]:.4f}]"
    if champion is None:
        return Verdict(True, f"{score}: the first champion")
    test_set, value, model_id = champion
    if model_id == candidate.model_id:
        return Verdict(False, f"{score}: this model is the champion already")
    if test_set != candidate.test_set:
        if force:
            return Verdict(True, f"{score}: forced; the champion's test set was {test_set}, not compared")
        raise WinnowError(
            f"the champion was scored on test set {test_set}, this model on {candidate.test_set}: not "
            "compared; --force makes it champion all the same"
        )
    if candidate.value > value:
        return Verdict(True, f"{score} is better than the champion's {value:.4f}")
    return Verdict(False, f"{score} is not better than the champion's {value:.4f}")


def find_candidate(store: Store, run: str | None, metric: str) -> Candidate:
    """Find the fine-tuned model of an execution.

    Parameters
    ----------
    run : MLflow's id of the parent run; without it, the newest that finished with an evaluation
    metric : one of `METRICS`

    Raises
    ------
    WinnowError
        Where there is no such execution, it has no evaluation, or its model is not on this server.
    """
    parent = _parent(store, run)
    name = f"models.{STAGE}.{metric}"
    metrics, tags = parent.data.metrics, parent.data.tags
    test_set = tags.get(f"{TAG}test_set_hash")
    if f"{name}.value" not in metrics or test_set is None:
        raise WinnowError(f"execution {parent.info.run_id} has no {name}: it did not get to `evaluate`")
    stage_run = tags.get(f"{TAG}stage.{STAGE}", "").partition(" ")[2]
    outputs = store.client.get_run(stage_run).outputs if stage_run else None
    models = outputs.model_outputs if outputs is not None else []
    if not models:
        raise WinnowError(
            f"the model of execution {parent.info.run_id} is not on {shown_uri()} (it was restored from a "
            f"cache, or trained with tracking off): `dvc repro --force --single-item {STAGE}`, then "
            "`dvc repro --force --single-item evaluate`"
        )
    low, high = metrics.get(f"{name}.low"), metrics.get(f"{name}.high")
    return Candidate(
        execution=parent.info.run_id,
        run=stage_run,
        model_id=models[-1].model_id,
        test_set=test_set,
        value=metrics[f"{name}.value"],
        interval=None if low is None or high is None else (low, high),
    )


def promote_model(
    store: Store,
    run: str | None = None,
    *,
    metric: str = "macro_f1",
    dry_run: bool = False,
    force: bool = False,
) -> Verdict:
    """Register the model of an execution, and move the alias `champion` to it where it is better.

    Parameters
    ----------
    run : as in `find_candidate`
    metric : one of `METRICS`
    dry_run : decide, and change nothing
    force : as in `judge`
    """
    candidate = find_candidate(store, run, metric)
    champion = _champion(store)
    present = None if champion is None else _score(champion, metric)
    verdict = judge(candidate, present, metric, force=force)
    if dry_run:
        return verdict
    version = _register(store, candidate)
    if verdict.promote:
        store.client.set_registered_model_alias(REGISTERED, ALIAS, version.version)
    return Verdict(verdict.promote, f"version {version.version}: {verdict.reason}")


@flow(name="promote", persist_result=False)
def promotion(
    run: str | None = None, metric: str = "macro_f1", dry_run: bool = False, force: bool = False
) -> bool | State[Any]:
    """Run `promote_model` as a flow; return whether the champion moved."""
    try:
        verdict = promote_model(_store(), run, metric=metric, dry_run=dry_run, force=force)
    except WinnowError as error:
        return Failed(name="Refused", message=str(error))
    get_run_logger().info("%s", verdict.reason)
    return verdict.promote


def _store() -> Store:
    if tracking_off():
        raise WinnowError("WINNOW_TRACKING=off: without MLflow there is no registry")
    try:
        return open_store()
    except Exception as error:
        raise WinnowError(f"MLflow at {shown_uri()} does not answer: {brief(error)}") from error


def _parent(store: Store, run: str | None) -> Run:
    from mlflow.exceptions import MlflowException

    if run is not None:
        try:
            parent = store.client.get_run(run)
        except MlflowException as error:
            raise WinnowError(f"there is no run {run} on {shown_uri()}") from error
        if parent.data.tags.get(f"{TAG}kind") != "execution":
            raise WinnowError(f"run {run} is a stage's: --run wants the parent run of an execution")
        return parent
    finished = store.client.search_runs(
        [store.experiment_id],
        f"tags.`{TAG}kind` = 'execution' and tags.`{TAG}test_set_hash` != '' "
        "and attributes.status = 'FINISHED'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    if not finished:
        raise WinnowError(f"no execution on {shown_uri()} has finished yet: run `make flow` or `dvc repro`")
    return finished[0]


def _champion(store: Store) -> ModelVersion | None:
    from mlflow.exceptions import MlflowException

    try:
        return store.client.get_model_version_by_alias(REGISTERED, ALIAS)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _score(version: ModelVersion, metric: str) -> tuple[str, float, str]:
    """Return test set, value and model id of a registered version, from its tags."""
    tags = version.tags
    try:
        return tags["test_set_hash"], float(tags[metric]), str(tags["model_id"])
    except (KeyError, ValueError) as error:
        raise WinnowError(
            f"version {version.version} of {REGISTERED!r} was not registered by Winnow (no {error}): take "
            f"the alias {ALIAS!r} from it first"
        ) from error


def _register(store: Store, candidate: Candidate) -> ModelVersion:
    """Return the registry's version of a model, and make it where there is none."""
    from mlflow.exceptions import MlflowException

    client = store.client
    if not client.search_registered_models(f"name = '{REGISTERED}'"):
        client.create_registered_model(REGISTERED, description="Winnow's fine-tuned image classifiers")
    for version in client.search_model_versions(f"name = '{REGISTERED}'"):
        if (
            version.tags.get("model_id") == candidate.model_id
            and version.tags.get("test_set_hash") == candidate.test_set
        ):
            return version
    metrics = client.get_run(candidate.execution).data.metrics
    tags = {
        "model_id": candidate.model_id,
        "execution": candidate.execution,
        "test_set_hash": candidate.test_set,
        **{
            name: repr(metrics[f"models.{STAGE}.{name}.value"])
            for name in METRICS
            if f"models.{STAGE}.{name}.value" in metrics
        },
    }
    try:
        with as_tracking_uri(store.uri):  # the registry looks the model up there
            return client.create_model_version(
                REGISTERED,
                source=f"models:/{candidate.model_id}",
                run_id=candidate.run,
                model_id=candidate.model_id,
                tags=tags,
                description=f"from execution {candidate.execution}",
            )
    except MlflowException as error:
        raise WinnowError(f"the model could not be registered: {' '.join(str(error).split())}") from error


def main(argv: list[str] | None = None) -> None:
    """Register an execution's fine-tuned model; make it champion if it is better on the same test set."""
    parser = argparse.ArgumentParser(prog="python -m flows.promote", description=main.__doc__)
    parser.add_argument("--run", help="parent run of the execution (default: the newest that finished)")
    parser.add_argument(
        "--metric", choices=METRICS, default=METRICS[0], help="what decides (default: %(default)s)"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would happen, change nothing")
    parser.add_argument("--force", action="store_true", help="also where the champion's test set was another")
    options = parser.parse_args(argv)
    with clean_exit("promote"):
        require_root()
        verdict = promote_model(
            _store(), options.run, metric=options.metric, dry_run=options.dry_run, force=options.force
        )
    would = "would move" if options.dry_run else "moved"
    print(f"{verdict.reason}; {ALIAS} {would if verdict.promote else 'stays'}")


if __name__ == "__main__":
    main()
