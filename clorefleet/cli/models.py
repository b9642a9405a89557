"""`clorefleet models`: the recipes, and a draft of a new one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from clorefleet.cli.context import options
from clorefleet.cli.output import note, print_json, say, say_verbatim, table
from clorefleet.cli.progress import working

if TYPE_CHECKING:
    from clorefleet.domain.recipe import Recipe


class _Models(TyperGroup):
    """`models` alone lists, `models NAME` shows: the words that people type first."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if ctx.resilient_parsing and not args:
            pass  # the shell completes the word that follows: any of these, or a model
        elif not args or (args[0].startswith("-") and args[0] not in ("--help", "-h")):
            args = ["list", *args]
        elif not args[0].startswith("-") and args[0] not in self.commands:
            args = ["show", *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        from typer._click.shell_completion import CompletionItem

        from clorefleet.cli.parameter import model_names

        names = [CompletionItem(name) for name in model_names() if name.startswith(incomplete.lower())]
        return [*super().shell_complete(ctx, incomplete), *names]


app = typer.Typer(
    cls=_Models,
    rich_markup_mode=None,
    add_completion=False,
    help="List the models that have a recipe, show one, or draft a new one.",
)


@app.command("list")
def list_models() -> None:
    """List the models that have a recipe.

    Examples:

      clorefleet models

      clorefleet models glm-5.1
    """
    from clorefleet.config.recipes import load_recipes

    recipes = load_recipes()
    if options.as_json:
        from clorefleet.store.codec import encode

        print_json({"models": [encode(recipe) for recipe in recipes.values()]})
        return
    rows = []
    for recipe in recipes.values():
        total = recipe.parameters.total
        size = f"{total / 1e9:.0f}B" if total >= 1e9 else f"{total / 1e6:.0f}M"
        precisions = ",".join(dict.fromkeys(str(c.precision) for c in recipe.checkpoints))
        rows.append((recipe.name, size, f"{recipe.max_context_tokens // 1024}k", precisions, recipe.license))
    table(("MODEL", "SIZE", "CONTEXT", "PRECISIONS", "LICENCE"), rows, right=(1, 2))


@app.command()
def show(name: str = typer.Argument(..., help="A name from `clorefleet models`.")) -> None:
    """Show a model's checkpoints, engines, price elsewhere and sources.

    Example:

      clorefleet models show glm-5.1
    """
    from clorefleet.config.model_name import find_model
    from clorefleet.config.recipes import load_recipes

    recipes = load_recipes()
    recipe = recipes[find_model(name, recipes).model]
    if options.as_json:
        from clorefleet.store.codec import encode

        print_json(encode(recipe))
        return
    _show_head(recipe)
    _show_checkpoints(recipe)
    _show_engines(recipe)
    _show_rest(recipe)


def _show_head(recipe: Recipe) -> None:
    params, arch = recipe.parameters, recipe.architecture
    say(f"{recipe.title} ({recipe.name}), {recipe.license}")
    say(
        f"{params.total / 1e9:.2f}B parameters, {params.active_per_token / 1e9:.2f}B active per token "
        f"[{params.mark}, {params.confidence} confidence]"
    )
    shape = f"{arch.num_layers} layers, hidden {arch.hidden}, {arch.heads} heads, {arch.attention}"
    if arch.experts:
        shape += f", {arch.experts_per_token} of {arch.experts} experts a token"
    say(f"{shape} [{arch.confidence} confidence]")
    output = f", {recipe.max_output_tokens:,} of output" if recipe.max_output_tokens else ""
    say(
        f"Context up to {recipe.max_context_tokens:,} tokens{output}; "
        f"{recipe.kv_cache.per_token_bytes_bf16 / 1024:.1f} KiB of memory a token in BF16"
        f"{', on every GPU' if recipe.kv_cache.is_replicated_across_tp else ''}"
    )
    say(
        f"Floors: {recipe.floors.context_tokens:,} tokens of context, "
        f"{recipe.floors.decode_tokens_per_s:g} tokens/s for one stream"
    )
    sampling = recipe.sampling
    if sampling.temperature is not None:
        kind = f"temperature {sampling.temperature:g}, top_p {sampling.top_p or 1:g}"
        say(f"Sampling: {kind} [{sampling.source}]")


def _show_checkpoints(recipe: Recipe) -> None:
    say()
    table(
        ("CHECKPOINT", "CLASS", "GB", "MARK", "CONFIDENCE", "REPOSITORY"),
        [
            (c.key, c.precision, f"{c.bytes / 1e9:,.1f}", c.bytes_mark, c.confidence, c.repo)
            for c in recipe.checkpoints
        ],
        right=(2,),
    )


def _show_engines(recipe: Recipe) -> None:
    say()
    table(
        ("ENGINE", "FROM", "DRAFTS", "CUDA", "GPU FROM", "TOOLS", "REASONING"),
        [
            (
                e.engine,
                f"{e.min_version}{'*' if e.min_version_mark == 'assumed' else ''}" if e.min_version else "-",
                e.speculative or "-",
                e.min_cuda or "-",
                e.min_compute_capability or "-",
                e.tool_call_parser or "-",
                e.reasoning_parser or "-",
            )
            for e in recipe.engines
        ],
    )
    if any(e.min_version and e.min_version_mark == "assumed" for e in recipe.engines):
        note("* assumed")
    for each in recipe.unsupported:
        say(f"Not with {each.engine}: {each.reason} [{each.source}]")


def _show_rest(recipe: Recipe) -> None:
    say()
    price = recipe.hosted_price
    if price is None:
        say("Hosted API: no price with a source is known.")
    else:
        say(
            f"Hosted API: {price.provider}, ${price.usd_per_million_input} in and "
            f"${price.usd_per_million_output} out per million tokens, {price.read_on} [{price.source}]"
        )
    if recipe.ollama is not None:
        say(f"Ollama calls it {recipe.ollama.name} [{recipe.ollama.source}]")
    say("Sources:")
    for what, source in (
        ("parameters", recipe.parameters.source),
        ("architecture", recipe.architecture.source),
        ("context memory", recipe.kv_cache.source),
        *((c.key, c.source) for c in recipe.checkpoints),
        *((str(e.engine), e.source) for e in recipe.engines),
    ):
        say(f"  {what}: {source}")
    say(f"Recipe: {recipe.source_file}")


@app.command()
def add(
    repo: str = typer.Argument(..., metavar="ORG/NAME", help="A repository on the hub."),
    config_from: str = typer.Option(
        "", "--config-from", metavar="ORG/NAME", help="The original model, for a GGUF repository."
    ),
    name: str = typer.Option("", "--name", metavar="NAME", help="The recipe's name; default: the model's."),
    force: bool = typer.Option(False, "--force", help="Replace the recipe that has this name."),
) -> None:
    """Draft a recipe from a repository's config.json and file list, into your own recipe folder.

    A draft is a beginning: what the hub does not tell is assumed, and says so. A name that a recipe has
    already is refused without --force: every plan of that name would follow the draft.

    Examples:

      clorefleet models add zai-org/GLM-5.1-FP8 --sandbox

      clorefleet models add unsloth/GLM-5.1-GGUF --config-from zai-org/GLM-5.1 --name glm-5.1-gguf --sandbox
    """
    from clorefleet.config.hub import fetch_model
    from clorefleet.config.places import config_root
    from clorefleet.config.profile import connect
    from clorefleet.config.recipe_check import check_recipe
    from clorefleet.config.recipe_draft import draft_recipe
    from clorefleet.config.recipes import load_recipes, read_recipe

    name = _free_name(name, config_from or repo, force=force)
    file = config_root() / "recipes" / f"{name}.toml"
    with working("Asking the hub"):
        hub_url = connect(options.profile(), needs_key=False).hub_url
        model = fetch_model(hub_url, repo)
        original = fetch_model(hub_url, config_from) if config_from else None
    text = draft_recipe(model, original, name=name)
    known = load_recipes().get(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    before = file.read_text("utf-8") if file.exists() else None
    file.write_text(text, "utf-8")
    try:
        recipe = read_recipe(file)
    except BaseException:
        # A draft that cannot be read would stop every other command.
        file.unlink() if before is None else file.write_text(before, "utf-8")
        raise
    findings = check_recipe(recipe)
    if options.as_json:
        print_json({"name": name, "file": str(file), "findings": [f"{f.where}: {f.text}" for f in findings]})
        return
    say(f"Drafted {name}: {file}")
    if known is not None and not known.source_file.startswith(str(config_root())):
        note("It replaces the project's own recipe of that name. Delete the file to have that one back.")
    for finding in findings:
        say(f"  {'error' if finding.is_error else 'warning'}: {finding.where}: {finding.text}")
    flag = options.profile().flag
    note(f"Check each line, then: clorefleet recipes check {file} && clorefleet plan {name}{flag}")


def _free_name(wanted: str, repo: str, *, force: bool) -> str:
    """The draft's name, which no recipe has yet; with `force`, any.

    Raises:
        BadInput: it is none, or a recipe has it: a draft in its place would be what every plan goes by.
    """
    from clorefleet.config.places import config_root
    from clorefleet.config.recipe_draft import recipe_name
    from clorefleet.config.recipes import load_recipes
    from clorefleet.domain.errors import BadInput

    if wanted and recipe_name(wanted) != wanted:
        raise BadInput(
            f"“{wanted[:60]}” cannot be a recipe's name.",
            remedy="Use lower-case letters, digits, dots and dashes, 60 at most.",
            money="Nothing was written.",
        )
    name = wanted or recipe_name(repo)
    file = config_root() / "recipes" / f"{name}.toml"
    known = load_recipes().get(name)
    if force or (known is None and not file.exists()):
        return name
    if known is None or known.source_file.startswith(str(config_root())):
        what = f"There is a recipe {name} of yours already: {known.source_file if known else file}."
    else:
        what = (
            f"clorefleet's own recipe {name} ({known.title}) would be replaced: "
            f"`clorefleet plan {name}` and whatever runs it would go by an unchecked draft."
        )
    raise BadInput(
        what,
        remedy="Give the draft another name with --name NAME, or add --force to replace that recipe.",
        money="Nothing was written.",
    )


@app.command()
def calibration(
    markdown: bool = typer.Option(False, "--markdown", help="Print docs/calibration.md."),
) -> None:
    """Show the planner's speeds beside published measurements, misses included.

    Example:

      clorefleet models calibration
    """
    from clorefleet.config.recipes import load_calibration_recipes
    from clorefleet.planner.evidence import load_evidence, median_error, page, rows
    from clorefleet.planner.gpus import load_gpus

    evidence = load_evidence()
    found = rows(evidence, load_calibration_recipes(), load_gpus())
    if options.as_json:
        print_json(
            {
                "median_error": round(median_error(found), 4),
                "runs": [
                    {
                        "name": row.run.name,
                        "measured": row.run.measured,
                        "predicted": round(row.predicted, 2),
                        "error": round(row.error, 4),
                        "fits": list(row.run.fits),
                        "source": row.run.source,
                    }
                    for row in found
                ],
            }
        )
    elif markdown:
        say_verbatim(page(evidence, found), end="")
    else:
        table(
            ("RUN", "MEASURED", "PREDICTED", "ERROR"),
            [
                (f"{row.run.name[:52]}{'*' if row.run.fits else ''}", f"{row.run.measured:,.4g}",
                 f"{row.predicted:,.4g}", f"{row.error:+.0%}")
                for row in found
            ],
            right=(1, 2, 3),
        )  # fmt: skip
        note(f"Output tokens/s. * a constant was chosen by it. Median error {median_error(found):.0%}.")
