"""Scripts in processes of their own that start at once: forked from a server which has imported torch and the training loop.

To import them costs five seconds of a processor, a run of a test much less. What a fresh interpreter shows (import order, what is read
at import, how the interpreter ends) needs a real one: `subprocess`.
"""

import gc
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

SECONDS = 200  # that a process may take, on a busy machine too

SERVER = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")  # Metal does not survive a fork
SERVER.set_forkserver_preload(["lstmlm.training.loop", "lstmlm.evaluation.evaluate", "lstmlm.generation", "torch._dynamo", "torch.optim"])


def _become(words: list[str], environment: dict[str, str], folder: Path, output: str, error: str) -> None:
    gc.freeze()  # what the server has imported: the run's end collects the rest
    for path, number in ((output, 1), (error, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = words
    sys.path.insert(0, str(Path(words[0]).parent))
    runpy.run_path(words[0], run_name="__main__")


class Processes:
    """`python WORDS`, one process for each environment; they share standard output and standard error, which are files.

    Args:
        words: The script and its arguments.
        environments: Of each process, the whole of it.
        folder: The working directory; None is this process's own.
    """

    def __init__(self, words: Sequence[str], environments: Sequence[Mapping[str, str]], folder: Path | None = None) -> None:
        self.words = list(words)
        self._output, self._error = (tempfile.NamedTemporaryFile("r") for _ in range(2))  # noqa: SIM115 (gone with this object)
        written = folder or Path.cwd(), self._output.name, self._error.name
        self._ranks = [SERVER.Process(target=_become, args=(self.words, dict(own), *written), daemon=True) for own in environments]
        for process in self._ranks:
            process.start()

    def poll(self) -> int | None:
        """As `subprocess.Popen.poll`; of several processes, the status of one that failed."""
        statuses = [process.exitcode for process in self._ranks]
        return None if None in statuses else next((status for status in statuses if status), 0)

    def send_signal(self, number: signal.Signals, rank: int = 0) -> None:
        pid = self._ranks[rank].pid
        assert pid is not None
        os.kill(pid, number)

    def kill(self) -> None:
        """SIGKILL to all, as a power cut."""
        for process in self._ranks:
            process.kill()
            process.join()

    def wait_for(self, words: str) -> None:
        """Until a process has said so on standard error."""
        deadline = time.monotonic() + SECONDS
        while words not in Path(self._error.name).read_text():
            if self.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"never said {words!r}: {self._error.read()}")
            time.sleep(0.02)

    def wait(self) -> "subprocess.CompletedProcess[str]":
        """Until all have ended.

        Raises:
            TimeoutError: One did not within `SECONDS`. All are killed.
        """
        deadline = time.monotonic() + SECONDS
        for process in self._ranks:
            process.join(max(0, deadline - time.monotonic()))
        status = self.poll()
        if status is None:
            self.kill()
            raise TimeoutError(f"still running after {SECONDS} s: {self.words}\n{self._error.read()}")
        return subprocess.CompletedProcess(self.words, status, self._output.read(), self._error.read())
