"""What params.yaml may say. The file is complete and the only place a value lives: nothing here has a default."""

import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import parse_qsl, urlsplit

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
from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import Node

from stages.core.paths import PARAMS
from stages.runtime.errors import UserError

Count = Annotated[StrictInt, Field(ge=1)]
CountOrZero = Annotated[StrictInt, Field(ge=0)]
# A YAML writer may say 1 where 1.0 is meant; a boolean or a string is still refused.
Number = StrictFloat | StrictInt
Positive = Annotated[Number, Field(gt=0)]
NotNegative = Annotated[Number, Field(ge=0)]
Share = Annotated[Number, Field(ge=0, lt=1)]
MOST_VALUES = 100_000  # of a YAML file; dvc.lock has about 2,500
RESERVED = ("id", "messages", "source", "length", "tests", "reason", "detail")
Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class HubSource(Section):
    """The keys that the model and the data set share: a hub repository is always pinned to a commit."""

    source: str
    path: str
    id: str | None
    revision: str | None

    @model_validator(mode="after")
    def pinned(self):
        if self.source != "hub":
            return self
        if not self.id or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", self.id) or ".." in self.id:
            raise ValueError(f"source: hub needs id, a hub repository such as owner/name (it is {self.id!r})")
        # A branch or tag passes here, so that the download can say which commit to write down instead.
        if not self.revision or not re.fullmatch(r"\w[\w./-]*", self.revision) or ".." in self.revision:
            raise ValueError(f"source: hub needs revision, a full commit of 40 hex digits (it is {self.revision!r})")
        return self


class Model(HubSource):
    source: Literal["path", "hub"]
    tokenizer: Literal["own", "mistral-common-v1", "mistral-common-v2", "mistral-common-v3"]


def holds_credentials(url: str) -> bool:
    try:
        parts = urlsplit(url)
        names = [name.lower() for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    except ValueError:  # not a URL: then every @ and ? is taken for a bad sign
        return "@" in url or "?" in url
    telling = r"(?:^|[-_])(?:token|key|apikey|secret|password|signature|sig|auth|credential)s?$"
    return "@" in parts.netloc or any(re.search(telling, name) for name in names)


def below(pattern: str) -> str:
    """A glob of files in a folder, which may not lead out of it: DVC would not see those files change."""
    if not pattern or pattern.startswith("/") or ".." in pattern.split("/"):
        raise ValueError("Input should be a glob of files below data.path, such as **/*.jsonl, or null")
    return pattern


def field_name(name: str) -> str:
    """Of a column beside the record's own, and not one of the slices that there are for every record."""
    if not re.fullmatch(r"\w[\w -]*", name) or name in RESERVED:
        raise ValueError(
            f"Input should be the name of a column, in letters, digits, _ and -, but none of {', '.join(RESERVED)}"
        )
    return name


def each_once(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("Input should name each but once")
    return names


class Columns(Section):
    user: str
    assistant: str
    system: str | None


class Data(HubSource):
    source: Literal["stdlib", "file", "url", "hub"]
    files: Annotated[str, AfterValidator(below)] | None
    url: str | None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None
    split: str
    format: Literal["auto", "messages", "prompt-completion", "alpaca", "sharegpt", "columns"]
    columns: Columns | None
    limit: Count | None

    @model_validator(mode="after")
    def url_without_credentials(self):
        """Of the section, not of the key: the error of a key shows its value, and this one may hold a password."""
        if self.url is not None and holds_credentials(self.url):
            raise ValueError(
                "url holds a password, token or signature, which would stand in Git. Take it out, and revoke it"
            )
        if self.source == "url" and not re.match(r"https?://[^/?#\s]+/[^\s]*$", self.url or ""):
            raise ValueError("source: url needs url, the http or https address of a file")
        return self

    @model_validator(mode="after")
    def columns_go_with_their_format(self):
        if (self.format == "columns") != (self.columns is not None):
            raise ValueError(
                "format: columns needs columns, such as {user: question, assistant: answer, system: null}, and with "
                f"another format columns is null (format is {self.format})"
            )
        return self


class Clean(Section):
    min_characters: CountOrZero
    max_characters: Count
    check_code: bool
    fix_text: bool
    reject_refusals: bool
    secrets: Literal["reject", "redact", "keep"]
    personal_data: Literal["reject", "redact", "keep"]
    decontaminate: list[Annotated[str, Field(pattern=r"^[\w-][\w.-]*\.(jsonl|txt)$")]]
    near_duplicate_threshold: Annotated[Number, Field(ge=0.5, lt=1)] | None
    max_malformed_rows: CountOrZero
    keep_fields: Annotated[list[Annotated[str, AfterValidator(field_name)]], AfterValidator(each_once)]
    validation_fraction: Annotated[Share, Field(gt=0)]
    test_fraction: Annotated[Share, Field(gt=0)]

    @model_validator(mode="after")
    def leaves_rows_to_train(self):
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction + test_fraction must stay under 1, or nothing is left to train on")
        if self.min_characters > self.max_characters:
            raise ValueError("min_characters is greater than max_characters")
        return self


class Prompt(Section):
    template: Literal["v1", "v2", "v3"]
    system: str | None


class Tokenize(Section):
    max_length: Annotated[StrictInt, Field(ge=8)]
    too_long: Literal["drop", "truncate", "split"]
    packing: bool


class Quantization(Section):
    bits: Literal[4, 8, 16]
    quant_type: Literal["nf4", "fp4"]
    double_quant: bool


class Lora(Section):
    variant: Literal["lora", "rslora", "dora"]
    init: Literal["default", "loftq", "pissa", "olora"]
    init_from: Annotated[str, Field(pattern=r"^[\w-][\w.-]*$")] | None
    r: Count
    alpha: Positive
    dropout: Share
    target_modules: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)]
    plus_ratio: Annotated[Number, Field(ge=1)] | None

    @model_validator(mode="after")
    def one_start(self):
        if self.init != "default" and self.init_from is not None:
            raise ValueError(
                f"init: {self.init} and init_from are two ways to start. Set init: default to go on from an adapter, "
                "or init_from: null"
            )
        if self.init != "default" and self.variant == "dora":
            raise ValueError(
                f"init: {self.init} does not go with variant: dora, whose magnitudes are those of the base as it is. "
                "Set init: default, or variant: lora or rslora"
            )
        return self


class Train(Section):
    epochs: Positive
    batch_size: Count
    gradient_accumulation_steps: Count
    optimizer: Literal["adamw", "adamw_8bit"]
    learning_rate: Positive
    lr_scheduler: Literal["constant", "linear", "cosine"]
    warmup_steps: CountOrZero
    weight_decay: NotNegative
    max_grad_norm: Positive
    neftune_alpha: Positive | None
    eval_steps: Count
    early_stopping_patience: Count | None
    deterministic: bool


class Merge(Section):
    base: Literal["dequantized", "original"]
    parity_rows: Count
    max_loss_gap: Positive
    max_kl: Positive


class Evaluate(Section):
    max_rows: Count
    generate_rows: Count
    max_new_tokens: Count
    batch_size: Count
    cluster: Literal["source", "row"]
    slices: Annotated[list[str], AfterValidator(each_once)]
    run_tests: bool
    test_seconds: Count
    test_megabytes: Annotated[StrictInt, Field(ge=64)]


class Gate(Section):
    """A figure of metrics.json, by its dotted name, and what it may not do."""

    metric: str
    better: Literal["lower", "higher"]
    bound: Number | None
    against: str | None

    @model_validator(mode="after")
    def one_of_two(self):
        if (self.bound is None) == (self.against is None):
            raise ValueError(f"the gate of {self.metric} needs either bound (a figure) or against (a revision)")
        if self.against is not None and not re.fullmatch(r"\w[\w./@{}~^-]*", self.against):
            raise ValueError(f"against is no name of a revision: {self.against!r}")
        return self


class Report(Section):
    samples: CountOrZero
    gates: list[Gate]


class Machine(Section):
    """How it runs, not what comes out: no stage declares this section to DVC, so changing it reruns nothing."""

    device: Literal["auto", "cpu", "cuda"]
    devices: Count | Literal["auto"]
    sharding: Literal["none", "fsdp"]
    nodes: Count
    rendezvous: Annotated[str, Field(pattern=r"^[\w.:\[\]-]+:\d{1,5}$")] | None
    attention: Literal["auto", "varlen", "sdpa", "eager"]
    memory: Literal["auto", "both", "activations", "weights", "low", "offload"]
    workers: Count | None
    save_steps: Count
    save_total_limit: Count
    report_to: Literal["none"] | Annotated[list[Tracker], Field(min_length=1)]

    @model_validator(mode="after")
    def machines_know_where_to_meet(self):
        if self.nodes > 1 and self.rendezvous is None:
            raise ValueError(
                "nodes above 1 needs rendezvous, the first machine and a free port, such as 10.0.0.1:29500"
            )
        return self


class Params(Section):
    seed: CountOrZero
    model: Model
    data: Data
    clean: Clean
    prompt: Prompt
    tokenize: Tokenize
    quantization: Quantization
    lora: Lora
    train: Train
    merge: Merge
    evaluate: Evaluate
    report: Report
    machine: Machine

    @model_validator(mode="after")
    def slices_are_kept(self):
        known = ["source", "length", *self.clean.keep_fields]
        if unknown := [name for name in self.evaluate.slices if name not in known]:
            raise ValueError(
                f"evaluate.slices names {', '.join(unknown)}; there are {', '.join(known)}. Name a column of your rows "
                "in clean.keep_fields too, so that it reaches the test split"
            )
        return self

    @model_validator(mode="after")
    def bits_fit(self):
        bits, init = self.quantization.bits, self.lora.init
        if init == "loftq" and bits != 4:
            raise ValueError(f"lora.init: loftq makes up for what 4 bits lose: quantization.bits is {bits}, not 4")
        if init in ("pissa", "olora") and bits != 16:
            raise ValueError(
                f"lora.init: {init} takes the base's main directions out of its weights, which in {bits} bits would "
                "have to be quantized anew, so that the adapter would fit no other copy of the base. Set "
                "quantization.bits: 16, or lora.init: loftq with 4 bits"
            )
        if bits == 8 and self.lora.variant == "dora":
            raise ValueError(
                "lora.variant: dora with quantization.bits: 8 loses the scales of the weights (PEFT 0.21 on the CPU). "
                "Set quantization.bits to 4 or 16, or lora.variant to lora or rslora"
            )
        plain = init == "default" and self.lora.variant != "dora" and bits != 8
        if self.machine.sharding == "fsdp" and not plain:
            raise ValueError(
                "machine.sharding: fsdp goes with lora.init: default, lora.variant: lora or rslora, and "
                "quantization.bits: 4 or 16: the others look at whole weights, which no process has. Set it to none"
            )
        if bits == 8 and self.merge.base == "dequantized":
            raise ValueError(
                "merge.base: dequantized is there for quantization.bits 4 and 16: LLM.int8 also rounds what flows "
                "through a layer, so that no weights give just its results. Set merge.base: original"
            )
        return self


def expanded(node: Node, known: dict[int, float]) -> float:
    """How many values a node stands for; an alias counts as all that it repeats. known: {id of a node: that}."""
    if id(node) not in known:
        known[id(node)] = float("inf")  # as long as it is within itself
        children = node.value if isinstance(node.value, list) else []
        inner = [each for child in children for each in (child if isinstance(child, tuple) else (child,))]
        known[id(node)] = 1 + sum(expanded(each, known) for each in inner)
    return known[id(node)]


class Bounded(Composer):
    """A few hundred bytes of aliases to aliases may stand for millions of values, in a file that a stranger wrote."""

    def get_single_node(self) -> Node | None:
        node = super().get_single_node()
        if node is not None and expanded(node, {}) > MOST_VALUES:
            raise YAMLError(f"with its aliases (*name) it stands for more than {MOST_VALUES:,} values")
        return node


def read_yaml_text(text: str) -> dict:
    """YAML 1.2, so that 2e-4 is a number."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Composer = Bounded
    return yaml.load(text)


def read_yaml(path: Path) -> dict:
    """The file as DVC reads it."""
    try:
        return read_yaml_text(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        advice = f"Copy a profile: cp profiles/tiny.yaml {path}" if path.name == PARAMS.name else "Restore it from Git"
        raise UserError(f"{path} is missing. {advice}") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None


def key_of(error: dict) -> str:
    """The key's full name, without pydantic's names for the branches of a union."""
    return ".".join(str(part) for part in error["loc"] if part not in ("float", "int") and "[" not in str(part))


def describe(errors: list[dict], where: str) -> str:
    """One line for all that is wrong with one key."""
    error = errors[0]
    if error["type"] == "extra_forbidden":
        return f"{where} is not a known key. Correct its spelling or take it out."
    if error["type"] == "missing":
        return f"{where} is missing. Every key must be set; profiles/ shows each with a comment."
    messages = dict.fromkeys(entry["msg"].removeprefix("Value error, ") for entry in errors)
    message = " or ".join(messages).replace(" or Input should be ", " or ")
    return f"{where}: {message}." if isinstance(error["input"], dict) else f"{where} is {error['input']!r}: {message}."


def load_params(path: Path = PARAMS) -> Params:
    """All of params.yaml, checked.

    Raises:
        UserError: one line for each key that is missing, unknown, or of a wrong type or value.
    """
    values = read_yaml(path)
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        found: dict[str, list[dict]] = {}
        for entry in error.errors():
            found.setdefault(key_of(entry), []).append(entry)
        lines = [describe(entries, f"{path}: {key}" if key else str(path)) for key, entries in found.items()]
        raise UserError("\n".join(lines)) from None
