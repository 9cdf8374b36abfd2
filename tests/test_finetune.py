import json

import pandas as pd
import pytest
import torch

from stages import finetune
from stages.dataset import Dataset, new_folder, write_dataset, write_table
from stages.learning.models import ModelSpec, build_model
from stages.learning.store import load_model, save_model

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
        monkeypatch.setattr("stages.runtime.load_params", lambda: params)

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
            "text.pth is not a weights file",
        ),
        ({"finetune.backbone": "gone.pth"}, "gone.pth is not there"),
        ({"finetune.backbone": "data"}, "data/model.json is not there"),
        ({"finetune.pretrained": "ResNet18"}, "no known name; known: ResNet18_Weights.IMAGENET1K_V1"),
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
