"""The names people import, and what importing them costs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from helpers.records import make_record, write

import hylorada
from hylorada.errors import DataError


def _python(*lines: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# In one process, since importing peft takes seconds.
WITHOUT_PEFT = (
    "import sys, hylorada",
    "assert not {'torch', 'peft', 'transformers', 'hydra'} & set(sys.modules)",
    "assert set(hylorada.__all__) <= set(dir(hylorada))",
    "from hylorada.settings.peft_method import config_keys, peft_types",
    "found = peft_types(); keys = {kind: config_keys(kind) for kind in found}",
    "assert not {'peft', 'torch'} & set(sys.modules)",
    # looking for peft without importing it must not use the registration up
    "import importlib.util",
    "assert importlib.util.find_spec('peft') is not None",
    "assert importlib.util.find_spec('no_such_package_at_all') is None",
)
WITH_PEFT = (
    "import dataclasses, peft",
    "assert peft.PeftType('HYLORADA') in peft.PEFT_TYPE_TO_CONFIG_MAPPING",
    "where = 'peft_registration'",
    "assert not [f for f in sys.meta_path if type(f).__module__ == 'hylorada.' + where]",
    # what was read of its methods without it is so
    "assert set(found) | {'HYLORADA'} == set(peft.PeftType.__members__), found",
    "from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as classes",
    "known = {kind: pair for kind, pair in keys.items() if pair[1]}",
    "assert len(known) >= len(found) - 2, set(found) - set(known)",
    "for kind, (name, there) in known.items():",
    "    real = classes[peft.PeftType(kind)]",
    "    fields = {field.name for field in dataclasses.fields(real) if field.init}",
    "    assert (name, fields - set(there)) == (real.__name__, set()), kind",
)


def test_importing_the_package_loads_neither_torch_nor_peft_whose_methods_it_knows():
    _python(*WITHOUT_PEFT, *WITH_PEFT)


@pytest.mark.slow
def test_peft_knows_the_method_when_it_was_imported_first():
    _python(
        "import peft",
        "assert 'HYLORADA' not in peft.PEFT_TYPE_TO_CONFIG_MAPPING",
        "import hylorada",
        "assert peft.PeftType('HYLORADA') in peft.PEFT_TYPE_TO_CONFIG_MAPPING",
        "from hylorada.methods import attach",
        "attach.register_method()",  # twice changes nothing
        "assert list(peft.PeftType).count('HYLORADA') == 1",
    )


def test_records_as_rows_needs_no_torch(tmp_path):
    write(tmp_path, make_record("lora", seed=3), make_record("hylorada", status="failed"))
    rows = _python(
        "import hylorada, json, sys",
        f"rows = hylorada.records_as_rows({str(tmp_path)!r})",
        "assert not {'torch', 'peft', 'transformers', 'hydra'} & set(sys.modules)",
        "print(json.dumps(rows))",
    )
    failed, lora = json.loads(rows)
    record = make_record("lora", seed=3)
    assert (lora["method"], lora["seed"], lora["length"]) == ("lora", 3, 4096)
    assert lora["eval/ppl"] == record["metrics"]["eval/ppl"]["value"]
    assert lora["eval/ppl.tokens"] == record["metrics"]["eval/ppl"]["tokens"]
    own = record["base"]["own_window"]["eval/ppl_sliding"]["value"]
    assert lora["base.own_window.eval/ppl_sliding"] == own
    assert lora["training.seconds"] == 80
    assert lora["parameters.by_group.lora"] == 811_008
    assert lora["config.train.lr"] == record["config"]["train"]["lr"]
    assert lora["config.method.lora.target_modules"] == "auto"
    assert lora["directory"] == str(tmp_path / record["name"])
    assert failed["status"] == "failed"
    assert "eval/ppl" not in failed
    assert all(
        not isinstance(value, list | dict) for row in (lora, failed) for value in row.values()
    )


def test_records_as_rows_names_what_it_leaves_out(tmp_path):
    write(tmp_path, make_record("lora"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "result.json").write_text("{")
    with pytest.warns(UserWarning, match="left out .*broken/result.json: damaged, it is not JSON"):
        assert len(hylorada.records_as_rows(tmp_path)) == 1
    with pytest.raises(DataError, match="no folder"):
        hylorada.records_as_rows(tmp_path / "absent")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = hylorada.no_such_name


def test_the_public_names_are_those_of_the_methods():
    from hylorada import methods

    assert hylorada.HyloradaConfig is methods.HyloradaConfig
    assert hylorada.adapt is methods.adapt
