import json

import numpy as np
import pandas as pd
import pytest
from ruamel.yaml import YAML

from stages import augment
from stages.dataset import base as dataset
from stages.dataset.delta import ClassTarget, quotas
from stages.dataset.files import new_folder, write_table
from stages.errors import WinnowError
from stages.learning import judge

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


def run(base, ledger, policy=POLICY, to="majority", max_factor=5.0, seed=0):
    counts = dataset.split_view(base, "train", ledger).class_counts
    quota = quotas(counts, ClassTarget(to, max_factor))
    return augment.augment(base, ledger, policy, quota, weight=0.5, seed=seed)


def set_params(workspace, **changes):
    """Change keys of params.yaml, `augment__to` for augment.to."""
    yaml, path = YAML(), workspace / "params.yaml"
    content = yaml.load(path)
    for key, value in changes.items():
        section, name = key.split("__")
        content[section][name] = value
    yaml.dump(content, path)


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
    table = run(tiny_dataset, ledger, to=40).samples
    # a: 24 real, b: 20, c: 10 - 4 + 6 = 12
    assert table["label"].value_counts().to_dict() == {"a": 16, "b": 20, "c": 28}
    assert not set(table["parent_id"]) & set(ledger.loc[dropped, "sample_id"])
    moved = table[table["parent_id"].isin(ledger.loc[relabelled, "sample_id"])]
    assert set(moved["label"]) == {"c"}
    of_doubtful = table[table["parent_id"].isin(ledger.loc[doubtful, "sample_id"])]
    assert set(of_doubtful["weight"]) == {0.25}


@pytest.mark.parametrize("change", [{"policy": []}, {"max_factor": 0.0}, {"to": 1}])
def test_nothing_to_do_gives_an_empty_delta(tiny_dataset, change):
    delta = run(tiny_dataset, keep_all(tiny_dataset), **change)
    assert len(delta.samples) == 0
    assert delta.images.shape == (0, 16, 16, 1)


def test_a_policy_that_changes_the_shape_is_refused(tiny_dataset):
    with pytest.raises(WinnowError, match="RandomCrop turns uint8 images"):
        run(tiny_dataset, keep_all(tiny_dataset), [("RandomCrop", {"height": 8, "width": 8})])


def write_inputs(base):
    with new_folder(dataset.INGESTED) as folder:
        dataset.write_dataset(folder, base)
    with new_folder(dataset.CURATED) as folder:
        write_table(folder / "ledger.parquet", keep_all(base))


def contents(*folders):
    return {path: path.read_bytes() for folder in folders for path in sorted(folder.iterdir())}


@pytest.fixture
def quick(monkeypatch):
    """A judge of a few steps: the bars are told apart at once."""
    monkeypatch.setattr(judge, "_STEPS", (40, 40))
    monkeypatch.setattr(judge, "_EPOCHS", 2)


def test_the_stage_writes_delta_and_report_and_repeats_them(workspace, tiny_dataset, capsys, quick):
    write_inputs(tiny_dataset)
    augment.main([])
    first = contents(dataset.AUGMENTED, augment.REPORT)
    assert {path.name for path in first} == {
        "images.npy",
        "samples.parquet",
        "classes.json",
        "counts.csv",
        "summary.json",
        "survival.csv",
        "transformed.parquet",
        "transformed.npy",
    }
    counts = pd.read_csv(augment.REPORT / "counts.csv").set_index("class")
    assert counts["real"].to_dict() == {"a": 30, "b": 20, "c": 10}
    assert counts["target"].to_dict() == {"a": 30, "b": 30, "c": 30}
    assert counts["augmented"].to_dict() == {"a": 0, "b": 10, "c": 20}
    survival = pd.read_csv(augment.REPORT / "survival.csv")
    assert survival["transform"].tolist() == ["Affine", "RandomBrightnessContrast", "policy"]
    assert set(survival["decision"]) == {"kept"}
    summary = json.loads((augment.REPORT / "summary.json").read_text("utf-8"))
    assert (summary["preset"], summary["augmented"], summary["left_out"]) == ("digits", 30, [])
    assert summary["survival"] == survival["survival"].iloc[-1]
    assert "30 copies beside 60 real images" in capsys.readouterr().out
    view = dataset.training_view(tiny_dataset, deltas=[dataset.read_dataset(dataset.AUGMENTED)])
    assert view.class_counts.tolist() == [30, 30, 30]
    augment.main([])
    assert contents(dataset.AUGMENTED, augment.REPORT) == first


def flipped(workspace, destroying):
    """A policy under which the bar of class a, at the left, moves to where no class has it."""
    policy = [{"name": "HorizontalFlip", "args": {}}, {"name": "RandomGamma", "args": {}}]
    set_params(
        workspace,
        augment__preset=None,
        augment__policy=policy,
        augment__destroying=destroying,
        augment__to=40,
    )


def test_a_transform_that_destroys_classes_is_left_out_aloud(workspace, tiny_dataset, capsys, quick):
    write_inputs(tiny_dataset)
    flipped(workspace, "leave_out")
    augment.main([])
    said = next(line for line in capsys.readouterr().err.splitlines() if "WARNING" in line)
    assert said.startswith("augment: WARNING: augment.policy.0: after HorizontalFlip")
    assert said.endswith("; left out: HorizontalFlip")
    survival = pd.read_csv(augment.REPORT / "survival.csv").set_index("transform")
    assert survival["decision"].to_dict() == {
        "HorizontalFlip": "left_out",
        "RandomGamma": "kept",
        "policy": "kept",
    }
    summary = json.loads((augment.REPORT / "summary.json").read_text("utf-8"))
    assert (summary["transforms"], summary["left_out"]) == (["RandomGamma"], ["HorizontalFlip"])
    delta = dataset.read_dataset(dataset.AUGMENTED)
    # the bar of every copy is where it was: bright columns 2 to 5 for a, 6 to 9 for b, 10 to 13 for c
    brightest = delta.images[..., 0].mean(axis=1).argmax(axis=1)
    assert ((brightest - 2) // 4 == dataset.label_indices(delta.samples["label"], delta.classes)).all()


def test_it_can_stop_instead_and_leaves_the_last_outputs(workspace, tiny_dataset, capsys, quick):
    write_inputs(tiny_dataset)
    set_params(workspace, augment__min_recognised=0.0)
    augment.main([])
    before = contents(dataset.AUGMENTED, augment.REPORT)
    set_params(workspace, augment__min_recognised=0.8)
    flipped(workspace, "stop")
    with pytest.raises(SystemExit) as status:
        augment.main([])
    assert status.value.code == 2
    assert "augment: augment.policy.0: after HorizontalFlip" in capsys.readouterr().err
    assert contents(dataset.AUGMENTED, augment.REPORT) == before


def test_where_no_transform_is_left_it_says_what_is_not_made(workspace, tiny_dataset, capsys, quick):
    write_inputs(tiny_dataset)
    flipped(workspace, "leave_out")
    set_params(workspace, augment__policy=[{"name": "HorizontalFlip", "args": {}}])
    augment.main([])
    said = capsys.readouterr()
    assert "WARNING: no transform is left; 60 copies that were asked for are not made" in said.err
    assert "augment: 0 copies" in said.out


def one_group(samples):
    samples["group"] = "f" * 16


def one_class(samples):
    samples.drop(samples.index[samples["label"] != "a"], inplace=True)
    samples.reset_index(drop=True, inplace=True)


@pytest.mark.parametrize(
    ("change", "why"), [(one_group, "of 1 real training groups"), (one_class, "of a single class")]
)
def test_where_no_judge_can_be_trained_it_warns_or_stops(workspace, tiny_dataset, capsys, change, why):
    samples, images = tiny_dataset.samples, tiny_dataset.images
    change(samples)
    images = images[samples["row"]]
    samples["row"] = range(len(samples))
    write_inputs(dataset.Dataset(images, samples, sorted(samples["label"].unique())))
    set_params(workspace, augment__to=40)
    augment.main([])
    assert f"WARNING: whether labels survive could not be checked: {why}" in capsys.readouterr().err
    before = contents(dataset.AUGMENTED, augment.REPORT)
    assert len(dataset.read_dataset(dataset.AUGMENTED).samples) > 0
    set_params(workspace, augment__destroying="stop")
    with pytest.raises(SystemExit) as status:
        augment.main([])
    assert status.value.code == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert why in error
    assert "set augment.min_recognised to 0" in error
    assert contents(dataset.AUGMENTED, augment.REPORT) == before


@pytest.mark.parametrize("error", ["device = 'cuda', but this machine has none", "the loss is not a number"])
def test_what_keeps_the_judge_from_training_is_not_passed_over(
    workspace, tiny_dataset, capsys, monkeypatch, error
):
    def fail(*_, **__):
        raise WinnowError(error)

    monkeypatch.setattr(judge, "train_judge", fail)
    write_inputs(tiny_dataset)
    with pytest.raises(SystemExit) as status:
        augment.main([])
    assert status.value.code == 2
    assert f"augment: {error}" in capsys.readouterr().err
    assert not dataset.AUGMENTED.exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"augment__policy": []},
        {"augment__max_factor": 0.0},
        {"augment__to": 1},
        {"augment__min_recognised": 0.0},
    ],
)
def test_where_nothing_is_to_be_checked_no_judge_is_trained(workspace, tiny_dataset, monkeypatch, changes):
    def refuse(*_, **__):
        raise AssertionError("a judge was trained")

    monkeypatch.setattr(judge, "train_judge", refuse)
    write_inputs(tiny_dataset)
    set_params(workspace, **changes)
    augment.main([])
    delta = dataset.read_dataset(dataset.AUGMENTED)
    assert len(delta.samples) == (30 if "augment__min_recognised" in changes else 0)
    assert len(pd.read_csv(augment.REPORT / "survival.csv")) == 0
    examples = np.load(augment.REPORT / "transformed.npy")
    assert len(examples) == len(pd.read_parquet(augment.REPORT / "transformed.parquet"))


def test_classes_may_have_targets_of_their_own(workspace, tiny_dataset, quick):
    write_inputs(tiny_dataset)
    set_params(
        workspace, augment__per_class={"c": {"to": 15, "max_factor": 2.0}, "a": {"to": 33, "max_factor": 1}}
    )
    augment.main([])
    counts = pd.read_csv(augment.REPORT / "counts.csv").set_index("class")
    assert counts["target"].to_dict() == {"a": 33, "b": 30, "c": 15}
    assert counts["augmented"].to_dict() == {"a": 3, "b": 10, "c": 5}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"augment__policy": [{"name": "Afine", "args": {}}]},
            "augment: augment.policy.0.name = 'Afine'",
        ),
        (
            {"augment__policy": [{"name": "VerticalFlip", "args": {}}]},
            "augment: augment.policy.0: VerticalFlip turns images upside down, which augment.preset = ",
        ),
        (
            {"augment__per_class": {"z": {"to": 5, "max_factor": 1.0}}},
            "augment: augment.per_class names 'z', and there is no such class; there are a, b, c",
        ),
    ],
)
def test_a_mistake_leaves_the_last_outputs(workspace, tiny_dataset, capsys, changes, said):
    write_inputs(tiny_dataset)
    set_params(workspace, augment__min_recognised=0.0)
    augment.main([])
    before = contents(dataset.AUGMENTED, augment.REPORT)
    capsys.readouterr()
    set_params(workspace, **changes)
    with pytest.raises(SystemExit) as status:
        augment.main([])
    assert status.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(said)
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
