"""`hylorada-report` as a command: what it prints, what it writes, how it fails."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import matplotlib.image
import pytest
from helpers.records import make_record, sweep, write

from hylorada.commands.report import main
from hylorada.comparison.collect import collect
from hylorada.errors import ConfigError, DataError, DiskError
from hylorada.report.files import write_files

FILES = {
    "report.html", "table.md", "table.csv", "table.json", "table.tex",
    "tiny-stdlib-4096-loss-by-position-blocks.png", "tiny-stdlib-4096-loss-by-position-blocks.svg",
    "tiny-stdlib-4096-training.png", "tiny-stdlib-4096-training.svg",
    "tiny-stdlib-4096-ppl-by-time.png", "tiny-stdlib-4096-ppl-by-time.svg",
}  # fmt: skip


def test_prints_the_table_and_names_the_files(tmp_path, capsys):
    write(tmp_path, make_record("lora"), make_record("hylorada"))
    assert main([str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert "base, own window" in shown.out
    assert "hylorada" in shown.out
    out = tmp_path / "report"
    assert {p.name for p in out.iterdir()} == FILES
    for name in FILES:
        assert str(out / name) in shown.out
    assert shown.err == ""


def test_the_same_records_give_the_same_bytes(tmp_path):
    write(tmp_path / "runs", *sweep(lengths=(4096,)))
    for out in ("one", "two"):
        main([str(tmp_path / "runs"), "--out", str(tmp_path / out)])
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_the_pictures_are_pictures(tmp_path):
    write(tmp_path, make_record("lora"), make_record("hylorada"))
    main([str(tmp_path)])
    for path in (tmp_path / "report").glob("*.png"):
        height, width, _ = matplotlib.image.imread(path).shape
        assert width > height > 400
    for path in (tmp_path / "report").glob("*.svg"):
        assert ElementTree.parse(path).getroot().tag.endswith("svg")


def test_a_second_call_does_not_read_its_own_report(tmp_path, capsys):
    write(tmp_path, make_record("lora"))
    main([str(tmp_path)])
    first = capsys.readouterr().out
    main([str(tmp_path)])
    assert capsys.readouterr().out == first


def test_left_out_records_are_named_on_standard_error(tmp_path, capsys):
    write(tmp_path, make_record("lora"))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "result.json").write_text("")
    assert main([str(tmp_path)]) == 0
    assert "left out" in capsys.readouterr().err


def test_numbers_of_a_package_that_is_not_installed_are_named(tmp_path, capsys):
    record = make_record("lora")
    record["metrics"]["mrr/mean"] = {"value": 0.4, "tokens": 9}
    write(tmp_path, record, make_record("hylorada"))
    assert main([str(tmp_path)]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("hylorada-report: mrr/mean: no measurement here makes them")
    assert "docs/EXTENDING.md" in line


def test_only_failed_runs_still_make_a_table(tmp_path, capsys):
    write(tmp_path, make_record("lora", status="failed"))
    assert main([str(tmp_path)]) == 0
    assert "failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "error", "text"),
    [
        (["{empty}"], DataError, "no usable result.json below"),
        (["{empty}/absent"], DataError, "there is no folder"),
        ([], ConfigError, "DIR"),
        (["{runs}", "--frobnicate"], ConfigError, "--frobnicate"),
        (["{runs}", "--refrence", "lora"], ConfigError, "did you mean --reference?"),
        (["{runs}", "--reference", "lorra"], ConfigError, "method; did you mean lora?"),
        (["{runs}", "--reference", "full"], ConfigError, "no run here is of that .*are lora$"),
        (["{runs}", "--out", "/proc/report"], DiskError, "choose another folder with --out"),
        (["{runs}", "--out", "{runs}/file/under"], DiskError, "choose another folder with --out"),
    ],
)
def test_mistakes_are_one_line(tmp_path, argv, error, text):
    places = {"empty": tmp_path / "empty", "runs": tmp_path / "runs"}
    places["empty"].mkdir()
    write(places["runs"], make_record("lora"))
    (places["runs"] / "file").write_text("")
    with pytest.raises(error, match=text) as raised:
        main([word.format(**places) for word in argv])
    assert "\n" not in str(raised.value)


def test_torch_is_never_loaded(tmp_path):
    write(tmp_path, make_record("lora"))
    code = (
        "import sys; from hylorada.commands.report import main; main(sys.argv[1:]);"
        "sys.exit(bool({'torch', 'peft', 'transformers', 'hydra'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_what_is_no_file_is_left_out_and_not_waited_for(tmp_path):
    write(tmp_path, make_record("lora"))
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe/result.json")
    (problem,) = collect([tmp_path]).problems
    assert problem.reason == "cannot be read (it is a pipe)"


def test_the_path_of_a_record_may_be_no_text(tmp_path):
    write_files(tmp_path, {"table.md": os.fsdecode(b"runs/n\xff")})
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == "runs/n\\udcff"


def test_a_file_that_cannot_be_written_is_named_and_leaves_no_other_behind(tmp_path):
    (tmp_path / "report.html").mkdir()
    said = r"report\.html: cannot be written \(Is a directory\); choose another folder with --out"
    with pytest.raises(DiskError, match=said):
        write_files(tmp_path, {"report.html": "<html>"})
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("words", [[""], [".", "--out", ""]])
def test_an_empty_name_is_not_the_folder_here(words):
    with pytest.raises(ConfigError, match=r"an empty name; use \. for the folder"):
        main(words)
