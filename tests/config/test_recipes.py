"""Recipes are data: each file reads, and a slip is told with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from clorefleet.cli.panic import recipe_images
from clorefleet.config.places import recipes_dir
from clorefleet.config.recipes import find_recipe, load_recipes, read_recipe
from clorefleet.domain.errors import BadRecipe, UnknownModel
from clorefleet.domain.recipe import Mark

GOOD = (recipes_dir() / "glm-5.1.toml").read_text("utf-8")


def test_every_recipe_reads_and_names_its_sources():
    recipes = load_recipes()
    assert {"glm-5.1", "smollm2-135m", "gpt-oss-120b", "deepseek-v3.2"} <= set(recipes)
    for name, recipe in recipes.items():
        assert Path(recipe.source_file).stem == name
        keys = [checkpoint.key for checkpoint in recipe.checkpoints]
        assert len(keys) == len(set(keys))
        for checkpoint in recipe.checkpoints:
            assert checkpoint.source and checkpoint.bytes > 0
            assert any(checkpoint.layout in support.layouts for support in recipe.engines)


def test_glm_5_1_has_its_published_dimensions():
    recipe = load_recipes()["glm-5.1"]
    assert recipe.parameters.total == 743_911_218_432
    assert recipe.kv_cache.is_replicated_across_tp
    assert recipe.checkpoint("q4_k_m").bytes_mark is Mark.PUBLISHED
    assert recipe.sampling.temperature == 1.0


@pytest.mark.parametrize(
    "old, new, field, line_of",
    [
        ("heads = 64", "headz = 64", "architecture.headz", "headz"),
        ("heads = 64", 'heads = "many"', "architecture.heads", "heads ="),
        ('precision = "fp8"', 'precision = "fp9"', "precision", 'precision = "fp9"'),
        ("max_context_tokens", "max_contekst", "max_contekst", "max_contekst"),
        ("num_layers = 78\n", "", "architecture.num_layers", "[architecture]"),
        ("context_tokens = 16384", "context_tokens = -1", "floors.context_tokens", "context_tokens = -1"),
        ("[architecture]", "[architecturre]", "architecturre", "[architecturre]"),
        ('key = "fp8"', 'keyy = "fp8"', "checkpoints.#2.keyy", "keyy"),
        ("experts = 256", "experts = true", "architecture.experts", "experts = true"),
    ],
)
def test_a_slip_is_told_with_file_line_and_field(tmp_path: Path, old, new, field, line_of):
    assert old in GOOD
    text = GOOD.replace(old, new, 1)
    file = tmp_path / "slip.toml"
    file.write_text(text, "utf-8")
    with pytest.raises(BadRecipe) as caught:
        read_recipe(file)
    assert field in caught.value.field and str(file) in caught.value.what
    assert line_of in text.splitlines()[(caught.value.line or 0) - 1]


@pytest.mark.parametrize(
    "old, new, field",
    [
        ("num_layers = 78", "num_layers = 0", "architecture.num_layers"),
        ("heads = 64", "heads = 0", "architecture.heads"),
        ("bytes = 756_091_613_345", "bytes = 0", "checkpoints.#2.bytes"),
        ('key = "fp8"', 'key = "bf16"', "checkpoints.#2.key"),
        ('min_cuda = "13.0"', 'min_cuda = "thirteen"', "engines.#1.min_cuda"),
        ('min_cuda = "12.9"', 'min_cuda = "latest"', "engines.#1.variants.#1.min_cuda"),
        ('"sglang==0.5.10"', '"--index-url=http://x"', "engines.#1.variants.#2.packages"),
        ('"sglang==0.5.10"', '"sglang>=0.5.10"', "engines.#1.variants.#2.packages"),
        ("install_bytes = 25_000_000_000", "install_bytes = 0", "engines.#1.variants.#2.packages"),
        ("cloreai/ubuntu22.04-cuda12", "lmsysorg/sglang:v0.5.23", "engines.#1.variants.#2.image"),
        ('layouts = ["gguf"]', 'layouts = ["safetensors"]', "checkpoints.#3.layout"),
        ("decode_tokens_per_s = 2.0", "decode_tokens_per_s = nan", "floors.decode_tokens_per_s"),
        ("context_tokens = 16384", "context_tokens = 999_999", "floors.context_tokens"),
        ("experts = 256", "experts = 0", "parameters.one_expert"),
        ('name = "glm-5.1"', 'name = "a\\u001b[31m"', "name"),
    ],
)
def test_figures_that_cannot_be_are_refused_before_a_plan_divides_by_them(tmp_path: Path, old, new, field):
    assert old in GOOD
    file = tmp_path / "slip.toml"
    file.write_text(GOOD.replace(old, new, 1), "utf-8")
    with pytest.raises(BadRecipe) as caught:
        read_recipe(file)
    assert caught.value.field == field and caught.value.line is not None


def test_a_file_that_is_no_text_is_a_bad_recipe_and_not_a_crash(tmp_path: Path):
    file = tmp_path / "binary.toml"
    file.write_bytes(b"name = \xff")
    with pytest.raises(BadRecipe):
        read_recipe(file)


def test_a_misspelt_field_gets_the_nearest_one(tmp_path: Path):
    file = tmp_path / "slip.toml"
    file.write_text(GOOD.replace("heads = 64", "headz = 64", 1), "utf-8")
    with pytest.raises(BadRecipe, match="did you mean “heads”"):
        read_recipe(file)


def test_broken_toml_is_told_with_its_line(tmp_path: Path):
    file = tmp_path / "broken.toml"
    file.write_text('name = "x"\nheads = = 3\n', "utf-8")
    with pytest.raises(BadRecipe) as caught:
        read_recipe(file)
    assert caught.value.line == 2


def test_a_users_own_recipe_is_read_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CLOREFLEET_HOME", str(tmp_path))
    folder = tmp_path / "config" / "recipes"
    folder.mkdir(parents=True)
    (folder / "mine.toml").write_text(GOOD.replace('name = "glm-5.1"', 'name = "mine"', 1), "utf-8")
    assert "mine" in load_recipes()


def test_an_unknown_model_gets_the_nearest_names():
    with pytest.raises(UnknownModel) as caught:
        find_recipe("glm-51", load_recipes())
    assert "glm-5.1" in caught.value.nearest


def test_a_base_image_does_not_tell_whose_order_runs_it():
    """Somebody's own server with the same base image is not ended for ours."""
    supports = [support for recipe in load_recipes().values() for support in recipe.engines]
    base = {image for support in supports for image in support.base_images}
    assert base and not base & recipe_images()
    assert {support.image for support in supports} <= base | recipe_images()
