"""Finds the files of one config and one split of a hub data set, by the rules of the `datasets` library.

The data set's card, README.md, may name its configs with their files. Without it, the names of folders and files say to
which split a file belongs. No code of a data set is run.
"""

import contextlib
import re
import uuid
from collections.abc import Callable, Iterator
from glob import escape
from pathlib import Path
from urllib.parse import urlsplit

from stages._download_data.files import KNOWN_ENDINGS, file_rows, known_ending
from stages._download_data.text_files import TextSettings
from stages.core.hub import fetch, list_files
from stages.core.params import Data
from stages.runtime.counts import plural
from stages.runtime.errors import UserError

CARD_FILES = ["README.md", ".huggingface.yaml"]  # the second one's values replace those of the first
# What a card may say about a config without another reading of its files, besides what the readers find themselves.
READ_OR_HARMLESS = {"data_files", "data_dir", "default", "version", "description", "features", "drop_labels"}
READ_OR_HARMLESS |= {"sep", "delimiter", "encoding", "lines"}
# How the hub's own Parquet copies, the branch refs/convert/parquet, name their files.
CONVERTED = re.compile(r"([^/]+)/[^/]+/\d{4}\.parquet")
SHOWN_CONFIGS = 20
PARQUET_COPY = (
    "Set data.revision: refs/convert/parquet, where the hub keeps a copy of many data sets as Parquet: the next run "
    "names its commit. Or convert it, and set data.source: file"
)
Patterns = dict[str, list[str]]  # {split: patterns of its files}


@contextlib.contextmanager
def in_memory(names: list[str]) -> Iterator[str]:
    """Gives the address of a folder in memory with empty files of these names, for the library to search."""
    import fsspec
    from fsspec.implementations.memory import MemoryFile

    memory, folder = fsspec.filesystem("memory"), f"/{uuid.uuid4().hex}"
    paths = [f"{folder}/{name}" for name in names]
    memory.store.update({path: MemoryFile(memory, path) for path in paths})
    try:
        yield f"memory://{folder}"
    finally:
        for path in paths:
            del memory.store[path]


def check_inside(pattern: object, where: str) -> None:
    """Refuses a pattern of a card that leads out of the data set, such as to a file of this machine."""
    text = str(pattern)
    if urlsplit(text).scheme or text.startswith("/") or "::" in text or ".." in text.split("/"):
        raise UserError(
            f"{where}: its card names {text!r}, which is outside of the data set or inside an archive. "
            "Download it by hand, and set data.source: file"
        )


def read_configs(cards: list[Path], where: str) -> dict[str, dict]:
    """Returns {config: what the card says about it}. It is empty if the card names none.

    Raises:
        UserError: the card is not valid; the message names it.
    """
    import yaml
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import metadata_load

    content: dict = {}
    try:
        for card in cards:
            is_page = card.suffix == ".md"
            content |= (metadata_load(card) if is_page else yaml.safe_load(card.read_text(encoding="utf-8"))) or {}
        configs = MetadataConfigs.from_dataset_card_data({"configs": without_features(content.get("configs"))})
        return {str(name): dict(said) for name, said in configs.items()}
    except (ValueError, TypeError, AttributeError, KeyError, yaml.YAMLError) as error:
        line = next(iter(str(error).strip().splitlines()), "")
        raise UserError(
            f"{where}: the configs in its card {cards[0].name} are not valid ({line}). Take another commit, or "
            "download the files by hand and set data.source: file"
        ) from None


def without_features(configs: object) -> object:
    """Leaves out the types of the columns: the readers find them in the files."""
    if not isinstance(configs, list):
        return configs
    return [{key: value for key, value in config.items() if key != "features"} for config in configs]


def config_patterns(said: dict, base: str, where: str) -> Patterns:
    """Returns the patterns of each split of a config, relative to the data set.

    Args:
        said: what the card says about the config.
        base: the data set in memory.
    """
    from datasets.data_files import EmptyDatasetError, get_data_patterns, sanitize_patterns

    folder = str(said.get("data_dir") or "").strip("/")
    check_inside(said.get("data_dir") or "", where)
    prefix = f"{escape(folder)}/" if folder else ""
    try:
        given = said.get("data_files")
        patterns = sanitize_patterns(given) if given is not None else get_data_patterns(f"{base}/{prefix}".rstrip("/"))
    except EmptyDatasetError:
        return {}
    for pattern in (pattern for some in patterns.values() for pattern in some):
        check_inside(pattern, where)
    return {str(split): [f"{prefix}{pattern}" for pattern in some] for split, some in patterns.items()}


def matching(patterns: list[str], base: str) -> list[str]:
    """Returns the files of the data set in memory that match, in the order of their paths."""
    from datasets.data_files import resolve_pattern

    found: set[str] = set()
    for pattern in patterns:
        with contextlib.suppress(FileNotFoundError):
            found |= {path.removeprefix(f"{base}/") for path in resolve_pattern(pattern, base)}
    return sorted(found)


def of_one_kind(names: list[str]) -> list[str]:
    """Returns the files of the kind that most of them have, as the library does: a split has one kind of files."""
    from datasets.data_files import DataFilesList
    from datasets.load import infer_module_for_data_files_list
    from datasets.packaged_modules import _MODULE_TO_EXTENSIONS

    files = [name for name in names if not name.endswith(".zip")]
    module, _ = infer_module_for_data_files_list(files)
    return list(DataFilesList(files, []).filter(extensions=_MODULE_TO_EXTENSIONS[module])) if module else []


def configs_and_splits(configs: dict[str, dict], splits_of: Callable[[str], Patterns]) -> str:
    """Lists configs with their splits, as a part of a message."""
    shown = [f"{name} ({', '.join(splits_of(name)) or 'no data'})" for name in list(configs)[:SHOWN_CONFIGS]]
    hidden = len(configs) - len(shown)
    return "; ".join([*shown, *([f"and {hidden} more"] if hidden else [])])


def pick_config(configs: dict[str, dict], asked: str | None, there_are: Callable[[], str], where: str) -> str:
    """Returns the config that data.config names, or the only one or the card's default if it is null."""
    if asked is not None:
        if asked not in configs:
            raise UserError(f"data.config: {where} has no config {asked}. There are, with their splits: {there_are()}")
        return asked
    defaults = [name for name, said in configs.items() if name == "default" or said.get("default")]
    if len(configs) > 1 and len(defaults) != 1:
        raise UserError(
            f"data.config: {where} has several configs. Set data.config to one. There are, with their splits: "
            f"{there_are()}"
        )
    return defaults[0] if len(configs) > 1 else next(iter(configs))


def split_files(names: list[str], configs: dict[str, dict], data: Data) -> list[str]:
    """Returns the files of the config and split that `data` names, in the order of their paths.

    Args:
        names: all files of the data set.
        configs: {config: what the card says about it}; empty if the card names none.

    Raises:
        UserError: there is no such config or split; the message lists those that there are.
    """
    where = f"the data set {data.id}"
    names = [name for name in names if not name.startswith("/") and ".." not in name.split("/")]
    scripts = [name for name in names if name.endswith(".py")]
    hidden = {"dataset_infos.json", "dataset_info.json", "config.json", "dataset_dict.json"}
    if scripts and not any(known_ending(Path(name)) and name.split("/")[-1] not in hidden for name in names):
        raise UserError(
            f"data.id: {where} is a script ({scripts[0]}) without data files, and no code of a data set is run. "
            f"{PARQUET_COPY}"
        )
    converted = [CONVERTED.fullmatch(name) for name in names if name.endswith(".parquet")]
    if not configs and converted and all(converted):
        configs = {match[1]: {"data_dir": match[1]} for match in converted if match}
    configs = configs or {"default": {}}
    with in_memory(names) as base:

        def splits_of(name: str) -> Patterns:
            return config_patterns(configs[name], base, where)

        config = pick_config(configs, data.config, lambda: configs_and_splits(configs, splits_of), where)
        if unread := sorted(configs[config].keys() - READ_OR_HARMLESS):
            raise UserError(
                f"data.config: the card of {where} reads the config {config} with {', '.join(unread)}, which this "
                "pipeline does not. Download the files by hand, convert them, and set data.source: file"
            )
        splits = splits_of(config)
        if data.split not in splits:
            raise UserError(
                f"data.split: {where} has no split {data.split} in the config {config}. There are, with their "
                f"splits: {configs_and_splits(configs, splits_of)}"
            )
        files = matching(splits[data.split], base)
    chosen = of_one_kind(files)
    if not chosen or any(known_ending(Path(name)) is None for name in chosen):
        shown = ", ".join((chosen or files)[:3]) or "none"
        raise UserError(
            f"data.split: the files of the split {data.split} of {where} end in none of {KNOWN_ENDINGS} ({shown}). "
            f"{PARQUET_COPY}"
        )
    if left := [name for name in files if name not in chosen]:
        some = ", ".join(left[:3]) + (", …" if len(left) > 3 else "")
        are = "is of another kind" if len(left) == 1 else "are of other kinds"
        print(f"{plural(len(left), 'file')} of the split {data.split} {are} and not read: {some}")
    return chosen


def fetch_patterns(files: list[str], names: list[str]) -> list[str]:
    """Returns globs that match the files and no other of the names.

    The hub's client tries each glob on each name, so thousands of numbered files get one glob with [0-9] for a digit.
    """
    wanted, shapes = set(files), {name: re.sub(r"\d", "[0-9]", escape(name)) for name in names}
    mixed = {shape for name, shape in shapes.items() if name not in wanted}
    return sorted({escape(name) if shapes[name] in mixed else shapes[name] for name in files})


def hub_rows(data: Data) -> Iterator[dict]:
    """Yields every row of one split of a hub data set at the pinned commit. Only the files of this split are fetched.

    Raises:
        UserError: there is no such config or split, or the files cannot be fetched.
    """
    names = list_files(data.id, data.revision, "dataset", CARD_FILES, "data")
    cards = [name for name in CARD_FILES if name in names]
    folder = fetch(data.id, data.revision, "dataset", cards, "data") if cards else Path()
    configs = read_configs([folder / name for name in cards], f"the data set {data.id}")
    files = split_files(names, configs, data)
    folder = fetch(data.id, data.revision, "dataset", fetch_patterns(files, names), "data")
    for name in files:
        yield from file_rows(folder / name, name, TextSettings(data.encoding, data.delimiter))
