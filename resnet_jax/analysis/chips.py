"""Published peak rates of accelerators, for rooflines.

Of Google's TPU pages, docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, as read in
November 2026. The network's rate is a pod's published all-reduce bandwidth over its
chips; v5p's page has none, and half of its bidirectional bandwidth stands in, as it
would be for v5e and v6e.
"""

import dataclasses

# "How to Scale Your Model" (Austin et al. 2025) counts about this much for each chip
# that a message passes.
HOP_S = 1e-6


@dataclasses.dataclass(frozen=True)
class Chip:
  """Peaks of one chip.

  Attributes:
    flops_per_s: in bfloat16; a multiplication and an addition are two.
    memory_bytes: capacity.
    memory_bytes_per_s: to and from memory.
    network_bytes_per_s: sent to other chips of the pod, over all links.
  """

  flops_per_s: float
  memory_bytes: float
  memory_bytes_per_s: float
  network_bytes_per_s: float


CHIPS = {
  "v4": Chip(275e12, 32 * 2**30, 1200e9, 1.1e15 / 4096),
  "v5e": Chip(197e12, 16e9, 819e9, 51.2e12 / 256),
  "v5p": Chip(459e12, 95 * 2**30, 2765e9, 1200e9 / 2),
  "v6e": Chip(918e12, 32e9, 1638e9, 102.4e12 / 256),
}
