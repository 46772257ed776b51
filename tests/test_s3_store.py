"""Stores on a real S3 endpoint (moto's server): written, resumed, damaged, read back; no credentials, no bucket."""

import numpy as np
import pytest

from interp.errors import InputError
from interp.extract import extract, prepare
from interp.remote import Remote
from interp.remote_extract import extract_to
from interp.store import ActivationStore, Damaged
from tests.toy_store import SITES, ToyModel, files_of, token_file

pytest.importorskip("s3fs")
server_module = pytest.importorskip("moto.server")
SMALL = {"max_length": 16, "token_budget": 32, "rows_per_shard": 50}
URL = "s3://bucket/runs/store"


@pytest.fixture
def s3(tmp_path, monkeypatch):
    import s3fs

    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true", "FSSPEC_S3_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    fs = s3fs.S3FileSystem()
    if not fs.exists("bucket"):  # the server keeps what earlier tests made
        fs.mkdir("bucket")
    for key in fs.find("bucket"):
        fs.rm_file(key)
    yield fs
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture
def file(tmp_path):
    return token_file(tmp_path / "t", [5, 30, 1, 17, 3, 64, 2, 9, 9, 9, 40, 33, 21, 8, 50])


def run(file, model=None, url=URL):
    one = model or ToyModel()
    return extract_to(
        Remote(url, waits=(0.0,)), lambda spool: prepare(one, file, SITES, spool, **SMALL), progress=False
    )


class Stops(ToyModel):
    def capture(self, tokens, sites, **options):
        if self.passes >= 6 and tokens.numel() > 1:
            raise KeyboardInterrupt
        return super().capture(tokens, sites, **options)


def test_written_resumed_elsewhere_read_and_repaired(s3, file, tmp_path, monkeypatch):
    whole = extract(ToyModel(), file, SITES, tmp_path / "w", progress=False, **SMALL)
    with pytest.raises(KeyboardInterrupt):
        run(file, Stops())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    second = ToyModel()
    store = run(file, second)
    assert second.passes < len(np.asarray(whole.ends)) * 3
    remote = Remote(URL)
    assert {name: remote.read(name) for name in remote.sizes()} == files_of(whole.path)
    store.verify()
    assert store.rows("resid_post.1", 0, len(store)).equal(whole.rows("resid_post.1", 0, len(whole)))
    key = "bucket/runs/store/shard-00001.safetensors"
    content = bytearray(s3.cat_file(key))
    content[-1] ^= 1
    s3.pipe_file(key, bytes(content))
    with pytest.raises(Damaged, match=r"shard-00001.safetensors is damaged"):
        ActivationStore.open(URL).verify()
    s3.rm_file(key)
    with pytest.raises(Damaged, match=r"shard-00001.safetensors is missing"):
        ActivationStore.open(URL)
    third = ToyModel()
    run(file, third).verify()
    assert 1 <= third.passes <= 3


def test_no_bucket(s3, file):
    with pytest.raises(InputError, match=r"cannot write s3://nowhere/store/plan.json: FileNotFoundError"):
        run(file, url="s3://nowhere/store")


def test_no_credentials(s3, file, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    type(s3).clear_instance_cache()
    with pytest.raises(InputError, match=r"no credentials for s3 were found .*AWS_ACCESS_KEY_ID"):
        run(file)
