"""Section of a run's report that shows a few users: what they consumed, and what the last model recommends."""

import math

import numpy as np

from align3gr.data import Split
from align3gr.data.evaluation_set import EvaluationSet
from align3gr.data.schema import ITEM_ID, TITLE, USER_ID
from align3gr.errors import InputError
from align3gr.report.html_page import paragraph, text
from align3gr.report.run_files import RunFiles

LIST_LENGTH = 10
_SHOWN_HISTORY = 10
_SEED = 42


def examples_section(run: RunFiles, examples: int) -> str:
    """Histories, targets and lists of users of the test split, drawn at random with a fixed seed.

    Lists are those of `align3gr recommend` with the model of the last finished stage that leaves one.

    Args:
        run: needs a finished `prepare`.
        examples: how many users.
    """
    found = run.last_model()
    if found is None:
        return paragraph("Left out: no stage that leaves a model (sft, sp_dpo, rf_dpo) is finished.", "missing")
    if not examples:
        return paragraph("Left out, as asked for.", "note")
    stage, folder = found
    split = Split.load(run.stage("prepare"))
    questions = split.histories("test")
    drawn = np.random.default_rng(_SEED).choice(len(questions), min(examples, len(questions)), replace=False)
    questions = questions.subset(np.sort(drawn))
    # Loading a model takes seconds, and a report can do without.
    from align3gr.decoding.recommender import Recommender

    try:
        recommender = Recommender.from_pretrained(folder)
        ids = split.items[ITEM_ID].to_list()
        histories = [[ids[item] for item in history] for history in questions.histories]
        users = split.users[USER_ID].gather(questions.user_rows).to_list()
        lists = recommender.recommend(histories, users, k=min(LIST_LENGTH, len(ids)))
    except (InputError, OSError) as error:
        return paragraph(f"Left out: the model of stage '{stage}' cannot be used here ({error}).", "missing")
    lead = paragraph(
        f"{len(users)} users of the test split, drawn at random, and the {LIST_LENGTH} items that the model of stage "
        f"'{stage}' finds most probable, with their probability. Green is the held-out target, grey what the history "
        "holds already.",
        "note",
    )
    cards = []
    for row, (user, found_items) in enumerate(zip(users, lists, strict=True)):
        chosen = [(item.item_id, item.title or item.item_id, math.exp(item.score)) for item in found_items]
        cards.append(_card(user, split, questions, row, chosen))
    return lead + "".join(cards)


def _card(user: str, split: Split, questions: EvaluationSet, row: int, chosen: list[tuple[str, str, float]]) -> str:
    ids, titles = split.items[ITEM_ID], split.items[TITLE]

    def name(item: int) -> str:
        return titles[item] or ids[item]

    history, target = questions.histories[row].tolist(), int(questions.targets[row])
    seen = {ids[item] for item in history}
    earlier = len(history) - _SHOWN_HISTORY
    lines = [f"<li>{text(name(item))}</li>" for item in history[-_SHOWN_HISTORY:]]
    more = paragraph(f"{earlier:,} earlier, then:", "note") if earlier > 0 else ""
    items = []
    for item_id, title, probability in chosen:
        kind = ' class="hit"' if item_id == ids[target] else ' class="seen"' if item_id in seen else ""
        items.append(f"<li{kind}>{text(title)} ({probability:.1%})</li>")
    rank = next((place for place, found in enumerate(chosen, start=1) if found[0] == ids[target]), None)
    outcome = f"at place {rank}" if rank else f"not among the {len(chosen)}"
    return (
        f'<h3>User {text(user)}</h3><div class="user"><div><b>History, oldest first</b>{more}<ul>{"".join(lines)}</ul>'
        f"</div><div><b>Recommended</b><ol>{''.join(items)}</ol></div></div>"
        + paragraph(f"What came next: {name(target)}, {outcome}.")
    )
