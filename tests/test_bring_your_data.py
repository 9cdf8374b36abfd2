"""The commands of docs/bring-your-data.md, run as they stand there, from images to `dvc repro`."""

from __future__ import annotations

import hashlib
import logging
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from clones import ROOT, TINY, clone, environment, ran
from PIL import Image
from ruamel.yaml import YAML

from stages.errors import REASONS
from stages.ingestion.opening import FORMAT_NAMES
from stages.workflow.schema import Columns, Ingest

PAGE = (ROOT / "docs/bring-your-data.md").read_text("utf-8")
BLOCKS: dict[str, str] = dict(re.findall(r"<!-- run: ([\w-]+) -->\n```sh\n(.*?)```\n", PAGE, re.DOTALL))
FROM_FOLDER = ("folder", "params", "build", "commit", "grow")
FROM_BUCKET = ("s3", "params", "build", "update")
FROM_OWN_SERVER = ("own-server",)
# The page changes the size that the project comes with.
CHANGES = {key: value for key, value in TINY.items() if key != "ingest.image_size"}
NOBODY = {
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "nothing",
    "AWS_DEFAULT_REGION": "us-east-1",
}


class Shell:
    """A new user at work in a clone, with a home of their own."""

    def __init__(self, place: Path, **more: str) -> None:
        self.home, self.clone = place / "home", place / "winnow"
        for folder in (self.home, self.clone):
            folder.mkdir()
        clone(self.clone, CHANGES)
        inherited = {key: value for key, value in environment().items() if not key.startswith("AWS_")}
        self._environment = inherited | {
            "HOME": str(self.home),
            "MPLCONFIGDIR": mpl.get_cachedir(),  # or each stage would list the fonts anew
            "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@example.org",
            "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@example.org",
            "WINNOW_TRACKING": "off",
        } | more  # fmt: skip

    def run(self, block: str, replace: Mapping[str, str] = MappingProxyType({})) -> str:
        """Run a block of the page, with some of its words replaced; its output."""
        script = BLOCKS[block]
        for old, new in replace.items():
            assert old in script
            script = script.replace(old, new)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.clone, env=self._environment, capture_output=True, text=True, timeout=1800, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{block}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def params(self) -> dict[str, Any]:
        """The clone's params.yaml."""
        return YAML(typ="safe").load((self.clone / "params.yaml").read_text("utf-8"))

    def samples(self) -> pd.DataFrame:
        """What was ingested, by `sample_id`."""
        return pd.read_parquet(self.clone / "data/ingested/samples.parquet").set_index("sample_id")


def photos(folder: Path, seed: int, count: int = 14) -> set[str]:
    """Small photos of two kinds, in a folder each; their sample ids."""
    rng = np.random.default_rng(seed)
    rows = np.arange(36)[:, np.newaxis, np.newaxis]
    ids = set()
    for name, period in (("boat", 4), ("bridge", 12)):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            waves = 60 * np.sin(2 * np.pi * rows / period)
            pixels = np.clip(rng.normal(128, 50, (36, 48, 3)) + waves, 0, 255).astype(np.uint8)
            path = folder / name / f"{seed}-{i}.jpg"
            Image.fromarray(pixels).save(path, quality=90)
            ids.add(hashlib.sha256(path.read_bytes()).hexdigest()[:16])
    return ids


def assert_as_the_page_says(params: dict[str, Any]) -> None:
    """The page shows the same changes as YAML and as a command."""
    shown = re.search(r"## Say so in params.yaml\n\n```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert shown
    for section, keys in YAML(typ="safe").load(shown[1]).items():
        assert {key: params[section][key] for key in keys} == keys


def assert_built(shell: Shell, output: str, ids: set[str]) -> None:
    """The pipeline has run to its end, on these images."""
    assert {"ingest", "detect_noise", "train", "finetune", "evaluate"} <= set(ran(output))
    assert not {"digits", "mnist"} & set(ran(output))
    assert (shell.clone / "reports/pages/ingest/data_card.html").is_file()
    assert (shell.clone / "reports/pages/evaluate/index.html").is_file()
    samples = shell.samples()
    assert set(samples.index) == ids
    assert set(samples["split"]) == {"train", "val", "test"}
    assert set(samples["label"]) == {"boat", "bridge"}


def test_from_a_folder_to_the_report_and_on_with_more_images(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    ids = photos(shell.home / "photos", seed=1)
    shell.run("folder")
    shell.run("params")
    assert_as_the_page_says(shell.params())
    assert_built(shell, shell.run("build"), ids)

    shell.run("commit")
    status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=shell.clone, check=True, capture_output=True, text=True
    ).stdout
    assert status == ""

    before = shell.samples()["split"]
    added = photos(shell.home / "more-photos", seed=2, count=6)
    assert ran(shell.run("grow")) == ["ingest"]
    after = shell.samples()["split"]
    assert set(after.index) == ids | added
    assert after[before.index].equals(before)
    assert {"train", "test"} <= set(after[sorted(added)])


@pytest.fixture
def bucket() -> Iterator[tuple[Any, str]]:
    """An empty bucket `bucket` on a server of this machine, and the server's address."""
    import boto3
    from botocore.config import Config
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        client = boto3.client(
            "s3",
            endpoint_url=f"http://{host}:{port}",
            region_name="us-east-1",
            aws_access_key_id="nobody",
            aws_secret_access_key="nothing",  # noqa: S106
            config=Config(proxies={}),
        )
        client.create_bucket(Bucket="bucket")
        yield client, f"http://{host}:{port}"
        # The next server in this process would have the same memory.
        for item in client.list_objects_v2(Bucket="bucket").get("Contents", []):
            client.delete_object(Bucket="bucket", Key=item["Key"])
    finally:
        server.stop()


def upload(client: Any, home: Path) -> None:
    for path in sorted(home.rglob("*.jpg")):
        client.put_object(Bucket="bucket", Key=path.relative_to(home).as_posix(), Body=path.read_bytes())


def test_from_a_bucket_to_the_report_and_on_as_it_changes(tmp_path: Path, bucket: tuple[Any, str]) -> None:
    client, address = bucket
    shell = Shell(tmp_path, AWS_ENDPOINT_URL=address, NO_PROXY="127.0.0.1", no_proxy="127.0.0.1", **NOBODY)
    ids = photos(tmp_path / "elsewhere/photos", seed=3)
    upload(client, tmp_path / "elsewhere")
    shell.run("s3")
    shell.run("params")
    assert_built(shell, shell.run("build"), ids)

    added = photos(tmp_path / "later/photos", seed=4, count=2)
    upload(client, tmp_path / "later")
    assert "ingest" in ran(shell.run("update"))
    assert set(shell.samples().index) == ids | added


def test_a_server_of_ones_own_is_remembered(tmp_path: Path, bucket: tuple[Any, str]) -> None:
    client, address = bucket
    shell = Shell(tmp_path, NO_PROXY="127.0.0.1", no_proxy="127.0.0.1", **NOBODY)
    photos(tmp_path / "elsewhere/photos", seed=5, count=1)
    upload(client, tmp_path / "elsewhere")
    shell.run("own-server", {"https://minio.example.org": address})
    assert len(list((shell.clone / "data/raw/mine").rglob("*.jpg"))) == 2

    photos(tmp_path / "later/photos", seed=6, count=1)
    upload(client, tmp_path / "later")
    shell.run("update", {"dvc repro ingest": "true"})
    assert len(list((shell.clone / "data/raw/mine").rglob("*.jpg"))) == 4


def test_every_command_of_the_page_is_run() -> None:
    assert PAGE.count("```sh\n") == len(BLOCKS)
    assert set(BLOCKS) == {*FROM_FOLDER, *FROM_BUCKET, *FROM_OWN_SERVER}


@pytest.mark.parametrize("reason", REASONS)
def test_the_page_has_a_row_for_every_reason(reason: str) -> None:
    assert re.search(rf"^\| `{reason}` \| .+ \| .+ \|$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_the_page_names_every_format(name: str) -> None:
    assert f"`{name}`" in PAGE or f"`ingest.format: {name}`" in PAGE


@pytest.mark.parametrize("key", [key for key in Ingest.model_fields if key != "columns"])
def test_the_page_names_every_key_of_the_section_ingest(key: str) -> None:
    assert re.search(rf"\bingest\.{key}\b", PAGE)


@pytest.mark.parametrize("key", Columns.model_fields)
def test_the_page_has_a_row_for_every_column_of_a_manifest(key: str) -> None:
    assert re.search(rf"^\| `{key}` \| .+ \| .+ \|$", PAGE, re.MULTILINE)
