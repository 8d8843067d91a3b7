"""The page of a comparison: what is drawn is what report.json says, whatever the folders hold."""

import itertools
import json
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from page_folders import TRUTH, declare, full
from run_folders import Page
from sweep_folders import run, sweep
from test_report_hostile import NASTY

from adabatch import runs
from adabatch.verdict import command, formats, page
from adabatch.verdict.folders import look
from adabatch.verdict.page import pens
from adabatch.verdict.page.style import CSS


def made(folder, target=None, **given):
    """(page, report.json's content) of a folder."""
    found = look([str(folder)], {"delta": None, "r0": None, "looks": None, "target": target, **given})
    verdict = command.verdict_of(found)
    content = json.loads(json.dumps(formats.as_json(verdict, found.plan, found.notes), default=str))
    return page.render(verdict, found).decode(), content


def svgs(html: str) -> list[ET.Element]:
    return [ET.fromstring(text) for text in re.findall(r"<svg.*?</svg>", html, re.S)]


def texts(html: str) -> str:
    return " ".join(Page(html).text.split())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    full(folder)
    declare(folder, delta=1.0, looks=[5, 10, 20], split="test", target=0.15)
    return folder, *made(folder)


def test_the_sentence_is_the_first_thing(whole):
    _, html, report = whole
    heading = re.search(r"<body><header><h1[^>]*>(.*?)</h1>", html).group(1)
    main, small = re.fullmatch("(.*)<small>(.*)</small>", re.sub("</?b>", "", heading)).groups()
    assert main.endswith(". ") and small[0].isupper(), "each of its parts is a sentence of its own"
    said = " ".join(re.sub(r"&#x27;", "'", f"{main.removesuffix('. ')}; {small}").split())
    assert said.casefold() == report["verdict"].casefold()


def test_every_limit_of_the_comparisons_is_explained(whole):
    _, html, _ = whole
    table = html[html.index(">Comparisons<") :].partition("</thead>")[0]
    headings = [re.sub("<[^>]*>", "", h) for h in re.findall("<th[^>]*>(.*?)</th>", table)]
    limits = [heading for heading in headings if heading.startswith("limit")]
    assert limits == ["limit&lt;1", "limit"]
    for heading in limits:
        assert f"(column {heading})" in html


def test_every_part_is_there_and_every_picture_is_one(whole):
    _, html, _ = whole
    parsed = Page(html)
    assert parsed.open == []
    shown = texts(html)
    for title in (
        "Error at equal updates", "Arms", "Comparisons", "Error against epochs", "Error against updates",
        "Error against seconds", "Time to an error of 15 %", "Batch size", "Learning rate",
        "Gradient noise scale", "Final error against training time", "Throughput", "Where the time went",
        "Forecast against measured", "Notes", "What was declared", "Every run (30)",
    ):  # fmt: skip
        assert title in shown, title
    pictures = svgs(html)
    assert len(pictures) > 20
    for figure in re.findall(r"<figure.*?</figure>", html, re.S):
        assert "<figcaption><p>" in figure, "a picture without a word on what to see"
    for picture in pictures:
        numbers = " ".join(e.get(k, "") for e in picture.iter() for k in ("points", "x", "y", "cx", "cy"))
        assert not re.search(r"nan|inf|e[+-]", numbers)


def scale(svg: ET.Element, vertical: bool):
    """Position -> value of an axis, by its own numbers alone: the least-squares line, in the logarithm if
    that fits better."""
    size = [float(x) for x in svg.get("viewBox").split()]
    side = [t for t in svg.iter("text") if t.get("text-anchor") == ("end" if vertical else "middle")]
    ticks = [t for t in side if re.fullmatch(r"[\d.,]+", t.text) and "class" not in t.attrib]
    at = np.array([float(t.get("y")) - 4.5 if vertical else float(t.get("x")) for t in ticks])
    values = np.array([float(t.text.replace(",", "")) for t in ticks])
    assert len(at) >= 2 and size[2] > 0
    best = None
    for forward, back in ((lambda v: v, lambda v: v), (np.log, np.exp)):
        if forward is np.log and values.min() <= 0:
            continue
        fit = np.polyfit(at, forward(values), 1)
        miss = np.abs(back(np.polyval(fit, at)) / np.maximum(values, 1e-9) - 1).max()
        if best is None or miss < best[0]:
            best = (miss, lambda p, fit=fit, back=back: back(np.polyval(fit, p)))
    assert best[0] < 0.02
    return best[1]


def centre(element: ET.Element) -> tuple[float, float]:
    if element.tag == "circle":
        return float(element.get("cx")), float(element.get("cy"))
    corners = [tuple(map(float, pair.split(","))) for pair in element.get("points").split()]
    return tuple(sum(c) / len(corners) for c in zip(*corners))


@pytest.mark.parametrize("kind", ["large", "small"])
def test_the_number_drawn_is_the_number_in_the_report(whole, kind):
    """Each arm's dot and bar in the picture of error against updates, read back by the axes' numbers."""
    _, html, report = whole
    (svg,) = [s for s in svgs(html) if s.get("class") == kind]
    x, y = scale(svg, False), scale(svg, True)
    groups = {g.get("data-arm"): g for g in svg.iter("g")}
    bars = [e for e in svg.iter("line") if "line" in e.get("class", "")]
    assert set(groups) == {arm["arm"] for arm in report["arms"]} and len(bars) == len(groups)
    for arm in report["arms"]:
        group = groups[arm["arm"]]
        assert float(group.get("data-y")) == pytest.approx(100 * arm["final_error"], rel=1e-9)
        assert float(group.get("data-x")) == pytest.approx(arm["updates"], rel=1e-9)
        left, top = centre(group[1])
        assert x(left) == pytest.approx(arm["updates"], rel=0.02)
        assert y(top) == pytest.approx(100 * arm["final_error"], abs=0.05)
        (bar,) = [b for b in bars if abs(float(b.get("x1")) - left) < 0.2]
        ends = sorted(y(float(bar.get(key))) for key in ("y1", "y2"))
        low, high = (100 * arm[f"final_error_{end}"] for end in ("low", "high"))
        assert ends == pytest.approx([low, high], abs=0.06)


def test_the_caption_says_where_the_adaptive_arm_lies(whole):
    """Against a straight line in log updates between the neighbours, computed here."""
    _, html, report = whole
    arms = {arm["arm"]: (arm["updates"], arm["final_error"]) for arm in report["arms"]}
    (a, ea), (x, e), (b, eb) = arms["fixed 128"], arms["adabatch 32-512"], arms["fixed 64"]
    assert a < x < b
    line = np.interp(np.log(x), np.log([a, b]), [ea, eb])
    side = "above" if e > line else "below"
    assert f"adabatch 32-512 lies {abs(100 * (e - line)):.2f} pp {side} the line at {x:.0f} updates." in html


def test_nothing_is_fetched_and_nothing_runs(whole):
    _, html, _ = whole
    assert not re.search(r"https?:|//[a-z]|url\(|@import|javascript:|\bon\w+=", html)
    tags = {name for name, _ in Page(html).elements}
    assert not tags & {"script", "img", "link", "iframe", "object", "image", "use", "a", "form", "base"}
    policy = [m for m in Page(html).of("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy[0]["content"].startswith("default-src 'none'")


def test_light_dark_paper_and_telephone_are_provided_for(whole):
    _, html, _ = whole
    assert "width=device-width" in html
    for query in ("prefers-color-scheme: dark", "max-width: 640px", "@media print"):
        assert query in CSS
    assert CSS.count("{") == CSS.count("}")


@pytest.mark.parametrize("nasty", [n for n in NASTY if len(n) < 1000], ids=range(len(NASTY) - 1))
def test_no_string_of_a_folder_becomes_markup(tmp_path, nasty):
    """In the schedule's name, the device, the ledger's causes, a declared arm and the folder itself."""
    plain = "".join(c for c in nasty if c.isprintable() and c not in "/\ud800")[:30]
    parent = tmp_path / (plain or "x")
    odd = any(ord(c) < 32 or c == "\ud800" for c in nasty)  # no YAML file and no folder can hold it
    word, words = plain if odd else nasty, {"cpu": nasty, "gpus": [nasty]}
    for seed, batches in itertools.product(range(2), [(32,), (32, 64)]):
        config = {"model._target_": f"a.{word}", "compare.arm": f"{word}{len(batches)}"}
        config["options.schedule"] = plain.replace("/", "")
        figures = {"ledger": {nasty: 3.0, "compute": nasty}, "forecast": {"seconds": nasty}}
        folder = run(parent, seed, batches, 0.1, 9.0, config=config, environment=words, **figures)
        with open(folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"event": "train", "epoch": 1, "noise_scale": nasty, "lr": nasty}) + "\n")
    begun = parent / (plain.replace("/", "") or "x")  # what is said of it stands among the notes
    begun.mkdir()
    runs.write_json(begun / "status.json", {"format": 1, "state": "running", "error": nasty, "owner": None})
    (parent / "compare.yaml").write_text(f"format: 1\ndelta: 1.0\nremark: {json.dumps(nasty)}\n")
    html, report = made(parent)
    parsed = Page(html)
    assert parsed.open == []
    known = (
        "html head meta title style body header h1 b small p section h2 h3 figure div svg g line text polygon"
    )
    known += (
        " polyline circle rect title figcaption span table thead tbody tr th td dl dt dd details summary pre"
    )
    assert {name for name, _ in parsed.elements} <= {*known.split(), "pre", "ul", "li", "footer"}
    allowed = re.compile(
        r"(class|viewbox|role|aria-|data-|stroke|fill|points|text-anchor|content|http-equiv|name|charset|lang|x"
        r"|y|cx|cy|r|x1|x2|y1|y2|width|height|colspan)"
    )
    assert all(allowed.match(key) for _, attributes in parsed.elements for key in attributes)
    for svg in svgs(html):
        assert svg.get("viewBox")
    assert len(report["arms"]) == 2 and any("without a configuration" in note for note in report["notes"])


NUMBERS = (
    None,
    True,
    -1,
    10**400,
    1e308,
    -1e308,
    float("nan"),
    float("inf"),
    0,
    1e-300,
    1e29,
    [],
    {"a": 1},
    "1",
)


@pytest.mark.parametrize("value", NUMBERS, ids=range(len(NUMBERS)))
def test_any_number_anywhere_gives_a_page(tmp_path, value):
    folders = full(tmp_path, {(32,): (0.1, 9), (32, 64): (0.1, 8)}, seeds=2, forecasts=False)
    keys = ("epoch", "position", "step", "seconds", "lr", "batch_size", "eval_error", "noise_scale")
    for i, folder in enumerate(folders.values()):
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        rows = [{**row, **dict.fromkeys(keys[i::3] if i % 2 else keys, value)} if n % 7 == 3 else row
                for n, row in enumerate(rows)]  # fmt: skip
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        summary = runs.Run(folder).summary
        summary |= {"ledger": {"compute": value, "data": 1.0}, "steps": value, "train_seconds": value,
                    "forecast": {"seconds": value, "low": value, "high": 2.0, "measured": 1.0}}  # fmt: skip
        (folder / "summary.json").write_text(json.dumps(summary))
    html, _ = made(tmp_path, target=0.2)
    assert Page(html).open == []
    for svg in svgs(html):
        for element in svg.iter():
            for key in ("points", "x", "y", "cx", "cy", "x1", "y1", "width"):
                for part in re.split("[ ,]", element.get(key, "")):
                    assert not part or np.isfinite(float(part)) and abs(float(part)) < 1e5, (key, part)


@pytest.mark.slow
def test_two_hundred_runs_make_no_large_page(tmp_path):
    """Ten arms, twenty seeds, and one run with a hundred thousand rows."""
    truth = {(2**k,): (0.1 + 0.01 * k, 100 - k) for k in range(6, 15)} | {(64, 2048): (0.1, 60)}
    folders = full(tmp_path, truth, seeds=20)
    rows = []
    for i in range(1, 100_001):
        at = {"position": i, "epoch": i / 1e4, "step": i, "seconds": i / 1e3}
        rows.append(
            {"event": "train", **at, "batch_size": 1 + i % 7, "lr": 1 / i, "noise_scale": 1.0 + i % 3}
        )
        if i % 5 == 0:
            rows.append({"event": "eval", "split": "test", **at, "eval_error": 0.5 + 1e-6 * i})
    with open(folders[(64, 2048), 0] / "metrics.jsonl", "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    html, _ = made(tmp_path, looks=(20,))
    assert len(html) < 600_000
    assert Page(html).open == []


@pytest.mark.parametrize("state", ["running", "submitted", "failed", "diverged", "out_of_memory"])
def test_a_partial_sweep_has_a_page_that_says_so(tmp_path, state):
    folders = full(tmp_path, {(32,): (0.1, 9), (128,): (0.1, 8), (32, 64): (0.1, 8)}, seeds=3)
    for folder in list(folders.values())[-2:]:
        runs.write_json(folder / "status.json", {"format": 1, "state": state, "error": None, "owner": None})
        (folder / "summary.json").unlink()
    html, report = made(tmp_path)
    assert Page(html).open == []
    assert report["decision"] == "interim" and "interim, no verdict" in html
    assert ("Runs by state" in html) == (state not in ("diverged", "out_of_memory"))


def test_folders_without_anything_give_a_page(tmp_path):
    """A declared comparison of which nothing has begun; a run that only has a state; runs without rows."""
    declare(tmp_path / "none", looks=[3]) if (tmp_path / "none").mkdir() else declare(tmp_path / "none")
    assert command.command([str(tmp_path / "none")]) == 0
    html = (tmp_path / "none/report.html").read_text()
    assert "no run has begun" in html and Page(html).open == []
    begun = tmp_path / "begun/a"
    begun.mkdir(parents=True)
    runs.write_json(begun / "status.json", {"format": 1, "state": "running", "error": None, "owner": None})
    html, _ = made(tmp_path / "begun")
    assert "interim" in html and Page(html).open == []
    for folder in sweep(tmp_path / "bare", seeds=2).values():
        (folder / "metrics.jsonl").write_text("")
    html, report = made(tmp_path / "bare")
    assert Page(html).open == [] and len(report["arms"]) == 4 and "Error at equal updates" in html


def test_a_runs_own_page_is_not_written_over(tmp_path):
    folder = run(tmp_path, 0, (32,), 0.1, 9.0)
    (folder / "report.html").write_text("its own")
    assert command.command([str(folder)]) == 0
    assert (folder / "report.html").read_text() == "its own" and (folder / "report.json").is_file()


def test_times_that_cannot_be_compared_are_called_so_in_every_picture_of_them(tmp_path):
    folders = full(tmp_path, {(32,): (0.1, 9), (32, 64): (0.1, 8)}, seeds=2)
    summary = runs.Run(folders[(32,), 0]).summary
    runs.write_json(folders[(32,), 0] / "summary.json", summary | {"shared": True})
    html, report = made(tmp_path, target=0.2)
    why = "runs shared the machine with other runs"
    assert any(why in note for note in report["notes"])
    assert "Final error against training time" not in html
    figures = re.findall(r"<figure.*?</figure>", html, re.S)
    for title in ("Error against seconds", "Throughput", "Where the time went", "Time to an error of"):
        (figure,) = [f for f in figures if title in f]
        assert why in figure, title


# -- pens -------------------------------------------------------------------------------------------


def drawn_as(html: str) -> dict[str, set]:
    """{arm: how it is drawn in each legend}."""
    found = {}
    for legend in re.findall(r'<p class="legend">(.*?)</p>', html, re.S):
        for svg, name in re.findall(r"(<svg.*?</svg>)\xa0([^<]*)</span>", legend):
            line = ET.fromstring(svg).find("line")
            if line is not None:
                found.setdefault(name, set()).add((line.get("class"), line.get("stroke-dasharray")))
    return found


def test_an_arm_is_drawn_alike_in_every_picture(whole):
    _, html, report = whole
    found = drawn_as(html)
    assert set(found) == {arm["arm"] for arm in report["arms"]}
    assert all(len(ways) == 1 for ways in found.values())
    assert len({way for ways in found.values() for way in ways}) == len(found), "two arms look alike"


def test_colours_do_not_depend_on_what_has_finished(tmp_path, whole):
    full(tmp_path, TRUTH, until={((32,), 4): 0.3, ((32, 64, 128, 256, 512), 2): 0.5})
    assert drawn_as(made(tmp_path)[0]) == drawn_as(whole[1])


# Machado, Oliveira and Fernandes (2009): severe protanomaly and deuteranomaly, on linear RGB.
BLIND = (
    np.eye(3),
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
)


def linear(colour: str) -> np.ndarray:
    v = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ rgb
    f = np.cbrt(np.maximum(xyz, 0) / [0.9505, 1.0, 1.089])
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("seen", range(3), ids=["normal", "protan", "deutan"])
def test_the_classes_are_told_apart_with_any_colour_vision(dark, seen):
    """A difference of 20 in CIELAB between an adaptive arm and any other."""

    def look_at(pairs):
        return [lab(np.clip(np.array(BLIND[seen]) @ linear(pair[dark]), 0, 1)) for pair in pairs]

    fixed, adaptive = look_at(pens.FIXED), look_at(pens.ADAPTIVE)
    assert min(np.linalg.norm(a - b) for a in adaptive for b in fixed) > 20
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(adaptive, 2)) > 20
    lightness = [colour[0] for colour in fixed]
    assert lightness == sorted(lightness, reverse=True), (
        "darker the larger the batch, also in black and white"
    )


@pytest.mark.parametrize("dark, paper", [(False, "#ffffff"), (True, "#15181d")])
def test_lines_stand_out_from_the_paper(dark, paper):
    """Contrast of graphics, WCAG 2.1: 3 : 1."""

    def brightness(colour):
        return float(linear(colour) @ [0.2126, 0.7152, 0.0722]) + 0.05

    for pair in (*pens.FIXED, *pens.ADAPTIVE):
        a, b = sorted((brightness(pair[dark]), brightness(paper)))
        assert b / a >= 3, pair[dark]
