"""The words of a command line."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn

from hylorada.command_line.suggest import did_you_mean
from hylorada.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """Says a mistake in one line instead of a usage text."""

    def error(self, message: str) -> NoReturn:
        """Raise a `ConfigError`, which names the nearest flag to an unknown one."""
        word = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        if word:
            flags = [flag for action in self._actions for flag in action.option_strings]
            message += did_you_mean(word[1], flags)
        raise ConfigError(f"{message}; see {self.prog} --help")
