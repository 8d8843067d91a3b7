"""Run folders as `adabatch` leaves them, and a report's page taken apart, for tests of what reads them."""

import html.parser
import json
import math
import random
import struct

from adabatch import report, runs
from adabatch.report import facts, series

SAMPLES = 1437  # of the digits' training split


def write_rows(folder, rows):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def change_row(position, step, batch, lr):
    changes = {
        "batch_size": [batch, 2 * batch],
        "lr": [lr, 0.75 * lr],
        "steps_per_epoch": [SAMPLES / batch, SAMPLES / batch / 2],
        "momentum_horizon_samples": [10 * batch, 20 * batch],
        "weight_decay_per_sample": [lr * 5e-4 / batch, 0.375 * lr * 5e-4 / batch],
        "accumulation": [1, 1],
    }
    rule = "growth x2 and decay x0.375 at epoch 4"
    return {
        "event": "change",
        "position": position,
        "epoch": position / SAMPLES,
        "step": step,
        "changes": changes,
        "rule": rule,
    }


def make_rows(epochs=20, batch=32, lr=0.05, every=4, seed=0):
    """Rows as a run of AdaBatch on the digits writes them: batches of 32 to 512, an evaluation each epoch."""
    draw = random.Random(seed)
    rows, position, step = [], 0, 0
    while position < epochs * SAMPLES:
        epoch = position / SAMPLES
        if epoch >= every and batch < 512 and epoch // every > math.log2(batch / 32):
            rows.append(change_row(position, step, batch, lr))
            batch, lr = 2 * batch, 0.75 * lr
        size = min(batch, epochs * SAMPLES - position)
        position, step = position + size, step + 1
        noise = math.exp(draw.gauss(0, 1.6 / math.sqrt(size)))
        loss = 0.02 + 2.3 * math.exp(-epoch / 1.2) * noise + 0.05 * noise
        rows.append(
            {
                "event": "train",
                "position": position,
                "epoch": position / SAMPLES,
                "step": step,
                "batch_size": size,
                "micro_batch": size,
                "accumulation": 1,
                "world_size": 1,
                "lr": lr,
                "train_loss": loss,
                "train_error": round(min(0.9, loss / 3) * size) / size,
                "seconds": position / 9000,
            }
        )
        if (position - size) // SAMPLES < position // SAMPLES:
            error = 0.014 + 0.5 * math.exp(-epoch / 1.5) + draw.uniform(0, 0.004)
            rows.append(
                {
                    "event": "eval",
                    "position": position,
                    "epoch": position / SAMPLES,
                    "step": step,
                    "split": "test",
                    "weights": "raw",
                    "eval_loss": 3 * error,
                    "eval_error": error,
                    "seconds": position / 9000,
                }
            )
    return rows


def make_phases(rows):
    found = []
    for row in (r for r in rows if r["event"] == "train"):
        if not found or (row["lr"] != found[-1]["lr"]):
            found.append(
                {
                    "start_position": row["position"] - row["batch_size"],
                    "batch_size": row["batch_size"],
                    "lr": row["lr"],
                    "lr_end": row["lr"],
                    "steps": 0,
                    "seconds": 0.0,
                }
            )
        found[-1]["steps"] += 1
        found[-1]["seconds"] += row["batch_size"] / 9000
    return found


LEDGER = {
    "compute": 2.75,
    "data": 0.31,
    "exposed_communication": 0.0,
    "resize": 0.02,
    "first_compile": 0.0,
    "recompile": 0.0,
    "measuring": 0.0,
    "evaluation": 0.62,
    "checkpoint": 0.2,
    "redone": 0.0,
    "other": 1.1,
}


def make_run(folder, rows=None, state="finished", summary=True, error=None, **given):
    """A folder as `adabatch schedule=adabatch epochs=20` leaves it; `given` replaces figures of its
    summary."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = make_rows() if rows is None else rows
    write_rows(folder, rows)
    train = [r for r in rows if r["event"] == "train"]
    config = {
        "model": {"_target_": "adabatch.models.convnet.ConvNet", "width": 16, "norm": "ghost", "ghost": 32},
        "dataset": {"_target_": "adabatch.data.datasets.digits", "samples": SAMPLES},
        "schedule": {"_target_": "adabatch.schedules.Schedule", "base_batch": 32, "base_lr": 0.05},
        "seed": 0,
        "epochs": 20,
    }
    runs.write_yaml(folder / "config.yaml", config)
    runs.write_yaml(folder / "overrides.yaml", {"format": 1, "overrides": ["schedule=adabatch", "epochs=20"]})
    runs.write_json(
        folder / "environment.json",
        {
            "format": 1,
            "python": "3.11.7",
            "cpu": "AMD EPYC 7B13",
            "cores": 2,
            "gpus": [],
            "commit": {"sha": "0123abc", "changed": False},
            "versions": {"torch": "2.15.0", "numpy": "2.4.6"},
        },
    )
    owner = {"host": "node1", "pid": 4711, "started": 1.0, "job": None, "heartbeat": 2.0}
    runs.write_json(folder / "status.json", {"format": 1, "state": state, "error": error, "owner": owner})
    if summary:
        figures = {
            "format": 1,
            "identity": "0123abcd",
            "model": "ConvNet",
            "dataset": "digits",
            "schedule": "Schedule",
            "seed": 0,
            "epochs": 20,
            "steps": len(train),
            "samples": 20 * SAMPLES,
            "parameters": 75_146,
            "final_test_error": 0.0139,
            "best_test_error": 0.0111,
            "final_validation_error": None,
            "best_validation_error": None,
            "final_train_loss": 0.041,
            "train_seconds": 3.08,
            "images_per_second": 9331.2,
            "weights_sha256": "ab" * 32,
            "peak_memory_bytes": 412_000_000,
            "ledger": LEDGER,
            "phases": make_phases(rows),
        }
        runs.write_json(folder / "summary.json", figures | given)
    return folder


class Page(html.parser.HTMLParser):
    """A page as a browser takes it apart: elements with attributes, and the text that is shown."""

    def __init__(self, markup):
        super().__init__()
        self.elements, self.text, self.open = [], "", []
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data + " "

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(folder, write=False) -> Page:
    """The page alone, which is quick, or all that write_run writes."""
    if write:
        report.write_run(folder)
        source = (folder / "report.html").read_bytes()
    else:
        run = facts.read(folder)
        source = report.page.render(run, series.panels(run))
    page = Page(source.decode("utf-8"))
    page.size = len(source)
    assert page.open == [], "an element is not closed"
    return page


def png_size(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and data[-8:-4] == b"IEND"
    return struct.unpack(">II", data[16:24])
