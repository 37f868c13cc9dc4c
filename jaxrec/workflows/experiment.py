"""What an experiment consists of: typed parts, which `jaxrec.experiments` makes of a config and the stages take.

Names and units of the fields are those of the config's options.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import flax.linen as nn

from jaxrec.attacks import Perturbation, Search
from jaxrec.audit.plan import Sweep
from jaxrec.training import Task
from jaxrec.types import Objective, Reconstructor


@dataclass(frozen=True)
class Masks:
  """Undersampling, one of the accelerations at random.

  Attributes:
    kind: one of `masks.KINDS`.
    center_fractions: share of central columns, by acceleration.
    accelerations: reduction factors.
  """

  kind: str
  center_fractions: tuple[float, ...]
  accelerations: tuple[int, ...]


@dataclass(frozen=True)
class Inserted:
  """Bright spots that are put into MR images.

  Attributes:
    count: in a slice.
    diameters: pixels, one is drawn.
    contrasts: in units of the image's scale, one is drawn.
  """

  count: int
  diameters: tuple[float, ...]
  contrasts: tuple[float, ...]


@dataclass(frozen=True)
class MRData:
  """MR scans and how they are read.

  Attributes:
    root: of the data set; empty for the phantom.
    challenge: `multicoil` or `singlecoil`.
    annotations: file of fastMRI+ boxes; empty for none.
    boxes: one of `annotations.POLICIES`.
    keep_slices: share of the middle slices.
    form: `kspace` for scans, `image` for zero-filled images.
    emulate_single_coil: combine the coils to one.
    masks: of training and validation.
    attack_masks: of the attack.
    workers: processes that read.
    phantom: arguments of `synthetic.write_dataset`.
    seed: of masks and of inserted spots.
    layout: `fastmri`, or `package.module:factory` of a source.
    range: of PSNR and SSIM, the `volume`'s or the `slice`'s.
    relative: images in units of their scale.
    added_noise: standard deviation, in units of the scale.
    inserted: spots, or `None`.
  """

  root: str
  challenge: str
  annotations: str
  boxes: str
  keep_slices: float
  form: str
  emulate_single_coil: bool
  masks: Masks
  attack_masks: Masks
  workers: int
  phantom: Mapping[str, Any]
  seed: int
  layout: str = 'fastmri'
  range: str = 'volume'
  relative: bool = False
  added_noise: float = 0.0
  inserted: Inserted | None = None


@dataclass(frozen=True)
class CTData:
  """Low-dose CT series and how they are read.

  Attributes:
    root: of the data set; empty for the phantom.
    patients: JSON file that splits them; empty for folders.
    offset: what images add to HU.
    patch: side of training patches; 0 for whole slices.
    evaluate_patch: the same in validation.
    centre_hu: bounds of a patch's mean around its centre; empty for none.
    patches_per_patient: in an epoch.
    keep_slices: share of the middle slices.
    workers: processes that read.
    phantom: arguments of `chest.write_dataset`.
    seed: of patches.
  """

  root: str
  patients: str
  offset: float
  patch: int
  evaluate_patch: int
  centre_hu: tuple[float, ...]
  patches_per_patient: int
  keep_slices: float
  workers: int
  phantom: Mapping[str, Any]
  seed: int


DataSet: TypeAlias = MRData | CTData


@dataclass(frozen=True)
class Model:
  """The network, made when it is needed: `factory.network`.

  Attributes:
    name: of `models.registry`, or `package.module:factory`.
    options: arguments of its factory.
    weights: file of published weights; empty for none.
    sha256: digest of that file, or `None`.
    checkpoint: run that trained it; empty for this one.
  """

  name: str
  options: Mapping[str, Any]
  weights: str
  sha256: str | None
  checkpoint: str


@dataclass(frozen=True)
class Critic:
  """The other network of a task, and its step size."""

  module: nn.Module
  learning_rate: float


@dataclass(frozen=True)
class Generator:
  """A generator of perturbations, which needs the size of a sample to be made.

  Attributes:
    name: `dcgan` or `kspace_generator`.
    options: arguments of its factory.
    learning_rate: of its optimiser.
    frozen: run whose network stays as it is; empty: it is trained too.
    radius: of the perturbations, relative to the sample.
  """

  name: str
  options: Mapping[str, Any]
  learning_rate: float
  frozen: str
  radius: float


@dataclass(frozen=True)
class Features:
  """What a perceptual loss compares.

  Attributes:
    network: run of a denoiser whose outputs are compared; empty for none.
    vgg: checkpoint of torchvision; empty for none.
    kind: of that checkpoint, `vgg16` or `vgg19`.
    sha256: its digest, or `None`.
  """

  network: str = ''
  vgg: str = ''
  kind: str = 'vgg16'
  sha256: str | None = None


# Fields of `Slice` that an autoencoder may model.
DOMAINS = ('input', 'target')


@dataclass(frozen=True)
class Described:
  """What an autoencoder or a flow is told of the network that it describes.

  Attributes:
    network: run of the network.
    domain: field of `Slice` that is modelled, one of `DOMAINS`.
    autoencoder: run whose codes a flow takes.
    layer: that a flow looks at; 0 for the output.
  """

  network: str
  domain: str
  autoencoder: str = ''
  layer: int = 0


@dataclass(frozen=True)
class Recipe:
  """What a network is trained for, and the parts of the task that a config decides.

  Attributes:
    name: of the task.
    made: its factory, in `jaxrec.training` or the user's own.
    options: numbers among the factory's arguments.
    perturbation: of robust tasks.
    search: of robust tasks.
    objective: of robust tasks.
    critic: of tasks with two players.
    generator: of the task `adversarial`.
    features: of a perceptual loss.
    described: of the tasks `cvae` and `flow`.
  """

  name: str
  made: Callable[..., Task]
  options: Mapping[str, Any]
  perturbation: Perturbation | None = None
  search: Search | None = None
  objective: Objective | None = None
  critic: Critic | None = None
  generator: Generator | None = None
  features: Features | None = None
  described: Described | None = None


@dataclass(frozen=True)
class Schedule:
  """The learning rate over the updates of a training.

  Attributes:
    name: one of `schedules.SCHEDULES`.
    warmup: share of the updates with a rising rate.
    final: of `cosine`, share of the rate that is left.
  """

  name: str = 'step'
  warmup: float = 0.0
  final: float = 0.0


@dataclass(frozen=True)
class Augmentation:
  """Movements of the patient and thermal noise in training examples.

  Attributes:
    moves: the largest ones, if there are any.
    probability: of movements, at the end of the training.
    noise: least and largest eta of the noise that is added, or `None`.
  """

  moves: Perturbation | None
  probability: float
  noise: tuple[float, float] | None


@dataclass(frozen=True)
class Training:
  """How a network is trained.

  Attributes:
    task: what for.
    batch_size: over all devices.
    num_steps: of training; 0: `num_epochs` decides.
    num_epochs: of training.
    loss: one of `tasks.LOSSES`.
    optimizer: adam, adamw or rmsprop.
    learning_rate: step size.
    drop_at: share of the steps after which the rate falls; 0: never.
    drop_factor: by which it falls.
    weight_decay: of adamw.
    validate_every: steps; 0: an epoch.
    max_validation: examples; 0: all.
    report_every: steps.
    tensorboard: write events.
    best: score that chooses the checkpoint: loss, ssim or psnr; `last` for the newest,
      where those who validate are judged afterwards.
    patience: validations without progress after which it ends; 0: none.
    b1: of adam.
    micro_batch: examples of a device at a time; 0: what fits.
    checkpoint_minutes: between checkpoints.
    start_from: file of fastMRI weights; empty for none.
    schedule: of the learning rate.
    augment: movements of the examples and noise in them, or `None`.
    ema_decay: of the mean of the weights that is kept; 0: the weights themselves.
    pictures: slices that are shown at every validation.
  """

  task: Recipe
  batch_size: int
  num_steps: int
  num_epochs: float
  loss: str
  optimizer: str
  learning_rate: float
  drop_at: float
  drop_factor: float
  weight_decay: float
  validate_every: int
  max_validation: int
  report_every: int
  tensorboard: bool
  best: str
  patience: int
  b1: float = 0.9
  micro_batch: int = 0
  checkpoint_minutes: float = 10.0
  start_from: str = ''
  schedule: Schedule = Schedule()
  augment: Augmentation | None = None
  ema_decay: float = 0.0
  pictures: int = 0


@dataclass(frozen=True)
class Attack:
  """What the trained network is attacked with.

  Attributes:
    sweeps: attacks by name.
    generators: run of the generator whose draws start a sweep, by its name.
    attacked: out of `AIMS`.
    batch_size: slices per device; 0: what fits.
    chunk: strengths computed together; 0: what fits.
    max_examples: of a split; 0: all.
    pictures: boxes whose images are kept.
    strict: whether bad input stops the attack.
    splits: that are attacked.
    sees: whether searches look at the `defence` or at the `network` alone.
    draws: of a random defence, in the expectation.
    lipschitz_iterations: of the amplification; 0: left out.
    surrogate: run whose network the searches look at; empty: this one.
  """

  sweeps: Mapping[str, Sweep]
  generators: Mapping[str, str]
  attacked: tuple[str, ...]
  batch_size: int
  chunk: int
  max_examples: int
  pictures: int
  strict: bool
  splits: tuple[str, ...]
  sees: str
  draws: int
  lipschitz_iterations: int
  surrogate: str = ''


@dataclass(frozen=True)
class Evaluation:
  """Whole volumes that are reconstructed and scored.

  Attributes:
    split: `val` or `test`.
    batch_size: slices of a device at a time.
  """

  split: str
  batch_size: int


@dataclass(frozen=True)
class Forecast:
  """What the stage `plan` compiles.

  Attributes:
    targets: devices.
    programs: `train` and names of sweeps.
    shape: of a scan `coils, rows, cols`, of an image `rows, cols`.
    crop: rows and columns of the target.
  """

  targets: tuple[str, ...]
  programs: tuple[str, ...]
  shape: tuple[int, ...]
  crop: tuple[int, ...]


@dataclass(frozen=True)
class Report:
  """What a report shows.

  Attributes:
    draws: bootstrap draws over patients.
    runs: folders of further runs.
    generators: runs whose adversarial training is shown.
  """

  draws: int
  runs: tuple[str, ...] = ()
  generators: tuple[str, ...] = ()


@dataclass(frozen=True)
class Detection:
  """Structures, and the observer that judges what networks retain of them.

  Attributes:
    networks: labels of the networks, by run.
    diameters: of structures, mm in CT and pixels in MR.
    aims: detectabilities in the input that contrasts are made for.
    side: of a site, pixels.
    reach: of the observer on each side of a structure, pixels.
    slices: of a volume.
    sites: of a slice.
    repeats: scans of a site.
    few: scans that are shown with structures.
    calibration: sites of a slice of training patients, for the contrasts; of MR their
      scans, `repeats` of each site.
    folds: groups of patients.
    level: of intervals.
    draws: bootstrap draws.
    searched_aims: aims whose structures the search for witnesses takes.
    num_steps: of that search; 0 leaves it out.
  """

  networks: Mapping[str, str]
  diameters: tuple[float, ...]
  aims: tuple[float, ...]
  side: int
  reach: int
  slices: int
  sites: int
  repeats: int
  few: int
  calibration: int
  folds: int
  level: float
  draws: int
  searched_aims: tuple[float, ...]
  num_steps: int


@dataclass(frozen=True)
class Sampler:
  """Runs of the models that describe what a network leaves open.

  Attributes:
    network: whose inputs are sampled.
    autoencoder: of its inputs.
    flows: the layer that each run looks at, 0 for the output.
    anatomies: autoencoder and flow of the high-dose domain, or nothing.
  """

  network: str
  autoencoder: str
  flows: Mapping[str, int]
  anatomies: tuple[str, ...]


@dataclass(frozen=True)
class Invariances:
  """How samples are drawn and judged.

  Attributes:
    num_samples: of an input.
    chunk: computed together.
    corrections: steps towards the same output.
    sites: without structures, of a patient.
    others: patients whose outputs serve as mismatched conditions.
    alpha: share of structure-free inputs that may be called altered.
    scales: of excess variation, pixels.
    scans: of a patient, for the start of the flow; the yardsticks take all of a site.
    pictures: inputs of a network that are shown.
    shown: samples of each.
    samplers: of the networks.
  """

  num_samples: int
  chunk: int
  corrections: int
  sites: int
  others: int
  alpha: float
  scales: tuple[float, ...]
  scans: int
  pictures: int
  shown: int
  samplers: tuple[Sampler, ...] = ()


@dataclass(frozen=True)
class Known:
  """Networks whose answer is known, and the scans that they are tried on.

  Attributes:
    side: of images, pixels.
    diameters: of structures, pixels.
    aims: detectabilities in the input that contrasts are made for.
    removed: largest structures that the projection removes, pixels.
    patients: that are judged.
    sites: of a patient.
    scans: of a site.
    few: scans that are shown with structures.
    reference: patients of the independent observer.
    level: of intervals.
    draws: bootstrap draws.
    searched_aims: aims whose structures the search for witnesses takes.
    num_steps: of that search; 0 leaves it out.
    bottleneck: a denoiser that pools.
    train_steps: of the bottleneck.
    learning_rate: of the bottleneck.
    batch_size: of all trainings; flows take twice as many.
    sampled: names of the networks that are sampled.
    sampled_aims: aims whose structures are sampled.
    vae: autoencoder of inputs.
    weights: of its loss.
    critic: of its loss.
    vae_steps: of its training.
    vae_learning_rate: of its training.
    flow: of its codes.
    flow_steps: of its training.
    flow_learning_rate: of its training.
  """

  side: int
  diameters: tuple[float, ...]
  aims: tuple[float, ...]
  removed: float
  patients: int
  sites: int
  scans: int
  few: int
  reference: int
  level: float
  draws: int
  searched_aims: tuple[float, ...]
  num_steps: int
  bottleneck: nn.Module
  train_steps: int
  learning_rate: float
  batch_size: int
  sampled: tuple[str, ...]
  sampled_aims: tuple[float, ...]
  vae: nn.Module
  weights: Mapping[str, float]
  critic: nn.Module
  vae_steps: int
  vae_learning_rate: float
  flow: nn.Module
  flow_steps: int
  flow_learning_rate: float


@dataclass(frozen=True)
class _Run:
  """What all runs have.

  Attributes:
    folder: of the run.
    name: of the config.
    profile: `paper`, `demo` or `smoke`.
    label: in reports.
    seed: of all random draws.
    stages: in this run.
    num_devices: of this process; 0: all.
    report: what is shown; `None` without that stage.
    resolved: all options, as `config.json` stores them.
  """

  folder: Path
  name: str
  profile: str
  label: str
  seed: int
  stages: tuple[str, ...]
  num_devices: int
  report: Report | None
  resolved: Mapping[str, Any]


@dataclass(frozen=True)
class Experiment(_Run):
  """One network, trained and attacked.

  Attributes:
    data: what on.
    model: the network.
    training: how it was or is trained.
    defence: `(reconstruct=, complete=) -> reconstructor`, or `None`.
    attack: what with; `None` if nothing asks for it.
    evaluation: of whole volumes; `None` without that stage.
    forecast: of the stage `plan`; `None` if nothing asks for it.
  """

  data: DataSet
  model: Model
  training: Training
  defence: Callable[..., Reconstructor] | None
  attack: Attack | None
  evaluation: Evaluation | None
  forecast: Forecast | None


@dataclass(frozen=True)
class Comparison(_Run):
  """Experiments in folders inside its own, and what is asked about their networks.

  Attributes:
    experiments: by name, in the order in which they run.
    data: of held-out patients.
    detection: the observer; it and `data` are `None` if no stage asks for them.
    invariances: the samples; `None` if no stage asks for them.
  """

  experiments: Mapping[str, 'Experiment | Comparison']
  data: DataSet | None
  detection: Detection | None
  invariances: Invariances | None


@dataclass(frozen=True)
class Trial(_Run):
  """The verdict on networks whose answer is known.

  Attributes:
    known: the networks and their scans.
    invariances: how they are sampled.
  """

  known: Known
  invariances: Invariances
