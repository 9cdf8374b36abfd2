import hashlib
import json
import shutil

import pandas as pd
import pytest
import torch

from stages import finetune
from stages.dataset.base import Dataset, write_dataset
from stages.dataset.files import new_folder, write_table
from stages.learning.calibration import Calibration
from stages.learning.models import build_model, members_of
from stages.learning.networks.layers import ModelSpec
from stages.learning.store import load_model, save_model
from stages.workflow.models import Registered

TINY = {"train.batch_size": 16, "finetune.head_epochs": 1, "finetune.epochs": 2}


@pytest.fixture
def prepared(tiny_dataset: Dataset, workspace) -> Dataset:
    """A workspace with the base, a ledger that keeps everything, and an untrained models/train."""
    with new_folder(workspace / "data/ingested") as folder:
        write_dataset(folder, tiny_dataset)
    samples = tiny_dataset.samples
    ledger = pd.DataFrame(
        {"sample_id": samples["sample_id"], "split": samples["split"], "given_label": samples["label"],
         "label": samples["label"], "action": "keep", "weight": 1.0, "score": 0.5, "reason": "",
         "decided_by": "policy"}
    )  # fmt: skip
    with new_folder(workspace / "data/curated") as folder:
        write_table(folder / "ledger.parquet", ledger)
    with new_folder(workspace / "models/train") as folder:
        save_model(
            folder, build_model(ModelSpec("small_cnn", list("abc"), (16, 16, 1), [0.3], [0.3]), seed=0)
        )
    return tiny_dataset


@pytest.fixture
def use_params(make_params, monkeypatch):
    def use(changes=None) -> None:
        params = make_params(TINY | (changes or {}))
        monkeypatch.setattr("stages.workflow.stage.load_params", lambda: params)

    return use


def test_it_starts_from_the_trained_model_and_counts_both_phases(prepared, workspace, use_params):
    use_params()
    finetune.main([])
    report = json.loads((workspace / "reports/finetune/summary.json").read_text())
    assert report["backbone"].startswith("models/train")
    assert report["images"] == 60
    assert report["steps"] == 3 * 4
    history = pd.read_csv(workspace / "reports/finetune/history.csv")
    assert history["epoch"].tolist() == [1, 2, 3]
    before, after = load_model(workspace / "models/train"), load_model(workspace / "models/finetune")
    assert not torch.equal(before.head.weight, after.head.weight)
    assert not torch.equal(next(before.backbone.parameters()), next(after.backbone.parameters()))


def test_it_is_validation_images_that_calibrate(prepared, workspace, use_params, monkeypatch):
    seen = []

    def spy(model, val, device):
        seen.append(set(val.sample_ids))
        return Calibration()

    monkeypatch.setattr(finetune, "calibrate", spy)
    use_params({"finetune.epochs": 0})
    finetune.main([])
    samples = prepared.samples
    assert seen == [set(samples.loc[samples["split"] == "val", "sample_id"])]


@pytest.mark.parametrize(
    ("loss", "kept"),
    [("balanced_softmax", "cross_entropy"), ("early_learning", "early_learning"),
     ("co_teaching", "cross_entropy"), ("forward_correction", "cross_entropy"),
     ("generalised_cross_entropy", "generalised_cross_entropy")],
)  # fmt: skip
def test_classes_are_drawn_equally_often_and_losses_for_wrong_labels_stay(make_params, loss, kept):
    params = make_params({"train.loss": loss, "train.class_weighting": "sqrt", "finetune.coral": 0.5})
    recipe = finetune._recipe(params, 7)
    assert (recipe.loss, recipe.sampling, recipe.class_weighting, recipe.deferred) == (
        kept, "balanced", "none", 0.0,
    )  # fmt: skip
    assert (recipe.epochs, recipe.steps_per_epoch, recipe.coral) == (params.finetune.epochs, 7, 0.5)
    assert recipe.learning_rate == params.finetune.learning_rate


def test_a_backbone_rate_of_zero_leaves_the_backbone_alone(prepared, workspace, use_params):
    use_params({"finetune.backbone_lr_factor": 0.0})
    finetune.main([])
    before, after = load_model(workspace / "models/train"), load_model(workspace / "models/finetune")
    state = after.backbone.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in before.backbone.state_dict().items())


def test_a_torchvision_file_is_a_backbone(prepared, workspace, use_params):
    import torchvision

    torch.save(torchvision.models.resnet18(weights=None).state_dict(), workspace / "zoo.pth")
    use_params({"finetune.backbone": "zoo.pth", "finetune.architecture": "resnet18", "finetune.epochs": 0})
    finetune.main([])
    assert load_model(workspace / "models/finetune").spec.architecture == "resnet18"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"finetune.backbone": "text.pth", "finetune.architecture": "resnet18"},
            "finetune.backbone: text.pth is not a weights file",
        ),
        ({"finetune.backbone": "gone.pth"}, "gone.pth is not there"),
        ({"finetune.backbone": "data"}, "data/model.json is not there"),
        (
            {"finetune.pretrained": "ResNet18"},
            "finetune.pretrained: 'ResNet18' is no known name; known: ResNet18_Weights",
        ),
    ],
)
def test_a_backbone_that_is_none_is_one_clear_line(prepared, workspace, use_params, capsys, changes, message):
    (workspace / "text.pth").write_text("no weights\n")
    use_params(changes)
    with pytest.raises(SystemExit) as error:
        finetune.main([])
    assert error.value.code == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert len(err) == 1
    assert message in err[0]
    assert not (workspace / "models/finetune").exists()


@pytest.mark.parametrize("mode", ["feature_extraction", "gradual", "layer_wise", "full"])
def test_the_summary_lists_the_phases_of_the_mode(prepared, workspace, use_params, mode):
    use_params({"finetune.mode": mode, "finetune.learning_rate": 0.01})
    finetune.main([])
    report = json.loads((workspace / "reports/finetune/summary.json").read_text())
    history = pd.read_csv(workspace / "reports/finetune/history.csv")
    assert report["mode"] == mode
    assert sum(phase["epochs"] for phase in report["phases"]) == len(history)
    assert report["steps"] == 4 * len(history)
    assert all(1 <= phase["kept_epochs"][0] <= phase["epochs"] for phase in report["phases"])
    assert report["phases"][0]["features_computed_once"] == (mode == "feature_extraction")
    before, after = load_model(workspace / "models/train"), load_model(workspace / "models/finetune")
    kept = torch.equal(next(before.backbone.parameters()), next(after.backbone.parameters()))
    assert kept == (mode == "feature_extraction")
    assert not (workspace / ".winnow/finetune").exists()


def test_coral_without_unlabelled_images_leaves_nothing_behind(prepared, workspace, use_params, capsys):
    use_params({"finetune.coral": 1.0})
    with pytest.raises(SystemExit) as error:
        finetune.main([])
    assert error.value.code == 2
    assert "samples of the split `unlabeled`" in capsys.readouterr().err
    assert not (workspace / "models/finetune").exists()


def test_unlabelled_images_serve_to_adapt(prepared, workspace, use_params):
    ledger = pd.read_parquet(workspace / "data/curated/ledger.parquet")
    ledger.loc[:3, ["split", "label", "given_label"]] = ["unlabeled", None, None]
    ledger.loc[0, "action"] = "drop"
    ledger.to_parquet(workspace / "data/curated/ledger.parquet", index=False)
    states = []
    for changes in ({}, {"finetune.coral": 10.0}, {"finetune.adapt_batch_norm": True}):
        use_params({"finetune.learning_rate": 0.01} | changes)
        finetune.main([])
        report = json.loads((workspace / "reports/finetune/summary.json").read_text())
        assert (report["images"], report["unlabeled_images"]) == (56, 3)
        states.append(load_model(workspace / "models/finetune").head.weight)
    assert not torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_each_member_of_an_ensemble_is_adapted(prepared, workspace, use_params):
    spec = ModelSpec("small_cnn", list("abc"), (16, 16, 1), [0.3], [0.3], members=2)
    with new_folder(workspace / "models/train") as folder:
        save_model(folder, build_model(spec, seed=0))
    use_params({"finetune.head_epochs": 0, "finetune.epochs": 1})
    finetune.main([])
    model = load_model(workspace / "models/finetune")
    assert model.spec.members == 2
    pairs = zip(members_of(load_model(workspace / "models/train")), members_of(model), strict=True)
    assert not any(torch.equal(before.head.weight, after.head.weight) for before, after in pairs)
    report = json.loads((workspace / "reports/finetune/summary.json").read_text())
    assert [len(phase["kept_epochs"]) for phase in report["phases"]] == [2]


def test_a_second_column_of_labels_has_a_head_of_its_own(prepared, workspace, use_params):
    """Which half of the day: known of most, and to be seen in the images."""
    samples = prepared.samples.assign(second_label=prepared.samples["label"].map(
        {"a": "morning", "b": "evening", "c": "evening"}
    ))  # fmt: skip
    samples.loc[:2, "second_label"] = None
    with new_folder(workspace / "data/ingested") as folder:
        write_dataset(folder, Dataset(prepared.images, samples, prepared.classes))
    use_params({"finetune.epochs": 8, "finetune.learning_rate": 0.01, "finetune.backbone_lr_factor": 1.0})
    finetune.main([])
    report = json.loads((workspace / "reports/finetune/summary.json").read_text())
    assert report["second_head"]["images"] == 15
    assert report["second_head"]["accuracy"] > 0.8
    model = load_model(workspace / "models/finetune")
    assert model.spec.second_classes == ["evening", "morning"]


def test_killed_between_two_phases_it_goes_on_and_writes_the_same(
    prepared, workspace, use_params, monkeypatch
):
    use_params()
    finetune.main([])
    names = ["models/finetune/model.safetensors", "reports/finetune/summary.json"]
    whole = [(workspace / name).read_bytes() for name in names]

    from stages.learning import adapting, loop

    epochs = []

    def fit(*given, on_epoch=None, **rest):
        def count(row):
            epochs.append(row["epoch"])
            if len(epochs) == 2:  # the first of the second phase
                raise InterruptedError

        return loop.fit(*given, on_epoch=count, **rest)

    monkeypatch.setattr(adapting, "fit", fit)
    with pytest.raises(InterruptedError):
        finetune.main([])
    assert (workspace / ".winnow/finetune").is_dir()
    finetune.main([])
    assert [(workspace / name).read_bytes() for name in names] == whole
    assert not (workspace / ".winnow/finetune").exists()


def test_of_a_registered_model_the_summary_says_which_version_it_was(
    prepared, workspace, use_params, monkeypatch
):
    asked = []

    def download_model(uri, into):
        asked.append(uri)
        shutil.copytree(workspace / "models/train", into)
        return Registered("winnow", "3", into)

    monkeypatch.setattr(finetune, "download_model", download_model)
    use_params({"finetune.pretrained": "models:/winnow@champion", "finetune.epochs": 0})
    finetune.main([])
    report = json.loads((workspace / "reports/finetune/summary.json").read_text())
    digest = hashlib.sha256((workspace / "models/train/model.safetensors").read_bytes()).hexdigest()
    assert asked == ["models:/winnow@champion"]
    assert report["registered"] == {"name": "winnow", "version": "3", "sha256": digest}
    assert report["backbone"] == "models:/winnow/3 with its head"
