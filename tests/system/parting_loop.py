"""One pair of ranks after the other: python parting_loop.py PAIRS FOLDER ARGUMENTS OF TRAIN...

Each is two processes of their own, from the start of a run to the end of the interpreter. They are forked from one that has imported
everything, so that a pair costs a second instead of ten. A rank that does not end in time tells where it stands, and ends the loop.
"""

import faulthandler
import os
import sys
from pathlib import Path

import torch

from lstmlm.cli import train
from lstmlm.config import load_config
from lstmlm.console import run_script
from tests.system.launcher import ranks

SECONDS = 120  # that a rank may take


def main() -> int:
    pairs, folder, arguments = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    load_config(arguments)  # with the next line: what is imported late is imported now
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    folder.mkdir(exist_ok=True)
    for number in range(pairs):
        told, processes = folder / f"{number}.txt", []
        for environment in ranks(2):
            process = os.fork()
            if process == 0:
                os.dup2(os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
                faulthandler.dump_traceback_later(SECONDS, exit=True)
                os.environ |= environment
                return run_script(lambda: train([*arguments, f"--train.run_dir={folder / str(number)}"]))  # noqa: B023 (called at once)
            processes.append(process)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
        if statuses != [0, 0]:
            print(f"pair {number} of {pairs}: exit statuses {statuses}\n{told.read_text()}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
