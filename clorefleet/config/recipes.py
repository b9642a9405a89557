"""Reading recipes: the project's own, and a user's in `recipes/` of the configuration folder.

A recipe is checked against the dataclasses of `clorefleet.domain.recipe`, field by field. What is wrong
is told with file, line and field; a misspelt field with the nearest known one.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from typing import Any

from clorefleet.config.places import config_root, recipes_dir
from clorefleet.domain.errors import BadRecipe, UnknownModel
from clorefleet.domain.recipe import Recipe

RECIPE_MAX_BYTES = 256 * 1024
NEAREST_MAX = 3


def load_recipes(extra_dirs: Iterable[Path] = ()) -> dict[str, Recipe]:
    """All recipes by name, in the order of names. A later folder's recipe replaces an earlier one's.

    Raises:
        BadRecipe: a file that cannot be used.
    """
    found: dict[str, Recipe] = {}
    for folder in (recipes_dir(), config_root() / "recipes", *extra_dirs):
        if not folder.is_dir():
            continue
        for file in sorted(folder.glob("*.toml")):
            recipe = read_recipe(file)
            found[recipe.name] = recipe
    return dict(sorted(found.items()))


def find_recipe(name: str, recipes: Mapping[str, Recipe]) -> Recipe:
    """
    Raises:
        UnknownModel: with the nearest names.
    """
    recipe = recipes.get(name.lower())
    if recipe is None:
        raise UnknownModel(name[:60], tuple(get_close_matches(name.lower(), recipes, NEAREST_MAX, 0.5)))
    return recipe


def read_recipe(file: Path) -> Recipe:
    """
    Raises:
        BadRecipe: with the place of what is wrong.
    """
    if file.stat().st_size > RECIPE_MAX_BYTES:
        raise BadRecipe(str(file), None, "file", "it is too large to be a recipe")
    text = file.read_text("utf-8")
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"line (\d+)", str(error))
        raise BadRecipe(str(file), int(line.group(1)) if line else None, "TOML", str(error)) from error
    document["source_file"] = str(file)
    recipe: Recipe = _Reader(file, text).read(Recipe, document, ())
    if not recipe.checkpoints or not recipe.engines:
        raise BadRecipe(str(file), None, "checkpoints, engines", "at least one of each is needed")
    return recipe


Path_ = tuple[str | int, ...]
"""Where a value stands: keys, and positions in arrays of tables."""


class _Reader:
    """Turns parsed TOML into frozen values, knowing where it is."""

    def __init__(self, file: Path, text: str) -> None:
        self._file = str(file)
        self._text = text

    def read(self, kind: type[Any], table: Mapping[str, Any], path: Path_) -> Any:
        fields = {each.name: each for each in dataclasses.fields(kind)}
        for name in table:
            if name not in fields:
                near = get_close_matches(name, fields, 1, 0.6)
                hint = f"; did you mean “{near[0]}”?" if near else ""
                self._fail((*path, name), f"there is no such field{hint}")
        values = {}
        hints = typing.get_type_hints(kind)
        for name, field in fields.items():
            if name in table:
                values[name] = self._value(hints[name], table[name], (*path, name))
            elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                self._fail((*path, name), "it is missing")
        return kind(**values)

    def _value(self, kind: Any, value: Any, path: Path_) -> Any:
        origin = typing.get_origin(kind)
        if origin is tuple:
            if not isinstance(value, list):
                self._fail(path, "it must be a list")
            [item, *_] = typing.get_args(kind)
            return tuple(self._value(item, each, (*path, i)) for i, each in enumerate(value))
        if origin in (types.UnionType, typing.Union):
            [kind] = [each for each in typing.get_args(kind) if each is not type(None)]
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, dict):
                self._fail(path, "it must be a table")
            return self.read(typing.cast("type[Any]", kind), value, path)
        if isinstance(kind, type) and issubclass(kind, Enum):
            try:
                return kind(value)
            except ValueError:
                self._fail(path, f"“{value}” is none of {', '.join(str(each.value) for each in kind)}")
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if type(value) is not kind:
            self._fail(path, f"it must be {_words(kind)}, not {_words(type(value))}")
        if isinstance(value, (int, float)) and value < 0:
            self._fail(path, "it must not be negative")
        return value

    def _fail(self, path: Path_, why: str) -> typing.NoReturn:
        shown = ".".join(str(part) if isinstance(part, str) else f"#{part + 1}" for part in path)
        raise BadRecipe(self._file, self._line(path), shown, why)

    def _line(self, path: Path_) -> int | None:
        """The line of the deepest part of `path` that the text has; only computed for an error."""
        names = [part for part in path if isinstance(part, str)]
        position = next((part for part in path if isinstance(part, int)), 0)
        table, key = (names[0], names[-1]) if len(names) > 1 else ("", names[0])
        lines = self._text.splitlines()
        start, seen = 0, -1
        if table:
            for number, line in enumerate(lines):
                if line.strip() in (f"[{table}]", f"[[{table}]]"):
                    seen += 1
                    start = number
                    if seen == position:
                        break
        for number in range(start, len(lines)):
            if re.match(rf"\s*{re.escape(key)}\s*=", lines[number]):
                return number + 1
            if table and number > start and lines[number].lstrip().startswith("["):
                break
        return start + 1 if table else None


def _words(kind: Any) -> str:
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(kind, str(kind))
