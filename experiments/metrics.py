"""Names of the metrics of a ranking."""

from nanogpt.config import Metric

METRIC_WORDS: dict[Metric, str] = {
    "val_loss": "the validation loss at the end, in nats per token",
    "best_val_loss": "the lowest validation loss, in nats per token",
    "val_bpb": "bits per byte of the validation text at the end",
    "best_val_bpb": "the lowest bits per byte of the validation text",
}
COLUMNS: dict[Metric, str] = {
    "val_loss": "final val",
    "best_val_loss": "best val",
    "val_bpb": "bits/byte",
    "best_val_bpb": "best bits/byte",
}
TITLES: dict[Metric, str] = {
    "val_loss": "final val loss",
    "best_val_loss": "best val loss",
    "val_bpb": "final bits per byte",
    "best_val_bpb": "best bits per byte",
}
AXIS_LABELS = {
    metric: title if metric.endswith("bpb") else f"{title}, nats per token" for metric, title in TITLES.items()
}
RUN_COLUMNS: dict[Metric, str] = {"val_loss": "last val", "best_val_loss": "best val", "val_bpb": "last bits/byte"}
