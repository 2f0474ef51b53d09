"""The words of a command line."""

from __future__ import annotations

import argparse
from typing import NoReturn

from hylorada.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """Says a mistake in one line instead of a usage text."""

    def error(self, message: str) -> NoReturn:
        """Raise a `ConfigError`."""
        raise ConfigError(f"{message}; see {self.prog} --help")
