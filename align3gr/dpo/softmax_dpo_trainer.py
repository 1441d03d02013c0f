"""Softmax-DPO on top of TRL's `DPOTrainer`: one chosen and up to `num_rejected` rejected completions a prompt."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import broadcast_object_list, is_peft_model, str_to_bool
from datasets import Dataset, IterableDataset, load_from_disk
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, TrainerCallback
from transformers.modeling_outputs import CausalLMOutput
from trl import DPOTrainer
from trl.models.utils import disable_gradient_checkpointing

from align3gr.decoding.catalogue_likelihood import CatalogueLikelihood
from align3gr.dpo.preference_rows import SoftmaxDPOCollator, prepare_rows
from align3gr.dpo.shared_prefix import IGNORED_LABEL, OTHERWISE, naive_logps, shared_prefix_logps
from align3gr.dpo.softmax_dpo_config import SoftmaxDPOConfig
from align3gr.dpo.softmax_dpo_loss import softmax_dpo_loss
from align3gr.finite_loss import FiniteLoss
from align3gr.process_seeds import SeedOfEachProcess
from align3gr.scid.vocabulary import NORMALIZER_FIELD
from align3gr.tree_attention import tree_attention

# What this package relies on beyond TRL's documented interface (with `REFERENCE_COLUMNS`). A test names each against
# the installed release, so that an upgrade fails there and not in a training run.
TRL_PRIVATE_FUNCTIONS = ("trl.models.utils.disable_gradient_checkpointing",)
TRL_PRIVATE_METHODS = ("_prepare_dataset", "_precompute_ref_logps", "_set_signature_columns_if_needed")
TRL_PRIVATE_ATTRIBUTES = ("_metrics", "_tokenizer", "aux_loss_enabled", "precompute_ref_logps")
REFERENCE_ADAPTER = "ref"  # name of the adapter copy that DPOTrainer adds to a PeftModel


class SoftmaxDPOTrainer(FiniteLoss, DPOTrainer):
    """`trl.DPOTrainer` with the Softmax-DPO loss over many rejected completions, Eq. (3) of Align3GR.

    What differs from the parent:

    - `rejected` is a list of completions, or one. Rows are text, messages or token ids (`prompt_ids`, `chosen_ids`,
      `rejected_ids`); text and messages become the token ids that the parent makes of them.
    - Each prompt is computed once for all its completions (`prefix_sharing`).
    - The reference is the policy as it is when the trainer is built, for full weights and for a `PeftModel` with any
      kind of adapter, unless a `ref_model` is given. The parent compares a `PeftModel` with a copy of its adapter that
      lacks trained token rows (`trainable_token_indices`).
    - The loss may have a term on the chosen completion (`sft_coefficient`) and may count means over tokens
      (`length_normalization`).
    - The model's `forward` is left as it was; the parent's patch of it is taken off.
    - Each process of a launch has dropout masks of its own.

    Logged besides the parent's `rewards/*` and `logps/*`: `preference_loss` and, where it counts, `sft_loss`;
    `uniform_loss`, the `preference_loss` of a policy that equals its reference (the mean of `log(1 + N)`); and
    `chosen_rank`, the mean rank of the chosen completion among its rejected under the policy, 1 at best.

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
        likelihood: For a model that was trained with SCIDs normalised over their catalogue (`normalizer: catalogue`):
            log-probabilities are those by which it recommends, and completions are SCIDs.

    Raises:
        ValueError: The settings leave the reference undefined, the model is no causal LM or cannot follow a shared
            prompt, images are to be read, or the likelihood is not what the model was trained with.
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
        likelihood: CatalogueLikelihood | None = None,
    ) -> None:
        args = SoftmaxDPOConfig("softmax-dpo") if args is None else args
        _check_reference(model, ref_model, args)
        if isinstance(processing_class, ProcessorMixin):
            raise ValueError("images are not implemented by Softmax-DPO; pass the tokenizer as processing_class")
        if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
            raise ValueError("Softmax-DPO reads prompt and completion as one sequence; pass a causal LM as model")
        self.likelihood = likelihood  # the parent computes the reference
        forward = None if isinstance(model, str) else _language_model(model).__dict__.get("forward")
        super().__init__(
            model=model,
            ref_model=ref_model,
            args=args,
            data_collator=SoftmaxDPOCollator(args.prefix_sharing, cast("int | None", args.pad_to_multiple_of)),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=[SeedOfEachProcess(), *(callbacks or [])],
            optimizers=optimizers,
            peft_config=peft_config,
        )
        _restore_forward(_language_model(self.model), forward)
        _check_normalizer(self.model, likelihood)
        if is_peft_model(self.model) and REFERENCE_ADAPTER in self.model.peft_config:
            self.model.delete_adapter(REFERENCE_ADAPTER)
        if self.aux_loss_enabled:
            raise ValueError(
                "the model adds a router loss, which Softmax-DPO does not implement; set router_aux_loss_coef=0.0"
            )

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, dataset_name: str
    ) -> Dataset | IterableDataset:
        """Tokenise and check the rows; called by the parent for every dataset."""
        return prepare_rows(dataset, self._tokenizer, args, dataset_name)

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Dataset:
        """Keep the reference beside the rows; rows in memory are written first where several processes read them."""
        if isinstance(dataset, Dataset) and not dataset.cache_files and self.accelerator.num_processes > 1:
            # The parent writes a cache file that the other processes would look for in temporary folders of their own.
            fingerprint = broadcast_object_list([dataset._fingerprint])[0]
            folder = Path(cast("str", self.args.output_dir), "rows", f"{name}-{fingerprint}")
            if self.accelerator.is_main_process:
                dataset.save_to_disk(folder)
            self.accelerator.wait_for_everyone()
            dataset = load_from_disk(folder)
        return super()._precompute_ref_logps(dataset, name, batch_size)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Mean loss of the rows; with `return_outputs` also log-probabilities (batch, 1 + rejected) as `logits`.

        Args:
            model: the policy.
            inputs: a batch of the collator.
            return_outputs: give the log-probabilities, too.
            num_items_in_batch: passed by the Trainer; the loss is a mean over rows whatever it says.
        """
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
        return logps(model, inputs, self.likelihood)

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
    if fsdp and ref_model is None:
        # The parent reloads full weights from the checkpoint named in the config, not those it was given; an adapter
        # it would run before FSDP has placed the model, or filled it on every process.
        raise ValueError("under FSDP pass the policy at the start as an explicit `ref_model`")
    if is_peft_model(model) and model.active_adapters != ["default"]:
        raise ValueError(f"the active adapters are {model.active_adapters}; DPOTrainer trains one named 'default'")
    if args.prefix_sharing != "naive" and not isinstance(model, str):
        tree_attention(model, 0, OTHERWISE)


def _check_normalizer(model: Any, likelihood: CatalogueLikelihood | None) -> None:
    """Preferences are about the probabilities by which the model recommends."""
    normalizer = getattr(model.config, NORMALIZER_FIELD, "vocabulary")
    if (normalizer == "catalogue") != (likelihood is not None):
        raise ValueError(
            f"the model is normalised over the {normalizer} (`{NORMALIZER_FIELD}` of its config), and there is "
            f"{'a' if likelihood else 'no'} `likelihood`; pass that of its catalogue (`search.likelihood`), or none"
        )


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
