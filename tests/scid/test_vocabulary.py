import numpy as np
import pytest
from transformers import AutoTokenizer

from align3gr.errors import InputError
from align3gr.scid import PromptBuilder, SCIDCatalogue, SCIDTokenizer, SCIDVocabulary, train_base_tokenizer

TEXTS = ["red shoes", "blue shoes", "a green hat with a red feather"] * 5


@pytest.fixture(scope="module")
def tokenizer():
    return SCIDTokenizer.from_base(train_base_tokenizer(TEXTS, 300), [4, 3], [2, 2])


def test_vocabulary_maps_codes_to_the_tokens_of_that_name(tokenizer):
    vocabulary = SCIDVocabulary.from_tokenizer(tokenizer)
    ids = vocabulary.item_ids(np.array([[3, 0], [0, 2]]))
    assert tokenizer.convert_ids_to_tokens(ids.reshape(-1).tolist()) == ["<i0_3>", "<i1_0>", "<i0_0>", "<i1_2>"]
    assert tokenizer.convert_ids_to_tokens(vocabulary.user_ids(np.array([1, 0])).tolist()) == ["<u0_1>", "<u1_0>"]
    assert vocabulary.item_codes(ids).tolist() == [[3, 0], [0, 2]]


def test_vocabulary_refuses_codes_outside_the_codebooks(tokenizer):
    vocabulary = SCIDVocabulary.from_tokenizer(tokenizer)
    with pytest.raises(InputError, match="exceeds the size"):
        vocabulary.item_ids(np.array([0, 3]))
    with pytest.raises(InputError, match="must lie in"):
        vocabulary.item_ids(np.array([4, 0]))
    with pytest.raises(InputError, match="the last dimension is 3"):
        vocabulary.item_ids(np.array([0, 0, 0]))
    with pytest.raises(InputError, match="not all ids"):
        vocabulary.item_codes(np.array([0, 1]))


def test_tokenizer_without_scid_tokens_is_refused():
    with pytest.raises(InputError, match="no item SCID tokens"):
        SCIDVocabulary.from_tokenizer(train_base_tokenizer(TEXTS, 300))


def test_scid_tokens_with_gaps_are_refused():
    base = train_base_tokenizer(TEXTS, 300)
    base.add_tokens(["<i0_0>", "<i0_2>"])
    with pytest.raises(InputError, match="level 0 have gaps"):
        SCIDVocabulary.from_tokenizer(base)


def test_tokenizer_round_trips_and_keeps_scids_when_special_tokens_are_skipped(tokenizer):
    text = "<i0_3><i1_0> red shoes<u0_1><u1_0>, a hat"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_base_token_ids_do_not_change(tokenizer):
    base = train_base_tokenizer(TEXTS, 300)
    text = "a red hat"
    assert tokenizer(text)["input_ids"] == base(text)["input_ids"]
    assert len(tokenizer) == len(base) + 4 + 3 + 2 + 2


def test_saved_tokenizer_opens_as_a_plain_one(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    plain = AutoTokenizer.from_pretrained(tmp_path)
    again = SCIDTokenizer.from_pretrained(tmp_path)
    text = "<i0_3><i1_0> red shoes<u0_1>"
    assert plain(text)["input_ids"] == tokenizer(text)["input_ids"] == again(text)["input_ids"]
    assert plain.decode(plain(text)["input_ids"]) == text
    assert plain.pad_token == tokenizer.pad_token and plain.padding_side == "left"
    assert (again.scid.item_tokens == tokenizer.scid.item_tokens).all()


def test_prompt_is_header_then_latest_items(tokenizer, tmp_path):
    prompts = PromptBuilder(tokenizer, max_history=2, template="[{user}] bought{history}")
    history = np.array([[0, 0], [1, 1], [2, 2]])
    ids = prompts.prompt(np.array([1, 0]), history)
    assert tokenizer.decode(ids) == "<s><u0_1><u1_0> bought<i0_1><i1_1><i0_2><i1_2>"
    assert tokenizer.decode(prompts.prompt(None, history[:1])) == "<s> bought<i0_0><i1_0>"
    assert tokenizer.decode(prompts.completion(np.array([3, 2]))) == "<i0_3><i1_2>"
    prompts.save_pretrained(tmp_path)
    assert PromptBuilder.from_pretrained(tmp_path, tokenizer).prompt(np.array([1, 0]), history) == ids


def test_prompt_with_a_suffix_and_an_optional_user(tokenizer):
    prompts = PromptBuilder(tokenizer, template="[user {user} ]bought{history} next:")
    history = np.array([[0, 0]])
    ids = prompts.prompt(np.array([1, 0]), history)
    assert tokenizer.decode(ids) == "<s>user <u0_1><u1_0> bought<i0_0><i1_0> next:"
    assert tokenizer.decode(prompts.prompt(None, history)) == "<s>bought<i0_0><i1_0> next:"
    assert tokenizer.decode(prompts.suffix) == " next:" and ids[-len(prompts.suffix) :] == prompts.suffix
    longest = 1 + len(prompts.header(np.array([1, 0]))) - 1 + 21 * 2 + len(prompts.suffix)
    prompts.check_length(longest)
    with pytest.raises(ValueError, match="max_history"):
        prompts.check_length(longest - 1)


@pytest.mark.parametrize("template", ["{user}{history}", "[{user}]", "[{user}]{history}{item}", "{history}[{user}]"])
def test_prompt_templates_that_cannot_serve(tokenizer, template):
    with pytest.raises(ValueError, match="template"):
        PromptBuilder(tokenizer, template=template)


def test_prompt_without_user_scid(tokenizer):
    prompts = PromptBuilder(tokenizer, user_scid=False)
    assert tokenizer.decode(prompts.prompt(np.array([1, 0]), np.array([[0, 0]]))) == "<s><i0_0><i1_0>"
    only_items = SCIDTokenizer.from_base(train_base_tokenizer(TEXTS, 300), [4], [])
    with pytest.raises(ValueError, match="no user SCID tokens"):
        PromptBuilder(only_items)


def test_catalogue_maps_items_to_tokens_and_back(tokenizer):
    codes = np.array([[3, 0], [0, 2], [3, 0]])
    catalogue = SCIDCatalogue(tokenizer.scid, ["B1", "B2", "B3"], codes)
    ids = catalogue.token_ids(["B2", "B1"])
    assert tokenizer.decode(ids.reshape(-1)) == "<i0_0><i1_2><i0_3><i1_0>"
    assert tokenizer.scid.item_codes(ids).tolist() == [[0, 2], [3, 0]]
    # B1 and B3 share an SCID; nobody has <i0_1><i1_1>; tokens in the wrong order name nothing.
    other = tokenizer.convert_tokens_to_ids(["<i0_1>", "<i1_1>"])
    assert catalogue.items([*ids.tolist(), other, ids[0].tolist()[::-1]]) == [["B2"], ["B1", "B3"], [], []]
    with pytest.raises(InputError, match="'B9' is not among the 3 items"):
        catalogue.token_ids(["B1", "B9"])
    with pytest.raises(InputError, match="'B1' stands there twice"):
        SCIDCatalogue(tokenizer.scid, ["B1", "B2", "B1"], codes)
    with pytest.raises(InputError, match="got 2 for 3 rows"):
        SCIDCatalogue(tokenizer.scid, ["B1", "B2"], codes)
