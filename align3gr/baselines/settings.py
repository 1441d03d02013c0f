"""How comparison systems are tuned and judged."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from align3gr.baselines.generative_systems import GENERATIVE, check_generative
from align3gr.baselines.systems import SYSTEMS, System
from align3gr.errors import InputError

# Tuning judges lists of this length.
TUNED_K = 10
COLUMNS = ("seen_allowed", "seen_masked", "discoveries")
METRICS = tuple(f"{name}@{k}" for name in ("recall", "ndcg", "mrr") for k in (5, TUNED_K))


@dataclass
class StudySettings:
    """How systems are tuned and judged, the same for all."""

    systems: list[str] = field(
        default_factory=lambda: list(SYSTEMS),
        metadata={"help": f"What to compare: {', '.join([*SYSTEMS, *GENERATIVE])}; the generative ones if named."},
    )
    generative: dict[str, Any] = field(
        default_factory=dict,
        metadata={
            "help": "In a file: for each generative system the YAML file of each stage (scid, sft, ...) and, as "
            "space, the options of stages that tuning may set, the default first."
        },
    )
    only: list[str] = field(
        default_factory=list,
        metadata={"help": "Systems to fit now, all if left out; the tables show the others as far as they are."},
    )
    trials: int = field(
        default=8,
        metadata={"help": "Settings of each system that are tried on validation; 0 takes the default ones untried."},
    )
    tuning_seconds: float = field(
        default=3600.0, metadata={"help": "CPU seconds after which no further trial of a system is begun."}
    )
    seeds: list[int] = field(
        default_factory=lambda: [1, 2, 3], metadata={"help": "Seeds of the final runs with the chosen setting."}
    )
    select_on: list[str] = field(
        default_factory=lambda: ["seen_allowed", "seen_masked"],
        metadata={"help": f"Columns whose mean decides on validation: {', '.join(COLUMNS)}."},
    )
    select_by: str = field(default="ndcg@10", metadata={"help": "Metric that decides.", "choices": METRICS})
    validation_users: int = field(
        default=0, metadata={"help": "Fixed sample of users that validation asks; 0 asks all."}
    )
    max_epochs: int = field(default=100, metadata={"help": "Most epochs of a fit."})
    k: int = field(default=20, metadata={"help": "Length of the lists on test."})
    num_beams: int = field(default=20, metadata={"help": "Beam of the search of generative systems."})
    keep_models: bool = field(
        default=False,
        metadata={"help": "Keep the models of generative systems; removed otherwise once all are judged."},
    )

    def __post_init__(self) -> None:
        check_generative(self.systems, self.generative)
        known_systems = SYSTEMS | GENERATIVE
        for name, values, known in (("systems", self.systems, known_systems), ("select_on", self.select_on, COLUMNS)):
            if isinstance(values, list) and (not values or set(values) - set(known) or len(set(values)) < len(values)):
                raise InputError(f"{name}: got {values}, expected one or several of {', '.join(known)}")
        if unknown := [name for name in self.only if name not in self.systems]:
            raise InputError(f"only: {unknown[0]!r} is none of the systems; choose from {', '.join(self.systems)}")
        if isinstance(self.seeds, list) and (not self.seeds or len(set(self.seeds)) < len(self.seeds)):
            raise InputError(f"seeds: got {self.seeds}, expected different whole numbers, such as 1 2 3")
        for name, least in (("trials", 0), ("max_epochs", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name}: got {getattr(self, name)}, expected at least {least}")
        if self.tuning_seconds <= 0:
            raise InputError(f"tuning_seconds: got {self.tuning_seconds}, expected more than 0")
        if self.k < TUNED_K:
            raise InputError(f"k: got {self.k}, expected at least {TUNED_K}; the tables show lists of that length")
        if self.num_beams < self.k and set(self.systems) & set(GENERATIVE):
            raise InputError(f"num_beams: got {self.num_beams}, expected at least k, {self.k}")

    def system(self, name: str) -> System:
        """A system with the space that its tuning may try."""
        if name in SYSTEMS:
            return SYSTEMS[name]
        space: Mapping[str, Any] = self.generative[name].get("space", {})
        return replace(GENERATIVE[name], space=space)
