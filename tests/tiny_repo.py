"""A DVC repository of three small stages, for the tests of tracking and flows.

`first` → `second` → `evaluate`; each writes `reports/<name>/metrics.json` and adds its name to
`ran.log`, which DVC does not watch. `trouble/<name>` says what goes wrong in a stage.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

STAGE = """
import json, os, pathlib, sys, time

name, tracked = sys.argv[1], "tracked" in sys.argv[2:]
trouble = pathlib.Path("trouble", name)
what = trouble.read_text().split() if trouble.exists() else []


def work(run=None):
    with open("ran.log", "a") as log:
        log.write(name + "\\n")
    if "once" in what:
        trouble.unlink()
    if "mistake" in what:
        print(name + ": the input is wrong", file=sys.stderr)
        sys.exit(2)
    if "fail" in what:
        print("out of memory")
        sys.exit(1)
    if "sleep" in what:
        from stages.workflow.stage import end_with_parent

        end_with_parent()
        pathlib.Path("pid").write_text(str(os.getpid()))
        time.sleep(1000)
    out = pathlib.Path("reports", name)
    out.mkdir(parents=True)
    figures = {"test_set_hash": "abc", "models": {"finetune": {"macro_f1": {"value": 0.5}}}}
    if name == "second":
        text = pathlib.Path("params.yaml").read_text()
        figures["epochs"] = text.split("train:")[1].split("epochs: ")[1][:2]
    (out / "metrics.json").write_text(json.dumps(figures))
    if run is not None:
        run.log_metrics({"size": 3})
        run.log_artifacts(out)
        if name == "evaluate":
            run.adopt_stages()


if tracked:
    from stages.workflow.params import load_params
    from stages.workflow.runs import stage_run

    with stage_run(name, load_params()) as run:
        work(run)
else:
    work()
"""

GRAPH = """
stages:
  first:
    cmd: python stage.py first{tracked}
    deps: [stage.py, data/raw/used]
    params: [seed, ingest]
    outs: [reports/first]
  second:
    cmd: python stage.py second{tracked}
    deps: [stage.py, reports/first]
    params: [train]
    outs: [reports/second]
    meta:
      prefect: {{gpu: true, retries: 1, retry_delay: 0}}
  evaluate:
    cmd: python stage.py evaluate{tracked}
    deps: [stage.py, reports/second, reports/first]
    params: [evaluate]
    outs: [reports/evaluate]
"""

CATALOGUE = """
stages:
  used:
    cmd: python -c "open('used', 'w').write('x')"
    outs: [used]
  unused:
    cmd: python -c "open('unused', 'w').write('x')"
    outs: [unused]
"""

IGNORED = ".winnow\n/mlflow.db*\n/mlartifacts\n/ran.log\n/pid\n/trouble\n"


def make_repo(folder: Path, *, tracked: bool = False) -> Path:
    """Write the repository into an empty folder, with one commit."""
    shutil.copy(ROOT / "params.yaml", folder)
    (folder / "stage.py").write_text(STAGE)
    (folder / "dvc.yaml").write_text(GRAPH.format(tracked=" tracked" if tracked else ""))
    (folder / "data" / "raw").mkdir(parents=True)
    (folder / "data" / "raw" / "dvc.yaml").write_text(CATALOGUE)
    (folder / "trouble").mkdir()
    (folder / ".gitignore").write_text(IGNORED)
    git(folder, "init", "-q")
    git(folder, "config", "user.email", "test@example.org")
    git(folder, "config", "user.name", "test")
    from dvc.repo import Repo

    Repo.init(str(folder)).close()
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "start")
    return folder


def git(folder: Path, *arguments: str) -> None:
    executable = shutil.which("git")
    assert executable
    subprocess.run([executable, "-C", str(folder), *arguments], check=True, capture_output=True)


def environment() -> dict[str, str]:
    """Of a process that finds this Python and Winnow's own modules."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}


def dvc(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment(), check=False, capture_output=True, text=True, timeout=900
    )


def ran(folder: Path) -> list[str]:
    """The stages that ran since the last time this was asked, in order."""
    log = folder / "ran.log"
    names = log.read_text().split() if log.exists() else []
    log.unlink(missing_ok=True)
    return names


def change_parameter(folder: Path, before: str, after: str) -> None:
    path = folder / "params.yaml"
    text = path.read_text()
    assert text.count(before) == 1
    path.write_text(text.replace(before, after))
