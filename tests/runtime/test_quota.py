"""The CPUs and the memory that a container's limits leave."""

import math
from pathlib import Path

import pytest

from lstmlm.runtime.hardware import cpu_quota, memory_left

V2, V1 = "0::/a/b\n", "4:memory:/x\n3:cpu,cpuacct:/a\n"


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        (V2, {}, math.inf),
        (V2, {"a/b/cpu.max": "max 100000\n"}, math.inf),
        (V2, {"a/b/cpu.max": "150000 100000\n"}, 1.5),
        (V2, {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "200000 100000\n"}, 2.0),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 0.5),
        (V1, {"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, math.inf),
        (V1, {"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3.0),
        (V2, {"a/b/cpu.max": "nonsense"}, math.inf),
    ],
)
def test_quota(own: str, files: dict[str, str], expected: float, tmp_path: Path) -> None:
    (tmp_path / "own").write_text(own)
    for name, content in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(content)
    assert cpu_quota(tmp_path / "groups", tmp_path / "own") == expected


def stat(**values: int) -> str:
    return "".join(f"{name} {value}\n" for name, value in {"anon": 7, **values}.items())


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        (V2, {}, math.inf),
        (V2, {"a/memory.max": "max\n", "a/memory.current": "50\n", "a/memory.stat": stat()}, math.inf),
        (
            V2,
            {
                "a/b/memory.max": "1000\n",
                "a/b/memory.current": "600\n",
                "a/b/memory.stat": stat(active_file=100, inactive_file=200, file=900),
                "a/memory.max": "5000\n",
                "a/memory.current": "700\n",
                "a/memory.stat": stat(active_file=0, inactive_file=0),
            },
            700,
        ),
        (
            V1,
            {
                "memory/x/memory.limit_in_bytes": "1000\n",
                "memory/x/memory.usage_in_bytes": "900\n",
                "memory/x/memory.stat": stat(active_file=1, total_active_file=20, total_inactive_file=30),
            },
            150,
        ),
    ],
)
def test_memory(own: str, files: dict[str, str], expected: float, tmp_path: Path) -> None:
    (tmp_path / "own").write_text(own)
    for name, content in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(content)
    assert memory_left(tmp_path / "groups", tmp_path / "own") == expected


def test_none_where_there_are_no_control_groups(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path, tmp_path / "none") == math.inf
    assert memory_left(tmp_path, tmp_path / "none") == math.inf
