"""Where the time of a run goes, and how much of the chips' peak rate it uses.

The time between two training lines is the time of the training calls, in which the
devices may wait for images, and the time of other activities.
"""

import time
from collections.abc import Mapping
from typing import NamedTuple

# What a run does besides training; "other" is, for example, compiling for a new size.
ACTIVITIES = "evaluation", "saving", "other"
# The keys of `TimeShares.take`.
KEYS = (
  *("images_per_s", "input_wait", "mfu", "time_train", "time_input"),
  *(f"time_{activity}" for activity in ACTIVITIES),
)
# Of the clock, in seconds. A short call may seem to take no time on Windows.
_RESOLUTION = time.get_clock_info("monotonic").resolution
_NOTABLE = 0.05  # Smaller shares are not shown.


class Lap(NamedTuple):
  """The time of one training call.

  Attributes:
    seconds: from the end of the previous call, or from the end of another activity, to
      the end of this call.
    waited: how many of these seconds the devices waited for the images of the call.
    others: the seconds of each activity between the previous call and this one.
  """

  seconds: float
  waited: float
  others: Mapping[str, float]


class TimeShares:
  """Adds up the time between two training lines."""

  def __init__(self) -> None:
    """Starts at 0."""
    self._reset()

  def _reset(self) -> None:
    self._seconds = self._waited = self._at_peak = 0.0
    self._others = dict.fromkeys(ACTIVITIES, 0.0)

  def add(self, lap: Lap, seconds_at_peak: float) -> None:
    """Adds a training call.

    Args:
      lap: the time of the call.
      seconds_at_peak: time that its operations would take at the peak rate of the
        devices; 0 if that is not known.
    """
    self._seconds += lap.seconds
    self._waited += min(lap.waited, lap.seconds)
    for activity, seconds in lap.others.items():
      self._others[activity] += seconds
    self._at_peak += seconds_at_peak

  def take(self, num_images: float) -> dict[str, float]:
    """Returns the values of a training line, and starts again at 0.

    Args:
      num_images: number of images in the added calls.

    Returns:
      "images_per_s" while training. If known, "input_wait" and "mfu": the fractions of
      the training time in which devices waited for images, and that the operations
      would take at the peak rate. "time_train", "time_input", "time_evaluation",
      "time_saving" and "time_other": fractions of the whole time, whose sum is 1.
    """
    seconds = max(self._seconds, _RESOLUTION)
    values = {"images_per_s": num_images / seconds}
    if self._waited:
      values["input_wait"] = self._waited / seconds
    if self._at_peak:
      values["mfu"] = self._at_peak / seconds
    whole = seconds + sum(self._others.values())
    values["time_train"] = (seconds - self._waited) / whole
    values["time_input"] = self._waited / whole
    for activity, seconds in self._others.items():
      values[f"time_{activity}"] = seconds / whole
    self._reset()
    return values


def describe_time(values: Mapping[str, float]) -> str:
  """Returns the end of a training line: the values that matter to a person; or ""."""
  text = ""
  if (mfu := values.get("mfu")) is not None:
    text += f", MFU {100 * mfu:.0f} %"
  if (share := values.get("input_wait", 0.0)) >= _NOTABLE:
    text += f", input-bound: waits {100 * share:.0f} %"
  others = [
    f"{activity} {100 * share:.0f} %"
    for activity in ACTIVITIES
    if (share := values.get(f"time_{activity}", 0.0)) >= _NOTABLE
  ]
  return text + f", time: {', '.join(others)}" * bool(others)
