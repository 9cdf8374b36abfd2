import pickle
from pathlib import Path

import pytest
import torch

from stages.errors import WinnowError
from stages.learning.models import build_model
from stages.learning.networks.layers import ModelSpec
from stages.learning.store import load_model, read_weights, save_model

SPEC = ModelSpec("small_cnn", ["a", "b"], (8, 8, 1), [0.4], [0.2])
IMAGES = torch.arange(2 * 64, dtype=torch.uint8).view(2, 8, 8, 1)


def test_a_saved_model_answers_the_same(tmp_path: Path):
    model = build_model(SPEC, seed=1).eval()
    save_model(tmp_path, model)
    loaded = load_model(tmp_path)
    assert loaded.spec == SPEC
    assert torch.equal(loaded(IMAGES), model(IMAGES))


def test_the_same_model_gives_the_same_bytes(tmp_path: Path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        save_model(tmp_path / name, build_model(SPEC, seed=1))
    for file in ("model.safetensors", "model.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_weights_of_another_network_are_refused_in_one_line(tmp_path: Path):
    save_model(tmp_path, build_model(SPEC, seed=1))
    content = (tmp_path / "model.json").read_text()
    (tmp_path / "model.json").write_text(content.replace('"b"', '"b", "c"'))
    with pytest.raises(WinnowError, match=r"model\.safetensors does not fit model\.json") as error:
        load_model(tmp_path)
    assert "\n" not in str(error.value)


def test_torch_state_dicts_are_read_bare_or_wrapped(tmp_path: Path):
    state = {"weight": torch.ones(2)}
    torch.save(state, tmp_path / "bare.pt")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "wrapped.pt")
    for name in ("bare.pt", "wrapped.pt"):
        assert torch.equal(read_weights(tmp_path / name)["weight"], state["weight"])


class _Payload:
    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


@pytest.mark.parametrize("name", ["text.safetensors", "text.pt", "empty.pt", "pickle.pt", "list.pt"])
def test_a_file_that_holds_no_weights_is_refused_in_one_line(tmp_path: Path, name: str, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    if name.startswith("text"):
        path.write_text("these are no weights\n" * 10)
    elif name == "empty.pt":
        path.write_bytes(b"")
    elif name == "pickle.pt":
        path.write_bytes(pickle.dumps(_Payload()))
    else:
        torch.save([torch.ones(2)], path)
    with pytest.raises(WinnowError, match=name) as error:
        read_weights(path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(WinnowError, match=r"gone\.pt is not there"):
        read_weights(tmp_path / "gone.pt")
    with pytest.raises(WinnowError, match="does not hold a Winnow model"):
        load_model(tmp_path)
