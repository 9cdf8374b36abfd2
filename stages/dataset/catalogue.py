"""Look up the catalogue of public sets, the only data where problems may be planted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.errors import WinnowError


def catalogue_sets(path: Path) -> frozenset[str]:
    """Return the names of the sets in a catalogue, the keys of its mapping `stages`; none without a file.

    Raises
    ------
    WinnowError
        Where the file is there but holds no such mapping.
    """
    if not path.is_file():
        return frozenset()
    try:
        content = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        raise WinnowError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    stages = content.get("stages") if isinstance(content, Mapping) else None
    if not isinstance(stages, Mapping):
        raise WinnowError(f"{path} holds no mapping `stages`: bring it back with `git checkout {path}`")
    return frozenset(str(name) for name in stages)


def is_catalogue_set(source: Path, catalogue: Path) -> bool:
    """Tell whether `source` is the folder of a set that the catalogue lists."""
    return source.parent == catalogue.parent and source.name in catalogue_sets(catalogue)


def refuse_planting(source: Path, catalogue: Path) -> None:
    """Raise a WinnowError unless `source` is a set of the catalogue.

    Nobody's own labels are corrupted by a section that was forgotten.
    """
    if not is_catalogue_set(source, catalogue):
        names = ", ".join(sorted(catalogue_sets(catalogue))) or "none"
        raise WinnowError(
            f"simulate.enabled = True: planted problems are for sets of {catalogue} only ({names}), "
            f"not for ingest.source = {str(source)!r}; set simulate.enabled to false"
        )
