from pathlib import Path

import numpy as np
import pytest

from stages.dataset.checkpoints import Checkpoints
from stages.errors import WinnowError

PART = {"probs": np.arange(6, dtype=np.float32).reshape(2, 3), "loss": np.array(0.1)}


def test_a_part_comes_back_to_the_bit(tmp_path: Path):
    Checkpoints(tmp_path / "kept", "aa").write(3, PART)
    part = Checkpoints(tmp_path / "kept", "aa").read(3)
    assert part is not None
    assert list(part) == list(PART)
    for name, array in PART.items():
        assert part[name].dtype == array.dtype
        np.testing.assert_array_equal(part[name], array)
    assert [path.name for path in (tmp_path / "kept/aa").iterdir()] == ["0003.part"]


def test_what_is_not_there_is_none(tmp_path: Path):
    kept = Checkpoints(tmp_path / "kept", "aa")
    assert kept.read(1) is None
    assert not (tmp_path / "kept").exists()


def test_any_damage_is_noticed(tmp_path: Path):
    kept = Checkpoints(tmp_path, "aa")
    kept.write(1, PART)
    path = tmp_path / "aa/0001.part"
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x40]) + whole[place + 1 :])
        assert kept.read(1) is None, place
    for length in (0, 10, 32, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert kept.read(1) is None, length
    path.write_bytes(whole)
    assert kept.read(1) is not None


def test_a_part_under_another_name_is_not_taken(tmp_path: Path):
    kept = Checkpoints(tmp_path, "aa")
    kept.write(1, PART)
    (tmp_path / "aa/0001.part").rename(tmp_path / "aa/0002.part")
    assert kept.read(2) is None


def test_other_keys_are_removed_at_the_start(tmp_path: Path):
    Checkpoints(tmp_path, "aa").write(1, PART)
    (tmp_path / "stray").write_text("")
    kept = Checkpoints(tmp_path, "bb")
    assert list(tmp_path.iterdir()) == []
    assert kept.read(1) is None


def test_without_a_folder_nothing_is_kept():
    kept = Checkpoints(None, "")
    kept.write(1, PART)
    assert kept.read(1) is None


def test_objects_are_not_pickled(tmp_path: Path):
    with pytest.raises(ValueError, match="allow_pickle"):
        Checkpoints(tmp_path, "aa").write(1, {"bad": np.array([{}], dtype=object)})


def test_a_disk_that_refuses_is_said(tmp_path: Path):
    (tmp_path / "aa").write_text("a file where the folder should be")
    with pytest.raises(WinnowError, match="cannot be written"):
        Checkpoints(tmp_path, "aa").write(1, PART)
