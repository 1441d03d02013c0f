"""Behaviour level: supervised fine-tuning over SCID tokens."""

from typing import TYPE_CHECKING

from align3gr.lazy import attach

if TYPE_CHECKING:
    from align3gr.sft.backbone import SmallLlamaConfig, make_backbone, small_llama
    from align3gr.sft.dropout import add_dropout
    from align3gr.sft.encoder_decoder import EncoderDecoderTrainer, encoder_decoder_rows
    from align3gr.sft.fine_tuning import make_trainer, read_user_codes, recommending_validation, write_log
    from align3gr.sft.lora import LoRAArguments, add_lora, merge_adapter, save_adapter
    from align3gr.sft.mixture import TaskTemplates, parse_tasks, task_rows
    from align3gr.sft.objectives import every_item_rows, prefix_lm_rows, prefix_rows, tree_rows, windows
    from align3gr.sft.pretrained import load_backbone
    from align3gr.sft.row_checks import check_rows
    from align3gr.sft.rows import training_rows
    from align3gr.sft.sft_arguments import SFTArguments
    from align3gr.sft.t5 import T5Arguments, small_t5
    from align3gr.sft.tasks import TASKS, Task, TaskData
    from align3gr.sft.trainer import RecommendingSFTTrainer, SmallVocabularySFTTrainer
    from align3gr.sft.tree_collator import TreeCollator
    from align3gr.sft.user_codes import UserCodes, user_codes_without_future

__getattr__, __all__ = attach(
    __name__,
    {
        "backbone": ("SmallLlamaConfig", "make_backbone", "small_llama"),
        "dropout": ("add_dropout",),
        "encoder_decoder": ("EncoderDecoderTrainer", "encoder_decoder_rows"),
        "fine_tuning": ("make_trainer", "read_user_codes", "recommending_validation", "write_log"),
        "lora": ("LoRAArguments", "add_lora", "merge_adapter", "save_adapter"),
        "mixture": ("TaskTemplates", "parse_tasks", "task_rows"),
        "objectives": ("every_item_rows", "prefix_lm_rows", "prefix_rows", "tree_rows", "windows"),
        "pretrained": ("load_backbone",),
        "row_checks": ("check_rows",),
        "sft_arguments": ("SFTArguments",),
        "t5": ("T5Arguments", "small_t5"),
        "tasks": ("TASKS", "Task", "TaskData"),
        "tree_collator": ("TreeCollator",),
        "user_codes": ("UserCodes", "user_codes_without_future"),
        "trainer": ("RecommendingSFTTrainer", "SmallVocabularySFTTrainer"),
        "rows": ("training_rows",),
    },
)
