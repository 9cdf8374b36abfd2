from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from modulefinder import ModuleFinder
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tiny_repo import environment

from stages.dataset.base import Dataset, split_view
from stages.errors import WinnowError
from stages.learning.models import build_model
from stages.learning.networks.layers import ModelSpec, Preprocessing
from stages.learning.prediction import predict
from stages.learning.store import load_model, save_model
from stages.workflow.models import (
    _REQUIRED,
    as_tracking_uri,
    code,
    download_model,
    log_model,
    model_folder,
    requirements,
)
from stages.workflow.params import Params
from stages.workflow.records import Model, spool_folder
from stages.workflow.runs import stage_run
from stages.workflow.store import Store, open_store

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
from pathlib import Path
images = np.load(sys.argv[3])
table = model.predict(images)
Path("one.png").write_bytes(Path(sys.argv[5]).read_bytes())
for given in (Path("one.png"), Path("one.png").read_bytes(), [Path("one.png")]):
    assert model.predict(given).equals(model.predict(images[:1])), given
assert not {"dvc", "prefect", "cleanlab", "stages.workflow.params"} & set(sys.modules)
assert list(table.columns) == ["label", "p_a", "p_b", "p_c"], table.columns
assert set(table["label"]) <= {"a", "b", "c"}
np.save(sys.argv[4], table.drop(columns="label").to_numpy())
"""

SPEC = ModelSpec("small_cnn", ["a", "b", "c"], (16, 16, 1), [0.3], [0.3])


@pytest.fixture
def logged(tracked: Path, tiny_dataset: Dataset, make_params: Callable[..., Params]) -> str:
    """The URI of a small model, logged by a stage."""
    spec = _spec(tiny_dataset)
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
    Image.fromarray(images[0, ..., 0]).save(elsewhere / "given.png")
    uri = f"sqlite:///{tracked / 'mlflow.db'}"
    arguments = [uri, logged, *(str(elsewhere / name) for name in ("images.npy", "out.npy", "given.png"))]
    result = subprocess.run(
        [sys.executable, "-c", LOAD, *arguments],
        cwd=elsewhere,
        env=env,
        check=False,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr
    assert str(tracked / "mlartifacts") in result.stdout  # its own code, not the repository's
    expected, _ = predict(build_model(_spec(tiny_dataset), seed=1), images, "cpu")
    np.testing.assert_allclose(np.load(elsewhere / "out.npy"), expected, atol=1e-5)


def _spec(dataset: Dataset) -> ModelSpec:
    how = Preprocessing("crop", "grey")
    return ModelSpec("small_cnn", dataset.classes, dataset.image_shape, [0.4], [0.3], preprocessing=how)


def test_model_has_signature_example_and_requirements_and_nothing_pickled(logged: str, tracked: Path):
    import mlflow

    with as_tracking_uri(f"sqlite:///{tracked / 'mlflow.db'}"):
        folder = Path(mlflow.artifacts.download_artifacts(logged))
        info = mlflow.models.get_model_info(logged)
        model = mlflow.pyfunc.load_model(logged)
    assert info.signature.inputs is None  # paths, bytes and arrays alike
    assert [param.name for param in info.signature.params] == ["test_time"]
    assert info.signature.outputs.input_names() == ["label", "p_a", "p_b", "p_c"]
    example = json.loads((folder / "input_example.json").read_text())
    assert example["columns"] == ["image"]
    assert len(example["data"]) == 2
    with as_tracking_uri(f"sqlite:///{tracked / 'mlflow.db'}"):
        assert len(model.predict(pd.DataFrame(example["data"], columns=["image"]))) == 2
    lines = (folder / "requirements.txt").read_text().split()
    assert {line.partition("==")[0] for line in lines} == set(_REQUIRED)
    assert not [path for path in folder.rglob("*") if path.suffix in (".pkl", ".pickle", ".pt", ".pth")]
    assert [path.name for path in folder.rglob("*.safetensors")] == ["model.safetensors"]
    one = model.unwrap_python_model().predict(None, np.zeros((16, 16, 1), np.uint8))
    assert len(one) == 1
    assert one.drop(columns="label").to_numpy().sum() == pytest.approx(1, abs=1e-5)
    assert len(model.predict(np.zeros((2, 40, 30, 3), np.uint8))) == 2
    assert model.predict([]).empty
    with pytest.raises(Exception, match="the model takes uint8 images N×16×16×1, not float32 1×16×16×1"):
        model.predict(np.zeros((1, 16, 16, 1), np.float32))
    with pytest.raises(Exception, match="row 1: not_an_image"):
        model.predict([np.zeros((16, 16, 1), np.uint8), b"bad"])


def test_text_is_a_path_only_for_who_loads_the_model_so(logged: str, tracked: Path):
    import mlflow

    Image.fromarray(np.zeros((20, 20), np.uint8)).save(tracked / "one.png")
    path = str(tracked / "one.png")
    with as_tracking_uri(f"sqlite:///{tracked / 'mlflow.db'}"):
        careful = mlflow.pyfunc.load_model(logged)
        trusting = mlflow.pyfunc.load_model(logged, model_config={"read_files": True})
    assert trusting.predict([path]).equals(careful.predict([tracked / "one.png"]))
    for params in (None, {"read_files": True}):
        with pytest.raises(Exception, match="text that is not base64"):
            careful.predict([path], params=params)


def test_a_model_that_does_not_know_how_to_resize_is_logged_with_arrays_as_its_example(
    tracked: Path, tiny_dataset: Dataset
):
    import mlflow

    store = open_store()
    (tracked / "old").mkdir()
    save_model(tracked / "old", build_model(replace(_spec(tiny_dataset), preprocessing=None), seed=1))
    np.save(tracked / "example.npy", tiny_dataset.images[:1])
    run = store.client.create_run(store.experiment_id).info.run_id
    logged = log_model(store, run, Model(str(tracked / "old"), str(tracked / "example.npy"), "old"))
    with as_tracking_uri(store.uri):
        model = mlflow.pyfunc.load_model(f"models:/{logged}")
    assert len(model.predict(tiny_dataset.images[:3])) == 3
    with pytest.raises(Exception, match="row 0: unsupported_pixels: nothing is known of resizing"):
        model.predict(np.zeros((1, 17, 16, 1), np.uint8))


def test_the_code_that_travels_needs_what_is_required_and_nothing_of_the_pipeline():
    finder = ModuleFinder(["."])
    finder.run_script("stages/serving/pyfunc.py")
    others = {name.partition(".")[0] for name in finder.badmodules} - set(sys.stdlib_module_names)
    names = {"PIL": "pillow"}
    optional = {"torchvision", "timm"}  # of architectures that need them
    assert {names.get(name, name) for name in others} - optional <= {*_REQUIRED, "stages"}
    travelling = code()
    assert {"learning/prediction.py", "images/decode.py", "errors.py"} <= set(travelling)
    pipeline = (
        "workflow",
        "curation",
        "noise",
        "synthesis",
        "reporting",
        "review",
        "versions",
        "dataset/base",
    )
    assert not [name for name in travelling if name.startswith(pipeline)]


def test_a_folder_is_itself_and_an_address_needs_a_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with model_folder("models/train") as folder:
        assert folder == Path("models/train")
    with pytest.raises(WinnowError, match="there is no"), model_folder("models:/winnow@champion"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_requirements_are_pinned_without_a_local_version():
    small, large = requirements("small_cnn"), requirements("resnet18")
    assert all("==" in line and "+" not in line for line in large)
    assert [line for line in large if line not in small] == [large[-1]]
    assert large[-1].startswith("torchvision==")


def test_a_model_waits_in_the_spool_and_is_sent(
    tracked: Path, tiny_dataset: Dataset, make_params: Callable[..., Params], monkeypatch: pytest.MonkeyPatch
):
    from stages.workflow.send import send_spool

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


@pytest.fixture
def registered(tracked: Path, tiny_dataset: Dataset, make_params: Callable[..., Params]) -> Store:
    """The model `winnow` with one version, under the alias `champion`."""
    folder = tracked / "models" / "train"
    folder.mkdir(parents=True)
    save_model(folder, build_model(SPEC, seed=1))
    with stage_run("train", make_params()) as run:
        run.log_model(Path("models/train"), tiny_dataset.images[:2])
    store = open_store()
    (found,) = store.client.search_runs([store.experiment_id])
    (output,) = found.outputs.model_outputs
    store.client.create_registered_model("winnow")
    with as_tracking_uri(store.uri):
        store.client.create_model_version(
            "winnow", source=f"models:/{output.model_id}", model_id=output.model_id
        )
    store.client.set_registered_model_alias("winnow", "champion", "1")
    return store


def test_a_version_comes_with_weights_and_description_and_nothing_else(registered: Store, tmp_path: Path):
    for uri in ("models:/winnow@champion", "models:/winnow/1"):
        found = download_model(uri, tmp_path / "here" / "model")
        assert (found.name, found.version) == ("winnow", "1")
        assert sorted(path.name for path in found.folder.iterdir()) == ["model.json", "model.safetensors"]
        model = load_model(found.folder)
        assert model.spec == SPEC
        assert torch.equal(model.head.weight, build_model(SPEC, seed=1).head.weight)


@pytest.mark.parametrize("uri", ["models:/winnow@nobody", "models:/winnow/7"])
def test_what_is_not_there_is_one_clear_line(store: Store, tmp_path: Path, uri: str):
    with pytest.raises(WinnowError, match=f"{uri} is not on sqlite") as error:
        download_model(uri, tmp_path / "model")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("uri", ["models:/winnow", "models:/winnow/latest", "models:/../winnow/1"])
def test_other_addresses_are_told_how_they_are_written(tmp_path: Path, uri: str):
    with pytest.raises(WinnowError, match=r"models:\/NAME@ALIAS or models:\/NAME\/VERSION"):
        download_model(uri, tmp_path / "model")


def test_a_model_that_is_not_winnows_is_refused(store: Store, tmp_path: Path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "weights.bin").write_bytes(b"weights")
    store.client.create_registered_model("other")
    store.client.create_model_version("other", source=str(other))
    with pytest.raises(WinnowError, match=r"models:/other/1"):
        download_model("models:/other/1", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_server_that_does_not_answer_is_one_line(
    tracked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(WinnowError, match="does not answer"):
        download_model("models:/winnow/1", tmp_path / "model")
