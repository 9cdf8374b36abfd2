from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_graph import ROOT, imported

from stages.dataset import Dataset, View, split_view
from stages.learning.loop import Fit, fit
from stages.learning.machine import digest
from stages.learning.machine.digest import code_files
from stages.learning.models import ModelSpec, build_model
from stages.learning.recipe import Recipe
from stages.learning.training.kept import CODE, KeptTraining, training_key

# What it holds of the data is in the key; messages change no weight.
NO_WEIGHTS = {f"stages/{name}.py" for name in ("__init__", "dataset", "errors", "files", "ids")}
RECIPE = Recipe(2, 2, 16, 5e-3, precision="fp32")
SPEC = ModelSpec("mlp", ["a", "b", "c"], (16, 16, 1), [0.2], [0.3])


def test_all_code_that_trains_makes_checkpoints_stale():
    seen, queue = set(), {"stages/learning/loop.py"}
    while queue:
        path = queue.pop()
        seen.add(path)
        queue |= set() if path in NO_WEIGHTS else imported(path) - seen
    assert seen - NO_WEIGHTS <= {path.relative_to(ROOT).as_posix() for path in code_files(CODE)}


def changed(view: View, what: str) -> View:
    """The view with one number changed."""
    array = getattr(view, what).copy()
    array.flat[0] += 1
    return replace(view, **{what: array})


@pytest.mark.parametrize(
    "change",
    ["nothing", "images", "labels", "weights", "val", "recipe", "seed", "spec", "start", "transition",
     "unlabeled", "threads"],
)  # fmt: skip
def test_whatever_the_weights_follow_from_changes_the_key(tiny_dataset: Dataset, change: str, monkeypatch):
    train, val = split_view(tiny_dataset, "train"), split_view(tiny_dataset, "val")
    arguments = {"recipe": RECIPE, "seed": 0, "device": "cpu", "val": val, "transition": None,
                 "unlabeled": None}  # fmt: skip
    model = build_model(SPEC, seed=0)
    before = training_key(model, train, **arguments)
    match change:
        case "images" | "labels" | "weights":
            train = changed(train, change)
        case "val":
            arguments["val"] = changed(val, "labels")
        case "recipe":
            arguments["recipe"] = replace(RECIPE, flip=True)
        case "seed":
            arguments["seed"] = 1
        case "spec":
            model.spec = replace(SPEC, std=[0.31])
        case "start":
            model = build_model(SPEC, seed=1)
        case "transition":
            arguments["transition"] = np.eye(3)
        case "unlabeled":
            arguments["unlabeled"] = train.images[:2]
        case "threads":
            monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert (training_key(model, train, **arguments) == before) == (change == "nothing")


def test_states_come_back_and_objects_do_not(tmp_path: Path):
    state = {"weights": {"w": torch.arange(6, dtype=torch.bfloat16).view(2, 3)}, "step": 3, "said": ["é"]}
    KeptTraining(tmp_path, "aa").write(state)
    back = KeptTraining(tmp_path, "aa").read()
    assert torch.equal(back["weights"]["w"], state["weights"]["w"])
    assert (back["step"], back["said"]) == (3, ["é"])
    KeptTraining(tmp_path, "aa").write({"path": Path("x")})
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        KeptTraining(tmp_path, "aa").read()


def test_layouts_of_memory_come_back(tmp_path: Path):
    image = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    KeptTraining(tmp_path, "aa").write({"image": image})
    assert KeptTraining(tmp_path, "aa").read()["image"].stride() == image.stride()


def test_nothing_is_kept_without_a_folder():
    kept = KeptTraining(None, "")
    assert not kept.due
    assert kept.read() is None


def test_checkpoints_wait_for_the_time_that_the_last_one_took_to_be_little(tmp_path: Path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("stages.learning.training.kept.time.monotonic", lambda: clock[0])
    kept = KeptTraining(tmp_path, "aa")
    assert kept.due
    save = torch.save

    def slow(*arguments: object) -> None:
        clock[0] += 2.0
        save(*arguments)

    monkeypatch.setattr(torch, "save", slow)
    kept.write({})
    clock[0] += 39.0
    assert not kept.due
    clock[0] += 1.1
    assert kept.due


def test_damage_and_other_inputs_start_afresh(tiny_dataset: Dataset, tmp_path: Path):
    train = split_view(tiny_dataset, "train")

    def trained(seed: int) -> Fit:
        return fit(
            build_model(SPEC, seed=0),
            train,
            RECIPE,
            seed=seed,
            device="cpu",
            description="",
            keep_in=tmp_path,
        )

    first = trained(0)
    assert first.notes == []
    again = trained(0)
    assert again.notes == ["went on after step 4 of a run that did not end"]
    assert again.history == first.history
    for one, other in zip(again.model.parameters(), first.model.parameters(), strict=True):
        assert torch.equal(one, other)
    (path,) = tmp_path.glob("*/*")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert trained(0).notes == []
    assert trained(1).notes == []
    assert path.parent not in list(tmp_path.iterdir())


def test_rows_from_before_are_told_again(tiny_dataset: Dataset, tmp_path: Path):
    train = split_view(tiny_dataset, "train")
    for _ in range(2):
        rows = []
        result = fit(
            build_model(SPEC, seed=0), train, RECIPE, seed=0, device="cpu", description="", keep_in=tmp_path,
            on_epoch=rows.append,
        )  # fmt: skip
        assert rows == result.history
        assert [row["epoch"] for row in rows] == [1, 2]


def test_a_whole_room_of_code_is_meant_by_its_name(tmp_path: Path, monkeypatch):
    (tmp_path / "room/inner").mkdir(parents=True)
    for name in ("room/b.py", "room/a.py", "room/inner/c.py", "room/page.css", "single.py"):
        (tmp_path / name).write_text("")
    monkeypatch.setattr(digest, "_STAGES", tmp_path)
    names = [path.relative_to(tmp_path).as_posix() for path in code_files(["single.py", "room"])]
    assert names == ["single.py", "room/a.py", "room/b.py", "room/inner/c.py"]
