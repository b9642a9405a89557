"""Read a TOML file so that every complaint about it has a line and a column, and the nearest key that exists.

`tomllib` gives the values, `tree-sitter-toml` the places. A `Section` hands out the values of one table key
by key; what is wrong is collected, so that the user sees all of it at once; a key that nobody asked for is
unknown.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from difflib import get_close_matches
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

from clorefleet.domain.errors import BadInput
from clorefleet.domain.text import clean_line

if TYPE_CHECKING:
    from tree_sitter import Node

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)
Path = tuple[str | int, ...]
"""Keys, and positions in arrays, from the top of the file."""
FILE_BYTES_MAX = 1_000_000
PROBLEMS_SHOWN = 20


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """From 1, in characters."""

    line: int
    column: int


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    place: Place
    text: str


class BadTomlFile(BadInput):
    """The file cannot be used; `problems` are all that were found."""

    def __init__(self, name: str, problems: list[Problem]) -> None:
        self.problems = sorted(problems)
        lines = [f"{name}:{p.place.line}:{p.place.column}: {p.text}" for p in self.problems[:PROBLEMS_SHOWN]]
        more = len(problems) - PROBLEMS_SHOWN
        if more > 0:
            lines.append(f"and {more} more")
        super().__init__(
            "\n".join(lines),
            remedy="Correct the file and type the same again; docs/fleet-toml.md describes every key.",
            money="Nothing was changed; what runs goes on.",
        )


@dataclass(slots=True)
class TomlFile:
    """A parsed file: values, where keys and values stand, and the problems found so far."""

    name: str
    values: dict[str, Any]
    key_places: dict[Path, Place]
    value_places: dict[Path, Place]
    problems: list[Problem] = field(default_factory=list)

    def complain(self, path: Path, text: str, *, at_value: bool = False) -> None:
        places = self.value_places if at_value else self.key_places
        while path and path not in places:
            path = path[:-1]
        self.problems.append(Problem(places.get(path, Place(1, 1)), text))

    def check(self) -> None:
        """
        Raises:
            BadTomlFile: something was complained about.
        """
        if self.problems:
            raise BadTomlFile(self.name, self.problems)


def parse_toml(name: str, data: bytes) -> TomlFile:
    """
    Raises:
        BadTomlFile: it is not TOML, not UTF-8, or far too large.
    """
    if len(data) > FILE_BYTES_MAX:
        raise BadTomlFile(name, [Problem(Place(1, 1), f"it is larger than {FILE_BYTES_MAX:,} bytes")])
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise BadTomlFile(name, [Problem(Place(line, column), "it is not UTF-8")]) from error
    try:
        values = tomllib.loads(text, parse_float=Decimal)
    except tomllib.TOMLDecodeError as error:
        raise BadTomlFile(name, [_syntax_problem(str(error), text)]) from error
    except RecursionError as error:
        raise BadTomlFile(name, [Problem(Place(1, 1), "it is nested too deeply")]) from error
    places = _Places(text.encode())
    places.read()
    return TomlFile(name, values, places.keys, places.values)


_AT = re.compile(r" \(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)$")


def _syntax_problem(message: str, text: str) -> Problem:
    match = _AT.search(message)
    if match is not None and match["line"]:
        place = Place(int(match["line"]), int(match["column"]))
    else:
        lines = text.split("\n")
        place = Place(len(lines), len(lines[-1]) + 1)
    return Problem(place, f"not TOML: {clean_line(_AT.sub('', message))}")


class _Places:
    """Walks the syntax tree of a text that is known to be valid TOML."""

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._lines = text.split(b"\n")
        self._arrays: dict[Path, int] = {}
        """How many elements each array of tables has so far."""
        self.keys: dict[Path, Place] = {}
        self.values: dict[Path, Place] = {}

    def read(self) -> None:
        import tree_sitter_toml
        from tree_sitter import Language, Parser

        root = Parser(Language(tree_sitter_toml.language())).parse(self._text).root_node
        for child in root.children:
            if child.type == "pair":
                self._pair(child, ())
            elif child.type in ("table", "table_array_element"):
                self._table(child)

    def _place(self, node: Node) -> Place:
        row, column_bytes = node.start_point
        return Place(row + 1, len(self._lines[row][:column_bytes].decode("utf-8", "replace")) + 1)

    def _table(self, node: Node) -> None:
        header = node.children[1]
        path: Path = ()
        words = self._words(header)
        for depth, (word, place) in enumerate(words):
            path = (*path, word)
            self.keys.setdefault(path, place)
            self.values.setdefault(path, place)
            is_new_element = node.type == "table_array_element" and depth == len(words) - 1
            if is_new_element:
                self._arrays[path] = self._arrays.get(path, -1) + 1
            if path in self._arrays:
                path = (*path, self._arrays[path])
                self.keys.setdefault(path, place)
        for child in node.children[2:]:
            if child.type == "pair":
                self._pair(child, path)

    def _pair(self, node: Node, path: Path) -> None:
        key, value = node.children[0], node.children[2]
        for word, place in self._words(key):
            path = (*path, word)
            self.keys.setdefault(path, place)
        self._value(value, path)

    def _value(self, node: Node, path: Path) -> None:
        self.values[path] = self._place(node)
        if node.type == "inline_table":
            for child in node.children:
                if child.type == "pair":
                    self._pair(child, path)
        elif node.type == "array":
            elements = [c for c in node.children if c.type not in ("[", "]", ",", "comment")]
            for index, element in enumerate(elements):
                self.keys[(*path, index)] = self._place(element)
                self._value(element, (*path, index))

    def _words(self, key: Node) -> list[tuple[str, Place]]:
        if key.type == "dotted_key":
            return [word for child in key.children if child.type != "." for word in self._words(child)]
        text = self._text[key.start_byte : key.end_byte].decode()
        word = next(iter(tomllib.loads(f"{text} = 1")))
        return [(word, self._place(key))]


_NAMES: dict[type, str] = {
    str: "text in quotes",
    bool: "true or false",
    int: "a whole number",
    Decimal: "a number",
    list: "a list in brackets",
    dict: "a table",
    date: "a date such as 2026-12-24",
}


class Section:
    """One table of the file. Every method takes a key's value, complains where it is not right, and
    remembers the key."""

    def __init__(self, file: TomlFile, path: Path, table: Mapping[str, Any]) -> None:
        self._file = file
        self._path = path
        self._table = table
        self._known: list[str] = []

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(self._table)

    def has(self, key: str) -> bool:
        self._know(key)
        return key in self._table

    def _know(self, key: str) -> None:
        if key not in self._known:
            self._known.append(key)

    def complain(self, key: str, text: str, *, at_value: bool = True) -> None:
        self._file.complain((*self._path, key), text, at_value=at_value)

    def complain_at(self, path: Path, text: str) -> None:
        """About a value deeper inside."""
        self._file.complain((*self._path, *path), text, at_value=True)

    def peek(self, key: str) -> object:
        """The value as it stands, of whatever kind; None without one."""
        return self._table.get(key)

    def is_table(self, key: str) -> bool:
        return isinstance(self._table.get(key), dict)

    def take(self, key: str, kind: type[T]) -> T | None:
        """The value where it is there and of that kind."""
        self._know(key)
        if key not in self._table:
            return None
        value = self._table[key]
        if kind is Decimal and isinstance(value, int) and not isinstance(value, bool):
            value = Decimal(value)
        right = isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)
        if not right or (kind is date and isinstance(value, datetime)):
            self.complain(key, f"{key} must be {_NAMES[kind]}, not {_shown(value)}")
            return None
        result: T = value
        return result

    def text(self, key: str, default: str = "") -> str:
        value = self.take(key, str)
        return default if value is None else value

    def flag(self, key: str, default: bool) -> bool:
        value = self.take(key, bool)
        return default if value is None else value

    def whole(self, key: str, default: int, *, least: int, most: int) -> int:
        value = self.take(key, int)
        if value is not None and not least <= value <= most:
            self.complain(key, f"{key} must be from {least} to {most}, not {value}")
            return default
        return default if value is None else value

    def number(self, key: str, *, least: Decimal, most: Decimal) -> Decimal | None:
        value = self.take(key, Decimal)
        if value is not None and not (value.is_finite() and least <= value <= most):
            self.complain(key, f"{key} must be from {least} to {most}, not {value}")
            return None
        return value

    def parsed(self, key: str, parse: Callable[[str], T]) -> T | None:
        """Text that `parse` turns into a value; its `BadInput` becomes a complaint at the value."""
        text = self.take(key, str)
        return None if text is None else self._parse((*self._path, key), text, parse)

    def choice(self, key: str, kind: type[E], default: E) -> E:
        """One word of an enumeration."""
        text = self.take(key, str)
        if text is None:
            return default
        known = [str(each.value) for each in kind]
        if text not in known:
            near = nearest(text, known)
            hint = f"did you mean “{near}”?" if near else f"it can be {', '.join(known)}"
            self.complain(key, f"{key} cannot be “{clean_line(text, max_chars=40)}”; {hint}")
            return default
        return kind(text)

    def words(self, key: str, parse: Callable[[str], T]) -> tuple[T, ...]:
        """A list of texts, each parsed."""
        found = []
        for index, text in enumerate(self.take(key, list) or []):
            path = (*self._path, key, index)
            if not isinstance(text, str):
                self._file.complain(path, f"{key} must hold texts, not {_shown(text)}", at_value=True)
                continue
            value = self._parse(path, text, parse)
            if value is not None:
                found.append(value)
        return tuple(found)

    def _parse(self, path: Path, text: str, parse: Callable[[str], T]) -> T | None:
        try:
            return parse(text)
        except BadInput as error:
            self._file.complain(path, " ".join(filter(None, (error.what, error.remedy))), at_value=True)
            return None

    def section(self, key: str) -> Section | None:
        table = self.take(key, dict)
        return None if table is None else Section(self._file, (*self._path, key), table)

    def sections(self, key: str) -> tuple[Section, ...]:
        """An array of tables."""
        found = []
        for index, table in enumerate(self.take(key, list) or []):
            path = (*self._path, key, index)
            if isinstance(table, dict):
                found.append(Section(self._file, path, table))
            else:
                self._file.complain(path, f"{key} must hold tables, not {_shown(table)}", at_value=True)
        return tuple(found)

    def needs(self, key: str, what: str) -> None:
        """Complain where the key is missing."""
        if key not in self._table:
            self._file.complain(self._path, f"{key} is missing: {what}")

    def needs_one(self, *keys: str) -> None:
        """Complain that one of them is needed, and only one."""
        self._file.complain(self._path, f"exactly one of {', '.join(keys)} is needed")

    def done(self) -> None:
        """Every key was asked for by now: the others are unknown."""
        for key in self._table:
            if key not in self._known:
                near = nearest(key, self._known)
                hint = f"did you mean “{near}”?" if near else f"known here: {', '.join(sorted(self._known))}"
                shown = clean_line(key, max_chars=60)
                self.complain(key, f"there is no key “{shown}” here; {hint}", at_value=False)


def nearest(word: str, known: list[str]) -> str:
    """The known word that was probably meant; "" where none is near."""
    close = get_close_matches(word.lower().replace("-", "_"), known, 1, 0.6)
    return close[0] if close else ""


_SHOWN: dict[type, str] = {
    str: "text",
    bool: "true or false",
    int: "a number",
    Decimal: "a number",
    list: "a list",
    dict: "a table",
}


def _shown(value: object) -> str:
    return _SHOWN.get(type(value), f"a {type(value).__name__}")
