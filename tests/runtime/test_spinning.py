"""The time that OpenMP's threads spin is set before torch is loaded, unless the user has set it."""

import os
import subprocess
import sys

import pytest

CODE = """
import os, sys
class Watch:
    def find_spec(self, name, *rest):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"))
            sys.exit()
sys.meta_path.insert(0, Watch())
from lstmlm import train
"""


@pytest.mark.system
@pytest.mark.parametrize(("own", "expected"), [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")])
def test_before_torch(own: dict[str, str], expected: str) -> None:
    clean = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    result = subprocess.run([sys.executable, "-c", CODE], env=clean | own, capture_output=True, text=True, check=True)
    assert result.stdout.split() == [expected]
