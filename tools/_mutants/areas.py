"""The areas of `python -m tools.mutants`: the code that is changed, and the tests that should notice.

The search for near-duplicates is in no area yet.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Area:
    """One area.

    Args:
        code: {file: names of its functions, and of methods as Class.method}. () means every function of the file.
        tests: Test files of the default tier. They take seconds.
    """

    code: dict[str, tuple[str, ...]]
    tests: tuple[str, ...]


AREAS = {
    "masks": Area(
        {
            "stages/core/prompts.py": (
                *("Encoder.turns", "Encoder.arrays", "Encoder.conversations", "Encoder.conversation"),
                *("Encoder.prompt", "Encoder.decode", "Encoder.begins_with", "Encoder.spell"),
            ),
            "stages/core/records.py": ("is_trained", "is_raw_text", "with_trained_turns"),
            "stages/core/attention.py": (
                *("attend_one_by_one", "flat_batch", "find_targets", "collate", "trained_states"),
            ),
        },
        (
            "tests/core/test_prompts.py",
            "tests/core/test_records.py",
            "tests/test_tokenize.py",
            "tests/test_train_fast.py",
            "tests/test_train_loss.py",
        ),
    ),
    "packing": Area({"stages/_tokenize/packing.py": ()}, ("tests/test_tokenize.py",)),
    "splits": Area(
        {"stages/core/records.py": ("content_id", "split_position", "split_of")}, ("tests/core/test_records.py",)
    ),
    "merge": Area(
        {
            "stages/_merge/adapter.py": ("WeightUpdate.apply", "pattern_value", "Adapter.scaling", "Adapter.update"),
            "stages/_merge/stream.py": ("MergePlan.tensors", "merged_blocks", "value_differences", "write_tensor"),
        },
        ("tests/test_merge.py", "tests/test_merge_options.py"),
    ),
    "quantization": Area(
        {
            "stages/core/quantization.py": (),
            "stages/_merge/nf4.py": (),
            "stages/_merge/four_bit.py": (),
        },
        ("tests/core/test_quantization.py", "tests/test_merge_nf4.py", "tests/test_merge.py"),
    ),
    "statistics": Area(
        {"stages/core/statistics.py": ()}, ("tests/core/test_statistics.py", "tests/comparison/test_gate_rules.py")
    ),
    "gate": Area(
        {"stages/comparison/gate.py": ()},
        ("tests/comparison/test_gate_rules.py", "tests/comparison/test_gate_verdicts.py"),
    ),
    "fingerprint": Area({"stages/_train/fingerprint.py": ()}, ("tests/test_train_checks.py",)),
}
