"""The model card of a quantiser: what it is, how healthy its code books are, how it is used."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData


def model_card(name: str, config: Any, sides: dict[str, dict[str, Any] | None]) -> ModelCard:
    """A card that stands on the Hub by itself.

    Args:
        name: class of the model.
        config: its configuration.
        sides: for each quantiser ("items", "users", or "" where there is one) its `health`, or None before training.
    """
    lines = [
        f"# {name}",
        "",
        "Residual-quantised codes (semantic-collaborative IDs) for recommendation, made with "
        "[align3gr](https://pypi.org/project/align3gr).",
        "",
        "```python",
        f"from align3gr import {name}",
        "",
        f'model = {name}.from_pretrained("<this repository>")',
        "```",
    ]
    for side, health in sides.items():
        lines += ["", f"## Code books{' of ' + side if side else ''}", ""]
        if not health:
            lines.append("Not measured: the model was saved without training by align3gr.")
            continue
        lines += ["| level | utilisation | perplexity | entropy (bits) |", "|---:|---:|---:|---:|"]
        columns = (health[key] for key in ("utilisation", "perplexity", "entropy"))
        for level, (used, perplexity, entropy) in enumerate(zip(*columns, strict=True)):
            lines.append(f"| {level} | {used:.1%} | {perplexity:.1f} | {entropy:.2f} |")
        facts = ((k, v) for k, v in health.items() if not isinstance(v, list))
        lines += [
            "",
            *(f"- {k.replace('_', ' ')}: {f'{v:,}' if isinstance(v, int) else f'{v:.4g}'}" for k, v in facts),
        ]
    data = ModelCardData(library_name="align3gr", tags=["recommendation", "semantic-ids", config.model_type])
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n")


class CardMixin:
    """Saves a card beside the weights, and pushes it with them."""

    config: Any

    def card(self) -> ModelCard:
        return model_card(type(self).__name__, self.config, {"": self.config.health})

    def save_pretrained(self, save_directory, *args, **kwargs) -> None:
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        self.card().save(Path(save_directory) / "README.md")

    def _upload_modified_files(self, working_dir, *args, **kwargs) -> Any:
        # transformers puts a card of its own into every upload; ours says what the code books are like, and takes the
        # tags that were asked for from it. Here, and not after the push, so that it lies in the same commit, on the
        # same branch or pull request.
        path = Path(working_dir) / "README.md"
        card = self.card()
        if path.is_file():
            asked = ModelCard.load(path).data.get("tags") or []
            card.data["tags"] = list(dict.fromkeys([*card.data.get("tags"), *asked]))
        card.save(path)
        return super()._upload_modified_files(working_dir, *args, **kwargs)  # type: ignore[misc]
