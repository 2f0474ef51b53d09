import logging
import sys
from io import BytesIO, StringIO, TextIOWrapper

import pytest
from helpers.screen import watch
from helpers.tiny_runs import make_model_folder, make_texts
from rich.console import Console

from hylorada.process import progress
from hylorada.process.progress import Reporter


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


def test_in_a_pipe_one_plain_line_every_ten_seconds_and_one_at_the_end(clock):
    out = StringIO()
    with Reporter(Console(file=out)) as reporter:
        reporter.begin("train", 100)
        for step in range(1, 101):
            clock.now += 0.5
            reporter.update(step, f"loss {step}")
    lines = out.getvalue().splitlines()
    assert lines[0] == "train 20/100  loss 20  0:40 left"
    assert [line.split()[1] for line in lines] == [f"{n}/100" for n in (20, 40, 60, 80, 100)]
    assert lines[-1] == "train 100/100  loss 100"


def test_time_left_counts_only_this_attempt(clock):
    out = StringIO()
    with Reporter(Console(file=out)) as reporter:
        reporter.begin("train", 100, done=90)
        clock.now += 20
        reporter.update(95, "")
    assert "0:20 left" in out.getvalue()


def test_on_a_terminal_a_bar_with_the_numbers(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    out = StringIO()
    with Reporter(Console(file=out, force_terminal=True, width=120, highlight=False)) as reporter:
        reporter.begin("train", 4, done=1)
        reporter.update(2, "loss 1.2345  321 tokens/s")
        reporter.say("a line [with brackets]")
    text = out.getvalue()
    assert "a line [with brackets]" in text
    assert "loss 1.2345  321 tokens/s" in text
    assert "2/4" in text


@pytest.fixture
def logger():
    found = logging.getLogger("a.library.of.this.test")
    yield found
    found.handlers.clear()


@pytest.mark.parametrize("lost", ["close", "detach"])
def test_a_logger_with_a_stream_that_is_gone_keeps_no_bar_from_showing(monkeypatch, logger, lost):
    monkeypatch.setenv("TERM", "xterm")
    gone, terminal = TextIOWrapper(BytesIO()), StringIO()
    terminal.isatty = lambda: True
    handlers = [logging.StreamHandler(gone), logging.StreamHandler(terminal)]
    logger.handlers.extend(handlers)
    getattr(gone, lost)()
    out = StringIO()
    with Reporter(Console(file=out, force_terminal=True, width=120)) as reporter:
        reporter.begin("train", 4)
        assert handlers[0].stream is gone
        logger.warning("above the bar")
        reporter.update(2, "loss 1.2345")
    assert "loss 1.2345" in out.getvalue()
    assert "above the bar" in out.getvalue()
    assert not terminal.getvalue()
    assert [handler.stream for handler in handlers] == [gone, terminal]


SCRIPT = """
import logging, sys
from hylorada.process.progress import Reporter

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
log = logging.getLogger("hylorada.anything")
other = logging.getLogger("a.library")  # with a handler of its own, as transformers has
other.addHandler(logging.StreamHandler(sys.stderr))
other.propagate = False

with Reporter() as reporter:
    log.info("before the first bar")
    with reporter.working("the gate"):
        log.info("in the gate [not markup] :smile:")
    log.info("after the gate")
    reporter.begin("train", 30)
    for step in range(1, 31):
        if step % 10 == 0:
            log.warning("step %d %s", step, "x" * 120 * (step == 20))
            other.warning("another library at %d", step)
            print("printed at", step)
            reporter.say(f"said at {step}")
        reporter.update(step, f"loss {1 / step:.3f}")
    log.info("between two phases, long after the bar")
    reporter.begin("evaluation", 5)
    reporter.update(2, "ppl 3.0")
    if sys.argv[1:] == ["fail"]:
        log.error("it fails")
        raise SystemExit(4)
    with reporter.working("the summary"):  # ends what is not complete, as it was
        pass
    reporter.update(5, "ppl 3.0")
    log.info("the end")
log.info("after the reporter")
print("summary")
"""


def lines_of(steps):
    for step in steps:
        yield f"WARNING step {step} " + ("x" * 120 if step == 20 else "")
        yield f"another library at {step}"
        yield f"printed at {step}"
        yield f"said at {step}"


def wrapped(lines, columns):
    return [
        line[i : i + columns].rstrip()
        for line in lines
        for i in range(0, max(len(line.rstrip()), 1), columns)
    ]


@pytest.mark.parametrize(("columns", "end"), [(60, "fail"), (100, "well")])
def test_on_a_terminal_lines_stand_by_themselves_and_bars_go(columns, end):
    code, lines, seen = watch([sys.executable, "-c", SCRIPT, end], columns=columns)
    assert code == {"well": 0, "fail": 4}[end]
    tail = {
        "well": ["INFO the end", "INFO after the reporter", "summary"],
        "fail": ["ERROR it fails"],
    }
    expected = [
        "INFO before the first bar",
        "INFO in the gate [not markup] :smile:",
        "INFO after the gate",
        *lines_of((10, 20, 30)),
        "INFO between two phases, long after the bar",
        *tail[end],
    ]
    assert lines == wrapped(expected, columns)  # and nothing of any bar
    shown = {line.strip() for screen in seen for line in screen if is_bar(line)}
    assert any("the gate" in line for line in shown)
    assert any("train" in line and "loss" in line for line in shown)
    assert any("evaluation" in line and "2/5" in line for line in shown)
    words = ("INFO", "WARNING", "ERROR", "library", "printed", "said", "x" * 10)
    assert not [line for line in shown if any(word in line for word in words)]
    # Between two phases no bar is left standing.
    quiet = [s for s in seen if any("long after the bar" in line for line in s)]
    assert not any(is_bar(line) and "train" in line for screen in quiet for line in screen)


def is_bar(line):
    return any(mark in line for mark in "━╸╺") or is_spinning(line)


def test_a_dumb_terminal_gets_lines():
    environment = {"TERM": "dumb"}
    code, lines, _ = watch([sys.executable, "-c", SCRIPT, "well"], environment=environment)
    assert code == 0
    assert "train 30/30  loss 0.033" in lines
    assert not any(is_bar(line) for line in lines)


@pytest.mark.slow
def test_a_whole_run_leaves_its_messages_and_its_table(tmp_path):
    make_model_folder(tmp_path / "model")
    make_texts(tmp_path / "texts")
    command = [
        sys.executable, "-c", "import sys; from hylorada.cli import train; sys.exit(train())",
        f"model={tmp_path}/model", "dataset=local", f"dataset.path={tmp_path}/texts",
        f"dataset.cache_dir={tmp_path}/cache", f"output_root={tmp_path}/out", "method=lora",
        "length=512", "length.max_length=96", "eval=quick", "track=offline", "threads=1",
        "train.max_steps=40", "train.eval_every=10",
    ]  # fmt: skip
    code, lines, seen = watch(command, columns=160, environment={"HF_HUB_OFFLINE": "1"})
    assert code == 0, lines
    assert not any(is_spinning(line) for line in lines)
    table = next(i for i, line in enumerate(lines) if line.startswith("perplexity on "))
    logged = (next(tmp_path.glob("out/main/*/run.log"))).read_text().splitlines()
    assert lines[:table] == wrapped([line.split(": ", 1)[1] for line in logged], 160)
    assert lines[-2].startswith("record: ")
    shown = {line for screen in seen for line in screen if is_spinning(line)}
    for phase in ("text", "integrity gate", "base, own window 64", "train", "validation, step 10"):
        assert any(line[2:].startswith(phase) for line in shown), phase


def is_spinning(line):
    return any(0x2800 <= ord(c) < 0x2900 for c in line)
