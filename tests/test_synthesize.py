import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from ruamel.yaml import YAML

from stages import dataset, synthesize

FAST = {"steps": 2, "batch_size": 8, "latent_dim": 4, "width": 8}


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
    with dataset.new_folder(dataset.INGESTED) as folder:
        dataset.write_dataset(folder, base)
    with dataset.new_folder(dataset.CURATED) as folder:
        dataset.write_table(folder / "ledger.parquet", ledger)


def configure(workspace, gan=None, **changes):
    yaml, path = YAML(), workspace / "params.yaml"
    params = yaml.load(path.read_text("utf-8"))
    params["device"] = "cpu"
    params["synthesize"].update(changes)
    params["synthesize"]["gan"].update({**FAST, **(gan or {})})
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(params, file)


def contents(*folders):
    return {path: path.read_bytes() for folder in folders for path in sorted(folder.iterdir())}


def quality():
    return json.loads((synthesize.REPORT / "quality.json").read_text("utf-8"))


def test_a_refused_gan_falls_back_out_loud_and_repeats(workspace, tiny_dataset, capsys):
    write_inputs(tiny_dataset)
    configure(workspace, min_real_per_class=20)
    synthesize.main([])
    first = contents(dataset.SYNTHETIC, synthesize.REPORT)
    assert {path.name for path in first} == {
        "images.npy",
        "samples.parquet",
        "classes.json",
        "quality.json",
        "counts.csv",
        "samples.png",
        "gan_history.csv",
    }
    found = quality()
    assert list(found) == ["a", "b", "c"]
    assert found["a"]["decision"] == "not_needed"
    assert found["b"]["decision"] == "fallback"  # two steps make no image that looks real
    assert found["b"]["candidates"] == 40
    assert found["c"]["decision"] == "fallback"
    assert "10 real images; the GAN is not tried under 20" in found["c"]["reason"]
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
    assert history["step"].tolist() == [2]
    synthesize.main([])
    assert contents(dataset.SYNTHETIC, synthesize.REPORT) == first


def test_a_gate_that_lets_pass_leaves_the_gans_images(workspace, tiny_dataset, monkeypatch):
    from stages.synthesis.gate import Gate, Verdict

    def judge(self, candidates, label):
        yes = np.ones(len(candidates), bool)
        return Verdict(yes * 0.9, yes, ~yes, ~yes, np.zeros(len(candidates), np.int64))

    monkeypatch.setattr(Gate, "judge", judge)
    write_inputs(tiny_dataset, b=0.5)
    configure(workspace, min_real_per_class=20)
    synthesize.main([])
    table = dataset.read_dataset(dataset.SYNTHETIC).samples
    assert quality()["b"]["decision"] == "accepted"
    made = table[table["label"] == "b"]
    assert set(made["method"]) == {"gan"}
    assert set(made["weight"]) == {0.3}  # a generated image has no parent whose doubt it could inherit
    assert made["parent_id"].nunique() == 1
    assert made["sample_id"].is_unique
    counts = pd.read_csv(synthesize.REPORT / "counts.csv").set_index("class")
    assert counts.loc["b"].to_dict() == {"real": 20, "synthetic": 10, "method": "gan", "decision": "accepted"}


@pytest.mark.parametrize("method", ["smote", "random"])
def test_simple_methods_inherit_the_parents_weight_and_train_nothing(workspace, tiny_dataset, method):
    write_inputs(tiny_dataset, c=0.5)
    configure(workspace, method=method, target=30, max_factor=2)
    synthesize.main([])
    delta = dataset.read_dataset(dataset.SYNTHETIC)
    table = delta.samples
    assert table["label"].value_counts().to_dict() == {"c": 20, "b": 10}
    assert set(table["method"]) == {method}
    assert table.groupby("label")["weight"].first().to_dict() == {"b": 0.3, "c": 0.15}
    history = (synthesize.REPORT / "gan_history.csv").read_text("utf-8")
    assert history.strip() == ",".join(synthesize.HISTORY_COLUMNS)
    base = tiny_dataset.samples.set_index("sample_id")
    parents = tiny_dataset.images[base.loc[table["parent_id"], "row"]]
    assert (base.loc[table["parent_id"], "label"].to_numpy() == table["label"].to_numpy()).all()
    assert (parents == delta.images).all() == (method == "random")


def test_none_writes_an_empty_delta_and_a_picture(workspace, tiny_dataset, capsys):
    write_inputs(tiny_dataset)
    configure(workspace, method="none")
    synthesize.main([])
    assert len(dataset.read_dataset(dataset.SYNTHETIC).samples) == 0
    assert {entry["decision"] for entry in quality().values()} == {"off"}
    assert np.asarray(Image.open(synthesize.REPORT / "samples.png")).size > 0
    assert "switched off" in capsys.readouterr().out


def test_a_size_that_no_gan_makes_is_one_line_and_nothing_is_written(workspace, tiny_dataset, capsys):
    odd = dataset.Dataset(tiny_dataset.images[:, :12, :12], tiny_dataset.samples, tiny_dataset.classes)
    write_inputs(odd)
    configure(workspace)
    with pytest.raises(SystemExit) as status:
        synthesize.main([])
    assert status.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "12×12" in error
    assert "smote" in error
    assert not dataset.SYNTHETIC.exists()
    assert not synthesize.REPORT.exists()


@pytest.mark.parametrize("method", ["smote", "random"])
def test_made_samples_have_their_parents_group_and_the_sources_weight(workspace, tiny_dataset, method):
    rare = tiny_dataset.samples["label"] == "c"
    tiny_dataset.samples.loc[rare, ["group", "weight"]] = ["e" * 16, 0.4]
    write_inputs(tiny_dataset, c=0.5)
    configure(workspace, method=method, target=30, max_factor=2)
    synthesize.main([])
    table = dataset.read_dataset(dataset.SYNTHETIC).samples
    assert set(table.loc[table["label"] == "c", "group"]) == {"e" * 16}
    others = table[table["label"] == "b"]
    assert others["group"].tolist() == others["parent_id"].tolist()
    assert table.groupby("label")["weight"].first().to_dict() == pytest.approx({"b": 0.3, "c": 0.3 * 0.2})
