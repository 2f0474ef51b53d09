"""A picture in the forms that it is kept in; `drawing` makes one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Picture:
    """A drawn figure.

    Attributes:
        name: file name without an ending.
        caption: what it shows, in a sentence.
        svg: the drawing, for a page.
        png: the same in pixels.
    """

    name: str
    caption: str
    svg: str
    png: bytes
