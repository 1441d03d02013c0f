"""Stages in a row: their references, the best kept, the others rolled back, and a kill anywhere."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, T5Config, T5ForConditionalGeneration, TrainerCallback

from align3gr.dpo.curriculum import ProgressiveCurriculum, run_curriculum
from align3gr.dpo.curriculum_stage import CurriculumStage
from align3gr.dpo.self_play import PreferenceRows
from align3gr.dpo.shared_prefix import shared_prefix_logps, tree_batch
from align3gr.dpo.softmax_dpo_config import SoftmaxDPOConfig
from align3gr.dpo.softmax_dpo_trainer import SoftmaxDPOTrainer
from align3gr.errors import InputError

STAGES = [CurriculumStage("easy", "easy", 6), CurriculumStage("hard", "hard", 6, learning_rate=5e-3, beta=0.2)]


class Killed(Exception):
    """Stands for a process that ends in the middle."""


def rows_from_policy(model, stage, seed):
    """Rows that depend on the policy and on the seed, as self-play does."""
    prompt = [1, 3 + seed % 7]
    best = model(input_ids=torch.tensor([prompt])).logits[0, -1].topk(4).indices.tolist()
    rows = [
        {"prompt_ids": prompt, "chosen_ids": [20 + at, 30], "rejected_ids": [[b, 31] for b in best]} for at in range(6)
    ]
    return PreferenceRows(rows, {"mean_rejected": 4.0})


def chosen_logp(model):
    batch = tree_batch([[1, 5]], [[[20, 30]]])
    with torch.no_grad():
        return {"recall@10": shared_prefix_logps(model, batch).item()}


def scripted(*values):
    remaining = list(values)
    return lambda model: {"recall@10": remaining.pop(0)}


@pytest.fixture
def run(tmp_path, tokenizer):
    def start(model, evaluate=chosen_logp, make_rows=rows_from_policy, stages=STAGES, folder="run", **options):
        names = ("min_rows", "metric", "callbacks", "validate_steps", "stop_tolerance")
        given = {name: options.pop(name) for name in names if name in options}
        settings = {"max_steps": 4, "save_steps": 2, "learning_rate": 1e-2, "logging_steps": 1, "use_cpu": True}
        settings |= {"per_device_train_batch_size": 2, "report_to": "none", "disable_tqdm": True}
        args = SoftmaxDPOConfig(str(tmp_path / "unused"), **(settings | options))
        return run_curriculum(model, tokenizer, stages, make_rows, evaluate, tmp_path / folder, args, **given)

    return start


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("adapter", [False, True])
def test_every_stage_starts_from_its_own_reference(run, llama, lora, adapter):
    model = lora(llama()) if adapter else llama()
    record = run(model, scripted(0.1, 0.2, 0.3))
    assert [stage["name"] for stage in record["stages"]] == ["easy", "hard"]
    for stage in record["stages"]:
        assert stage["first_loss"] == pytest.approx(math.log(5), abs=1e-4)
        assert stage["last_loss"] < stage["first_loss"] - 0.01
        assert (stage["rows"], stage["decision"], stage["statistics"]["mean_rejected"]) == (6, "kept", 4.0)
    assert (record["best"], record["best_value"], record["finished"]) == ("1-hard", 0.3, True)


def test_record_and_best_policy_are_on_disk(run, llama, tmp_path):
    model = llama()
    record = run(model, scripted(0.1, 0.2, 0.3))
    assert json.loads((tmp_path / "run" / "curriculum.json").read_text()) == record
    assert_same(AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "best").state_dict(), weights(model))
    assert not list((tmp_path / "run").glob("*/policy"))  # no further copies of the weights


@pytest.mark.parametrize("adapter", [False, True])
def test_stage_that_lowers_the_metric_is_rolled_back(run, llama, lora, adapter):
    build = (lambda: lora(llama())) if adapter else llama
    model = build()
    start = weights(model)
    seen = []

    def make_rows(model, stage, seed):
        seen.append(weights(model))
        return rows_from_policy(model, stage, seed)

    record = run(model, scripted(0.5, 0.4, 0.3), make_rows)
    assert [stage["decision"] for stage in record["stages"]] == ["rolled back", "rolled back"]
    assert (record["best"], record["best_value"]) == ("initial", 0.5)
    for state in [*seen, weights(model)]:  # the second stage starts from the best so far, and so it ends
        assert_same(state, start)


def test_difficulty_is_measured_at_the_start_of_a_stage(run, llama, tmp_path):
    model = llama()
    expected = {}

    def make_rows(model, stage, seed):
        made = rows_from_policy(model, stage, seed)
        if stage.name == "hard":  # ragged: the columns of the reference are padded behind the shorter row
            made.rows[0]["rejected_ids"] = made.rows[0]["rejected_ids"][:1]
        lower, ranks, total, generated = 0, [], 0, []
        for row in made.rows:
            row["num_beam"] = 1
            batch = tree_batch([row["prompt_ids"]], [[row["chosen_ids"], *row["rejected_ids"]]])
            with torch.no_grad():
                chosen, *rejected = shared_prefix_logps(model, batch)[0].tolist()
            lower, total = lower + sum(logp < chosen for logp in rejected), total + len(rejected)
            ranks.append(1 + sum(logp >= chosen for logp in rejected))
            generated.append(rejected[0] < chosen)
        drawn = (lower - sum(generated)) / (total - 6)
        expected[stage.name] = (lower / total, sum(ranks) / 6, sum(generated) / 6, drawn, total)
        return made

    record = run(model, scripted(0.1, 0.2, 0.3), make_rows)
    assert {name: entry[-1] for name, entry in expected.items()} == {"easy": 24, "hard": 21}
    for number, stage in enumerate(record["stages"]):
        names = ("start_accuracy", "start_rank", "start_accuracy_beam", "start_accuracy_filler")
        found = [stage["statistics"][name] for name in names]
        assert found == pytest.approx(expected[stage["name"]][:4])
        on_disk = tmp_path / "run" / f"{number}-{stage['name']}" / "rows" / "statistics.json"
        assert json.loads(on_disk.read_text()) == stage["statistics"]


@pytest.mark.parametrize(
    ("values", "stopped", "validated"),
    [((0.5, 0.45, 0.41, 0.6), None, [1, 2]), ((0.5, 0.45, 0.39, 0.3), 2, [1, 2]), ((0.5, 0.39, 0.3), 1, [1])],
)
def test_harmful_stage_is_stopped_early(run, llama, values, stopped, validated, caplog):
    # Three steps, a validation after each but the last. The start has 0.5, so 0.4 is the least.
    options = {"validate_steps": 1, "stop_tolerance": 0.1, "stages": STAGES[:1], "max_steps": 3}
    record = run(llama(), scripted(*values), **options)
    stage = record["stages"][0]
    found = zip(validated, values[1:], strict=False)
    assert stage["validations"] == [{"step": step, "value": value} for step, value in found]
    assert stage["stopped_at"] == stopped
    assert stage["decision"] == ("rolled back" if stopped else "kept")
    assert ("stage easy: stopped at step" in caplog.text) == bool(stopped)


@pytest.mark.parametrize("killed_in", ["step", "decision"])
def test_stage_that_was_stopped_stays_stopped_after_a_kill(run, llama, killed_in):
    options = {"validate_steps": 2, "save_steps": 1, "stages": STAGES[:1]}
    calls, trained = [], []

    def harm(model):  # training raises what is measured here, so this falls
        return {"recall@10": -chosen_logp(model)["recall@10"]}

    def killed(model):  # at the start, at step 2, and for the decision
        calls.append(model)
        if killed_in == "decision" and len(calls) == 3:
            raise Killed
        return harm(model)

    class Spy(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            trained.append(state.global_step)

    straight, model = llama(), llama()
    expected = run(straight, harm, folder="straight", **options)
    assert expected["stages"][0]["stopped_at"] == 2
    with pytest.raises(Killed):
        run(model, killed, callbacks=[Kill("0-easy", 2)] if killed_in == "step" else [], **options)
    assert without_clock(run(model, harm, callbacks=[Spy()], **options)) == without_clock(expected)
    assert trained == ([2] if killed_in == "step" else [])
    assert_same(weights(model), weights(straight))


def test_stage_options_reach_the_trainer(run, llama):
    seen = []

    class Spy(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            seen.append((args.learning_rate, args.beta, args.output_dir.split("/")[-2:], args.seed))

    run(llama(), scripted(0.1, 0.2, 0.3), callbacks=[Spy()])
    assert [entry[:3] for entry in seen] == [(1e-2, 0.1, ["0-easy", "trainer"]), (5e-3, 0.2, ["1-hard", "trainer"])]
    assert seen[0][3] != seen[1][3]


class Kill(TrainerCallback):
    """Ends the run at a step of a stage."""

    def __init__(self, stage, step):
        self.stage, self.step = stage, step

    def on_step_end(self, args, state, control, **kwargs):
        if self.stage in args.output_dir and state.global_step == self.step:
            raise Killed


@pytest.mark.parametrize(
    ("where", "adapter"),
    [("rows", False), ("first steps", False), ("best", True)]
    + [(where, adapter) for where in ("after a checkpoint", "evaluation") for adapter in (False, True)],
)
def test_killed_and_started_again_ends_with_the_same_weights(run, llama, lora, monkeypatch, adapter, where):
    build = (lambda: lora(llama())) if adapter else llama
    torch.manual_seed(0)
    straight, model, again = build(), build(), build()
    for other in (model, again):
        other.load_state_dict(straight.state_dict())
    expected = run(straight, folder="straight")
    calls = {"rows": 0, "evaluation": 0}

    def counted(name, function, end):
        def call(*arguments):
            calls[name] += 1
            if where == name and calls[name] == end:
                raise Killed
            return function(*arguments)

        return call

    options = {"make_rows": counted("rows", rows_from_policy, 2), "evaluate": counted("evaluation", chosen_logp, 3)}
    if where == "first steps":
        options["callbacks"] = [Kill("1-hard", 1)]
    if where == "after a checkpoint":
        options["callbacks"] = [Kill("1-hard", 3)]
    with monkeypatch.context() as patch:
        if where == "best":
            patch.setattr(
                "align3gr.dpo.curriculum_run.CurriculumRun.finish", lambda self: (_ for _ in ()).throw(Killed)
            )
        with pytest.raises(Killed):
            run(model, **options)
    trained = []

    class Spy(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            trained.append((args.output_dir.split("/")[-2], state.global_step))

    record = run(again, callbacks=[Spy()])
    assert_same(weights(again), weights(straight))
    hard = {
        "rows": [1, 2, 3, 4],
        "first steps": [1, 2, 3, 4],
        "after a checkpoint": [3, 4],
        "evaluation": [],
        "best": [],
    }
    assert trained == [("1-hard", step) for step in hard[where]]  # the finished stage is not run again
    assert without_clock(record) == without_clock(expected)


def without_clock(record):
    return record | {"stages": [{k: v for k, v in entry.items() if k != "seconds"} for entry in record["stages"]]}


@pytest.mark.long
@pytest.mark.parametrize("before", [True, False])
def test_killed_at_any_renaming_ends_with_the_same_weights(run, llama, monkeypatch, before):
    """Whatever becomes visible on disk does so by a renaming: a kill right before and right after each of them."""
    straight = llama()
    renamed = []
    rename = Path.replace

    def kill_at(number):
        def replace(self, target):
            renamed.append(Path(target).name)
            if before and len(renamed) == number:
                raise Killed
            result = rename(self, target)
            if len(renamed) == number:
                raise Killed
            return result

        monkeypatch.setattr(Path, "replace", replace)

    kill_at(0)
    expected = run(straight, folder="straight")
    points = len(renamed)
    # The start, rows, statistics and policy of two stages, the best policy, and a record after each.
    assert [renamed.count(name) for name in ("policy", "rows", "best", "curriculum.json")] == [3, 2, 1, 4]
    for number in range(1, points + 1):
        renamed.clear()
        kill_at(number)
        with pytest.raises(Killed):
            run(llama(), folder=f"run{number}")
        kill_at(0)
        model = llama()
        assert without_clock(run(model, folder=f"run{number}")) == without_clock(expected), number
        assert_same(weights(model), weights(straight))


def test_incomplete_checkpoint_is_not_resumed_from(run, llama, tmp_path):
    straight, model = llama(), llama()
    run(straight, folder="straight")
    with pytest.raises(Killed):
        run(model, callbacks=[Kill("0-easy", 3)])
    (tmp_path / "run" / "0-easy" / "trainer" / "checkpoint-2" / "trainer_state.json").write_text('{"epoch"')
    run(model)
    assert_same(weights(model), weights(straight))


def test_finished_run_gives_its_best_policy_again(run, llama, tmp_path):
    model, again = llama(), llama()
    record = run(model)
    assert run(again) == record
    assert_same(weights(again), weights(model))


def test_stage_with_few_rows_is_skipped(run, llama, caplog):
    def make_rows(model, stage, seed):
        return PreferenceRows([], {"dropped": 6}) if stage.name == "easy" else rows_from_policy(model, stage, seed)

    record = run(llama(), scripted(0.1, 0.2), make_rows, min_rows=3)
    skipped = {"name": "easy", "rows": 0, "statistics": {"dropped": 6}, "decision": "skipped"}
    assert record["stages"][0] == skipped
    assert record["stages"][1]["decision"] == "kept"
    assert "stage easy: 0 rows are fewer than 3, the stage is skipped" in caplog.text


def test_folder_of_another_run_is_refused(run, llama):
    run(llama())
    with pytest.raises(InputError, match=r"curriculum\.json: holds a run with other args"):
        run(llama(), beta=0.3)
    with pytest.raises(InputError, match="holds a run with other stages"):
        run(llama(), stages=STAGES[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": []}, "stages: expected at least one"),
        ({"stages": [STAGES[0], STAGES[0]]}, "each with a name of its own"),
        ({"disable_dropout": False}, "disable_dropout=False"),
        ({"save_only_model": True}, "save_only_model=True"),
        ({"metric": "ndcg@10"}, "metric='ndcg@10' is not among those of evaluate: recall@10"),
    ],
)
def test_unusable_arguments_are_refused(run, llama, options, message):
    with pytest.raises(InputError, match=message):
        run(llama(), **options)


def test_first_step_of_another_reference_stops_the_stage():
    watch = ProgressiveCurriculum("easy")
    state = SimpleNamespace(global_step=1)
    watch.on_log(None, state, None, {"preference_loss": 1.6100, "uniform_loss": 1.6094})
    assert watch.first_loss == 1.61
    watch.on_log(None, SimpleNamespace(global_step=2), None, {"preference_loss": 0.2, "uniform_loss": 1.6094})
    assert ProgressiveCurriculum.from_state(watch.state()).state() == watch.state()
    for loss in (1.60, float("nan")):
        with pytest.raises(RuntimeError, match=r"stage hard.*policy equal to its reference has 1\.6094"):
            ProgressiveCurriculum("hard").on_log(None, state, None, {"preference_loss": loss, "uniform_loss": 1.6094})


def test_stale_reference_is_caught_in_training(run, llama, monkeypatch):
    from align3gr.dpo.softmax_dpo_trainer import SoftmaxDPOTrainer

    compute = SoftmaxDPOTrainer.compute_ref_log_probs
    stale = llama(seed=1)
    monkeypatch.setattr(
        SoftmaxDPOTrainer, "compute_ref_log_probs", lambda self, model, inputs: compute(self, stale, inputs)
    )
    with pytest.raises(RuntimeError, match="stage easy: the first preference loss is"):
        run(llama())


def test_an_encoder_decoder_is_refused(run, tokenizer):
    config = T5Config(vocab_size=40, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
    model = T5ForConditionalGeneration(config)
    with pytest.raises(
        InputError, match=r"start_from: the model is an encoder-decoder \(t5\); Softmax-DPO takes causal"
    ):
        run(model)
    rows = Dataset.from_list([{"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [[3]]}])
    with pytest.raises(ValueError, match="pass a causal LM as model"):
        SoftmaxDPOTrainer(model, train_dataset=rows, processing_class=tokenizer)
