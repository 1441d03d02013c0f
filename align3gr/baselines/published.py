"""Results that others published on the same split: the rows of Table 1 of the Align3GR paper.

The table mixes two protocols: the discriminative systems do not show items of the history, the generative ones may.
"""

from dataclasses import dataclass

NOTE = (
    "Rows marked as published are Table 1 of the Align3GR paper. Published discriminative baselines mask seen items, "
    "generative ones do not, so each stands in the columns of its own protocol."
)


@dataclass(frozen=True)
class PublishedRow:
    """One row.

    Attributes:
        name: as in the paper.
        generative: whether items of the history could be shown.
        values: Recall@5, Recall@10, NDCG@5, NDCG@10.
    """

    name: str
    generative: bool
    values: tuple[float, float, float, float]

    def columns(self) -> dict[str, dict[str, float]]:
        """The row in the form of the evaluation's results."""
        names = ("recall@5", "recall@10", "ndcg@5", "ndcg@10")
        column = "seen_allowed" if self.generative else "seen_masked"
        return {column: dict(zip(names, self.values, strict=True))}


# Data set -> rows. Yelp: leave-one-out of the 5-core, 30,431 users, 20,033 items.
PUBLISHED = {
    "yelp": (
        PublishedRow("MF", False, (0.0220, 0.0381, 0.0138, 0.0190)),
        PublishedRow("LightGCN", False, (0.0248, 0.0407, 0.0156, 0.0207)),
        PublishedRow("Caser", False, (0.0150, 0.0263, 0.0099, 0.0134)),
        PublishedRow("HGN", False, (0.0186, 0.0326, 0.0115, 0.0159)),
        PublishedRow("BERT4Rec", False, (0.0186, 0.0291, 0.0115, 0.0159)),
        PublishedRow("SASRec", False, (0.0183, 0.0296, 0.0116, 0.0152)),
        PublishedRow("BIGRec", True, (0.0154, 0.0169, 0.0137, 0.0142)),
        PublishedRow("P5-SemID", True, (0.0202, 0.0324, 0.0131, 0.0170)),
        PublishedRow("P5-CID", True, (0.0219, 0.0347, 0.0140, 0.0181)),
        PublishedRow("TIGER", True, (0.0253, 0.0407, 0.0164, 0.0213)),
        PublishedRow("LETTER-TIGER", True, (0.0277, 0.0426, 0.0184, 0.0231)),
        PublishedRow("LC-Rec", True, (0.0230, 0.0359, 0.0158, 0.0199)),
        PublishedRow("LETTER-LC-Rec", True, (0.0255, 0.0393, 0.0168, 0.0211)),
        PublishedRow("EAGER-LLM", True, (0.0373, 0.0569, 0.0251, 0.0315)),
        PublishedRow("Align3GR (Llama2-7B)", True, (0.0425, 0.0679, 0.0299, 0.0403)),
    ),
}
