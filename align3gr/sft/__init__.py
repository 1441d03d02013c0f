"""Behaviour level: supervised fine-tuning over SCID tokens."""

from align3gr.sft.backbone import SmallLlamaConfig, add_dropout, small_llama
from align3gr.sft.dataset import every_item_rows, windows

__all__ = ["SmallLlamaConfig", "add_dropout", "every_item_rows", "small_llama", "windows"]
