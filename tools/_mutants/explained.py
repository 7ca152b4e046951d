"""Why some mutants are left: they change nothing that a test could or should notice."""

CAST = "pyarrow casts the numbers to the types of row_schema()"
SUMS = "the sums of whole numbers are the same in int64 and in fp64"
STRICT = "both sides have the same length; strict only guards against a later mistake"
WARNING = "only a warning of numpy about 0 / 0 or inf − inf is shown or not"
# {file: {a part of the changed line after the change: the reason}}
EXPLAINED: dict[str, dict[str, str]] = {
    "stages/_tokenize/packing.py": {
        "from_arrays(starts.astype(None), values)": CAST,
        "nothing = numpy.empty(0, dtype=None)": CAST,
        "nothing = numpy.empty(0, )": CAST,
        "numpy.int32, )": "the count only lets numpy allocate the array at once",
    },
    "stages/comparison/gate.py": {
        'rest.rpartition(".")': "it differs only for a name with more dots, which is no measure in either way",
        "or repr(None)": "only the message about an error without a text is another one",
    },
    "stages/core/statistics.py": {
        "np.array([row[name] for row in rows], None)": SUMS,
        "np.array([row[name] for row in rows], )": SUMS,
        "draws.astype(None)": "numpy's default is the same type",
        "strict=None": STRICT,
        "strict=False": STRICT,
        ".T, )": STRICT,
        "np.errstate(invalid=None)": WARNING,
        "np.errstate(invalid=None, divide=": WARNING,
        'np.errstate(invalid="ignore", divide=None)': WARNING,
        'np.errstate(divide="ignore")': WARNING,
        'np.errstate(invalid="ignore", )': WARNING,
    },
}


def why_left(file: str, change: str) -> str:
    """The reason, or an empty text where nobody has found one yet.

    Args:
        change: `line before → line after`.
    """
    after = change.partition(" → ")[2]
    return next((reason for part, reason in EXPLAINED.get(file, {}).items() if part in after), "")
