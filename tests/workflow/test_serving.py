"""`mlflow models serve` on a real request."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_repo import environment

from stages.learning.models import build_model
from stages.learning.networks.layers import ModelSpec, Preprocessing
from stages.learning.prediction import predict
from stages.learning.store import save_model
from stages.workflow.models import log_model
from stages.workflow.records import Model
from stages.workflow.store import open_store

SPEC = ModelSpec(
    "small_cnn", ["a", "b"], (16, 16, 3), [0.4] * 3, [0.3] * 3, preprocessing=Preprocessing("crop", "rgb")
)
PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def server(tracked: Path) -> Iterator[str]:
    """The address of a server with a logged model, started as the documentation says."""
    store = open_store()
    (tracked / "model").mkdir()
    save_model(tracked / "model", build_model(SPEC, seed=1))
    np.save(tracked / "example.npy", PIXELS[None])
    run = store.client.create_run(store.experiment_id).info.run_id
    model = log_model(store, run, Model(str(tracked / "model"), str(tracked / "example.npy"), "finetune"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", f"models:/{model}"]
    log = (tracked / "server.log").open("w")
    with (
        log,
        subprocess.Popen(
            [*command, "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)],
            cwd=tracked,
            env={**environment(), "MLFLOW_TRACKING_URI": store.uri},
            stdout=log,
            stderr=log,
            start_new_session=True,
        ) as process,
    ):
        try:
            yield wait_for(f"http://127.0.0.1:{port}", process, tracked / "server.log")
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def wait_for(address: str, process: subprocess.Popen, log: Path) -> str:
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{address}/ping", timeout=60)
            return address
        except OSError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
    raise AssertionError(log.read_text())


def ask(address: str, request: object) -> list[dict]:
    body = json.dumps(request).encode()
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(
        urllib.request.Request(f"{address}/invocations", body, headers), timeout=300
    ) as answer:
        return json.load(answer)["predictions"]


def refused(address: str, request: object) -> str:
    with pytest.raises(urllib.error.HTTPError) as error:
        ask(address, request)
    assert error.value.code == 400
    return json.load(error.value)["message"]


def test_the_server_answers_requests_and_reads_no_files(server: str, tracked: Path):
    text = base64.b64encode(png(PIXELS)).decode()
    table = {"dataframe_split": {"columns": ["image"], "data": [[text], [text]]}}
    rows = ask(server, table)
    expected, _ = predict(build_model(SPEC, seed=1), PIXELS[None], "cpu")
    assert len(rows) == 2
    assert rows[0]["label"] == "ab"[expected[0].argmax()]
    assert [rows[0]["p_a"], rows[0]["p_b"]] == pytest.approx(expected[0].tolist(), abs=1e-5)

    for other in ({"inputs": [text]}, {"inputs": PIXELS[None].tolist()}, {"instances": [{"image": text}]}):
        assert ask(server, other) == rows[:1]
    (example,) = (tracked / "mlartifacts").rglob("serving_input_example.json")
    assert ask(server, json.loads(example.read_text())) == rows[:1]
    flipped = ask(server, {**table, "params": {"test_time": "flip"}})
    assert flipped[0]["p_a"] != rows[0]["p_a"]

    (tracked / "secret.png").write_bytes(png(PIXELS))
    path = str(tracked / "secret.png")
    for naming in ({"inputs": [path]}, {"instances": [path]}, {"dataframe_records": [{"image": path}]}):
        assert "row 0: not_an_image: text that is not base64" in refused(server, naming)
    assert "column 'image'" in refused(server, {"dataframe_records": [{"other": text}]})
    assert "row 1: damaged" in refused(server, {"inputs": [text, text[:200]]})
    assert "known: none, flip" in refused(server, {**table, "params": {"test_time": "twirl"}})
