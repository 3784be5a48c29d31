"""Two hosts for real: network namespaces joined by a virtual cable, two ranks on each. Needs root and iproute2."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lstmlm import load_config
from tests.helpers import Small, fresh_train
from tests.system.launcher import TRAIN
from tests.system.test_ranks import PER_STEP, assert_same_up_to_rounding

FIRST, SECOND = f"lstmlm-a-{os.getpid()}", f"lstmlm-b-{os.getpid()}"
ADDRESSES = {FIRST: "10.203.7.1", SECOND: "10.203.7.2"}


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    if not shutil.which("ip") or os.geteuid() != 0:
        pytest.skip("needs root and iproute2 to make network namespaces")
    try:
        ip("netns", "add", FIRST)
    except subprocess.CalledProcessError as error:
        assert b"not permitted" in error.stderr, error.stderr
        pytest.skip("network namespaces are not permitted here")
    try:
        ip("netns", "add", SECOND)
        ip("link", "add", "eth0", "netns", FIRST, "type", "veth", "peer", "name", "eth0", "netns", SECOND)
        for name, address in ADDRESSES.items():
            ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield list(ADDRESSES)
    finally:
        for name in ADDRESSES:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def start_on(host: str, machine_rank: int, arguments: list[str]) -> "subprocess.Popen[str]":
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "2"]
    ranks = ["--num_processes", "4", "--machine_rank", str(machine_rank), "--main_process_ip", ADDRESSES[FIRST]]
    command = ["ip", "netns", "exec", host, *launcher, *ranks, "--main_process_port", "29500", TRAIN, *arguments]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "eth0"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def test_two_hosts_of_two_ranks(hosts: list[str], small: Small, tmp_path: Path) -> None:
    """The hosts share no run directory: only the main rank's is written."""
    fresh_train(load_config(small(run="one")))
    processes = [start_on(host, i, small(run="many")) for i, host in enumerate(hosts)]
    errors = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert_same_up_to_rounding(tmp_path / "many", tmp_path / "one", PER_STEP, weights=1e-5)
