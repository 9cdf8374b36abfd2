"""`dvc.yaml` against the code: what a stage imports is what DVC watches."""

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parent.parent
# A new log line, a clearer message or another way to start a process retrains nothing.
EXEMPT = {"stages/__init__.py", "stages/errors.py"}
EXEMPT_ROOMS = ("stages/workflow/",)

# The rooms of stages/, bottom up: each imports only those before it. Above them are the stages' own
# modules, which import no other stage, and above these flows/ and benchmarks/.
ROOMS = (
    "errors",
    "dataset",
    "images",
    "ingestion",
    "learning",
    "augmentation",
    "curation",
    "noise",
    "synthesis",
    "versions",
    "workflow",
    "reporting",
    "review",
    "serving",
)

CODE = ("stages", "flows", "benchmarks")
FILES = sorted(file.relative_to(ROOT).as_posix() for top in CODE for file in (ROOT / top).rglob("*.py"))
GRAPH = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text("utf-8"))
# A group of stages that DVC makes of one (foreach) has one list of dependencies.
STAGES = {name: stage.get("do", stage) for name, stage in GRAPH["stages"].items()}
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
def direct_imports(path: str) -> set[str]:
    """The project's files that a file names in its imports, also inside functions."""
    found = set()
    tree = _WithoutTypeChecking().visit(ast.parse((ROOT / path).read_text("utf-8")))
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if file_of(name) else node.module for name in submodules]
        found |= {file for name in names if name.split(".")[0] in CODE and (file := file_of(name))}
    return found


def imported(path: str) -> set[str]:
    """The files of stages/ that run when a file is imported: those it names, and their packages."""
    named = {file for file in direct_imports(path) if file.startswith("stages/")}
    packages = {f"{folder.as_posix()}/__init__.py" for file in named for folder in Path(file).parents[:-1]}
    return named | {file for file in packages if (ROOT / file).is_file()}


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


def room_of(path: str) -> str:
    """The folder or single module right under stages/; flows and benchmarks are one each."""
    top, *rest = path.split("/")
    return rest[0].removesuffix(".py") if top == "stages" else top


def height(room: str) -> int:
    """The floor that a room is on: the rooms in their order, the stages' modules, flows, benchmarks."""
    if room in ROOMS:
        return ROOMS.index(room)
    return len(ROOMS) + (CODE.index(room) if room in CODE else 0)


def arrows_upwards(imports: dict[str, set[str]]) -> set[str]:
    """What a file imports from a room that is not under its own."""
    return {
        f"{file} -> {other}"
        for file, others in imports.items()
        for other in others - {"stages/__init__.py"}
        if room_of(other) != room_of(file) and height(room_of(other)) >= height(room_of(file))
    }


def test_every_folder_has_a_place_in_the_order_of_rooms():
    folders = {room_of(file) for file in FILES if file.startswith("stages/") and file.count("/") > 1}
    assert folders | {"errors"} == set(ROOMS)


def test_a_room_imports_only_rooms_under_it():
    assert arrows_upwards({file: direct_imports(file) for file in FILES}) == set()


def test_the_order_refuses_an_arrow_upwards_and_between_stages():
    upwards = {"stages/noise/folds.py": {"stages/reporting/noise.py", "stages/learning/loop.py"}}
    assert arrows_upwards(upwards) == {"stages/noise/folds.py -> stages/reporting/noise.py"}
    assert arrows_upwards({"stages/train.py": {"stages/ingest.py"}}) != set()
    assert arrows_upwards({"flows/pipeline.py": {"stages/ingest.py"}}) == set()


def test_no_files_import_each_other_in_a_circle():
    TopologicalSorter({file: direct_imports(file) - {file} for file in FILES}).prepare()
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()


def test_rooms_know_nothing_of_dvc_prefect_mlflow_and_parameters():
    forbidden = {"dvc", "prefect", "mlflow"}
    for relative in FILES:
        room = room_of(relative)
        if room not in ROOMS or room == "workflow" or relative == "stages/serving/pyfunc.py":
            continue
        for node in ast.walk(ast.parse((ROOT / relative).read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            bad = {n for n in names if n.split(".")[0] in forbidden or n.startswith("stages.workflow")}
            if relative.endswith("/__main__.py"):  # a command ends like a stage: one line, status 2
                bad -= {"stages.workflow.stage"}
            assert not bad, f"{relative} imports {bad}"


def test_every_section_of_params_is_some_stages_parameter(params_dict):
    used = {name.split(".")[0] for stage in STAGES.values() for name in stage.get("params", [])}
    assert used == set(params_dict)
