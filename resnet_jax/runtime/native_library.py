"""The compiled kernels: a library that is kept in the user's cache folder.

`start` compiles it in a thread, for example while JAX is imported. So this module must
not import JAX.

The library is code that this process runs, so the folder must be private
(`private_folder`). A file next to the library has the digest of its bytes. A library
that does not match its digest is compiled again.
"""

import atexit
import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import jaxlib
import jaxlib.version

from resnet_jax.runtime.private_folder import cache_dir, is_private, private_folder
from resnet_jax.runtime.terminal import printable

FOLDER = Path(__file__).parents[1] / "kernels" / "native"
_SOURCE = FOLDER / "kernels.cc"
# Five seconds are usual. A compiler that hangs must not stop a run for ever.
_COMPILE_LIMIT_S = 300
_DAY_S = 24 * 3600


class CompileError(Exception):
  """There is no library; the message is one line."""


# The compilers that run now, their threads, and whether the process is about to end.
_compilers: list[subprocess.Popen[bytes]] = []
_threads: list[threading.Thread] = []
_is_ending = threading.Event()


@functools.cache
def processor_flags() -> str:
  """Returns the processor's instruction sets, as Linux lists them."""
  try:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    return platform.processor()
  return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def has_accelerator_plugin() -> bool:
  """Whether JAX will use, or may have, another device than the CPU."""
  platforms = os.environ.get("JAX_PLATFORMS", "")
  if platforms:
    return "cpu" not in platforms.split(",")[0]
  plugins = "jax_plugins", "libtpu"
  return any(importlib.util.find_spec(name) for name in plugins)


@functools.cache
def start(dtype: str) -> "Future[ctypes.CDLL]":
  """Runs `load` in a thread and returns its future.

  If the process ends first, `stop` kills the compiler.

  Args:
    dtype: see `load`.
  """
  found: Future[ctypes.CDLL] = Future()

  def run() -> None:
    try:
      found.set_result(load(dtype))
    except BaseException as error:
      found.set_exception(error)

  _threads.append(threading.Thread(target=run, name="kernels", daemon=True))
  _threads[-1].start()
  return found


@atexit.register
def stop() -> None:
  """Kills the compilers of this process, and waits until their files are removed."""
  _is_ending.set()
  for compiler in tuple(_compilers):
    _kill(compiler)
  for thread in _threads:
    thread.join(5)


def load(dtype: str = "float32") -> ctypes.CDLL:
  """Loads the library for this machine, and compiles it if need be.

  If the library cannot be kept in `cache_dir`, it is compiled for this process only,
  and a line on standard error says why.

  Args:
    dtype: "float32" or "bfloat16", for which the kernels are.

  Raises:
    CompileError: there is no compiler, or it failed.
    OSError: there is no room for temporary files, or the compiler wrote no library.
  """
  command = _command(dtype)
  sources = [
    path.read_text() for path in [_SOURCE, *sorted(_SOURCE.parent.glob("[!.]*.h"))]
  ]
  made_of = sources, command, jaxlib.version.__version__, processor_flags()
  key = hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]
  try:
    library = private_folder(cache_dir()) / f"kernels-{key}.so"
    if not _is_whole(library):
      _remove_old(library.parent)
      _compile_and_keep(command, library)
    with contextlib.suppress(OSError):  # A cache may be read-only.
      os.utime(library)
    return _open(library)
  except (OSError, RuntimeError) as error:  # RuntimeError: no home folder.
    text = (
      "the kernels are compiled for this process only (XDG_CACHE_HOME can name another "
      f"cache folder): {error}"
    )
    print(printable(text), file=sys.stderr)
  with tempfile.TemporaryDirectory() as folder:
    library = Path(folder) / "kernels.so"
    _compile(command, library)
    return _open(library)  # It stays in memory without its file.


def _compiler() -> list[str]:
  """Returns the command of the C++ compiler."""
  text = os.environ.get("CXX")
  if text is None:
    if found := shutil.which("c++"):
      return [found]
    raise CompileError("there is no C++ compiler (c++, or $CXX)")
  try:
    words = shlex.split(text)
  except ValueError as error:
    raise CompileError(f"CXX={text!r} is no command: {error}") from error
  if not words:
    raise CompileError("CXX is empty: unset it, or name a C++ compiler")
  if (program := shutil.which(words[0])) is None:
    raise CompileError(f"CXX={text!r} names no program that can be run: {words[0]!r}")
  return [str(Path(program).absolute()), *words[1:]]


def _command(dtype: str) -> list[str]:
  """Returns the command that compiles, without `-o` and its file."""
  is_arm = platform.machine() in ("arm64", "aarch64")
  own = "-mcpu=native" if is_arm else "-march=native"
  flags = [
    "-std=c++17",
    "-O3",
    own,
    "-fPIC",
    "-shared",
    "-w",
    f"-D{dtype.upper()}_ONLY",
  ]
  include = Path(jaxlib.__file__).parent / "include"  # `jax.ffi.include_dir()`.
  return [*_compiler(), *flags, f"-I{include}", str(_SOURCE)]


def _open(library: Path) -> ctypes.CDLL:
  functions = ctypes.CDLL(str(library))
  if not hasattr(functions, "resnet_jax_lanes"):
    raise OSError(f"{library.name}: its functions are hidden or missing")
  return functions


def _is_whole(library: Path) -> bool:
  """Whether the library belongs to this user alone, and matches its digest."""
  try:
    info = library.lstat()
    return (
      stat.S_ISREG(info.st_mode)
      and is_private(info)
      and library.with_suffix(".digest").read_bytes() == _digest(library)
    )
  except OSError:
    return False


def _digest(library: Path) -> bytes:
  return hashlib.blake2b(library.read_bytes()).hexdigest().encode()


def _remove_old(folder: Path) -> None:
  """Removes unused files.

  These are libraries that were not loaded for 30 days (loading sets the modification
  time), and files of compilations that were killed more than a day ago.
  """
  now = time.time()
  for path in [*folder.glob("kernels-*.so"), *folder.glob("tmp*")]:
    with contextlib.suppress(OSError):  # Another process may do the same.
      age = now - path.lstat().st_mtime
      if path.suffix == ".so" and age > 30 * _DAY_S:
        path.unlink()
        path.with_suffix(".digest").unlink()
      elif path.suffix != ".so" and age > _DAY_S:
        shutil.rmtree(path)


def _compile_and_keep(command: list[str], library: Path) -> None:
  # If this process is killed, `_remove_old` removes its temporary files after a day.
  temporary = tempfile.TemporaryDirectory(
    dir=library.parent, ignore_cleanup_errors=True
  )
  with temporary as folder:
    made = Path(folder) / library.name
    _compile(command, made)
    made.chmod(0o700)  # Whatever the umask is.
    digest = made.with_suffix(".digest")
    digest.write_bytes(_digest(made))
    # After a power cut, both files are complete, or they do not match. Another process
    # may do the same at the same time; both libraries are identical.
    for path in (digest, made):
      with path.open("rb+") as file:
        os.fsync(file.fileno())
      path.replace(library.with_name(path.name))


def _compile(command: list[str], library: Path) -> None:
  print("compiling the kernels for this CPU, once; some seconds", file=sys.stderr)
  log = library.with_name("log")
  try:
    # The output goes to a file, as a helper process of the compiler could keep a pipe
    # open. The compiler runs in the folder, as paths of `private_folder` are valid in
    # one process only.
    with log.open("wb") as output:
      process = subprocess.Popen(
        [*command, "-o", library.name],
        cwd=library.parent,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
      )
  except OSError as error:
    raise CompileError(f"{command[0]} could not be run: {error.strerror}") from error
  _compilers.append(process)
  if _is_ending.is_set():
    _kill(process)
  try:
    status = process.wait(_COMPILE_LIMIT_S)
  except BaseException as error:
    _kill(process)
    process.wait()
    if not isinstance(error, subprocess.TimeoutExpired):
      raise
    raise CompileError(
      f"{command[0]} took more than {_COMPILE_LIMIT_S} s to compile {_SOURCE}"
    ) from error
  finally:
    _compilers.remove(process)
  if _is_ending.is_set():  # The folder may be gone already.
    raise CompileError("this process ends")
  lines = log.read_text(errors="replace").strip().splitlines()
  if status or not library.is_file():
    reason = next((line for line in lines if "error" in line), (lines or [""])[0])
    reason = reason or f"it ended with status {status} and made no library"
    raise CompileError(f"{command[0]} could not compile {_SOURCE}: {reason}")


def _kill(process: subprocess.Popen[bytes]) -> None:
  """Kills a compiler and the processes that it started."""
  with contextlib.suppress(OSError):
    os.killpg(process.pid, signal.SIGKILL)
