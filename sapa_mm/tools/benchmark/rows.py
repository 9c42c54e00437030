"""The rows of the benchmark's results, and what its JSON holds of them."""

import dataclasses
from dataclasses import dataclass, field

PASSES = ('forward', 'forward+backward')
TRAINING_PASSES = ('train step', 'prediction')


@dataclass(frozen=True)
class Timing:
    """A `Timing` is what was measured of one pass; the figures are medians over the rounds.

    Attributes:
        extra_bytes: Peak bytes that a call allocates beyond its results.
        peak_bytes: Peak bytes that it allocates, its results included.
        peak_over_bilinear: These over those of bilinear interpolation; None if that was not timed.
        ms: Milliseconds of the device.
        ms_min_max: Least and most of them.
        launch_ms: Milliseconds until the call was launched.
        time_over_sapa_mm: Time over that of this project's operator; None if that was not timed.
        time_over_bilinear: Time over that of bilinear interpolation, likewise.
        least_bytes: Fewest bytes that a call can move.
        gb_per_s: These over the time, in 1e9 bytes per second.
        copy_gb_per_s: The bandwidth of a copy.
        of_copy: The former bandwidth as a share of the latter.
    """

    extra_bytes: int
    peak_bytes: int
    peak_over_bilinear: float | None
    ms: float
    ms_min_max: tuple[float, float]
    launch_ms: float
    time_over_sapa_mm: float | None
    time_over_bilinear: float | None
    least_bytes: int
    gb_per_s: float
    copy_gb_per_s: float
    of_copy: float

    def record(self) -> dict[str, object]:
        """Return what the JSON holds of it."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class NotTimed:
    """A `NotTimed` stands where a pass was not timed.

    Attributes:
        reason: Why, in a few words on one line.
        refused: Whether the reason is a wrong result.
    """

    reason: str
    refused: bool = False

    def record(self) -> dict[str, object]:
        """Return what the JSON holds of it."""
        return {'not_timed': self.reason, 'refused': self.refused}


@dataclass
class Row:
    """A `Row` is what was found of one candidate at one shape, dtype and layout.

    Attributes:
        shape: Name of the shape.
        dtype: Name of the dtype, such as ``'float32'``.
        layout: Name of the memory layout.
        candidate: Name of the candidate.
        first_call_s: Seconds of the first call of every pass that ran.
        error: Worst max|error| / max|reference|; None if nothing was checked.
        passes: The result of every pass, by its label in `PASSES`.
    """

    shape: str
    dtype: str
    layout: str
    candidate: str
    first_call_s: dict[str, float] = field(default_factory=dict)
    error: float | None = None
    passes: dict[str, Timing | NotTimed] = field(default_factory=dict)

    def record(self) -> dict[str, object]:
        """Return what the JSON holds of it: every pass under its label, no error if there is none.

        Returns:
            A dict that the json module can write.
        """
        return {
            'shape': self.shape,
            'dtype': self.dtype,
            'layout': self.layout,
            'candidate': self.candidate,
            'first_call_s': dict(self.first_call_s),
            **({} if self.error is None else {'error': self.error}),
            **{label: found.record() for label, found in self.passes.items()},
        }


@dataclass(frozen=True)
class ModelRow:
    """A `ModelRow` is what was found of one whole model; times are medians over the rounds.

    Attributes:
        config: CONFIG as it was given.
        parameters: Number of parameters, without those of auxiliary heads.
        flops: Multiply-adds of one image.
        ms: Milliseconds of a prediction.
        ms_min_max: Least and most of them.
        time_over_first: Time over that of the first model.
        flops_over_first: Multiply-adds over those of the first model.
    """

    config: str
    parameters: int
    flops: int
    ms: float
    ms_min_max: tuple[float, float]
    time_over_first: float
    flops_over_first: float


@dataclass(frozen=True)
class HostTiming:
    """A `HostTiming` is the time that one call takes of the host, a median over the rounds.

    Attributes:
        us: Microseconds.
        us_min_max: Least and most of them.
        time_over_bilinear: Time over that of bilinear interpolation.
    """

    us: float
    us_min_max: tuple[float, float]
    time_over_bilinear: float

    def record(self) -> dict[str, object]:
        """Return what the JSON holds of it."""
        return dataclasses.asdict(self)


@dataclass
class HostRow:
    """A `HostRow` is what was found of one candidate's host time.

    Attributes:
        candidate: Name of the candidate.
        autocast: Whether the forward ran under autocast.
        passes: The result of every pass, by its label in `PASSES`.
    """

    candidate: str
    autocast: bool
    passes: dict[str, HostTiming | NotTimed] = field(default_factory=dict)

    def record(self) -> dict[str, object]:
        """Return what the JSON holds of it: every pass under its label."""
        return {
            'candidate': self.candidate,
            'autocast': self.autocast,
            **{label: found.record() for label, found in self.passes.items()},
        }


@dataclass(frozen=True)
class ModelTiming:
    """A `ModelTiming` is what was measured of a training step or a prediction of a whole model.

    Attributes:
        ms: Milliseconds until the device was done, a median over the rounds.
        ms_min_max: Least and most of them.
        time_over_first: Time over that of the first model that could be timed.
        peak_bytes: Peak bytes of the device that the model and its step hold; None on a CPU.
        peak_over_first: These over those of the first model; None on a CPU.
    """

    ms: float
    ms_min_max: tuple[float, float]
    time_over_first: float
    peak_bytes: int | None
    peak_over_first: float | None

    def record(self) -> dict[str, object]:
        """Return what the JSON holds of it."""
        return dataclasses.asdict(self)


@dataclass
class TrainingRow:
    """A `TrainingRow` is what was found of the training of one whole model.

    Attributes:
        config: CONFIG as it was given.
        dtype: Precision of the training step; predictions are in float32.
        loss: The finite loss of the last step before the timed ones; None if there was none.
        passes: The result of every pass, by its label in `TRAINING_PASSES`.
    """

    config: str
    dtype: str
    loss: float | None = None
    passes: dict[str, ModelTiming | NotTimed] = field(default_factory=dict)

    def record(self) -> dict[str, object]:
        """Return what the JSON holds of it: every pass under its label."""
        return {
            'config': self.config,
            'dtype': self.dtype,
            'loss': self.loss,
            **{label: found.record() for label, found in self.passes.items()},
        }
