from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stages import export
from stages.errors import WinnowError
from stages.learning.models import build_model
from stages.learning.networks.catalogue import OWN_NETWORKS
from stages.learning.networks.layers import ModelSpec, Preprocessing
from stages.learning.prediction import predict
from stages.learning.store import save_model
from stages.serving.onnx import TOLERANCE, export_onnx

onnxruntime = pytest.importorskip("onnxruntime")

SPEC = ModelSpec(
    "small_cnn",
    ["a", "ö", "c"],
    (16, 16, 1),
    [0.4],
    [0.3],
    temperature=1.7,
    preprocessing=Preprocessing("pad", "grey"),
)


def check(spec: ModelSpec, path: Path) -> None:
    model = build_model(spec, seed=1)
    assert export_onnx(model, path) <= TOLERANCE
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (1, 4):
        images = np.random.default_rng(count).integers(0, 256, (count, *spec.image_shape)).astype(np.uint8)
        (found,) = session.run(["probabilities"], {"images": images})
        np.testing.assert_allclose(found, predict(model, images, "cpu")[0], atol=TOLERANCE)


def test_the_file_says_the_same_twice_knows_its_classes_and_holds_no_path(tmp_path: Path):
    check(SPEC, tmp_path / "one.onnx")
    content = (tmp_path / "one.onnx").read_bytes()
    export_onnx(build_model(SPEC, seed=1), tmp_path / "two.onnx")
    assert (tmp_path / "two.onnx").read_bytes() == content
    for trace in (b"/stages/", b"site-packages", str(Path.cwd()).encode()):
        assert trace not in content
    metadata = onnxruntime.InferenceSession(content).get_modelmeta().custom_metadata_map
    assert metadata == {
        "classes": '["a", "ö", "c"]',
        "image_shape": "[16, 16, 1]",
        "resize": '"pad"',
        "color": '"grey"',
    }


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [*OWN_NETWORKS, "resnet18", "mobilenet_v3_small"])
def test_every_network_is_the_same_as_onnx(architecture: str, tmp_path: Path):
    check(
        replace(SPEC, architecture=architecture, image_shape=(32, 32, 3), mean=[0.4] * 3, std=[0.3] * 3),
        tmp_path / "model.onnx",
    )


@pytest.mark.slow
def test_an_ensemble_is_the_same_as_onnx(tmp_path: Path):
    check(replace(SPEC, members=3), tmp_path / "model.onnx")


def test_a_model_that_comes_out_different_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from onnx import ModelProto

    from stages.serving import onnx

    monkeypatch.setattr(onnx, "_converted", lambda model: ModelProto())
    monkeypatch.setattr(onnx, "_run", lambda content, images: np.zeros((len(images), 3), np.float32))
    with pytest.raises(WinnowError, match="small_cnn as ONNX differs by"):
        export_onnx(build_model(SPEC, seed=1), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_without_the_packages_it_says_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from stages.serving import onnx

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(onnx, "find_spec", lambda name: None if name == "onnxscript" else name)
    (tmp_path / "models").mkdir()
    save_model(tmp_path / "models", build_model(SPEC, seed=1))
    with pytest.raises(SystemExit) as ended:
        export.main(["models"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("export: onnxscript not installed")
    assert "winnow[onnx]" in said
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_names_of_files_come_from_the_model():
    assert export.default_name("models/finetune") == "finetune"
    assert export.default_name("models:/winnow@champion") == "winnow"
    assert export.default_name("models:/winnow/3") == "winnow"
