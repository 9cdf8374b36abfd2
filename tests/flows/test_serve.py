import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from tiny_repo import environment, ran

from flows.pipeline import check_server
from flows.serve import check_cron, main
from stages.errors import WinnowError


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: list[str], folder: Path, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process with its output in `log`, ended afterwards with all that it started."""
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**environment(), **env},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until(condition, seconds: float, folder: Path) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, (folder / "log").read_text()[-4000:]
        time.sleep(0.25)


def healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=60).status_code == 200
    except httpx.HTTPError:
        return False


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    return said[0]


def test_without_a_server_it_says_how_to_start_one(tiny: Path, capsys: pytest.CaptureFixture[str]):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        said = refused(["--every", "20"], capsys)
        assert "make ui" in said
        assert "PREFECT_API_URL=http://127.0.0.1:4200/api" in said
        assert check_server(needed=False) is None
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api"}):
        said = refused(["--cron", "0 3 * * *"], capsys)
        assert "does not answer" in said
        assert "make ui" in said


def test_wrong_schedules_are_one_line(tiny: Path, capsys: pytest.CaptureFixture[str]):
    assert "seconds must be more than 0" in refused(["--every", "0"], capsys)
    assert "'every day' is no cron expression" in refused(["--cron", "every day"], capsys)
    with pytest.raises(SystemExit):
        main([])  # one of them is needed
    with pytest.raises(SystemExit):
        main(["--every", "20", "--cron", "0 3 * * *"])
    assert check_cron("*/5 * * * *") == "*/5 * * * *"
    with pytest.raises(WinnowError):
        check_cron("61 * * * *")


@pytest.fixture(scope="module")
def real_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """`prefect server start` on a port of its own: what `make ui` runs. Yields the clients' environment."""
    home = tmp_path_factory.mktemp("server")
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    env = {"PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with running(command, home, **env) as server:
        wait_until(lambda: server.poll() is not None or healthy(url), 600, home)
        assert server.poll() is None, (home / "log").read_text()
        yield {**env, "PREFECT_API_URL": url}


def test_the_server_boots_under_the_pinned_versions(real_server: dict[str, str]):
    """Newer versions of fastapi break it at start, and `pip check` is silent."""
    assert healthy(real_server["PREFECT_API_URL"])


def test_a_served_flow_runs_twice_by_itself(tiny: Path, real_server: dict[str, str]):
    """Newer versions of sqlalchemy break the server's scheduler, and `pip check` is silent."""
    url = real_server["PREFECT_API_URL"]
    serve = [sys.executable, "-m", "flows.serve", "--every", "5"]
    with running(serve, tiny, **real_server) as served:
        wait_until(lambda: completed(url) >= 2 or served.poll() is not None, 600, tiny)
        assert served.poll() is None, (tiny / "log").read_text()
    assert ran(tiny) == ["first", "second", "evaluate"]  # the second run found everything cached


def completed(url: str) -> int:
    body = {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    return int(httpx.post(f"{url}/flow_runs/count", json=body, timeout=60).json())
