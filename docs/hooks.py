"""MkDocs hooks: the generated pages, and links to files outside of docs/.

README.md is the start page. The pages of commands, models and Python names are made
from the package itself. If a page links to another file of the repository, that file
becomes a page too.
"""

import os
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import resnet_jax
from resnet_jax.cli.main import create_parser
from resnet_jax.cli.options import parsers_of_commands

_ROOT = Path(__file__).parents[1]
_README = "../README.md"
_LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)\s#]+)")


def on_files(files: Files, config: Any) -> Files:
  """Adds the generated pages."""
  os.environ["COLUMNS"] = "88"  # The width of a help text.
  start = _LINK.sub(_from_docs, (_ROOT / "README.md").read_text())
  made = {
    "index.md": start,
    "commands.md": _commands(),
    "models.md": _models(),
    "api.md": _names(),
  }
  texts = [start, *(page.read_text() for page in (_ROOT / "docs").glob("*.md"))]
  for link in sorted({link for text in texts for link in _LINK.findall(text)}):
    if link.startswith("../") and link != _README:
      made |= _as_page(_ROOT / link[3:])
  for path, content in made.items():
    files.append(File.generated(config, path, content=content))
  return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
  """Points links that leave docs/ to the pages generated from those files."""
  return _LINK.sub(lambda match: _inside(match[1]), markdown)


def _from_docs(match: re.Match[str]) -> str:
  """Turns a link of README.md into a link of a page in docs/."""
  link = match[1]
  return link.removeprefix("docs/") if link.startswith("docs/") else f"../{link}"


def _inside(link: str) -> str:
  if link == _README:
    return "index.md"
  if not link.startswith("../"):
    return link
  path = link[3:]
  return f"files/{path}" if path.endswith((".md", ".png")) else f"files/{path}.md"


def _as_page(path: Path) -> dict[str, str | bytes]:
  name = path.relative_to(_ROOT).as_posix()
  if path.suffix == ".png":
    return {f"files/{name}": path.read_bytes()}
  text = path.read_text()
  if path.suffix == ".md":  # Its own links would lead out of the site.
    return {f"files/{name}": re.sub(r"\[([^]]*)\]\((?!\w+:)[^)]*\)", r"\1", text)}
  return {f"files/{name}.md": f"# {name}\n\n```{path.suffix[1:]}\n{text}```\n"}


def _commands() -> str:
  """Returns the page of the command line: the help of each command."""
  parts = ["# Commands", "This page shows the output of `resnet-jax COMMAND --help`."]
  for command in parsers_of_commands(create_parser()):
    name = command.prog.removeprefix("resnet-jax ")
    parts += [f"## {name}", f"```text\n{command.format_help()}```"]
  return "\n\n".join(parts) + "\n"


def _models() -> str:
  """Returns the page of the networks, with their stages, and of trained weights."""
  lines = [
    "# Models",
    "`create_model(name)` and `--config.model.name=NAME` take these names. The "
    "parameters are counted with the number of classes of the data set that the "
    "architecture was published for: 1,000, or 10 of CIFAR-10.",
    "| name | parameters | blocks in each stage |\n|---|---|---|",
  ]
  for name in resnet_jax.MODELS:
    model = resnet_jax.create_model(name, scan=True)  # `scan` speeds up tracing.
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    stages = ", ".join(map(str, model.stage_sizes))
    lines[-1] += f"\n| `{name}` | {count:,} | {stages} |"
  lines += [
    "## Trained weights",
    "`load(name)`, `--weights NAME` and `--config.init_from=NAME` take these names.",
    "| name | data | test images | top-1 |\n|---|---|---|---|",
  ]
  for name in resnet_jax.weights.names():
    training = resnet_jax.weights.read_training(name)
    found = training["evaluation"]
    share = f"{100 * found['top1']:.2f} %"
    lines[-1] += f"\n| `{name}` | {training['data']} | {found['count']:,} | {share} |"
  return "\n\n".join(lines) + "\n"


def _names() -> str:
  """Returns the page of the names that users can import from `resnet_jax`."""
  lines = ["# API reference", "You can import these names from `resnet_jax`."]
  for file, names in resnet_jax._FILES.items():
    lines += [
      f"::: resnet_jax.{file}.{name}" for name in names.split() if name.isidentifier()
    ]
  return "\n\n".join([*lines, "::: resnet_jax.weights"]) + "\n"
