import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from flows.ui import HOST, check_port_is_free
from stages.errors import WinnowError


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def answers(url: str, patience: float = 600) -> bool:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=60) as response:
                return response.status == 200
        except OSError:
            time.sleep(0.5)
    return False


def becomes_free(name: str, port: int, patience: float = 300) -> None:
    """What a server had started itself was killed with it, and may need a moment to be gone."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return check_port_is_free(name, port)
        except WinnowError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def test_a_taken_port_is_named_with_a_way_out():
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        with pytest.raises(WinnowError, match=r"port \d+ is taken.*MLFLOW_PORT"):
            check_port_is_free("mlflow", taken.getsockname()[1])


def test_both_servers_answer_and_end_together(tmp_path):
    (tmp_path / "dvc.yaml").touch()
    mlflow, prefect = free_port(), free_port()
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "PREFECT_HOME": str(tmp_path / "prefect"),
    }
    ui = subprocess.Popen(
        [sys.executable, "-m", "flows.ui", "--mlflow-port", str(mlflow), "--prefect-port", str(prefect)],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert answers(f"http://{HOST}:{prefect}/api/health"), "Prefect does not answer"
        assert answers(f"http://{HOST}:{mlflow}/health"), "MLflow does not answer"
    finally:
        ui.send_signal(signal.SIGTERM)
        shown, _ = ui.communicate(timeout=300)
    assert f"http://{HOST}:{mlflow}" in shown
    assert ui.returncode == 0
    for name, port in (("mlflow", mlflow), ("prefect", prefect)):
        becomes_free(name, port)
