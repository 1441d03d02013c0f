"""docs/paper-map.md names nothing that does not exist, and leaves out no equation, table or figure of the paper."""

import dataclasses
import importlib
import re
import runpy

import pytest
import yaml

from align3gr import InputError
from tests.conftest import ROOT

PAGE = ROOT / "docs" / "paper-map.md"
STAGES = ("prepare", "embed", "scid", "sft", "sp_dpo", "rf_dpo", "evaluate", "ablation")


def read_rows() -> list[dict[str, str]]:
    """Every row of the page's tables: cell by the name at the head of its column."""
    rows: list[dict[str, str]] = []
    head: list[str] = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            head = []
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not head:
            head = cells
        elif set(line) - set("|-: "):
            assert len(cells) == len(head), line
            rows.append(dict(zip(head, cells, strict=True)))
    return rows


ROWS = read_rows()


def quoted(column: str) -> list[str]:
    return sorted({name for row in ROWS for name in re.findall(r"`([^`]+)`", row.get(column, ""))})


def find(name: str) -> object:
    """An object by its dotted name; the module is the longest part that can be imported."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


@pytest.fixture(scope="module")
def options() -> dict[str, dict[str, dataclasses.Field]]:
    """By stage the options that its recipe reads."""
    known: dict[str, dict[str, dataclasses.Field]] = {}
    with pytest.MonkeyPatch.context() as patch:
        for stage in STAGES:

            def record(types, arguments=None, stage=stage):
                known[stage] = {option.name: option for kind in types for option in dataclasses.fields(kind)}
                raise InputError("stop here")

            patch.setattr("align3gr.recipe.parse", record)
            with pytest.raises(InputError, match="stop here"):
                runpy.run_path(str(ROOT / "recipes" / f"{stage}.py"))["main"]()
    return known


def keys(row: dict[str, str]) -> list[tuple[str, str]]:
    """(stage, key) of a row."""
    parts = re.fullmatch(r"(`.+`) \(([\w, ]+)\)", row["key (stage)"])
    assert parts, f"{row['paper']}: expected `key`, ... (stage, ...)"
    return [(stage, key) for stage in parts[2].split(", ") for key in re.findall(r"`([^`]+)`", parts[1])]


def test_a_symbol_that_is_not_there_is_found_out():
    assert find("align3gr.scid.losses.u2i_loss").__name__ == "u2i_loss"
    for wrong in ("align3gr.scid.no_such_loss", "align3gr.nowhere.u2i_loss", "nowhere.at.all"):
        with pytest.raises((AttributeError, ModuleNotFoundError)):
            find(wrong)


@pytest.mark.parametrize("name", quoted("symbol"))
def test_every_symbol_exists(name):
    assert find(name) is not None


def test_every_key_is_one_of_its_stage(options):
    named = [pair for row in ROWS if row.get("key (stage)") for pair in keys(row)]
    assert len(named) > 50
    assert not [(stage, key) for stage, key in named if key not in options[stage]]


def test_what_is_called_a_default_is_one(options):
    stated = [row for row in ROWS if row.get("here", "").startswith("default")]
    assert len(stated) >= 10
    for row in stated:
        ((stage, key),) = keys(row)
        option = options[stage][key]
        default = option.default if option.default is not dataclasses.MISSING else option.default_factory()
        assert yaml.safe_load(row["here"].removeprefix("default ").strip("`")) == default, row["paper"]


def test_pages_tests_and_recipes_are_there():
    text = PAGE.read_text(encoding="utf-8")
    pages = [ROOT / "docs" / name for name in re.findall(r"\]\(([\w-]+\.md)\)", text)]
    files = [ROOT / name for name in re.findall(r"`((?:tests|recipes|align3gr)/[\w/.-]+\.(?:py|yaml))`", text)]
    assert len(pages) > 30 and len(files) > 50
    assert not [str(path) for path in (*pages, *files) if not path.is_file()]


def test_every_equation_table_and_figure_of_the_paper_stands_there():
    first = "\n".join(row["paper"] for row in ROWS)
    for name in (
        *(f"Eq. ({number})" for number in (1, 2, 3)),
        *(f"Table {number}" for number in (1, 2, 3, 4, 5)),
        *(f"Figure {number}" for number in (1, 2, 3, 4)),
    ):
        assert name in first, name


def test_the_recipe_of_llama2_7b_has_the_papers_numbers():
    recipe = yaml.safe_load((ROOT / "recipes" / "yelp" / "sft-llama2-7b.yaml").read_text())
    gpus = 4
    assert recipe["max_steps"] == 20_000
    assert recipe["per_device_train_batch_size"] * recipe["gradient_accumulation_steps"] * gpus == 1024
    assert recipe["base_model"] == "meta-llama/Llama-2-7b-hf" and recipe["use_lora"] is True
    rates = yaml.safe_load((ROOT / "recipes" / "yelp" / "ablation-llama2-7b.yaml").read_text())["rows"].values()
    assert sorted(row["learning_rate"] for row in rates) == [1e-4, 5e-4, 1e-3]
