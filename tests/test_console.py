"""The live line never wraps or scrolls, plain lines hold no control codes, and nothing printed can stop a
run."""

import io
import logging
import re
import subprocess
import sys
import threading
from pathlib import Path
from subprocess import PIPE

import pytest
from rich.file_proxy import FileProxy
from terminal import Clock, Stream, record, screen

from adabatch import console as module
from adabatch.console import Progress, _Console, _Handler, describe, fit, handler, is_live

SAMPLES, EPOCHS = 1000, 10
CHANGE = {
    "event": "change", "position": 5000, "epoch": 5.0, "step": 40, "rule": "x2 every 5 epochs",
    "changes": {
        "batch_size": [128, 256], "lr": [0.1, 0.075], "steps_per_epoch": [8, 4],
        "momentum_horizon_samples": [1280.0, 2560.0], "weight_decay_per_sample": [1e-7, 5e-8],
        "running_statistics_horizon_samples": [1215, 1215], "micro_batch": [128, 128], "accumulation": [1, 2],
    },
}  # fmt: skip


def train(step: int, **more) -> dict:
    row = {
        "event": "train", "position": 100 * step, "epoch": step / 10, "step": step, "batch_size": 256,
        "micro_batch": 128, "accumulation": 2, "world_size": 1, "lr": 0.0375, "train_loss": 1.23456,
        "train_error": 0.5, "seconds": 0.5 * step,
    }  # fmt: skip
    return row | more


def evaluation(step: int, **more) -> dict:
    row = {"event": "eval", "position": 100 * step, "epoch": step / 10, "split": "test", "weights": "raw"}
    return row | {"eval_loss": 2.0, "eval_error": 0.0812} | more


def make(tty: bool, width: int = 80):
    stream, clock = Stream(tty), Clock()
    shown = _Console(file=stream, force_terminal=tty, width=width, force_jupyter=False)
    progress = Progress(SAMPLES * EPOCHS, EPOCHS, console=shown, clock=clock)
    progress.resume(0, 0)
    return progress, stream, clock, shown


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    """A known terminal, and a logger with nothing but what a test adds."""
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    log = logging.getLogger("adabatch")
    monkeypatch.setattr(log, "handlers", [])
    monkeypatch.setattr(log, "propagate", False)
    before = log.level
    log.setLevel(logging.INFO)  # not by setattr: a logger remembers which levels it lets through
    yield log
    log.setLevel(before)


@pytest.mark.parametrize("width", [1, 10, 20, 40, 79, 80, 100, 140, 300])
def test_live_line_is_one_line_whatever_the_width(terminal, width):
    threads = threading.enumerate()
    progress, stream, clock, shown = make(True, width)
    terminal.addHandler(_Handler(shown))
    for step in range(1, 60):
        clock.now += 0.5
        progress.log(train(step))
        if step % 10 == 0:
            progress.log(evaluation(step))
    lines = screen(stream.getvalue(), width)
    assert len(lines) == 1 and len(lines[0]) < max(width, 2)
    assert threading.enumerate() == threads, "the display starts no thread"
    progress.close(0)
    assert len(screen(stream.getvalue(), width)) == 1
    assert not isinstance(sys.stdout, FileProxy), "close gives the program its standard output back"


def test_what_the_live_line_says():
    progress, stream, clock, _ = make(True, 140)
    for step in range(1, 21):
        clock.now = step * 1.0  # 100 samples a second by the clock, 200 by the training's own seconds
        progress.log(train(step))
    progress.log(evaluation(20))
    assert screen(stream.getvalue(), 140) == [
        "epoch 2.00/10  1:20 left  loss 1.2346  batch 256 = 1x128x2  lr 0.0375  200 samples/s  "
        "test error 8.12 %"
    ]
    progress.close(0)


def test_at_80_columns_the_batch_and_its_split_are_shown():
    progress, stream, clock, _ = make(True, 80)
    for step in range(1, 21):
        clock.now = step * 1000.0
        progress.log(train(step, batch_size=16384, micro_batch=1024, world_size=8, seconds=step / 100))
    progress.log(evaluation(20))
    (line,) = screen(stream.getvalue(), 80)
    assert "batch 16384=8x1024x2" in line and "22:13:20" in line and "test 8.12%" in line
    progress.close(0)


def test_a_remainder_is_not_written_as_an_equation():
    progress, stream, clock, _ = make(True, 140)
    progress.log(train(1, batch_size=200))
    assert "batch 200 in 1x128x2" in screen(stream.getvalue(), 140)[0]
    progress.close(0)


def test_remaining_time_follows_the_speed_of_late_and_a_resume():
    progress, stream, clock, _ = make(True, 140)
    progress.resume(5000, 50)
    for step in range(51, 61):  # from 5,000 samples on: 100 a second
        clock.now += 1
        progress.log(train(step))
    assert "0:40 left" in screen(stream.getvalue(), 140)[0]
    for step in range(61, 71):  # 100 samples in ten seconds, for longer than the window
        clock.now += 10
        progress.log(train(step))
    assert "5:00 left" in screen(stream.getvalue(), 140)[0]
    progress.close(0)


def test_the_end_leaves_the_last_state_and_the_cursor():
    progress, stream, clock, _ = make(True, 140)
    for step in range(1, 101):
        clock.now += 0.01  # faster than the line is drawn
        progress.log(train(step))
    progress.close(0)
    (line,) = screen(stream.getvalue(), 140)
    assert line.startswith("epoch 10.00/10  loss") and "left" not in line
    assert stream.getvalue().endswith("\n\x1b[?25h"), "the shell's prompt begins on a line of its own"
    assert stream.getvalue().count("\x1b[2K") < 40, "drawn more often than 10 times a second"


def test_messages_stand_above_the_line_as_they_are(terminal):
    progress, stream, clock, shown = make(True, 100)
    terminal.addHandler(_Handler(shown))
    progress.log(train(1))
    terminal.info("outputs/[bold]x[/bold] :smile: [0]")
    terminal.warning("odd \x1b[31mred\x07")
    print("a user's print")
    clock.now += 1
    progress.log(train(2))
    progress.log(CHANGE)
    progress.close(0)
    lines = screen(stream.getvalue(), 1000)
    assert lines[:3] == ["outputs/[bold]x[/bold] :smile: [0]", "warning: odd ?[31mred?", "a user's print"]
    assert lines[3] == describe(CHANGE) and lines[4].startswith("epoch 0.20/10") and len(lines) == 5


def test_change_lists_before_and_after_of_all_that_changed():
    assert describe(CHANGE) == (
        "epoch 5, sample 5,000: batch 128 -> 256, lr 0.1 -> 0.075, steps per epoch 8 -> 4, momentum horizon "
        "1280 -> 2560, weight decay per sample 1e-07 -> 5e-08, accumulation 1 -> 2 (x2 every 5 epochs)"
    )


def test_plain_lines_one_per_evaluation_and_change(terminal):
    progress, stream, clock, shown = make(False)
    terminal.addHandler(_Handler(shown))
    for step in range(1, 31):
        clock.now += 1
        progress.log(train(step))
        if step % 10 == 0:
            progress.log(evaluation(step))
        if step == 15:
            progress.log(CHANGE)
    progress.close(0)
    lines = stream.getvalue().splitlines()
    assert lines[0] == (
        "epoch 1/10  1:30 left  loss 1.2346  batch 256 = 1x128x2  lr 0.0375  200 samples/s  test error 8.12 %"
    )
    heads = [line.split("  ")[0] for line in lines]
    assert heads == ["epoch 1/10", describe(CHANGE), "epoch 2/10", "epoch 3/10"]
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", stream.getvalue())


def test_plain_lines_without_evaluation_one_per_epoch():
    progress, stream, clock, _ = make(False)
    for step in range(1, 31):
        progress.log(train(step, train_loss=float(step)))
    progress.close(0)
    heads = [line.split("  batch")[0] for line in stream.getvalue().splitlines()]
    assert heads == [f"epoch {n}/10  loss {n}0.0000" for n in (1, 2, 3)]


def test_evaluation_without_an_error_and_of_averaged_weights():
    progress, stream, _, _ = make(False)
    progress.log(train(10))
    progress.log(evaluation(10, eval_error=None, split="validation", weights="ema"))
    assert stream.getvalue().endswith("validation (ema) loss 2.0000\n")


@pytest.mark.parametrize("tty", [True, False])
def test_rows_with_holes_are_no_problem(tty):
    progress, stream, clock, _ = make(tty)
    progress.log(evaluation(0))
    clock.now += 1
    progress.log(train(1, train_loss=None, lr=None, micro_batch=None, seconds=None))
    progress.log({"event": "train", "position": 200})
    progress.log({"event": "end", "position": 200})
    progress.sync()
    progress.close(1)
    progress.close(1)
    assert stream.getvalue()


@pytest.mark.parametrize("environment, live", [("A=", True), ("NO_COLOR=1", True), ("TERM=dumb", False)])
def test_the_environment_decides(monkeypatch, environment, live, terminal):
    monkeypatch.setenv(*environment.split("="))
    progress, stream, _, shown = make(True)
    assert is_live(shown) is live
    _Handler(shown).emit(record("bad", logging.ERROR))
    colours = re.findall(r"\x1b\[[0-9;]*m", stream.getvalue())
    assert bool(colours) is (environment == "A="), "an error is red only where colour is wanted and possible"


def test_forced_colours_make_no_terminal_of_a_file(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    shown = _Console(file=Stream(False))
    assert not is_live(shown)


@pytest.mark.parametrize("tty", [True, False])
@pytest.mark.parametrize("error", [OSError(5, "no terminal"), ValueError("I/O on closed file")])
def test_a_stream_that_fails_silences_the_display_only(tty, error, terminal):
    progress, stream, clock, shown = make(tty)
    terminal.addHandler(_Handler(shown))
    progress.log(train(1))

    def fail(*_):
        raise error

    stream.write = stream.flush = fail
    for step in range(2, 30):
        clock.now += 1
        progress.log(train(step))
        progress.log(evaluation(step))
    terminal.error("nobody hears this")
    progress.log(CHANGE)
    progress.close(0)


def test_a_closed_stream(terminal):
    progress, stream, clock, shown = make(True)
    stream.close()
    progress.log(train(1))
    progress.log(evaluation(1))
    _Handler(shown).emit(record("x"))
    progress.close(0)


def test_a_text_that_the_stream_cannot_encode(terminal):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    _Handler(_Console(file=stream)).emit(record("größe ∞"))
    assert stream.buffer.getvalue() == b"gr??e ?\n"


def test_a_pipe_whose_reader_left_does_not_end_the_program():
    code = (
        "import logging, sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from adabatch.console import Progress, handler\n"
        "log = logging.getLogger('adabatch'); log.setLevel(20); log.addHandler(handler())\n"
        "p = Progress(1000, 10); p.resume(0, 0)\n"
        "for i in range(200): log.info('line %d', i); time.sleep(0.002)\n"
        "p.log({'event': 'eval', 'position': 1}); p.close(0); sys.stderr.write('done')"
    )
    root = str(Path(module.__file__).parents[1])
    child = subprocess.Popen([sys.executable, "-c", code, root], stdout=PIPE, stderr=PIPE)
    assert child.stdout.readline() == b"line 0\n"
    child.stdout.close()
    assert child.stderr.read() == b"done" and child.wait(20) == 0
    child.stderr.close()


def test_handler_follows_a_replaced_stdout(capsys, terminal):
    terminal.addHandler(handler())
    terminal.info("to whoever listens now")
    assert capsys.readouterr().out == "to whoever listens now\n"
    try:
        raise ValueError("inner")
    except ValueError:
        terminal.exception("outer")
    out = capsys.readouterr().out
    assert out.startswith("error: outer\nTraceback") and out.endswith("ValueError: inner\n")


def test_fit_shortens_before_it_drops_and_drops_the_least_important_first():
    parts = [(3, "aaaa", "aa"), (1, "bbbb", "b"), (2, "cccc", "c")]
    lines = ["aaaa  bbbb  cccc", "aaaa  b  cccc", "aaaa  b  c", "aa  b  c", "aa  c", "aa", "a"]
    assert [fit(parts, width) for width in (16, 15, 12, 9, 7, 4, 1)] == lines
