"""The stage `report` on the outputs of a small pipeline: what it draws, and what it says where it cannot."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from issue_table import clean_issues
from PIL import Image
from ruamel.yaml import YAML

from stages import augment, curate, report, synthesize
from stages.dataset import base as dataset
from stages.dataset.base import Dataset, View, split_view, write_dataset
from stages.dataset.files import new_folder, write_json, write_table
from stages.dataset.ids import pixel_id
from stages.reporting.pictures import DRAWINGS
from stages.reporting.reports import MODELS

ROOT = Path(__file__).resolve().parent.parent
GRAPH = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"]
CLASSES = ["007", "NA", "$x_{"]  # that spreadsheets, pandas and matplotlib like to read as something else
PAGES = Path("reports/pages")
INGEST = Path("reports/ingest")
NOT_ALWAYS = {"progress", "refused.png", "gan_curves.png"}  # only where a GAN was trained


def configure() -> None:
    """Have the stages train nothing and add to every class."""
    path, yaml = Path("params.yaml"), YAML(typ="safe")
    params = yaml.load(path.read_text("utf-8"))
    params["augment"] |= {"min_recognised": 0.0}
    params["synthesize"] |= {"method": "random", "fallback": "random"}
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(params, file)


def write_ingested(base: Dataset) -> None:
    """Leave `base` as the stage `ingest` does, with nothing of note in its report."""
    with new_folder(dataset.INGESTED) as folder:
        write_dataset(folder, base)
    counts = base.samples.groupby(["label", "split"], sort=False).size().rename("count").reset_index()
    empty = {
        "duplicates": ["sample_id", "source", "label", "split", "kept_id", "kept_source"],
        "near_duplicates": [
            *("sample_id", "source", "label", "split", "set"),
            *("nearest_id", "similarity", "outcome"),
        ],
        "conflicts": ["sample_id", "label", "source"],
        "quarantine": ["path", "reason", "detail"],
    }
    with new_folder(INGEST) as folder:
        counts.rename(columns={"label": "class"}).to_csv(folder / "class_counts.csv", index=False)
        channels = {"split": ["train"], "channel": ["grey"], "mean": [90.0], "std": [51.0]}
        pd.DataFrame(channels).to_csv(folder / "channels.csv", index=False)
        for name, columns in empty.items():
            write_table(folder / f"{name}.parquet", pd.DataFrame(columns=columns, dtype=str))
        settings = {"image_size": 16, "resize": "crop", "color": "grey", "val_share": 0.1, "test_share": 0.2}
        summary = {"source": "mine", "kind": "class folders", "notes": [], "warnings": [], **settings}
        write_json(folder / "summary.json", summary)


def write_noise(base: Dataset) -> None:
    """Leave two suspected labels as the stage `detect_noise` does."""
    issues = clean_issues(base.samples)
    issues.loc[:1, ["is_label_issue", "label_score", "suggested_score"]] = [True, 0.02, 0.96]
    issues.loc[:1, "suggested_label"] = CLASSES[1]
    probabilities = np.full((len(issues), len(CLASSES)), 1 / len(CLASSES), np.float32)
    with new_folder(dataset.NOISE) as folder:
        write_table(folder / "issues.parquet", issues)
        np.save(folder / "pred_probs.npy", probabilities)
        np.save(folder / "embeddings.npy", probabilities)
    transition = {"true_label": CLASSES, "given_label": [*CLASSES[1:], CLASSES[0]], "probability": 1.0}
    with new_folder(dataset.REPORTS / "detect_noise") as folder:
        pd.DataFrame(transition).to_csv(folder / "transition.csv", index=False)


def write_scores(test: View) -> None:
    """Leave three models that are always right, as their stages and `evaluate` do."""
    names = np.asarray(CLASSES, dtype=object)[test.labels]
    predictions = {"sample_id": test.sample_ids, "label": names} | dict.fromkeys(MODELS, names)
    bins = {"bin": [0, 1], "confidence": [np.nan, 0.9], "accuracy": [np.nan, 1.0], "images": [0, len(names)]}
    score = {"value": 1.0, "low": 0.9, "high": 1.0}
    with new_folder(dataset.REPORTS / "evaluate") as folder:
        pd.DataFrame(predictions).to_csv(folder / "predictions.csv", index=False)
        tables = [pd.DataFrame({"model": name, **bins}) for name in MODELS]
        pd.concat(tables).to_csv(folder / "reliability.csv", index=False)
        write_json(folder / "metrics.json", {"models": {name: {"macro_f1": score} for name in MODELS}})
    for name in MODELS:
        with new_folder(dataset.REPORTS / name) as folder:
            history = {"epoch": [1, 2], "train_loss": [1.0, 0.5], "val_loss": 0.7, "val_accuracy": 0.9}
            pd.DataFrame(history).to_csv(folder / "history.csv", index=False)


def small_base() -> Dataset:
    """Three classes of 16×16 grey images; train 20, 14 and 10, val 2 each, test 4 each."""
    rng = np.random.default_rng(0)
    plan = {"train": (20, 14, 10), "val": (2, 2, 2), "test": (4, 4, 4)}
    rows = [
        (split, name)
        for split, counts in plan.items()
        for name, count in zip(CLASSES, counts, strict=True)
        for _ in range(count)
    ]
    images = rng.integers(0, 256, (len(rows), 16, 16, 1)).astype(np.uint8)
    ids = [pixel_id(image) for image in images]
    samples = pd.DataFrame(rows, columns=["split", "label"]).assign(sample_id=ids, source=ids, group=ids)
    samples = samples.assign(row=range(len(rows)), width=16, height=16, weight=1.0)
    return Dataset(images, samples[dataset.SAMPLE_COLUMNS], CLASSES)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A workspace with what every stage writes."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "data").mkdir()
    for name in ("params.yaml", "dvc.yaml", "data/reviews.csv"):
        shutil.copy(ROOT / name, folder / name)
    base = small_base()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("WINNOW_TRACKING", "off")
        configure()
        write_ingested(base)
        write_noise(base)
        curate.main([])
        augment.main([])
        synthesize.main([])
        write_scores(split_view(base, "test"))
    return folder


@pytest.fixture
def outputs(finished, tmp_path, monkeypatch) -> Path:
    """A copy of `finished` as the current folder."""
    folder = tmp_path / "workspace"
    shutil.copytree(finished, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("WINNOW_TRACKING", "off")
    return folder


def written(folder: Path) -> dict[str, str]:
    """A hash of every file of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def fails(capsys, *arguments: str) -> str:
    """Run; expect exit status 2, and return what was said."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as status:
        report.main(list(arguments))
    assert status.value.code == 2
    return capsys.readouterr().err


def test_draws_every_picture_of_every_stage_and_the_same_bytes_again(outputs):
    for stage in report.STAGES:
        report.main([stage])
    first = {stage: written(PAGES / stage) for stage in report.STAGES}
    for drawing in DRAWINGS:
        assert drawing.name in first[drawing.stage] or drawing.name in NOT_ALWAYS, drawing.name
    assert {"data_card.html", "samples.png", "sizes.png"} <= set(first["ingest"])
    for path in PAGES.rglob("*.png"):
        with Image.open(path) as picture:
            picture.load()
            assert picture.format == "PNG"
    for page in (PAGES / "ingest/data_card.html", PAGES / "evaluate/index.html"):
        for name in CLASSES:
            assert name in page.read_text("utf-8")
    for stage in report.STAGES:
        report.main([stage])
    assert {stage: written(PAGES / stage) for stage in report.STAGES} == first
    assert not list(Path().rglob("*.partial"))


@pytest.mark.parametrize(
    ("stage", "missing"),
    [
        ("ingest", "reports/ingest/summary.json"),
        ("ingest", "reports/ingest/class_counts.csv"),
        ("ingest", "reports/ingest/quarantine.parquet"),
        ("detect_noise", "data/noise/issues.parquet"),
        ("detect_noise", "reports/detect_noise/transition.csv"),
        ("curate", "reports/curate/changes.csv"),
        ("augment", "reports/augment/transformed.npy"),
        ("synthesize", "reports/synthesize/quality.json"),
        ("evaluate", "reports/evaluate/predictions.csv"),
        ("evaluate", "reports/train/history.csv"),
    ],
)
def test_a_missing_output_is_one_line_and_leaves_what_was_drawn_before(outputs, capsys, stage, missing):
    (PAGES / stage).mkdir(parents=True)
    (PAGES / stage / "old.png").write_bytes(b"drawn before")
    Path(missing).unlink()
    said = fails(capsys, stage)
    assert said.count("\n") == 1
    assert missing in said
    assert "dvc repro" in said
    assert list(written(PAGES / stage)) == ["old.png"]
    assert not list(Path().rglob("*.partial"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("evaluate/predictions.csv", b"\xff\xfe\x00 no text"),
        ("evaluate/predictions.csv", b""),
        ("synthesize/gan_history.csv", b""),
        ("train/history.csv", b"\xff\xfe\x00 no text"),
    ],
)
def test_a_damaged_table_is_one_line_too(outputs, capsys, name, content):
    (dataset.REPORTS / name).write_bytes(content)
    said = fails(capsys, "evaluate")
    assert said.count("\n") == 1
    assert f"reports/{name} is damaged" in said


def test_damaged_json_is_one_line_too(outputs, capsys):
    (INGEST / "summary.json").write_text("{", "utf-8")
    said = fails(capsys, "ingest")
    assert said.count("\n") == 1
    assert "reports/ingest/summary.json is damaged" in said


def test_a_summary_of_another_version_is_one_line(outputs, capsys):
    (INGEST / "summary.json").write_text("{}", "utf-8")
    said = fails(capsys, "ingest")
    assert said.count("\n") == 1
    assert "reports/ingest/summary.json has no 'source'" in said


def test_an_unknown_stage_is_refused_with_the_list(workspace, capsys):
    said = fails(capsys, "training")
    assert "'training'" in said
    for stage in report.STAGES:
        assert stage in said


def test_every_picture_is_drawn_by_a_stage_of_the_pipeline():
    page = GRAPH["page"]["cmd"].split()[-1]
    drawn = [*GRAPH["report"]["foreach"], page]
    assert sorted(drawn) == sorted(report.STAGES)
    assert {drawing.stage for drawing in DRAWINGS} <= set(drawn)
    assert len({(drawing.stage, drawing.name) for drawing in DRAWINGS}) == len(DRAWINGS)


def test_importing_the_stage_loads_no_slow_library():
    code = "import sys, json, stages.report; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True, timeout=120
    )
    loaded = set(json.loads(done.stdout))
    assert loaded.isdisjoint({"torch", "mlflow", "matplotlib", "jinja2", "albumentations", "cleanlab"})
