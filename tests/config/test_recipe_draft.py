"""A draft from a hub's facts is a recipe that reads, agrees with itself, and says what it assumed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clorefleet.config.hub import HubModel
from clorefleet.config.recipe_check import check_recipe
from clorefleet.config.recipe_draft import draft_recipe, recipe_name
from clorefleet.config.recipes import load_recipes, read_recipe
from clorefleet.domain.errors import HubError
from clorefleet.domain.recipe import Confidence, Recipe

GLM_CONFIG = {
    "model_type": "glm_moe_dsa",
    "num_hidden_layers": 78,
    "hidden_size": 6144,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "vocab_size": 154_880,
    "max_position_embeddings": 202_752,
    "first_k_dense_replace": 3,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "moe_intermediate_size": 2048,
    "num_nextn_predict_layers": 1,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "index_topk": 2048,
}


def glm(**changes: object) -> HubModel:
    files = {"config.json": 900, "model-00001-of-00002.safetensors": 1_507_728_278_016}
    values = {"repo": "zai-org/GLM-5.1", "revision": "a" * 40, "config": GLM_CONFIG, "files": files,
              "weights_total": 1_507_728_278_016} | changes  # fmt: skip
    return HubModel(**values)  # type: ignore[arg-type]


def drafted(tmp_path: Path, model: HubModel, original: HubModel | None = None) -> Recipe:
    file = tmp_path / "draft.toml"
    file.write_text(draft_recipe(model, original), "utf-8")
    recipe = read_recipe(file)
    assert not [finding for finding in check_recipe(recipe) if finding.is_error]
    return recipe


def test_a_draft_of_a_known_model_comes_to_the_recipe_that_was_written_by_hand(tmp_path: Path):
    draft, ours = drafted(tmp_path, glm()), load_recipes()["glm-5.1"]
    assert draft.kv_cache.per_token_bytes_bf16 == ours.kv_cache.per_token_bytes_bf16
    assert draft.parameters.one_expert == ours.parameters.one_expert
    assert draft.architecture.attention == ours.architecture.attention
    # The file list counts the drafting layer too; nothing on the hub says how large it is.
    assert draft.parameters.total == ours.parameters.total + ours.parameters.mtp_layer
    assert draft.parameters.active_per_token == pytest.approx(ours.parameters.active_per_token, rel=0.3)
    assert draft.parameters.confidence is Confidence.LOW
    assert {support.min_compute_capability for support in draft.engines} == {"9.0"}


def test_a_gguf_repository_is_drafted_with_the_originals_dimensions(tmp_path: Path):
    gguf = glm(
        repo="unsloth/GLM-5.1-GGUF",
        config={},
        weights_total=None,
        files={
            "UD-Q4_K_XL/GLM-5.1-UD-Q4_K_XL-00001-of-00002.gguf": 200_000_000_000,
            "UD-Q4_K_XL/GLM-5.1-UD-Q4_K_XL-00002-of-00002.gguf": 233_000_000_000,
            "GLM-5.1-Q8_0.gguf": 801_000_000_000,
            "mmproj-F16.gguf": 900_000_000,
        },
    )
    recipe = drafted(tmp_path, gguf, glm())
    assert [(each.key, each.bytes) for each in recipe.checkpoints] == [
        ("q8_0", 801_000_000_000),
        ("ud_q4_k_xl", 433_000_000_000),
    ]
    assert recipe.name == "glm-5.1" and [str(each.engine) for each in recipe.engines] == ["llama.cpp"]


def test_a_gguf_repository_alone_says_what_is_missing():
    with pytest.raises(HubError) as caught:
        draft_recipe(glm(config={}, files={"a-Q4_K_M.gguf": 10**9}, weights_total=None))
    assert "--config-from" in caught.value.remedy


def test_sizes_from_a_sandbox_are_never_called_published(tmp_path: Path):
    [checkpoint] = drafted(tmp_path, glm(is_simulated=True)).checkpoints
    assert checkpoint.bytes_mark == "assumed" and "sandbox" in checkpoint.source


@pytest.mark.parametrize(
    "repo, name",
    [("Org/My_Model v2!", "my-model-v2"), ("o/---", "model"), ("a/" + "x" * 99, "x" * 60)],
)
def test_a_recipes_name_is_safe_in_paths_and_tables(repo: str, name: str):
    assert recipe_name(repo) == name


hostile = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


NAMES = st.sampled_from([*GLM_CONFIG, "text_config", "layer_types", "quantization_config"])


@given(config=st.dictionaries(NAMES, hostile),
       files=st.dictionaries(st.text(max_size=30) | st.sampled_from(["a.safetensors", "b-Q4_K_M.gguf"]),
                             st.integers(0, 10**13), max_size=4))  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_a_hostile_hub_gets_a_refusal_or_a_draft_that_reads(tmp_path_factory, config, files):
    model = glm(config=GLM_CONFIG | config, files=files, weights_total=None)
    try:
        text = draft_recipe(model)
    except HubError:
        return
    import tomllib

    tomllib.loads(text)
