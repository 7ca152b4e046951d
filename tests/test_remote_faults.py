"""`dvc push` and `dvc pull` while the S3 server fails in the middle of them; docs/reliability.md names these tests."""

import hashlib
import os
import shutil
import socket
import threading

import pytest
from werkzeug.serving import WSGIRequestHandler, make_server

from tests.support.repository import Repository

BUCKET, FILES = "storage", 8
WHOLE = 3  # objects that go through before the fault


class Quiet(WSGIRequestHandler):
    def log(self, *_):
        pass


class Server:
    """moto's S3 on this machine. Once `fault` is set, the objects after the first few meet with it."""

    def __init__(self):
        from moto.server import DomainDispatcherApplication, create_backend_app

        self.s3, self.port = DomainDispatcherApplication(create_backend_app), 0
        self.fault, self.met = None, 0
        self.lock, self.over = threading.Lock(), threading.Event()
        self.start()

    def start(self):
        self.server = make_server("127.0.0.1", self.port, self, threaded=True, request_handler=Quiet)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def begin(self, fault):
        self.fault, self.met = fault, 0
        self.over.clear()

    def end(self):
        fault, self.fault = self.fault, None
        self.over.set()
        if fault == "gone":
            self.start()

    def __call__(self, environment, start):
        of_object = environment["REQUEST_METHOD"] in ("GET", "PUT") and "/files/md5/" in environment["PATH_INFO"]
        if self.fault is None or not of_object:
            return self.s3(environment, start)
        with self.lock:
            self.met += 1
            number = self.met
        return self.s3(environment, start) if number <= WHOLE else getattr(self, self.fault)(environment, start, number)

    def answers_500(self, environment, start, _):
        environment["wsgi.input"].read(int(environment.get("CONTENT_LENGTH") or 0))
        start("500 Internal Server Error", [("Content-Length", "0")])
        return [b""]

    def slow(self, environment, start, _):
        """Right, and later than the client is told to wait."""
        self.over.wait(5)
        return self.s3(environment, start)

    def gone(self, environment, _, number):
        if number == WHOLE + 1:
            threading.Thread(target=self.stop).start()
        raise self.cut(environment)

    def half_a_body(self, environment, start, _):
        if environment["REQUEST_METHOD"] == "PUT":
            environment["wsgi.input"].read(int(environment["CONTENT_LENGTH"]) // 2)
            raise self.cut(environment)
        body = b"".join(self.s3(environment, start))

        def half():
            yield body[: len(body) // 2]
            self.cut(environment)

        return half()

    def cut(self, environment):
        environment["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        return ConnectionResetError()


@pytest.fixture(scope="module")
def s3():
    import boto3

    server = Server()
    keys = {"aws_access_key_id": "any", "aws_secret_access_key": "any", "region_name": "us-east-1"}
    server.client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{server.port}", **keys)
    server.client.create_bucket(Bucket=BUCKET)
    yield server
    server.end()
    server.stop()


CONFIG = """
[core]
    remote = storage
['remote "storage"']
    url = s3://{bucket}/{prefix}
    endpointurl = http://127.0.0.1:{port}
    verify = true
    connect_timeout = 1
    read_timeout = 1
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A folder of files in DVC."""
    folder = tmp_path_factory.mktemp("faults")
    for name in ("home", "clone/rows"):
        (folder / name).mkdir(parents=True)
    for number in range(FILES):
        (folder / f"clone/rows/{number}").write_bytes(os.urandom(50_000))
    repository = Repository(folder / "clone", folder / "site-cache")
    for name in [name for name in repository.environment if name.startswith("AWS_")]:
        del repository.environment[name]
    repository.environment |= {
        "HOME": str(folder / "home"),
        **{"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1"},
        **{"AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1"},  # s3fs tries five times as well
    }
    repository.run("sh", "-euc", "git init --quiet && dvc init --quiet && dvc add --quiet rows")
    return repository


def named_by_their_bytes(objects):
    """How many objects {name: bytes} there are, once each is known to have the name that its bytes give it."""
    for name, content in objects.items():
        assert hashlib.md5(content).hexdigest() == name.removesuffix(".dir"), name
    return len(objects)


def stored(s3, prefix):
    found = s3.client.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/files/md5/").get("Contents", [])
    keys = [entry["Key"] for entry in found]
    return {"".join(key.split("/")[-2:]): s3.client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}


def cached(repository):
    files = [path for path in (repository.folder / ".dvc/cache/files/md5").rglob("*") if path.is_file()]
    return {"".join(path.parts[-2:]): path.read_bytes() for path in files}


def meet(s3, repository, fault, *command, code):
    """What the command prints while the server fails so."""
    config = CONFIG.format(bucket=BUCKET, prefix=fault, port=s3.port)
    (repository.folder / ".dvc/config").write_text(config)
    s3.begin(fault)
    try:
        return repository.run(*command, code=code)
    finally:
        s3.end()
        assert s3.met > WHOLE


def forget(repository):
    """What there is, which is then neither in the workspace nor in the cache."""
    rows = repository.folder / "rows"
    before = {path.name: path.read_bytes() for path in rows.iterdir()}
    for folder in (rows, repository.folder / ".dvc/cache"):
        shutil.rmtree(folder)
    return before


def bring_the_rest(s3, repository, before):
    """After a pull that failed."""
    assert named_by_their_bytes(cached(repository)) < FILES
    assert not (repository.folder / "rows").exists(), "no folder with some of its files"
    repository.run("dvc", "pull")
    assert {path.name: path.read_bytes() for path in (repository.folder / "rows").iterdir()} == before
    assert named_by_their_bytes(cached(repository)) == FILES + 1


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["gone", "answers_500", "half_a_body"])
def test_what_a_failing_server_leaves_is_whole_and_the_next_push_and_pull_bring_the_rest(s3, repository, fault):
    printed = meet(s3, repository, fault, "dvc", "push", code=1)
    assert "failed to push data to the cloud" in printed
    assert named_by_their_bytes(stored(s3, fault)) < FILES
    repository.run("dvc", "push")
    assert named_by_their_bytes(stored(s3, fault)) == FILES + 1, "and the list of the folder's files"

    before = forget(repository)
    printed = meet(s3, repository, fault, "dvc", "pull", code=1)
    assert "failed to pull data from the cloud" in printed
    bring_the_rest(s3, repository, before)


@pytest.mark.slow
def test_a_slow_server_is_given_up_after_read_timeout_and_what_it_leaves_is_whole(s3, repository):
    # Of a push some uploads are waited for to their end, whatever read_timeout says, and some are not.
    meet(s3, repository, "slow", "sh", "-c", "dvc push || true", code=0)
    named_by_their_bytes(stored(s3, "slow"))
    repository.run("dvc", "push")
    assert named_by_their_bytes(stored(s3, "slow")) == FILES + 1
    before = forget(repository)
    assert "Read timeout" in meet(s3, repository, "slow", "dvc", "pull", code=1)
    bring_the_rest(s3, repository, before)
