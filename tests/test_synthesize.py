import errno
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from ruamel.yaml import YAML

from stages import report, synthesize
from stages.dataset import base as dataset
from stages.dataset.files import new_folder, write_table

FAST = {"steps": 4, "batch_size": 8, "latent_dim": 4, "width": 8, "snapshots": 2}
MEASURE = SimpleNamespace(value=0.4, real=0.5, limit=0.25, passed=True)


def write_inputs(base, **weights):
    table = base.samples
    ledger = pd.DataFrame(
        {
            "sample_id": table["sample_id"],
            "split": table["split"],
            "given_label": table["label"],
            "label": table["label"],
            "action": "keep",
            "weight": table["label"].map(weights).fillna(1.0),
            "score": 0.5,
            "reason": "",
            "decided_by": "policy",
        }
    )
    with new_folder(dataset.INGESTED) as folder:
        dataset.write_dataset(folder, base)
    with new_folder(dataset.CURATED) as folder:
        write_table(folder / "ledger.parquet", ledger)


def configure(workspace, gan=None, **changes):
    yaml, path = YAML(), workspace / "params.yaml"
    params = yaml.load(path.read_text("utf-8"))
    params["device"] = "cpu"
    params["synthesize"].update(changes)
    params["synthesize"]["gan"].update({**FAST, **(gan or {})})
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(params, file)


def contents(*folders):
    return {path: path.read_bytes() for folder in folders for path in sorted(folder.rglob("*.*"))}


def quality():
    return json.loads((synthesize.REPORT / "quality.json").read_text("utf-8"))


def error_line(capsys):
    with pytest.raises(SystemExit) as status:
        synthesize.main([])
    assert status.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.fixture
def quick_judge(monkeypatch):
    from stages.learning import judge

    monkeypatch.setattr(judge, "_STEPS", (20, 20))


@pytest.fixture
def open_gate(monkeypatch, quick_judge):
    """A gate that lets everything pass, and remembers what it was given."""
    from stages.synthesis import gate

    class Open:
        def __init__(self, real, config, *, judge, held_out, seed, groups=None):
            Open.held_out = held_out

        def can_check(self, label):
            return True

        def judge(self, candidates, label):
            yes = np.ones(len(candidates), bool)
            return SimpleNamespace(
                refused={"agreement": ~yes, "stray": ~yes},
                accepted=yes,
                nearest=np.zeros(len(candidates), np.int64),
                nearness=yes * 0.75,
                measures={"density": MEASURE, "kid": MEASURE},
                failed=(),
            )

    monkeypatch.setattr(gate, "Gate", Open)
    return Open


class Run:
    """What a stage logs, by kind."""

    def __init__(self):
        self.metrics, self.history, self.folders = {}, [], []

    def log_metrics(self, metrics):
        self.metrics |= metrics

    def log_history(self, rows):
        self.history += rows

    def log_artifacts(self, folder):
        self.folders.append(folder)


def test_a_refused_gan_falls_back_out_loud_and_repeats(workspace, tiny_dataset, quick_judge, capsys):
    write_inputs(tiny_dataset)
    configure(workspace, min_real_per_class=20)
    synthesize.main([])
    first = contents(dataset.SYNTHETIC, synthesize.REPORT)
    names = {path.relative_to(path.parts[0]).as_posix() for path in first}
    assert names == {
        "synthetic/images.npy",
        "synthetic/samples.parquet",
        "synthetic/classes.json",
        "synthesize/quality.json",
        "synthesize/counts.csv",
        "synthesize/examples.parquet",
        "synthesize/examples.npy",
        "synthesize/gan_history.csv",
        "synthesize/gan_scores.csv",
    }
    found = quality()
    assert {name: found[name] for name in ("method", "fallback", "neighbors_in")} == {
        "method": "gan",
        "fallback": "random",
        "neighbors_in": "pixels",
    }
    assert found["gan"] == {
        "trained_on": ["a", "b"],
        "steps": 4,
        "steps_asked": 4,
        "batch_size": 8,
        "notes": [],
    }
    assert list(found["classes"]) == ["a", "b", "c"]
    entries = found["classes"]
    assert entries["a"]["decision"] == "not_needed"
    assert entries["b"]["decision"] == "fallback"  # four steps make no image that looks real
    assert entries["b"]["candidates"] == 64
    assert set(entries["b"]["refused"]) == {
        "agreement",
        "copy_of_train",
        "copy_of_held_out",
        "stray",
        "repeat",
    }
    assert entries["b"]["measures"]
    assert entries["c"]["decision"] == "fallback"
    assert "10 real images; the GAN is not tried under 20" in entries["c"]["reason"]
    said = capsys.readouterr().out
    assert "synthesize: b: FALLBACK 10 by random" in said
    assert "synthesize: c: FALLBACK 10 by random" in said
    table = dataset.read_dataset(dataset.SYNTHETIC).samples
    assert list(table.columns) == dataset.DELTA_COLUMNS
    assert table["label"].value_counts().to_dict() == {"b": 10, "c": 10}
    assert set(table["method"]) == {"random"}
    assert set(table["weight"]) == {0.3}
    assert table["sample_id"].is_unique
    history = pd.read_csv(synthesize.REPORT / "gan_history.csv")
    assert list(history.columns) == synthesize.HISTORY_COLUMNS
    assert history["step"].tolist() == [1, 2, 3, 4]
    examples = pd.read_parquet(synthesize.REPORT / "examples.parquet")
    assert sorted(set(examples["step"])) == [-1, 1, 2, 3, 4]
    assert set(examples.loc[examples["kind"] == "refused", "check"]) <= set(entries["b"]["refused"])
    assert examples.groupby("kind")["class"].unique().map(list).to_dict() == {
        "progress": ["a", "b"],
        "real": ["a", "b", "c"],
        "refused": ["b"],
    }
    stored = examples.loc[examples["kind"] != "real", "row"]
    assert stored.tolist() == list(range(len(np.load(synthesize.REPORT / "examples.npy"))))
    assert not synthesize.CHECKPOINTS.exists()
    synthesize.main([])
    assert contents(dataset.SYNTHETIC, synthesize.REPORT) == first


def test_a_gate_that_lets_pass_leaves_the_gans_images(workspace, tiny_dataset, open_gate):
    more = tiny_dataset.samples["split"] == "test"
    tiny_dataset.samples.loc[more & (tiny_dataset.samples["label"] == "b"), "split"] = "val"
    write_inputs(tiny_dataset, b=0.5)
    configure(workspace, min_real_per_class=20)
    synthesize.main([])
    table = dataset.read_dataset(dataset.SYNTHETIC).samples
    entry = quality()["classes"]["b"]
    assert (entry["decision"], entry["method"], entry["added"]) == ("accepted", "gan", 10)
    assert entry["measures"] == {"density": vars(MEASURE), "kid": vars(MEASURE)}
    assert entry["nearness"]["min"] == 0.75
    made = table[table["label"] == "b"]
    assert set(made["method"]) == {"gan"}
    assert set(made["weight"]) == {0.3}  # a generated image has no parent whose doubt it could inherit
    assert made["parent_id"].nunique() == 1
    assert made["sample_id"].is_unique
    counts = pd.read_csv(synthesize.REPORT / "counts.csv").set_index("class")
    assert counts.loc["b"].to_dict() == {"real": 20, "synthetic": 10, "method": "gan", "decision": "accepted"}
    # Fifteen validation images of class b choose its snapshot, and five of class a are too few to.
    scores = pd.read_csv(synthesize.REPORT / "gan_scores.csv")
    assert set(scores["class"]) == {"b"}
    assert scores.loc[scores["chosen"], "step"].tolist() == [entry["snapshot"]]
    assert {name: len(images) for name, images in open_gate.held_out.items()} == {"val": 25, "test": 20}


def test_a_killed_run_goes_on_from_its_checkpoint(workspace, tiny_dataset, open_gate, monkeypatch, capsys):
    write_inputs(tiny_dataset)
    configure(workspace, min_real_per_class=20)
    lenient, left = open_gate.judge, []

    def killed(self, candidates, label):
        left.extend(synthesize.CHECKPOINTS.rglob("*.part"))
        raise KeyboardInterrupt

    monkeypatch.setattr(open_gate, "judge", killed)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        synthesize.main([])
    assert left
    assert synthesize.CHECKPOINTS.is_dir()
    assert not synthesize.REPORT.exists()
    monkeypatch.setattr(open_gate, "judge", lenient)
    capsys.readouterr()
    synthesize.main([])
    assert "goes on after step 4" in capsys.readouterr().err
    again = contents(dataset.SYNTHETIC, synthesize.REPORT)
    assert not synthesize.CHECKPOINTS.exists()
    synthesize.main([])
    assert contents(dataset.SYNTHETIC, synthesize.REPORT) == again


@pytest.fixture
def lost_after(monkeypatch):
    """Makes the GAN's weights no numbers after so many steps."""
    import torch

    from stages.synthesis.gan_trainer import GANTrainer

    step = GANTrainer.step

    def lost(at):
        def failing(self, *data):
            step(self, *data)
            if self.steps == at:
                with torch.no_grad():
                    next(self.generator.parameters()).fill_(float("nan"))

        monkeypatch.setattr(GANTrainer, "step", failing)

    return lost


def test_a_gan_that_went_back_says_where_its_training_ended(
    workspace, tiny_dataset, open_gate, lost_after, capsys
):
    write_inputs(tiny_dataset)
    configure(workspace, gan={"steps": 20}, min_real_per_class=20)
    lost_after(7)
    synthesize.main([])
    found = quality()
    assert (found["gan"]["steps"], found["gan"]["steps_asked"]) == (6, 20)
    assert "went back to step 6" in found["gan"]["notes"][0]
    assert found["classes"]["b"]["snapshot"] == 6
    history = pd.read_csv(synthesize.REPORT / "gan_history.csv")
    assert history["step"].tolist() == [2, 4, 6]
    assert np.isfinite(history.to_numpy()).all()
    assert "synthesize: GAN: losses or weights were not numbers" in capsys.readouterr().out


def test_a_gan_that_was_never_good_names_the_parameter(
    workspace, tiny_dataset, open_gate, lost_after, capsys
):
    write_inputs(tiny_dataset)
    configure(workspace, min_real_per_class=20)
    lost_after(1)
    assert error_line(capsys).startswith("synthesize: synthesize.gan.learning_rate = 0.0007: ")
    assert not dataset.SYNTHETIC.exists()
    assert not synthesize.REPORT.exists()


def test_no_report_of_what_could_not_be_written(workspace, tiny_dataset, monkeypatch, capsys):
    write_inputs(tiny_dataset)
    configure(workspace, method="random")
    synthesize.main([])
    before = contents(dataset.SYNTHETIC, synthesize.REPORT)
    configure(workspace, method="smote")
    monkeypatch.setattr(dataset, "write_dataset", full_disk)
    assert "data/synthetic cannot be written: No space left" in error_line(capsys)
    assert contents(dataset.SYNTHETIC, synthesize.REPORT) == before
    assert not list(synthesize.REPORT.parent.glob("*.partial"))


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_what_mlflow_is_told(workspace, tiny_dataset, open_gate, make_params):
    changes = {"device": "cpu", "synthesize.min_real_per_class": 20, "synthesize.per_class": {}}
    params = make_params(changes | {f"synthesize.gan.{key}": value for key, value in FAST.items()})
    real = dataset.split_view(tiny_dataset, "train")
    classes = ["a", "b/ü: 1", "c"]
    named = dataset.View(real.images, real.labels, real.weights, real.sample_ids, classes)
    beside = synthesize.Beside(validation=named, held_out={})
    made = synthesize.synthesize(named, params.synthesize, beside=beside, seed=0, device="cpu")
    assert synthesize.figures(made) == {
        "synthetic": 20.0,
        "synthetic_gan": 10.0,
        "synthetic_random": 10.0,
        "classes_accepted": 1.0,
        "classes_reduced": 0.0,
        "classes_fallback": 1.0,
        "gate_accepted_b___ 1": 1.0,
        "gate_density_b___ 1": 0.4,
        "gate_kid_b___ 1": 0.4,
    }
    rows = synthesize.curves(made)
    assert {row["epoch"] for row in rows if "gan_penalty" in row} == {1.0, 2.0, 3.0, 4.0}
    assert {row["epoch"] for row in rows if "gan_score" in row} == {3.0, 4.0}
    assert all("gan_step" not in row for row in rows)


def test_the_stage_logs_its_folder(workspace, tiny_dataset, make_params):
    write_inputs(tiny_dataset)
    run = Run()
    synthesize.main.__wrapped__(make_params({"synthesize.method": "smote"}), run, None)
    assert run.metrics["synthetic_smote"] == 20.0
    assert run.metrics["classes_accepted"] == 2.0
    assert run.history == []
    assert run.folders == [synthesize.REPORT]


@pytest.mark.parametrize("method", ["smote", "random", "borderline_smote", "smote_tomek"])
def test_simple_methods_inherit_the_parents_weight_and_train_nothing(workspace, tiny_dataset, method):
    write_inputs(tiny_dataset, c=0.5)
    configure(workspace, method=method, to=30, max_factor=2)
    synthesize.main([])
    delta = dataset.read_dataset(dataset.SYNTHETIC)
    table = delta.samples
    assert table["label"].value_counts().to_dict() == {"c": 20, "b": 10}
    assert set(table["method"]) <= {method, "smote"}
    assert table.groupby("label")["weight"].first().to_dict() == {"b": 0.3, "c": 0.15}
    history = (synthesize.REPORT / "gan_history.csv").read_text("utf-8")
    assert history.strip() == ",".join(synthesize.HISTORY_COLUMNS)
    scores = (synthesize.REPORT / "gan_scores.csv").read_text("utf-8")
    assert scores.strip() == ",".join(synthesize.SCORE_COLUMNS)
    examples = pd.read_parquet(synthesize.REPORT / "examples.parquet")
    assert set(examples["kind"]) == {"real"}
    assert quality()["gan"] is None
    base = tiny_dataset.samples.set_index("sample_id")
    parents = tiny_dataset.images[base.loc[table["parent_id"], "row"]]
    assert (base.loc[table["parent_id"], "label"].to_numpy() == table["label"].to_numpy()).all()
    assert (parents == delta.images).all() == (method == "random")


def test_none_writes_an_empty_delta_and_a_picture(workspace, tiny_dataset, capsys):
    write_inputs(tiny_dataset)
    configure(workspace, method="none")
    synthesize.main([])
    assert len(dataset.read_dataset(dataset.SYNTHETIC).samples) == 0
    assert {entry["decision"] for entry in quality()["classes"].values()} == {"off"}
    report.main(["synthesize"])
    assert np.asarray(Image.open("reports/pages/synthesize/samples.png")).size > 0
    assert "switched off" in capsys.readouterr().out


def test_without_fallback_a_class_gains_nothing(workspace, tiny_dataset, capsys):
    write_inputs(tiny_dataset)
    configure(workspace, fallback="none", min_real_per_class=50)
    synthesize.main([])
    assert len(dataset.read_dataset(dataset.SYNTHETIC).samples) == 0
    assert quality()["classes"]["c"]["decision"] == "fallback"
    assert "synthesize: c: nothing (10 real images" in capsys.readouterr().out


def test_a_class_may_have_a_target_of_its_own(workspace, tiny_dataset):
    write_inputs(tiny_dataset)
    own = {"a": {"to": 40, "max_factor": 1}, "c": {"to": "median", "max_factor": 0.5}}
    configure(workspace, method="smote", per_class=own)
    synthesize.main([])
    entries = quality()["classes"]
    assert {name: (entry["target"], entry["added"]) for name, entry in entries.items()} == {
        "a": (40, 10),
        "b": (30, 10),
        "c": (20, 5),
    }


def test_an_unknown_class_is_one_line_and_nothing_is_written(workspace, tiny_dataset, capsys):
    write_inputs(tiny_dataset)
    configure(workspace, method="smote", per_class={"z": {"to": 40, "max_factor": 1}})
    error = error_line(capsys)
    assert "synthesize.per_class names 'z'" in error
    assert "a, b, c" in error
    assert not dataset.SYNTHETIC.exists()
    assert not synthesize.REPORT.exists()


def test_a_size_that_no_gan_makes_is_one_line_and_nothing_is_written(workspace, tiny_dataset, capsys):
    odd = dataset.Dataset(tiny_dataset.images[:, :12, :12], tiny_dataset.samples, tiny_dataset.classes)
    write_inputs(odd)
    configure(workspace)
    error = error_line(capsys)
    assert "12×12" in error
    assert "smote" in error
    assert not dataset.SYNTHETIC.exists()
    assert not synthesize.REPORT.exists()


def write_embeddings(rows):
    with new_folder(dataset.NOISE) as folder:
        np.save(folder / "embeddings.npy", rows.astype(np.float32))


def test_neighbours_come_from_the_noise_detectors_embedding(workspace, tiny_dataset):
    # Rows of the table in another order than the images: what counts is the sample's id.
    order = np.random.default_rng(0).permutation(len(tiny_dataset.samples))
    shuffled = tiny_dataset.samples.iloc[order].reset_index(drop=True)
    base = dataset.Dataset(tiny_dataset.images, shuffled, tiny_dataset.classes)
    write_inputs(base)
    table = np.random.default_rng(1).normal(size=(len(order), 3))
    write_embeddings(table)
    configure(workspace, method="smote", neighbors_in="embedding")
    synthesize.main([])
    ledger = dataset.read_ledger()
    real = dataset.split_view(base, "train", ledger)
    section = SimpleNamespace(method="smote", fallback="random", neighbors_in="embedding")
    found = synthesize.read_beside(base, ledger, real, section).embeddings
    places = {name: row for row, name in enumerate(shuffled["sample_id"])}
    assert np.allclose(found, table[[places[name] for name in real.sample_ids]])
    first = dataset.read_dataset(dataset.SYNTHETIC).images.copy()
    configure(workspace, method="smote", neighbors_in="pixels")
    synthesize.main([])
    assert not np.array_equal(dataset.read_dataset(dataset.SYNTHETIC).images, first)


@pytest.mark.parametrize("rows", [None, 3])
def test_embeddings_that_are_not_there_or_of_another_run_are_one_line(workspace, tiny_dataset, capsys, rows):
    write_inputs(tiny_dataset)
    if rows is not None:
        write_embeddings(np.zeros((rows, 2)))
    configure(workspace, method="adasyn", neighbors_in="embedding")
    error = error_line(capsys)
    assert "embeddings.npy" in error
    assert "dvc repro" in error
    assert not synthesize.REPORT.exists()


def test_random_copies_need_no_embeddings(workspace, tiny_dataset):
    write_inputs(tiny_dataset)
    configure(workspace, method="gan", min_real_per_class=50, neighbors_in="embedding")
    synthesize.main([])
    assert quality()["classes"]["b"]["method"] == "random"


@pytest.mark.parametrize("method", ["smote", "random"])
def test_made_samples_have_their_parents_group_and_the_sources_weight(workspace, tiny_dataset, method):
    rare = tiny_dataset.samples["label"] == "c"
    tiny_dataset.samples.loc[rare, ["group", "weight"]] = ["e" * 16, 0.4]
    write_inputs(tiny_dataset, c=0.5)
    configure(workspace, method=method, to=30, max_factor=2)
    synthesize.main([])
    table = dataset.read_dataset(dataset.SYNTHETIC).samples
    assert set(table.loc[table["label"] == "c", "group"]) == {"e" * 16}
    others = table[table["label"] == "b"]
    assert others["group"].tolist() == others["parent_id"].tolist()
    assert table.groupby("label")["weight"].first().to_dict() == pytest.approx({"b": 0.3, "c": 0.3 * 0.2})
