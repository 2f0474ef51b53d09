"""Typed dictionaries whose fields say what they are, and whether a value is such a dictionary."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)


@dataclass(frozen=True)
class About:
    """What is said of a field.

    Attributes:
        meaning: what it is.
        unit: of the number; empty: none.
        null: when the value is null.
        absent: when the field is not there; of every `NotRequired` field.
        needed: without it, or with another type, a file is refused as no record of a run (of a
            `NotRequired` field: where it is there); all other fields may be missing in records of
            earlier versions of the package.
    """

    meaning: str
    unit: str = ""
    null: str = ""
    absent: str = ""
    needed: bool = False


@dataclass(frozen=True)
class Field:
    """A field of a typed dictionary.

    Attributes:
        kind: its type, without what is said of it.
        about: what is said of it.
        required: whether it is always there.
    """

    kind: Any
    about: About
    required: bool


@functools.cache
def fields(kind: Any) -> dict[str, Field]:
    """The fields of a typed dictionary by name, in the order of their definition."""
    found = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        required = get_origin(hint) is not NotRequired
        if not required:
            (hint,) = get_args(hint)
        assert get_origin(hint) is Annotated, f"{kind.__name__}.{name} says nothing of itself"
        inner, about = get_args(hint)
        found[name] = Field(inner, about, required)
    return found


def flaws(
    value: Any,
    kind: Any,
    *,
    whole: bool = True,
    deep: bool = False,
    narrow: Callable[[str, Any], Any] = lambda name, kind: kind,
    open_kinds: Collection[Any] = (),
    path: str = "",
) -> Iterator[str]:
    """What keeps a value from being of a kind, in words: "field 'length' is str".

    Args:
        value: plain JSON values.
        kind: a typed dictionary, a list or dictionary of them, or a plain type.
        whole: whether every field must be there and none that is not described; otherwise those
            that are `needed` must be, and what is there must be of its type.
        deep: whether to look into fields that are not needed, and into lists, of which there may be
            many entries; always so where it must be whole.
        narrow: the kind of an entry of a dictionary, from its name and its general kind.
        open_kinds: may have fields that are not described.
        path: where the value stands.
    """
    deep = deep or whole
    options: Any = {"whole": whole, "deep": deep, "narrow": narrow, "open_kinds": open_kinds}
    if not _is(value, kind):
        found = repr(value) if get_origin(kind) is Literal else type(value).__name__
        yield f"field {path!r} is {found}" if path else "it is no object"
        return
    kind = next((k for k in _choices(kind) if _is(value, k)), kind)
    if is_typeddict(kind):
        described = fields(kind)
        for name, field in described.items():
            if name in value:
                inner = field.kind if deep or field.about.needed else _outermost(field.kind)
                yield from flaws(value[name], inner, **options, path=_join(path, name))
            elif field.required and (whole or field.about.needed):
                yield f"no field {_join(path, name)!r}"
        if whole and kind not in open_kinds:
            for name in value.keys() - described.keys():
                yield f"field {_join(path, name)!r} is not described"
    elif get_origin(kind) is dict:
        of = get_args(kind)[1]
        for name, entry in value.items():
            yield from flaws(entry, narrow(name, of), **options, path=_join(path, name))
    elif deep and get_origin(kind) is list:
        (of,) = get_args(kind)
        for number, entry in enumerate(value):
            yield from flaws(entry, of, **options, path=f"{path}[{number}]")


def _outermost(kind: Any) -> Any:
    """A kind of which nothing inside is looked at."""
    whole = [dict if is_typeddict(k) else get_origin(k) or k for k in _choices(kind)]
    return functools.reduce(operator.or_, whole) if Literal not in whole else kind


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _choices(kind: Any) -> tuple[Any, ...]:
    return (
        get_args(kind) if get_origin(kind) is UnionType or isinstance(kind, UnionType) else (kind,)
    )


def _is(value: Any, kind: Any) -> bool:
    """Whether the outermost type is right; JSON writes 1.0 and 1 alike, and true is no number."""
    if kind is Any:
        return True
    if isinstance(kind, UnionType):
        return any(_is(value, choice) for choice in get_args(kind))
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if is_typeddict(kind):
        return isinstance(value, dict)
    if kind is None or kind is NoneType:
        return value is None
    if kind in (int, float):
        wanted = (int, float) if kind is float else int
        return isinstance(value, wanted) and not isinstance(value, bool)
    return isinstance(value, get_origin(kind) or kind)
