"""Behaviour level: supervised fine-tuning over SCID tokens."""

from typing import TYPE_CHECKING

from align3gr.lazy import attach

if TYPE_CHECKING:
    from align3gr.sft.backbone import SmallLlamaConfig, add_dropout, small_llama
    from align3gr.sft.dataset import every_item_rows, windows
    from align3gr.sft.mixture import TaskTemplates, parse_tasks, task_rows
    from align3gr.sft.tasks import TASKS, Task, TaskData
    from align3gr.sft.trainer import SmallVocabularySFTTrainer
    from align3gr.sft.user_codes import UserCodes, user_codes_without_future

__getattr__, __all__ = attach(
    __name__,
    {
        "backbone": ("SmallLlamaConfig", "add_dropout", "small_llama"),
        "dataset": ("every_item_rows", "windows"),
        "mixture": ("TaskTemplates", "parse_tasks", "task_rows"),
        "tasks": ("TASKS", "Task", "TaskData"),
        "user_codes": ("UserCodes", "user_codes_without_future"),
        "trainer": ("SmallVocabularySFTTrainer",),
    },
)
