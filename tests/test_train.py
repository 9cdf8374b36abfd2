import json

import numpy as np
import pandas as pd
import pytest

from stages import train
from stages.dataset.base import Dataset, empty_delta, read_ledger, split_view, training_view, write_dataset
from stages.dataset.files import new_folder, write_table
from stages.dataset.ids import derived_id
from stages.errors import WinnowError
from stages.learning.calibration import Calibration
from stages.learning.loop import Fit
from stages.learning.models import members_of
from stages.learning.splitting import Share
from stages.learning.store import load_model

TINY = {
    "train.epochs": 2,
    "train.batch_size": 16,
    "finetune.head_epochs": 1,
    "finetune.epochs": 2,
}


def keep_all(dataset: Dataset) -> pd.DataFrame:
    """A ledger that keeps everything but the first sample, and halves the second."""
    samples = dataset.samples
    ledger = pd.DataFrame(
        {"sample_id": samples["sample_id"], "split": samples["split"], "given_label": samples["label"],
         "label": samples["label"], "action": "keep", "weight": 1.0, "score": 0.5, "reason": "",
         "decided_by": "policy"}
    )  # fmt: skip
    ledger.loc[0, ["action", "weight"]] = ["drop", 0.0]
    ledger.loc[1, ["action", "weight"]] = ["reweight", 0.5]
    return ledger


def delta_of(dataset: Dataset, method: str, count: int) -> Dataset:
    rows = dataset.samples[dataset.samples["label"] == "c"].head(count)
    ids = rows["sample_id"].tolist()
    samples = rows.assign(
        row=range(count), split="train", parent_id=ids, method=method, weight=0.3,
        sample_id=[derived_id(parent, method, 0) for parent in ids],
    )  # fmt: skip
    return Dataset(dataset.images[rows["row"].to_numpy()], samples, dataset.classes)


@pytest.fixture
def prepared(tiny_dataset: Dataset, workspace, make_params, monkeypatch) -> Dataset:
    """A workspace as the stages before train leave it: 6 augmented samples, 4 synthetic ones."""
    deltas = {
        "augmented": delta_of(tiny_dataset, "augment", 6),
        "synthetic": delta_of(tiny_dataset, "gan", 4),
    }
    for name, dataset in {"ingested": tiny_dataset, **deltas}.items():
        with new_folder(workspace / "data" / name) as folder:
            write_dataset(folder, dataset)
    with new_folder(workspace / "data/curated") as folder:
        write_table(folder / "ledger.parquet", keep_all(tiny_dataset))
    params = make_params(TINY)
    monkeypatch.setattr("stages.workflow.stage.load_params", lambda: params)
    return tiny_dataset


def summary(workspace, name: str) -> dict:
    return json.loads((workspace / "reports" / name / "summary.json").read_text())


def spy_on_weights(monkeypatch) -> dict[str, dict[str, float]]:
    """By the name of what was trained, the weights that reached training, by sample id."""
    seen = {}
    original = train.fit

    def spy(model, data, *args, **kwargs):
        seen[kwargs["description"]] = dict(zip(data.sample_ids, data.weights.tolist(), strict=True))
        return original(model, data, *args, **kwargs)

    monkeypatch.setattr(train, "fit", spy)
    return seen


def test_train_sees_curated_augmented_and_synthetic_samples(prepared, workspace):
    train.main([])
    assert summary(workspace, "train")["images"] == 59 + 6 + 4
    assert summary(workspace, "train")["images_by_class"] == {"a": 29, "b": 20, "c": 20}
    assert load_model(workspace / "models/train").spec.classes == ["a", "b", "c"]
    history = pd.read_csv(workspace / "reports/train/history.csv")
    assert history["epoch"].tolist() == [1, 2]
    assert {"train_loss", "val_loss", "val_accuracy"} <= set(history.columns)


def test_deltas_can_be_left_out_by_a_parameter(prepared, workspace, make_params, monkeypatch):
    params = make_params(TINY | {"train.use_augmented": False, "train.use_synthetic": False})
    monkeypatch.setattr("stages.workflow.stage.load_params", lambda: params)
    train.main([])
    assert summary(workspace, "train")["images"] == 59


def test_made_samples_weigh_at_most_so_many_times_the_real_ones(
    prepared, workspace, make_params, monkeypatch, capsys
):
    seen = spy_on_weights(monkeypatch)
    params = make_params(TINY | {"train.max_made": 0.15, "train.class_weighting": "none"})
    monkeypatch.setattr("stages.workflow.stage.load_params", lambda: params)
    train.main([])
    # class c: 10 real of weight 1, ten made of .3
    assert summary(workspace, "train")["made_scaled"] == {"c": 0.5}
    assert "train: made samples of c scaled by 0.5: " in capsys.readouterr().out
    weights = list(seen["train"].values())
    assert weights[-10:] == pytest.approx([0.15] * 10)
    assert weights[2:-10] == [1.0] * 57


def test_under_the_cap_nothing_is_scaled_and_the_baseline_knows_no_cap(prepared, workspace, capsys):
    train.main([])
    train.main(["--view", "raw"])
    assert summary(workspace, "train")["made_scaled"] == {}
    assert "made_scaled" not in summary(workspace, "baseline")
    assert "scaled by" not in capsys.readouterr().out


def test_the_chosen_loss_is_that_of_train_and_not_of_the_baseline(
    prepared, workspace, make_params, monkeypatch
):
    def models() -> dict[str, bytes]:
        train.main([])
        train.main(["--view", "raw"])
        names = ("train", "baseline")
        return {name: (workspace / "models" / name / "model.safetensors").read_bytes() for name in names}

    def models_with(loss: str) -> dict[str, bytes]:
        params = make_params(TINY | {"train.loss": loss})
        monkeypatch.setattr("stages.workflow.stage.load_params", lambda: params)
        return models()

    plain, balanced = models_with("cross_entropy"), models_with("balanced_softmax")
    assert balanced["train"] != plain["train"]
    assert balanced["baseline"] == plain["baseline"]


def test_baseline_sees_the_untreated_split_with_the_steps_of_train_and_finetune(prepared, workspace):
    train.main([])
    train.main(["--view", "raw"])
    baseline = summary(workspace, "baseline")
    assert baseline["images"] == 60
    # an epoch is four steps of 16 for the 60 ingested images, whatever the treatments added
    assert summary(workspace, "train")["steps"] == 2 * 4
    assert baseline["steps"] == (2 + 1 + 2) * 4


def test_the_baseline_needs_nothing_that_a_treatment_wrote(prepared, workspace):
    import shutil

    for name in ("curated", "augmented", "synthetic"):
        shutil.rmtree(workspace / "data" / name)
    train.main(["--view", "raw"])
    assert (workspace / "models/baseline/model.safetensors").is_file()


def test_two_runs_write_the_same_bytes(prepared, workspace):
    written = []
    for _ in range(2):
        train.main([])
        files = [*(workspace / "models/train").iterdir(), *(workspace / "reports/train").iterdir()]
        written.append({file.name: file.read_bytes() for file in files})
    assert written[0] == written[1]


def test_a_missing_input_is_one_line_with_what_to_do(prepared, workspace, capsys):
    (workspace / "data/curated/ledger.parquet").unlink()
    with pytest.raises(SystemExit) as error:
        train.main([])
    assert error.value.code == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert len(err) == 1
    assert "ledger.parquet is not there: run `dvc repro`" in err[0]
    assert not (workspace / "models").exists()


def test_weights_of_ledger_and_delta_reach_the_view(prepared, workspace):
    view = training_view(prepared, read_ledger(), [delta_of(prepared, "gan", 4), empty_delta(prepared)])
    assert len(view) == 59 + 4
    assert view.weights[0] == 0.5
    assert view.weights[-4:].tolist() == pytest.approx([0.3] * 4)


def test_the_sources_weights_reach_both_models_and_labelled_samples_the_treated_one(
    partly_labelled, workspace, make_params, monkeypatch
):
    samples = partly_labelled.samples
    samples.loc[4:5, "weight"] = 0.25
    ledger = keep_all(partly_labelled)
    ledger.loc[0:1, "action"] = "keep"
    ledger.loc[1, ["split", "label", "action", "weight"]] = ["train", "b", "relabel", 1.0]
    ledger.loc[5, "weight"] = 0.5
    with new_folder(workspace / "data/ingested") as folder:
        write_dataset(folder, partly_labelled)
    with new_folder(workspace / "data/curated") as folder:
        write_table(folder / "ledger.parquet", ledger)
    for name in ("augmented", "synthetic"):
        with new_folder(workspace / "data" / name) as folder:
            write_dataset(folder, empty_delta(partly_labelled))
    params = make_params(TINY | {"train.class_weighting": "none"})
    monkeypatch.setattr("stages.workflow.stage.load_params", lambda: params)
    seen = spy_on_weights(monkeypatch)
    train.main([])
    train.main(["--view", "raw"])
    ids = samples["sample_id"]
    assert (len(seen["train"]), len(seen["baseline"])) == (57, 56)
    assert [seen["train"][ids[at]] for at in (1, 4, 5, 6)] == [1.0, 0.25, 0.125, 1.0]
    assert [seen["baseline"][ids[at]] for at in (4, 5, 6)] == [0.25, 0.25, 1.0]
    # both count their steps by the ingested training split
    assert summary(workspace, "train")["steps"] == 2 * 4
    assert summary(workspace, "baseline")["steps"] == (2 + 1 + 2) * 4


def use(make_params, monkeypatch, **changes) -> None:
    params = make_params(TINY | {f"train.{name}": value for name, value in changes.items()})
    monkeypatch.setattr("stages.workflow.stage.load_params", lambda: params)


def spy_on_fits(monkeypatch) -> list[dict]:
    """The training view, the seed and the rest of each call of the training loop."""
    calls = []
    original = train.fit

    def spy(model, data, *args, **kwargs):
        calls.append({"data": data, **kwargs})
        return original(model, data, *args, **kwargs)

    monkeypatch.setattr(train, "fit", spy)
    return calls


def test_a_model_is_calibrated_on_validation_and_says_so(prepared, workspace):
    train.main([])
    told = summary(workspace, "train")
    assert load_model(workspace / "models/train").spec.temperature == told["temperature"] != 1.0
    assert 0 <= told["wrong_validation_labels"] <= 0.6
    assert not (workspace / ".winnow/train/train").exists()


@pytest.mark.parametrize("view", ["treated", "raw"])
def test_it_is_validation_images_that_calibrate(prepared, workspace, monkeypatch, view):
    seen = []

    def spy(model, val, device):
        seen.append(set(val.sample_ids))
        return Calibration()

    monkeypatch.setattr(train, "calibrate", spy)
    train.main(["--view", view])
    samples = prepared.samples
    assert seen == [set(samples.loc[samples["split"] == "val", "sample_id"])]


def test_each_member_is_scored_on_its_own_fold(tiny_dataset, monkeypatch):
    data = split_view(tiny_dataset, "train")
    rows = np.arange(len(data))
    shares = [Share(data, rows[at::2], rows[1 - at :: 2]) for at in (0, 1)]

    def predict(model, images, device):
        part = next(share.outside for share in shares if np.array_equal(share.outside.images, images))
        right = np.eye(3, dtype=np.float32)[part.labels]
        return (right if np.array_equal(part.images, shares[model].outside.images) else 1 - right), None

    monkeypatch.setattr(train, "predict", predict)
    folds = train.cross_validation([Fit(0), Fit(1)], shares, "cpu")
    assert folds[["fold", "images", "accuracy"]].to_numpy().tolist() == [[1, 30, 1.0], [2, 30, 1.0]]


def test_an_ensemble_over_seeds_is_one_model_of_different_networks(
    prepared, workspace, make_params, monkeypatch
):
    train.main([])
    single = load_model(workspace / "models/train").state_dict()
    use(make_params, monkeypatch, ensemble={"members": 2, "over": "seeds"})
    calls = spy_on_fits(monkeypatch)
    train.main([])
    model = load_model(workspace / "models/train")
    first, second = members_of(model)
    assert model.spec.members == 2
    assert not np.array_equal(first.head.weight.detach(), second.head.weight.detach())
    # the first member is the model that there is without an ensemble
    assert all(np.array_equal(tensor, single[name]) for name, tensor in first.state_dict().items())
    assert [len(call["data"]) for call in calls] == [69, 69]
    assert [call["description"] for call in calls] == ["train 1/2", "train 2/2"]
    assert len({call["keep_in"] for call in calls}) == len({call["seed"] for call in calls}) == 2
    told = summary(workspace, "train")
    assert len(told["kept_epoch"]) == 2
    assert "cross_validation" not in told
    assert len(pd.read_csv(workspace / "reports/train/history.csv")) == 2


def test_an_ensemble_over_folds_is_cross_validated_on_real_images(
    prepared, workspace, make_params, monkeypatch, capsys
):
    use(make_params, monkeypatch, ensemble={"members": 3, "over": "folds"})
    calls = spy_on_fits(monkeypatch)
    train.main([])
    assert len(members_of(load_model(workspace / "models/train"))) == 3
    parents = {
        row["sample_id"]: row["parent_id"]
        for method, count in (("augment", 6), ("gan", 4))
        for row in delta_of(prepared, method, count).samples.to_dict("records")
    }
    everyone = set(calls[0]["data"].sample_ids) | set(calls[1]["data"].sample_ids)
    for call in calls:
        seen = set(call["data"].sample_ids)
        assert all((made in seen) == (parent in seen) for made, parent in parents.items())
        assert seen < everyone
    folds = pd.read_csv(workspace / "reports/train/cross_validation.csv")
    assert folds["fold"].tolist() == [1, 2, 3]
    assert folds["images"].sum() == 59
    told = summary(workspace, "train")["cross_validation"]
    assert told["accuracy"]["value"] == pytest.approx(folds["accuracy"].mean(), abs=1e-5)
    assert told["macro_f1"]["low"] <= told["macro_f1"]["value"] <= told["macro_f1"]["high"]
    assert "over the folds that were left out" in capsys.readouterr().out


def test_too_many_folds_are_refused_by_the_name_of_the_key(
    prepared, workspace, make_params, monkeypatch, capsys
):
    use(make_params, monkeypatch, ensemble={"members": 40, "over": "folds"})
    with pytest.raises(SystemExit):
        train.main([])
    assert "train.ensemble.members = 40, but the commonest class has 29" in capsys.readouterr().err
    assert not (workspace / "models").exists()


@pytest.mark.parametrize(
    "treatments",
    [{"train.class_weighting": "effective", "train.deferred": 0.8}, {"train.sampling": "balanced"}],
)
def test_the_baseline_keeps_regularisers_and_leaves_treatments_out(make_params, treatments):
    choices = make_params(
        {"train.loss": "ldam", "train.mixup": 0.2, "train.average_weights": 0.99} | treatments
    ).train
    plain = train._plain(choices)
    assert (plain.loss, plain.class_weighting, plain.deferred) == ("cross_entropy", "none", 0.0)
    assert (plain.sampling, plain.mixup, plain.average_weights) == ("shuffle", 0.2, 0.99)


def write_transition(workspace, text: str):
    path = workspace / "reports/detect_noise/transition.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"true_label,given_label,probability\n{text}")
    return path


def test_forward_correction_takes_the_transition_that_the_noise_stage_estimated(
    prepared, workspace, make_params, monkeypatch
):
    write_transition(workspace, "a,a,0.9\na,b,0.1\nb,b,0.75\nb,c,0.25\nc,c,1\n")
    use(make_params, monkeypatch, loss="forward_correction")
    calls = spy_on_fits(monkeypatch)
    train.main([])
    train.main(["--view", "raw"])
    assert calls[0]["transition"].tolist() == [[0.9, 0.1, 0], [0, 0.75, 0.25], [0, 0, 1]]
    assert calls[1]["transition"] is None


def test_a_transition_is_read_back_whatever_classes_are_called(workspace):
    path = write_transition(workspace, "1,NA,0.333333\n1,1,0.333333\nNA,NA,1\n")
    matrix = train.read_transition(path, ["1", "NA", "x"])
    np.testing.assert_allclose(matrix, [[0.5, 0.5, 0], [0, 1, 0], [0, 0, 1]])


def test_without_a_usable_transition_it_says_what_to_do(
    prepared, workspace, make_params, monkeypatch, capsys
):
    use(make_params, monkeypatch, loss="forward_correction")
    with pytest.raises(SystemExit) as error:
        train.main([])
    assert error.value.code == 2
    assert "transition.csv is not there" in capsys.readouterr().err
    with pytest.raises(WinnowError, match=r"is empty.*choose another train\.loss"):
        train.read_transition(write_transition(workspace, ""), ["a", "b"])
    with pytest.raises(WinnowError, match="knows other classes"):
        train.read_transition(write_transition(workspace, "a,z,1\n"), ["a", "b"])
