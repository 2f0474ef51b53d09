"""`hylorada-export run=DIR [to=FOLDER] [merge=true]`: what a finished run trained, as files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from hylorada import __version__
from hylorada.command_line.suggest import did_you_mean, nearest
from hylorada.errors import ConfigError

_HELP = """\
hylorada-export: export the adapter or the merged model of a finished run to a new folder.

  hylorada-export run=outputs/main/lora-512-seed0-0123456789
  hylorada-export run=... to=./my-adapter
  hylorada-export run=... merge=true to=./my-model

  run=DIRECTORY   directory of a finished run
  to=FOLDER       folder to create (default: export or merged in the run's directory)
  merge=true      write a complete transformers folder (float32 weights, config, tokenizer) that
                  needs neither this package nor peft; default: the adapter with its model card
  -h, --help, --version

The result is read back and compared with the run's model before the folder gets its final name. A
run with active position bias or landmarks cannot be merged: their effect depends on the text.
"""
_KEYS = ("run", "to", "merge")
_SWITCH = {"true": True, "false": False}


def main(words: Sequence[str]) -> int:
    """The command; returns its exit code.

    Raises:
        HyloradaError: see `runner.export`.
    """
    if "-h" in words or "--help" in words:
        sys.stdout.write(_HELP)
        return 0
    if "--version" in words:
        sys.stdout.write(f"{__version__}\n")
        return 0
    given: dict[str, str] = {}
    for word in words:
        if word.startswith("-"):
            flag = word.partition("=")[0]
            name = nearest(flag.strip("-"), _KEYS)
            hint = f"arguments have no dashes, as in {name}=" if name else "see --help"
            raise ConfigError(f"unrecognized arguments: {flag}; {hint}")
        key, equals, value = word.partition("=")
        if not equals or key not in _KEYS:
            hint = did_you_mean(key, _KEYS) if equals else ""
            raise ConfigError(
                f"{word}: not an argument of this command{hint or '; see hylorada-export --help'}"
            )
        if key in given or not value:
            raise ConfigError(f"{key}=: give it once, with a value; see hylorada-export --help")
        given[key] = value
    if "run" not in given:
        raise ConfigError("name the run to export: run=DIRECTORY; see hylorada-export --help")
    merge = given.get("merge", "false").lower()
    if merge not in _SWITCH:
        raise ConfigError(f"merge={given['merge']}: use true or false")
    to = Path(given["to"]).expanduser() if "to" in given else None

    from hylorada.runner.export import export

    sys.stdout.write(f"{export(Path(given['run']).expanduser(), to, _SWITCH[merge])}\n")
    return 0
