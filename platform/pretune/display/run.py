"""What `pretune train` prints: a line for each epoch, and the last one in full."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pretune.display import format
from trainers.report import EpochReport


def line(report: EpochReport, epochs: int) -> str:
    """`epoch 3 of 8: probe/linear 0.712 ± 0.020, probe/knn 0.690 ± 0.021, loss 1.23, 1,240 img/s`."""
    metrics = report.metrics
    parts = [
        f"{name} {format.score(metrics[name], metrics.get(f'{name}_stderr'))}"
        for name in ("probe/linear", "probe/knn")
        if name in metrics
    ]
    if not parts and "health/embedding/effective_rank" in metrics:  # of data without labels
        parts.append(f"effective rank {metrics['health/embedding/effective_rank']:.3g}")
    if "loss/total" in metrics:
        parts.append(f"loss {metrics['loss/total']:.4g}")
    if "time/images_per_s" in metrics:
        parts.append(format.rate(metrics["time/images_per_s"]))
    return f"epoch {report.epoch} of {epochs}: {', '.join(parts)}"


def closing(report: EpochReport) -> RenderableType:
    """The last epoch in full: every probe, the parts of the loss, the health of the representation, the cost."""
    metrics = report.metrics
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, label in (
        ("probe/linear", "linear probe, as in a search"),
        ("probe/knn", "kNN, as in a search"),
        ("probe/full_linear", "linear probe, all labels"),
        ("probe/full_knn", "kNN, all labels"),
    ):
        if name in metrics:
            table.add_row(label, format.score(metrics[name], metrics.get(f"{name}_stderr")))
    losses = [(name.removeprefix("loss/"), value) for name, value in metrics.items() if name.startswith("loss/")]
    table.add_row("loss", ", ".join(f"{name} {value:.4g}" for name, value in losses))
    for kind in ("features", "embedding"):
        rank = metrics.get(f"health/{kind}/effective_rank")
        if rank is not None:
            table.add_row(f"effective rank, {kind}", f"{rank:.3g}")
    if "budget/seconds" in metrics:
        table.add_row("training time", format.duration(metrics["budget/seconds"]))
    judged = "probe/linear" in metrics
    note = "accuracies are on `select`, ± standard error" if judged else "ranks are of images of `select`"
    return Group(Text(note, style="dim"), table)
