"""adabatch-evaluate counts the kept weights anew, and runs no stranger's code unasked."""

import contextlib
import json
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import SMALL, resolved, run

from adabatch import build, evaluate, evaluation, losses, runs
from adabatch.data.samples import TensorSamples
from adabatch.errors import UserError
from adabatch.models.convnet import ConvNet
from adabatch.ranks import Alone


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    run(folder, *SMALL, "epochs=2", "dataset.validation=50", "model.norm=group")
    return folder


def found(capsys, *arguments) -> list[dict]:
    assert evaluate.command(["--json", *map(str, arguments)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_figures_are_those_of_the_run(finished, capsys):
    summary = runs.read_json(finished / "summary.json")
    test, validation = found(capsys, finished) + found(capsys, finished, "--split", "validation")
    assert test["error"] == summary["final_test_error"] and test["samples"] == 60
    assert validation["error"] == summary["final_validation_error"] and validation["samples"] == 50


def test_several_runs_and_other_weights(finished, capsys):
    assert len(found(capsys, finished, finished)) == 2
    (other,) = found(capsys, finished, "--weights", finished / "checkpoint.pt")
    assert other["weights"].endswith("checkpoint.pt")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c["model"].update(_target_="os.system"), "names code outside adabatch: os.system"),
        (
            lambda c: c["dataset"].update(_target_="adabatch.data.cache.os.system"),
            "adabatch.data.cache.os.system",
        ),
        (lambda c: c["loss"].update(_target_="torch.hub.load"), "torch.hub.load"),
        (lambda c: c["loss"].update(_target_="mine.loss"), "--trust"),
        (lambda c: c["model"].update(width=8), "does not fit this network"),
    ],
)
def test_what_is_refused(finished, tmp_path, capsys, change, message):
    config = runs.read_yaml(finished / "config.yaml")
    change(config)
    runs.write_yaml(tmp_path / "config.yaml", config)
    (tmp_path / "weights.pt").write_bytes((finished / "weights.pt").read_bytes())
    assert evaluate.command([str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_is_no_run(tmp_path, capsys):
    assert evaluate.command([str(tmp_path)]) == 2
    assert "config.yaml" in capsys.readouterr().err


def test_flip_is_the_mean_of_the_logits_of_a_picture_and_its_mirror_image(tmp_path, capsys):
    """Counted anew with torch alone: the kept weights, the raw bytes, the labels."""
    summary = run(tmp_path / "run", *SMALL, "epochs=1", "evaluate.flip=true", "model.norm=group")
    config = runs.Run(tmp_path / "run").config
    (_, _), (images, labels) = build.make(config["dataset"], "dataset")
    net = ConvNet(10, 3, **{k: config["model"][k] for k in ("width", "norm", "ghost")}).eval()
    net.load_state_dict(torch.load(tmp_path / "run" / "weights.pt", weights_only=True))
    mean, std = (torch.tensor(config["dataset"][k]).view(-1, 1, 1) for k in ("mean", "std"))
    x = (images.float() / 255 - mean) / std
    with torch.no_grad():
        logits = (net(x) + net(torch.fliplr(x.transpose(1, 3)).transpose(1, 3))) / 2
        wrong = [(out.argmax(1) != labels).double().mean().item() for out in (logits, net(x))]
        loss = F.cross_entropy(logits, labels).item()
    row = [row for row in runs.read_rows(tmp_path / "run") if row["event"] == "eval"][-1]
    assert row["eval_error"] == summary["final_test_error"] == pytest.approx(wrong[0], abs=1e-9)
    assert row["eval_loss"] == pytest.approx(loss, rel=1e-5)
    assert row["eval_loss"] != pytest.approx(F.cross_entropy(net(x), labels).item(), rel=1e-4)
    capsys.readouterr()
    (again,) = found(capsys, tmp_path / "run")
    assert again["loss"] == row["eval_loss"] and again["error"] == row["eval_error"]


def test_views_have_the_weights_of_their_source():
    """airbench's: mirror image or not half of the time each; as it is half of the time, up and left or down
    and right a quarter each."""
    assert evaluation.views(False, 0) == ()
    assert evaluation.views(True, 0) == ((0.5, 0, False), (0.5, 0, True))
    assert evaluation.views(False, 2) == ((0.5, 0, False), (0.25, -2, False), (0.25, 2, False))
    six = {(by, side): weight for weight, by, side in evaluation.views(True, 1)}
    assert six == {(by, side): 0.25 if by == 0 else 0.125 for by in (-1, 0, 1) for side in (False, True)}


def test_a_moved_view_is_a_crop_of_the_picture_with_its_border_reflected():
    x = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
    for by, crop in {1: padded[..., :4, :5], -1: padded[..., 2:, 2:], 0: x.numpy()}.items():
        assert np.array_equal(evaluation.seen(x, by, False).numpy(), crop)
        assert np.array_equal(evaluation.seen(x, by, True).numpy(), crop[..., ::-1])


def test_an_evaluation_with_all_views_is_the_weighted_mean_of_their_logits():
    """By a network whose logits tell the views apart; in passes that do not divide the samples."""
    x = torch.randn(7, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    taps = torch.randn(3 * 4 * 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 5, bias=False).double())
    model[1].weight.data.copy_(taps.T)
    hardware = types.SimpleNamespace(
        ranks=Alone(), device="cpu", dtype=torch.float64, autocast=contextlib.nullcontext
    )
    labels = torch.arange(7) % 5
    data, shown = TensorSamples(x, labels), evaluation.views(True, 1)
    found, error = evaluation.evaluate(model, hardware, data, lambda x: x, losses.cross_entropy, 3, shown)
    padded, logits = np.pad(x.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect"), 0
    for weight, crop in ((0.25, x.numpy()), (0.125, padded[..., :4, :4]), (0.125, padded[..., 2:, 2:])):
        for side in (crop, crop[..., ::-1]):
            logits = logits + weight * torch.from_numpy(side.reshape(7, 48).copy()) @ taps
    assert found == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-12)
    assert error == (logits.argmax(1) != labels).double().mean().item()


def test_views_are_for_pictures_that_have_room_for_them():
    older = resolved()
    del older["evaluate"]["translate"]
    assert build.views(older, types.SimpleNamespace(shape=(12,)), (12,)) == ()
    wrong = {(12,): r"moves pictures .* \[12\]: evaluate.translate=0", (3, 4, 9): "got 4 for 4x9"}
    for shape, message in wrong.items():
        with pytest.raises(UserError, match=message):
            build.views(resolved("evaluate.translate=4"), types.SimpleNamespace(shape=shape), shape)
    small = types.SimpleNamespace(shape=(1, 4, 4))
    enlarged = build.views(resolved("evaluate.translate=4"), small, (3, 32, 32))
    assert enlarged == evaluation.views(False, 4), "the side is that which the network sees"
    with pytest.raises(UserError, match="evaluate.translate is a whole number of pixels from 0, got -1"):
        resolved("evaluate.translate=-1")


def test_flip_is_for_pictures():
    table = types.SimpleNamespace(shape=(12,))
    with pytest.raises(UserError, match=r"mirrors pictures .* a sample here is \[12\]: evaluate.flip=false"):
        build.views(resolved("evaluate.flip=true"), table, (12,))
    older = resolved()
    del older["evaluate"]["flip"]
    assert not build.views(older, table, (12,))
