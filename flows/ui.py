"""Run MLflow's and Prefect's servers on this machine until Ctrl-C: `python -m flows.ui`."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

from flows.processes import ProcessGroups
from stages.errors import WinnowError
from stages.workflow.stage import clean_exit, require_root

HOST = "127.0.0.1"  # never the network: neither server asks who is there
LOG = Path(".winnow/ui.log")


def main(argv: list[str] | None = None) -> None:
    """Start both servers, print their addresses, and stop both together."""
    parser = argparse.ArgumentParser(prog="python -m flows.ui", description=main.__doc__)
    parser.add_argument("--mlflow-port", type=int, default=5000, help="default: 5000")
    parser.add_argument("--prefect-port", type=int, default=4200, help="default: 4200")
    options = parser.parse_args(argv)
    mlflow, prefect = options.mlflow_port, options.prefect_port
    with clean_exit("ui"):
        require_root()
        check_port_is_free("mlflow", mlflow)
        check_port_is_free("prefect", prefect)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        print(f"MLflow   http://{HOST}:{mlflow}")
        print(f"Prefect  http://{HOST}:{prefect}")
        print("To schedule runs, in another terminal:")
        print(f"  PREFECT_API_URL=http://{HOST}:{prefect}/api python -m flows.serve --every 3600")
        print(f"Ctrl-C stops both; their log is {LOG}", flush=True)
        store = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').resolve()}"
        python, host = [sys.executable, "-m"], ["--host", HOST, "--port"]
        serve(
            [*python, "mlflow", "ui", *host, str(mlflow), "--workers", "1", "--backend-store-uri", store],
            [*python, "prefect", "server", "start", *host, str(prefect)],
        )


def check_port_is_free(name: str, port: int) -> None:
    """Raise a WinnowError where something else listens there already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise WinnowError(
                f"port {port} is taken: is `make ui` running already? Else choose another with --{name}-port "
                f"(make ui {name.upper()}_PORT=…)"
            ) from error


def serve(*commands: list[str]) -> None:
    """Run all until one ends or the user interrupts; then stop all, with what they started."""
    LOG.parent.mkdir(exist_ok=True)
    # MLflow's job runner is eight more processes, for features that nobody uses here.
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"} | os.environ
    groups = ProcessGroups()
    with LOG.open("w", encoding="utf-8", buffering=1) as log, ThreadPoolExecutor(len(commands)) as threads:
        servers = [
            threads.submit(groups.run, command, environment, lambda line: print(line, file=log))
            for command in commands
        ]
        try:
            wait(servers, return_when=FIRST_COMPLETED)
            raise WinnowError(f"a server ended by itself: see {LOG}")
        finally:
            # A second Ctrl-C or SIGTERM may not cut this short: a server would be left behind.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            groups.stop()


if __name__ == "__main__":
    main()
