"""Bring your own: network, data, loss and optimizer of the user's, named by `_target_`, nothing touched in
adabatch."""

import sys
import types

import pytest
import torch
from support import QUIET, outcome, resolved, run
from torch import nn

from adabatch.errors import UserError


@pytest.fixture(autouse=True)
def mine(monkeypatch):
    """A module `mine` as a user's file would be."""
    module = types.ModuleType("mine")

    def table(n: int = 96):
        g = torch.Generator().manual_seed(0)
        x = torch.randn(n, 5, generator=g)
        y = (x.sum(1) > 0).long()
        return (x[: n // 2], y[: n // 2]), (x[n // 2 :], y[n // 2 :])

    class Map:
        def __init__(self, n):
            self.n = n

        def __len__(self):
            return self.n

        def __getitem__(self, i):
            return torch.full((3,), float(i)), i % 2

    def regression():
        x = torch.linspace(-1, 1, 64)[:, None]
        return (x, 2 * x), (x, 2 * x)

    def tokens(vocabulary: int = 7, length: int = 6):
        x = (torch.arange(64)[:, None] + torch.arange(length + 1)) % vocabulary
        return (x[:48, :-1], x[:48, 1:]), (x[48:, :-1], x[48:, 1:])

    class Language(nn.Module):
        def __init__(self, num_classes, width: int = 8):
            super().__init__()
            self.net = nn.Sequential(nn.Embedding(num_classes, width), nn.Linear(width, num_classes))

        def forward(self, x):
            return self.net(x)

    module.table, module.Language, module.tokens, module.regression = table, Language, tokens, regression
    module.pairs = lambda: (Map(40), Map(8))
    module.wrong = lambda: "nothing"
    module.Linear = type(
        "Linear",
        (nn.Linear,),
        {"__init__": lambda self, num_classes, shape: nn.Linear.__init__(self, shape[0], num_classes)},
    )
    module.squared = lambda outputs, labels: (outputs - labels).pow(2).sum(1)
    module.mean_squared = lambda outputs, labels: (outputs - labels).pow(2).mean()
    monkeypatch.setitem(sys.modules, "mine", module)
    return module


OWN = ("model._target_=mine.Linear", "epochs=2", "schedule.base_batch=8")


def test_a_table(tmp_path):
    summary = run(tmp_path / "run", *OWN, "dataset._target_=mine.table", "epochs=20")
    assert summary["parameters"] == 12 and summary["samples"] == 48 * 20
    assert summary["final_test_error"] < 0.2


def test_arguments_of_a_loader_come_from_the_command_line(tmp_path):
    assert run(tmp_path / "run", *OWN, "dataset._target_=mine.table", "+dataset.n=40")["samples"] == 40


def test_a_map_style_dataset_with_limit_and_validation(tmp_path):
    summary = run(
        tmp_path / "run",
        *OWN,
        "dataset._target_=mine.pairs",
        "dataset.validation=10",
        "dataset.limit=20",
        "dataset.classes=2",
    )
    assert summary["samples"] == 40 and summary["final_validation_error"] is not None


def test_regression_has_a_loss_and_no_error(tmp_path):
    summary = run(
        tmp_path / "run", *OWN, "dataset._target_=mine.regression", "loss._target_=mine.squared", "epochs=50"
    )
    assert summary["final_test_error"] is None and summary["final_train_loss"] < 1e-2
    assert all(
        row["train_error"] is None for row in outcome(tmp_path / "run")["rows"] if row["event"] == "train"
    )


def test_tokens_train_with_the_default_loss(tmp_path):
    summary = run(
        tmp_path / "run",
        "model._target_=mine.Language",
        "dataset._target_=mine.tokens",
        "epochs=60",
        "schedule.base_batch=8",
        "schedule.base_lr=0.5",
    )
    assert summary["final_test_error"] == 0  # the next token is the last one plus one


def test_a_loss_that_averages_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(UserError, match="one value per sample"):
        run(tmp_path / "run", *OWN, "dataset._target_=mine.regression", "loss._target_=mine.mean_squared")


def test_a_loader_that_returns_no_splits_is_refused(tmp_path):
    with pytest.raises(UserError, match="returns \\(train, test\\)"):
        run(tmp_path / "run", *OWN, "dataset._target_=mine.wrong")


def test_label_smoothing_needs_a_loss_that_knows_it(tmp_path):
    with pytest.raises(UserError, match="label_smoothing=0.1 needs a loss"):
        run(
            tmp_path / "run",
            *OWN,
            "dataset._target_=mine.regression",
            "loss._target_=mine.squared",
            "label_smoothing=0.1",
        )


def test_torch_optimizers_come_by_target(tmp_path):
    """The same SGD by torch and by us, through the whole run, bit for bit."""
    common = (*OWN, "dataset._target_=mine.table", "schedule=adabatch", "clip_norm=0.5")
    run(tmp_path / "ours", *common)
    run(tmp_path / "torch", *common, "optimizer._target_=torch.optim.SGD", "+optimizer.foreach=false")
    assert outcome(tmp_path / "ours")["weights"] == outcome(tmp_path / "torch")["weights"]


def test_adamw_scales_by_the_square_root(tmp_path):
    run(
        tmp_path / "run",
        *OWN,
        "dataset._target_=mine.table",
        "schedule=adabatch",
        "optimizer=adamw",
        "schedule.decay.factor=1",
        "schedule.base_lr=0.01",
    )
    lrs = {
        row["batch_size"]: row["lr"]
        for row in outcome(tmp_path / "run")["rows"]
        if row["event"] == "train" and row["batch_size"] >= 8
    }
    assert lrs[16] == pytest.approx(0.01 * 2**0.5) and lrs[32] == pytest.approx(0.02)


def test_quiet_is_what_the_tests_run_under():
    assert resolved()["trackers"]["wandb"]["mode"] == "disabled" and "hardware.threads=1" in QUIET


def test_labels_outside_the_classes_are_refused_at_the_start(tmp_path, mine):
    mine.odd = lambda: (
        (torch.zeros(4, 2), torch.tensor([0, 1, -1, 1])),
        (torch.zeros(2, 2), torch.tensor([0, 1])),
    )
    with pytest.raises(UserError, match="whole numbers from 0 to 1 for 2 classes; mine.odd gave -1 to 1"):
        run(tmp_path / "run", *OWN, "dataset._target_=mine.odd")
