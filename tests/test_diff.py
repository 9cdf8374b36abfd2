"""`python -m stages.diff`: git revisions by way of DVC, folders, and what a user gets wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from tiny_repo import environment, git
from version_tables import ledger_of, samples_of, write_version

from stages import diff
from stages.versions.comparison import CHANGE_COLUMNS

BASE = samples_of({"a": "train cat", "b": "train dog", "c": "val cat", "d": "test dog"})
GROWN = samples_of({"a": "train cat", "b": "train dog", "c": "val cat", "d": "test dog", "n": "train cat"})
LEDGER = ledger_of(GROWN, a=("relabel", "dog", "label_error", "policy"), b=("drop", None, "blur", "reviewer"))
GRAPH = """
stages:
  ingest: {cmd: "false", outs: [data/ingested]}
  curate: {cmd: "false", deps: [data/ingested], outs: [data/curated]}
  augment: {cmd: "false", deps: [data/curated], outs: [data/augmented]}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with four commits, the tags of which say what it held; the last one is checked out.

    `bare` (before DVC), `ingested` (no ledger), `curated` (more samples, a ledger, a delta), HEAD
    (nothing but a note), and in the workspace a decision more.
    """
    from dvc.repo import Repo

    root = tmp_path_factory.mktemp("made")
    git(root, "init", "-q")
    git(root, "config", "user.email", "test@example.org")
    git(root, "config", "user.name", "test")

    def commit(tag: str) -> None:
        git(root, "add", "-A")
        git(root, "commit", "-q", "-m", tag)
        git(root, "tag", tag)

    def save(stage: str | None) -> None:
        # DVC looks for a stage in the current folder, whichever the repository.
        with pytest.MonkeyPatch.context() as patch, Repo(str(root)) as repo:
            patch.chdir(root)
            repo.commit(stage, force=True)

    (root / "README.md").write_text("nothing yet")
    commit("bare")
    Repo.init(str(root)).close()
    (root / ".gitignore").write_text("/data\n")
    (root / "dvc.yaml").write_text(GRAPH)
    commit("planned")
    write_version(root, BASE)
    save("ingest")
    commit("ingested")
    write_version(root, GROWN, LEDGER)
    (root / "data/augmented").mkdir()
    GROWN[:2].to_parquet(root / "data/augmented/samples.parquet", index=False)
    save(None)
    commit("curated")
    (root / "README.md").write_text("a note")
    commit("noted")
    ledger = ledger_of(GROWN, a=("relabel", "dog", "label_error", "policy"))
    write_version(root, GROWN, ledger)
    return root


@pytest.fixture
def repo(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    diff.main(list(arguments))
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on a mistake, after which the status is 2 and nothing is shown."""
    with pytest.raises(SystemExit) as stopped:
        diff.main(list(arguments))
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("diff: ")
    assert err.count("\n") == 1
    return err


def changes(tmp_path: Path, *arguments: str) -> dict[str, str]:
    out = tmp_path / "changes.parquet"
    diff.main([*arguments, "--out", str(out)])
    table = pd.read_parquet(out)
    return dict(zip(table["sample_id"], table["change"], strict=True))


def test_two_revisions(repo: Path, tmp_path: Path) -> None:
    found = {"a": "relabelled", "b": "dropped", "n": "added"}
    assert changes(tmp_path, "ingested", "curated") == found
    assert changes(tmp_path, "HEAD~2", "HEAD") == found
    commit = subprocess.run(
        ["git", "rev-parse", "ingested"], check=True, capture_output=True, text=True
    ).stdout.strip()
    assert changes(tmp_path, commit[:8], "HEAD") == found


def test_the_workspace_against_the_last_commit_is_the_default(repo: Path, tmp_path: Path) -> None:
    assert changes(tmp_path) == {"b": "taken_back"}
    assert changes(tmp_path, "HEAD", ".") == {"b": "taken_back"}
    assert changes(tmp_path, "ingested") == {"a": "relabelled", "n": "added"}


def test_nothing_is_checked_out_and_nothing_but_the_tables_is_read(
    repo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def state() -> dict[str, int]:
        return {str(file): file.stat().st_mtime_ns for file in (repo / "data").rglob("*")}

    before, head = state(), (repo / ".git/HEAD").read_text()
    out = shown(capsys, "ingested", "curated")
    assert state() == before
    assert (repo / ".git/HEAD").read_text() == head
    assert "A  ingested (" in out
    assert "it has no ledger" in out
    assert "augmented images: none → 2" in out
    # The images are 14 bytes that are no array, and may be missing too.
    for images in (repo / ".dvc/cache").rglob("*"):
        if images.is_file() and images.read_bytes() == b"not to be read":
            images.unlink()
    assert changes(tmp_path, "ingested", "curated") == {"a": "relabelled", "b": "dropped", "n": "added"}


def test_in_a_folder_of_the_repository(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (repo / "notes").mkdir(exist_ok=True)
    monkeypatch.chdir(repo / "notes")
    assert changes(tmp_path, "HEAD", "..") == {"b": "taken_back"}


def test_the_parquet_has_a_row_a_changed_sample(repo: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "changes.parquet"
    diff.main(["ingested", "curated", "--out", str(out)])
    table = pd.read_parquet(out)
    assert list(table.columns) == CHANGE_COLUMNS
    row = table.set_index("sample_id").loc["a"]
    assert (row["label_before"], row["label_after"], row["given_label_after"]) == ("cat", "dog", "cat")
    assert (row["reason_after"], row["decided_by_after"], row["source"]) == ("label_error", "policy", "a.png")
    assert table["weight_after"].tolist() == [1.0, 0.0, 1.0]
    assert table["split_after"].tolist() == ["train", "train", "train"]
    first = out.read_bytes()
    diff.main(["ingested", "curated", "--out", str(out)])
    assert out.read_bytes() == first
    diff.main(["curated", "curated", "--out", str(out)])
    nothing = pd.read_parquet(out)
    assert nothing.empty
    assert list(nothing.columns) == CHANGE_COLUMNS
    assert nothing.dtypes.equals(table.dtypes)


def test_folders_need_no_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = write_version(tmp_path / "old", BASE), write_version(tmp_path / "new", GROWN, LEDGER)
    found = {"a": "relabelled", "b": "dropped", "n": "added"}
    assert changes(tmp_path, str(old), str(new)) == found
    assert changes(tmp_path, str(old / "data"), str(new / "data")) == found
    monkeypatch.chdir(tmp_path)
    assert changes(tmp_path, "old", "new") == found  # names without a dot may be folders too
    capsys.readouterr()
    assert "neither a git revision" in refused(capsys, "HEAD", "new")


def test_exit_code(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown(capsys, "curated", "HEAD", "--exit-code")  # they are equal
    with pytest.raises(SystemExit) as stopped:
        diff.main(["ingested", "HEAD", "--exit-code"])
    assert stopped.value.code == 1
    assert "3 samples changed from A to B" in capsys.readouterr().out


def test_a_name_of_both_is_the_revision(
    repo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_version(repo / "ingested", GROWN)
    try:
        assert changes(tmp_path, "ingested", "./ingested") == {"n": "added"}
        assert "ingested is taken as the revision; ./ingested is the folder" in capsys.readouterr().err
        assert changes(tmp_path, "ingested/", "./ingested") == {}
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nope", "'nope' is neither a git revision of a DVC repository here nor a folder"),
        ("", "'' is neither a git revision"),
        ("HEAD~99", "'HEAD~99' is neither a git revision"),
        ("HEAD:data", "'HEAD:data' is neither a git revision"),
        ("./nope", "nope holds no version of the dataset"),
        ("x" * 260, "cannot be read: File name too long"),
        ("./" + "x" * 260, "cannot be read: File name too long"),
        (".dvc", ".dvc holds no version of the dataset, there is no data/ingested/samples.parquet in it"),
        ("bare", "has no data/ingested: the pipeline had not run by then"),
        ("planned", "has no data/ingested: the pipeline had not run by then"),
    ],
)
def test_what_is_no_version(repo: Path, capsys: pytest.CaptureFixture[str], name: str, message: str) -> None:
    assert message in refused(capsys, name, "HEAD")


def test_data_that_dvc_does_not_have(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(made), str(clone))
    monkeypatch.chdir(clone)
    said = refused(capsys, "ingested", "HEAD")
    assert "data/ingested is not in DVC's cache: `dvc fetch --all-commits data/ingested data/cur" in said
    assert "`dvc repro`" in said
    # A remote that has them serves as well as the cache.
    (clone / ".dvc/config.local").write_text(
        f"[core]\n    remote = r\n['remote \"r\"']\n    url = {made / '.dvc/cache/files/md5'}\n"
    )
    assert "not in DVC's cache" in refused(capsys, "ingested", "HEAD")  # no layout of a remote: not found
    shutil.copytree(made / ".dvc/cache", tmp_path / "remote")
    (clone / ".dvc/config.local").write_text(
        f"[core]\n    remote = r\n['remote \"r\"']\n    url = {tmp_path / 'remote'}\n"
    )
    assert changes(tmp_path, "ingested", "HEAD") == {"a": "relabelled", "b": "dropped", "n": "added"}


def test_broken_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = (write_version(tmp_path / name, BASE, ledger_of(BASE)) for name in ("good", "bad"))
    (bad / "data/curated/ledger.parquet").write_bytes(b"no Parquet")
    said = refused(capsys, str(good), str(bad), "--out", str(tmp_path / "out.parquet"))
    assert "data/curated/ledger.parquet cannot be read as Parquet" in said
    assert not (tmp_path / "out.parquet").exists()
    BASE.assign(label=[["cat"]] * len(BASE)).to_parquet(bad / "data/ingested/samples.parquet", index=False)
    said = refused(capsys, str(good), str(bad))
    assert "bad: data/ingested/samples.parquet: column 'label' holds no single values" in said


def test_out_overwrites_neither_folders_nor_outputs(repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (repo / "data/curated/ledger.parquet").read_bytes()
    assert "that is a folder" in refused(capsys, "--out", "notes" if Path("notes").is_dir() else ".dvc")
    for place in ("data/curated/ledger.parquet", "data/noise/new.parquet", "reports/curate/changes.parquet"):
        assert "choose another place" in refused(capsys, "--out", place)
    assert (repo / "data/curated/ledger.parquet").read_bytes() == before
    assert "that is not a .parquet" in refused(capsys, "--out", "README.md")
    assert "that is not a .parquet" in refused(capsys, "--out", "new.csv")
    assert not Path("new.csv").exists()
    assert (repo / "README.md").read_text() == "a note"
    assert "cannot be written" in refused(capsys, "--out", "README.md/changes.parquet")


@pytest.mark.parametrize("here", [".", "data", ".."])
def test_out_is_not_among_the_source_or_in_folders_of_git_and_dvc(
    repo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], here: str
) -> None:
    monkeypatch.chdir(here)
    for place in (
        "data/raw/x.parquet",
        "data/raw/mine/x.parquet",
        "data/ingested/x.parquet",
        ".git/x.parquet",
        ".dvc/cache/x.parquet",
    ):
        out = os.path.relpath(repo / place)
        assert "choose another place" in refused(capsys, str(repo), str(repo), "--out", out)
        assert not (repo / place).exists()


def test_out_replaces_nothing_but_an_earlier_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = write_version(tmp_path / "old", BASE), write_version(tmp_path / "new", GROWN)
    monkeypatch.chdir(tmp_path)
    BASE.to_parquet("mine.parquet")
    Path("empty.parquet").write_bytes(b"")
    Path("link.parquet").symlink_to("mine.parquet")
    os.mkfifo("pipe.parquet")  # to open it would wait for ever
    before = Path("mine.parquet").read_bytes()
    for name in ("mine", "empty", "link", "pipe"):
        said = refused(capsys, "./old", "./new", "--out", f"{name}.parquet")
        assert "it is no comparison that this command wrote; choose another name" in said
    assert Path("mine.parquet").read_bytes() == before
    assert Path("link.parquet").is_symlink()
    assert changes(tmp_path, str(old), str(new)) == {"n": "added"}
    assert changes(tmp_path, str(new), str(old)) == {"n": "removed"}  # into the same file


def test_out_where_no_file_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_version(tmp_path / "old", BASE)
    monkeypatch.chdir(tmp_path)
    Path("loop.parquet").symlink_to("loop.parquet")
    # The second is too long only for the file that is written beside it and renamed.
    for name in ("x" * 260, "x" * 245, "loop"):
        said = refused(capsys, "./old", "./old", "--out", f"{name}.parquet")
        assert f"{name}.parquet cannot be written: " in said
    if Path("/proc/self").exists():
        said = refused(capsys, "./old", "./old", "--out", "/proc/x.parquet")
        assert "/proc/x.parquet cannot be written: " in said
    assert sorted(file.name for file in tmp_path.iterdir()) == ["loop.parquet", "old"]


def test_a_reader_that_stops_reading_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_version(tmp_path / "old", BASE)
    write_version(tmp_path / "new", GROWN)
    monkeypatch.chdir(tmp_path)

    def unread(*arguments: str) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        with open(writer, "w") as stdout, monkeypatch.context() as patch:  # noqa: PTH123
            patch.setattr(sys, "stdout", stdout)
            diff.main(["./old", "./new", *arguments])
        # Closing flushed what was left without another complaint, as the end of Python does.

    unread("--out", "changes.parquet")
    assert len(pd.read_parquet("changes.parquet")) == 1
    with pytest.raises(SystemExit) as stopped:
        unread("--exit-code")
    assert stopped.value.code == 1
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_under_the_console_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = str(write_version(tmp_path / "old", BASE))
    with Path("/dev/full").open("w") as stdout, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        assert "the comparison cannot be printed: No space left" in refused(capsys, old, old)


def test_the_command_and_its_help(tmp_path: Path) -> None:
    old, new = write_version(tmp_path / "old", BASE), write_version(tmp_path / "new", GROWN, LEDGER)
    command = [sys.executable, "-m", "stages.diff", str(old), str(new)]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment() | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0
    assert b"3 samples changed from A to B" in done.stdout
    with pytest.raises(SystemExit) as stopped:
        diff.main(["--help"])
    assert stopped.value.code == 0
