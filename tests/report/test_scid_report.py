import json

import numpy as np
import polars as pl
import pytest
from PIL import Image

from align3gr.data import Split, SyntheticMarket, SyntheticMarketConfig, leave_one_out
from align3gr.data.schema import ITEM_ID
from align3gr.encoders import Embeddings
from align3gr.errors import InputError
from align3gr.report import plot_codebook_usage, plot_item_map, write_scid_report
from align3gr.scid import measure_quality, save_codes, save_index


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small market, codes and vectors of its items, and the same codes as a published index."""
    folder = tmp_path_factory.mktemp("report")
    market = SyntheticMarket(SyntheticMarketConfig(num_users=60, num_items=80))
    split = leave_one_out(market.tables())
    split.save(folder / "data")
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 5, (len(split.items), 3))
    save_codes(folder / "item_codes.parquet", ITEM_ID, split.items[ITEM_ID], codes)
    save_index(folder / "Shop.index.json", split.items[ITEM_ID], codes)
    vectors = np.eye(5)[codes[:, 0]] + generator.normal(0, 0.1, (len(codes), 5))
    Embeddings(semantic=vectors.astype(np.float32)).save(folder / "items.parquet", ITEM_ID, split.items[ITEM_ID])
    return folder


def test_a_report_has_numbers_page_and_plots(folder, tmp_path):
    data, vectors = folder / "data", folder / "items.parquet"
    quality, _ = write_scid_report(folder / "item_codes.parquet", tmp_path, data, vectors)
    names = ["codebook_usage.png", "item_map.png", "scid-report.json", "scid-report.md"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    split = Split.load(data)
    codes = np.array(pl.read_parquet(folder / "item_codes.parquet")["codes"].to_list())
    expected = measure_quality(codes, split.train_sequences()).to_dict()
    assert json.loads((tmp_path / "scid-report.json").read_text()) == json.loads(json.dumps(expected))
    assert quality.prefix_lift == expected["prefix_lift"] is not None
    page = (tmp_path / "scid-report.md").read_text()
    assert f"{quality.prefix_lift:.2f}" in page and "item_map.png" in page and "Left out" not in page


def test_an_index_gives_the_same_numbers_and_rows_may_stand_in_another_order(folder, tmp_path):
    ids = pl.read_parquet(folder / "item_codes.parquet").reverse()
    ids.write_parquet(tmp_path / "reversed.parquet")
    data = folder / "data"
    first, _ = write_scid_report(folder / "Shop.index.json", tmp_path / "a", data)
    second, _ = write_scid_report(tmp_path / "reversed.parquet", tmp_path / "b", data)
    assert first.to_dict() == second.to_dict()


def test_what_cannot_be_shown_is_left_out_and_said(folder, tmp_path):
    write_scid_report(folder / "Shop.index.json", tmp_path, vectors=folder / "items.parquet")
    assert (tmp_path / "item_map.png").is_file()
    quality, _ = write_scid_report(folder / "Shop.index.json", tmp_path)
    assert not (tmp_path / "item_map.png").exists()  # the earlier map is not taken for this table's
    page = (tmp_path / "scid-report.md").read_text()
    assert quality.prefix_lift is None and "(`--data`)" in page and "(`--vectors`)" in page


def test_tables_that_do_not_belong_together_are_named_and_nothing_is_written(folder, tmp_path):
    save_codes(tmp_path / "few.parquet", ITEM_ID, ["nobody"], np.array([[1, 2]]))
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"few\.parquet: '.*' has no codes"):
        write_scid_report(tmp_path / "few.parquet", out, data=folder / "data")
    with pytest.raises(InputError, match=r"items\.parquet: item_id 'nobody' has no vector"):
        write_scid_report(tmp_path / "few.parquet", out, vectors=folder / "items.parquet")
    with pytest.raises(InputError, match="neither a column 'semantic'"):
        write_scid_report(folder / "item_codes.parquet", out, vectors=folder / "item_codes.parquet")
    with pytest.raises(InputError, match="not a readable Parquet file"):
        write_scid_report(folder / "item_codes.parquet", out, vectors=folder / "Shop.index.json")
    with pytest.raises(InputError, match="codebook_sizes"):
        write_scid_report(folder / "item_codes.parquet", out, codebook_sizes=[5, 5])
    assert not out.exists()
    out.write_text("a file")
    with pytest.raises(InputError, match="choose another folder"):
        write_scid_report(folder / "item_codes.parquet", out)


def colours(path) -> set[tuple[int, ...]]:
    image = Image.open(path).convert("RGB")
    return {colour for count, colour in image.getcolors(maxcolors=1 << 20) if count > 20}


def test_the_map_colours_the_largest_codes_and_leaves_the_others_grey(tmp_path):
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(300, 8))
    first = np.concatenate([np.zeros(200, dtype=int), np.arange(1, 101)])
    assert plot_item_map(vectors, first, tmp_path / "map.png", max_items=120) == 120
    assert {(0x33, 0x22, 0x88), (0xCC, 0xCC, 0xCC)} <= colours(tmp_path / "map.png")
    again = tmp_path / "again.png"
    plot_item_map(vectors, first, again, max_items=120)
    assert again.read_bytes() == (tmp_path / "map.png").read_bytes()


def test_the_usage_plot_has_a_panel_a_level(tmp_path):
    widths = []
    for levels in (1, 3):
        plot_codebook_usage(np.zeros((10, levels), dtype=int), [4] * levels, tmp_path / "usage.png")
        widths.append(Image.open(tmp_path / "usage.png").width)
        assert (0x44, 0x77, 0xAA) in colours(tmp_path / "usage.png")
    assert widths[1] == 3 * widths[0]
