"""Why some mutants are left: they change nothing that a test could or should notice."""

from tools._mutants.results import Mutant

EXPLAINED: dict[str, dict[str, str]] = {}


def why_left(mutant: Mutant) -> str:
    """The reason, or an empty text where nobody has looked yet."""
    return EXPLAINED.get(mutant.file, {}).get(mutant.change, "")
