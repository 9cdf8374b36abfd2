"""A process that reads and decodes blocks for a `workers.Pool`; `python -m stages.ingestion.worker`.

It is told what to do through its standard input and answers on its standard output (`messages`).
It ends when its standard input does, hence with the process that started it, however that one
ended.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
import traceback
import warnings
from typing import BinaryIO

import cv2

from stages.ingestion.blocks import Output, cannot_write, open_output, read_block
from stages.ingestion.messages import READY, Failed, Setup, Step, Task, receive, send


def main() -> None:
    """Answer tasks until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the main process decides
    orders, answers = _private_streams()
    cv2.setNumThreads(1)  # there is a process for every core already
    warnings.simplefilter("ignore")  # what a bad file gives rise to, quarantine says better
    try:
        setup: Setup = receive(orders)
    except EOFError:
        return
    output = open_output(setup.squares, setup.thumbs, setup.size, setup.color, setup.resize)
    send(answers, READY)
    os.dup2(1, 2)
    tasks: queue.Queue[Task | Failed] = queue.Queue()
    threading.Thread(target=_listen, args=(orders, tasks), daemon=True).start()
    while True:
        send(answers, _answer(tasks.get(), output, answers))


def _answer(task: Task | Failed, output: Output, answers: BinaryIO) -> object:
    def announce(index: int, has_read: bool) -> None:
        send(answers, Step(index, has_read))

    if isinstance(task, Failed):
        return task
    try:
        return read_block(
            task.payload,
            task.start,
            output,
            crashed=task.crashed or frozenset(),
            limit=task.limit,
            watch=None if task.crashed is None else announce,
        )
    except OSError as error:
        return Failed(cannot_write(output, error))
    except Exception as error:
        return _bug(error)


def _private_streams() -> tuple[BinaryIO, BinaryIO]:
    """Standard input and output for messages alone: what a library prints must not get in between."""
    orders, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    return orders, answers


def _listen(orders: BinaryIO, tasks: queue.Queue[Task | Failed]) -> None:
    """Take tasks off the pipe at once, and end the process when the pipe ends."""
    while True:
        try:
            tasks.put(receive(orders))
        except EOFError:
            os._exit(0)
        except Exception as error:  # the payload's class is not found here, say
            tasks.put(_bug(error))


def _bug(error: Exception) -> Failed:
    return Failed(str(error), "".join(traceback.format_exception(error)))


if __name__ == "__main__":
    main()
