from pathlib import Path

import numpy as np
import pytest
import torch

from stages.learning.machine.digest import inputs_digest


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
