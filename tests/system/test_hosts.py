"""Two hosts for real: network namespaces joined by a virtual cable, two ranks on each. Needs root and iproute2."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lstmlm import load_config
from tests.system.launcher import TRAIN
from tests.system.test_ranks import PER_STEP, assert_same_up_to_rounding
from tests.test_training import fresh_train

ADDRESSES = {"lstmlm-a": "10.203.7.1", "lstmlm-b": "10.203.7.2"}


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    if not shutil.which("ip") or os.geteuid() != 0:
        pytest.skip("needs root and iproute2 to make network namespaces")
    try:
        ip("netns", "add", "lstmlm-a")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    try:
        ip("netns", "add", "lstmlm-b")
        ip("link", "add", "eth0", "netns", "lstmlm-a", "type", "veth", "peer", "name", "eth0", "netns", "lstmlm-b")
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
    ranks = ["--num_processes", "4", "--machine_rank", str(machine_rank), "--main_process_ip", ADDRESSES["lstmlm-a"]]
    command = ["ip", "netns", "exec", host, *launcher, *ranks, "--main_process_port", "29500", TRAIN, *arguments]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "eth0"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def test_two_hosts_of_two_ranks(hosts: list[str], small: Callable[..., list[str]], tmp_path: Path) -> None:
    """The hosts share no run directory: only the main rank's is written."""
    fresh_train(load_config(small(run="one")))
    processes = [start_on(host, i, small(run="many")) for i, host in enumerate(hosts)]
    errors = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert_same_up_to_rounding(tmp_path / "many", tmp_path / "one", PER_STEP, weights=1e-5)


def test_the_second_host_never_comes(hosts: list[str], small: Callable[..., list[str]], tmp_path: Path) -> None:
    """The two ranks of the first host, as a scheduler starts them, wait as long as they were told to and say so once."""
    processes = []
    for rank in (0, 1):
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
        where = {"MASTER_ADDR": ADDRESSES["lstmlm-a"], "MASTER_PORT": "29500", "GLOO_SOCKET_IFNAME": "eth0"}
        command = ["ip", "netns", "exec", hosts[0], sys.executable, TRAIN, *small("--train.timeout_minutes=0.05")]
        environment = {**os.environ, **ranks, **where, "ACCELERATE_USE_CPU": "true"}
        processes.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment))
    lines = [line for process in processes for line in process.communicate(timeout=100)[1].splitlines()]
    assert all(process.returncode == 1 for process in processes)
    (line,) = [line for line in lines if line.startswith("error:")]
    assert "the ranks did not find each other within 0.05 minutes" in line
    assert not (tmp_path / "run").exists()
