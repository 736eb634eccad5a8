"""The first lines of a run: network, data, length, teacher."""

import jax

from resnet_jax.training.experiment import Experiment
from resnet_jax.training.state import TrainState


def headline(experiment: Experiment, state: TrainState) -> list[str]:
  """Returns the lines that a run shows before its first step."""
  config, plan = experiment.config, experiment.plan
  train_data, eval_data = experiment.train_data, experiment.eval_data
  params = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  kind = experiment.mesh.devices.flat[0].device_kind
  count = experiment.mesh.size
  done = f", {int(state.step)} of them done" if state.step else ""
  too_long = plan.warmup_steps > plan.num_steps
  result = "the learning rate stays below its peak"
  if config.optim.warmup == "head":
    result = "only the head is trained"
  warning = (
    f"warning: the warmup of {plan.warmup_steps} steps is longer than the run, so "
    f"{result}"
  )
  ends = zip(plan.sizes, [*plan.size_steps, plan.num_steps], strict=True)
  sizes = ", ".join(f"{size} pixels to step {end}" for size, end in ends)
  return [
    f"{experiment.model_name} ({params:,} parameters, {config.model.dtype}) on "
    f"{experiment.data_name}: {train_data.num_examples:,} training and "
    f"{eval_data.num_examples:,} evaluation images of "
    f"{len(train_data.class_names):,} classes",
    *_describe_teacher(experiment),
    f"{plan.num_steps} step{'s' * (plan.num_steps > 1)} of {config.batch_size} "
    f"images{done}, on "
    f"{count} {kind} device{'s' * (count > 1)}, {experiment.kernels} kernels",
    *[f"size of the training images: {sizes}"] * bool(plan.size_steps),
    *[warning] * too_long,
  ]


def _describe_teacher(experiment: Experiment) -> list[str]:
  teacher, settings = experiment.teacher, experiment.config.distill
  if teacher is None:
    return []
  return [
    f"teacher: {settings.teacher}, {teacher.name} ({teacher.num_parameters:,} "
    f"parameters), temperature {settings.temperature:g}, weight {settings.weight:g}"
  ]
