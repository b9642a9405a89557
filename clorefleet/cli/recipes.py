"""`clorefleet recipes`: whether recipe files say what can be."""

from __future__ import annotations

from pathlib import Path

import typer

from clorefleet.cli.context import options
from clorefleet.cli.output import note, print_json, say

app = typer.Typer(
    rich_markup_mode=None, add_completion=False, no_args_is_help=True, help="Check recipe files."
)


@app.callback()
def _group() -> None:
    """Check recipe files."""


@app.command()
def check(
    files: list[Path] = typer.Argument(None, help="Recipe files; default: the project's own and yours."),
    strict: bool = typer.Option(False, "--strict", help="Warnings fail too."),
) -> None:
    """Compare each recipe's figures with each other and with what the engines accept.

    Examples:

      clorefleet recipes check

      clorefleet recipes check my-model.toml --strict
    """
    from clorefleet.config.recipe_check import check_recipe
    from clorefleet.config.recipes import read_recipe, recipe_files
    from clorefleet.domain.errors import BadInput, BadRecipe

    errors = warnings = 0
    document = []
    wanted = list(files) if files else list(recipe_files())
    for file in wanted:
        if not file.is_file():
            raise BadInput(f"There is no file {file}.", remedy="Give the path of a recipe.")
        try:
            findings = [(each.is_error, each.where, each.text) for each in check_recipe(read_recipe(file))]
        except BadRecipe as error:
            findings = [(True, error.field, error.what)]
        errors += sum(is_error for is_error, _, _ in findings)
        warnings += sum(not is_error for is_error, _, _ in findings)
        document += [
            {"file": str(file), "level": "error" if bad else "warning", "where": where, "text": text}
            for bad, where, text in findings
        ]
        if not options.as_json:
            say(f"{file.stem}: {'wrong' if any(bad for bad, _, _ in findings) else 'good'}")
            for bad, where, text in findings:
                say(f"  {'error' if bad else 'warning'}: {where}: {text}")
    if options.as_json:
        print_json({"findings": document, "errors": errors, "warnings": warnings})
    else:
        note(f"{len(wanted)} recipe(s), {errors} error(s), {warnings} warning(s).")
    if errors or (strict and warnings):
        raise typer.Exit(2)
