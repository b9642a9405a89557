"""Writes docs/commands.md and docs/json/ from the command line itself.

    python tools/reference.py            write them
    python tools/reference.py --check    say what is stale, and end with 1

`tests/cli/test_reference.py` compares, so that neither can fall behind.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from clorefleet.cli import main
from clorefleet.cli.documents import DOCUMENTS, ELSEWHERE, NO_DOCUMENT, PricedOffer
from clorefleet.cli.usage import examples

ROOT = Path(__file__).parents[1]
COMMANDS_PAGE = Path("docs/commands.md")
JSON_FOLDER = Path("docs/json")
COMMON = {"sandbox", "as_json", "debug", "no_color", "profile"}
_HEAD = """\
# Commands

Written by `python tools/reference.py` from the commands themselves; do not edit it by hand. The same text is
shown by `clorefleet COMMAND --help`.

Every command takes these, before or behind its name:

| option | does |
| --- | --- |
{common}

Results go to stdout, what is beside them to stderr. Moving lines and colour appear on a terminal only, colour
not with `--no-color`, a `NO_COLOR` that is not empty, or `TERM=dumb`. Tables keep to the terminal's width, or
to 80 columns; one that is too narrow for them gets a line for each field. Exit codes:
[exit-codes.md](exit-codes.md). JSON: [json.md](json.md).

`clorefleet --install-completion` teaches your shell the commands, options, deployments, models and GPUs.

{overview}
"""


def leaf_commands() -> Iterator[tuple[str, Any]]:
    """Every command that does something, as `hosts block`, in the order of the overview."""
    root = main.root()
    for name in main.COMMANDS:
        command = root.get_command(None, name)
        inner = getattr(command, "commands", None)
        if inner is None:
            yield name, command
        else:
            yield from ((f"{name} {each}", inner[each]) for each in inner)


def commands_page() -> str:
    common = "\n".join(f"| {_spelled(each)} | {each.help} |" for each in main.common_params())
    overview = "\n".join(f"- [`{name}`](#{_anchor(name)}): {text}" for name, text in main.COMMANDS.items())
    sections, seen = [], set()
    for name, command in leaf_commands():
        group = name.partition(" ")[0]
        if " " in name and group not in seen:
            sections.append(f"## {group}\n\n{main.COMMANDS[group]}\n")
        seen.add(group)
        sections.append(_section(name, command))
    return _HEAD.format(common=common, overview=overview) + "\n" + "\n".join(sections)


def _section(name: str, command: Any) -> str:
    text = command.help or ""
    prose = re.split(r"\n\nExamples?:\n", text)[0].strip()
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    shown = [each for each in command.params if each.param_type_name == "option" and each.name not in COMMON]
    needed = [f"{max(each.opts, key=len)} {each.metavar}" for each in shown if each.required]
    rest = ["[OPTIONS]"] if len(shown) > len(needed) else []
    usage = " ".join(["clorefleet", name, *(_as_argument(each) for each in arguments), *needed, *rest])
    lines = [f"{'###' if ' ' in name else '##'} {name}", "", f"    {usage}", "", prose, ""]
    rows = [(f"`{each.metavar}`", each) for each in arguments]
    rows += [(_spelled(each), each) for each in shown if each.name != "help"]
    if rows:
        lines += ["| | |", "| --- | --- |", *(f"| {word} | {_help(each)} |" for word, each in rows), ""]
    lines += ["```sh", *examples(text), "```", ""]
    schema = ELSEWHERE.get(name) or (f"docs/json/{_file(name)}" if name in DOCUMENTS else "")
    if schema:
        lines += [f"With `--json`: [{Path(schema).name}]({schema.removeprefix('docs/')}).", ""]
    return "\n".join(lines)


def _as_argument(param: Any) -> str:
    many = "..." if param.nargs != 1 else ""
    return f"{param.metavar}{many}" if param.required else f"[{param.metavar}{many}]"


def _spelled(param: Any) -> str:
    names = ", ".join(f"`{each}`" for each in sorted([*param.opts, *param.secondary_opts], key=len))
    is_flag = getattr(param, "is_flag", False)
    return names if is_flag else f"{names} `{param.metavar or 'VALUE'}`"


def _help(param: Any) -> str:
    extra = []
    if param.required:
        extra.append("needed")
    elif param.default not in (None, "", False, True, 0, [], ()):
        extra.append(f"default: `{param.default}`")
    least, most = getattr(param, "min", None), getattr(param, "max", None)
    if least is not None and most is not None:
        extra.append(f"{least:g} to {most:g}")
    elif least:
        extra.append(f"at least {least:g}")
    text = (param.help or "").replace("|", "\\|")
    return f"{text} ({'; '.join(extra)})" if extra else text


def _anchor(name: str) -> str:
    return name.replace(" ", "-")


def _file(name: str) -> str:
    return f"{re.sub(r'[^a-z]+', '-', name)}.schema.json"


# -- JSON


def schema_of(name: str) -> dict[str, Any]:
    """The schema of a command's document; of several shapes, all fields together."""
    merged: dict[str, Any] = {}
    for shape in DOCUMENTS[name]:
        found = TypeAdapter(shape).json_schema(mode="serialization")
        definitions = merged.get("$defs", {}) | found.pop("$defs", {})
        properties = merged.get("properties", {}) | found.pop("properties", {})
        required = [*merged.get("required", []), *found.pop("required", [])]
        merged |= found
        for key, value in (("properties", properties), ("required", required), ("$defs", definitions)):
            if value:
                merged[key] = value
    if name == "offers":
        own = TypeAdapter(PricedOffer).json_schema(mode="serialization")
        offer = merged["$defs"]["Offer"]
        offer["properties"] |= own["properties"]
        offer["required"] = [*offer.get("required", []), *own["required"]]
    _close(merged)
    merged.pop("title", None)
    merged.pop("description", None)
    title = "any command that fails" if name == "error" else f"clorefleet {name} --json"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title} | merged


def _close(part: Any) -> None:
    """Every object says all of its fields: what a document gains, its schema must gain too."""
    if isinstance(part, list):
        for each in part:
            _close(each)
    elif isinstance(part, dict):
        if part.get("type") == "object" and "properties" in part:
            part["additionalProperties"] = False
        for key, value in part.items():
            if key != "description":
                _close(value)


def pages() -> dict[Path, str]:
    """Every file that this program writes, with its text."""
    found = {COMMANDS_PAGE: commands_page()}
    for name in DOCUMENTS:
        text = json.dumps(schema_of(name), indent=1, ensure_ascii=False) + "\n"
        found[JSON_FOLDER / _file(name)] = text
    return found


def undocumented() -> list[str]:
    """Commands that neither have a document nor say why not."""
    known = {each.partition(" --")[0] for each in DOCUMENTS} | set(ELSEWHERE) | set(NO_DOCUMENT)
    return [name for name, _ in leaf_commands() if name not in known]


def stale() -> list[Path]:
    """Files that are not as this program would write them, and schemas of commands that are gone."""
    wanted = pages()
    changed = [
        path
        for path, text in wanted.items()
        if not (ROOT / path).is_file() or (ROOT / path).read_text("utf-8") != text
    ]
    written = {path.relative_to(ROOT) for path in (ROOT / JSON_FOLDER).glob("*.schema.json")}
    return changed + sorted(written - set(wanted))


def run() -> int:
    if "--check" in sys.argv:
        found = stale()
        sys.stdout.writelines(f"{path} is stale: python tools/reference.py\n" for path in found)
        return 1 if found else 0
    (ROOT / JSON_FOLDER).mkdir(exist_ok=True)
    for path in stale():
        text = pages().get(path)
        if text is None:
            (ROOT / path).unlink()
        else:
            (ROOT / path).write_text(text, "utf-8")
        sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(run())
