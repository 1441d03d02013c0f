"""A fine-tuned causal LM that writes the title of the next item, and embeds titles: the language side of BIGRec."""

from collections.abc import Sequence

import numpy as np
import torch

from align3gr.baselines.generative import TrainedChain
from align3gr.data import Split
from align3gr.data.schema import ITEM_ID
from align3gr.pipeline import stage_folder
from align3gr.scid.code_table import load_codes

PROMPT = "titles:{history_titles}="
TITLE_TOKENS = 32
PROMPTS_AT_ONCE = 128
TEXTS_AT_ONCE = 1024


class TitleWriter:
    """The fine-tuned model: writes a title behind those of a history, and embeds titles.

    Args:
        trained: a chain whose last stage is `sft`.
        split: the data that it was trained on.
        num_beams: beam of `generate`.
    """

    def __init__(self, trained: TrainedChain, split: Split, num_beams: int) -> None:
        from transformers import AutoTokenizer

        from align3gr.decoding.saved_model import open_model
        from align3gr.scid.prompts import PromptBuilder
        from align3gr.scid.template import Template, TextTokenizer
        from align3gr.sft import TaskData

        self.tokenizer = AutoTokenizer.from_pretrained(trained.model)
        self.model = open_model(trained.model).to("cuda" if torch.cuda.is_available() else "cpu").eval()
        prompts = PromptBuilder.from_pretrained(trained.model, self.tokenizer)
        self.num_beams = num_beams
        codes = load_codes(stage_folder(trained.run_dir, "scid") / "item_codes.parquet", ITEM_ID, split.items[ITEM_ID])
        self._data = TaskData.from_split(split, prompts.vocabulary, codes, None, prompts.max_history)
        self._template = Template(PROMPT, TextTokenizer(self.tokenizer))
        self._scids = np.unique(prompts.vocabulary.item_tokens[prompts.vocabulary.item_tokens >= 0]).tolist()

    def prompt(self, history: np.ndarray) -> list[int]:
        """Token ids of the prompt, as in training; the oldest items are left out where there is no room for all."""
        bos = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        room = self.model.config.max_position_embeddings - TITLE_TOKENS - len(bos)
        items = history[-self._data.max_history :]
        ids = self._render(items)
        while len(ids) > room and len(items):
            items = items[1:]
            ids = self._render(items)
        return bos + ids

    def _render(self, items: np.ndarray) -> list[int]:
        titles = self._data.history(items)["history_titles"]
        return self._template.render({"history_titles": titles or ""})

    @torch.inference_mode()
    def write(self, histories: Sequence[np.ndarray]) -> list[str]:
        """For each history, item indices, the most probable next title that the beam finds."""
        prompts = [self.prompt(history) for history in histories]
        # Prompts of one length together: little padding, and batches end early.
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
        written = [""] * len(prompts)
        for start in range(0, len(order), PROMPTS_AT_ONCE):
            rows = order[start : start + PROMPTS_AT_ONCE]
            ids, mask = self._padded([prompts[row] for row in rows])
            found = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                num_beams=self.num_beams,
                do_sample=False,
                max_new_tokens=TITLE_TOKENS,
                suppress_tokens=self._scids,
                pad_token_id=self.tokenizer.pad_token_id,
                eos_token_id=self.tokenizer.eos_token_id,
            )
            texts = self.tokenizer.batch_decode(found[:, ids.shape[1] :], skip_special_tokens=True)
            for row, text in zip(rows, texts, strict=True):
                written[row] = text.strip()
        return written

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> torch.Tensor:
        """`(texts, hidden)` float32: the last layer's state at the last token of each text."""
        bos = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        tokens = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        rows = [(bos + ids)[:TITLE_TOKENS] or [self.tokenizer.eos_token_id] for ids in tokens]
        vectors = torch.zeros(len(rows), self.model.config.hidden_size)
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        for start in range(0, len(order), TEXTS_AT_ONCE):
            part = order[start : start + TEXTS_AT_ONCE]
            ids, mask = self._padded([rows[row] for row in part])
            states = self.model.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            vectors[part] = states[:, -1].float().cpu()  # padding stands at the left
        return vectors

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows with padding at the left, and the mask. Shape: `(rows, longest)` each."""
        longest = max(map(len, rows))
        ids = torch.full((len(rows), longest), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for at, row in enumerate(rows):
            ids[at, longest - len(row) :] = torch.tensor(row)
            mask[at, longest - len(row) :] = 1
        return ids.to(self.model.device), mask.to(self.model.device)
