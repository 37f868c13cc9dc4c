"""Runs the stages of a config."""

from pathlib import Path

import jax
import ml_collections

from jaxrec import reports, results
from jaxrec.experiments import build, options
from jaxrec.training import data_parallel
from jaxrec.workflows import (
  attack,
  datasets,
  detectability,
  evaluate,
  invariances,
  known,
  places,
  plan,
  train,
)
from jaxrec.workflows.experiment import Comparison, Experiment, Report, Trial

# What a run's numbers depend on, whatever the environment says (JAX_ENABLE_X64, JAX_DEFAULT_PRNG_IMPL, ...).
_PINNED = {
  # Of what is not pinned where it stands: graphics cards and TPUs multiply in less than float32 by default.
  'jax_default_matmul_precision': 'highest',
  'jax_enable_x64': False,
  # The keys of other generators are not independent of how many examples are computed at a time.
  'jax_default_prng_impl': 'threefry2x32',
  'jax_threefry_partitionable': True,
  'jax_numpy_dtype_promotion': 'standard',
  'jax_numpy_rank_promotion': 'allow',
}


def run(config: ml_collections.ConfigDict, workdir: str | Path) -> Path:
  """Runs a config, or goes on where an earlier run stopped.

  A config with `experiments` runs each in a folder of its own and reports them
  together.

  Args:
    config: a config of `configs/`.
    workdir: the run folder.

  Returns:
    The run folder.

  Raises:
    ValueError: for bad options or input, with one clear line.
  """
  options.check(config, workdir)
  for name, value in _PINNED.items():
    jax.config.update(name, value)
  experiment = build.build(config, workdir)
  _run(experiment)
  return experiment.folder


def _run(experiment: Experiment | Comparison | Trial) -> None:
  if 'plan' in experiment.stages:
    _plan(experiment)
    if len(experiment.stages) == 1:
      return
  if isinstance(experiment, Experiment) and not experiment.data.root:
    profile = f'{experiment.profile} profile on the built-in phantom'
    print(f'{experiment.name}: {profile}; set --config.data.root for real data')
  # Before processes meet in `data_parallel`: the others write nothing if process 0 is refused.
  with results.exclusive(experiment.folder, part=jax.process_index()):
    if isinstance(experiment, Trial):
      _try(experiment)
    elif isinstance(experiment, Comparison):
      _compare(experiment)
    else:
      _run_stages(experiment)


def _plan(experiment: Experiment | Comparison | Trial) -> None:
  if isinstance(experiment, Comparison):
    for name, inner in experiment.experiments.items():
      print(f'-- {name}')
      _plan(inner)
  elif isinstance(experiment, Experiment) and experiment.forecast:
    plan.run(experiment, experiment.folder, data_parallel(experiment.num_devices or None))


def _compare(comparison: Comparison) -> None:
  if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]  # jax declares it at run time
    # Runs of a comparison compile the same programs.
    jax.config.update('jax_compilation_cache_dir', str(comparison.folder / 'compiled'))
  for name, experiment in comparison.experiments.items():
    print(f'-- {name}')
    _run(experiment)
  if comparison.detection:
    _sample(comparison)
  if comparison.report and data_parallel().part == 0:
    folders = [experiment.folder for experiment in comparison.experiments.values()]
    judged = [f for f in (comparison.folder, *folders) if (f / 'detectability.csv').exists()]
    if judged:
      shown = [*judged, *map(Path, comparison.report.runs)]
      return _announce(reports.samples.run(comparison.folder, shown, draws=comparison.report.draws))
    _report(comparison.report, comparison.folder, folders)


def _run_stages(experiment: Experiment) -> None:
  parallel = data_parallel(experiment.num_devices or None)
  folder = results.Run(experiment.folder, part=parallel.part)
  folder.check_config(experiment.resolved)
  if {'train', 'evaluate', 'attack'} & set(experiment.stages):
    data = datasets.data(experiment.data, experiment.folder, parallel)
    volumes = [*data.train.volumes, *data.val.volumes]
    folder.write_provenance(
      seed=experiment.seed, data_fingerprint=results.fingerprint(volumes), data=str(data.val.volumes[0].path)
    )
    context = train.Context(data, parallel, build.stored)
    evaluated = evaluate.index(experiment, data) if 'evaluate' in experiment.stages else None
    if 'train' in experiment.stages:
      train.run(experiment, folder, context)
    if evaluated:
      evaluate.run(experiment, folder, context, evaluated)
    if 'attack' in experiment.stages:
      attack.run(experiment, folder, context)
  if experiment.report and parallel.part == 0:
    _report(experiment.report, experiment.folder, [experiment.folder])


def _sample(comparison: Comparison) -> None:
  assert comparison.data is not None and comparison.detection is not None
  parallel = data_parallel(comparison.num_devices or None)
  folder = results.Run(comparison.folder, part=parallel.part)
  folder.check_config(comparison.resolved)
  # Beside the networks' runs, so that all share one phantom.
  data = datasets.data(comparison.data, comparison.folder / 'stage', parallel)
  folder.write_provenance(
    seed=comparison.seed, data_fingerprint=results.fingerprint(data.val.volumes), data=str(data.val.volumes[0].path)
  )
  asked = places.question(comparison.detection, comparison.data, data)
  context = train.Context(data, parallel, build.stored)
  if 'detect' in comparison.stages:
    detectability.run(comparison, folder, context, asked)
  if 'invariances' in comparison.stages:
    invariances.run(comparison, folder, context, asked)


def _try(trial: Trial) -> None:
  """Networks with a known answer need no data set and no runs of others."""
  parallel = data_parallel(trial.num_devices or None)
  folder = results.Run(trial.folder, part=parallel.part)
  folder.check_config(trial.resolved)
  folder.write_provenance(seed=trial.seed)
  if 'known' in trial.stages:
    known.run(trial, folder, parallel)
  if trial.report and parallel.part == 0:
    _announce(reports.known.run(trial.folder, draws=trial.report.draws))


def _report(asked: Report, folder: Path, sources: list[Path]) -> None:
  _announce(reports.attacks.run(folder, sources, others=asked.runs, draws=asked.draws, generators=asked.generators))


def _announce(page: Path) -> None:
  print(f'report: {page.resolve()}')
