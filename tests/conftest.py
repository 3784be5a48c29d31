"""What several tests share: the real text where it is at hand, a small text, the command line in a subprocess."""

import gc
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lstmlm import Config, load_config
from lstmlm.runtime.distributed import STOP_SIGNALS
from lstmlm.runtime.hardware import settings_kept
from tests.another_device import another_device  # noqa: F401 (a fixture)
from tests.helpers import ROOT, forget_accelerate, small_arguments
from tests.processes import SECONDS, Processes
from tests.recorded import recorded_graphs  # noqa: F401 (a fixture)

WIKITEXT = "LSTMLM_WIKITEXT"  # folder of WikiText-2 in Hub layout
# The modules that take longest, so that none of them is left to one worker at the end.
FIRST = """test_smoke test_wheel test_cluster test_launch test_benchmark test_hosts test_sweep test_command_line test_run test_outputs
    test_tracking test_readme test_hub""".split()
frozen = 0  # modules imported when the garbage collector was told to leave alone what is alive


def pytest_configure(config: pytest.Config) -> None:
    """Only `-m gpu` sees a GPU: the other tests know a CPU's figures, to the bit. One thread each: three workers share two cores.

    No test asks the network: what has a `/` in it may be a name on the Hub, which would be tried again for half a minute.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that takes `small`, and not to build a configuration only, trains a whole run. The longest modules go first."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        trains = "small" in fixtures and "small_config" not in fixtures
        if trains or fixtures & {"whole", "cli", "trained"} or item.path.is_relative_to(ROOT / "tests" / "system"):
            item.add_marker(pytest.mark.system)
    items.sort(key=lambda item: FIRST.index(item.path.stem) if item.path.stem in FIRST else len(FIRST))


@pytest.fixture(autouse=True)
def fresh_process() -> Iterator[None]:
    """Each test begins without what Accelerate keeps in the process, and leaves its settings and signal handlers as they were.

    A forked worker that inherits `run_script`'s handler may outlive the SIGTERM of its pool, which then waits for ever.
    What modules hold is frozen once they are imported: each run collects garbage twice, which took longer than the run itself.
    """
    global frozen
    if len(sys.modules) != frozen:
        gc.collect()
        gc.freeze()
        frozen = len(sys.modules)
    forget_accelerate()
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    with settings_kept():
        yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def wikitext() -> str:
    folder = os.environ.get(WIKITEXT)
    if not folder:
        pytest.skip(f"needs WikiText-2: set {WIKITEXT} to a folder in Hub layout")
    assert Path(folder).is_dir(), f"{WIKITEXT} is {folder}, which is not there"
    return folder


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of text files: 60 types, a few thousand tokens, drawn from a fixed Markov chain."""
    folder = tmp_path_factory.mktemp("text")
    rng = random.Random(0)
    words = [f"w{i}" for i in range(58)]
    for name, lines in (("train", 160), ("valid", 30), ("test", 30)):
        rows = []
        for _ in range(lines):
            word, row = rng.randrange(58), []
            for _ in range(rng.randrange(4, 30)):
                word = (word * 7 + rng.randrange(4)) % 58
                row.append(words[word])
            rows.append(" ".join(row))
        (folder / f"{name}.txt").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture
def small(text_folder: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Arguments of a run that takes a second, dropout on; overrides come after."""
    return partial(small_arguments, text_folder, tmp_path)


@pytest.fixture
def small_config(small: Callable[..., list[str]]) -> Callable[..., Config]:
    def build(*overrides: str, run: str = "run") -> Config:
        return load_config(small(*overrides, run=run))

    return build


@pytest.fixture
def cli() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `python scripts/<name>.py ...` as a user does; with standard input in a fresh interpreter."""

    def run(script: str, *args: str, env: dict[str, str] | None = None, cwd: Path | None = None, **kwargs: Any) -> Any:
        words = [str(ROOT / "scripts" / f"{script}.py"), *args]
        environment = {**os.environ, "WANDB_MODE": "offline", **(env or {})}
        if not kwargs:
            return Processes(words, [environment], cwd).wait()
        return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment, timeout=SECONDS, cwd=cwd, **kwargs)

    return run
