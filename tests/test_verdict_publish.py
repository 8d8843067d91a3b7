"""The verdict as a W&B report, sent to a server on 127.0.0.1; wandb and wandb-workspaces run for real."""

import importlib.util
import json
import subprocess
import sys

import pytest
from page_folders import full
from sweep_folders import run
from test_verdict_command import report
from wandb_server import ENTITY, KEY, Server

from adabatch import UserError, labels
from adabatch.files import read_yaml
from adabatch.verdict import publish


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    runs = full(folder, {(32,): (0.1, 9), (32, 64): (0.1, 8)}, seeds=2)
    return folder, next(iter(runs.values()))


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """No key, no settings of the user's, nothing written outside."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    yield
    import wandb

    wandb.teardown()


def sent(server) -> tuple[dict, list]:
    (view,) = server.views
    return view, json.loads(view["spec"])["blocks"]


def test_the_report_holds_the_sentence_the_tables_and_charts_of_these_runs(swept, monkeypatch, capsys):
    folder, run = swept
    with Server() as server:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        report(capsys, folder, "--wandb", "adabatch")
        view, blocks = sent(server)
    said = json.loads((folder / "report.json").read_text())
    assert (view["entityName"], view["projectName"]) == (ENTITY, "adabatch")
    assert view["displayName"] == said["verdict"][:120]
    (text,) = [block["content"] for block in blocks if block["type"] == "markdown-block"]
    assert "interim, no verdict: n = 2" in text and "| fixed 32 | 2 |" in text and "adabatch 32-64" in text
    (grid,) = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
    (chosen,) = grid["runSets"]
    (filters,) = chosen["filters"]["filters"]
    group = labels.comparison(read_yaml(run / "config.yaml"), run)
    assert (filters["key"], filters["op"], filters["value"]) == (
        {"section": "run", "name": "group"}, "=", group)  # fmt: skip
    assert chosen["grouping"] == [{"section": "config", "name": "arm.value"}]
    drawn = json.dumps(grid)
    for key in ("test/error", "batch_size", "noise_scale", "summary:final_test_error"):
        assert f'"{key}"' in drawn, key
    for axis in ("epoch", "step", "seconds"):
        assert f'"xAxis": "{axis}"' in drawn, axis


def test_the_report_is_of_the_arms_not_of_the_search(tmp_path):
    """The first run in order is one that searched for a learning rate."""
    for stage, name in (("tuning", "tuning"), ("verdict", "x")):
        run(tmp_path / name, 0, (32,), 0.1, 9.0, config={"compare": {"arm": "fixed 32", "stage": stage}})
    (tmp_path / "compare.yaml").write_text("delta: 1.0\n")
    folders = sorted(path.parent for path in tmp_path.glob("*/*/config.yaml"))
    assert folders[0].parent.name == "tuning"
    assert publish.group_of(folders) == tmp_path.name
    with pytest.raises(UserError, match="no run has begun"):
        publish.group_of(folders[:1])


def test_without_a_key_the_files_are_written_and_the_message_says_what_to_do(swept, capsys):
    folder, _ = swept
    (folder / "report.html").unlink(missing_ok=True)
    assert "run `wandb login`, then this again" in report(capsys, folder, "--wandb", "a/b", code=2)
    assert (folder / "report.html").is_file()


def test_a_server_that_refuses_is_no_traceback(swept, monkeypatch, capsys):
    folder, _ = swept
    with Server("refuse") as server:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        said = report(capsys, folder, "--wandb", "me/p", code=2)
    assert (
        said.startswith("adabatch-report: --wandb me/p: the report was not saved (")
        and "\n" not in said.strip()
    )


def test_without_the_extra_the_command_names_it(swept, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'adabatch[dashboards]'" in report(capsys, swept[0], "--wandb", "p", code=2)


def test_a_report_that_is_not_published_loads_no_wandb(swept):
    code = (
        "import sys; from adabatch.verdict import command; command.command(sys.argv[1:]); "
        "print([m for m in ('torch', 'wandb', 'wandb_workspaces', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, swept[0]], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
