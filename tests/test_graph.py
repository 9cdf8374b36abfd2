"""`dvc.yaml` against the code: what a stage imports is what DVC watches."""

import ast
from functools import cache
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parent.parent
# A new log line, a clearer message or another way to start a process retrains nothing.
EXEMPT = {"stages/__init__.py", "stages/errors.py", "stages/runtime.py"}
EXEMPT_ROOMS = ("stages/params", "stages/tracking")

GRAPH = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text("utf-8"))
STAGES = GRAPH["stages"]
CATALOGUE = YAML(typ="safe").load((ROOT / "data/raw/dvc.yaml").read_text("utf-8"))["stages"]


def module_of(stage: dict) -> str:
    python, flag, module, *_ = stage["cmd"].split()
    assert (python, flag) == ("python", "-m")
    return module


def file_of(module: str) -> str | None:
    path = Path(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if (ROOT / candidate).is_file():
            return candidate.as_posix()
    return None


class _WithoutTypeChecking(ast.NodeTransformer):
    def visit_If(self, node: ast.If):
        """What is imported for the type checker alone changes no result."""
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return None
        return self.generic_visit(node)


@cache
def imported(path: str) -> set[str]:
    """The project's files that a file imports when it runs, also inside functions."""
    found = set()
    tree = _WithoutTypeChecking().visit(ast.parse((ROOT / path).read_text("utf-8")))
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.split(".")[0] != "stages":
                continue
            parts = name.split(".")
            # importing a module runs the __init__ of the packages above it
            found |= {file for end in range(1, len(parts) + 1) if (file := file_of(".".join(parts[:end])))}
    return found


def opened(path: str) -> set[str]:
    """Templates and the like beside a file that it calls by name."""
    text = (ROOT / path).read_text("utf-8")
    beside = [file for file in (ROOT / path).parent.iterdir() if file.suffix in (".j2", ".css")]
    return {file.relative_to(ROOT).as_posix() for file in beside if f'"{file.name}"' in text}


@cache
def needed(path: str) -> set[str]:
    """A module and all that it reaches by imports, and the files that it opens; exempt ones are not
    looked into."""
    seen, queue = set(), [path]
    while queue:
        file = queue.pop()
        if file in seen or file in EXEMPT or file.startswith(EXEMPT_ROOMS):
            continue
        seen.add(file)
        queue += opened(file) | (imported(file) if file.endswith(".py") else set())
    return seen


def is_docstring_only(path: str) -> bool:
    if not path.endswith(".py"):
        return False
    body = ast.parse((ROOT / path).read_text("utf-8")).body
    return all(isinstance(node, ast.Expr) for node in body)


def missing(path: str, deps: list[str]) -> set[str]:
    covered = {
        file for file in needed(path) if any(file == dep or file.startswith(dep + "/") for dep in deps)
    }
    return {file for file in needed(path) - covered if not is_docstring_only(file)}


@pytest.mark.parametrize("name", STAGES)
def test_all_code_that_a_stage_imports_is_a_dependency(name: str):
    path = file_of(module_of(STAGES[name]))
    assert path is not None
    assert missing(path, STAGES[name]["deps"]) == set()


@pytest.mark.parametrize("name", CATALOGUE)
def test_all_code_of_the_catalogue_is_a_dependency(name: str):
    assert missing("stages/fetch.py", CATALOGUE[name]["deps"]) == set()


def test_the_walk_sees_imports_inside_functions_and_through_rooms():
    assert "stages/learning/models.py" in needed("stages/detect_noise.py")
    assert missing("stages/detect_noise.py", ["stages/detect_noise.py"]) != set()


@pytest.mark.parametrize("name", STAGES)
def test_every_dependency_on_code_is_there_and_used(name: str):
    path = file_of(module_of(STAGES[name]))
    for dep in STAGES[name]["deps"]:
        if dep.startswith("stages/"):
            assert (ROOT / dep).exists(), dep
            used = {file for file in needed(path) if file == dep or file.startswith(dep + "/")}
            assert used, f"{name} does not use {dep}"


def test_rooms_know_nothing_of_dvc_prefect_mlflow_and_parameters():
    forbidden = {"dvc", "prefect", "mlflow", "stages.params", "stages.tracking"}
    for path in sorted((ROOT / "stages").glob("*/**/*.py")):
        relative = path.relative_to(ROOT).as_posix()
        if relative.startswith(EXEMPT_ROOMS) or relative == "stages/learning/pyfunc.py":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            bad = {n for n in names if n in forbidden or n.split(".")[0] in forbidden}
            assert not bad, f"{relative} imports {bad}"


def test_every_section_of_params_is_some_stages_parameter(params_dict):
    used = {name.split(".")[0] for stage in STAGES.values() for name in stage.get("params", [])}
    assert used == set(params_dict)
