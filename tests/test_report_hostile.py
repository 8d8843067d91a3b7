"""Run folders from strangers: a report is written whatever they hold, and nothing of it becomes markup."""

import json

import pytest
from run_folders import make_rows, make_run, page_of, png_size, write_rows

from adabatch import report
from adabatch.report import markup

# What a stranger may put into a run folder, wherever a value goes.
NASTY = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'; onload='x",
    "</style><script>",
    "]]>&amp;",
    "$\\frac{",
    "\ud800 lone",
    "\x00\x1b[31m\u202e",
    "x" * 100_000,
    "--",
    "${jndi:x}",
    "`rm -rf`; $(x)",
)
VALUES = (
    *NASTY,
    None,
    True,
    -1,
    10**400,
    1e308,
    -1e308,
    [],
    {},
    [[[1]]] * 50,
    {"a": {"b": {"c": "<b>"}}},
    ["<i>"] * 99,
)


def hostile(value):
    """Every file of the format with `value` in each place in turn or at once."""
    row = {
        "event": "train",
        **dict.fromkeys(
            (
                "position",
                "epoch",
                "step",
                "batch_size",
                "lr",
                "train_loss",
                "train_error",
                "seconds",
                "world_size",
            ),
            value,
        ),
    }
    good = make_rows(epochs=2, every=1)
    key = value if isinstance(value, str) else "k"
    return good, [
        row,
        {**good[5], "train_loss": value},
        {**good[6], "epoch": value},
        {**good[7], "batch_size": value},
        {
            "event": "eval",
            "split": value,
            "weights": value,
            "epoch": 1.0,
            "eval_loss": value,
            "eval_error": value,
        },
        {"event": "eval", "split": "test", "weights": value, "epoch": value, "eval_error": 0.5},
        {
            "event": "change",
            "epoch": value,
            "position": value,
            "step": value,
            "changes": value,
            "rule": value,
        },
        {
            "event": "change",
            "epoch": 0.5,
            "position": 3,
            "changes": {key: value, "lr": [value, value]},
            "rule": value,
        },
        {"event": "change", "epoch": 0.5, "position": 3, "changes": {"batch_size": [value, 64], "lr": value}},
        {"event": value},
    ]


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_hostile_folders(tmp_path, value):
    """Any value anywhere: a report is written, bounded, and nothing of it becomes markup."""
    good, rows = hostile(value)
    key = value if isinstance(value, str) else "k"
    folder = make_run(tmp_path / "run", good, state="failed", summary=False)
    write_rows(folder, good + rows)
    (folder / "status.json").write_text(json.dumps({"format": 1, "state": value, "error": value}))
    summary = {
        "format": 1,
        "model": value,
        "dataset": value,
        "schedule": value,
        "seed": value,
        "epochs": value,
        "steps": value,
        "samples": value,
        "final_test_error": value,
        "train_seconds": value,
        key: value,
        "images_per_second": value,
        "ledger": {"compute": value, key: 1.5, "data": 2},
        "phases": [value, {"start_position": value, "batch_size": value, "lr": value, "steps": value}],
        "nested": {key: {key: {key: value}}},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "environment.json").write_text(
        json.dumps({"format": 1, "cpu": value, "gpus": [value], key: value})
    )
    (folder / "overrides.yaml").write_text(
        json.dumps({"format": 1, "overrides": [value, f"a={value!r:.300}"]})
    )
    (folder / "config.yaml").write_text(
        json.dumps({"epochs": value, "model": value, "hardware": value, key: value})
    )
    page = page_of(folder)
    assert page.size < 500_000
    if not isinstance(value, str) or value in NASTY[5:8]:  # what a drawing could stumble over
        report.write_run(folder)
        assert png_size(folder / "curves.png") == (1430, 910)
    allowed = {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "header",
        "section",
        "footer",
        "h1",
        "h2",
        "h3",
        "p",
        "div",
        "span",
        "dl",
        "dt",
        "dd",
        "small",
        "figure",
        "figcaption",
        "svg",
        "line",
        "text",
        "polyline",
        "polygon",
        "circle",
        "rect",
        "table",
        "thead",
        "tbody",
        "tfoot",
        "tr",
        "th",
        "td",
        "pre",
        "code",
        "details",
        "summary",
    }
    assert {tag for tag, _ in page.elements} <= allowed
    assert not {
        a for _, attributes in page.elements for a in attributes if a.startswith("on") or a in ("src", "href")
    }


def test_damaged_files_are_named_on_the_page(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "summary.json").write_text('{"format": 99}')
    (folder / "environment.json").write_text("{" * 100_000)
    (folder / "config.yaml").write_text("a: &x [1, 1]\nb: *x\n")
    text = page_of(folder).text
    assert "summary.json has format 99" in text
    assert "environment.json is not valid JSON" in text and "config.yaml is not valid YAML" in text
    assert "Not read:" in text and "Training loss went from" in text  # the rest is still shown


def test_folder_name_is_escaped(tmp_path):
    folder = make_run(tmp_path / "a<b>&'\"$x", summary=False)
    (folder / "config.yaml").unlink()
    page = page_of(folder)
    assert "a<b>&'\"$x" in page.text and "b" not in {tag for tag, _ in page.elements}
    assert "adabatch-evaluate '" in page.text  # quoted for the shell


def test_element_escapes_all_but_markup():
    inner = markup.el("b", "<i>")
    assert inner == "<b>&lt;i&gt;</b>"
    assert markup.el("p", inner, "&", title='"<') == '<p title="&quot;&lt;"><b>&lt;i&gt;</b>&amp;</p>'
    assert markup.el("p", None, "a\x00b\ud800", class_="x", data_y=None) == '<p class="x">a\ufffdb\ufffd</p>'
