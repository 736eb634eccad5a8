"""Published peak rates of accelerators, for rooflines and model FLOPs utilisation.

Source for TPUs: Google's pages, docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, read
in November 2026. The rate of the network is the published all-reduce bandwidth of a pod
divided by its chips. The page of v5p has no such number; half of its bidirectional
bandwidth is used instead, a rule that holds for v5e and v6e.

Source for GPUs: NVIDIA's data sheets, dense bfloat16 tensor cores. Where a data sheet
gives only the rate with sparsity, this is half of it.
"""

import dataclasses

# Latency per chip that a message passes, about the value in "How to Scale Your Model"
# (Austin et al. 2025).
HOP_S = 1e-6


@dataclasses.dataclass(frozen=True)
class Chip:
  """Peaks of one chip.

  Attributes:
    flops_per_s: in bfloat16; a multiplication and an addition count as two.
    memory_bytes: capacity of the memory.
    memory_bytes_per_s: rate to and from memory.
    network_bytes_per_s: rate to other chips of the pod, over all links.
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

# Name of a JAX device (`device_kind`) -> operations per second in bfloat16. A chip of
# these TPUs is one device.
FLOPS_PER_S = {
  "TPU v4": CHIPS["v4"].flops_per_s,
  "TPU v5 lite": CHIPS["v5e"].flops_per_s,
  "TPU v5e": CHIPS["v5e"].flops_per_s,
  "TPU v5": CHIPS["v5p"].flops_per_s,
  "TPU v5p": CHIPS["v5p"].flops_per_s,
  "TPU v6 lite": CHIPS["v6e"].flops_per_s,
  "TPU v6e": CHIPS["v6e"].flops_per_s,
  "NVIDIA A100-SXM4-40GB": 312e12,
  "NVIDIA A100-SXM4-80GB": 312e12,
  "NVIDIA A100-PCIE-40GB": 312e12,
  "NVIDIA A100 80GB PCIe": 312e12,
  "NVIDIA H100 80GB HBM3": 989e12,
  "NVIDIA H100 PCIe": 756e12,
  "NVIDIA H200": 989e12,
  "NVIDIA L4": 121e12,
  "NVIDIA L40S": 362e12,
}
