"""`python -m flows.ui`: MLflow's and Prefect's servers on this machine, until Ctrl-C."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from stages.errors import WinnowError
from stages.workflow.stage import clean_exit, require_root

HOST = "127.0.0.1"  # never the network: neither server asks who is there
_PATIENCE_SECONDS = 10


def main(argv: list[str] | None = None) -> None:
    """Start both servers, print their addresses, and stop both together."""
    parser = argparse.ArgumentParser(prog="python -m flows.ui", description=main.__doc__)
    parser.add_argument("--mlflow-port", type=int, default=5000, help="default: 5000")
    parser.add_argument("--prefect-port", type=int, default=4200, help="default: 4200")
    options = parser.parse_args(argv)
    with clean_exit("ui"):
        require_root()
        for name, port in (("mlflow", options.mlflow_port), ("prefect", options.prefect_port)):
            check_port_is_free(name, port)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        serve([mlflow_command(options.mlflow_port), prefect_command(options.prefect_port)], options)


def check_port_is_free(name: str, port: int) -> None:
    """A WinnowError where something else listens there already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise WinnowError(
                f"port {port} is taken: is `make ui` running already? Else choose another with --{name}-port "
                f"(make ui {name.upper()}_PORT=…)"
            ) from error


def mlflow_command(port: int) -> list[str]:
    """MLflow's UI over the database of this workspace, or the one in MLFLOW_TRACKING_URI."""
    store = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').resolve()}"
    command = [sys.executable, "-m", "mlflow", "ui", "--host", HOST, "--port", str(port), "--workers", "1"]
    return [*command, "--backend-store-uri", store]


def prefect_command(port: int) -> list[str]:
    """Prefect's server."""
    return [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]


def serve(commands: list[list[str]], options: argparse.Namespace) -> None:
    """Run both until one ends or the user interrupts; then stop both, with all they started."""
    log = Path(".winnow/ui.log")
    log.parent.mkdir(exist_ok=True)
    # MLflow's job runner is eight more processes, for features that nobody uses here.
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"} | os.environ
    with log.open("w") as output:
        servers = [
            subprocess.Popen(
                command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
            for command in commands
        ]
        print(f"MLflow   http://{HOST}:{options.mlflow_port}")
        print(f"Prefect  http://{HOST}:{options.prefect_port}")
        print("To schedule runs, in another terminal:")
        print(
            f"  PREFECT_API_URL=http://{HOST}:{options.prefect_port}/api python -m flows.serve --every 3600"
        )
        print(f"Ctrl-C stops both; their log is {log}", flush=True)
        try:
            while all(server.poll() is None for server in servers):
                time.sleep(0.5)
            raise WinnowError(f"a server ended by itself: see {log}")
        finally:
            _stop(servers)


def _stop(servers: list[subprocess.Popen[bytes]]) -> None:
    # A second Ctrl-C or SIGTERM may not cut this short: a server would be left behind.
    for asked in (signal.SIGINT, signal.SIGTERM):
        signal.signal(asked, signal.SIG_IGN)
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        for server in servers:
            try:
                os.killpg(server.pid, signal_number)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < deadline and any(server.poll() is None for server in servers):
            time.sleep(0.1)


if __name__ == "__main__":
    main()
