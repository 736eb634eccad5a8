"""The fuzzing targets read their seeds and report undocumented behaviour."""

import fuzz_targets
import numpy as np
import pytest
import run
from fuzz_targets import SEEDS, TARGETS


def test_the_command_knows_all_targets():
  assert run.NAMES == tuple(TARGETS) == tuple(SEEDS)


@pytest.mark.parametrize("name", TARGETS)
def test_no_seed_is_a_finding(name):
  for seed in SEEDS[name]():
    TARGETS[name](seed)


@pytest.mark.parametrize(
  ("name", "module", "reader"),
  [
    ("weights", fuzz_targets.tensors, "_read"),
    ("images", fuzz_targets.decode, "open_image"),
    ("images", fuzz_targets.decode, "decode"),
    ("images", fuzz_targets.decode, "decode_part"),
    ("lists", fuzz_targets.folder, "list_images"),
  ],
)
def test_an_exception_of_another_kind_is_a_finding(name, module, reader, monkeypatch):
  def bug(*_):
    raise KeyError

  monkeypatch.setattr(module, reader, bug)
  with pytest.raises(KeyError):
    TARGETS[name](next(SEEDS[name]()))


@pytest.mark.parametrize("decoder", ["decode", "decode_part"])
def test_pixels_of_another_size_are_a_finding(decoder, monkeypatch):
  monkeypatch.setattr(fuzz_targets.decode, decoder, lambda *_: np.zeros((5, 5, 3)))
  with pytest.raises(AssertionError):
    fuzz_targets.images(next(SEEDS["images"]()))
