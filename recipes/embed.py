"""Frozen encoders: semantic vectors from texts, collaborative vectors from the train split."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

from align3gr.data import Split
from align3gr.data.schema import ITEM_ID, PROFILE, TEXT, USER_ID
from align3gr.encoders import Embeddings, PPMIFactorization, SentenceTransformerEncoder, TfidfSVDEncoder
from align3gr.errors import InputError
from align3gr.pipeline import stage, stage_folder
from align3gr.recipe import parse, run_recipe


@dataclass
class EmbedArguments:
    run_dir: str = field(metadata={"help": "Folder of the run; the vectors appear in its folder embeddings."})
    semantic: str = field(
        default="tfidf",
        metadata={"help": "Encoder of texts.", "choices": ["tfidf", "sentence-transformers", "none"]},
    )
    semantic_model: str = field(
        default="sentence-transformers/sentence-t5-base",
        metadata={"help": "Hub id or path of the sentence-transformers model."},
    )
    semantic_dim: int = field(default=128, metadata={"help": "Width of the TF-IDF + SVD vectors."})
    collaborative_dim: int = field(
        default=64, metadata={"help": "Width of the collaborative vectors; 0 leaves them out."}
    )
    seed: int = field(default=42, metadata={"help": "Seed of both factorisations."})


def main() -> None:
    (arguments,) = parse([EmbedArguments])
    if arguments.semantic == "none" and not arguments.collaborative_dim:
        raise InputError("semantic: 'none' with collaborative_dim 0 leaves no features; keep one of them")
    data = stage_folder(arguments.run_dir, "prepare")
    # The split's targets are no input: nothing here may depend on them.
    inputs = [data / f"{name}.parquet" for name in ("items", "users", "train")]
    settings = asdict(arguments)
    del settings["run_dir"]
    for name, encoder in (("semantic_dim", "tfidf"), ("semantic_model", "sentence-transformers")):
        if arguments.semantic != encoder and settings.pop(name) != getattr(EmbedArguments, name):
            raise InputError(f"{name}: applies to semantic '{encoder}' only, got semantic '{arguments.semantic}'")
    if arguments.semantic == "sentence-transformers" and Path(arguments.semantic_model).is_dir():
        inputs.append(Path(arguments.semantic_model))
    with stage(arguments.run_dir, "embed", settings, inputs, arguments.seed) as work:
        if work is None:
            return
        split = Split.load(data)
        items, users = Embeddings(), Embeddings()
        if arguments.semantic != "none":
            if arguments.semantic == "tfidf":
                encoder = TfidfSVDEncoder(arguments.semantic_dim, seed=arguments.seed)
            else:
                encoder = SentenceTransformerEncoder(arguments.semantic_model)
            texts = split.items[TEXT].to_list()
            encoder.fit(texts)
            items.semantic = encoder.encode(texts)
            users.semantic = encoder.encode(split.users[PROFILE].to_list())
        if arguments.collaborative_dim:
            factorization = PPMIFactorization(arguments.collaborative_dim, arguments.seed)
            items.collaborative, users.collaborative = factorization.fit(split.train_sequences(), len(split.items))
        items.save(work.folder / "items.parquet", ITEM_ID, split.items[ITEM_ID])
        users.save(work.folder / "users.parquet", USER_ID, split.users[USER_ID])


if __name__ == "__main__":
    run_recipe(main)
