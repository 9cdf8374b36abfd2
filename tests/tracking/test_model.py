import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_repo import environment

from stages.dataset import Dataset, split_view
from stages.learning.models import ModelSpec, build_model
from stages.learning.prediction import predict
from stages.learning.store import save_model
from stages.params import Params
from stages.tracking import stage_run
from stages.tracking.model import as_tracking_uri, requirements
from stages.tracking.records import open_store, spool_folder

# Run outside the repository, where neither `stages` nor an editable install is to be found.
LOAD = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
sys.path = [entry for entry in sys.path if "editable" not in entry.lower() and entry != ""]
import mlflow, numpy as np
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
import stages.learning.models
print(stages.learning.models.__file__)
table = model.predict(np.load(sys.argv[3]))
assert list(table.columns) == ["label", "p_a", "p_b", "p_c"], table.columns
assert set(table["label"]) <= {"a", "b", "c"}
np.save(sys.argv[4], table.drop(columns="label").to_numpy())
"""


@pytest.fixture
def logged(tracked: Path, tiny_dataset: Dataset, make_params: Callable[..., Params]) -> str:
    """The URI of a small model, logged by a stage."""
    spec = ModelSpec("small_cnn", tiny_dataset.classes, tiny_dataset.image_shape, [0.4], [0.3])
    folder = tracked / "models" / "train"
    folder.mkdir(parents=True)
    save_model(folder, build_model(spec, seed=1))
    with stage_run("train", make_params()) as run:
        run.log_model(Path("models/train"), tiny_dataset.images[:5])
    store = open_store()
    (found,) = store.client.search_runs([store.experiment_id])
    assert found.info.status == "FINISHED"
    (output,) = found.outputs.model_outputs
    return f"models:/{output.model_id}"


def test_model_predicts_in_another_process_outside_the_repository(
    logged: str, tracked: Path, tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    images = split_view(tiny_dataset, "test").images
    np.save(elsewhere / "images.npy", images)
    env = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    uri = f"sqlite:///{tracked / 'mlflow.db'}"
    arguments = [uri, logged, str(elsewhere / "images.npy"), str(elsewhere / "out.npy")]
    result = subprocess.run(
        [sys.executable, "-c", LOAD, *arguments],
        cwd=elsewhere,
        env=env,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert str(tracked / "mlartifacts") in result.stdout  # its own code, not the repository's
    expected, _ = predict(build_model(_spec(tiny_dataset), seed=1), images, "cpu")
    np.testing.assert_allclose(np.load(elsewhere / "out.npy"), expected, atol=1e-5)


def _spec(dataset: Dataset) -> ModelSpec:
    return ModelSpec("small_cnn", dataset.classes, dataset.image_shape, [0.4], [0.3])


def test_model_has_signature_example_and_requirements_and_nothing_pickled(logged: str, tracked: Path):
    import mlflow

    with as_tracking_uri(f"sqlite:///{tracked / 'mlflow.db'}"):
        folder = Path(mlflow.artifacts.download_artifacts(logged))
        info = mlflow.models.get_model_info(logged)
        model = mlflow.pyfunc.load_model(logged)
    (tensor,) = info.signature.inputs.inputs
    assert tensor.type == np.uint8
    assert tensor.shape == (-1, 16, 16, 1)
    assert info.signature.outputs.input_names() == ["label", "p_a", "p_b", "p_c"]
    example = json.loads((folder / "input_example.json").read_text())
    assert np.asarray(example).shape == (2, 16, 16, 1)
    lines = (folder / "requirements.txt").read_text().split()
    assert {line.partition("==")[0] for line in lines} == {
        "mlflow",
        "numpy",
        "pandas",
        "safetensors",
        "torch",
    }
    assert not [path for path in folder.rglob("*") if path.suffix in (".pkl", ".pickle", ".pt", ".pth")]
    assert [path.name for path in folder.rglob("*.safetensors")] == ["model.safetensors"]
    one = model.unwrap_python_model().predict(None, np.zeros((16, 16, 1), np.uint8))
    assert len(one) == 1
    assert one.drop(columns="label").to_numpy().sum() == pytest.approx(1, abs=1e-5)
    for wrong in (np.zeros((1, 8, 8, 1), np.uint8), np.zeros((1, 16, 16, 1), np.float32)):
        with pytest.raises(Exception, match=r"16.*16|uint8"):
            model.predict(wrong)
        with pytest.raises(Exception, match="the model takes uint8 images N×16×16×1"):
            model.unwrap_python_model().predict(None, wrong)


def test_requirements_are_pinned_without_a_local_version():
    small, large = requirements("small_cnn"), requirements("resnet18")
    assert all("==" in line and "+" not in line for line in large)
    assert [line for line in large if line not in small] == [large[-1]]
    assert large[-1].startswith("torchvision==")


def test_a_model_waits_in_the_spool_and_is_sent(
    tracked: Path, tiny_dataset: Dataset, make_params: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
):
    from stages.tracking.__main__ import send_spool

    folder = tracked / "models" / "train"
    folder.mkdir(parents=True)
    save_model(folder, build_model(_spec(tiny_dataset), seed=1))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with stage_run("train", make_params()) as run:
        run.log_model(Path("models/train"), tiny_dataset.images[:5])
    for path in folder.iterdir():
        path.unlink()  # DVC removes outputs before it runs a stage again
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert send_spool() == (1, 0)
    store = open_store()
    (found,) = store.client.search_runs([store.experiment_id])
    assert len(found.outputs.model_outputs) == 1


def test_what_is_no_model_is_a_warning_and_waits_for_nothing(
    tracked: Path,
    tiny_dataset: Dataset,
    make_params: Callable[..., Params],
    capsys: pytest.CaptureFixture[str],
):
    (tracked / "models").mkdir()
    folder = tracked / "models" / "train"
    folder.mkdir()
    save_model(folder, build_model(_spec(tiny_dataset), seed=1))
    with stage_run("train", make_params()) as run:
        run.log_model(Path("models"), tiny_dataset.images)
        run.log_model(folder, tiny_dataset.images[:, :8])
        (folder / "model.safetensors").unlink()
        run.log_model(folder, tiny_dataset.images)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3
    assert "does not hold a Winnow model" in said[0]
    assert "the example, uint8 (105, 8, 16, 1), is not what" in said[1]
    assert "model.safetensors is not there" in said[2]
    assert not spool_folder().exists()
