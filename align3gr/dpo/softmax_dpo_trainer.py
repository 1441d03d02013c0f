"""Softmax-DPO on top of TRL's `DPOTrainer`: one chosen and up to `num_rejected` rejected completions a prompt."""

import os
from collections.abc import Callable
from typing import Any, cast

import torch
from accelerate.utils import is_peft_model, str_to_bool
from datasets import Dataset, IterableDataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.modeling_outputs import CausalLMOutput
from trl import DPOTrainer
from trl.models.utils import disable_gradient_checkpointing

from align3gr.dpo.preference_rows import (
    SoftmaxDPOCollator,
    check_row,
    check_streamed_row,
    tokenize_row,
)
from align3gr.dpo.shared_prefix import IGNORED_LABEL, OTHERWISE, naive_logps, shared_prefix_logps
from align3gr.dpo.softmax_dpo_config import SoftmaxDPOConfig
from align3gr.dpo.softmax_dpo_loss import softmax_dpo_loss
from align3gr.errors import InputError
from align3gr.tree_attention import tree_attention

# What this module relies on beyond TRL's documented interface. A test names each against the installed release, so
# that an upgrade fails there and not in a training run.
TRL_PRIVATE_METHODS = ("_prepare_dataset", "_precompute_ref_logps", "_set_signature_columns_if_needed")
TRL_PRIVATE_ATTRIBUTES = ("_metrics", "_tokenizer", "aux_loss_enabled", "precompute_ref_logps")
REFERENCE_ADAPTER = "ref"  # name of the adapter copy that DPOTrainer adds to a PeftModel


class SoftmaxDPOTrainer(DPOTrainer):
    """`trl.DPOTrainer` with the Softmax-DPO loss over many rejected completions, Eq. (3) of Align3GR.

    What differs from the parent:

    - A row has `prompt_ids`, `chosen_ids` and `rejected_ids`, a list of completions, as token ids; or `prompt`,
      `chosen` and `rejected` as text, where `rejected` is one text or a list. No end-of-sequence token is added.
    - Each prompt is computed once for all its completions (`prefix_sharing`).
    - The reference is the policy as it is when the trainer is built, for full weights and for a `PeftModel` with any
      kind of adapter, unless a `ref_model` is given. The parent compares a `PeftModel` with a copy of its adapter that
      lacks trained token rows (`trainable_token_indices`).
    - The model's `forward` is left as it was; the parent's patch of it is taken off.

    Logged besides the parent's `rewards/*` and `logps/*`: `uniform_loss`, the loss of a policy that equals its
    reference (the mean of `log(1 + N)`), and `chosen_rank`, the mean rank of the chosen completion among its rejected
    under the policy, 1 at best.

    Args:
        model: Model or path of a causal LM.
        ref_model: Reference in place of the policy at the start.
        args: Configuration.
        train_dataset: Rows as above.
        eval_dataset: Rows as above, or a dictionary of such datasets.
        processing_class: Tokenizer, loaded with the model if not given.
        callbacks: Callbacks to add.
        optimizers: Optimizer and scheduler in place of those of `args`.
        peft_config: Adapter to add to a plain model.

    Raises:
        ValueError: The settings leave the reference undefined, or the model cannot follow a shared prompt.
        InputError: A row is not usable; names the dataset, the row and the column.
    """

    args: SoftmaxDPOConfig
    model: Any
    _name = "Softmax-DPO"
    _tag_names = ["trl", "align3gr", "softmax-dpo"]  # noqa: RUF012 - an instance variable to type checkers, as in TRL

    def __init__(
        self,
        model: str | PreTrainedModel | Any,
        ref_model: PreTrainedModel | None = None,
        args: SoftmaxDPOConfig | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        peft_config: Any = None,
    ) -> None:
        args = SoftmaxDPOConfig("softmax-dpo") if args is None else args
        _check_reference(model, ref_model, args)
        forward = None if isinstance(model, str) else _language_model(model).__dict__.get("forward")
        super().__init__(
            model=model,
            ref_model=ref_model,
            args=args,
            data_collator=SoftmaxDPOCollator(args.prefix_sharing, cast("int | None", args.pad_to_multiple_of)),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
            peft_config=peft_config,
        )
        _restore_forward(_language_model(self.model), forward)
        if is_peft_model(self.model) and REFERENCE_ADAPTER in self.model.peft_config:
            self.model.delete_adapter(REFERENCE_ADAPTER)
        if self.aux_loss_enabled:
            raise ValueError(
                "the model adds a router loss, which Softmax-DPO does not implement; set router_aux_loss_coef=0.0"
            )

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, dataset_name: str
    ) -> Dataset | IterableDataset:
        """Tokenise text rows and check all rows; called by the parent for every dataset."""
        columns: dict[str, Any] = next(iter(dataset), {})
        map_kwargs: dict[str, Any] = {"num_proc": args.dataset_num_proc} if isinstance(dataset, Dataset) else {}
        if "prompt_ids" not in columns:
            missing = {"prompt", "chosen", "rejected"} - set(columns)
            if missing:
                raise InputError(
                    f"{dataset_name} dataset: columns {sorted(missing)} are missing; expected prompt_ids, chosen_ids "
                    "and rejected_ids (token ids) or prompt, chosen and rejected (text)"
                )
            dataset = dataset.map(
                tokenize_row,
                fn_kwargs={"tokenizer": self._tokenizer, "source": dataset_name},
                with_indices=True,
                **map_kwargs,
            )
        check = {"num_rejected": args.num_rejected, "max_length": args.max_length, "source": dataset_name}
        checker = check_row if isinstance(dataset, Dataset) else check_streamed_row
        return dataset.map(checker, fn_kwargs=check, with_indices=True, **map_kwargs)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Mean loss of the rows; with `return_outputs` also log-probabilities (batch, 1 + rejected) as `logits`."""
        logps = self._completion_logps(model, inputs)
        if self.precompute_ref_logps:
            ref_logps = torch.cat([inputs["ref_chosen_logps"][:, None], inputs["ref_rejected_logps"]], dim=1)
        else:
            with torch.no_grad():
                ref_logps = self._completion_logps(self.ref_model, inputs)
        lengths = (inputs["label_ids"] != IGNORED_LABEL).sum(dim=-1)  # 0 where a row has no further completion
        mask = lengths > 0
        scores, logratios = logps, (logps - ref_logps) * mask
        if self.args.length_normalization:
            scores, logratios = scores / lengths.clamp_min(1), logratios / lengths.clamp_min(1)
        rows = {"preference_loss": softmax_dpo_loss(logratios[:, 0], logratios[:, 1:], mask[:, 1:], self.beta)}
        loss = self.args.preference_coefficient * rows["preference_loss"].mean()
        if self.args.sft_coefficient:
            # Mean of each row, then of the rows: a large batch and many small ones give the same.
            rows["sft_loss"] = -logps[:, 0] / lengths[:, 0]
            loss = loss + self.args.sft_coefficient * rows["sft_loss"].mean()
        self._log_batch(rows, logps, scores, logratios * self.beta, mask)
        return (loss, CausalLMOutput(loss=loss, logits=logps)) if return_outputs else loss

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Reference log-probabilities of a batch, for the parent's precomputation.

        Args:
            model: The explicit reference, or the policy itself, which has not been trained yet.
            inputs: A batch of the collator.

        Returns:
            Those of the chosen (batch,) and of the rejected (batch, `num_rejected`), zero where there is none.

        Raises:
            ValueError: The policy has been trained and no longer is its own reference.
        """
        if self.ref_model is None and self.state.global_step > 0:
            raise ValueError(
                "the reference of this dataset can no longer be computed: the policy has been trained since. Pass the "
                "dataset as `eval_dataset` when the trainer is built, or pass an explicit `ref_model`"
            )
        # Dropout off, whatever the policy's mode: the reference is a fixed function of the row.
        was_training = model.training
        model.eval()
        with (
            torch.no_grad(),
            disable_gradient_checkpointing(self.model, cast("dict | None", self.args.gradient_checkpointing_kwargs)),
            self.accelerator.autocast(),
        ):
            logps = self._completion_logps(model, inputs)
        model.train(was_training)
        missing = self.args.num_rejected + 1 - logps.shape[1]
        return logps[:, 0], torch.nn.functional.pad(logps[:, 1:], (0, missing))

    def _completion_logps(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        """Log-probabilities (batch, 1 + rejected), the chosen first."""
        logps = naive_logps if self.args.prefix_sharing == "naive" else shared_prefix_logps
        return logps(model, inputs)

    def _log_batch(
        self, losses: dict[str, Tensor], logps: Tensor, scores: Tensor, rewards: Tensor, mask: Tensor
    ) -> None:
        """Add a batch to the logged metrics.

        Args:
            losses: Terms of the loss by name, (batch,).
            logps: Log-probabilities, (batch, 1 + rejected), the chosen first, as in all that follow.
            scores: What the completions are ranked by: the same, or means over tokens.
            rewards: Log-ratios times beta.
            mask: True where there is a completion.
        """
        rejected = mask[:, 1:]
        count = rejected.sum(1)

        def over_rejected(values: Tensor) -> Tensor:
            return (values * rejected).sum(1) / count

        rows = losses | {
            "rewards/chosen": rewards[:, 0],
            "rewards/rejected": over_rejected(rewards[:, 1:]),
            "rewards/accuracies": over_rejected((rewards[:, :1] > rewards[:, 1:]).float()),
            "rewards/margins": rewards[:, 0] - over_rejected(rewards[:, 1:]),
            "logps/chosen": logps[:, 0],
            "logps/rejected": over_rejected(logps[:, 1:]),
            "chosen_rank": 1.0 + ((scores[:, 1:] > scores[:, :1]) & rejected).sum(1),
            "uniform_loss": torch.log1p(count.float()),
        }
        # One gather and one transfer for all of them.
        values = torch.stack([row.detach().float() for row in rows.values()], dim=1)
        means = self.accelerator.gather_for_metrics(values).mean(0).tolist()
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, mean in zip(rows, means, strict=True):
            metrics[name].append(mean)


def _check_reference(model: Any, ref_model: Any, args: SoftmaxDPOConfig) -> None:
    """Refuse settings under which the parent would compare with something else than the policy at the start."""
    if not isinstance(args, SoftmaxDPOConfig):
        raise ValueError(f"args is a {type(args).__name__}; expected a SoftmaxDPOConfig")
    if not args.precompute_ref_log_probs and ref_model is None:
        raise ValueError(
            "precompute_ref_log_probs=False needs an explicit `ref_model`; leave it on to take the policy at the start"
        )
    fsdp = bool(args.fsdp) or str_to_bool(os.environ.get("ACCELERATE_USE_FSDP", "false"))
    if fsdp and ref_model is None and not is_peft_model(model):
        # The parent reloads the checkpoint named in the model's config, not the weights it was given.
        raise ValueError("under FSDP pass the policy at the start as an explicit `ref_model`")
    if is_peft_model(model) and model.active_adapters != ["default"]:
        raise ValueError(f"the active adapters are {model.active_adapters}; DPOTrainer trains one named 'default'")
    if args.prefix_sharing != "naive" and not isinstance(model, str):
        tree_attention(model, 0, OTHERWISE)


def _language_model(model: Any) -> Any:
    return model.get_base_model() if is_peft_model(model) else model


def _restore_forward(model: Any, forward: Callable[..., Any] | None) -> None:
    """Take the parent's `fused_lm_head` patch off, which is bound to this very object.

    A deep copy of a patched model would run the weights of the original, and the patches of the stages of a curriculum
    would pile up. https://github.com/huggingface/trl `add_fused_lm_head`; remove when TRL no longer patches instances.
    """
    model.__dict__.pop("forward", None)
    if forward is not None:
        model.forward = forward
