import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, DataCollatorForSeq2Seq, T5Config, T5ForConditionalGeneration
from trl import SFTConfig

from align3gr.decoding import Recommender
from align3gr.errors import InputError
from align3gr.scid import PromptBuilder, SCIDTokenizer, codes_column, train_base_tokenizer
from align3gr.sft import (
    EncoderDecoderTrainer,
    SFTArguments,
    T5Arguments,
    TaskTemplates,
    encoder_decoder_rows,
    load_backbone,
    make_trainer,
    parse_tasks,
    prefix_rows,
    small_t5,
    training_rows,
)
from align3gr.sft.dataset import IGNORE

from .backbones import base_tokenizer
from .conftest import ITEM_CODES, SEQUENCES, USER_CODES

ITEMS = pl.DataFrame({"item_id": [f"i{row}" for row in range(8)], "title": [f"item {row}" for row in range(8)]})


def make_t5(tokenizer):
    return small_t5(16, 32, 1, 2, tokenizer, T5Arguments("t5"), seed=0)


def trainer_of(tokenizer, folder, model=None, temperature=1.0, normalizer="vocabulary", validate=None, **training):
    model = model or make_t5(tokenizer)
    model.config.scid_normalizer = normalizer
    prompts = PromptBuilder(tokenizer, 3)
    rows = prefix_rows(prompts, SEQUENCES, USER_CODES, ITEM_CODES)
    options = {"max_steps": 1, "per_device_train_batch_size": 4, "gradient_checkpointing": False, "report_to": []}
    config = SFTConfig(output_dir=str(folder), use_cpu=True, bf16=False, **(options | training))
    recommender = Recommender(
        model, tokenizer, ITEMS.with_columns(codes_column(ITEM_CODES)), prompt_builder=prompts, num_beams=8
    )
    arguments = SFTArguments(run_dir=str(folder), objective="prefix", normalizer=normalizer)
    return make_trainer(model, tokenizer, rows, config, arguments, recommender, validate, temperature), recommender


def batch_of(trainer, tokenizer):
    rows = [trainer.train_dataset[row] for row in range(4)]
    return DataCollatorForSeq2Seq(tokenizer, trainer.model)(rows)


def test_prompt_and_answer_go_their_ways(scid_tokenizer):
    prompts = PromptBuilder(scid_tokenizer, 3)
    rows = encoder_decoder_rows(prefix_rows(prompts, SEQUENCES, USER_CODES, ITEM_CODES))
    # Users of 4, 2 and 1 train items have 3 + 1 + 0 of them behind another.
    assert len(rows) == 4
    third = rows[2]
    assert third["input_ids"] == prompts.prompt(USER_CODES[0], ITEM_CODES[[0, 1, 2]])
    assert third["labels"] == prompts.completion(ITEM_CODES[0])


def test_tasks_in_words_go_the_same_way(scid_tokenizer, task_data):
    templates = TaskTemplates("compact")
    prompts = PromptBuilder(scid_tokenizer, 3, template=templates.prompt)
    tasks = parse_tasks(["item_text"])
    made = training_rows(task_data, prompts, scid_tokenizer, ITEM_CODES, tasks, templates, "prefix")
    split = encoder_decoder_rows(made)
    for whole, parts in zip(made, split, strict=True):
        assert parts["input_ids"] + parts["labels"] == whole["input_ids"]
        assert parts["labels"] == [label for label in whole["labels"] if label != IGNORE]
        assert parts["input_ids"] and parts["labels"]


@pytest.mark.parametrize("multiple", [None, 8])
def test_an_answer_is_learnt_alike_beside_a_longer_one(scid_tokenizer, tmp_path, multiple):
    trainer, _ = trainer_of(scid_tokenizer, tmp_path, **({} if multiple is None else {"pad_to_multiple_of": multiple}))
    short, long = ({"input_ids": [20, 21], "labels": [30] * length} for length in (2, 5))
    model, collate = trainer.model.eval(), trainer.data_collator
    with torch.no_grad():
        alone, both = model(**collate([dict(short)])), model(**collate([dict(short), dict(long)]))
    labels = collate([dict(short), dict(long)])["labels"]
    assert labels[0].tolist() == [30, 30] + [IGNORE] * (labels.shape[1] - 2)
    assert labels.shape[1] == (multiple or 5)
    torch.testing.assert_close(both.logits[0, :2], alone.logits[0, :2])


def test_the_loss_over_the_vocabulary_is_that_of_t5(scid_tokenizer, tmp_path):
    trainer, _ = trainer_of(scid_tokenizer, tmp_path)
    batch = batch_of(trainer, scid_tokenizer)
    expected = trainer.model(**batch).loss
    torch.testing.assert_close(trainer.compute_loss(trainer.model, dict(batch)), expected)


def test_a_temperature_divides_the_logits(scid_tokenizer, tmp_path):
    trainer, _ = trainer_of(scid_tokenizer, tmp_path, temperature=0.5)
    batch = batch_of(trainer, scid_tokenizer)
    log_probs = (trainer.model(**batch).logits * 2).log_softmax(-1)
    expected = -log_probs.gather(-1, batch["labels"].unsqueeze(-1)).mean()  # all labels are SCIDs of two tokens
    torch.testing.assert_close(trainer.compute_loss(trainer.model, dict(batch)), expected)


def test_the_loss_over_the_catalogue_is_what_the_search_scores(scid_tokenizer, tmp_path):
    trainer, recommender = trainer_of(scid_tokenizer, tmp_path, normalizer="catalogue")
    batch = batch_of(trainer, scid_tokenizer)
    loss = trainer.compute_loss(trainer.model, dict(batch)).item()
    # The users' codes are in the prompts of the rows, so the search is asked with these very prompts.
    found = recommender.search.search(batch["input_ids"], batch["attention_mask"]).top(8)
    answers = [1, 2, 0, 4]  # what follows in SEQUENCES
    scores = [
        dict(zip(items, values, strict=True))[answer]
        for items, values, answer in zip(found.items.tolist(), found.scores.tolist(), answers, strict=True)
    ]
    assert loss == pytest.approx(-np.mean(scores) / 2, rel=1e-5)  # two tokens an answer
    assert found.scores.exp().sum(1).tolist() == pytest.approx([1.0] * 4, rel=1e-5)


def test_it_trains_without_its_logits_as_with_them(scid_tokenizer, tmp_path):
    trainer, _ = trainer_of(scid_tokenizer, tmp_path, normalizer="catalogue", temperature=0.7)
    batch = batch_of(trainer, scid_tokenizer)

    def gradients(from_states):
        trainer._from_states = from_states
        trainer.compute_loss(trainer.model, dict(batch)).backward()
        found = {name: value.grad.clone() for name, value in trainer.model.named_parameters()}
        trainer.model.zero_grad()
        return found

    assert trainer._from_states
    head, without, whole = trainer.model.lm_head, gradients(True), gradients(False)
    assert trainer.model.lm_head is head and set(without) == set(whole)
    for name, value in whole.items():
        torch.testing.assert_close(without[name], value, rtol=1e-4, atol=1e-6)


def test_accumulated_batches_train_like_one(scid_tokenizer, tmp_path):
    def trained(**options):
        trainer, _ = trainer_of(scid_tokenizer, tmp_path, learning_rate=1e-2, optim="sgd", **options)
        trainer.train()
        return trainer

    whole = trained(per_device_train_batch_size=4)
    parts = trained(per_device_train_batch_size=2, gradient_accumulation_steps=2)
    logged = [trainer.state.log_history[-1]["train_loss"] for trainer in (whole, parts)]
    assert logged[0] == pytest.approx(logged[1], rel=1e-5)
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("normalizer", ["vocabulary", "catalogue"])
def test_answers_of_two_lengths_count_by_their_tokens_however_a_step_is_cut(normalizer, scid_tokenizer, tmp_path):
    trainer, _ = trainer_of(scid_tokenizer, tmp_path, normalizer=normalizer)
    (scid,) = scid_tokenizer.scid.item_ids(ITEM_CODES[:1]).tolist()
    short, long = ({"input_ids": [20, 21], "labels": labels} for labels in (scid, [30, 31, 32, *scid]))
    model, collate = trainer.model.eval(), trainer.data_collator

    def loss(*rows: dict) -> float:
        return trainer.compute_loss(model, collate([dict(row) for row in rows]), num_items_in_batch=7).item()

    assert loss(short) + loss(long) == pytest.approx(loss(short, long), rel=1e-5)
    plain = trainer.compute_loss(model, collate([dict(short), dict(long)])).item()
    assert plain == pytest.approx(loss(short, long), rel=1e-5)


def test_an_evaluation_recommends(scid_tokenizer, tmp_path):
    steps = {"eval_strategy": "steps", "eval_steps": 1}
    trainer, _ = trainer_of(scid_tokenizer, tmp_path, validate=lambda model: {"recall@10": 0.25}, **steps)
    assert isinstance(trainer, EncoderDecoderTrainer)
    trainer.train()
    assert [entry["eval_recall@10"] for entry in trainer.state.log_history if "eval_recall@10" in entry] == [0.25]


def test_it_learns_what_follows_what_and_recommends_it_from_its_folder(tmp_path):
    # 24 items in a circle: each is followed by the next one. Popularity knows nothing, 1 of 24 at a time.
    codes = np.array([[item // 6, item % 6] for item in range(24)])
    tokenizer = SCIDTokenizer.from_base(train_base_tokenizer(["item"], 300), [4, 6], [])
    prompts = PromptBuilder(tokenizer, 4, user_scid=False)
    sequences = [(np.arange(7) + start) % 24 for start in range(24)]
    model = small_t5(32, 64, 1, 2, tokenizer, T5Arguments("t5"), seed=0)
    model.config.scid_normalizer = "catalogue"
    items = pl.DataFrame({"item_id": [f"i{row}" for row in range(24)], "title": ["item"] * 24})
    recommender = Recommender(model, tokenizer, items.with_columns(codes_column(codes)), prompt_builder=prompts)
    training = SFTConfig(
        output_dir=str(tmp_path / "trainer"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        max_steps=150,
        per_device_train_batch_size=48,
        learning_rate=1e-2,
        report_to=[],
        save_strategy="no",
    )
    arguments = SFTArguments(run_dir=str(tmp_path), objective="prefix", normalizer="catalogue")
    rows = prefix_rows(prompts, sequences, None, codes)
    make_trainer(model, tokenizer, rows, training, arguments, recommender).train()
    recommender.save_pretrained(tmp_path / "model")
    again = Recommender.from_pretrained(tmp_path / "model")
    assert again.search.normalizer == "catalogue"
    found = again.recommend([[f"i{(at + step) % 24}" for step in range(3)] for at in range(24)], k=1)
    hits = [row[0].item_id == f"i{(at + 3) % 24}" for at, row in enumerate(found)]
    assert np.mean(hits) > 0.9
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model")
    assert type(plain).__name__ == "T5ForConditionalGeneration"


def save_t5(folder):
    tokenizer = base_tokenizer()
    config = T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_pretrained_encoder_decoder_gets_rows_for_scids(tmp_path):
    folder = save_t5(tmp_path / "t5")
    before = AutoModelForSeq2SeqLM.from_pretrained(folder).get_input_embeddings().weight
    model, tokenizer = load_backbone(folder, [4, 4], encoder_decoder=True, dtype=torch.float32)
    assert type(model).__name__ == "T5ForConditionalGeneration"
    weight = model.get_input_embeddings().weight
    assert len(weight) == len(tokenizer) == len(before) + 8
    assert torch.equal(weight[: len(before)], before) and len(weight.unique(dim=0)) == len(weight)
    with pytest.raises(InputError, match=r"base_model .*t5: cannot be loaded"):
        load_backbone(folder, [4, 4])
