"""adabatch-report: what it prints and writes, and that a stranger's folders can do nothing."""

import csv
import io
import json
import math
import os
import re
import subprocess
import sys

import pytest
from sweep_folders import CONFIG, ENVIRONMENT, run, setting, sweep
from test_report_hostile import NASTY, VALUES

from adabatch import runs
from adabatch.verdict import command, formats, table
from adabatch.verdict.arms import LOOKS
from adabatch.verdict.folders import look
from adabatch.verdict.plan import digest


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """Room for every column, whatever terminal the suite runs in; tests of narrow ones set their own."""
    monkeypatch.setenv("COLUMNS", "200")


def report(capsys, *arguments, code=0):
    """What the command prints; its exit code is `code`."""
    found = command.command([str(a) for a in arguments])
    said = capsys.readouterr()
    assert found == code, said.err
    return said.err if code else said.out


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    sweep(folder)
    return folder


def test_the_sentence_comes_first(swept, capsys):
    shown = report(capsys, swept)
    assert shown.startswith("adaptive: 1.4")
    made = json.loads((swept / "report.json").read_text())
    assert " ".join(shown.split("\n\n")[0].split()) == made["verdict"]
    assert {"verdict", "decision", "arms", "comparisons"} <= set(made) and made["format"] == 1
    assert made["decision"] == "adaptive" and made["winner"] == "adabatch 32-512"
    assert made["settings"] == {
        "delta": 0.01, "r0": 1.05, "alpha": 0.05, "looks": list(LOOKS), "split": "test", "evaluated": 10_000,
        "tuned": False, "target": None, "remark": "looks were not declared beforehand",
    }  # fmt: skip


def test_json_is_what_the_file_holds(swept, capsys):
    shown = report(capsys, swept, "--json", "--target", 0.1)
    assert json.loads(shown) == json.loads((swept / "report.json").read_text())
    made = json.loads(shown)
    assert [arm["arm"] for arm in made["arms"]] == ["fixed 32", "fixed 128", "fixed 512", "adabatch 32-512"]
    assert len(made["comparisons"]) == 6
    first = made["comparisons"][0]
    assert first["candidate"] == "adabatch 32-512" and first["beats"] is True
    assert (
        first["error_ci95"][0] < first["error_ci90"][0] < first["error_difference"] < first["error_ci90"][1]
    )
    assert first["not_worse"]["holds"] and first["not_worse"]["limit"] < 0.01
    assert first["speed"]["limit"] < first["speed"]["ci95"][0] < first["speed"]["ratio"]
    assert first["equal_within_margin"] == (first["tost_p"] < 0.05)
    assert len(first["target_ratio_ci95"]) == 2


@pytest.mark.parametrize("width", [80, 100, 140])
def test_text_fits_the_window(swept, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    shown = report(capsys, swept, "--target", 0.1)
    lines = shown.splitlines()
    assert max(map(len, lines)) <= width
    for name in ("fixed 32", "fixed 128", "fixed 512", "adabatch 32-512"):
        assert sum(line.startswith(name + " ") for line in lines) >= 2  # as an arm and as a candidate
    headings = " ".join(line for line in lines if line.startswith(("arm  ", "candidate  ", "rival  ")))
    gone = ", ".join(re.findall(r"\(no room for: ([^)]*)\)", " ".join(shown.split()))).split(", ")
    for name in ("updates", "seconds", "reached 10 %", "speed [95 %]", "TOST p", "correlation"):
        assert (name in headings) != (name in gone), name
    assert all(name in headings for name in ("final error [95 %]", "seconds", "shows", "error, pp [90 %]"))


def test_both_halves_of_a_verdict_are_shown_however_narrow_the_window(tmp_path, capsys, monkeypatch):
    """Errors and speeds: where names leave no room beside each other, a candidate stands above its rivals."""
    for seed in range(2):
        for batches, named in (((32,), "a fixed arm of a long name"), ((32, 512), "an adaptive arm of one")):
            config = {"compare.arm": named, "compare.stage": "verdict"}
            run(tmp_path, seed, batches, 0.4 - 0.3 * seed, 9.0 + 90 * seed * len(batches), config=config)
    tables = {}
    for width in (80, 140):
        monkeypatch.setenv("COLUMNS", str(width))
        tables[width] = report(capsys, tmp_path).splitlines()
        assert any("error, pp [90 %]" in line and "speed [95 %]" in line for line in tables[width])
    wide = [line for line in tables[140] if line.startswith("candidate ")]
    above = [line for line in tables[80] if line.endswith(" against")]
    assert wide and above == ["an adaptive arm of one against", "a fixed arm of a long name against"]
    beside = [tables[80][tables[80].index(line) + 1].split("  ")[0].strip() for line in above]
    assert [name[:8] for name in beside] == ["a fixed ", "an adapt"] and max(map(len, tables[80])) <= 80


def test_an_interval_of_errors_stays_where_errors_are():
    assert table.percent([0.01, 0.1]).endswith("[0.00, 62.68]")  # 5.5 +- 12.706 * 4.5
    assert table.percent([0.9, 0.99]).endswith("[37.32, 100.00]")


def test_the_figures_of_an_arm(tmp_path, capsys):
    """The table of arms written out: mean, t interval, updates, seconds, rate, device-hours, target."""
    for seed, (error, seconds) in enumerate(zip((0.08, 0.10, 0.09), (3600.0, 7200.0, 3600.0))):
        run(tmp_path, seed, (32,), error, seconds, device_seconds=2 * seconds, images_per_second=1.5)
    run(tmp_path, 3, (32,), 0.0, 1.0, state="diverged")
    line, _ = [  # the second is of the repeated runs
        x for x in report(capsys, tmp_path, "--target", 0.093).splitlines() if x.startswith("fixed 32")
    ]
    # t[2 df, 97.5 %] = 4.3027; sd 0.01 / sqrt 3 -> +-2.48 pp
    assert "9.00 % [6.52, 11.48]" in line and "8.90 % [6.42, 11.38]" in line
    assert "3 of 4" in line and "313" in line and "4,800" in line and "1.5" in line
    assert "3/4 [0.19, 0.99]" in line and line.endswith("1 diverged")
    (arm,) = json.loads((tmp_path / "report.json").read_text())["arms"]
    assert arm["device_hours"] == pytest.approx(8 / 3)
    assert arm["median_time_to_target"] is not None and arm["reached"] == 0.75
    report(capsys, tmp_path, "--target", 0.0001)
    (arm,) = json.loads((tmp_path / "report.json").read_text())["arms"]
    assert arm["median_time_to_target"] is None and arm["reached"] in (0, 0.25)


def test_repeated_runs_are_told_by_least_mean_median_and_the_share_at_the_target(tmp_path, capsys):
    """Final errors and times by hand; a run that reached the target only in between does not count, nor does
    one that diverged, which is among those that are over."""
    errors, seconds = [0.0620, 0.0580, 0.0590, 0.0600], [8.0, 7.0, 7.5, 9.5]
    for seed, (error, took) in enumerate(zip(errors, seconds)):
        run(tmp_path, seed, (32,), error, took)
    run(tmp_path, 9, (32,), 0.0, 1.0, state="diverged")
    shown = report(capsys, tmp_path, "--target", 0.06)
    row = next(line for line in shown.split("\n") if "5.80 / 5.97 / 5.95 %" in line)
    assert "3/5 [0.15, 0.95]" in row and "7 / 8 / 7.75 s" in row
    assert "at 6 % or less" in shown and "final error: min / mean / median" in shown
    (arm,) = json.loads((tmp_path / "report.json").read_text())["arms"]
    assert (arm["final_error_min"], arm["seconds_min"], arm["seconds_median"]) == (0.058, 7.0, 7.75)
    assert arm["final_error_median"] == pytest.approx(0.0595)
    assert arm["over"] == 5 and arm["at_target"] == pytest.approx(0.6)
    assert "5.80 / 5.97 / 5.95 %" in (tmp_path / "report.html").read_text()
    assert "5.80 / 5.97 / 5.95" in report(capsys, tmp_path, "--target", 0.06, "--format", "markdown")
    without = report(capsys, tmp_path)
    assert "min / mean / median" not in without
    assert "at_target" not in json.loads((tmp_path / "report.json").read_text())["arms"][0]


def test_one_run_says_what_is_missing(tmp_path, capsys):
    folder = run(tmp_path, 0, (32,), 0.1, 9.0)
    shown = " ".join(report(capsys, folder).split())
    assert shown.startswith(
        "interim, no verdict: this is one run. A verdict takes an adaptive and a fixed arm"
    )
    assert "5 seeds of each: adabatch -m experiment=compare and this run's other overrides" in shown
    assert "10.00 %" in shown
    assert (folder / "report.json").is_file()


def test_one_run_of_a_declared_comparison_is_told_as_that(tmp_path, capsys):
    run(tmp_path, 0, (32,), 0.1, 9, config={"compare": {"arm": "fixed 32", "stage": "verdict"}})
    arms = [{"name": name, "adaptive": name == "ada", "overrides": []} for name in ("fixed 32", "ada")]
    content = {"delta": 1.0, "looks": [5], "arms": arms}
    runs.write_yaml(tmp_path / "compare.yaml", {**content, "sha256": digest(content)})
    assert report(capsys, tmp_path).startswith("interim, no verdict: no adaptive arm was run")


def test_validation_has_a_verdict_of_its_own(tmp_path, capsys):
    """Test decides; the other split's verdict is a note, and may differ."""
    for seed in range(5):
        wobble, times = 0.001 * (seed % 3), (1 + 0.01 * seed, 1 + 0.01 * (seed % 2))
        given = {"config": {"dataset.validation": 8000}, "best_test_error": None}
        run(tmp_path, seed, (32,), 0.1 + wobble, 100 * times[0], final_validation_error=0.2 + wobble, **given)
        run(
            tmp_path,
            seed,
            (32, 64),
            0.1 + wobble,
            50 * times[1],
            final_validation_error=0.3 - wobble,
            **given,
        )
    shown = " ".join(report(capsys, tmp_path, "--looks", "5").split())
    assert shown.startswith("adaptive: ") and "same set" not in shown
    assert "note: on 8,000 validation samples: fixed 32: more accurate than adabatch 32-64 by" in shown
    assert "validation [95 %]" in shown


def test_dawnbench(tmp_path, capsys):
    folder = run(tmp_path, 0, (32,), 0.1, 7200.0)
    lines = report(capsys, folder, "--format", "dawnbench").splitlines()
    assert lines[0] == "epoch\thours\ttop1Accuracy"
    assert lines[-1] == "10\t2.00000000\t90.00" and len(lines) == 11
    run(tmp_path, 1, (32,), 0.1, 7200.0)
    assert "is about one run, and these are 2" in report(capsys, tmp_path, "--format", "dawnbench", code=2)


def test_dawnbench_is_of_the_test_split(tmp_path, capsys):
    """Of a run that watched a validation split: the row at its end, and a remark beside the table."""
    folder = run(tmp_path, 0, (32,), 0.1, 7200.0, config={"dataset.validation": 200})
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    watched = [r | {"split": "validation", "eval_error": 0.07} for r in rows if r["event"] == "eval"]
    lines = [r for r in rows if r["event"] == "train"] + watched + [rows[-1]]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
    assert command.command([str(folder), "--format", "dawnbench"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == ["epoch\thours\ttop1Accuracy", "10\t2.00000000\t90.00"]
    assert "test split" in said.err and "dataset.validation=0" in said.err


def test_csv_is_one_table_of_numbers(swept, capsys):
    rows = list(csv.DictReader(io.StringIO(report(capsys, swept, "--format", "csv", "--target", 0.0001))))
    assert [row["arm"] for row in rows] == ["fixed 32", "fixed 128", "fixed 512", "adabatch 32-512"]
    for row in rows:
        assert float(row["final_error_low"]) < float(row["final_error"]) < float(row["final_error_high"])
        assert row["reached"] == "0.0" and float(row["median_time_to_target"]) == math.inf


def test_markdown_and_latex_have_whole_tables(swept, capsys):
    lines = report(capsys, swept, "--format", "markdown").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows[:6]}) == 1 and len(rows) == 6 + 8
    assert lines[0].startswith("**adaptive: ") and lines[0].endswith("**")
    shown = report(capsys, swept, "--format", "latex")
    assert shown.count(r"\begin{tabular}") == shown.count(r"\end{tabular}") == 2
    assert shown.splitlines()[0].startswith("% adaptive: ")


def test_where_the_file_goes(swept, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    report(capsys, swept, "--out", tmp_path / "out")
    assert (tmp_path / "out/report.json").is_file()
    assert "there is no such folder" in report(capsys, swept, "--out", tmp_path / "no", code=2)
    link = swept / "report.json"
    link.unlink(missing_ok=True)
    (tmp_path / "kept").write_text("mine")
    link.symlink_to(tmp_path / "kept")  # a stranger's link is replaced, not followed
    report(capsys, swept)
    assert (tmp_path / "kept").read_text() == "mine" and not link.is_symlink()


def test_a_file_that_cannot_be_written_is_said_and_the_report_shown(swept, capsys):
    (swept / "report.json").unlink(missing_ok=True)
    (swept / "report.json").mkdir()
    try:
        assert command.command([str(swept)]) == 0
        said = capsys.readouterr()
        assert "report.json was not written (Is a directory): say where with --out" in said.err
        assert said.out.startswith("adaptive: ") and not list(swept.glob(".report*"))
        assert command.command([str(swept), "--plot", "no/such/folder.svg"]) == 2, "that was asked for"
        assert capsys.readouterr().out.startswith("adaptive: ")
    finally:
        (swept / "report.json").rmdir()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--delta", "0"], "--delta is percentage points by which an error may be worse, from 0.001 to 50"),
        (["--delta", "nan"], "invalid number value: 'nan'"),
        (["--r0", "0.9"], "--r0 is the ratio"),
        (["--looks", "5,x"], "looks are ascending numbers of runs"),
        (["--looks", "20,5"], "looks are ascending"),
        (["--target", "9"], "--target is an error rate: 10 % is 0.1"),
        (["--fromat", "csv"], "Did you mean '--format'?"),
        (["--format", "html"], "invalid choice: 'html'"),
        (["nowhere"], "nowhere: there is no such folder"),
    ],
)
def test_mistakes(swept, capsys, arguments, words):
    assert words in report(capsys, swept, *arguments, code=2)


def test_the_command_needs_no_torch(swept):
    code = "import sys; from adabatch.verdict import command; command.command(sys.argv[1:]); "
    code += "print([m for m in ('torch', 'matplotlib', 'wandb') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code, swept], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


# -- strangers ---------------------------------------------------------------------------------------


def nasty_run(parent, value, seed, target):
    """A run that has `value` in one place of each file, or in one file wherever a value goes."""
    folder = run(parent, seed, (32,), 0.1, 9.0)
    files = {
        name: runs.read_json(folder / name) for name in ("summary.json", "environment.json", "status.json")
    }
    config = runs.read_yaml(folder / "config.yaml")
    if target == "config":
        config = setting(CONFIG, {"schedule": {"base_batch": value, str(value)[:50]: value}, "seed": seed})
        config["options"] = {"schedule": value}
    elif target == "hardware":
        config = setting(CONFIG, {"hardware": {"device": value, str(value)[:50]: value}, "seed": seed})
        files["environment.json"] = setting(ENVIRONMENT, {"gpus": [value], "cpu": value, "versions": value})
    elif target == "seed":
        config = setting(CONFIG, {"seed": value, "shadow": value, "rehearsal": None})
    elif target == "rows":
        row = {"event": "eval", "split": "test", "epoch": value, "seconds": value, "eval_error": value}
        train = {"event": "train", "batch_size": value, "divisor": value, "world_size": value}
        lines = [json.dumps(r) for r in (row, {**row, "epoch": 1.0}, {**row, "eval_error": 0.1}, train)]
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    else:
        found = files[target]
        files[target] = {k: v if k == "format" else value for k, v in found.items()}
        if target == "summary.json":
            files[target]["phases"] = [value, {"batch_size": value}, {"batch_size": 32}]
    (folder / "config.yaml").write_text(json.dumps(config))
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


TARGETS = ("config", "hardware", "seed", "rows", "summary.json", "environment.json", "status.json")


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_hostile_values(tmp_path, capsys, value):
    """Any value anywhere: a report is written or a folder refused by name, and no character escapes."""
    for target in TARGETS:
        parent = tmp_path / target
        for seed in range(2):
            run(parent, seed, (32, 64), 0.1, 5.0)
            nasty_run(parent, value, seed, target)
        code = command.command([str(parent), "--looks", "2", "--target", "0.2"])
        said = capsys.readouterr()
        assert code == 0, said.err
        assert all(c.isprintable() or c == "\n" for c in said.out + said.err), target
        found = look([str(parent)], {"looks": (2,), "target": 0.2})
        verdict = command.verdict_of(found)
        for form in ("text", "markdown", "latex", "csv"):
            shown = command.printed(verdict, found, form)
            assert all(c.isprintable() or c == "\n" for c in shown) and len(shown) < 20_000, target
            safe(form, shown)
        assert json.loads((parent / "report.json").read_text())["format"] == 1


def safe(form, shown):
    """Nothing of a stranger's text has a meaning in this format."""
    if form == "latex":
        body = re.sub(r"\\(textbackslash|text\w+)\{\}|\\[{}$&#%_]", "", shown)
        body = re.sub(r"\\(begin|end)\{tabular\}(\{[lr]+\})?|\\(top|mid|bottom)rule|\\\\\n", "", body)
        body = re.sub(r"\{[\[\]]\}", "", body)
        assert "\\" not in body and "$" not in body and "^" not in body and "_" not in body
        assert shown.isascii()
    elif form == "markdown":
        assert not re.search(r"(?<!\\)[<`_$]", shown)
    elif form == "csv":
        rows = list(csv.reader(io.StringIO(shown)))
        assert {len(row) for row in rows} == {len(formats.ARMS)}
        assert not any(row[0].startswith(("=", "+", "-", "@")) for row in rows)


@pytest.mark.parametrize("name", [n for n in NASTY if "\x00" not in n and "\ud800" not in n and len(n) < 200])
def test_hostile_folder_names(tmp_path, capsys, name):
    parent = tmp_path / name.replace("/", "_")
    for seed in range(2):
        run(parent, seed, (32,), 0.1, 9.0)
    folder = run(parent, 2, (32,), 0.1, 9.0)
    (folder / "summary.json").write_text("{" * 1000)
    folder.rename(parent / f"\x1b[31m{name.replace('/', '_')}\u202e")
    for form in ("text", "markdown", "latex"):
        shown = report(capsys, parent, "--format", form)
        assert "\x1b" not in shown and "\u202e" not in shown and "summary.json" in shown.replace("\\", "")
        safe(form, shown)


def test_files_that_are_none(tmp_path, capsys):
    """Pipes are not waited for, folders and broken files are named, and the others are still compared."""
    sweep(tmp_path, seeds=2)
    for i, name in enumerate(("config.yaml", "summary.json", "metrics.jsonl", "environment.json")):
        folder = run(tmp_path / "x", 10 + i, (32,), 0.1, 9.0)
        (folder / name).unlink()
        os.mkfifo(folder / name) if i % 2 == 0 else (folder / name).mkdir()
    broken = run(tmp_path / "y", 20, (32,), 0.1, 9.0)
    (broken / "config.yaml").write_text("a: &x [1]\nb: *x\n")
    deep = run(tmp_path / "y", 21, (32,), 0.1, 9.0)
    node = {}
    for _ in range(100):
        node = {"a": node}
    (deep / "config.yaml").write_text(json.dumps(CONFIG | {"schedule": node, "seed": 21}))
    wide = run(tmp_path / "y", 22, (32,), 0.1, 9.0)
    (wide / "config.yaml").write_text(
        json.dumps(CONFIG | {"schedule": dict.fromkeys(map(str, range(9000)), 1)})
    )
    shown = " ".join(report(capsys, tmp_path).split())
    for name in ("config.yaml", "summary.json", "metrics.jsonl", "environment.json"):
        assert f"/{name} is no file" in shown
    assert "config.yaml is not valid YAML" in shown
    assert "nested deeper than any configuration" in shown and "more keys than any configuration" in shown
    assert shown.startswith("interim, no verdict: 7 runs have not begun or cannot be read")
    assert "adabatch 32-512" in shown


def test_nothing_of_a_folder_runs(tmp_path, capsys):
    """A _target_ is a text here, and a tag of YAML is refused."""
    run(tmp_path, 0, (32,), 0.1, 9.0, config={"schedule._target_": "os.system", "model._target_": "os.abort"})
    report(capsys, tmp_path)
    bad = run(tmp_path, 1, (32,), 0.1, 9.0)
    (bad / "config.yaml").write_text("!!python/object/apply:os.system ['touch pwned']\n")
    assert "not valid YAML" in report(capsys, tmp_path)
    assert not os.path.exists("pwned")


@pytest.mark.parametrize(
    "limits, shown",
    [
        ((1.1, 1.52), "[1.10, 1.52]"), ((1.3, None), "> 1.30"), ((None, 0.8), "< 0.80"), (None, "-"),
        ((None, None), "not bounded"), ((math.inf, None), "rival missed"), ((None, 0.0), "missed"),
    ],
)  # fmt: skip
def test_the_limits_of_the_time_to_the_target(limits, shown):
    assert table._bounds(limits) == shown


def test_a_name_is_cut_in_its_middle():
    assert table.middle("adabatch 32-512", 30) == "adabatch 32-512"
    assert table.middle("a" * 20 + "b" * 20, 12) == "aaaaa..bbbbb"
