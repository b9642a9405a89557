"""`clorefleet init`: write a fleet file to begin with."""

from __future__ import annotations

from pathlib import Path

import typer

from clorefleet.cli.context import options
from clorefleet.cli.output import note, print_json, say

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def init(
    file: Path = typer.Option(Path("fleet.toml"), "--file", "-f", help="Where to write it."),
    model: str = typer.Option("glm-5.1", "--model", help="A name from `clorefleet models`."),
    budget: str = typer.Option("16/day", "--budget", "-b", help="A ceiling in USD: 16/day, 0.7/hour."),
    full: bool = typer.Option(False, "--full", help="An example of everything a fleet file can say."),
    force: bool = typer.Option(False, "--force", help="Write over a file that is there."),
) -> None:
    """Write a fleet file to begin with. Nothing is rented by it.

    Examples:

      clorefleet init --model glm-5.1 --budget 40/day

      clorefleet init --full --file example.toml
    """
    from clorefleet.cli.apply import words_for
    from clorefleet.config.fleet_file import read_fleet_file
    from clorefleet.config.recipes import find_recipe, load_recipes
    from clorefleet.config.starter import full_example, starter
    from clorefleet.domain.errors import ConfigError
    from clorefleet.domain.money import parse_budget

    parse_budget(budget)
    text = full_example() if full else starter(find_recipe(model, load_recipes()).name, budget.strip())
    read_fleet_file(str(file), text.encode())  # what we write must be readable
    try:
        with file.open("w" if force else "x", encoding="utf-8") as target:
            target.write(text)
    except FileExistsError as error:
        raise ConfigError(
            f"{file} is there already.",
            remedy="Use --force to write over it, or another name: --file NAME.",
            money="Nothing was changed.",
        ) from error
    except OSError as error:
        raise ConfigError(
            f"{file} cannot be written: {error.strerror}.", remedy="Use --file PATH."
        ) from error
    if options.as_json:
        print_json({"file": str(file)})
        return
    say(f"Wrote {file}.")
    words = f"{words_for(file)}{options.profile().flag}"
    note(
        f"Edit it; `clorefleet diff{words}` shows what it would change, `clorefleet apply{words}` does it, "
        "after asking."
    )
