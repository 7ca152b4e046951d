"""Download the base model: params `model` → models/base, metrics/download_model.json.

models/base gets the configuration, the tokenizer and the safetensors weights, and nothing else. manifest.json is
written last: it says where they came from, how many parameters they hold, and the sha256 of every file.

    dvc repro download_model
"""

from stages.runtime.stage_options import stage_options

import json
import math
import re
import shutil
import tempfile
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages._download_model.checks import (
    CONFIG_FILE,
    INDEX_FILE,
    TOKENIZER_EXTRAS,
    TOKENIZER_FILES,
    check_vocabulary,
    check_weights,
    read_json_object,
    read_model_config,
    tensor_shapes,
    tokenizer_files,
    weight_files,
)
from stages.core.hub import fetch
from stages.core.params import Model, Params
from stages.core.paths import BASE, METRICS, read_json, sha256, whole_directory, write_json, write_text
from stages.core.tokenizer_files import wheel_file
from stages.runtime.errors import UserError
from stages.runtime.runner import Outcome, run_stage

GENERATION_FILE = "generation_config.json"
CARD_FILE = "README.md"
GIB = 1 << 30


def source_folder(model: Model) -> Path:
    """Returns the folder model.path, or the folder of the hub's local cache with the files of model.id.

    Raises:
        UserError: the folder does not exist, or the hub gives no files.
    """
    if model.source == "path":
        if not Path(model.path).is_dir():
            raise UserError(
                f"model.path: there is no folder {model.path}. Set it to a model folder, or set model.source: hub"
            )
        return Path(model.path)
    tokenizer = [*TOKENIZER_FILES, *TOKENIZER_EXTRAS] if model.tokenizer == "own" else []
    # Not *.safetensors: Mistral's repositories hold all weights a second time, in consolidated.safetensors.
    names = [CARD_FILE, CONFIG_FILE, GENERATION_FILE, INDEX_FILE, "model*.safetensors", *tokenizer]
    return fetch(model.id, model.revision, "model", names, "model")


def convert_tokenizer(version: str, target: Path) -> None:
    """Writes Mistral's tokenizer as transformers reads it, from the SentencePiece model in the mistral-common wheel.

    Args:
        version: v1, v2 or v3.
    """
    from sentencepiece import SentencePieceProcessor
    from transformers import LlamaTokenizer

    source = wheel_file(version)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "tokenizer.model").write_bytes(source.read_bytes())
        LlamaTokenizer.from_pretrained(folder, legacy=False, add_bos_token=True).save_pretrained(target)
    pieces = SentencePieceProcessor(model_proto=source.read_bytes())

    # transformers 5 ranks merges by id, SentencePiece by score. The two differ for runs of blanks: ranked by id,
    # indented code becomes other tokens than those that the model was trained on.
    def rank(merge: list[str]) -> tuple[float, int, int]:
        left, right = merge
        return -pieces.get_score(pieces.piece_to_id(left + right)), -len(left), -len(right)

    content = read_json(target / "tokenizer.json")
    content["model"]["merges"].sort(key=rank)
    write_text(target / "tokenizer.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def copy_and_hash(source: Path, target: Path) -> str:
    """Copies a file and returns its sha256.

    Raises:
        UserError: the file is damaged. Weights in the hub's cache are links to files that are named by their sha256.
    """
    size = source.stat().st_size
    if size > GIB:
        print(f"download_model: copying {source.name} ({size / GIB:.1f} GiB)", flush=True)
    shutil.copyfile(source, target)
    digest = sha256(target)
    blob = source.readlink().name if source.is_symlink() else ""
    if re.fullmatch("[0-9a-f]{64}", blob) and blob != digest:
        raise UserError(f"{source} is damaged: its sha256 is not {blob}. Delete {source.resolve()} and run it again")
    return digest


def licence(folder: Path) -> str | None:
    """Returns the licence that the model's card names, or None if no card can be read. The card is not copied."""
    try:
        block = re.match(r"---\s*\n(.*?)\n---", (folder / CARD_FILE).read_text(encoding="utf-8"), re.DOTALL)
        metadata = YAML(typ="safe", pure=True).load(block[1]) if block else None
    except (OSError, UnicodeDecodeError, YAMLError):
        return None
    value = metadata.get("license") if isinstance(metadata, dict) else None
    return value if isinstance(value, str) else None


def download_model(model: Model, target: Path) -> dict:
    """Checks the model, copies it into the empty folder `target`, and returns its manifest.

    Raises:
        UserError: the source is not a complete Mistral in safetensors with a tokenizer that fits, or the disk is full.
    """
    folder = source_folder(model)
    config = read_model_config(folder)
    weights = weight_files(folder)
    tensors = [name for name in weights if name != INDEX_FILE]
    shapes = tensor_shapes(folder, tensors)
    check_weights(folder, config, shapes)
    own = tokenizer_files(folder) if model.tokenizer == "own" else []
    if not own:
        convert_tokenizer(model.tokenizer.removeprefix("mistral-common-"), target)
    check_vocabulary((folder if own else target) / "tokenizer.json", config, model.tokenizer)
    names = [CONFIG_FILE, *([GENERATION_FILE] if (folder / GENERATION_FILE).is_file() else []), *own, *weights]
    for name in names:
        if name.endswith(".json"):
            read_json_object(folder / name)
    needed, free = sum((folder / name).stat().st_size for name in names), shutil.disk_usage(target).free
    if needed > free:
        raise UserError(
            f"{BASE} needs {needed / GIB:.1f} GiB, and its disk has {free / GIB:.1f} GiB free. Free some space "
            "(`dvc gc --workspace` removes from DVC's cache what no current file needs) and run it again"
        )
    files = {path.name: sha256(path) for path in target.iterdir()}
    files |= {name: copy_and_hash(folder / name, target / name) for name in names}
    for name in files:
        (target / name).chmod(0o644)
    return {
        "source": model.source,
        "id": model.id if model.source == "hub" else None,
        "revision": model.revision if model.source == "hub" else None,
        "path": model.path if model.source == "path" else None,
        "license": licence(folder),
        "parameters": sum(math.prod(shape) for shape in shapes.values()),
        "tensors": len(shapes),
        "bytes": sum((folder / name).stat().st_size for name in tensors),
        "files": files,
    }


def main(params: Params) -> Outcome:
    with whole_directory(BASE) as folder:
        manifest = download_model(params.model, folder)
        write_json(folder / "manifest.json", manifest)
    # A second file, because models/base is not pushed: `report` needs these figures and not the weights.
    write_json(METRICS / "download_model.json", {key: value for key, value in manifest.items() if key != "files"})
    origin = manifest["path"] or manifest["id"]
    return Outcome(f"{manifest['parameters']:,} parameters from {origin} in {BASE}")


if __name__ == "__main__":
    stage_options("download_model", __doc__)
    run_stage("download_model", main)
