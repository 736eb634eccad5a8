"""A trained network as teacher: its loss, its images, its classes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from running import train_config
from scipy.special import log_softmax, softmax

from resnet_jax import load
from resnet_jax.config import Config
from resnet_jax.data import ImageArrays
from resnet_jax.data.batches.preprocess import normalize
from resnet_jax.data.sources.built_in import load_digits
from resnet_jax.training.distillation import divergence
from resnet_jax.training.experiment import Experiment

TEACHER = "resnet8_digits"


def config_of(**settings) -> Config:
  config = Config(num_steps=2, batch_size=16, steps_per_call=1)
  config.model.name, config.model.dtype = "resnet8", "float32"
  config.data.name = "digits"
  config.distill.teacher = TEACHER
  for path, value in settings.items():
    group, _, name = path.partition("__")
    setattr(getattr(config, group) if name else config, name or group, value)
  return config


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_loss_against_a_direct_computation(temperature):
  random = np.random.default_rng(0)
  student, teacher = random.normal(size=(2, 5, 7)).astype(np.float32)
  p = softmax(teacher / temperature, axis=1)
  logs = log_softmax(student / temperature, axis=1)
  direct = temperature**2 * (p * (np.log(p) - logs)).sum(axis=1)
  args = jnp.asarray(student), jnp.asarray(teacher)
  np.testing.assert_allclose(divergence(*args, temperature), direct, rtol=1e-4)
  gradient = jax.grad(lambda x: divergence(x, args[1], temperature).sum())(args[0])
  # Hinton et al. 2015, equation 2, times T^2.
  expected = temperature * (softmax(student / temperature, axis=1) - p)
  np.testing.assert_allclose(gradient, expected, atol=1e-5)
  np.testing.assert_allclose(divergence(args[1], args[1], temperature), 0, atol=1e-6)


def test_the_teacher_sees_the_images_as_in_its_own_training():
  source = load_digits("test")
  names = source.class_names[::-1]
  other = ImageArrays(source.images, 9 - source.labels, names)
  config = config_of(data__mean=(0.2,), data__std=(0.7,))
  experiment = Experiment.create(config, train_data=other, eval_data=other)
  images = normalize(jnp.asarray(source.images[:8]), (0.2,), (0.7,), "rgb")
  teacher = jax.device_put(experiment.teacher.distillation)  # From the host.
  found = softmax(teacher.logits(images), axis=1)
  expected = np.asarray(load(TEACHER)(source.images[:8])["probabilities"])
  # The classes of the images are in reverse order.
  np.testing.assert_allclose(found[:, ::-1], expected, atol=1e-5)


def test_a_weight_mixes_the_losses_of_the_teacher_and_of_the_labels():
  losses = {}
  for teacher, weight in ((TEACHER, 1.0), (TEACHER, 0.25), ("", 1.0)):
    config = config_of(distill__teacher=teacher, distill__weight=weight)
    experiment = Experiment.create(config)
    state = experiment.initial_state()
    _, feed, _ = next(
      iter(experiment.train_data.train_chunks(experiment.data_key, 0, experiment.plan))
    )
    _, metrics = experiment.train_chunk(state, feed, 1)
    losses[teacher, weight] = float(metrics["loss"])
  mixed = 0.25 * losses[TEACHER, 1.0] + 0.75 * losses["", 1.0]
  assert losses[TEACHER, 0.25] == pytest.approx(mixed, rel=1e-5)


def first_loss(devices=None, **settings) -> float:
  # Group norm, because batch norm sees each part of a batch on its own.
  config = config_of(model__norm="group", **settings)
  experiment = Experiment.create(config, devices=devices)
  chunks = experiment.train_data.train_chunks(experiment.data_key, 0, experiment.plan)
  state = experiment.initial_state()
  _, metrics = experiment.train_chunk(state, next(iter(chunks))[1], 1)
  return float(metrics["loss"])


@pytest.mark.parametrize("more", [{"optim__accumulate": 2}, {"optim__sam_rho": 0.05}])
def test_the_loss_is_the_same_in_parts_and_with_sam(more):
  assert first_loss(**more) == pytest.approx(first_loss(), rel=1e-5)


@pytest.mark.several_devices
def test_the_loss_is_the_same_on_any_number_of_devices():
  one = first_loss(jax.devices()[:1])
  assert first_loss() == pytest.approx(one, rel=1e-5)


def test_a_resumed_run_with_a_teacher_is_exact(tmp_path):
  config = config_of(augment__mixup=1.0)
  train_config(config, tmp_path / "resumed")
  longer = dataclasses.replace(config, num_steps=4)
  resumed = train_config(longer, tmp_path / "resumed").state
  whole = train_config(longer, tmp_path / "whole").state
  jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
  with pytest.raises(ValueError, match=r"config\.distill\.temperature was 1\.0"):
    train_config(
      dataclasses.replace(
        longer, distill=dataclasses.replace(longer.distill, temperature=2.0)
      ),
      tmp_path / "resumed",
    )


def test_teachers_that_do_not_fit_are_refused(tmp_path):
  source = load_digits("test")
  colour = dataclasses.replace(source, images=source.images.repeat(3, axis=-1))
  renamed = dataclasses.replace(source, class_names=tuple("abcdefghij"))
  cases = [
    (colour, "is for images of 1 channel, and the images have 3"),
    (renamed, "has other classes than the images: they have 'a'"),
  ]
  for images, message in cases:
    experiment = Experiment.create(config_of(), train_data=images, eval_data=images)
    with pytest.raises(ValueError, match=message):
      train_config_of(experiment, tmp_path)
  numbers = ImageArrays(source.images, source.labels / 10, ("value",))
  config = config_of(data__labels="numbers")
  experiment = Experiment.create(config, train_data=numbers, eval_data=numbers)
  with pytest.raises(ValueError, match="needs a classification"):
    train_config_of(experiment, tmp_path)
  assert not (tmp_path / "run").exists()


def train_config_of(experiment, folder):
  from resnet_jax.training.trainer import train

  train(experiment, str(folder / "run"))
