"""`clorefleet models`: the recipes."""

from __future__ import annotations

import typer

from clorefleet.cli.context import options
from clorefleet.cli.output import print_json, say, table

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def models(
    name: str = typer.Argument("", help="Show this model's checkpoints, engines and sources."),
) -> None:
    """List the models that have a recipe, or show one.

    Examples:

      clorefleet models

      clorefleet models glm-5.1
    """
    from clorefleet.config.recipes import find_recipe, load_recipes

    recipes = load_recipes()
    if name:
        _show(find_recipe(name, recipes))
        return
    if options.as_json:
        from clorefleet.store.codec import encode

        print_json({"models": [encode(recipe) for recipe in recipes.values()]})
        return
    rows = []
    for recipe in recipes.values():
        total = recipe.parameters.total
        size = f"{total / 1e9:.0f}B" if total >= 1e9 else f"{total / 1e6:.0f}M"
        precisions = ", ".join(dict.fromkeys(str(c.precision) for c in recipe.checkpoints))
        rows.append((recipe.name, size, f"{recipe.max_context_tokens // 1024}k", precisions, recipe.license))
    table(("MODEL", "SIZE", "CONTEXT", "PRECISIONS", "LICENCE"), rows, right=(1, 2))


def _show(recipe: object) -> None:
    from clorefleet.domain.recipe import Recipe
    from clorefleet.store.codec import encode

    assert isinstance(recipe, Recipe)  # noqa: S101 - narrows the lazily imported type
    if options.as_json:
        print_json(encode(recipe))
        return
    say(f"{recipe.title} ({recipe.name}), {recipe.license}")
    say(
        f"{recipe.parameters.total / 1e9:.2f}B parameters, {recipe.parameters.active_per_token / 1e9:.2f}B "
        f"active per token [{recipe.parameters.mark}]; context up to {recipe.max_context_tokens:,} tokens"
    )
    say(
        f"Floors: {recipe.floors.context_tokens:,} tokens of context, "
        f"{recipe.floors.decode_tokens_per_s:g} tokens/s for one stream"
    )
    say()
    table(
        ("CHECKPOINT", "PRECISION", "GB", "MARK", "REPOSITORY"),
        [(c.key, c.precision, f"{c.bytes / 1e9:,.1f}", c.bytes_mark, c.repo) for c in recipe.checkpoints],
        right=(2,),
    )
    say()
    table(
        ("ENGINE", "FROM", "SPECULATION", "NEEDS CUDA", "IMAGE"),
        [
            (e.engine, e.min_version or "-", e.speculative or "-", e.min_cuda or "-", e.image)
            for e in recipe.engines
        ],
    )
    say()
    say(f"Recipe: {recipe.source_file}")
