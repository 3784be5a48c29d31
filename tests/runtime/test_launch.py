"""Launches that are refused before anything starts."""

import pytest

from lstmlm.console import UsageError
from lstmlm.runtime.launch import FOREIGN, check_launch


@pytest.mark.parametrize("name", FOREIGN)
def test_settings_of_other_launchers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in (*FOREIGN, "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(other, raising=False)
    for harmless in ("", "no", "false", "NO"):
        monkeypatch.setenv(name, harmless)
        check_launch()
    monkeypatch.setenv(name, "inductor" if "DYNAMO" in name else "true")
    with pytest.raises(UsageError, match=name):
        check_launch()
