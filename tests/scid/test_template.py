import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from align3gr.errors import InputError
from align3gr.scid import SCIDTokenizer, train_base_tokenizer
from align3gr.scid.template import Template, TextTokenizer

TEXTS = ["user red shoes bought next", "blue shoes history of the user"] * 4


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """Blanks as in Llama: a blank in front of the text, written as ▁."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=90, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


@pytest.fixture(params=["byte-level", "sentencepiece"])
def tokenizer(request):
    base = train_base_tokenizer(TEXTS, 300) if request.param == "byte-level" else sentencepiece_like()
    return SCIDTokenizer.from_base(base, [4, 4], [4])


@pytest.mark.parametrize(
    "values, text",
    [
        ({"user": "<u0_1>", "history": "<i0_1><i1_2>"}, "user <u0_1> bought <i0_1><i1_2> next"),
        ({"user": None, "history": "<i0_1><i1_2>"}, "bought <i0_1><i1_2> next"),
        ({"user": "<u0_1>", "history": ""}, "user <u0_1> bought  next"),
    ],
)
def test_ids_are_those_of_the_whole_string(tokenizer, values, text):
    template = Template("[user {user} ]bought {history} next", TextTokenizer(tokenizer))
    ids = {
        name: None if value is None else tokenizer(value, add_special_tokens=False)["input_ids"]
        for name, value in values.items()
    }
    if not ids["history"]:
        ids["history"] = ""  # an empty text joins its neighbours
    assert template.render(ids) == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_text_fields_join_the_text_around_them(tokenizer):
    template = Template("{item} is {title}!", TextTokenizer(tokenizer))
    item = tokenizer.convert_tokens_to_ids(["<i0_3>", "<i1_0>"])
    ids = template.render({"item": item, "title": "red shoes"})
    assert ids == tokenizer("<i0_3><i1_0> is red shoes!", add_special_tokens=False)["input_ids"]


def test_an_answer_continues_the_prompt(tokenizer):
    prompt, answer = (Template(text, TextTokenizer(tokenizer)) for text in ("{item} is", " {title}"))
    item = tokenizer.convert_tokens_to_ids(["<i0_3>"])
    ids = prompt.render({"item": item}) + answer.render({"title": "red shoes"}, continued=True)
    assert tokenizer.decode(ids) == "<i0_3> is red shoes"


def test_fields_and_required(tokenizer):
    template = Template("[{user} and {profile}]{history}", TextTokenizer(tokenizer))
    assert template.fields == {"user", "profile", "history"} and template.required == {"history"}
    user = tokenizer.convert_tokens_to_ids(["<u0_3>"])
    assert template.render({"user": user, "history": []}) == []  # profile is missing, so the whole part is
    with pytest.raises(InputError, match="'history' has no value"):
        template.render({"user": user})


@pytest.mark.parametrize("text", ["[{user}", "{user}]", "[a [b]]", "{User}", "{user", "user}"])
def test_unbalanced_templates_are_refused(tokenizer, text):
    with pytest.raises(InputError, match="template"):
        Template(text, TextTokenizer(tokenizer))
