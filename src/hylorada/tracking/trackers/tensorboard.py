"""`track=tensorboard`: event files in `tensorboard/` of the run's directory."""

from __future__ import annotations

import importlib.metadata
import io
from typing import Any

from hylorada.tracking import backend


class Backend(backend.Backend):
    """Event files; each start hides what earlier ones hold, and is given it again."""

    _writer: Any = None
    _last = 0  # step

    def start(self) -> None:
        """Open a file of its own.

        Raises:
            RuntimeError: TensorBoard is not installed.
        """
        try:
            importlib.metadata.version("tensorboard")
        except importlib.metadata.PackageNotFoundError:
            raise RuntimeError(
                "tensorboard is not installed: pip install hylorada[tensorboard]"
            ) from None
        from torch.utils.tensorboard import SummaryWriter

        # A killed attempt may have logged steps that will be done again.
        self._writer = SummaryWriter(str(self.run_dir / "tensorboard"), purge_step=0)
        self._writer.add_text("config", f"```\n{self.config}\n```")

    def replace_earlier(self) -> None:
        """Write out what was given again; the files of earlier attempts are hidden already."""
        self._writer.flush()

    def log(self, step: int, values: dict[str, float]) -> None:
        """A point of each curve."""
        self._last = step
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def summary(self, values: dict[str, float]) -> None:
        """Final numbers, at the last step."""
        self.log(self._last, values)

    def table(self, name: str, columns: list[str], rows: list[list[Any]]) -> None:
        """A small table, as text."""
        lines = [columns, ["---"] * len(columns), *rows]
        text = "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
        self._writer.add_text(name, text, self._last)

    def picture(self, name: str, png: bytes) -> None:
        """A picture."""
        import numpy as np
        from PIL import Image

        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        self._writer.add_image(name, pixels, self._last, dataformats="HWC")

    def finish(self, exit_code: int) -> None:
        """Close the file."""
        self._writer.close()
