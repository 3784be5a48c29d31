"""One pair of ranks after the other: python parting_loop.py PAIRS FOLDER ARGUMENTS OF TRAIN...

Each is two processes of their own, from the start of a run to the end of the interpreter. They are forked from one that has imported
everything, so that a pair costs a second instead of ten. A rank that does not end in time tells where it stands, and ends the loop.
"""

import faulthandler
import os
import signal
import sys
import time
from pathlib import Path

import torch

from lstmlm.cli import train
from lstmlm.config import load_config
from lstmlm.console import run_script
from tests.system.launcher import free_port

SECONDS = 120  # that a rank may take


def become(rank: int, port: int, arguments: list[str]) -> int:
    """Be this rank; what it says goes to a file."""
    faulthandler.enable()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    return run_script(lambda: train(arguments))


def ended(process: int) -> int | None:
    """The exit status of a process that ended in time."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(process, signal.SIGABRT)  # at which `faulthandler` writes its stacks
    os.waitpid(process, 0)
    return None


def main() -> int:
    pairs, folder, arguments = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    load_config(arguments)  # with the next line: what is imported late is imported now
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    folder.mkdir(exist_ok=True)
    for number in range(pairs):
        port, told, processes = free_port(), folder / f"{number}.txt", []
        for rank in (0, 1):
            process = os.fork()
            if process == 0:
                os.dup2(os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
                return become(rank, port, [*arguments, f"--train.run_dir={folder / str(number)}"])
            processes.append(process)
        statuses = [ended(process) for process in processes]
        if statuses != [0, 0]:
            print(f"pair {number} of {pairs}: exit statuses {statuses} (None: it hung)\n{told.read_text()}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
