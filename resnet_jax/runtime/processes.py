"""Connects several processes to one run, and ends them together.

JAX connects the processes, but does not tell the others why one of them failed. The
others would abort, or wait for it in a collective operation, some of them for ever.
"""

import contextlib
import errno
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn, Protocol, runtime_checkable

import jax
from jax.experimental import multihost_utils

from resnet_jax.runtime.errors import UserError, clean_errors, show_error
from resnet_jax.runtime.interruption import exit_now
from resnet_jax.runtime.launchers import CONNECT_TIMEOUT_S, check_same_place, find_place
from resnet_jax.runtime.terminal import printable

# Time after which a silent process counts as lost.
HEARTBEAT_TIMEOUT_S = 30.0
# The same after a connection between processes broke.
_BROKEN_TIMEOUT_S = 3.0
# JAX itself aborts a process after half of this time. We must be earlier.
_JAX_HEARTBEAT_TIMEOUT_S = 120
_POLL_S = 0.5
# Errors that another process cannot cause.
_OWN = SystemExit, UserError, FloatingPointError, KeyboardInterrupt
_ERROR = "resnet_jax/error"
_BEATS = "resnet_jax/beats/"
_COUNT = "resnet_jax/num_processes"


@runtime_checkable
class _Store(Protocol):
  """The part of JAX's shared key-value store that is used here."""

  def key_value_set(
    self, key: str, value: str, allow_overwrite: bool = False
  ) -> None: ...

  def key_value_try_get(self, key: str) -> str:
    """Raises `JaxRuntimeError` if the key has no value."""
    ...

  def key_value_dir_get(self, key: str) -> list[tuple[str, str]]: ...

  def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str: ...


@contextlib.contextmanager
def connect(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> Iterator[None]:
  """Connects the processes of a run; an error in one of them ends all within 10 s.

  Call it before any other use of JAX. Without arguments, the values come from
  JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or else from the
  launcher: Slurm, Open MPI 4, Kubernetes (indexed Jobs and JobSets), Kubeflow, xpk, GKE
  or Cloud TPU. Without a launcher, the process is alone. If some processes are missing
  after 5 minutes, those that wait for them end with status 1.

  It does nothing if Ray or the user has called `jax.distributed.initialize` before.

  Args:
    coordinator: HOST:PORT at which process 0 listens. Give all three arguments or none.
    num_processes: number of processes of the run.
    process_id: index of this process, from 0.

  Raises:
    UserError: the arguments are wrong or incomplete, the launcher does not tell where
      process 0 is, or process 0 or an earlier connection has other values.
    OSError: process 0 cannot listen, or the connection fails.
  """
  if jax.distributed.is_initialized():
    check_same_place(num_processes, process_id)
    yield
    return
  place = find_place(coordinator, num_processes, process_id)
  if place is None:
    yield
    return
  address, count, index, devices = place
  gone = threading.Event()
  if index == 0:
    _check_port(address)
  target = _relay(address, gone) if index else address
  try:
    with _patience(address):
      jax.distributed.initialize(
        target,
        count,
        index,
        devices,
        initialization_timeout=2 * CONNECT_TIMEOUT_S,
        heartbeat_timeout_seconds=_JAX_HEARTBEAT_TIMEOUT_S,
      )
  except RuntimeError as error:  # Any error of the network.
    raise OSError(f"cannot connect at {address}: {error}") from error
  if count == 1:
    yield
    return
  with _Peers(count, index, gone).ending_together():
    yield


def _check_port(address: str) -> None:
  """Raises `OSError` if process 0 cannot listen.

  Without this check, JAX may crash, or silently share the port with another run.
  """
  port = address.rpartition(":")[2]
  bound = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS") or f"[::]:{port}"
  host, _, port = bound.rpartition(":")
  # Without a host, listen at all addresses of IPv4 and IPv6.
  host = "" if host == "[::]" else host.strip("[]")
  for family, kind, protocol, _, name in socket.getaddrinfo(
    host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
  ):
    try:
      with socket.socket(family, kind, protocol) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
          sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(name)
    except OSError as error:
      if error.errno in (errno.EADDRINUSE, errno.EACCES):
        raise OSError(
          f"cannot listen at {bound}: {error.strerror}; give another port by "
          "--coordinator, or by JAX_COORDINATOR_PORT if a launcher tells the address"
        ) from error


@contextlib.contextmanager
def _patience(address: str) -> Iterator[None]:
  """Prints after 10 s that this process waits; ends it after `CONNECT_TIMEOUT_S`."""

  def give_up() -> None:
    show_error(f"some processes did not come to {address} within {CONNECT_TIMEOUT_S} s")
    os._exit(1)

  text = f"waiting at {address} for the other processes, {CONNECT_TIMEOUT_S} s at most"
  timers = [
    threading.Timer(10, print, [printable(text)], {"file": sys.stderr, "flush": True}),
    threading.Timer(CONNECT_TIMEOUT_S, give_up),
  ]
  for timer in timers:
    timer.start()
  try:
    yield
  finally:
    for timer in timers:
      timer.cancel()


def _relay(address: str, gone: threading.Event) -> str:
  """Returns an address of this host that leads to `address`.

  JAX aborts a process when its connection to process 0 breaks, before anything can
  print the reason. A connection to the returned address stays open in that case, and
  `gone` is set.
  """
  host, _, port = address.rpartition(":")
  listener = socket.create_server(("127.0.0.1", 0))

  def serve() -> None:
    while True:
      own, _ = listener.accept()
      try:
        other = socket.create_connection((host.strip("[]"), int(port)), timeout=10)
      except OSError:
        own.close()  # JAX tries again.
        continue
      other.settimeout(None)
      for end in own, other:
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
      left = threading.Event()
      for function in send, receive:
        threading.Thread(target=function, args=(own, other, left), daemon=True).start()

  def send(own: socket.socket, other: socket.socket, left: threading.Event) -> None:
    with contextlib.suppress(OSError):
      _copy(own, other)
      left.set()
      other.shutdown(socket.SHUT_RDWR)

  def receive(own: socket.socket, other: socket.socket, left: threading.Event) -> None:
    with contextlib.suppress(OSError):
      _copy(other, own)
    if not left.is_set():
      gone.set()

  threading.Thread(target=serve, daemon=True).start()
  return f"127.0.0.1:{listener.getsockname()[1]}"


def _copy(source: socket.socket, target: socket.socket) -> None:
  while data := source.recv(2**16):
    target.sendall(data)


class _Silence:
  """Measures how long other processes have been silent.

  It counts only the time in which this process runs, because all processes may be
  suspended together.
  """

  def __init__(self) -> None:
    self._heard: dict[int, tuple[object, int]] = {}

  def of(self, process: int, beat: object) -> float:
    """Returns the seconds since `beat` changed; call it every `_POLL_S`."""
    before, polls = self._heard.get(process, (beat, -1))
    polls = polls + 1 if beat == before else 0
    self._heard[process] = beat, polls
    return polls * _POLL_S


class _Peers:
  """The other processes of a run; each process ends when another one fails."""

  def __init__(self, count: int, index: int, gone: threading.Event):
    """Takes the number of processes, the index of this one, and `gone` of `_relay`."""
    # JAX's shared store has no public name; Orbax uses it in the same way.
    shared: Any = jax._src.distributed
    self._store: _Store = shared.global_state.client
    self._count, self._index, self._gone = count, index, gone
    self._done, self._told, self._broken = (threading.Event() for _ in range(3))
    self._silence, self._beat = _Silence(), 0

  @contextlib.contextmanager
  def ending_together(self) -> Iterator[None]:
    """Ends all processes if one of them has an error."""
    for function in (self._talk, self._listen) if self._index else (self._talk,):
      threading.Thread(target=function, daemon=True).start()
    try:
      self._check_count()
      yield
      # Wait for all processes, so that a late error also ends all of them.
      multihost_utils.sync_global_devices("all is done")
    except BaseException as error:
      if isinstance(error, SystemExit) and not error.code:
        raise
      if not isinstance(error, _OWN):
        self._broken.set()
        if self._told.wait(_BROKEN_TIMEOUT_S + 2):
          threading.Event().wait()  # Another thread ends the process.
      status, reason = _show(error)
      self._done.set()
      self._tell(f"process {self._index}: {reason}")
      self._exit(status)
    finally:
      self._done.set()

  def _check_count(self) -> None:
    """Raises `UserError` if process 0 has another number of processes."""
    count = str(self._count)
    if self._index == 0:
      self._store.key_value_set(_COUNT, count)
      return
    first = self._store.blocking_key_value_get(_COUNT, 1000 * CONNECT_TIMEOUT_S)
    if first != count:
      raise UserError(
        f"process {self._index} has --num-processes={count} and process 0 has {first}; "
        "start all with the same"
      )

  def _talk(self) -> None:
    """Sends heartbeats, and ends this process when another one has failed."""
    while not self._done.wait(_POLL_S):
      self._beat += 1
      # If no process has failed, `_ERROR` has no value, and reading it raises an error.
      with contextlib.suppress(jax.errors.JaxRuntimeError):
        key = f"{_BEATS}{self._index}"
        self._store.key_value_set(key, str(self._beat), allow_overwrite=True)
        if self._index == 0:
          beats = dict(self._store.key_value_dir_get(_BEATS))
          for process in range(1, self._count):
            self._check_silence(process, beats.get(f"{_BEATS}{process}"))
        self._end(self._store.key_value_try_get(_ERROR), quiet=self._index > 0)

  def _listen(self) -> None:
    """Ends this process when process 0, which has the store, is gone or silent."""
    while not self._done.is_set():
      if self._gone.wait(_POLL_S):
        self._end("process 0 is gone; its own output may say why")
      # If process 0 does not answer a beat, `_talk` waits and sends no other.
      self._check_silence(0, self._beat)

  def _check_silence(self, process: int, beat: object) -> None:
    """Ends this process if another one is silent."""
    seconds = self._silence.of(process, beat)
    if seconds >= (_BROKEN_TIMEOUT_S if self._broken.is_set() else HEARTBEAT_TIMEOUT_S):
      self._end(
        f"process {process} has not been heard of for {seconds:.0f} s; its own output "
        "may say why"
      )

  def _tell(self, text: str) -> None:
    # The store keeps the first error, and refuses one from another process after it.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      self._store.key_value_set(_ERROR, text)

  def _end(self, text: str, quiet: bool = False) -> NoReturn:
    """Ends this process because of an error in another one."""
    if not quiet:
      show_error(text)
    self._told.set()
    if self._index == 0:
      self._tell(text)
    self._exit(1)

  def _exit(self, status: int) -> NoReturn:
    """Ends without JAX's shutdown, which would wait for the failed processes."""
    if self._index == 0:
      time.sleep(4 * _POLL_S)  # The others still read the store here.
    exit_now(status, was_stopped=False)


def _show(error: BaseException) -> tuple[int, str]:
  """Prints an error as a command does; returns the exit status and the message."""
  if isinstance(error, SystemExit):  # `errors.fail` has printed the reason.
    status, error = int(str(error.code)), error.__context__ or error
  else:
    try:
      with clean_errors():
        if _is_of_network(error):
          raise OSError(f"the connection to another process broke: {error}")
        raise error
    except SystemExit as end:
      status = int(str(end.code))
    except BaseException:
      status = 1
      sys.excepthook(type(error), error, error.__traceback__)
  return status, str(error) or type(error).__name__


def _is_of_network(error: BaseException) -> bool:
  """Whether a collective operation failed. Gloo's errors have the code UNKNOWN."""
  code = getattr(error, "error_code_string", "")
  return code in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "UNKNOWN")
