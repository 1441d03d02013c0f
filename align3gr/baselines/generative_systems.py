"""The generative systems that a study can name, and what their entries in its settings must say."""

from collections.abc import Mapping, Sequence
from typing import Any

from align3gr.baselines.bigrec import BIGRec
from align3gr.baselines.generative import DEFAULT_STAGE, TRAINED_STAGES, GenerativeSystem
from align3gr.baselines.generative_codes import DualSourceCodes
from align3gr.baselines.systems import System
from align3gr.errors import InputError

SPACE = "space"

# What sets most of them apart stands in their files.
_MADE = {
    "BIGRec": BIGRec,
    "P5-SemID": GenerativeSystem,
    "P5-CID": GenerativeSystem,
    "TIGER": GenerativeSystem,
    "LETTER-TIGER": GenerativeSystem,
    "LC-Rec": GenerativeSystem,
    "LETTER-LC-Rec": GenerativeSystem,
    "EAGER-LLM": DualSourceCodes,
    "Align3GR": GenerativeSystem,
}
GENERATIVE = {name: System(make, seeded=True, generative=True) for name, make in _MADE.items()}


def check_generative(systems: Sequence[str], generative: Mapping[str, Any]) -> None:
    """Checks the files and the space of each generative system.

    Raises:
        InputError: an entry is for no generative system, is not of the right form, or is missing.
    """
    known = ", ".join(GENERATIVE)
    for name, entry in generative.items():
        if name not in GENERATIVE:
            raise InputError(f"generative: {name!r} is no generative system; choose from {known}")
        if not isinstance(entry, Mapping) or not {"scid", DEFAULT_STAGE} <= set(entry):
            raise InputError(f"generative: {name}: expected a file for scid and one for {DEFAULT_STAGE}, got {entry}")
        if unknown := set(entry) - {*TRAINED_STAGES, SPACE}:
            expected = ", ".join((*TRAINED_STAGES, SPACE))
            raise InputError(f"generative: {name}: got {min(unknown)!r}, expected some of {expected}")
        space = entry.get(SPACE, {})
        if not isinstance(space, Mapping) or not all(isinstance(values, list) and values for values in space.values()):
            raise InputError(f"generative: {name}: {SPACE} needs a list of values for each option, got {space}")
        for option in space:
            if (stage := option.rpartition(".")[0]) and stage not in entry:
                raise InputError(f"generative: {name}: {SPACE} has {option}, but no file for stage {stage!r}")
    for name in systems if isinstance(systems, list) else ():
        if name in GENERATIVE and name not in generative:
            raise InputError(f"generative: {name} has no files; name some, such as scid: FILE.yaml, sft: FILE.yaml")
