import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from align3gr.baselines import MatrixFactorization
from align3gr.baselines.bigrec import GAMMAS, BIGRec, cheapest, grounded_costs
from align3gr.baselines.generative import stage_chains
from align3gr.encoders import load_text_encoder
from align3gr.errors import InputError
from tests.baselines.test_generative import prepared, split, stages_in_this_process  # noqa: F401
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
    alike = np.zeros_like(costs)
    assert cheapest(costs, 3, alike).tolist() == [[3, 1, 0], [1, 4, -1]]
    assert cheapest(costs, 7, alike).tolist() == [[3, 1, 0, 2, 4, -1, -1], [1, 4, -1, -1, -1, -1, -1]]
    # Of those at one cost the preferred comes first; a lower cost goes before.
    preferred = np.array([[0, 0, 0.5, 0, 0.9], [1, 0, 1, 1, 0.1]])
    assert cheapest(costs, 3, preferred).tolist() == [[3, 1, 4], [4, 1, -1]]
    assert cheapest(costs, 5, preferred).tolist() == [[3, 1, 4, 2, 0], [4, 1, -1, -1, -1]]


@pytest.fixture(scope="module")
def chain(split, prepared, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("models")
    with stages_in_this_process():
        yield stage_chains(split, prepared / "data", {"BIGRec": FILES}, folder)["BIGRec"]


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


def test_titles_are_written_embedded_and_grounded(chain, split, monkeypatch):  # noqa: F811
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
    # Other questions, and popularity that counts: what was written is embedded anew.
    system.gamma = 2.0
    fresh = split.histories("test").subset(np.arange(3))
    counts = np.bincount(np.concatenate(split.train_sequences()), minlength=len(split.items))
    vectors = system._titles.numpy()
    expected = ranked_by_the_formula(vectors[[5] * 3], vectors, np.tile(counts, (3, 1)), 2.0)
    assert np.array_equal(system.lists(fresh, 10)[0], expected[:, :10])


def ranked_by_the_formula(answers, titles, statistics, gamma):
    def scaled(values):
        lowest, highest = values.min(1, keepdims=True), values.max(1, keepdims=True)
        return (values - lowest) / (highest - lowest)

    costs = scaled(cdist(answers, titles)) * (1 + scaled(statistics.astype(float))) ** -gamma
    return np.stack([np.lexsort((-liked, cost)) for liked, cost in zip(statistics * (gamma > 0), costs, strict=True)])


def test_an_unknown_space_or_weighting_is_named(chain):
    with pytest.raises(InputError, match="grounding: got 'bert', expected one of lm, semantic"):
        BIGRec(chain, 1, grounding="bert")
    with pytest.raises(InputError, match="weighting: got 'fame', expected one of popularity, collaborative, none"):
        BIGRec(chain, 1, weighting="fame")


@pytest.mark.parametrize("weighting", ["collaborative", "none"])
def test_weightings(chain, split, prepared, weighting):  # noqa: F811
    pytest.importorskip("implicit")
    system = BIGRec(chain, 1, grounding="semantic", weighting=weighting, title_beams=1, num_train_epochs=1)
    system.fit(split.train_sequences(), len(split.items))
    assert system.gamma == 0.0
    questions = split.histories("validation").subset(np.arange(8))
    system.gamma = 5.0
    scores = np.eye(8, len(split.items))  # counts for nothing
    gamma = 0.0
    if weighting == "collaborative":
        mf = MatrixFactorization(seed=1).fit(split.train_sequences(), len(split.items))
        scores = mf.user_vectors(questions.histories, questions.user_rows) @ mf.item_vectors().T
        gamma = 5.0
    found = system.lists(questions, 10)[0]
    encoder = load_text_encoder(prepared / "embeddings" / "semantic_encoder")
    titles = encoder.encode(split.items["title"].to_list())
    answers = encoder.encode(system._writer.write(questions.histories))
    assert np.array_equal(found, ranked_by_the_formula(answers, titles, scores, gamma)[:, :10])
