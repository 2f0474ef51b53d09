"""Which split a document of one's own belongs to: by a name, else by its text.

Names are read as the `datasets` library reads them: a word that stands for a split, between
characters that are no letters, in the name of a file or folder.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from hylorada.data.files import suffix_of
from hylorada.errors import DataError

WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
_EVAL = ("eval", "evaluation")
_TEST = ("test", "testing")
_SHARES = (("test", 5), ("validation", 10), ("train", 100))  # upper bounds, percent


def named_splits(files: list[Path], root: Path) -> dict[Path, str] | None:
    """The split of each file by its name or a folder's; None where no name says one.

    A folder whose whole name is such a word decides, the innermost first; then the file's name,
    then a folder that has the word in its name.

    Raises:
        DataError: only some files are named for a split, one for two, or it cannot be told whether
            `eval` is another word for test.
    """
    found: dict[Path, str] = {}
    words: dict[str, Path] = {}
    for file in files:
        word = _word(file, root)
        if word:
            found[file] = WORDS[word]
            words.setdefault(word, file)
    if not found:
        return None
    for odd in (file for file in files if file not in found):
        named = next(iter(found))
        raise DataError(
            f"{root}: {odd.relative_to(root)} is in no split while {named.relative_to(root)} is "
            f"named for {found[named]}; name each file or its folder train*, validation* or test*, "
            "or none"
        )
    _refuse_two_tests(words, root)
    return found


def _refuse_two_tests(words: Mapping[str, Path], root: Path) -> None:
    evaluated = next((words[word] for word in _EVAL if word in words), None)
    tested = next((words[word] for word in _TEST if word in words), None)
    if evaluated and tested:
        raise DataError(
            f"{root}: {evaluated.relative_to(root)} and {tested.relative_to(root)} may be one "
            "split or two; name the one for tuning validation, the other test"
        )


def _word(file: Path, root: Path) -> str | None:
    """The word that names a file's split."""
    relative = file.relative_to(root)
    folders = [part.lower() for part in reversed(relative.parts[:-1])]
    stem = file.name.lower().removesuffix(suffix_of(file))
    whole = next((part for part in folders if part in WORDS), None)
    if whole:
        return whole
    for name in (stem, *folders):
        found = [word for word in re.findall(r"[a-z]+", name) if word in WORDS]
        if len({WORDS[word] for word in found}) > 1:
            raise DataError(
                f"{root}: {relative} is named for {' and for '.join(found)}; name it for one split"
            )
        if found:
            return found[0]
    return None


def split_of_text(text: str) -> str:
    """The split of a document by the hash of its text, so that equal texts are never on two sides.

    90 % train, 5 % validation, 5 % test.
    """
    place = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64 * 100
    return next(split for split, bound in _SHARES if place < bound)


def part_of_text(text: str, split: str) -> str:
    """A split of one text alone: its first 90 % train, then 5 % validation, the last 5 % test.

    A part ends where a line ends, or a word where no line does.
    """
    first, second = (_boundary(text, share) for share in (0.90, 0.95))
    return {"train": text[:first], "validation": text[first:second], "test": text[second:]}[split]


def _boundary(text: str, share: float) -> int:
    wanted = int(len(text) * share)
    for end in (r"\n", r"\s"):
        match = re.compile(end).search(text, wanted)
        if match and match.end() < len(text):
            return match.end()
    return wanted
