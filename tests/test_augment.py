import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages import augment, dataset
from stages.errors import WinnowError

POLICY = [("Affine", {"rotate": [-10, 10], "p": 1.0})]


def keep_all(base):
    table = base.samples
    return pd.DataFrame(
        {
            "sample_id": table["sample_id"],
            "split": table["split"],
            "given_label": table["label"],
            "label": table["label"],
            "action": "keep",
            "weight": 1.0,
            "score": 0.5,
            "reason": "",
            "decided_by": "policy",
        }
    )


def run(base, ledger, policy=POLICY, target="majority", max_factor=5.0, seed=0):
    return augment.augment(base, ledger, policy, target=target, max_factor=max_factor, weight=0.5, seed=seed)


def test_rare_classes_are_brought_up_and_rows_follow_the_contract(tiny_dataset):
    delta = run(tiny_dataset, keep_all(tiny_dataset))
    table = delta.samples
    assert list(table.columns) == dataset.DELTA_COLUMNS
    assert table["label"].value_counts().to_dict() == {"c": 20, "b": 10}
    assert set(table["split"]) == {"train"}
    assert set(table["method"]) == {"augment"}
    assert set(table["weight"]) == {0.5}
    assert table["sample_id"].is_unique
    parents = tiny_dataset.samples.set_index("sample_id").loc[table["parent_id"]]
    assert (parents["label"].to_numpy() == table["label"].to_numpy()).all()
    assert (parents["split"] == "train").all()
    assert (parents["source"].to_numpy() == table["source"].to_numpy()).all()
    assert table.dtypes.equals(dataset.empty_delta(tiny_dataset).samples.dtypes)


def test_the_ledger_decides_what_is_counted_and_copied(tiny_dataset):
    ledger = keep_all(tiny_dataset)
    train = ledger[ledger["split"] == "train"]
    dropped = train[train["label"] == "c"].index[:4]
    relabelled = train[train["label"] == "a"].index[:6]
    ledger.loc[dropped, "action"] = "drop"
    ledger.loc[relabelled, ["label", "action"]] = ["c", "relabel"]
    doubtful = train[train["label"] == "b"].index[:1]
    ledger.loc[doubtful, ["weight", "action"]] = [0.5, "reweight"]
    table = run(tiny_dataset, ledger, target=40).samples
    # a: 24 real, b: 20, c: 10 - 4 + 6 = 12
    assert table["label"].value_counts().to_dict() == {"a": 16, "b": 20, "c": 28}
    assert not set(table["parent_id"]) & set(ledger.loc[dropped, "sample_id"])
    moved = table[table["parent_id"].isin(ledger.loc[relabelled, "sample_id"])]
    assert set(moved["label"]) == {"c"}
    of_doubtful = table[table["parent_id"].isin(ledger.loc[doubtful, "sample_id"])]
    assert set(of_doubtful["weight"]) == {0.25}


@pytest.mark.parametrize("change", [{"policy": []}, {"max_factor": 0.0}, {"target": 1}])
def test_nothing_to_do_gives_an_empty_delta(tiny_dataset, change):
    delta = run(tiny_dataset, keep_all(tiny_dataset), **change)
    assert len(delta.samples) == 0
    assert delta.images.shape == (0, 16, 16, 1)


def test_a_policy_that_changes_the_shape_is_refused(tiny_dataset):
    with pytest.raises(WinnowError, match="RandomCrop turns uint8 images"):
        run(tiny_dataset, keep_all(tiny_dataset), [("RandomCrop", {"height": 8, "width": 8})])


def write_inputs(base):
    with dataset.new_folder(dataset.INGESTED) as folder:
        dataset.write_dataset(folder, base)
    with dataset.new_folder(dataset.CURATED) as folder:
        dataset.write_table(folder / "ledger.parquet", keep_all(base))


def contents(*folders):
    return {path: path.read_bytes() for folder in folders for path in sorted(folder.iterdir())}


def test_the_stage_writes_delta_and_report_and_repeats_them(workspace, tiny_dataset, capsys):
    write_inputs(tiny_dataset)
    augment.main([])
    first = contents(dataset.AUGMENTED, augment.REPORT)
    assert {path.name for path in first} == {
        "images.npy",
        "samples.parquet",
        "classes.json",
        "counts.csv",
        "summary.json",
        "preview.png",
    }
    counts = pd.read_csv(augment.REPORT / "counts.csv").set_index("class")
    assert counts["real"].to_dict() == {"a": 30, "b": 20, "c": 10}
    assert counts["augmented"].to_dict() == {"a": 0, "b": 10, "c": 20}
    assert "30 copies beside 60 real images" in capsys.readouterr().out
    view = dataset.training_view(tiny_dataset, deltas=[dataset.read_dataset(dataset.AUGMENTED)])
    assert view.class_counts.tolist() == [30, 30, 30]
    augment.main([])
    assert contents(dataset.AUGMENTED, augment.REPORT) == first


def test_an_empty_policy_still_writes_everything(workspace, tiny_dataset):
    write_inputs(tiny_dataset)
    text = (workspace / "params.yaml").read_text("utf-8")
    start, end = text.index("  policy:"), text.index("  target:")
    (workspace / "params.yaml").write_text(text[:start] + "  policy: []\n" + text[end:], "utf-8")
    augment.main([])
    assert len(dataset.read_dataset(dataset.AUGMENTED).samples) == 0
    assert np.asarray(Image.open(augment.REPORT / "preview.png")).size > 0


def test_a_mistake_in_the_policy_leaves_the_last_outputs(workspace, tiny_dataset, capsys):
    write_inputs(tiny_dataset)
    augment.main([])
    before = contents(dataset.AUGMENTED, augment.REPORT)
    text = (workspace / "params.yaml").read_text("utf-8")
    (workspace / "params.yaml").write_text(text.replace("name: Affine", "name: Afine"), "utf-8")
    with pytest.raises(SystemExit) as status:
        augment.main([])
    assert status.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("augment: augment.policy.0.name = 'Afine'")
    assert "\n" not in error
    assert contents(dataset.AUGMENTED, augment.REPORT) == before


def test_what_a_reviewer_labelled_has_copies_too(partly_labelled):
    ledger = keep_all(partly_labelled)
    ledger.loc[1, ["split", "label", "action"]] = ["train", "c", "relabel"]
    partly_labelled.samples.loc[1, "group"] = "e" * 16
    table = run(partly_labelled, ledger, max_factor=1.0).samples
    sample_id = partly_labelled.samples.loc[1, "sample_id"]
    own = table[table["parent_id"] == sample_id]
    assert len(own)
    assert set(own["label"]) == {"c"}
    assert set(own["group"]) == {"e" * 16}
    assert not table["parent_id"].isin(partly_labelled.samples["sample_id"][[0, 2, 3]]).any()


def test_copies_inherit_the_group_and_the_weight_of_the_source(tiny_dataset):
    rare = tiny_dataset.samples["label"] == "c"
    tiny_dataset.samples.loc[rare, "weight"] = 0.4
    ledger = keep_all(tiny_dataset)
    ledger.loc[rare, ["weight", "action"]] = [0.5, "reweight"]
    table = run(tiny_dataset, ledger).samples
    parents = tiny_dataset.samples.set_index("sample_id").loc[table["parent_id"]]
    assert table["group"].tolist() == parents["group"].tolist()
    assert table.loc[table["label"] == "c", "weight"].to_numpy() == pytest.approx(0.5 * 0.5 * 0.4)
    assert set(table.loc[table["label"] == "b", "weight"]) == {0.5}
