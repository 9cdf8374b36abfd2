from __future__ import annotations

import signal
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_graph import ROOT, imported

from stages.dataset.base import Dataset, View, split_view
from stages.learning import resume
from stages.learning.loop import Fit, fit
from stages.learning.models import build_model
from stages.learning.networks.layers import ModelSpec
from stages.learning.recipe import Recipe
from stages.learning.resume import CODE, KeptTraining, Termination, code_files, inputs_digest, training_key

# What it holds of the data is in the key; messages change no weight.
NO_WEIGHTS = {
    f"stages/{name}.py"
    for name in ("__init__", "dataset/__init__", "dataset/base", "dataset/files", "dataset/ids", "errors")
}

RECIPE = Recipe(2, 2, 16, 5e-3, precision="fp32")
SPEC = ModelSpec("mlp", ["a", "b", "c"], (16, 16, 1), [0.2], [0.3])


@pytest.fixture
def inputs(tmp_path: Path) -> dict:
    (tmp_path / "code.py").write_text("one = 1")
    return {
        "arrays": [np.arange(6), None],
        "files": [tmp_path / "code.py"],
        "facts": {"rate": 0.1},
        "device": "cpu",
        "libraries": ["numpy"],
    }


def test_equal_inputs_have_one_digest(inputs: dict, tmp_path: Path):
    other = tmp_path / "elsewhere.py"
    other.write_text("one = 1")
    first = inputs_digest(**inputs)
    assert len(first) == 64
    assert inputs_digest(**inputs | {"arrays": [np.arange(6).copy(), None], "files": [other]}) == first


@pytest.mark.parametrize(
    "changed",
    [
        {"arrays": [np.arange(6)]},
        {"arrays": [None, np.arange(6)]},
        {"arrays": [np.arange(6).reshape(2, 3), None]},
        {"arrays": [np.arange(6).astype(np.int32), None]},
        {"arrays": [np.arange(6)[::-1], None]},
        {"facts": {"rate": 0.2}},
        {"libraries": ["torch"]},
        {"files": []},
    ],
)
def test_each_of_them_counts(inputs: dict, changed: dict):
    assert inputs_digest(**inputs | changed) != inputs_digest(**inputs)


def test_arrays_that_are_not_contiguous_count_by_their_values(inputs: dict):
    twice = np.repeat(np.arange(6), 2)
    assert inputs_digest(**inputs | {"arrays": [twice[::2], None]}) == inputs_digest(**inputs)


def test_code_and_arithmetic_count(inputs: dict, monkeypatch):
    digests = {inputs_digest(**inputs)}
    inputs["files"][0].write_text("one = 2")
    digests.add(inputs_digest(**inputs))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "ANOTHER")
    digests.add(inputs_digest(**inputs))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    digests.add(inputs_digest(**inputs))
    assert len(digests) == 4


@pytest.fixture
def handled():
    """Signals that reach a handler of the surroundings, as a stage or a flow may have set one."""
    seen = []
    former = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    yield seen
    signal.signal(signal.SIGTERM, former)


def test_the_signal_waits_for_whoever_asks(handled: list[int]):
    with pytest.raises(SystemExit) as ended, Termination() as termination:
        assert not termination.asked
        signal.raise_signal(signal.SIGTERM)
        assert termination.asked
        assert handled == []
        termination.end()
    assert ended.value.code == 143
    assert handled == [signal.SIGTERM]


def test_nobody_asked_it_comes_at_the_end(handled: list[int]):
    with pytest.raises(SystemExit), Termination():
        signal.raise_signal(signal.SIGTERM)
    assert handled == [signal.SIGTERM]


def test_the_former_handler_is_put_back_also_after_an_error(handled: list[int]):
    with pytest.raises(KeyError), Termination() as termination:
        signal.raise_signal(signal.SIGTERM)
        raise KeyError
    assert termination.asked
    signal.raise_signal(signal.SIGTERM)
    assert handled == [signal.SIGTERM]


def test_where_it_is_ignored_it_stays_ignored():
    former = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with Termination() as termination:
            signal.raise_signal(signal.SIGTERM)
        assert not termination.asked
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, former)


@pytest.mark.parametrize("where", ["not awaited", "another thread"])
def test_elsewhere_nothing_is_touched(where: str, handled: list[int]):
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with Termination(awaited=where != "not awaited"):
            seen.append(signal.getsignal(signal.SIGTERM))

    if where == "another thread":
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    else:
        work()
    assert seen == [before]


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
    monkeypatch.setattr("stages.learning.resume.time.monotonic", lambda: clock[0])
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
    monkeypatch.setattr(resume, "_STAGES", tmp_path)
    names = [path.relative_to(tmp_path).as_posix() for path in code_files(["single.py", "room"])]
    assert names == ["single.py", "room/a.py", "room/b.py", "room/inner/c.py"]
