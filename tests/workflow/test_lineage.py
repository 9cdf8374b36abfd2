import shutil
from pathlib import Path

import pytest
from tiny_repo import change_parameter, dvc, git, make_repo, ran

from stages.errors import WinnowError
from stages.workflow.lineage import (
    flatten,
    git_state,
    is_stale,
    open_repo,
    pipeline_nodes,
    stage_key,
    stage_lineage,
)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WINNOW_TRACKING", "off")
    return make_repo(tmp_path)


def test_key_does_not_depend_on_order_and_does_on_everything_else():
    key = stage_key("cmd", {"a": "1", "b": "2"}, {"x": {"y": 1, "z": [1]}})
    assert key == stage_key("cmd", {"b": "2", "a": "1"}, {"x": {"z": [1], "y": 1}})
    others = {
        stage_key("other", {"a": "1", "b": "2"}, {"x": {"y": 1, "z": [1]}}),
        stage_key("cmd", {"a": "1", "b": "3"}, {"x": {"y": 1, "z": [1]}}),
        stage_key("cmd", {"a": "1", "c": "2"}, {"x": {"y": 1, "z": [1]}}),
        stage_key("cmd", {"a": "1", "b": "2"}, {"x": {"y": 1, "z": [2]}}),
        stage_key("cmd", {"a": "1", "b": "2"}, {}),
    }
    assert key not in others
    assert len(others) == 5
    assert len(key) == 32


def test_lineage_holds_inputs_parameters_and_outputs(tiny: Path):
    assert dvc(tiny, "repro", "first").returncode == 0
    with open_repo() as repo:
        first, second = stage_lineage(repo, "first"), stage_lineage(repo, "second")
    assert set(first.inputs) == {"stage.py", "data/raw/used"}
    assert first.outputs == ["reports/first"]
    assert first.params["seed"] == 0
    assert first.params["ingest"]["image_size"] == 16
    assert "train" not in first.params
    directory = second.inputs["reports/first"]
    assert directory.endswith(".dir")
    assert len(directory) <= 36
    assert first.key != second.key


def test_key_follows_the_workspace_and_not_the_lock_file(tiny: Path):
    assert dvc(tiny, "repro", "first").returncode == 0
    with open_repo() as repo:
        before = stage_lineage(repo, "first").key
        assert stage_lineage(repo, "first").key == before
    (tiny / "dvc.lock").unlink()
    with open_repo() as repo:
        assert stage_lineage(repo, "first").key == before
    change_parameter(tiny, "image_size: 16", "image_size: 24")
    with open_repo() as repo:
        changed = stage_lineage(repo, "first").key
    assert changed != before
    change_parameter(tiny, "image_size: 24", "image_size: 16")
    change_parameter(tiny, "epochs: 40", "epochs: 41")  # of a section that `first` does not use
    with open_repo() as repo:
        assert stage_lineage(repo, "first").key == before


def test_lineage_of_a_stage_whose_dependency_is_missing_is_one_line(tiny: Path):
    with open_repo() as repo, pytest.raises(WinnowError, match=r"second.*reports/first") as error:
        stage_lineage(repo, "second")
    assert "\n" not in str(error.value)


def test_nodes_are_the_root_file_and_what_it_needs(tiny: Path):
    with open_repo() as repo:
        nodes = pipeline_nodes(repo)
        some = pipeline_nodes(repo, ["first"])
        named = pipeline_nodes(repo, ["data/raw/dvc.yaml:unused"])
    names = [node.name for node in nodes]
    assert sorted(names) == ["data/raw/dvc.yaml:used", "evaluate", "first", "second"]
    seen: set[str] = set()
    for node in nodes:
        assert set(node.upstream) <= seen
        seen.add(node.name)
    assert nodes[-1].upstream == ("first", "second")
    assert {node.name: node.hints for node in nodes}["second"]["gpu"] is True
    assert [node.name for node in some] == ["data/raw/dvc.yaml:used", "first"]
    assert [node.name for node in named] == ["data/raw/dvc.yaml:unused"]


def test_unknown_target_says_what_there_is(tiny: Path):
    with open_repo() as repo, pytest.raises(WinnowError, match=r"'frist'.*evaluate, first, second"):
        pipeline_nodes(repo, ["frist"])


def test_stale_until_it_ran_and_after_a_change(tiny: Path):
    with open_repo() as repo:
        assert is_stale(repo, "first")
    assert dvc(tiny, "repro").returncode == 0
    assert sorted(ran(tiny)) == ["evaluate", "first", "second"]
    with open_repo() as repo:
        stages = [node.name for node in pipeline_nodes(repo)]
        assert not any(is_stale(repo, name) for name in stages)
    change_parameter(tiny, "epochs: 40", "epochs: 41")
    shutil.rmtree(tiny / "reports" / "first")
    with open_repo() as repo:
        stale = {name for name in stages if is_stale(repo, name)}
    assert stale == {"first", "second", "evaluate"}  # evaluate and second: a dependency is gone


def test_outside_a_repository_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WinnowError, match="DVC"), open_repo():
        pass


def test_flatten_names_lists_of_mappings_by_number():
    flat = flatten({"a": {"b": 1, "c": [{"d": None}, {"d": [1, 2]}]}, "e": [], "f": {}})
    assert flat == {"a.b": 1, "a.c.0.d": None, "a.c.1.d": [1, 2], "e": [], "f": {}}


def test_git_state_counts_tracked_changes_except_the_lock_file(tiny: Path, tmp_path_factory):
    (tiny / "dvc.lock").write_text("{}\n")
    git(tiny, "add", "dvc.lock")
    git(tiny, "commit", "-q", "-m", "lock")
    commit, dirty = git_state()
    assert commit is not None
    assert len(commit) == 40
    assert not dirty
    (tiny / "untracked").write_text("x")
    (tiny / "dvc.lock").write_text("schema: '2.0'\n")
    assert git_state() == (commit, False)
    (tiny / "stage.py").write_text("print()")
    assert git_state() == (commit, True)
    assert git_state(tmp_path_factory.mktemp("no-git")) == (None, False)
