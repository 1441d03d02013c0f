"""Rows of text and messages give the token ids of TRL's own `DPOTrainer`, and one rejected the losses of it."""

import json
import logging
from types import SimpleNamespace

import pytest
from datasets import Dataset, load_from_disk
from trl import DPOConfig, DPOTrainer, extract_prompt

from align3gr.dpo.preference_rows import prepare_rows
from align3gr.dpo.preference_text import _split_row
from align3gr.dpo.softmax_dpo_config import SoftmaxDPOConfig
from align3gr.dpo.softmax_dpo_trainer import SoftmaxDPOTrainer
from align3gr.errors import InputError

# `t3` opens the user's turn, `t4` the answer, the end-of-sequence token `t2` closes both.
CHAT = (
    "{% for tool in tools or [] %}t6 {{ tool.name }} {% endfor %}"
    "{% for m in messages %}{% if numbered %}t13 {% endif %}"
    "{{ 't4' if m.role == 'assistant' else 't3' }} {{ m.content }} t2 {% endfor %}"
    "{% if add_generation_prompt %}t4 {% if thinking %}t9 {% endif %}{% endif %}"
)
IDS = ["prompt_ids", "chosen_ids", "rejected_ids"]


def user(text):
    return [{"role": "user", "content": text}]


def answer(text):
    return [{"role": "assistant", "content": text}]


@pytest.fixture
def chat(tokenizer):
    tokenizer.chat_template = CHAT
    return tokenizer


def prepare(rows, tokenizer, append_eos=True, max_length=None, num_rejected=20):
    args = SimpleNamespace(
        append_eos=append_eos, max_length=max_length, num_rejected=num_rejected, dataset_num_proc=None
    )
    return prepare_rows(Dataset.from_list(rows), tokenizer, args, "train")


def ids(rows, tokenizer, **options):
    return [[row[column] for column in IDS] for row in prepare(rows, tokenizer, **options)]


TEXT = [
    {"prompt": "t1 t5", "chosen": " t41 t47", "rejected": " t42"},
    {"prompt": "t7 t8 t9", "chosen": " t41 t2", "rejected": " t42 t46 t51"},
]
MESSAGES = [
    {"prompt": user("t5"), "chosen": answer("t41 t47"), "rejected": answer("t42")},
    {
        "prompt": [*user("t7"), *answer("t8"), *user("t9")],
        "chosen": answer("t41"),
        "rejected": [*answer("t42 t46"), *user("t10"), *answer("t11")],
    },
]
FORMS = {
    "text": TEXT,
    "implicit text": [{"chosen": r["prompt"] + r["chosen"], "rejected": r["prompt"] + r["rejected"]} for r in TEXT],
    "messages": MESSAGES,
    "implicit messages": [
        {"chosen": r["prompt"] + r["chosen"], "rejected": r["prompt"] + r["rejected"]} for r in MESSAGES
    ],
    "tools": [row | {"tools": json.dumps([{"name": "t12"}])} for row in MESSAGES],
    # The header of an answer ends with a token that is not there when the answer follows.
    "template options": [row | {"chat_template_kwargs": {"thinking": True, "numbered": True}} for row in MESSAGES],
    "cut": [TEXT[0] | {"chosen": " t41 t47 t48 t49", "rejected": " t42 t47 t48 t50 t51"}, *TEXT],
}


@pytest.mark.parametrize("form", FORMS)
def test_one_rejected_is_tokenised_and_trained_as_by_trl(form, llama, chat, tmp_path):
    """The whole way from the rows to the losses of three steps, in both trainers."""
    max_length = 4 if form == "cut" else None
    common = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True}
    common |= {"gradient_checkpointing": False, "per_device_train_batch_size": 2, "max_steps": 3, "seed": 3}
    common |= {"learning_rate": 1e-2, "logging_steps": 1, "save_strategy": "no", "max_length": max_length}
    logged, rows = [], []
    for config, kind in ((DPOConfig, DPOTrainer), (SoftmaxDPOConfig, SoftmaxDPOTrainer)):
        args = config(**common, precompute_ref_log_probs=True)
        data = Dataset.from_list(FORMS[form])
        trainer = kind(llama(), args=args, train_dataset=data, processing_class=chat)
        trainer.train()
        rows.append([[row[column] for column in IDS] for row in trainer.train_dataset])
        logged.append([entry for entry in trainer.state.log_history if "loss" in entry])
    limit = max_length or 99
    expected = [[p, c[: limit - len(p)], [r[: limit - len(p)]]] for p, c, r in rows[0]]
    assert rows[1] == expected
    for theirs, ours in zip(*logged, strict=True):
        for name in ("loss", "rewards/margins", "rewards/accuracies", "rewards/chosen"):
            assert ours[name] == pytest.approx(theirs[name], abs=1e-6), name
        for name in ("logps/chosen", "logps/rejected", "grad_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5), name
    assert logged[1][2]["loss"] < logged[1][0]["loss"] - 0.01


def test_several_rejected_by_hand(chat):
    row = {"prompt": "t1 t5", "chosen": " t41", "rejected": [" t42 t46", " t43 t2"]}
    assert ids([row], chat) == [[[1, 5], [41, 2], [[42, 46, 2], [43, 2]]]]
    assert ids([row], chat, append_eos=False) == [[[1, 5], [41], [[42, 46], [43, 2]]]]
    row = {"prompt": user("t5"), "chosen": answer("t41"), "rejected": [answer("t42 t46"), answer("t43")]}
    assert ids([row], chat) == [[[3, 5, 2, 4], [41, 2], [[42, 46, 2], [43, 2]]]]
    assert ids([row], chat, append_eos=False) == ids([row], chat)


def test_an_implicit_prompt_is_what_all_completions_begin_with(chat):
    row = {"chosen": "t1 t5 t41 t47", "rejected": ["t1 t5 t41 t48", "t1 t5 t42"]}
    # The texts agree up to "t1 t5 t4".
    assert ids([row], chat) == [[[1, 5], [41, 47, 2], [[41, 48, 2], [42, 2]]]]
    turns = [*user("t5"), *answer("t8")]
    row = {"chosen": turns + user("t9"), "rejected": [turns + user("t10"), [*user("t5"), *answer("t11")]]}
    assert ids([row], chat)[0][0] == [3, 5, 2, 4]


@pytest.mark.parametrize(
    ("chosen", "rejected"), [("The sky is blue.", "The sky is green."), ("I do so.", "I do not.")]
)
def test_a_blank_before_the_completions_is_theirs(chosen, rejected):
    prompt, completions = _split_row({"chosen": chosen, "rejected": [rejected]}, "row 0")
    assert not prompt.endswith(" ") and completions[0].startswith(" ")
    expected = extract_prompt({"chosen": chosen, "rejected": rejected})
    assert {"prompt": prompt, "chosen": completions[0], "rejected": completions[1]} == expected


def test_token_ids_are_taken_as_they_are(chat):
    row = {"prompt_ids": [1, 5], "chosen_ids": [41], "rejected_ids": [42, 43]}
    assert ids([row], chat) == [[[1, 5], [41], [[42, 43]]]]
    row["rejected_ids"] = [[42, 43], [44]]
    assert ids([row], chat) == [[[1, 5], [41], [[42, 43], [44]]]]


def test_a_prompt_that_merges_with_its_completion_is_cut_with_a_warning(chat, caplog):
    row = {"prompt": "t1 t4", "chosen": "1 t47", "rejected": ["2", "3"]}
    with caplog.at_level(logging.WARNING):
        assert ids([row, row], chat) == [[[1], [41, 47, 2], [[42, 2], [43, 2]]]] * 2
    (warning,) = (record.getMessage() for record in caplog.records if "merge" in record.getMessage())
    assert warning.startswith("train dataset, row 0: ") and "'t4' is left out of the prompt" in warning


def test_texts_are_cut_and_prompts_without_room_dropped(chat, caplog):
    rows = [TEXT[0] | {"rejected": [" t42 t43 t44"]}, {"prompt": "t1 t2 t3", "chosen": " t4", "rejected": [" t5"]}]
    with caplog.at_level(logging.WARNING):
        assert ids(rows, chat, max_length=3) == [[[1, 5], [41], [[42]]]]
    assert "1 prompts alone fill max_length=3; dropped" in caplog.text
    with pytest.raises(InputError, match="every prompt alone fills max_length=2; raise it"):
        ids(rows, chat, max_length=2)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "t1", "chosen": answer("t2"), "rejected": answer("t3")}, "row 0: .* got messages, text"),
        ({"prompt": "t1", "chosen": None, "rejected": "t3"}, "row 0: .* got None, text"),
        ({"chosen": "t1", "rejected": "t2 t3"}, "row 0: an empty prompt or completion"),
        ({"chosen": "a", "rejected": "b"}, "row 0: an empty prompt; without a column prompt"),
        ({"chosen": "t1", "prompt_ids": [1]}, r"columns \['chosen_ids', 'rejected_ids'\] are missing"),
        ({"prompt": "t1", "chosen": "t2"}, r"columns \['rejected'\] are missing"),
        ({"prompt": "t1", "chosen": " t5", "rejected": []}, "row 0: rejected_ids has 0 completions"),
        (
            {"prompt": "t1", "chosen": " t5", "rejected": [" t6", " t7", " t8"]},
            "has 3 completions; expected 1 to .*=2",
        ),
        ({"prompt": "t1", "chosen": " t5", "rejected": [" t6", " t5 t2"]}, "chosen completion is also among"),
        (
            {name: [1] for name in IDS} | {"ref_chosen_logps": 0.5},
            r"\['ref_chosen_logps'\] are from an earlier trainer",
        ),
    ],
)
def test_unusable_rows_are_named(chat, row, message):
    with pytest.raises(InputError, match=message):
        prepare([row], chat, num_rejected=2)


def test_what_the_tokenizer_lacks_is_named(tokenizer):
    with pytest.raises(InputError, match=r"row 0: messages need a chat template; set tokenizer\.chat_template"):
        prepare(MESSAGES, tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(InputError, match=r"row 0: the tokenizer has no eos_token.*append_eos=False"):
        prepare(TEXT, tokenizer)
    assert ids(TEXT, tokenizer, append_eos=False)[0] == [[1, 5], [41, 47], [[42]]]


def test_rows_on_disk_are_tokenised_once(chat, tmp_path):
    """The cache of `datasets` knows the options apart, and a tokenizer that has been used from no other."""
    Dataset.from_list(TEXT).save_to_disk(tmp_path / "rows")

    def prepared(append_eos):
        args = SimpleNamespace(append_eos=append_eos, max_length=9, num_rejected=2, dataset_num_proc=None)
        return prepare_rows(load_from_disk(tmp_path / "rows"), chat, args, "train")

    first, again, other = prepared(True), prepared(True), prepared(False)
    assert first._fingerprint == again._fingerprint != other._fingerprint
    assert first.cache_files == again.cache_files != other.cache_files
    assert other["chosen_ids"][0] == [41, 47]
