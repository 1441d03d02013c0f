"""The parts of the demo page as HTML. Whatever comes from data is text: it is escaped here and nowhere else."""

import html
import math
from collections.abc import Sequence

from align3gr.decoding.requests import Recommendation
from align3gr.demo.beam_levels import BeamLevel, KeptPrefix
from align3gr.demo.session import DemoAnswer, DemoSession, ModelAnswer

_SHOWN_PREFIXES = 6  # of a level; the rest can be unfolded

STYLE = """
.asked { position: sticky; top: 1rem; align-self: flex-start; }
.scid { display: inline-flex; gap: 2px; vertical-align: middle; }
.scid i { font: 600 .75rem/1.4 ui-monospace, monospace; min-width: 1.6rem; text-align: center; padding: 0 .25rem;
  border-radius: 4px; color: #1c2430; }
.a3 h3 { margin: .2rem 0 .5rem; font-size: 1.05rem; }
.a3 h4 { margin: .7rem 0 .4rem; font-size: .95rem; }
.a3 .note { opacity: .7; font-size: .85rem; margin: .2rem 0 .5rem; }
.a3 .problem { border-left: 4px solid #c0392b; padding: .5rem .8rem; background: #c0392b18; }
.a3 .side { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 1.2rem; }
.a3 table, .a3 tr { border: 0 !important; }
.a3 table { border-collapse: collapse; width: 100%; font-size: .88rem;
  margin: 0; display: table; }
.a3 td, .a3 th { padding: .2rem .45rem; border: 0; border-bottom: 1px solid #8884; text-align: left; }
.a3 th { font-weight: 600; opacity: .7; white-space: nowrap; background: none; }
.a3 td.n, .a3 th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.a3 tr.hit td { background: #27ae6040; }
.a3 tr.seen td { opacity: .55; }
.a3 .up { color: #1e8449; } .a3 .down { color: #b9770e; } .a3 .new { color: #2471a3; }
.a3 ol.history { margin: 0; padding: 0; list-style: none; font-size: .88rem; display: grid; gap: .15rem .8rem;
  grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); }
.a3 ol.history li { display: flex; gap: .5rem; align-items: center; }
.a3 p.next { font-weight: 600; margin: .6rem 0; }
.a3 .beam { display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); gap: .8rem; }
.a3 .prefix { border: 1px solid #8884; border-radius: 6px; padding: .3rem .5rem; margin-bottom: .35rem;
  font-size: .8rem; line-height: 1.35; }
.a3 .prefix.lost { opacity: .5; }
.a3 .prefix .top { display: flex; justify-content: space-between; gap: .5rem; align-items: center; }
.a3 .bar { height: 3px; background: #2471a3; border-radius: 2px; margin: .2rem 0; }
.a3 summary { cursor: pointer; font-size: .8rem; opacity: .75; }
"""


def text(value: object) -> str:
    """Escaped text; braces and dollar signs too, which the page's own templates would read."""
    escaped = html.escape(str(value))
    for sign in "{}$`":
        escaped = escaped.replace(sign, f"&#{ord(sign)};")
    return escaped


def problem(message: str) -> str:
    """A message in place of an answer."""
    return f'<div class="a3"><p class="problem">{text(message)}</p></div>'


def scid(codes: Sequence[int]) -> str:
    """An SCID, or the beginning of one: a box a code, and the same code at the same level has the same colour."""
    boxes = (
        f'<i style="background:hsl({(code * 137.5 + level * 40) % 360:.0f} 65% 84%)">{code}</i>'
        for level, code in enumerate(codes)
    )
    return f'<span class="scid">{"".join(boxes)}</span>'


def scids_part(session: DemoSession, answer: DemoAnswer) -> str:
    """The user's SCID and those of the history's items."""
    user = "none" if answer.user_id is None else f"{text(answer.user_id)}, without an SCID"
    if answer.user_codes is not None:
        user = f"{scid(answer.user_codes)} {text(answer.user_id)}"
    earlier = len(answer.history) - answer.read
    body = f"<p>User: {user}</p>"
    if earlier:
        body += f'<p class="note">The latest {answer.read} items are read, {earlier:,} earlier ones are not.</p>'
    items = "".join(f"<li>{_item(session, item)}</li>" for item in answer.history[earlier:])
    body += f'<ol class="history">{items}</ol>'
    if answer.target is not None:
        body += f'<p class="next">What came next: {_item(session, answer.target)}</p>'
    return _part(
        "What the model reads",
        "A user and a history are a few tokens each. Equal colours at the same place are equal codes: items that are "
        "alike in text and behaviour.",
        body,
    )


def lists_part(session: DemoSession, answer: DemoAnswer) -> str:
    """The lists of all models side by side; the later ones say what moved."""
    first = answer.models[0]
    tables = []
    for model in answer.models:
        against = None if model is first else first.items
        tables.append(f"<div><h4>{text(model.name)}</h4>{_list(session, answer, model.items, against)}</div>")
    note = (
        "Score: log-probability of the item's SCID. Green: what came next in the data. Pale: in the history already."
    )
    if len(answer.models) > 1:
        note += f" The column on the right compares with {first.name}."
    return _part("Recommendations", note, f'<div class="side">{"".join(tables)}</div>')


def beam_part(session: DemoSession, answer: DemoAnswer) -> str:
    """The beam of each model, level by level."""
    parts = []
    for model in answer.models:
        listed = [tuple(_codes(session, item.item_id)) for item in model.items]
        columns = "".join(_level(level, listed) for level in model.levels)
        parts.append(f'<h4>{text(model.name)}</h4><div class="beam">{columns}</div>')
    note = (
        "The search scores every code that goes on towards an item and keeps the most probable prefixes. Each box is "
        "one: its log-probability, how many items begin so, which words these share, some of their titles. Pale: "
        "nothing below it made the list."
    )
    return _part("The beam, level by level", note, "".join(parts))


def user_part(session: DemoSession, answer: DemoAnswer) -> str:
    """What the user's SCID changes, for each model."""
    heading = "What the user's SCID changes"
    if not any(model.reads_users for model in answer.models):
        return _part(heading, "Nothing: the models were trained without users in their prompts.", "")
    if all(model.without_user is None for model in answer.models):
        return _part(heading, "No user with an SCID is chosen, so the prompt held none.", "")
    return _part(
        heading,
        "The same history, without and with the user's SCID in front of it. Training had it in every prompt.",
        "".join(_with_and_without(session, answer, model) for model in answer.models),
    )


def _with_and_without(session: DemoSession, answer: DemoAnswer, model: ModelAnswer) -> str:
    if model.without_user is None:
        return f"<h4>{text(model.name)}</h4><p>Nothing: it was trained without users in its prompts.</p>"
    without = _list(session, answer, model.without_user, None)
    with_user = _list(session, answer, model.items, model.without_user)
    return (
        f'<div class="side"><div><h4>{text(model.name)}, without</h4>{without}</div>'
        f"<div><h4>{text(model.name)}, with</h4>{with_user}</div></div>"
    )


def _list(
    session: DemoSession, answer: DemoAnswer, items: list[Recommendation], against: list[Recommendation] | None
) -> str:
    earlier = {item.item_id: place for place, item in enumerate(against or [], start=1)}
    seen = set(answer.history)
    rows = []
    for place, item in enumerate(items, start=1):
        kind = ' class="hit"' if item.item_id == answer.target else ' class="seen"' if item.item_id in seen else ""
        moved = "" if against is None else f'<td class="n">{_moved(earlier.get(item.item_id), place)}</td>'
        rows.append(
            f'<tr{kind}><td class="n">{place}</td><td>{text(item.title or item.item_id)}</td>'
            f"<td>{scid(_codes(session, item.item_id))}</td>"
            f'<td class="n">{item.score:.2f}</td>{moved}</tr>'
        )
    last = "" if against is None else '<th class="n"></th>'
    head = f'<th class="n"></th><th>Title</th><th>SCID</th><th class="n">Score</th>{last}'
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _moved(earlier: int | None, place: int) -> str:
    """From place `earlier` of the other list, None where it is not in it."""
    if earlier is None:
        return '<span class="new">new</span>'
    if earlier == place:
        return "="
    return f'<span class="up">↑{earlier - place}</span>' if earlier > place else _down(place - earlier)


def _down(places: int) -> str:
    return f'<span class="down">↓{places}</span>'


def _level(level: BeamLevel, listed: list[tuple[int, ...]]) -> str:
    most = max((prefix.log_probability for prefix in level.kept), default=0.0)
    cards = [_prefix(prefix, listed, math.exp(prefix.log_probability - most)) for prefix in level.kept]
    rest = cards[_SHOWN_PREFIXES:]
    more = f"<details><summary>{len(rest)} more</summary>{''.join(rest)}</details>" if rest else ""
    return (
        f'<div class="level"><h4>Level {level.level}</h4><p class="note">{len(level.kept)} of {level.num_prefixes:,} '
        f"prefixes kept, {level.probability:.1%} of the probability</p>"
        f"{''.join(cards[:_SHOWN_PREFIXES])}{more}</div>"
    )


def _prefix(prefix: KeptPrefix, listed: list[tuple[int, ...]], share: float) -> str:
    length = len(prefix.codes)
    found = sum(codes[:length] == prefix.codes for codes in listed)
    words = f"<div><b>{text(', '.join(prefix.common_words))}</b></div>" if prefix.common_words else ""
    titles = "; ".join(title or "(no title)" for title in prefix.titles)
    more = ", ..." if prefix.num_items > len(prefix.titles) else ""
    count = f"{prefix.num_items:,} item{'s' if prefix.num_items != 1 else ''}"
    return (
        f'<div class="prefix{"" if found else " lost"}"><div class="top">{scid(prefix.codes)}'
        f"<span>{prefix.log_probability:.2f}</span></div>"
        f'<div class="bar" style="width:{share:.1%}"></div>{words}<div>{count}: {text(titles)}{more}</div></div>'
    )


def _part(heading: str, note: str, body: str) -> str:
    return f'<div class="a3"><h3>{text(heading)}</h3><p class="note">{text(note)}</p>{body}</div>'


def _item(session: DemoSession, item_id: str) -> str:
    return f"{scid(_codes(session, item_id))} <span>{text(session.titles[session.row[item_id]])}</span>"


def _codes(session: DemoSession, item_id: str) -> list[int]:
    return session.codes[session.row[item_id]].tolist()
