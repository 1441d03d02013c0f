import numpy as np
import pytest
import torch

from align3gr.baselines.bigrec import GAMMAS, BIGRec, cheapest, grounded_costs
from align3gr.baselines.generative import stage_chains
from align3gr.data import Split
from align3gr.errors import InputError
from tests.baselines.test_generative import ran  # noqa: F401
from tests.conftest import SMOKE

FILES = {"scid": str(SMOKE / "scid-bigrec.yaml"), "sft": str(SMOKE / "sft-bigrec.yaml")}


def test_costs_by_hand():
    answers = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    titles = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 2.5], [6.0, 8.0]])
    popularity = torch.tensor([[0.0, 1.0, 0.25, 1.0]])
    # Distances of the first: 0, 5, 2.5, 10; of the second: 5, 0, sqrt(9 + 2.25), 5.
    plain = grounded_costs(answers, titles, popularity, 0.0)
    assert plain[0] == pytest.approx([0, 0.5, 0.25, 1])
    assert plain[1] == pytest.approx([1, 0, np.sqrt(11.25) / 5, 1])
    weighted = grounded_costs(answers, titles, popularity, 2.0)
    assert weighted[0] == pytest.approx([0, 0.5 / 4, 0.25 / 1.25**2, 1 / 4])
    personal = torch.tensor([[0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    assert grounded_costs(answers, titles, personal, 1.0)[1] == pytest.approx([0.5, 0, np.sqrt(11.25) / 5, 1])


def test_the_cheapest_come_first_and_ties_go_by_row():
    costs = np.array([[0.5, 0.1, 0.5, 0.0, 0.5], [np.inf, 1.0, np.inf, np.inf, 1.0]])
    assert cheapest(costs, 3).tolist() == [[3, 1, 0], [1, 4, -1]]
    assert cheapest(costs, 7).tolist() == [[3, 1, 0, 2, 4, -1, -1], [1, 4, -1, -1, -1, -1, -1]]


@pytest.fixture(scope="module")
def split(smoke_run):
    return Split.load(smoke_run / "data")


@pytest.fixture
def chain(split, smoke_run, tmp_path, ran):  # noqa: F811
    return stage_chains(split, smoke_run / "data", {"BIGRec": FILES}, tmp_path)["BIGRec"]


def by_hand(writer, history):
    """Greedy decoding without padding or cache, SCIDs left out; the text and the states of a title alone."""
    prompt, written = writer.prompt(history), []
    while len(written) < 32:
        scores = writer.model(torch.tensor([prompt + written])).logits[0, -1]
        scores[writer._scids] = -torch.inf
        written.append(int(scores.argmax()))
        if written[-1] == writer.tokenizer.eos_token_id:
            break
    return writer.tokenizer.decode(written, skip_special_tokens=True).strip()


def test_titles_are_written_embedded_and_grounded(chain, split, monkeypatch):
    tuned = []
    system = BIGRec(chain, 1, title_beams=1, num_train_epochs=1)
    # Validation likes gamma 2 best.
    system.fit(split.train_sequences(), len(split.items), lambda: tuned.append(system.gamma) or -abs(system.gamma - 2))
    assert tuned == list(GAMMAS) and system.chosen() == {"gamma": 2.0}
    writer, questions = system._writer, split.histories("test").subset(np.arange(20))
    titles = split.items["title"]
    prompt = writer.tokenizer.decode(writer.prompt(questions.histories[0]), skip_special_tokens=True)
    assert prompt == f"titles:{'; '.join(titles.gather(questions.histories[0][-10:]))}="
    with torch.inference_mode():
        assert writer.write(questions.histories) == [by_hand(writer, history) for history in questions.histories]
        bos = writer.tokenizer.bos_token_id
        for row in (0, 7, 41):
            ids = [bos, *writer.tokenizer(titles[row], add_special_tokens=False)["input_ids"]]
            states = writer.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1]
            assert torch.allclose(states[0, -1], system._titles[row], atol=1e-5)
    # What was written is a title: the items of that title come first where nothing but the distance counts.
    known = titles[5]
    monkeypatch.setattr(writer, "write", lambda histories: [known] * len(histories))
    system.gamma = 0.0
    allowed, masked = system.lists(questions, 10)
    same = [row for row, title in enumerate(titles) if title == known]
    for row, history in enumerate(questions.histories):
        assert set(allowed[row, : len(same)]) == set(same)
        assert not set(masked[row]) & set(history.tolist())
        assert [item for item in allowed[row] if item not in history] == masked[row][
            : 10 - sum(item in history for item in allowed[row])
        ].tolist()
    # With a large gamma the most popular items come first, whatever was written, but for those at distance 0.
    system.gamma = 1000.0
    counts = np.bincount(np.concatenate(split.train_sequences()), minlength=len(split.items))
    fresh = split.histories("test").subset(np.arange(3))
    for row in system.lists(fresh, 10)[0]:
        assert counts[row[len(same)]] == counts.max()


def test_an_unknown_space_or_weighting_is_named(chain):
    with pytest.raises(InputError, match="grounding: got 'bert', expected one of lm, semantic"):
        BIGRec(chain, 1, grounding="bert")
    with pytest.raises(InputError, match="weighting: got 'fame', expected one of popularity, collaborative, none"):
        BIGRec(chain, 1, weighting="fame")


@pytest.mark.parametrize("weighting", ["collaborative", "none"])
def test_weightings(chain, split, weighting):
    pytest.importorskip("implicit")
    system = BIGRec(chain, 1, grounding="semantic", weighting=weighting, title_beams=1, num_train_epochs=1)
    system.fit(split.train_sequences(), len(split.items))
    assert system.gamma == 0.0
    questions = split.histories("validation").subset(np.arange(8))
    before = system.lists(questions, 10)[0]
    system.gamma = 1000.0
    after = system.lists(questions, 10)[0]
    if weighting == "none":
        assert np.array_equal(before, after)
        return
    scores = system._collaborative.user_vectors(questions.histories, questions.user_rows)
    scores = scores @ system._collaborative.item_vectors().T
    # Items at distance 0 stay in front; behind them stands what MF ranks first.
    for row, items in enumerate(after):
        nearest = before[row, 0]
        rest = [item for item in items if item != nearest]
        best = [item for item in np.argsort(-scores[row]) if item != nearest]
        assert rest[0] == best[0]
