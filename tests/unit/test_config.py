"""Settings: presets load, mistakes are refused with their place, values survive every trip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from treediffusion.config import (
    Config,
    Section,
    TreeConfig,
    load_config,
    load_preset,
    parse_config,
    preset_names,
)
from treediffusion.errors import ConfigError


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", preset_names())
def test_presets_load_and_know_their_name(name: str) -> None:
    config = load_preset(name)
    assert config.preset == name
    assert Config.model_validate(config.model_dump()) == config


def test_there_is_a_preset_for_a_first_try() -> None:
    assert "tiny" in preset_names()
    assert preset_names() == sorted(preset_names())


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"got 'tyni', expected one of .*tiny"):
        load_preset("tyni")


def test_a_preset_name_is_no_path() -> None:
    with pytest.raises(ConfigError, match="preset"):
        load_preset("../presets/tiny")


@pytest.mark.parametrize(
    ("settings", "place"),
    [
        ({"sead": 1}, "sead"),
        ({"tree": {"lerning_rate": 1e-3}}, "tree.lerning_rate"),
        ({"tree": {"phases": {"inital": 3}}}, "tree.phases.inital"),
        ({"tree": {"contrastive": {"wait": 3}}}, "tree.contrastive.wait"),
        ({"diffusion": {"unet": {"width": 3}}}, "diffusion.unet.width"),
        ({"sampling": {"steps": 3}}, "sampling.steps"),
    ],
)
def test_unknown_settings_are_refused_with_place_and_hint(
    settings: dict[str, Any], place: str
) -> None:
    with pytest.raises(ConfigError, match="not permitted") as caught:
        parse_config(settings, source="mine.yaml")
    assert caught.value.name == place
    assert caught.value.hint == "correct it in mine.yaml"


@pytest.mark.parametrize(
    ("settings", "place"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"seed": "many"}, "seed"),
        ({"tree": 3}, "tree"),
        ({"tree": None}, "tree"),
        ({"tree": {"levels": 1}}, "tree.levels"),
        ({"tree": {"max_leaves": 1}}, "tree.max_leaves"),
        ({"tree": {"batch_size": 1}}, "tree.batch_size"),
        ({"tree": {"min_share": 1.5}}, "tree.min_share"),
        ({"tree": {"learning_rate": 0}}, "tree.learning_rate"),
        ({"tree": {"learning_rate": float("nan")}}, "tree.learning_rate"),
        ({"tree": {"likelihood": "poisson"}}, "tree.likelihood"),
        ({"tree": {"codec_sizes": [28, 0]}}, "tree.codec_sizes.1"),
        ({"tree": {"phases": {"final": -1}}}, "tree.phases.final"),
        ({"tree": {"contrastive": {"temperature": 0}}}, "tree.contrastive.temperature"),
        ({"diffusion": {"unet": {"channels": 40}}}, "diffusion.unet.channels"),
        ({"sampling": {"eta": -0.1}}, "sampling.eta"),
    ],
)
def test_values_out_of_range_are_refused_with_their_place(
    settings: dict[str, Any], place: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(settings, source="mine.yaml")
    assert caught.value.name == place


def test_the_largest_number_of_leaves_is_that_of_the_full_tree() -> None:
    assert TreeConfig(levels=4, max_leaves=8).max_leaves == 8
    with pytest.raises(ConfigError, match="max_leaves 9 do not fit 4 levels; at most 8"):
        parse_config({"tree": {"levels": 4, "max_leaves": 9}}, source="mine.yaml")


@pytest.mark.parametrize(
    "tree",
    [
        {"codec_channels": [8, 16]},
        {"codec_sizes": [28, 14, 7, 2], "codec_channels": [8]},
        {"codec_sizes": [28, 14, 7, 2], "codec_channels": [8, 16, 24]},
        {"codec_sizes": [28, 2], "codec_channels": [8]},
    ],
)
def test_codec_channels_need_one_entry_per_inner_size(tree: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="codec_channels needs codec_sizes"):
        parse_config({"tree": tree}, source="mine.yaml")


@pytest.mark.parametrize(
    ("tree", "what"),
    [
        ({"codec": "cnn2", "codec_sizes": [32, 4]}, "codec_sizes belong to cnn1, not to cnn2"),
        ({"encoder_channels": 64}, "encoder_channels belong to the MLP form, not to cnn1"),
        ({"codec": "mlp"}, "mlp has vectors: latent_size must be 1"),
        ({"contrastive": {"weight": 1.0}}, "needs an augmentation"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(tree: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        parse_config({"tree": tree}, source="mine.yaml")


def test_codec_channels_that_fit_are_kept() -> None:
    config = TreeConfig(codec_sizes=(28, 14, 7, 2), codec_channels=(8, 16))
    assert config.codec_channels == (8, 16)
    assert TreeConfig(codec_sizes=(28, 2), codec_channels=()).codec_channels == ()


def test_settings_are_frozen() -> None:
    config = Config()
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.tree.levels = 3  # type: ignore[misc]


def test_a_file_lies_on_top_of_the_preset_it_names(tmp_path: Path) -> None:
    """Section by section: what the file leaves out is the preset's, not the default's."""
    path = written(tmp_path, "preset: tiny\nseed: 7\ntree: {latent_channels: 4}\n")
    config, tiny = load_config(path), load_preset("tiny")
    assert (config.preset, config.seed, config.tree.latent_channels) == ("tiny", 7, 4)
    rest = config.model_dump() | {"seed": tiny.seed}
    rest["tree"] = rest["tree"] | {"latent_channels": tiny.tree.latent_channels}
    assert rest == tiny.model_dump()
    assert tiny.tree.levels != TreeConfig().levels


def test_a_file_without_a_preset_lies_on_top_of_the_defaults(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, "tree: {levels: 5}"))
    assert config == Config(tree=TreeConfig(levels=5))


def test_a_list_in_a_file_replaces_the_presets_list(tmp_path: Path) -> None:
    path = written(tmp_path, "preset: tiny\ndiffusion: {unet: {multipliers: [1]}}\n")
    unet = load_config(path).diffusion.unet
    assert unet.multipliers == (1,)
    assert unet.channels == load_preset("tiny").diffusion.unet.channels


@pytest.mark.parametrize("name", preset_names())
def test_json_and_yaml_give_back_equal_settings(name: str, tmp_path: Path) -> None:
    config = load_preset(name)
    text = config.model_dump_json(indent=2)
    assert Config.model_validate_json(text) == config
    assert load_config(written(tmp_path, text)) == config
    again = yaml.safe_dump(json.loads(text))
    assert load_config(written(tmp_path, again)) == config


@pytest.mark.parametrize(
    "text", ["a: [1,", "a: b: c", "\t- x", "tree: !!python/object/apply:os.getcwd []"]
)
def test_text_that_is_not_plain_yaml_is_refused(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError, match="a readable YAML file") as caught:
        load_config(path)
    assert caught.value.name == str(path)


@pytest.mark.parametrize(("text", "kind"), [("", "NoneType"), ("- a", "list"), ("7", "int")])
def test_yaml_that_is_not_settings_is_refused(tmp_path: Path, text: str, kind: str) -> None:
    with pytest.raises(ConfigError, match=f"got {kind}, expected settings by name"):
        load_config(written(tmp_path, text))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a readable YAML file"):
        load_config(tmp_path / "none.yaml")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="a readable YAML file"):
        load_config(binary)


def test_a_mistake_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "preset: tiny\ntree: {levles: 5}\n")
    with pytest.raises(ConfigError, match=r"tree\.levles: got 5") as caught:
        load_config(path)
    assert caught.value.hint == f"correct it in {path}"


@pytest.mark.parametrize("section", Section.__subclasses__())
def test_every_setting_says_what_it_is(section: type[Section]) -> None:
    """The command line's help is made of these sentences."""
    for name, field in section.model_fields.items():
        assert field.description, f"{section.__name__}.{name}"


def test_settings_without_a_preset_survive_a_file(tmp_path: Path) -> None:
    """A stored configuration that began as no preset is read back as it was."""
    path = written(tmp_path, "seed: 3\n")
    config = load_config(path)
    assert config.preset == ""
    path.write_text(config.model_dump_json())
    assert load_config(path) == config
