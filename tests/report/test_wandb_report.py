"""The report in W&B, built by the real library without a network."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("wandb_workspaces")

from lstmlm.console import UsageError
from lstmlm.report.wandb_report import build
from tests.system.launcher import error_lines

PANELS = [
    ("Run History Line Plot", "valid/ppl"),
    ("Run History Line Plot", "train/loss"),
    ("Bar Chart", "summary_metrics.valid/ppl.min"),
    ("Run History Line Plot", "train/tokens_per_second"),
    ("Weave", "samples"),
    ("Run Comparer", "split"),
]


def assert_panels(panels: list[dict[str, Any]]) -> None:
    for panel, (kind, shown) in zip(panels, PANELS, strict=True):
        assert panel["viewType"] == kind
        assert json.dumps(shown) in json.dumps(panel["config"])
        if kind == "Run History Line Plot":
            assert panel["config"]["metrics"] == [shown]
            assert panel["config"]["xAxis"] == "tokens"
            assert panel["config"]["limit"] == 50
    cells = [
        (x, y)
        for layout in (panel["layout"] for panel in panels)
        for x in range(layout["x"], layout["x"] + layout["w"])
        for y in range(layout["y"], layout["y"] + layout["h"])
    ]
    assert len(set(cells)) == len(cells), "no panel lies on another"
    assert max(x for x, _ in cells) < 24


def assert_run_set(runs: dict[str, Any], group: str | None) -> None:
    filters = [(one["key"]["section"], one["key"]["name"], one["op"], one["value"]) for one in runs["filters"]["filters"]]
    assert filters == ([("run", "group", "=", group)] if group else [])
    assert runs["sort"]["keys"] == [{"key": {"section": "summary", "name": "valid/ppl.min"}, "ascending": True}]
    assert runs["runFeed"]["columnPinned"]["summary:valid/ppl.min"] is True


@pytest.mark.parametrize("group", [None, "dropout", 'of "two" & more, (a) or b'])
def test_report_and_workspace_hold_the_same(group: str | None) -> None:
    report, workspace = build("somebody/lm", group)
    built = {"report": report._to_model(), "workspace": workspace._to_model()}  # private, but the only way without a network
    views = {name: view.model_dump(mode="json", by_alias=True, exclude_none=True) for name, view in built.items()}
    (grid,) = [block for block in views["report"]["spec"]["blocks"] if block["type"] == "panel-grid"]
    (runs,) = grid["metadata"]["runSets"]
    assert_run_set(runs, group)
    assert_panels(grid["metadata"]["panelBankSectionConfig"]["panels"])
    section = views["workspace"]["spec"]["section"]
    assert_run_set(section["runSets"][0], group)
    (shown,) = [one for one in section["panelBankConfig"]["sections"] if one["panels"]]
    assert_panels(shown["panels"])
    assert group is None or group in views["report"]["displayName"]


@pytest.mark.parametrize(
    ("target", "group", "message"),
    [(target, None, "--wandb takes ENTITY/PROJECT") for target in ("lm", "a/b/c", "/lm", "somebody/", "")]
    + [("somebody/lm", group, "wandb-workspaces' filters misread") for group in ("lr=0.1", "a>b", "a<b", "it's", "a\\b")],
)
def test_what_cannot_be_shown_is_refused(target: str, group: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(target, group)


def test_the_command(cli: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    nobody = {"WANDB_API_KEY": "", "HOME": str(tmp_path / "home"), "NETRC": str(tmp_path / "none")}
    command = ("--wandb", "somebody/lm", "--group", "g")
    result = cli("report", *command, cwd=tmp_path, env=nobody)
    assert (result.returncode, result.stdout) == (1, "")
    assert "no W&B key found" in error_lines(result.stderr)[0]
