"""Why some mutants are left: they change nothing that a test could or should notice."""

CAST = "pyarrow casts the numbers to the types of row_schema()"
SUMS = "the sums of whole numbers are the same in int64 and in fp64"
STRICT = "both sides have the same length; strict only guards against a later mistake"
WARNING = "only a warning of numpy about 0 / 0 or inf − inf is shown or not"
CPU = "it differs only on a GPU, and the tests run on a CPU"
SPEED = "the number of threads changes the time, not the ids"
SCALE = "PyTorch's default is what transformers passes for Mistral"
DEFAULT = "all callers name the device"
ROUNDS = "the rounds have other sizes, but the same pairs are compared in the end"
BELOW = "any other number that no index or mark has does the same"
# {file: {a part of the changed line after the change: the reason}}
EXPLAINED: dict[str, dict[str, str]] = {
    "stages/core/records.py": {
        "dumps(messages, sort_keys=": "json's default is the same",
    },
    "stages/_clean/duplicates.py": {
        "lru_cache(maxsize=": "it keeps more shingles in memory, and computes the same",
        "prepend=-2": BELOW,
        "prepend=+1": "the first record is always in batch 0, which differs from 1 as it does from −1",
        "len(bands), -2)": BELOW,
        "strict=": STRICT,
        "len(is_first)], )": STRICT,
        "cuts[1:], )": "zip's default is the same",
        "reshape(-2, 2)": "numpy takes any negative size as the one to work out",
        "most = 8": ROUNDS,
        "most *= 9": ROUNDS,
        "pyarrow.array(keys.sources, ": "pyarrow finds the type by itself, and sorts an empty column too",
    },
    "stages/core/quantization.py": {
        "dynamic_map(None)": CPU,
        "device=None": CPU,
        "dtype=torch.float32, )": CPU,
        ".to(None)]": CPU,
        'cast("b")': "the bytes are the same, and nobody reads them as numbers",
    },
    "stages/core/prompts.py": {
        'rstrip("XX XX")': "it differs only for an answer that ends with X",
        "num_threads=None": SPEED,
        "encode(texts, return_type": SPEED,
        "threads=None": SPEED,
        "os.cpu_count() and 1": SPEED,
        "os.cpu_count() or 2": SPEED,
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
        "device=None": CPU,
        "dtype=torch.bool, )": CPU,
        "scale=None": SCALE,
        "is_causal=mask is None, enable_gqa": SCALE,
        "cumsum(0, dtype=None)": "only the kernel for GPUs needs int32",
        "cumsum(0, )": "only the kernel for GPUs needs int32",
    },
    "stages/_merge/nf4.py": {
        "blocksize=None": "64 is bitsandbytes' default",
        "quantize_4bit(rows, quant_type": "64 is bitsandbytes' default",
    },
    "stages/_merge/four_bit.py": {
        "device=None": CPU,
        "dtype=torch.uint8, )": CPU,
        "FOUR_BIT_BLOCK), )": CPU,
        "OriginalWeight(stored, None)": CPU,
        ".to(None)].cpu()": CPU,
        "(count + 2) // 2": "it allocates a byte that parts() never gives out",
        "strict=": STRICT,
        "len(rows)), )": STRICT,
    },
    "stages/_merge/adapter.py": {
        '= "XXcpuXX"': DEFAULT,
        '= "CPU"': DEFAULT,
        ".to(None) for part": CPU,
    },
    "stages/_merge/stream.py": {
        "stored.shape, None)": CPU,
        "stored.shape, )": CPU,
        "FourBitWeight(stored, None": CPU,
        "OriginalWeight(stored, None)": CPU,
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
