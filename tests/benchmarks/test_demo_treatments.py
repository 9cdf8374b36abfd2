import json
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from benchmarks import demo_treatments as module
from stages.workflow.params import parse_params

ROOT = Path(__file__).resolve().parents[2]
PARAMS = YAML(typ="safe").load((ROOT / "params.yaml").read_text("utf-8"))


@pytest.mark.parametrize("name", module.VARIANTS)
def test_every_variant_is_valid(name: str):
    before = json.dumps(PARAMS)
    changed = module.changed(PARAMS, module.VARIANTS[name])
    parse_params(changed)
    assert json.dumps(PARAMS) == before


def test_a_key_that_is_not_there_is_refused():
    with pytest.raises(KeyError, match=r"train\.los"):
        module.changed(PARAMS, {"train.los": "x"})


def scores(value: float):
    return {
        model: {"balanced_accuracy": value, "worst_class_recall": value / 2}
        for model in ("train", "finetune")
    }


def test_differences_are_paired_by_seed():
    results = {
        seed: {"as delivered": scores(base), "without synthetic": scores(base - 0.1)}
        for seed, base in enumerate((0.9, 0.7, 0.8))
    }
    lines = module.report(results).splitlines()
    assert lines[2] == "| as delivered | 0.800 | 0.400 | 0.800 | 0.400 |"
    assert lines[3].startswith("| without synthetic | 0.700 (-0.100, -0.100 to -0.100) | 0.350 (-0.050")
    assert len(lines) == 4


def test_what_ran_before_is_not_run_again(tmp_path: Path, monkeypatch):
    ran = []

    def repro(workspace: Path):
        params = YAML(typ="safe").load((workspace / "params.yaml").read_text("utf-8"))
        ran.append((params["seed"], params["simulate"]["seed"], params["train"]["use_synthetic"]))
        out = workspace / "reports/evaluate"
        out.mkdir(parents=True, exist_ok=True)
        values = {"balanced_accuracy": {"value": 0.5}, "worst_class_recall": {"value": 0.1}}
        content = {"models": {"train": values, "finetune": values}}
        (out / "metrics.json").write_text(json.dumps(content), "utf-8")

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(module, "_PLACE", tmp_path)
    monkeypatch.setattr(module, "copy_working_tree", lambda path: path.mkdir())
    monkeypatch.setattr(module, "repro", repro)
    for _ in range(2):
        module.main(["--seeds", "3", "--variants", "without synthetic"])
        assert ran == [(3, 3, True), (3, 3, False)]
