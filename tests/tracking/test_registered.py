from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stages.dataset import Dataset
from stages.errors import WinnowError
from stages.learning.models import ModelSpec, build_model
from stages.learning.store import load_model, save_model
from stages.params import Params
from stages.tracking import stage_run
from stages.tracking.model import as_tracking_uri
from stages.tracking.records import Store, open_store
from stages.tracking.registered import download_model

SPEC = ModelSpec("small_cnn", ["a", "b", "c"], (16, 16, 1), [0.3], [0.3])


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
