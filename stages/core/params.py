"""The schema of params.yaml: which keys there are, what each one means, and which values are legal.

Every value is in params.yaml: no key has a default here. The schema never changes a value. The comments of params.yaml
and the tables of `python -m tools.profile --keys` and docs/params.md come from the descriptions.
"""

import codecs
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictFloat,
    StrictInt,
    ValidationError,
    model_validator,
)

from stages.core.paths import PARAMS
from stages.core.yaml_files import read_yaml
from stages.runtime.credentials import holds_credentials
from stages.runtime.errors import UserError

Count = Annotated[StrictInt, Field(ge=1)]
CountOrZero = Annotated[StrictInt, Field(ge=0)]
# People write 1 where they mean 1.0. A boolean or a string is still an error.
Number = StrictFloat | StrictInt
Positive = Annotated[Number, Field(gt=0)]
NotNegative = Annotated[Number, Field(ge=0)]
Share = Annotated[Number, Field(ge=0, lt=1)]
RESERVED = ("id", "messages", "source", "length", "tests", "reason", "detail")
Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class HubSource(Section):
    """The keys that model and data share. A hub repository always needs a commit."""

    source: str
    path: str
    id: str | None = Field(description="owner/name on the hub, for source: hub")
    revision: str | None = Field(description="full commit, 40 hex digits; for a branch the stage names it")

    @model_validator(mode="after")
    def check_pin(self):
        if self.source != "hub":
            return self
        if not self.id or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", self.id) or ".." in self.id:
            raise ValueError(f"source: hub needs id, a hub repository such as owner/name (it is {self.id!r})")
        # A branch or tag passes here. The download stage then names its commit.
        if not self.revision or not re.fullmatch(r"\w[\w./-]*", self.revision) or ".." in self.revision:
            raise ValueError(f"source: hub needs revision, a full commit of 40 hex digits (it is {self.revision!r})")
        return self


class Model(HubSource):
    source: Literal["path", "hub"] = Field(
        description="path: a local folder; hub: a Hugging Face repository at a pinned commit"
    )
    path: str = Field(description="folder of the model; with source: hub it only has to exist: set assets/hub-model")
    tokenizer: Literal["own", "mistral-common-v1", "mistral-common-v2", "mistral-common-v3"] = Field(
        description="own: the files next to the weights; mistral-common-v1, -v2, -v3: files of that package"
    )


def check_glob(pattern: str) -> str:
    """Refuses a glob that leads out of its folder: DVC would not see those files change."""
    if not pattern or pattern.startswith("/") or ".." in pattern.split("/"):
        raise ValueError("Input should be a glob of files below data.path, such as **/*.jsonl, or null")
    return pattern


def check_encoding(name: str) -> str:
    """Refuses what is no encoding of text files, such as base64 or a way to write Python strings."""
    unfit = {"idna", "punycode", "unicode-escape", "raw-unicode-escape", "utf-7", "undefined"}
    try:
        "a".encode(name)
        fits = codecs.lookup(name).name not in unfit
    except (LookupError, UnicodeError, ValueError):
        fits = False
    if not fits:
        raise ValueError("Input should be an encoding of text that Python knows, such as utf-8, cp1252 or utf-16-le")
    return name


def check_delimiter(delimiter: str) -> str:
    if len(delimiter) != 1 or delimiter.isalnum() or delimiter in '"\r\n':
        raise ValueError("Input should be one character, such as ';' or \"\\t\" for a tab, or null")
    return delimiter


def check_column(name: str) -> str:
    """Refuses the names of a record's own columns and of the slices that every record has."""
    if not re.fullmatch(r"\w[\w -]*", name) or name in RESERVED:
        raise ValueError(
            f"Input should be a column's name, in letters, digits, spaces, _ and -, but none of {', '.join(RESERVED)}"
        )
    return name


def check_unique(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("Input should name each one only once")
    return names


class Columns(Section):
    user: str = Field(description="column with the user's text")
    assistant: str = Field(description="column with the answer")
    system: str | None = Field(description="column with the system prompt; null: no such column")


class Data(HubSource):
    source: Literal["stdlib", "file", "url", "hub"] = Field(
        description="stdlib: the documented functions of this Python; or file, url, hub"
    )
    path: str = Field(description="a file or a folder of files; with another source it only has to exist")
    files: Annotated[str, AfterValidator(check_glob)] | None = Field(
        description="files of the folder, such as **/*.jsonl; null: all files of known kinds"
    )
    url: str | None = Field(description="http or https address of a file, for source: url")
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        description="SHA-256 of that file; the first run prints it"
    )
    config: str | None = Field(
        description="config of a hub data set, as its card names it; null: its only or default one"
    )
    split: str = Field(description="split of a hub data set, by its card or by the names of its folders and files")
    encoding: Annotated[str, AfterValidator(check_encoding)] = Field(
        description="of text files without a byte order mark: utf-8, or such as cp1252, utf-16-le, shift_jis"
    )
    delimiter: Annotated[str, AfterValidator(check_delimiter)] | None = Field(
        description="between the fields of a CSV file, such as ';'; null: a comma, and a tab in .tsv"
    )
    format: Literal[
        *("auto", "messages", "prompt-completion", "alpaca", "sharegpt", "question-answer", "input-output", "inst"),
        *("text", "columns"),
    ] = Field(description="auto: from the columns; or a format of docs/own-data.md; columns: as data.columns says")
    columns: Columns | None = Field(
        description="for format: columns, such as {user: question, assistant: answer, system: null}"
    )
    ignore_columns: Annotated[list[str], AfterValidator(check_unique)] = Field(
        description="columns to leave unread, such as [label], also where they change what a row means"
    )
    limit: Count | None = Field(description="most rows to take; null: all")

    @model_validator(mode="after")
    def check_url(self):
        """Checks the section, not the key: the error of a key would show its value, which may hold a password."""
        for key, address in (("url", self.url), ("path", self.path if "://" in self.path else None)):
            if address is not None and holds_credentials(address):
                raise ValueError(
                    f"{key} holds a password, token or signature, which Git would keep. Take it out and revoke it. If "
                    "the file needs a login, download it by hand and set source: file"
                )
        if self.source == "url" and not re.match(r"https?://[^/?#\s]+/[^\s]*$", self.url or ""):
            raise ValueError("source: url needs url, the http or https address of a file")
        return self

    @model_validator(mode="after")
    def check_columns(self):
        if (self.format == "columns") != (self.columns is not None):
            raise ValueError(
                "format: columns needs columns, such as {user: question, assistant: answer, system: null}. With "
                f"another format, columns is null (format is {self.format})"
            )
        return self


class Clean(Section):
    min_characters: CountOrZero = Field(description="shortest answer; a shorter one teaches nothing")
    max_characters: Count = Field(description="longest conversation, all turns together")
    check_code: Literal[True, False, "auto"] = Field(
        description="answers must parse as Python; auto: all of data.source: stdlib, else only fenced Python"
    )
    fix_text: bool = Field(description="repair wrongly decoded text, such as Ã¼ for ü, and remove control characters")
    reject_refusals: bool = Field(description="reject answers such as: As an AI language model, I cannot…")
    repair_turns: Literal["drop", "trim", "merge"] = Field(
        description="turns out of order: drop the row; trim its ends; merge: also join neighbours of one role"
    )
    secrets: Literal["reject", "redact", "keep"] = Field(
        description="keys and tokens: reject the row, redact them or keep them"
    )
    personal_data: Literal["reject", "redact", "keep"] = Field(
        description="e-mail, phone, IBAN, card, SSN, public IP: reject the row, redact them or keep them"
    )
    decontaminate: list[Annotated[str, Field(pattern=r"^[\w-][\w.-]*\.(jsonl|txt)$")]] = Field(
        description="benchmarks in data/decontaminate; reject rows that share a third of one or 40 words"
    )
    near_duplicate_threshold: Annotated[Number, Field(ge=0.5, lt=1)] | None = Field(
        description="reject one of two rows that share this part of their text; null: off"
    )
    max_malformed_rows: CountOrZero = Field(description="the stage fails if more rows than this do not fit the format")
    keep_fields: Annotated[list[Annotated[str, AfterValidator(check_column)]], AfterValidator(check_unique)] = Field(
        description="columns to keep in the test split for evaluate.slices, such as [difficulty]"
    )
    validation_fraction: Annotated[Share, Field(gt=0)] = Field(description="share of the rows in the validation split")
    test_fraction: Annotated[Share, Field(gt=0)] = Field(description="share of the rows in the test split")

    @model_validator(mode="after")
    def check_limits(self):
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction + test_fraction must stay under 1, or nothing is left to train on")
        if self.min_characters > self.max_characters:
            raise ValueError("min_characters is greater than max_characters")
        return self


class Prompt(Section):
    template: Literal["v1", "v2", "v3"] = Field(
        description="Mistral's instruct format, from mistral-common: v1 (Mistral-7B v0.1), v2 or v3 (v0.3)"
    )
    system: str | None = Field(description="system prompt for conversations that have none; null: none")


class Tokenize(Section):
    max_length: Annotated[StrictInt, Field(ge=8)] = Field(
        description="most tokens in a conversation and in a packed row"
    )
    too_long: Literal["drop", "truncate", "split"] = Field(
        description="drop the conversation; truncate: cut its last turns; split: they start a new one"
    )
    train_turns: Literal["all", "last"] = Field(
        description="all: every answer of a conversation is trained; last: only its last one"
    )
    packing: bool = Field(description="put several conversations in a row; none of them sees another")


class Quantization(Section):
    bits: Literal[4, 8, 16] = Field(description="bits of the frozen base: 4 (QLoRA), 8 (LLM.int8) or 16 (plain LoRA)")
    quant_type: Literal["nf4", "fp4"] = Field(description="data type of the 4 bits")
    double_quant: bool = Field(description="with 4 bits: quantize the quantization constants too")


class Lora(Section):
    variant: Literal["lora", "rslora", "dora"] = Field(
        description="lora; rslora: scaled by alpha/√r; dora: with trained magnitudes"
    )
    init: Literal["default", "loftq", "pissa", "olora"] = Field(
        description="default: no change at first; loftq (4 bits): offsets 4-bit loss; pissa, olora (16 bits)"
    )
    init_from: Annotated[str, Field(pattern=r"^[\w-][\w.-]*$")] | None = Field(
        description="adapter to continue from, such as first in data/adapters/first; null: a new adapter"
    )
    r: Count = Field(description="rank: how much the adapter can learn, and how large it is")
    alpha: Positive = Field(description="the adapter's output is multiplied by alpha / r")
    dropout: Share = Field(description="share of an adapter's inputs that training sets to zero")
    target_modules: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = Field(
        description="all-linear: every linear layer; or a list of names, such as [q_proj, v_proj]"
    )
    plus_ratio: Annotated[Number, Field(ge=1)] | None = Field(
        description="LoRA+: matrix B learns this many times faster than A, such as 16; null: equally fast"
    )

    @model_validator(mode="after")
    def check_start(self):
        if self.init != "default" and self.init_from is not None:
            raise ValueError(
                f"init: {self.init} and init_from are two ways to start. Set init: default to continue "
                "from an adapter, or set init_from: null"
            )
        if self.init != "default" and self.variant == "dora":
            raise ValueError(
                f"init: {self.init} does not go with variant: dora, which takes its magnitudes from the "
                "unchanged base. Set init: default, or variant: lora or rslora"
            )
        return self


class Train(Section):
    epochs: Positive = Field(description="passes over all rows; may be a fraction")
    batch_size: Count = Field(description="rows in a forward pass")
    gradient_accumulation_steps: Count = Field(description="forward passes in an optimizer step, over all GPUs")
    optimizer: Literal["adamw", "adamw_8bit"] = Field(description="adamw; adamw_8bit: keeps its moments in 8 bits")
    learning_rate: Positive = Field(description="highest learning rate, reached after the warm-up")
    lr_scheduler: Literal["constant", "linear", "cosine"] = Field(
        description="how the learning rate changes after the warm-up"
    )
    warmup_steps: CountOrZero = Field(description="optimizer steps in which the learning rate rises from zero")
    weight_decay: NotNegative = Field(description="weight decay of AdamW on the adapter's matrices")
    max_grad_norm: Positive = Field(description="a longer gradient is scaled down to this length")
    neftune_alpha: Positive | None = Field(
        description="NEFTune: noise on the embeddings in training, such as 5; null: none"
    )
    eval_steps: Count = Field(description="optimizer steps between two evaluations on the validation split")
    early_stopping_patience: Count | None = Field(
        description="stop after so many evaluations without a better loss, keep the best; null: off"
    )
    deterministic: bool = Field(
        description="on CUDA: the same bytes in each run, but slower; the CPU always gives the same bytes"
    )


class Merge(Section):
    base: Literal["dequantized", "original"] = Field(
        description="dequantized: the 4-bit values that the adapter was trained on; original: 16-bit weights"
    )
    parity_rows: Count = Field(description="validation rows on which the merged model is compared with the trained one")
    max_loss_gap: Positive = Field(
        description="the stage warns if the whole 95 % interval of their losses' difference is beyond it"
    )
    max_kl: Positive = Field(
        description="the stage fails if the KL divergence of their predictions is more, in nats per token"
    )


class Evaluate(Section):
    max_rows: Count = Field(description="most test rows to score")
    generate_rows: Count = Field(description="how many of these rows get a generated answer")
    max_new_tokens: Count = Field(description="most tokens in a generated answer")
    batch_size: Count = Field(description="rows in a forward pass")
    cluster: Literal["source", "row"] = Field(
        description="source: the intervals draw all rows of a document together; row: one by one"
    )
    slices: Annotated[list[str], AfterValidator(check_unique)] = Field(
        description="tables by kind of row: source, length (of the answer), names in clean.keep_fields"
    )
    run_tests: bool = Field(
        description="run the answers to rows that have tests (pass@1), in bubblewrap; only on Linux"
    )
    test_seconds: Count = Field(description="CPU seconds for an answer and its tests")
    test_megabytes: Annotated[StrictInt, Field(ge=64)] = Field(description="MiB of memory for an answer and its tests")


class Gate(Section):
    """A limit for one figure of metrics.json."""

    metric: str = Field(description="figure of metrics.json, by its dotted name")
    better: Literal["lower", "higher"] = Field(description="whether a lower or a higher figure is better")
    bound: Number | None = Field(description="the worst figure that passes; null where against is set")
    against: str | None = Field(
        description="Git revision that the figure must not be worse than; null where bound is set"
    )

    @model_validator(mode="after")
    def check_limit(self):
        if (self.bound is None) == (self.against is None):
            raise ValueError(f"the gate of {self.metric} needs either bound (a figure) or against (a revision)")
        if self.against is not None and not re.fullmatch(r"\w[\w./@{}~^-]*", self.against):
            raise ValueError(f"against is not the name of a revision: {self.against!r}")
        return self


class Report(Section):
    samples: CountOrZero = Field(description="generated answers that the report shows side by side")
    gates: list[Gate] = Field(description="checks of stages.report --gate: a bound, or no worse than a revision")


class Machine(Section):
    """How the stages run. The result is the same. No stage declares this section to DVC, so a change reruns nothing."""

    device: Literal["auto", "cpu", "cuda"] = Field(description="auto: CUDA if there is a GPU, else the CPU")
    devices: Count | Literal["auto"] = Field(
        description="training processes on this machine, one per GPU; auto: all GPUs"
    )
    sharding: Literal["none", "fsdp"] = Field(
        description="none: the whole base is in each process; fsdp: each holds a part of it"
    )
    nodes: Count = Field(description="machines that train together: docs/gpu-box.md")
    rendezvous: Annotated[str, Field(pattern=r"^[\w.:\[\]-]+:\d{1,5}$")] | None = Field(
        description="with several machines: the first one's address and a free port, such as 10.0.0.1:29500"
    )
    attention: Literal["auto", "varlen", "sdpa", "eager"] = Field(
        description="in training; auto, varlen: packed conversations without padding; or sdpa, eager"
    )
    memory: Literal["auto", "both", "activations", "weights", "low", "offload"] = Field(
        description="train keeps activations, weights, both; low: none; offload: no inputs; auto: what fits"
    )
    workers: Count | None = Field(description="processes that clean and tokenize; null: one per core")
    save_steps: Count = Field(
        description="optimizer steps between checkpoints, from which a stopped training continues"
    )
    save_total_limit: Count = Field(description="checkpoints to keep while it trains")
    report_to: Literal["none"] | Annotated[list[Tracker], Field(min_length=1)] = Field(
        description="none, or a list of tensorboard, wandb, mlflow, trackio; install each first"
    )

    @model_validator(mode="after")
    def check_rendezvous(self):
        if self.nodes > 1 and self.rendezvous is None:
            raise ValueError(
                "nodes above 1 needs rendezvous, the first machine and a free port, such as 10.0.0.1:29500"
            )
        return self


class Params(Section):
    seed: CountOrZero = Field(
        description="seed of every random draw: order of rows, first adapter values, dropout, intervals"
    )
    model: Model = Field(description="the base model")
    data: Data = Field(description="the rows to learn from")
    clean: Clean = Field(description="which rows stay, and in which split")
    prompt: Prompt = Field(description="how a conversation becomes text")
    tokenize: Tokenize = Field(description="how text becomes rows of tokens")
    quantization: Quantization = Field(description="how training holds the base")
    lora: Lora = Field(description="the adapter")
    train: Train = Field(description="how the adapter is trained")
    merge: Merge = Field(description="the adapter becomes part of the base")
    evaluate: Evaluate = Field(description="base and tuned model on the test split")
    report: Report = Field(description="what the report shows and checks")
    machine: Machine = Field(description="how it runs; a change here reruns nothing")

    @model_validator(mode="after")
    def check_slices(self):
        known = ["source", "length", *self.clean.keep_fields]
        if unknown := [name for name in self.evaluate.slices if name not in known]:
            raise ValueError(
                f"evaluate.slices names {', '.join(unknown)}; there are {', '.join(known)}. To slice by a column of "
                "your rows, name it in clean.keep_fields too"
            )
        return self

    @model_validator(mode="after")
    def check_combinations(self):
        bits, init = self.quantization.bits, self.lora.init
        if init == "loftq" and bits != 4:
            raise ValueError(f"lora.init: loftq makes up for what 4 bits lose, but quantization.bits is {bits}")
        if init in ("pissa", "olora") and bits != 16:
            raise ValueError(
                f"lora.init: {init} takes the base's main directions out of its weights. In {bits} bits the base would "
                "then be quantized again, and the adapter would fit no other copy of it. Set quantization.bits: 16, or "
                "lora.init: loftq with 4 bits"
            )
        if bits == 8 and self.lora.variant == "dora":
            raise ValueError(
                "lora.variant: dora with quantization.bits: 8 loses the scales of the weights (PEFT 0.21 on the CPU). "
                "Set quantization.bits to 4 or 16, or lora.variant to lora or rslora"
            )
        plain = init == "default" and self.lora.variant != "dora" and bits != 8
        if self.machine.sharding == "fsdp" and not plain:
            raise ValueError(
                "machine.sharding: fsdp needs lora.init: default, lora.variant: lora or rslora, and quantization.bits: "
                "4 or 16. The other settings need whole weights, and no process has them. Set machine.sharding: none"
            )
        if bits == 8 and self.merge.base == "dequantized":
            raise ValueError(
                "merge.base: dequantized needs quantization.bits 4 or 16. With 8 bits, LLM.int8 also rounds the inputs "
                "of a layer, and no weights give the same results. Set merge.base: original"
            )
        return self


def key_of(error: dict) -> str:
    """Returns the full name of the key that an error of pydantic is about, without the branches of a union."""
    return ".".join(str(part) for part in error["loc"] if part not in ("float", "int") and "[" not in str(part))


def describe(errors: list[dict], where: str) -> str:
    """Returns one line about everything that is wrong with one key."""
    error = errors[0]
    if error["type"] == "extra_forbidden":
        return f"{where} is not a known key. Correct its spelling or take it out."
    if error["type"] == "missing":
        return f"{where} is missing. Every key must be set; `python -m tools.profile --keys` explains them."
    messages = dict.fromkeys(entry["msg"].removeprefix("Value error, ") for entry in errors)
    message = " or ".join(messages).replace(" or Input should be ", " or ")
    shown = repr(error["input"])
    secret = "://" in shown and holds_credentials(shown.strip("'\"[]"))
    return f"{where}: {message}." if isinstance(error["input"], dict) or secret else f"{where} is {shown}: {message}."


def check_params(values: object, file: Path = PARAMS) -> Params:
    """Checks all values of params.yaml.

    Args:
        values: the content of the file, in sections.
        file: its name in the messages.

    Raises:
        UserError: one line for each key that is missing or unknown, or has a wrong type or value.
    """
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        errors: dict[str, list[dict]] = {}
        for entry in error.errors():
            errors.setdefault(key_of(entry), []).append(entry)
        lines = [describe(entries, f"{file}: {key}" if key else str(file)) for key, entries in errors.items()]
        raise UserError("\n".join(lines)) from None


def load_params(path: Path = PARAMS) -> Params:
    """Reads params.yaml and checks all of it.

    Raises:
        UserError: the file is missing or is not valid YAML, or its values are not legal: see check_params().
    """
    return check_params(read_yaml(path), path)
