"""The names people import, and what importing them costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import hylorada


def _python(*lines: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_loads_neither_torch_nor_peft():
    _python(
        "import sys, hylorada",
        "assert not {'torch', 'peft', 'transformers', 'hydra'} & set(sys.modules)",
        "assert set(hylorada.__all__) <= set(dir(hylorada))",
        # looking for peft without importing it must not use the registration up
        "import importlib.util",
        "assert importlib.util.find_spec('peft') is not None",
        "assert importlib.util.find_spec('no_such_package_at_all') is None",
        "import peft",
        "assert peft.PeftType('HYLORADA') in peft.PEFT_TYPE_TO_CONFIG_MAPPING",
        "where = 'peft_registration'",
        "assert not [f for f in sys.meta_path if type(f).__module__ == 'hylorada.' + where]",
    )


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


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = hylorada.no_such_name


def test_the_public_names_are_those_of_the_methods():
    from hylorada import methods

    assert hylorada.HyloradaConfig is methods.HyloradaConfig
    assert hylorada.adapt is methods.adapt
