"""The schema of params.yaml: each mistake in one line with key, value and what is allowed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from stages.errors import WinnowError
from stages.learning.names import ClassWeighting, Loss
from stages.noise.labels import RULES
from stages.workflow.params import Params, load_params, parse_params
from stages.workflow.schema import _TAKEN_BY, LossConstants

ROOT = Path(__file__).resolve().parents[2]


def test_the_shipped_file_is_valid() -> None:
    params = load_params(ROOT / "params.yaml")
    assert params.ingest.source == "data/raw/digits"
    assert params.train.learning_rate == 0.005


def test_every_rule_of_the_table_is_a_choice_and_in_the_docs(make_params: Callable[..., Params]) -> None:
    docs = (ROOT / "docs/noise.md").read_text("utf-8")
    for rule in RULES:
        assert make_params({"detect_noise.rule": rule}).detect_noise.rule == rule
        assert f"`{rule}`" in docs


def test_the_schema_is_light_to_import() -> None:
    """`check` and every command read it before anything else."""
    heavy = ["torch", "torchvision", "cleanlab", "sklearn", "scipy", "pandas", "mlflow", "dvc", "prefect"]
    code = f"import sys, stages.workflow.params; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_key_must_be_given(params_dict: dict[str, Any]) -> None:
    """No default hides in the schema, where DVC would not see it."""
    for section, content in params_dict.items():
        for key in content if isinstance(content, dict) else []:
            raw = {**params_dict, section: {name: value for name, value in content.items() if name != key}}
            with pytest.raises(WinnowError, match=f"{section}.{key}: missing"):
                parse_params(raw)
        with pytest.raises(WinnowError, match=f"{section}: missing"):
            parse_params({name: value for name, value in params_dict.items() if name != section})


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("ingest.image_size", "16", ["ingest.image_size = '16'", "integer"]),
        ("ingest.image_size", 12, ["ingest.image_size = 12", "multiple of 8"]),
        ("ingest.val_share", 1.0, ["ingest.val_share = 1.0", "less than 1"]),
        ("ingest.val_share", float("nan"), ["ingest.val_share = nan", "finite"]),
        ("ingest.source", "", ["ingest.source = ''", "at least 1 character"]),
        ("simulate.enabled", "yes", ["simulate.enabled = 'yes'", "boolean"]),
        ("simulate.imbalance", 0.5, ["simulate.imbalance = 0.5", "greater than or equal to 1"]),
        ("simulate.max_per_class", 0, ["simulate.max_per_class = 0", "greater than or equal to 1"]),
        ("detect_noise.models", [], ["detect_noise.models = []", "at least 1"]),
        ("detect_noise.models", ["resnet18"] * 2, ["detect_noise: models names an architecture twice"]),
        ("detect_noise.rule", "margins", ["detect_noise.rule = 'margins'", "'auto', 'margin', "]),
        ("detect_noise.image_checks", ["dak"], ["detect_noise.image_checks.0 = 'dak'", "'dark', 'light'"]),
        ("curate.outlier", "drop", ["curate.outlier = 'drop'", "valid dictionary"]),
        ("curate.outlier.action", "relabel", ["curate.outlier.action = 'relabel'", "'drop', 'reweight'"]),
        ("curate.label_error.otherwise", "relabel", ["curate.label_error.otherwise = 'relabel'"]),
        ("curate.label_error.confidence", 80, ["curate.label_error.confidence = 80", "or equal to 1"]),
        ("curate.label_error.action", "reweight", ["curate.label_error: with action 'reweight', otherwise"]),
        ("curate.max_lost_per_class", 1.5, ["curate.max_lost_per_class = 1.5"]),
        ("augment.to", "most", ["augment.to = 'most'", "'majority' or 'median'", "integer"]),
        ("augment.preset", "digit", ["augment.preset = 'digit'", "'digits', 'photos'"]),
        ("augment.preset", None, ["augment: preset and policy are both null: name a preset"]),
        ("augment.per_class", {7: {"to": 9, "max_factor": 1.0}}, ["augment.per_class.7: a class's name is"]),
        ("augment.per_class", {"7": {"to": 9}}, ["augment.per_class.7.max_factor: missing"]),
        ("synthesize.fallback", "gan", ["synthesize.fallback = 'gan'", "'smote_tomek' or 'none'"]),
        ("synthesize.gan.width", 12, ["synthesize.gan.width = 12", "multiple of 8"]),
        ("train.compile", "auto", ["train.compile = 'auto'", "'off' or 'on'"]),
        ("train.precision", "fp16", ["train.precision = 'fp16'", "'auto', 'fp32' or 'bf16'"]),
        ("ingest.format", "csv", ["ingest.format = 'csv': should be 'auto', ", "'arrays' or 'folders'"]),
        ("seed", -1, ["seed = -1", "greater than or equal to 0"]),
        ("seed", True, ["seed = True", "integer"]),
        ("train", 3, ["train = 3"]),
    ],
)
def test_wrong_values_are_named(
    make_params: Callable[..., Params], key: str, value: object, said: list[str]
) -> None:
    with pytest.raises(WinnowError) as caught:
        make_params({key: value})
    message = str(caught.value)
    assert "\n" not in message
    for part in ["params.yaml", *said]:
        assert part in message


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("trian", "trian: unknown key; did you mean 'train'?"),
        ("train.epoch", "train.epoch: unknown key; did you mean 'epochs'?"),
        (
            "ingest.zzz",
            "ingest.zzz: unknown key; allowed here: color, columns, format, image_size, leaked",
        ),
        ("curate.label_errors", "curate.label_errors: unknown key; did you mean 'label_error'?"),
        ("curate.dark.actions", "curate.dark.actions: unknown key; did you mean 'action'?"),
        ("synthesize.gan.step", "synthesize.gan.step: unknown key; did you mean 'steps'?"),
    ],
)
def test_unknown_keys_get_a_suggestion(make_params: Callable[..., Params], key: str, said: str) -> None:
    with pytest.raises(WinnowError) as caught:
        make_params({key: 1})
    assert said in str(caught.value)


def test_an_ablation_needs_one_key(make_params: Callable[..., Params]) -> None:
    for action in ("keep", "drop"):
        assert make_params({"curate.label_error.action": action}).curate.label_error.action == action


@pytest.mark.parametrize("name", ["7", "cat"])
def test_an_unknown_key_of_a_class(make_params: Callable[..., Params], name: str) -> None:
    with pytest.raises(WinnowError, match=rf"per_class\.{name}\.too: unknown key; did you mean 'to'"):
        make_params({"synthesize.per_class": {name: {"to": 9, "max_factor": 1.0, "too": 3}}})


def test_an_unknown_key_in_a_transform(make_params: Callable[..., Params]) -> None:
    with pytest.raises(WinnowError, match=r"augment\.policy\.0\.arg: unknown key; did you mean 'args'"):
        make_params({"augment.policy": [{"name": "Affine", "args": {}, "arg": {}}]})


def test_what_does_not_go_together_is_named(make_params: Callable[..., Params]) -> None:
    with pytest.raises(WinnowError, match=r"ingest: val_share \+ test_share must be less than 1"):
        make_params({"ingest.val_share": 0.5, "ingest.test_share": 0.5})
    with pytest.raises(WinnowError, match=r"finetune: head_epochs \+ epochs must be at least 1"):
        make_params({"finetune.head_epochs": 0, "finetune.epochs": 0})
    for changes in ({"finetune.mode": "feature_extraction"}, {"finetune.epochs": 0}):
        with pytest.raises(WinnowError, match=r"finetune: coral moves the features of .* set coral to 0"):
            make_params({"finetune.coral": 1.0, **changes})
    with pytest.raises(WinnowError, match=r"train: devices = 33 share each batch, and batch_size = 32"):
        make_params({"train.devices": 33})
    with pytest.raises(WinnowError, match=r"train: alternate_flips says how .* set flip to true"):
        make_params({"train.alternate_flips": True})
    make_params({"train.alternate_flips": True, "train.flip": True, "augment.preset": "photos"})
    for key in ("train.shift", "train.cutout", "detect_noise.shift"):
        with pytest.raises(WinnowError, match=rf"{key} = 16 leaves nothing of images of ingest.image_size"):
            make_params({key: 16})
        make_params({key: 15})


@pytest.mark.parametrize(
    ("constant", "taken_by"),
    [
        ("gce_q", {"train.loss": "generalised_cross_entropy"}),
        ("sce_alpha", {"train.loss": "symmetric_cross_entropy"}),
        ("sce_beta", {"train.loss": "symmetric_cross_entropy"}),
        ("elr_strength", {"train.loss": "early_learning"}),
        ("elr_memory", {"train.loss": "early_learning"}),
        ("forget_rate", {"train.loss": "co_teaching"}),
        ("focal_gamma", {"train.loss": "focal"}),
        ("ldam_margin", {"train.loss": "ldam"}),
        ("ldam_scale", {"train.loss": "ldam"}),
        ("effective_beta", {"train.class_weighting": "effective"}),
    ],
)
def test_constants_of_another_loss(
    make_params: Callable[..., Params], constant: str, taken_by: dict[str, str]
) -> None:
    ((key, name),) = taken_by.items()
    options = {"train.loss_options": {constant: 0.5}}
    assert getattr(make_params(options | taken_by).train.loss_options, constant) == 0.5
    make_params({"train.loss_options": {constant: None}})
    said = rf"loss_options\.{constant} is for {key.removeprefix('train.')} = '{name}', not '"
    with pytest.raises(WinnowError, match=said):
        make_params(options)


def test_every_constant_of_a_loss_has_one_that_takes_it() -> None:
    assert set(_TAKEN_BY) == set(LossConstants.model_fields)
    assert set(_TAKEN_BY.values()) <= {*get_args(Loss), *get_args(ClassWeighting)}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"train.class_weighting": "balanced", "train.deferred": 0.8},
            "train: loss = 'balanced_softmax' evens out what class weights leave",
        ),
        (
            {"train.loss": "ldam", "train.class_weighting": "sqrt", "train.sampling": "balanced"},
            "train: sampling = 'balanced' and class_weighting = 'sqrt' even the classes out twice",
        ),
        (
            {"finetune.mode": "layer_wise", "finetune.backbone_lr_factor": 0.0},
            "finetune: mode = 'layer_wise' trains the backbone, and backbone_lr_factor = 0 freezes it",
        ),
        (
            {"finetune.coral": 1.0, "finetune.backbone_lr_factor": 0.0},
            "finetune: coral moves features, and backbone_lr_factor = 0 freezes the backbone",
        ),
    ],
)
def test_classes_and_backbones_are_not_pulled_both_ways(
    make_params: Callable[..., Params], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(WinnowError) as caught:
        make_params(changes)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"train.class_weighting": "effective", "train.sampling": "balanced"},
        {"train.loss": "ldam", "train.class_weighting": "effective", "train.deferred": 0.8},
        {"finetune.backbone_lr_factor": 0.0},
    ],
)
def test_what_looks_like_it_but_goes_together(
    make_params: Callable[..., Params], changes: dict[str, Any]
) -> None:
    assert make_params(changes)


def test_all_mistakes_are_said_at_once(make_params: Callable[..., Params]) -> None:
    with pytest.raises(WinnowError) as caught:
        make_params({"seed": "a", "train.epochs": 0})
    assert "seed = 'a'" in str(caught.value)
    assert "train.epochs = 0" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"seed: [0\n", "not valid YAML"),
        (b"seed: \xff\n", "not valid YAML"),
        (b"- 1\n", "must hold a mapping of sections, not list"),
        (b"", "must hold a mapping of sections, not NoneType"),
    ],
)
def test_files_that_are_no_params(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(WinnowError) as caught:
        load_params(path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(WinnowError, match="run from the root of the repository"):
        load_params(tmp_path / "params.yaml")


def test_numbers_are_read_as_dvc_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    text = (ROOT / "params.yaml").read_text("utf-8").replace("learning_rate: 0.005", "learning_rate: 5e-3")
    path.write_text(text, "utf-8")
    assert load_params(path).train.learning_rate == 0.005


def test_a_gan_for_images_it_cannot_make_is_refused(make_params):
    with pytest.raises(WinnowError, match=r"'gan' makes images of up to 64 pixels.*ingest\.image_size = 128"):
        make_params({"ingest.image_size": 128})
    assert make_params({"ingest.image_size": 128, "synthesize.method": "smote"}).ingest.image_size == 128
