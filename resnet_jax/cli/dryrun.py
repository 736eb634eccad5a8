"""`resnet-jax dryrun`: its flags and its output."""

import argparse
import copy
import dataclasses
import json
import multiprocessing
import signal
import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from resnet_jax.cli.options import add_config, add_number, add_trust_code
from resnet_jax.cli.settings import load_config
from resnet_jax.runtime.errors import clean_errors
from resnet_jax.runtime.terminal import show

if TYPE_CHECKING:
  from resnet_jax.analysis.dryrun import Report, Topology

TEXT = (
  "Compile an experiment's training step for devices that this machine need not have. "
  "Print its memory, operations and collectives, and the least time that it can take "
  "at the peak rates of the chips. Any setting is a flag: --config.PATH=VALUE."
)
EXAMPLES = (
  "resnet-jax dryrun --config=digits --topology=cpu:1",
  "resnet-jax dryrun --config=imagenet_resnet --topology=v5e:2x2,v5e:4x4",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags."""
  add_config(parser)
  add_trust_code(parser)
  parser.add_argument(
    "--topology",
    metavar="T[,T...]",
    required=True,
    help="what to compile for, one or several with commas between: v4, v5e, v5p or v6e "
    "with the shape of a slice, such as v5e:4x4; or cpu with a number of devices, such "
    "as cpu:8",
  )
  add_number(
    parser,
    "--images-per-chip",
    "number of images per step on each chip, > 0 (default: batch_size of the config, "
    "divided by the number of chips)",
  )
  parser.add_argument(
    "--json",
    action="store_true",
    help="print one JSON object per topology instead of text",
  )


def run(args: argparse.Namespace) -> None:
  """Runs the dry run for each topology; `args.settings` are the --config.PATH flags.

  Raises:
    OSError: libtpu's compiler crashed, in its own process.
    SystemExit: in all other cases.
  """
  # Forking is safe, as JAX has not started here, and saves a second import.
  process = multiprocessing.get_context("fork").Process(target=_run, args=(args,))
  process.start()
  try:
    process.join()
  except KeyboardInterrupt:  # The process got it too, and prints a message.
    process.join()
  status = process.exitcode or 0
  if status < 0:
    raise OSError(
      f"the compiler crashed ({signal.Signals(-status).name}); its report is above; "
      "another topology, batch size or version of libtpu may pass"
    )
  sys.exit(status)


@clean_errors()
def _run(args: argparse.Namespace) -> None:
  from resnet_jax.analysis import dryrun

  base = load_config(args.config, args.settings, trust_code=args.trust_code)
  names = args.topology.split(",")
  dryrun.use_cpu_only(names)
  topologies = [dryrun.describe_topology(name) for name in names]
  reports = []
  for topology in topologies:
    config = copy.deepcopy(base)
    if args.images_per_chip:
      config.batch_size = args.images_per_chip * len(topology.devices)
    report = dryrun.rehearse(config, topology)
    reports.append(report)
    if args.json:
      print(json.dumps(dataclasses.asdict(report)), flush=True)
    elif len(names) == 1:
      show(*describe(report, topology).split("\n"))
  if not args.json and len(names) > 1:
    # Wider than a terminal, so that no row is wrapped and all can be copied.
    Console(width=150).print(tabulate(reports))


def describe(report: "Report", topology: "Topology") -> str:
  """Describes a report in a few lines."""
  title = (
    f"{report.topology}: {report.chips} chip{'s' * (report.chips > 1)}, "
    f"{report.batch_size} images a step, "
    f"{report.dtype}"
  )
  if not report.fits:
    return f"{title}\ndoes not fit: {report.problem}"
  parts = ", ".join(
    f"{name} {_short(size)}B" for name, size in report.memory.items() if name != "peak"
  )
  room = f" of {_short(topology.chip.memory_bytes)}B" if topology.chip else ""
  traffic = _short(report.memory_traffic)
  lines = [
    title,
    f"compiled in {report.compile_s:.0f} s",
    "per chip and step:",
    f"  memory      {_short(report.memory['peak'])}B{room}: {parts}",
    f"  operations  {_short(report.flops)}FLOP, {traffic}B accessed",
  ]
  lines += [
    f"  {c.kind}  {c.count} over {c.group} chips, {_short(c.bytes)}B"
    for c in report.collectives
  ]
  if report.step_s is not None and report.images_per_s is not None:
    times = {
      "compute": report.compute_s,
      "memory": report.memory_s,
      "network": report.network_s,
    }
    parts = ", ".join(f"{name} {_ms(time)} ms" for name, time in times.items())
    lines += [
      f"at the chip's peaks: {parts}",
      f"  at best {_ms(report.step_s)} ms a step, {report.images_per_s:,.0f} images/s, "
      f"bound by {report.bound}",
    ]
  return "\n".join(lines)


def tabulate(reports: list["Report"]) -> Table:
  """Returns a table with a row for each topology."""
  table = Table("topology", box=None)
  for name in (
    "images",
    "memory",
    "FLOP",
    "accessed",
    "collectives",
    "compute ms",
    "memory ms",
    "network ms",
    "images/s",
    "images/s/chip",
    "bound",
  ):
    table.add_column(name, justify="right")
  for report in reports:
    if not report.fits:
      table.add_row(report.topology, str(report.batch_size), "does not fit")
      continue
    count = sum(c.count for c in report.collectives)
    size = sum(c.bytes for c in report.collectives)
    speed = report.images_per_s
    table.add_row(
      report.topology,
      str(report.batch_size),
      f"{_short(report.memory['peak'])}B",
      _short(report.flops),
      f"{_short(report.memory_traffic)}B",
      f"{count}, {_short(size)}B" if count else "none",
      *map(_ms, (report.compute_s, report.memory_s, report.network_s)),
      "" if speed is None else f"{speed:,.0f}",
      "" if speed is None else f"{speed / report.chips:,.0f}",
      report.bound or "",
    )
  return table


def _ms(seconds: float | None) -> str:
  return "" if seconds is None else f"{1e3 * seconds:.2f}"


def _short(number: float) -> str:
  """Returns a number with three digits and a prefix, such as "12.3 M"."""
  for prefix in ("", "k", "M", "G"):
    if number < 1000:
      return f"{number:.3g} {prefix}"
    number /= 1000
  return f"{number:.3g} T"
