"""The report in W&B: the runs of a project, or of one group, as a Report and as a view of the project's workspace."""

import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lstmlm.console import UserError, check, need, one_line

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import Report
    from wandb_workspaces.workspaces import Workspace

MAX_RUNS = 50  # curves in a panel; W&B shows 10 unless told
BEST = "valid/ppl.min"  # key of the lowest validation perplexity in a W&B run's summary
MISREAD = "'\\=<>"  # in a value: wandb-workspaces 0.4.13 makes == of =, >= of >, and takes quotes for its own
PINNED = [f"summary:{BEST}", "summary:test/ppl"]  # columns of the run table that stand first


def build(target: str, group: str | None) -> tuple["Report", "Workspace"]:
    """The Report and the workspace view of ENTITY/PROJECT, or of one W&B group there, not saved yet; no network is needed.

    Raises:
        UsageError: `target` names no entity and project, or the group's name cannot be filtered by.
        UserError: wandb-workspaces is not installed.
    """
    names, misread = target.split("/"), sorted(set(MISREAD) & set(group or ""))
    check(len(names) == 2 and all(names), f"--wandb takes ENTITY/PROJECT, not {target!r}")
    check(not misread, f"--group {group!r}: wandb-workspaces' filters misread {' '.join(misread)}, so it would show other runs")
    entity, project = names
    need("--wandb", "wandb-report", "wandb_workspaces")
    from wandb_workspaces import expr, workspaces
    from wandb_workspaces.reports import v2 as reports

    title = (f"lstmlm: {project}" if group is None else f"lstmlm: {project}, group {group}")[:128]  # the longest it takes
    filters = "" if group is None else expr.And(expr.Metric("Group") == group)
    order = [reports.OrderBy(reports.SummaryMetric(BEST), ascending=True)]
    runs = reports.Runset(name=group or "All runs", filters=filters, order=order, pinned_columns=PINNED)
    words = reports.P("Perplexity is exp(nll per token): lower is better. All curves are over training tokens.")
    blocks: list[Any] = [words, reports.PanelGrid(runsets=[runs], panels=list(_panels()))]
    report = reports.Report(entity=entity, project=project, title=title, width="fluid", blocks=blocks)
    runs_order = [expr.Ordering(expr.Summary(BEST), ascending=True)]
    workspace = workspaces.Workspace(
        entity=entity,
        project=project,
        # A view's name takes no symbols, which W&B calls emojis: not even an equals sign.
        name="".join(" " if unicodedata.category(letter).startswith("S") else letter for letter in title),
        sections=[workspaces.Section("Runs", panels=list(_panels()), is_open=True)],
        settings=workspaces.WorkspaceSettings(x_axis="tokens", max_runs=MAX_RUNS),
        runset_settings=workspaces.RunsetSettings(filters=filters, order=runs_order, pinned_columns=PINNED),
    )
    return report, workspace


def save(report: "Report", workspace: "Workspace") -> list[str]:
    """Save both, as new ones, and give their addresses.

    Raises:
        UserError: There is no key, or W&B does not answer or refuses.
    """
    import wandb

    try:
        if wandb.login(prompt=False, verify=True):
            return [report.save().url, workspace.save_as_new_view().url]
    except Exception as error:  # wandb's own, its transport's, and ValueError
        raise UserError(f"cannot save the report in {report.entity}/{report.project}: {one_line(error)}") from None
    raise UserError("no W&B key found: run `wandb login`")


def _panels() -> Iterator[Any]:
    """Panels on a grid of 24 columns, new ones at each call."""
    from wandb_workspaces.reports import v2 as reports

    common: dict[str, Any] = {"x": "tokens", "title_x": "training tokens", "max_runs_to_show": MAX_RUNS}

    def at(x: int, y: int, width: int = 12, height: int = 8) -> reports.Layout:
        return reports.Layout(x=x, y=y, w=width, h=height)

    def curve(title: str, key: str, unit: str, layout: reports.Layout, log_y: bool = False) -> reports.LinePlot:
        return reports.LinePlot(title=title, y=[key], title_y=unit, log_y=log_y, layout=layout, **common)

    yield curve("Validation perplexity", "valid/ppl", "perplexity", at(0, 0), log_y=True)
    yield curve("Training loss", "train/loss", "nats per token", at(12, 0))
    yield reports.BarPlot(title="Best validation perplexity", metrics=[reports.SummaryMetric(BEST)], title_x="perplexity", layout=at(0, 8))
    yield curve("Training speed", "train/tokens_per_second", "tokens per second", at(12, 8))
    yield reports.WeavePanelSummaryTable(table_name="samples", layout=at(0, 16, 24))
    yield reports.RunComparer(diff_only="split", layout=at(0, 24, 24, 9))
