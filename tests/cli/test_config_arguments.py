"""--config, --set and --print_config of any config: layers, recipes by name, keys and what they mean."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from crossearth_sar.cli.config_arguments import add_config_arguments, built_config, read_config, recipe_names
from crossearth_sar.cli.config_text import commented_yaml, key_table
from crossearth_sar.cli.field_docs import field_docs
from crossearth_sar.config import from_mapping, read_yaml
from crossearth_sar.config_keys import field_names, key_paths, settings_of
from crossearth_sar.engine.config import RunConfig, simulated_run
from crossearth_sar.errors import InputError
from crossearth_sar.presets import ModelConfig, MoEConfig, crossearth_sar_tiny

RECIPES = Path(__file__).resolve().parents[2] / "crossearth_sar" / "cli" / "recipes"


@dataclass(frozen=True, kw_only=True)
class Flat:
    crop: int = 3


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where from.

    root, name: both alike; said in the class. kind: which
        of two.
    """

    name: str
    root: str = ""
    kind: Literal["a", "b"] = "a"
    parts: tuple[Source, ...] = ()
    silent: int = 0
    detail: Flat | None = None


@dataclass(frozen=True, kw_only=True)
class Named:
    rate: float = 1.0
    """Of a base class."""


@dataclass(frozen=True, kw_only=True)
class Example(Named):
    """A run in small."""

    source: Source
    """What is read."""

    other: Source | None = None
    rate: float = 1e-5
    count: int | None = None
    """How many,
    over two lines."""

    table: dict[int, str] = field(default_factory=dict)
    small: Flat = field(default_factory=Flat)
    model: dict[str, Any] = settings_of(ModelConfig)


DEFAULT = Example(source=Source(name="given", root="here"))


def parsed(*arguments: str, default: Any = DEFAULT) -> argparse.Namespace:
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_arguments(parser, default)
    return parser.parse_args(arguments)


def test_meanings_come_from_under_the_field_a_base_class_or_the_class_docstring() -> None:
    assert field_docs(Example) == {
        "rate": "Of a base class.",
        "source": "What is read.",
        "count": "How many, over two lines.",
    }
    assert field_docs(Source) == {
        "root": "both alike; said in the class.",
        "name": "both alike; said in the class.",
        "kind": "which of two.",
    }


def test_a_class_without_a_source_has_no_meanings() -> None:
    made: dict[str, Any] = {"dataclass": dataclass}
    exec("@dataclass\nclass Made:\n    a: int = 1\n", made)
    assert field_docs(made["Made"]) == {}


def test_help_lists_every_key_with_type_default_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        parsed("--help")
    said = capsys.readouterr().out
    assert (
        said.index("--config YAML|NAME") < said.index("sen1floods11_water") < said.index("  source: Source")
    )
    assert "  source.kind: a | b = a\n      which of two.\n" in said
    assert "  source.name: str = given\n      both alike; said in the class.\n" in said
    assert "  source.parts: [Source, …] = []\n      keys as those of source\n" in said
    assert "  other: Source | null = null\n      keys as those of source\n" in said
    assert said.count("crop: int = 3\n") == 2, "a flat config is listed at each of its places"
    assert "  rate: float = 1.0e-05\n      Of a base class.\n" in said
    assert "  count: int | null = null\n" in said
    assert "  table: {int: str} = {}\n" in said
    assert "  model.moe.top_k: int = 1\n" in said
    assert "  model.num_classes: int, required\n" in said


def test_every_key_of_a_run_and_of_a_model_is_in_the_table() -> None:
    for config in (simulated_run(), crossearth_sar_tiny(7)):
        table = key_table(config)
        again = ("validation.", "probe.labelled.")  # listed as those of train
        missing = [
            path
            for path in key_paths(type(config))
            if f"  {path}: " not in table and not path.startswith(again)
        ]
        assert not missing


def test_every_key_of_the_model_has_a_meaning() -> None:
    config = crossearth_sar_tiny(7)
    for part in (config, config.vit, MoEConfig(), config.decoder):
        assert not set(field_names(type(part))) - set(field_docs(type(part)))


@pytest.mark.parametrize(
    "config", [simulated_run(), crossearth_sar_tiny(7), DEFAULT], ids=lambda c: type(c).__name__
)
def test_printed_yaml_gives_the_same_config_back(config: Any, tmp_path: Path) -> None:
    text = commented_yaml(config)
    (tmp_path / "printed.yaml").write_text(text, encoding="utf-8")
    assert from_mapping(type(config), read_yaml(tmp_path / "printed.yaml")) == config
    for line in text.splitlines():
        assert len(line) < 120 or "#" not in line


def test_print_config_shows_what_would_hold_and_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.yaml").write_text("count: 3\nmodel: {vit: {dim: 64}}\n", encoding="utf-8")
    arguments = parsed("--config", str(tmp_path / "run.yaml"), "--set", "rate=2", "--print_config")
    with pytest.raises(SystemExit, match="0"):
        built_config(DEFAULT, arguments)
    said = capsys.readouterr().out
    assert "# How many, over two lines.\ncount: 3\n" in said
    assert "source:\n  # both alike; said in the class.\n  name: given\n" in said
    assert yaml.safe_load(said)["rate"] == 2.0
    assert yaml.safe_load(said)["model"] == {"vit": {"dim": 64}}
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit, match="0"):
        built_config(DEFAULT, arguments)
    assert capsys.readouterr().out == "", "one of several ranks prints"


def test_a_file_lies_over_the_defaults_changes_over_it_and_set_over_all(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("rate: 2\ncount: 2\nsource: {kind: b}\n", encoding="utf-8")
    arguments = parsed(
        "--config", str(tmp_path / "run.yaml"), "--set", "count=4", "source.root=x", "--set", "rate=5"
    )
    config = built_config(DEFAULT, arguments, changes={"count": 3, "other": Source(name="built")})
    assert config == Example(
        source=Source(name="given", root="x", kind="b"), other=Source(name="built"), rate=5.0, count=4
    )


def test_keys_that_belong_together_come_from_one_place(tmp_path: Path) -> None:
    default = Example(source=Source(name="given", root="here"), other=Source(name="beside"), count=1)
    (tmp_path / "own.yaml").write_text("source: {name: own}\n", encoding="utf-8")
    (tmp_path / "none.yaml").write_text("count: 2\n", encoding="utf-8")
    whole = ("source", "other")
    own = built_config(default, parsed("--config", str(tmp_path / "own.yaml")), whole=whole)
    assert own == Example(source=Source(name="own"), count=1)
    assert (
        built_config(default, parsed("--config", str(tmp_path / "none.yaml")), whole=whole).other is not None
    )
    changed = built_config(default, parsed("--set", "source.kind=b"), whole=whole)
    assert changed.source == Source(name="given", root="here", kind="b"), "--set changes, it does not replace"


def test_layers_are_checked_as_one(tmp_path: Path) -> None:
    """What a file lacks --set may give."""
    (tmp_path / "run.yaml").write_text("other: {kind: b}\n", encoding="utf-8")
    arguments = parsed("--config", str(tmp_path / "run.yaml"), "--set", "other.name=x")
    assert built_config(DEFAULT, arguments).other == Source(name="x", kind="b")
    with pytest.raises(InputError, match="'other' lacks name"):
        built_config(DEFAULT, parsed("--config", str(tmp_path / "run.yaml")))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("lr=1", "'lr' (did you mean 'optim.lr'?)"),
        ("activation_checkpointing=true", "(did you mean 'parallel.activation_checkpointing'?)"),
        ("activation_checkpoint=true", "(did you mean 'parallel.activation_checkpointing'?)"),
        ("batch_sise=1", "(did you mean 'batch_size'?)"),
        ("train.images=x", "(did you mean 'train.folder.images'?)"),
    ],
)
def test_a_wrong_key_of_a_run_names_the_right_one(override: str, words: str) -> None:
    default = simulated_run()
    with pytest.raises(InputError) as caught:
        built_config(default, parsed("--set", override, default=default))
    assert words in str(caught.value)


def test_a_recipe_is_found_by_name_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert recipe_names() == sorted(path.stem for path in RECIPES.glob("*.yaml"))
    assert read_config("cpt_s") == read_config("cpt_s.yaml") == read_yaml(RECIPES / "cpt_s.yaml")
    (tmp_path / "cpt_s.yaml").write_text("steps: 1\n", encoding="utf-8")
    assert read_config("cpt_s.yaml") == {"steps": 1}, "a file comes before a recipe"
    assert read_config("cpt_s") != {"steps": 1}


def test_no_such_recipe_lists_them_nearest_first() -> None:
    with pytest.raises(InputError) as caught:
        read_config("recipes/cpt_lexperts.yaml")
    said = str(caught.value)
    assert "no config 'recipes/cpt_lexperts.yaml'" in said
    assert "one of cpt_l_experts, " in said
    assert all(name in said for name in recipe_names())


@pytest.mark.parametrize("name", [path.stem for path in RECIPES.glob("cpt_*.yaml")])
def test_recipes_are_runs(name: str) -> None:
    assert from_mapping(RunConfig, read_config(name)).output.startswith("runs/")
