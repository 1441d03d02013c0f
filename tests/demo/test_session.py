"""What the page shows, without the page."""

import re
import shutil

import polars as pl
import pytest

from align3gr import Recommender
from align3gr.data import Split
from align3gr.demo import DemoSession, html, open_demo
from align3gr.errors import InputError
from align3gr.scid import PromptBuilder

BAD = "<script>alert('x')</script>${alert(1)}{{value}}`"


@pytest.fixture(scope="module")
def session(smoke_run) -> DemoSession:
    return open_demo(smoke_run, num_beams=12, device="cpu")


def test_a_run_shows_sft_beside_self_play_and_the_users_of_its_test_data(session, smoke_run):
    assert session.names == ["SFT", "SP-DPO"] and session.longest == 12
    split = Split.load(smoke_run / "data")
    asked = split.histories("test")
    assert session.users == [split.users["user_id"][int(row)] for row in asked.user_rows]
    drawn = session.some_users(20)
    assert len(set(drawn)) == 20 and drawn == [user for user in session.users if user in drawn]
    assert drawn == session.some_users(20) != session.users[:20]
    titles = dict(split.items.select("item_id", "title").iter_rows())
    ids = [split.items["item_id"][int(item)] for item in asked.histories[3]]
    assert session.history_text(session.users[3]) == "\n".join(f"{titles[item]} [{item}]" for item in ids)
    assert session.read_history(session.history_text(session.users[3])) == ids


def test_answers_are_those_of_the_recommenders(session, smoke_run):
    user = session.users[7]
    history = session.read_history(session.history_text(user))
    answer = session.answer(history, user, 5, exclude_seen=True)
    for model, stage in zip(answer.models, ("sft", "sp_dpo"), strict=True):
        recommender = Recommender.from_pretrained(smoke_run / stage / "model", device="cpu", num_beams=12)
        assert model.items == recommender.recommend([history], [user], k=5, exclude_seen=True)[0]
        assert model.without_user == recommender.recommend([history], k=5, exclude_seen=True)[0]
        codes = dict(recommender.items.select("item_id", "codes").iter_rows())
        assert [list(p.codes) for p in model.levels[-1].kept[:5]] == [codes[item.item_id] for item in model.items]
    users = dict(
        pl.read_parquet(smoke_run / "sft" / "model" / "user_codes.parquet").select("user_id", "codes").iter_rows()
    )
    assert list(answer.user_codes) == users[user] and answer.read == min(20, len(history))
    split = Split.load(smoke_run / "data")
    assert answer.target == split.items["item_id"][int(split.histories("test").targets[7])]


def test_a_changed_history_has_no_target_and_no_user_no_comparison(session):
    user = session.users[7]
    history = session.read_history(session.history_text(user))
    assert session.answer(history[:-1], user, 3).target is None
    answer = session.answer(history, None, 3)
    assert answer.user_codes is None and all(model.without_user is None for model in answer.models)
    assert "No user with an SCID is chosen" in html.user_part(session, answer)
    assert "<p>User: none</p>" in html.scids_part(session, answer)
    stranger = session.answer(history, "nobody", 3)
    assert "<p>User: nobody, without an SCID</p>" in html.scids_part(session, stranger)
    assert [model.items for model in stranger.models] == [model.items for model in answer.models]
    long = session.answer(history * 3, None, 3)
    assert long.read == 20 and f"{3 * len(history) - 20} earlier ones are not" in html.scids_part(session, long)


def test_histories_are_read_by_label_id_or_title(session):
    first, second = session.ids[:2]
    title = session.titles[0]
    assert session.titles.count(title) == 1
    text = f"\n {session.label(second)} \n{first}\n{title.upper()}\n"
    assert session.read_history(text) == [second, first, first]
    with pytest.raises(InputError, match=r"line 2: 'no such thing' is no title .* find its title"):
        session.read_history(f"{first}\nno such thing")
    part = title.split()[0]
    with pytest.raises(InputError, match=rf"'{part}' is no title and no id .* did you mean '.*{part}.*'\?"):
        session.read_history(part)
    labels = session.find(part.upper())
    assert 0 < len(labels) <= 20 and all(part in label for label in labels) and session.find(" ") == []


def test_titles_that_several_items_have_need_an_id(smoke_run):
    recommender = Recommender.from_pretrained(smoke_run / "sft" / "model", device="cpu")
    twins = recommender.items.with_columns(title=pl.lit("Twin  of\nall"))
    same = Recommender(recommender.model, recommender.tokenizer, twins, prompt_builder=recommender.prompt_builder)
    session = DemoSession({"one": same})
    assert session.label(session.ids[0]) == f"Twin of all [{session.ids[0]}]"
    session = DemoSession(
        {
            "one": Recommender(
                recommender.model,
                recommender.tokenizer,
                twins.with_columns(title=pl.lit("Twin")),
                prompt_builder=recommender.prompt_builder,
            )
        }
    )
    with pytest.raises(InputError, match=rf"{len(session.ids)} items are called 'Twin'; name one, such as 'Twin \["):
        session.read_history("Twin")
    assert session.users == [] and "there are no test data" in str(_error(lambda: session.history_text("u")))


def _error(call) -> InputError:
    with pytest.raises(InputError) as caught:
        call()
    return caught.value


def test_the_parts_show_lists_ranks_and_the_beam(session):
    user = session.users[7]
    answer = session.answer(session.read_history(session.history_text(user)), user, 5)
    lists = html.lists_part(session, answer)
    rows = re.findall(r'<tr[^>]*><td class="n">(\d+)</td><td>(.*?)</td>.*?<td class="n">(-[\d.]+)</td>', lists)
    expected = [
        (str(place), html.text(item.title), f"{item.score:.2f}")
        for model in answer.models
        for place, item in enumerate(model.items, start=1)
    ]
    assert rows == expected
    before, after = ([item.item_id for item in model.items] for model in answer.models)
    moves = re.findall(r'<span class="(up|down|new)">(.*?)</span>|<td class="n">(=)</td>', lists)
    shown = ["=" if same else {"up": "↑", "down": "↓", "new": "new"}[kind] for kind, _, same in moves]
    places = [before.index(item) - place if item in before else None for place, item in enumerate(after)]
    assert shown == ["new" if p is None else "=" if p == 0 else "↑" if p > 0 else "↓" for p in places]
    beam = html.beam_part(session, answer)
    assert beam.count('<div class="level">') == 6
    assert beam.count('<div class="prefix') == sum(len(level.kept) for m in answer.models for level in m.levels)
    assert html.user_part(session, answer).count("<table>") == 4


def test_models_without_users_in_their_prompts_say_so(smoke_run):
    known = Recommender.from_pretrained(smoke_run / "sft" / "model", device="cpu")
    parts = known.model, known.tokenizer, known.items, known.users
    silent = Recommender(*parts, PromptBuilder(known.tokenizer, user_scid=False))
    user, history = known.users["user_id"][0], known.items["item_id"][:3].to_list()
    answer = DemoSession({"silent": silent}).answer(history, user, 3)
    assert not answer.models[0].reads_users and "without users in their prompts" in html.user_part(
        DemoSession({"silent": silent}), answer
    )
    both = DemoSession({"silent": silent, "known": known})
    part = html.user_part(both, both.answer(history, user, 3))
    assert part.count("<table>") == 2 and "Nothing: it was trained without users in its prompts" in part


def test_titles_are_only_text(smoke_run):
    recommender = Recommender.from_pretrained(smoke_run / "sft" / "model", device="cpu")
    bad = Recommender(
        recommender.model,
        recommender.tokenizer,
        recommender.items.with_columns(title=pl.lit(BAD)),
        recommender.users,
        recommender.prompt_builder,
    )
    session = DemoSession({BAD: bad, "b": bad})
    answer = session.answer(session.ids[:4], recommender.users["user_id"][0], 5)
    for part in (html.scids_part, html.lists_part, html.beam_part, html.user_part):
        made = part(session, answer)
        assert "&lt;script&gt;" in made and "<script" not in made and not set("{}$`") & set(made)
    assert "<script" not in html.problem(BAD)


def test_models_and_data_that_do_not_fit_are_refused(smoke_run, tmp_path):
    first = Recommender.from_pretrained(smoke_run / "sft" / "model", device="cpu")
    codes = first.items.with_columns(codes=pl.Series(first.items["codes"].to_list()[::-1]))
    other = Recommender(first.model, first.tokenizer, codes, prompt_builder=first.prompt_builder)
    with pytest.raises(InputError, match="b: its items have other SCIDs than those of a; compare models of one run"):
        DemoSession({"a": first, "b": other})
    fewer = Recommender(first.model, first.tokenizer, first.items[1:], prompt_builder=first.prompt_builder)
    with pytest.raises(InputError, match=rf"data: item '{first.items['item_id'][0]}' is not in the model's catalogue"):
        DemoSession({"a": fewer}, Split.load(smoke_run / "data"))
    with pytest.raises(InputError, match=r"none of sp_dpo, rf_dpo, sft is finished there"):
        open_demo(tmp_path)
    with pytest.raises(InputError, match="--num_beams 0: expected at least 1"):
        open_demo(smoke_run, num_beams=0)


def test_models_are_found_by_the_folder_that_is_named(smoke_run, tmp_path):
    alone = open_demo(smoke_run / "rf_dpo" / "model", device="cpu")
    assert alone.names == ["RF-DPO"] and alone.users
    beside = open_demo(smoke_run / "rf_dpo" / "model", before=smoke_run / "sp_dpo" / "model", device="cpu")
    assert beside.names == ["SP-DPO", "RF-DPO"]
    shutil.copytree(smoke_run / "sft" / "model", tmp_path / "mine")
    moved = open_demo(tmp_path / "mine", data=smoke_run / "data", device="cpu")
    assert moved.names == ["mine"] and len(moved.users) == len(alone.users)
    twice = open_demo(tmp_path / "mine", before=tmp_path / "mine", device="cpu")
    assert twice.names == [f"before: {tmp_path / 'mine'}", f"after: {tmp_path / 'mine'}"] and twice.users == []
    (tmp_path / "run").mkdir()
    shutil.copytree(smoke_run / "sft", tmp_path / "run" / "sft")
    only = open_demo(tmp_path / "run", device="cpu")
    assert only.names == ["SFT"] and only.users == []
