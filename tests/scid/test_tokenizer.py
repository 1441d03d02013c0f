"""SCID tokens on the kinds of tokenizers that language models have."""

import json
import multiprocessing
import subprocess
import sys

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2Tokenizer

from align3gr.errors import InputError
from align3gr.scid import SCIDTokenizer, train_base_tokenizer

TEXTS = ["red shoes", "blue shoes", "a green hat with a red feather, 2024", "été à Zürich"] * 5
# Text in every place around SCIDs; no blank in front, which SentencePiece does not keep.
ROUND_TRIPS = [
    "<i0_3><i1_0>",
    "<u0_1> bought <i0_3><i1_0>, then<i0_2><i1_1>",
    "red<i0_3>shoes",
    "red <i0_3> shoes <i1_2> a",
    "<i0_1>\n<i0_2>  two blanks",
    "été<u0_0>ü 2024",
]
BLANK = "\u2581"
BYTES = [f"<0x{i:02X}>" for i in range(256)]


def fast(tokenizer: Tokenizer, **options) -> PreTrainedTokenizerFast:
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", **options
    )


def sentencepiece_decoder():
    parts = [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    return decoders.Sequence(parts)


def sentencepiece_bpe(form: str) -> PreTrainedTokenizerFast:
    """Llama 2's kind. form: "first" as transformers' LlamaTokenizer, "always", or "prepend" as its tokenizer.json."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    special = ["<unk>", "<s>", "</s>", *BYTES]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = state["added_tokens"][:3]  # byte tokens belong to the model, as in Llama 2
    tokenizer = Tokenizer.from_str(json.dumps(state))
    if form == "prepend":
        tokenizer.pre_tokenizer = None
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(BLANK), normalizers.Replace(" ", BLANK)])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=form, split=False)
    tokenizer.decoder = sentencepiece_decoder()
    return fast(tokenizer)


def unigram() -> PreTrainedTokenizerFast:
    """T5's and Gemma's kind."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=120,
        special_tokens=["<unk>", "<s>", "</s>"],
        unk_token="<unk>",
        initial_alphabet=["\n", "ü", "k", "w"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return fast(tokenizer)


def qwen2() -> Qwen2Tokenizer:
    model = json.loads(train_base_tokenizer(TEXTS, 320).backend_tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    return Qwen2Tokenizer(vocab=model["vocab"], merges=merges, unk_token="<|endoftext|>")


BASES = {
    "byte-level": lambda: train_base_tokenizer(TEXTS, 320),
    "qwen2": qwen2,
    "llama-2": lambda: sentencepiece_bpe("first"),
    "llama-2 legacy file": lambda: sentencepiece_bpe("prepend"),
    "metaspace always": lambda: sentencepiece_bpe("always"),
    "unigram": unigram,
}


@pytest.fixture(scope="module", params=list(BASES))
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def pair(kind):
    base = BASES[kind]()
    return base, SCIDTokenizer.from_base(base, [4, 4], [2])


def test_texts_round_trip_and_scids_are_whole_tokens(pair):
    _, tokenizer = pair
    for text in ROUND_TRIPS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    # Nothing stands between, before or behind SCIDs that the text did not hold.
    tokens = tokenizer.tokenize("<u0_1><i0_3><i1_0>")
    assert tokens == ["<u0_1>", "<i0_3>", "<i1_0>"]


def test_ids_of_the_base_do_not_change(pair):
    base, tokenizer = pair
    assert {token: tokenizer.get_vocab()[token] for token in base.get_vocab()} == base.get_vocab()
    assert len(tokenizer) == len(base) + 4 + 4 + 2
    assert tokenizer.scid.token_ids == list(range(len(base), len(base) + 10))
    for text in [*TEXTS[:4], "", "two  blanks\nand a line ", "ununknown £"]:
        assert tokenizer(text)["input_ids"] == base(text)["input_ids"]


def test_the_saved_folder_is_an_ordinary_one(pair, kind, tmp_path):
    _, tokenizer = pair
    tokenizer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    if kind == "qwen2":
        # transformers gives every folder of a Qwen2 model its Qwen2Tokenizer, whatever the folder says.
        (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    plain, again = AutoTokenizer.from_pretrained(tmp_path), SCIDTokenizer.from_pretrained(tmp_path)
    assert isinstance(plain, Qwen2Tokenizer) == (kind == "qwen2")
    for text in ROUND_TRIPS:
        ids = tokenizer(text)["input_ids"]
        assert plain(text)["input_ids"] == again(text)["input_ids"] == ids
        assert plain.decode(ids, skip_special_tokens=True) == text
    assert plain.pad_token == again.pad_token == tokenizer.pad_token and plain.padding_side == "left"
    assert again.scid.token_ids == tokenizer.scid.token_ids


def test_a_folder_of_a_qwen2_model_opens_as_qwen2_whatever_it_holds(tmp_path):
    """transformers overrules the folder for a few model types: SCIDs stay, plain text is split otherwise.

    docs/tokenizer.md warns of it; when this fails, the warning can go.
    """
    tokenizer = SCIDTokenizer.from_base(BASES["llama-2"](), [4, 4], [2])
    tokenizer.save_pretrained(tmp_path)
    for model_type, same in (("llama", True), ("phi3", True), ("qwen2", False), ("qwen3_5", False)):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        opened = AutoTokenizer.from_pretrained(tmp_path)
        scids, text = "<u0_1><i0_3><i1_0>", "red shoes"
        assert opened.tokenize(scids) == tokenizer.tokenize(scids)
        assert (opened.tokenize(text) == tokenizer.tokenize(text)) == same, model_type


WITHOUT = """
import json, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "align3gr":
            raise ModuleNotFoundError("align3gr is refused here")

sys.meta_path.insert(0, Refuse())
from transformers import AutoTokenizer, pipeline

root, folders, texts = json.loads(sys.argv[1])
result = {}
for folder in folders:
    tokenizer = AutoTokenizer.from_pretrained(f"{root}/{folder}")
    ids = [tokenizer(text)["input_ids"] for text in texts]
    result[folder] = [ids, [tokenizer.decode(row, skip_special_tokens=True) for row in ids]]
generator = pipeline("text-generation", model=f"{root}/model", device="cpu")
out = generator(["<u0_1><i0_3><i1_0>", "<i0_1>"], batch_size=2, max_new_tokens=3, do_sample=False)
result["pipeline"] = [rows[0]["generated_text"] for rows in out]
print(json.dumps([result, "align3gr" in sys.modules]))
"""


def test_saved_tokenizers_work_where_align3gr_is_not_installed(tmp_path):
    expected = {}
    for name, make in BASES.items():
        tokenizer = SCIDTokenizer.from_base(make(), [4, 4], [2])
        folder = name.replace(" ", "-")
        tokenizer.save_pretrained(tmp_path / folder)
        expected[folder] = [[tokenizer(text)["input_ids"] for text in ROUND_TRIPS], ROUND_TRIPS]
    tokenizer = SCIDTokenizer.from_base(BASES["llama-2"](), [4, 4], [2])
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    # A model that says <i1_2> whatever it is asked.
    answer = tokenizer.convert_tokens_to_ids("<i1_2>")
    for weight in (
        model.lm_head.weight,
        model.model.layers[0].self_attn.o_proj.weight,
        model.model.embed_tokens.weight,
    ):
        weight.data.zero_()
    model.model.layers[0].mlp.down_proj.weight.data.zero_()
    model.model.embed_tokens.weight.data += 1
    model.lm_head.weight.data[answer] = 1
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    arguments = json.dumps([str(tmp_path), list(expected), ROUND_TRIPS])
    done = subprocess.run([sys.executable, "-c", WITHOUT, arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result, imported = json.loads(done.stdout.splitlines()[-1])
    assert not imported
    said = result.pop("pipeline")
    assert said == ["<u0_1><i0_3><i1_0><i1_2><i1_2><i1_2>", "<i0_1><i1_2><i1_2><i1_2>"]
    assert result == expected


def encode(tokenizer, text):
    return type(tokenizer).__name__, tokenizer(text)["input_ids"]


def test_tokenizers_travel_into_worker_processes():
    made = [SCIDTokenizer.from_base(make(), [4, 4], [2]) for make in BASES.values()]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for tokenizer in made:
            assert pool.apply(encode, (tokenizer, ROUND_TRIPS[1])) == encode(tokenizer, ROUND_TRIPS[1])


def test_tokenizers_work_inside_datasets_map():
    from datasets import Dataset

    tokenizer = SCIDTokenizer.from_base(BASES["byte-level"](), [4, 4], [2])
    rows = Dataset.from_dict({"text": ROUND_TRIPS})
    done = rows.map(lambda row: {"ids": tokenizer(row["text"])["input_ids"]}, num_proc=2)
    assert done["ids"] == [tokenizer(text)["input_ids"] for text in ROUND_TRIPS]


def test_special_tokens_chat_template_and_lengths_are_kept(tmp_path):
    base = BASES["llama-2"]()
    base.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    base.chat_template = "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}"
    base.model_max_length, base.truncation_side = 77, "left"
    SCIDTokenizer.from_base(base, [4], []).save_pretrained(tmp_path)
    for tokenizer in (AutoTokenizer.from_pretrained(tmp_path), SCIDTokenizer.from_pretrained(tmp_path)):
        assert (tokenizer.model_max_length, tokenizer.truncation_side) == (77, "left")
        chat = tokenizer.apply_chat_template([{"role": "user", "content": "<i0_1> red"}], tokenize=False)
        assert chat == "<|user|><i0_1> red"
        assert tokenizer.decode(tokenizer(chat)["input_ids"], skip_special_tokens=True) == "<i0_1> red"
        assert "<|user|>" in tokenizer.all_special_tokens and "<i0_1>" not in tokenizer.all_special_tokens
        assert tokenizer(chat)["input_ids"][0] == base.bos_token_id


def test_a_base_with_the_same_scid_tokens_is_taken_as_it_is_and_others_are_refused():
    base = BASES["byte-level"]()
    once = SCIDTokenizer.from_base(base, [4, 4], [2])
    twice = SCIDTokenizer.from_base(once, [4, 4], [2])
    assert twice.get_vocab() == once.get_vocab()
    with pytest.raises(InputError, match=r"has 10 SCID tokens such as <.*> already, which are not the 16"):
        SCIDTokenizer.from_base(once, [8, 8], [])
    base.add_special_tokens({"additional_special_tokens": ["<i0_0>"]})
    with pytest.raises(InputError, match="has 1 SCID tokens such as <i0_0> already"):
        SCIDTokenizer.from_base(base, [1], [])  # a special one would vanish in decoding


def test_look_alikes_in_the_base_are_ordinary_text():
    base = BASES["byte-level"]()
    base.add_tokens(["<i0_07>", "<i0_7", "<x0_1>"])
    tokenizer = SCIDTokenizer.from_base(base, [8], [])
    assert tokenizer.scid.item_tokens.tolist() == [list(range(len(base), len(base) + 8))]


def test_tokenizers_that_cannot_hold_scids_are_refused_with_the_reason():
    slow = type("SlowTokenizer", (), {"is_fast": False})()
    with pytest.raises(InputError, match="SlowTokenizer is not a fast tokenizer"):
        SCIDTokenizer.from_base(slow)
    base = BASES["llama-2"]()
    base.init_kwargs["legacy"] = True
    with pytest.raises(InputError, match="legacy=True"):
        SCIDTokenizer.from_base(base)
    base = BASES["byte-level"]()
    base.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    with pytest.raises(InputError, match="changes the text around added tokens"):
        SCIDTokenizer.from_base(base, [4], [])
    base = BASES["byte-level"]()
    base.pad_token = base.eos_token = None
    with pytest.raises(InputError, match="neither a pad token nor an end-of-sequence token"):
        SCIDTokenizer.from_base(base, [4], [])
