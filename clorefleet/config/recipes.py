"""Reading recipes: the project's own, and a user's in `recipes/` of the configuration folder.

A recipe is checked against the dataclasses of `clorefleet.domain.recipe`, field by field. What is wrong
is told with file, line and field; a misspelt field with the nearest known one.
"""

from __future__ import annotations

import dataclasses
import math
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from typing import Any

from clorefleet.config.places import PACKAGE_DIR, config_root, recipes_dir
from clorefleet.domain.errors import BadRecipe, UnknownModel
from clorefleet.domain.recipe import Recipe

RECIPE_MAX_BYTES = 256 * 1024
NEAREST_MAX = 3


def load_recipes(extra_dirs: Iterable[Path] = ()) -> dict[str, Recipe]:
    """All recipes by name, in the order of names. A later folder's recipe replaces an earlier one's.

    Raises:
        BadRecipe: a file that cannot be used.
    """
    found = {recipe.name: recipe for recipe in map(read_recipe, recipe_files(extra_dirs))}
    return dict(sorted(found.items()))


class Recipes(Mapping[str, Recipe]):
    """All recipes, by name. One that is asked for and not there is looked for on disk once more: a daemon
    runs for weeks, and its user adds recipes meanwhile."""

    def __init__(self) -> None:
        """
        Raises:
            BadRecipe: a file that cannot be used; so does a look for what is not there.
        """
        self._found = load_recipes()

    def __getitem__(self, name: str) -> Recipe:
        if name not in self._found:
            self._found = load_recipes()
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def recipe_files(extra_dirs: Iterable[Path] = ()) -> Iterator[Path]:
    """The project's own, then the user's, then those of `extra_dirs`."""
    for folder in (recipes_dir(), config_root() / "recipes", *extra_dirs):
        if folder.is_dir():
            yield from sorted(folder.glob("*.toml"))


def load_calibration_recipes() -> dict[str, Recipe]:
    """The project's own recipes, without the user's, and those that only published runs need."""
    folder = PACKAGE_DIR / "data" / "calibration"
    files = [*sorted(recipes_dir().glob("*.toml")), *sorted(folder.glob("*.toml"))]
    found = (read_recipe(file) for file in files if file.stem != "runs")
    return {recipe.name: recipe for recipe in found}


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
    try:
        text = file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise BadRecipe(str(file), None, "file", "it is not UTF-8 text") from error
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"line (\d+)", str(error))
        raise BadRecipe(str(file), int(line.group(1)) if line else None, "TOML", str(error)) from error
    document["source_file"] = str(file)
    reader = _Reader(file, text)
    recipe: Recipe = reader.read(Recipe, document, ())
    for path, why in _contradictions(recipe):
        reader.fail(path, why)
    return recipe


_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,59}")
_VERSION = re.compile(r"\d{1,2}(\.\d{1,2})?")
_PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}==[0-9][0-9A-Za-z.+]{0,39}")
"""A pin and nothing else: it becomes a word of a command on the server."""


def _contradictions(recipe: Recipe) -> Iterator[tuple[Path_, str]]:
    """What has the right type and still cannot be: the planner divides by these, and shows these names."""
    if not _NAME.fullmatch(recipe.name):
        yield ("name",), "it must be lower-case letters, digits, dots and dashes, 60 at most"
    for path, number in (
        (("max_context_tokens",), recipe.max_context_tokens),
        (("parameters", "total"), recipe.parameters.total),
        (("parameters", "active_per_token"), recipe.parameters.active_per_token),
        (("architecture", "num_layers"), recipe.architecture.num_layers),
        (("architecture", "hidden"), recipe.architecture.hidden),
        (("architecture", "heads"), recipe.architecture.heads),
        (("floors", "context_tokens"), recipe.floors.context_tokens),
    ):
        if number <= 0:
            yield path, "it must be more than zero"
    if recipe.floors.context_tokens > recipe.max_context_tokens:
        yield ("floors", "context_tokens"), f"the model has {recipe.max_context_tokens:,} tokens at most"
    if recipe.parameters.one_expert and not recipe.architecture.experts:
        yield ("parameters", "one_expert"), "the architecture has no experts"
    if not recipe.checkpoints:
        yield ("checkpoints",), "at least one is needed"
    if not recipe.engines:
        yield ("engines",), "at least one is needed"
    seen: set[str] = set()
    served = {layout for support in recipe.engines for layout in support.layouts}
    for index, checkpoint in enumerate(recipe.checkpoints):
        here: Path_ = ("checkpoints", index)
        if checkpoint.key in seen:
            yield (*here, "key"), f"“{checkpoint.key}” is there already"
        seen.add(checkpoint.key)
        if checkpoint.bytes <= 0:
            yield (*here, "bytes"), "it must be more than zero"
        if not checkpoint.files:
            yield (*here, "files"), "at least one pattern is needed"
        if checkpoint.layout not in served:
            yield (*here, "layout"), f"no engine of this recipe reads {checkpoint.layout}"
    for index, support in enumerate(recipe.engines):
        for field in ("min_cuda", "min_compute_capability"):
            version: str = getattr(support, field)
            if version and not _VERSION.fullmatch(version):
                yield ("engines", index, field), f"“{version}” is not a version such as 12.4"
        yield from _bad_packages(("engines", index), support.packages, support.install_bytes)
        images = {support.image}
        for place, variant in enumerate(support.variants):
            where: Path_ = ("engines", index, "variants", place)
            if not _VERSION.fullmatch(variant.min_cuda):
                yield (*where, "min_cuda"), f"“{variant.min_cuda}” is not a version such as 12.4"
            if variant.image in images:
                yield (*where, "image"), f"“{variant.image}” is there already"
            images.add(variant.image)
            yield from _bad_packages(where, variant.packages, variant.install_bytes)


def _bad_packages(where: Path_, packages: tuple[str, ...], install_bytes: int) -> Iterator[tuple[Path_, str]]:
    for package in packages:
        if not _PACKAGE.fullmatch(package):
            yield (*where, "packages"), f"“{package[:60]}” is no pin such as vllm==0.19.1"
    if packages and install_bytes <= 0:
        yield (*where, "packages"), "install_bytes must say how much disk they take"


_types: dict[object, Mapping[str, Any]] = {}


def _field_types(kind: type[Any]) -> Mapping[str, Any]:
    """Annotations of a dataclass as types. Evaluating them anew for each table took half of the loading."""
    if kind not in _types:
        _types[kind] = typing.get_type_hints(kind)
    return _types[kind]


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
                self.fail((*path, name), f"there is no such field{hint}")
        values = {}
        hints = _field_types(kind)
        for name, field in fields.items():
            if name in table:
                values[name] = self._value(hints[name], table[name], (*path, name))
            elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                self.fail((*path, name), "it is missing")
        return kind(**values)

    def _value(self, kind: Any, value: Any, path: Path_) -> Any:
        origin = typing.get_origin(kind)
        if origin is tuple:
            if not isinstance(value, list):
                self.fail(path, "it must be a list")
            [item, *_] = typing.get_args(kind)
            return tuple(self._value(item, each, (*path, i)) for i, each in enumerate(value))
        if origin in (types.UnionType, typing.Union):
            [kind] = [each for each in typing.get_args(kind) if each is not type(None)]
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, dict):
                self.fail(path, "it must be a table")
            return self.read(typing.cast("type[Any]", kind), value, path)
        if isinstance(kind, type) and issubclass(kind, Enum):
            try:
                return kind(value)
            except ValueError:
                self.fail(path, f"“{value}” is none of {', '.join(str(each.value) for each in kind)}")
        if kind is Decimal:
            return self._amount(value, path)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if type(value) is not kind:
            self.fail(path, f"it must be {_words(kind)}, not {_words(type(value))}")
        if isinstance(value, (int, float)) and not 0 <= value < math.inf:
            self.fail(path, "it must be finite and not negative")
        return value

    def _amount(self, value: Any, path: Path_) -> Decimal:
        """Money: written as text, so that no float touches it."""
        if not isinstance(value, str):
            self.fail(path, 'an amount is written as text, for instance "1.40"')
        try:
            amount = Decimal(value)
        except InvalidOperation:
            self.fail(path, f"“{value[:20]}” is not an amount")
        if not amount.is_finite() or amount < 0:
            self.fail(path, "it must be finite and not negative")
        return amount

    def fail(self, path: Path_, why: str) -> typing.NoReturn:
        shown = ".".join(str(part) if isinstance(part, str) else f"#{part + 1}" for part in path)
        raise BadRecipe(self._file, self._line(path), shown, why)

    def _line(self, path: Path_) -> int | None:
        """The line of the deepest part of `path` that the text has; only computed for an error."""
        names = [part for part in path if isinstance(part, str)]
        position = next((part for part in path if isinstance(part, int)), 0)
        lines = self._text.splitlines()
        heads = [number for number, line in enumerate(lines) if line.lstrip().startswith("[")]
        mine = [number for number in heads if re.match(rf"\s*\[+{re.escape(names[0])}\]", lines[number])]
        if len(mine) > position:
            start = mine[position]
        elif len(names) == 1:
            start = -1
        else:
            return None
        end = next((number for number in heads if number > start), len(lines))
        for number in range(start + 1, end):
            if re.match(rf"\s*{re.escape(names[-1])}\s*=", lines[number]):
                return number + 1
        return start + 1 or None


def _words(kind: Any) -> str:
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(kind, str(kind))
