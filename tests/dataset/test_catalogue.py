"""Which sources are public sets, and hence may be spoiled on purpose."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.dataset.catalogue import catalogue_sets, is_catalogue_set, refuse_planting
from stages.errors import WinnowError
from stages.fetch import NAMES

CATALOGUE = Path(__file__).resolve().parents[2] / "data/raw/dvc.yaml"


def test_every_set_of_the_catalogue_can_be_fetched() -> None:
    assert catalogue_sets(CATALOGUE) == set(NAMES)


def test_only_the_folder_of_a_set_counts() -> None:
    assert is_catalogue_set(CATALOGUE.parent / "digits", CATALOGUE)
    assert not is_catalogue_set(CATALOGUE.parent / "mine", CATALOGUE)
    assert not is_catalogue_set(Path("elsewhere/digits"), CATALOGUE)
    assert not is_catalogue_set(CATALOGUE.parent / "digits/digits", CATALOGUE)


def test_planting_elsewhere_is_refused() -> None:
    refuse_planting(CATALOGUE.parent / "digits", CATALOGUE)
    with pytest.raises(WinnowError, match=r"'data/raw/mine'; set simulate\.enabled to false"):
        refuse_planting(Path("data/raw/mine"), CATALOGUE)


def test_a_catalogue_that_is_gone_or_broken(tmp_path: Path) -> None:
    path = tmp_path / "dvc.yaml"
    assert catalogue_sets(path) == set()
    for content in ("- a\n", "stages: [a]\n", "stages: {a: ["):
        path.write_text(content)
        with pytest.raises(WinnowError, match=str(path)):
            catalogue_sets(path)
