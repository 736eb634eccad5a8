"""Settings: which are refused and with which message; how a run divides into steps."""

import dataclasses
import importlib
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from resnet_jax.config import (
  CheckpointConfig,
  Config,
  DataConfig,
  ModelConfig,
  OptimConfig,
  fields,
  serialization,
  values,
)
from resnet_jax.config.fields import flatten
from resnet_jax.config.meanings import describe_settings
from resnet_jax.config.plan import Plan
from resnet_jax.config.validation import validate
from resnet_jax.models import registry
from resnet_jax.runtime.errors import UserError

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))


def load(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_valid_and_survives_json(path):
  config = load(path).get_config()
  validate(config)
  assert serialization.from_json(serialization.to_json(config)) == config


def test_cifar10_siblings():
  module = load(Path(__file__).parents[1] / "configs" / "cifar10_resnet20.py")
  for name in module.VARIANTS:
    config = module.get_config(name)
    validate(config)
    assert config.model.name == name
    assert (config.optim.warmup_steps == 400) == (name in ("resnet110", "resnet1202"))
  with pytest.raises(ValueError, match=r"resnet21.*resnet20"):
    module.get_config("resnet21")


@pytest.mark.parametrize(
  ("path", "value", "allowed"),
  [
    ("seed", -1, "in \\[0"),
    ("num_epochs", 0.0, "> 0"),
    ("num_epochs", float("nan"), "a number"),
    ("num_steps", -1, "in \\[0, 2\\*\\*31\\)"),
    ("num_steps", 2**31, "in \\[0, 2\\*\\*31\\)"),
    ("batch_size", 0, "> 0"),
    ("batch_size", 128.0, "a whole number"),
    ("batch_size", True, "a whole number"),
    ("model.shortcut", "E", "'A', 'B', 'C', 'D', 'B3x3', 'highway', 'none'"),
    ("model.dtype", "float16", "'bfloat16'"),
    ("data.std", (0.0,), r"in \(0, 1\] for each channel, as pixels are scaled"),
    ("data.std", (58.0,), r"in \(0, 1\]"),
    ("data.mean", (0.5, 124.0, 0.5), r"in \[0, 1\] for each channel, as pixels are"),
    ("data.mean", (-0.1,), r"in \[0, 1\]"),
    ("data.mean", 0.5, "a tuple of numbers"),
    ("data.eval_resize", 30_000, r"in \[-1, 4096\]"),
    ("data.eval_crop", 4097, r"in \[-1, 4096\]"),
    ("data.train_resize", 4097, r"in \[0, 4096\]"),
    ("data.image_size", 4097, r"in \[1, 4096\]"),
    ("data.image_size", 0, r"in \[1, 4096\]"),
    ("data.num_threads", 10**9, r"in \[0, 1024\]"),
    ("data.num_workers", 10**9, r"in \[0, 1024\]"),
    ("augment.padding", 4097, r"in \[0, 4096\]"),
    ("augment.brightness", 1000.0, r"in \[0, 2\]"),
    ("augment.contrast", 2.1, r"in \[0, 2\]"),
    ("augment.saturation", -0.1, r"in \[0, 2\]"),
    ("augment.mixup", 1000.0, r"in \[0, 100\]"),
    ("augment.cutmix", 1000.0, r"in \[0, 100\]"),
    ("optim.learning_rate", "fast", "a number"),
    ("optim.learning_rate", float("inf"), "a number"),
    ("optim.learning_rate", -0.1, "> 0"),
    ("optim.momentum", 1.0, "in \\[0, 1\\)"),
    ("optim.decay_steps", (30, 20), "increasing"),
    ("optim.decay_epochs", ("a",), "a tuple of numbers"),
    ("optim.name", "sgdd", "'sgd', 'adam', 'adamw'"),
    ("checkpoint.keep", 0, ">= 1"),
  ],
)
def test_wrong_value_is_named_with_what_is_allowed(path, value, allowed):
  config = Config()
  *group, name = path.split(".")
  setattr(getattr(config, group[0]) if group else config, name, value)
  with pytest.raises(ValueError, match=f"config.{path}=.*{allowed}") as error:
    validate(config)
  assert repr(value) in str(error.value)


@pytest.mark.parametrize(
  "optim",
  [
    OptimConfig(decay_epochs=(1.0,), decay_steps=(10,)),
    OptimConfig(warmup_epochs=1.0, warmup_steps=10),
    OptimConfig(schedule="cosine", decay_steps=(10,)),
    OptimConfig(nesterov=True, momentum=0.0),
    OptimConfig(warmup="constant", warmup_steps=10),
  ],
)
def test_settings_that_exclude_each_other(optim):
  with pytest.raises(ValueError, match=r"config\.optim"):
    validate(Config(optim=optim))


@pytest.mark.parametrize(
  ("text", "kind"),
  [
    ("head=1,head=2", Mapping[str, float]),
    ("head=1, head =1", Mapping[str, float]),
    ("{[]}", tuple[int, ...]),
    ("(" * 10_000, tuple[int, ...]),
  ],
)
def test_text_that_is_no_value_is_refused(text, kind):
  with pytest.raises(ValueError, match=r"twice|no tuple"):
    values.parse_value(text, kind)


@pytest.mark.parametrize("epochs", [2.0**31, 1e18, 1.7e308])
def test_epochs_of_more_steps_than_are_counted_are_refused(epochs):
  config = Config(num_epochs=epochs, batch_size=10)
  validate(config)
  with pytest.raises(
    UserError, match=r"num_epochs=.* must be fewer than 2\*\*31 steps"
  ):
    Plan.create(config, 100)
  for optim in (
    OptimConfig(decay_epochs=(epochs,)),
    OptimConfig(decay_steps=(1, 2**31)),
  ):
    config = Config(num_steps=2**31 - 1, batch_size=10, optim=optim)
    validate(config)
    with pytest.raises(UserError, match=r"decay_(steps|epochs)=.* and < 2\*\*31"):
      Plan.create(config, 100)


@pytest.mark.parametrize(
  ("name", "advice"),
  [
    ("optim.lr", "did you mean config.optim.learning_rate?"),
    ("LR", "did you mean config.optim.learning_rate?"),
    ("optim.wd", "did you mean config.optim.weight_decay?"),
    ("bs", "did you mean config.batch_size?"),
    ("batch-size", "did you mean config.batch_size?"),
    ("epochs", "did you mean config.num_epochs?"),
    ("model", "did you mean config.model.name?"),
    ("workers", "did you mean config.data.num_workers?"),
    ("amp", "did you mean config.model.dtype?"),
    ("name", "did you mean config.model.name, config.data.name, config.loss.name?"),
    ("seeed", "did you mean config.seed?"),
    ("model.depth", "did you mean config.model.name?"),
    ("optim.momentun", "did you mean config.optim.momentum?"),
    ("augment.flipp", "did you mean config.augment.flip?"),
    (
      "modle.name",
      "did you mean config.model.name, config.loss.name, config.data.name?",
    ),
    ("gpus", "all devices are used; hide some with CUDA_VISIBLE_DEVICES"),
    ("output_dir", "--workdir names the run's directory"),
    ("qqq", "`resnet-jax train --help` lists all settings"),
  ],
)
def test_names_of_other_programs_lead_to_ours(name, advice):
  with pytest.raises(UserError) as error:
    fields.check_field_name(name)
  assert str(error.value) == f"config.{name} is no setting; {advice}"


def test_names_of_other_programs_are_none_of_ours():
  known = fields.flatten(Config())
  assert fields._OTHER_NAMES.keys() <= known.keys()
  assert not (fields._SETTING_OF.keys() | fields._ADVICE_OF.keys()) & known.keys()


def test_unknown_name_gives_the_nearest():
  with pytest.raises(ValueError, match=r"config\.optim\.learning_rate"):
    fields.check_field_name("optim.lerning_rate")
  with pytest.raises(ValueError, match=r"config\.optim\.learning_rate"):
    fields.check_field_name("learning_rate")
  for path in fields.flatten(Config()):
    fields.check_field_name(path)


@pytest.mark.parametrize(
  "text",
  ["{", '{"sed": 1}', '{"optim": 3}', '{"seed": "1"}', "[]", '{"model": {"x": 1}}'],
)
def test_damaged_json_is_one_clean_error(text):
  with pytest.raises(ValueError, match=r"config\.|Expecting"):
    serialization.from_json(text)


def test_a_misspelt_name_in_a_config_file_is_an_error():
  with pytest.raises(AttributeError, match="lerning_rate"):
    Config().optim.lerning_rate = 0.3


def test_choices_of_the_model_are_those_of_the_zoo():
  allowed = {field.name: field for field in dataclasses.fields(ModelConfig)}
  tables = (
    ("stem", registry.STEMS),
    ("shortcut", registry.SHORTCUTS),
    ("norm", registry.NORMS),
  )
  for name, known in tables:
    for value in known:
      assert allowed[name].metadata["check"](value)
    assert str(list(known))[1:-1] in allowed[name].metadata["allowed"]


def test_resuming_refuses_a_changed_number_with_both_values():
  old = Config()
  new = dataclasses.replace(old, optim=OptimConfig(learning_rate=0.2), seed=7)
  with pytest.raises(ValueError) as error:
    serialization.check_resumable(old, new)
  for part in ("optim.learning_rate was 0.1 and is now 0.2", "seed was 0 and is now 7"):
    assert part in str(error.value)


def test_resuming_allows_what_leaves_the_steps_as_they_were():
  new = Config(num_epochs=9, num_steps=5, steps_per_call=3, log_every_steps=2)
  new.checkpoint = CheckpointConfig(every_steps=3, keep=7)
  # The error about an unreadable image advises to set these.
  new.data = DataConfig(on_error="skip", max_skip_share=0.5)
  serialization.check_resumable(Config(), new)


@pytest.mark.parametrize("schedule", ["cosine", "poly"])
def test_resuming_a_decrease_to_0_refuses_another_length(schedule):
  old = Config(num_steps=5, optim=OptimConfig(schedule=schedule))
  with pytest.raises(ValueError, match="num_steps was 5 and is now 6"):
    serialization.check_resumable(old, dataclasses.replace(old, num_steps=6))


def test_plan_of_the_imagenet_recipe():
  config = load(Path(__file__).parents[1] / "configs" / "imagenet_resnet.py")
  plan = Plan.create(config.get_config(), num_train_examples=1_281_167)
  assert plan.steps_per_epoch == 5004
  assert plan.num_steps == 90 * 5004
  assert plan.warmup_steps == 5 * 5004
  assert plan.decay_steps == (30 * 5004, 60 * 5004, 80 * 5004)


def test_the_modern_recipe_is_torchvisions():
  """Its source is vision/references/classification/README.md, ResNet-50 V2."""
  path = Path(__file__).parents[1] / "configs" / "imagenet_resnet50_modern.py"
  config = load(path).get_config()
  optim, augment, data = config.optim, config.augment, config.data
  assert (config.num_epochs, config.batch_size) == (600, 1024)
  assert (optim.learning_rate, optim.momentum, optim.weight_decay) == (0.5, 0.9, 2e-5)
  assert (optim.schedule, optim.warmup, optim.warmup_epochs) == ("cosine", "linear", 5)
  assert (optim.label_smoothing, augment.mixup, augment.cutmix) == (0.1, 0.2, 1.0)
  assert (augment.policy, augment.erasing) == ("trivial", 0.1)
  assert (data.image_size, data.eval_resize, data.eval_crop) == (176, 232, 224)


def test_num_steps_overrides_epochs():
  config = Config(num_steps=7, num_epochs=50, batch_size=10)
  assert Plan.create(config, 100).num_steps == 7


@pytest.mark.parametrize("start", [0, 1, 13])
def test_calls_stop_at_everything_due_and_at_epoch_ends(start):
  config = Config(
    num_steps=50,
    batch_size=10,
    steps_per_call=4,
    log_every_steps=3,
    eval_every_steps=11,
    checkpoint=CheckpointConfig(every_steps=5),
  )
  plan = Plan.create(config, num_train_examples=79)  # 7 steps an epoch
  step, ends = start, []
  while step < plan.num_steps:
    end = plan.call_end(step)
    assert step < end <= step + 4
    ends.append(end)
    step = end
  due = {
    step
    for step in range(start + 1, 51)
    if step % 3 == 0 or step % 11 == 0 or step % 5 == 0 or step % 7 == 0
  }
  assert due | {50} <= set(ends)
  assert [step for step in range(1, 51) if plan.eval_at(step)] == [11, 22, 33, 44, 50]
  assert [step for step in range(1, 51) if plan.save_at(step)] == sorted(
    {*range(5, 51, 5), 11, 22, 33, 44}
  )


@pytest.mark.parametrize(
  ("config", "message"),
  [
    (Config(batch_size=101), "batch_size=101.*at most.*100"),
    (
      Config(num_steps=50, optim=OptimConfig(decay_steps=(10,), warmup_epochs=1.0)),
      r"warmup_epochs=1\.0 ends at step 10.*first decay.*step 10",
    ),
    (
      Config(num_steps=50, optim=OptimConfig(decay_epochs=(1.0, 1.02))),
      r"decay_epochs=\(1\.0, 1\.02\) are steps \(10, 10\)",
    ),
    (
      Config(num_steps=50, optim=OptimConfig(swa_start_epochs=5.0)),
      r"swa_start_epochs=5\.0 is step 50.*before the end of the run at step 50",
    ),
  ],
)
def test_plan_refuses_what_does_not_fit(config, message):
  config.batch_size = config.batch_size if config.batch_size == 101 else 10
  with pytest.raises(ValueError, match=message):
    Plan.create(config, 100)


@pytest.mark.parametrize(
  ("settings", "log_every", "eval_every"),
  [
    ({}, 5, 5),  # Each epoch, as epochs have fewer than 50 steps.
    ({"batch_size": 1}, 50, 51),
    ({"log_every_steps": 7, "eval_every_steps": 8}, 7, 8),
    ({"log_every_epochs": 0.4, "eval_every_epochs": 2}, 2, 10),
    ({"log_every_epochs": 0.001, "eval_every_epochs": 1e-9}, 1, 1),
  ],
)
def test_periods_are_given_in_steps_or_in_epochs(settings, log_every, eval_every):
  config = Config(**{"num_steps": 60, "batch_size": 10} | settings)
  validate(config)
  plan = Plan.create(config, 51)
  assert (plan.log_every, plan.eval_every) == (log_every, eval_every)
  for step in range(61):
    due = [later for later in range(step + 1, 61) if plan.eval_at(later)]
    assert plan.evals_after(step) == len(due)


@pytest.mark.parametrize("name", ["log_every", "eval_every"])
def test_periods_in_steps_and_in_epochs_exclude_each_other(name):
  config = Config(**{f"{name}_steps": 44, f"{name}_epochs": 2.0})
  with pytest.raises(UserError) as error:
    validate(config)
  assert str(error.value) == (
    f"config.{name}_epochs=2.0 and config.{name}_steps=44 exclude each other; set one "
    "of them to 0"
  )


def test_settings_of_runs_without_periods_in_epochs_are_read():
  config = Config(log_every_steps=50, eval_every_steps=8)
  values = json.loads(serialization.to_json(config))
  del values["log_every_epochs"], values["eval_every_epochs"]
  assert serialization.from_json(json.dumps(values)) == config


def test_a_run_that_did_not_say_the_size_of_its_images_goes_on():
  old, new = Config(), Config()
  new.data.eval_resize = new.data.eval_crop = 8
  serialization.check_resumable(old, new)
  with pytest.raises(ValueError, match=r"data\.eval_crop was 8 and is now 7"):
    changed = dataclasses.replace(new, data=dataclasses.replace(new.data, eval_crop=7))
    serialization.check_resumable(new, changed)


def test_the_help_says_what_every_setting_means_and_its_value():
  config = Config(batch_size=77)
  config.optim.learning_rate_multipliers = {"head": 10}
  text = describe_settings(config)
  for path in flatten(config):
    _, _, rest = text.partition(f"  --config.{path} (")
    values, meaning, *_ = [*rest.split("\n"), ""]
    assert "; default: " in values and len(meaning.split()) > 2, path
  assert "--config.batch_size (a whole number > 0; default: 77)" in text
  assert "default: head=10)" in text
