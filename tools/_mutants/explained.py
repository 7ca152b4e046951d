"""Why some mutants are left, and which of them are equivalent: every result is the same, so no test could tell them."""

from typing import NamedTuple


class Reason(NamedTuple):
    """Why a mutant is left, and whether it is equivalent."""

    text: str
    is_equivalent: bool


CAST = "pyarrow casts the numbers to the types of row_schema()"
STRICT = "both sides have the same length; strict only guards against a later mistake"
INDICES = "PyTorch takes indices on the CPU for values on any device"
OTHERS: tuple[
    str, ...
] = ()  # reasons of mutants that are not equivalent: they differ, but not in what a test here sees
# {file: {a part of the changed line after the change: the reason}}
EXPLAINED: dict[str, dict[str, str]] = {
    "stages/core/records.py": {
        "dumps(texts, sort_keys=": "json's default is the same",
    },
    "stages/core/quantization.py": {
        ".to(None)]": INDICES,
        'cast("b")': "the bytes are the same, and nobody reads them as numbers",
    },
    "stages/core/prompts.py": {
        'tools = ""': "an empty text counts as no tools, as None does",
        "return_type=None": CAST,
        "num_threads=threads, )": CAST,
        "trained.append(None)": "None counts as not trained, as False does",
        "numpy.int64, )": "the count only lets numpy allocate the array at once",
    },
    "stages/core/attention.py": {
        "strict=": STRICT,
        "for tensor in states), )": STRICT,
        "conversation[1].shape[2]": "a conversation has as many keys as queries",
        "window <= longest": "a window as long as the longest conversation hides nothing",
    },
    "stages/_merge/four_bit.py": {
        ".to(None)].cpu()": INDICES,
        "(count + 2) // 2": "it allocates a byte that parts() never gives out",
        "strict=": STRICT,
        "len(rows)), )": STRICT,
    },
    "stages/_merge/stream.py": {
        "BaseValues({}, None)": "without hashes nobody reads the samples",
        'four_bit = ""': "an empty text counts as no 4-bit values, as None does",
    },
    "stages/_tokenize/packing.py": {
        "from_arrays(starts.astype(None), values)": CAST,
        "nothing = numpy.empty(0, dtype=None)": CAST,
        "nothing = numpy.empty(0, )": CAST,
        "numpy.int32, )": "the count only lets numpy allocate the array at once",
    },
    "stages/comparison/gate.py": {
        'rest.rpartition(".")': "it differs only for a name with more dots, which is no measure in either way",
    },
    "stages/core/statistics.py": {
        "draws.astype(None)": "numpy's default is the same type",
        "np.float64(None)": "numpy makes the same NaN of None",
        "strict=None": STRICT,
        "strict=False": STRICT,
        ".T, )": STRICT,
    },
}


def why_left(file: str, change: str) -> Reason:
    """The reason. Its text is empty where nobody has found one yet.

    Args:
        change: `line before → line after`.
    """
    after = change.partition(" → ")[2]
    text = next((reason for part, reason in EXPLAINED.get(file, {}).items() if part in after), "")
    return Reason(text, bool(text) and text not in OTHERS)
