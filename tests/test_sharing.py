"""What docs/sharing.md says, with a folder as storage and with servers on this machine that speak S3 and SSH."""

import asyncio
import getpass
import hashlib
import re
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
from ruamel.yaml import YAML

from stages._clean.private_data import redact, secret_kinds
from stages.core.yaml_files import read_yaml
from tests.support.project import ROOT, blocks, committed, tracked_files
from tests.support.repository import Repository

PAGE = "docs/sharing.md"
CONFIG = ROOT / ".dvc/config"
BUCKET = "storage"
KEYS = {"access_key_id": "AnIdForTests", "secret_access_key": "AKeyForTests"}


def block(start: str) -> str:
    """The page's bash block that begins so."""
    (found,) = [text for text in blocks(PAGE, "bash") if text.startswith(start)]
    return found


def commands(start: str) -> list[str]:
    """Its lines without their comments."""
    return [line.partition(" #")[0].strip() for line in block(start).splitlines()]


def models(clone: Repository) -> set[str]:
    """The models that are in a clone. Git brings only a page about them."""
    return {path.name for path in (clone.folder / "models").iterdir()} - {"README.md"}


@dataclass(frozen=True)
class Folder:
    """A folder as storage."""

    path: Path

    @property
    def address(self) -> str:
        return str(self.path)

    def names(self) -> set[str]:
        return {"".join(path.parts[-2:]) for path in (self.path / "files/md5").rglob("*") if path.is_file()}

    def replace(self, md5: str, content: bytes) -> None:
        path = self.path / "files/md5" / md5[:2] / md5[2:]
        path.chmod(0o644)
        path.write_bytes(content)


@dataclass(frozen=True)
class Bucket:
    """A bucket of the server at `endpoint`; `client` is boto3's."""

    endpoint: str
    client: object
    address: str = f"s3://{BUCKET}/pipeline"

    def names(self) -> set[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="pipeline/files/md5/")
        return {"".join(entry["Key"].split("/")[-2:]) for page in pages for entry in page["Contents"]}

    def replace(self, md5: str, content: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=f"pipeline/files/md5/{md5[:2]}/{md5[2:]}", Body=content)


@pytest.fixture(scope="module")
def bucket() -> Bucket:
    import boto3
    from botocore.config import Config
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        region_name="us-east-1",
        aws_access_key_id="any",
        aws_secret_access_key="any",
        config=Config(connect_timeout=60, read_timeout=60),
    )
    client.create_bucket(Bucket=BUCKET)
    yield Bucket(f"http://{host}:{port}", client)
    server.stop()


@dataclass(frozen=True)
class Host(Folder):
    """A folder of a machine that is reached by SSH at `port`; `home` has a key for it and knows its own."""

    port: int
    home: Path

    @property
    def address(self) -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}/{self.path.name}"


@pytest.fixture(scope="module")
def host(tmp_path_factory) -> Host:
    import asyncssh

    home, disk = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("disk")
    (home / ".ssh").mkdir(mode=0o700)
    key, own = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    key.write_private_key(home / ".ssh/id_ed25519")
    key.write_public_key(home / "authorized_keys")
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()

    async def listen():
        return await asyncssh.listen(
            "127.0.0.1",
            0,
            server_host_keys=[own],
            authorized_client_keys=str(home / "authorized_keys"),
            sftp_factory=lambda channel: asyncssh.SFTPServer(channel, chroot=str(disk)),
        )

    server = asyncio.run_coroutine_threadsafe(listen(), loop).result(60)
    port = server.get_port()
    (home / ".ssh/known_hosts").write_text(f"[127.0.0.1]:{port} {own.export_public_key().decode()}")
    yield Host(disk / "storage", port, home)
    server.close()
    loop.call_soon_threadsafe(loop.stop)


class Shared(NamedTuple):
    repository: Repository  # it has run and pushed
    storage: Folder | Bucket | Host

    def clone(self, folder: Path) -> Repository:
        """A colleague's, of what is in Git, with credentials of their own."""
        clone = self.repository.clone(folder)
        clone.environment |= SECLUDED
        if isinstance(self.storage, Bucket):
            for line in commands("dvc remote modify --local"):
                *command, name, _ = line.split()
                clone.run(*command, name, KEYS[name])
        if isinstance(self.storage, Host):
            clone.environment["HOME"] = str(self.storage.home)
        return clone


# No credentials of this machine, of a file that is not there, and no waiting for a cloud's metadata service.
SECLUDED = {
    "AWS_CONFIG_FILE": "/absent",
    "AWS_SHARED_CREDENTIALS_FILE": "/absent",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@pytest.fixture(scope="module", params=["folder", "s3", "ssh"])
def shared(request, first_run, tmp_path_factory) -> Shared:
    """A repository that has followed the page's first blocks."""
    folder = tmp_path_factory.mktemp("sharing")
    repository = first_run.clone(folder / "pipeline", with_data=True)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        repository.environment.pop(name, None)
    repository.environment |= SECLUDED
    first, *rest = commands("dvc remote add")
    if request.param == "folder":
        storage = Folder(folder / "storage")
    elif request.param == "ssh":
        storage = request.getfixturevalue("host")
        repository.environment["HOME"] = str(storage.home)
    else:
        storage = request.getfixturevalue("bucket")
        rest = [
            line.replace("http://localhost:9000", storage.endpoint) for line in commands("dvc remote modify storage")
        ] + rest
        repository.environment |= {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}
    repository.run("bash", "-euc", "\n".join([first.replace("s3://bucket/path", storage.address), *rest]))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        repository.environment.pop(name, None)
    return Shared(repository, storage)


def test_the_page_shows_both_ways_to_give_s3_its_keys():
    assert set(re.findall("storage ([a-z_]+) ", block("dvc remote modify --local"))) == KEYS.keys()


@pytest.mark.slow
def test_everything_but_the_base_is_pushed(shared):
    stored = shared.storage.names()
    hashes = shared.repository.hashes()
    assert hashes.pop("models/base") not in stored
    del hashes["metrics.json"]
    assert {md5 for md5 in hashes.values() if md5 not in stored} == set()


@pytest.mark.slow
def test_a_clone_of_git_alone_runs_nothing_brings_what_is_asked_for_and_makes_the_base_to_its_locked_hash(
    shared, tmp_path
):
    clone = shared.clone(tmp_path / "clone")
    nothing, some, everything = commands("dvc repro --pull")
    assert "Running stage" not in clone.run(*nothing.split())
    assert models(clone) == set()
    assert not (clone.folder / "data/raw").exists()

    clone.run(*some.split())
    assert (clone.folder / "reports/report.html").is_file()
    assert (clone.folder / "models/adapter/adapter_model.safetensors").is_file()
    assert models(clone) == {"adapter"}
    assert not (clone.folder / "data/raw").exists()

    assert re.findall(r"(?m)^Running stage '(.+)':$", clone.run(*everything.split())) == ["download_model"]
    assert clone.run("git", "status", "--porcelain") == "", "dvc.lock is as it was: the base has its hash"
    assert clone.ran("repro") == []
    assert clone.hashes() == shared.repository.hashes()


@pytest.mark.slow
@pytest.mark.parametrize("shared", ["folder"], indirect=True)
def test_a_stage_is_pulled_after_an_output_and_before_one_the_output_does_not_come(shared, tmp_path):
    """The second fails once DVC's issue 11075 is mended: then the page's lines on the order can go."""
    words = commands("dvc repro --pull")[1].split()
    assert words[2:] == ["models/adapter", "report"]
    for names, brought in ((words[2:], ["models/adapter", "reports"]), (words[:1:-1], ["reports"])):
        clone = shared.clone(tmp_path / "-".join(names).replace("/", "-"))
        clone.run("dvc", "pull", *names)
        assert [name for name in ("models/adapter", "reports") if (clone.folder / name).exists()] == brought, names


@pytest.mark.slow
@pytest.mark.parametrize("shared", ["folder"], indirect=True)
def test_a_pull_without_names_brings_all_but_the_base_and_ends_with_an_error_until_that_is_in_the_cache(
    shared, tmp_path
):
    clone = shared.clone(tmp_path / "clone")
    said = clone.run("dvc", "pull", code=1)
    assert said.partition("following targets:\n")[2].split("Is your")[0].split() == ["models/base"]
    absent = [name for name in clone.hashes() if not (clone.folder / name).exists()]
    assert absent == ["models/base"]
    clone.run("dvc", "repro", "--pull")
    clone.run("dvc", "pull")
    assert clone.ran("repro") == []


@pytest.mark.slow
@pytest.mark.parametrize("shared", ["folder"], indirect=True)
def test_after_a_change_a_clone_makes_the_base_before_a_stage_that_reads_it(shared, tmp_path):
    first, then = commands("dvc repro download_model")
    clone = shared.clone(tmp_path / "clone")
    clone.change("tokenize.max_length", 60)
    assert "Checkout failed" in clone.run(*then.split(), "tokenize", code=255)
    assert clone.ran(*first.split()[1:]) == ["hash_code", "download_model"]
    assert clone.ran(*then.split()[1:], "tokenize") == ["tokenize"]


def test_the_sizes_of_the_page_are_those_of_the_profile_tiny_in_dvc_lock():
    stages = YAML(typ="safe").load(committed("dvc.lock"))["stages"].values()
    sizes = {out["path"]: out["size"] for stage in stages for out in stage["outs"] if out["path"] != "metrics.json"}
    rows = re.findall(r"(?m)^\| (`.+?`) \|[^|]+\| ([\d.]+) MB", (ROOT / PAGE).read_text())
    for outputs, said in rows:
        names = re.findall("`(.+?)`", outputs)
        inside = [size for path, size in sizes.items() if any(Path(path).is_relative_to(name) for name in names)]
        assert float(said) == pytest.approx(sum(inside) / 1e6, rel=0.02), names
    assert len(rows) == 5


@pytest.mark.slow
def test_a_damaged_object_is_refused_and_a_mended_one_taken(shared, tmp_path):
    adapter = shared.repository.folder / "models/adapter/adapter_model.safetensors"
    whole = adapter.read_bytes()
    md5 = hashlib.md5(whole).hexdigest()
    assert md5 in shared.storage.names()
    clone = shared.clone(tmp_path / "clone")
    shared.storage.replace(md5, whole[:-1] + bytes([whole[-1] ^ 1]))
    printed = clone.run("dvc", "pull", "models/adapter", code=1)
    assert "models/adapter" in printed
    assert not (clone.folder / "models/adapter/adapter_model.safetensors").exists()
    shared.storage.replace(md5, whole)
    clone.run("dvc", "pull", "models/adapter")
    assert (clone.folder / "models/adapter/adapter_model.safetensors").read_bytes() == whole


@pytest.mark.slow
@pytest.mark.parametrize("shared", ["s3"], indirect=True)
def test_a_pull_without_credentials_says_so_and_config_local_is_not_in_git(shared, tmp_path):
    clone = shared.repository.clone(tmp_path / "without")
    clone.environment |= SECLUDED
    assert "credentials" in clone.run("dvc", "pull", "models/adapter", code=1).lower()
    clone = shared.clone(tmp_path / "with")
    assert KEYS["secret_access_key"] in (clone.folder / ".dvc/config.local").read_text()
    clone.run("dvc", "pull", "metrics/train.json")
    assert clone.run("git", "status", "--porcelain") == ""
    assert clone.run("git", "status", "--porcelain", "--ignored", ".dvc/config.local").startswith("!!")


@pytest.mark.slow
@pytest.mark.parametrize("shared", ["ssh"], indirect=True)
def test_ssh_lets_in_who_has_the_key_and_whatever_known_hosts_says_takes_the_host(shared, tmp_path):
    """The second fails once DVC's SSH looks at known_hosts: then the page's lines on the tunnel can go."""
    import asyncssh

    home = shutil.copytree(shared.storage.home, tmp_path / "home")
    known = home / ".ssh/known_hosts"
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    known.write_text(f"{known.read_text().split()[0]} {other}")
    clone = shared.clone(tmp_path / "clone")
    clone.environment["HOME"] = str(home)
    clone.run("dvc", "pull", "metrics/train.json")
    (home / ".ssh/id_ed25519").unlink()
    assert "permission denied" in clone.run("dvc", "pull", "models/adapter", code=1).lower()
    assert models(clone) == set()


@pytest.mark.slow
def test_an_artifact_comes_by_its_name_from_anywhere(shared, tmp_path):
    shared.repository.run("git", "init", "--quiet", "--bare", "--initial-branch=main", str(tmp_path / "pipeline.git"))
    shared.repository.run("git", "remote", "add", "origin", str(tmp_path / "pipeline.git"))
    shared.repository.run("git", "push", "--quiet", "origin", "main")
    shared.repository.run("bash", "-euc", block("git tag"))
    elsewhere = Repository(tmp_path, tmp_path / "site-cache")
    elsewhere.environment |= SECLUDED | {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}
    if isinstance(shared.storage, Host):
        elsewhere.environment["HOME"] = str(shared.storage.home)
    for line in commands("dvc artifacts get"):
        elsewhere.run(*line.replace("https://example.com/pipeline.git", str(tmp_path / "pipeline.git")).split())
    for name in ("adapter", "merged"):
        ours = shared.repository.folder / "models" / name
        assert {path.name: path.read_bytes() for path in ours.iterdir()} == {
            path.name: path.read_bytes() for path in (tmp_path / name).iterdir()
        }
    shared.repository.run("git", "remote", "remove", "origin")
    shared.repository.run("git", "tag", "--delete", "adapter@v1.0.0")


@pytest.mark.slow
def test_clones_on_one_machine_share_a_cache(first_run, tmp_path):
    one = first_run.clone(tmp_path / "one", with_data=True)
    other = first_run.clone(tmp_path / "other")
    place = str(tmp_path / "dvc-cache")
    lines = [line.replace("/srv/dvc-cache", place) for line in commands("mkdir")]
    one.run("bash", "-euc", "\n".join(lines))
    assert one.ran("repro") == []
    other.run("bash", "-euc", "\n".join(lines[1:]))
    other.run("dvc", "checkout")
    assert other.ran("repro") == []
    for folder in ("models/base", "reports"):
        assert sorted(path.name for path in (other.folder / folder).iterdir()) == sorted(
            path.name for path in (one.folder / folder).iterdir()
        )
    assert not any((other.folder / ".dvc/cache").glob("*"))
    assert other.run("git", "status", "--porcelain") == ""


@pytest.mark.slow
def test_gc_keeps_what_branches_and_experiments_use_and_removes_the_rest(first_run, tmp_path):
    repository = first_run.clone(tmp_path / "clone", with_data=True)
    cache = repository.folder / ".dvc/cache/files/md5"

    def objects() -> set[str]:
        return {"".join(path.parts[-2:]) for path in cache.rglob("*") if path.is_file()}

    before = objects()
    repository.run("dvc", "exp", "run", "--name", "kept", "--set-param", "report.samples=1")
    repository.run("git", "checkout", "--", ".")
    kept = objects() - before
    assert kept
    repository.run("dvc", "exp", "run", "--name", "dropped", "--set-param", "report.samples=0")
    repository.run("git", "checkout", "--", ".")
    repository.run("dvc", "checkout")
    dropped = objects() - before - kept
    assert dropped
    repository.run("dvc", "exp", "remove", "dropped")
    look, prune = commands("dvc gc")
    repository.run(*look.split())
    assert objects() == before | kept | dropped
    repository.run(*prune.split())
    assert objects() & dropped == set()
    assert objects() >= kept
    assert repository.ran("repro") == []
    repository.run("dvc", "exp", "apply", "kept")
    shutil.rmtree(repository.folder / "reports")
    repository.run("dvc", "checkout")
    assert read_yaml(repository.folder / "params.yaml")["report"]["samples"] == 1


def test_no_credential_is_in_git():
    """Of what Git tracks, and would if all were added; data sets, the tiny base and tests' made-up keys apart."""
    names = tracked_files()
    places = (".dvc", "docs/", "profiles/", "stages/", "tools/", "bench/", ".github/", ".ci/")
    files = [name for name in names if name.startswith(places) or "/" not in name]
    assert set(files) > {".dvc/config", "params.yaml", PAGE, "dvc.lock", "stages/train.py", "bench/clean.py"}
    assert not [name for name in files if "config.local" in name or name.endswith(".env")]
    assert not re.search(r"(?im)^\s*(user|password|\w*(key|token|secret|string|credential)\w*) *=", CONFIG.read_text())
    made_up = "AKIA" + "QWERTYUIOPASDFGH"
    assert redact(f"access_key_id = {made_up}", secret_kinds())[1], "a key of the kind that is looked for is found"
    texts = {name: (ROOT / name).read_text(errors="replace") for name in files}
    assert not [name for name, text in texts.items() if redact(text, secret_kinds())[1]]
