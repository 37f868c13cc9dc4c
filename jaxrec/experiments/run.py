"""Runs the stages of a config."""

from pathlib import Path

import jax
import ml_collections

from jaxrec import results
from jaxrec.experiments import options
from jaxrec.training import data_parallel
from jaxrec.workflows import (
  attack,
  datasets,
  detectability,
  evaluate,
  invariance_report,
  invariances,
  known,
  places,
  plan,
  report,
  train,
)


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
  workdir = Path(workdir)
  options.check(config, workdir)
  # What is not pinned where it stands: graphics cards and TPUs multiply in less than float32 by default.
  jax.config.update('jax_default_matmul_precision', 'highest')
  if 'plan' in config.stages:
    _plan(config, workdir)
    if len(config.stages) == 1:
      return workdir
  if 'known' in config:
    with results.exclusive(workdir, part=jax.process_index()):
      _known(config, workdir)
    return workdir
  if 'experiments' in config:
    # Before processes meet in `data_parallel`: the others write nothing if process 0 is refused.
    with results.exclusive(workdir, part=jax.process_index()):
      _compare(config, workdir)
    return workdir
  if not config.data.root:
    print(f'{config.name}: {config.profile} profile on the built-in phantom; set --config.data.root for real data')
  with results.exclusive(workdir, part=jax.process_index()):
    _run_stages(config, workdir)
  return workdir


def _plan(config, workdir):
  for name, experiment in config.get('experiments', {}).items():
    print(f'-- {name}')
    _plan(experiment, workdir / name)
  if 'plan' in config:
    plan.run(config, workdir, data_parallel(config.train.num_devices or None))


def _compare(config, workdir):
  folders = []
  if not jax.config.jax_compilation_cache_dir:
    # Runs of a comparison compile the same programs.
    jax.config.update('jax_compilation_cache_dir', str(workdir / 'compiled'))
  for name, experiment in config.experiments.items():
    print(f'-- {name}')
    folders.append(run(experiment, workdir / name))
  if 'invariances' in config.stages or 'detect' in config.stages:
    _sample(config, workdir)
  if 'report' in config.stages and data_parallel().part == 0:
    judged = [f for f in (workdir, *folders) if (f / 'detectability.csv').exists()]
    if judged:
      return _announce(invariance_report.run(config, workdir, [*judged, *config.report.runs]))
    _report(config, workdir, folders)


def _run_stages(config, workdir):
  parallel = data_parallel(config.train.num_devices or None)
  folder = results.Run(workdir, part=parallel.part)
  folder.check_config(config.to_dict())
  if {'train', 'evaluate', 'attack'} & set(config.stages):
    data = datasets.data(config, workdir, parallel)
    volumes = [*data.train.volumes, *data.val.volumes]
    folder.write_provenance(
      seed=config.seed, data_fingerprint=results.fingerprint(volumes), data=str(data.val.volumes[0].path)
    )
    if 'train' in config.stages:
      train.run(config, folder, data, parallel)
    if 'evaluate' in config.stages:
      evaluate.run(config, folder, data, parallel)
    if 'attack' in config.stages:
      attack.run(config, folder, data, parallel)
  if 'report' in config.stages and parallel.part == 0:
    _report(config, workdir, [workdir])


def _sample(config, workdir):
  parallel = data_parallel(config.train.num_devices or None)
  folder = results.Run(workdir, part=parallel.part)
  folder.check_config(config.to_dict())
  # Beside the networks' runs, so that all share one phantom.
  data = datasets.data(config, workdir / 'stage', parallel)
  folder.write_provenance(
    seed=config.seed, data_fingerprint=results.fingerprint(data.val.volumes), data=str(data.val.volumes[0].path)
  )
  asked = places.question(config, data)
  if 'detect' in config.stages:
    detectability.run(config, folder, data, asked, parallel)
  if 'invariances' in config.stages:
    invariances.run(config, folder, data, asked, parallel)


def _known(config, workdir):
  """Networks with a known answer need no data set and no runs of others."""
  parallel = data_parallel(config.train.num_devices or None)
  folder = results.Run(workdir, part=parallel.part)
  folder.check_config(config.to_dict())
  folder.write_provenance(seed=config.seed)
  if 'known' in config.stages:
    known.run(config, folder, parallel)
  if 'report' in config.stages and parallel.part == 0:
    _announce(known.report(workdir, draws=config.report.draws))


def _report(config, workdir, folders):
  options = config.report
  _announce(
    report.run(workdir, folders, others=options.runs, draws=options.draws, generators=options.get('generators', ()))
  )


def _announce(page: Path) -> None:
  print(f'report: {page.resolve()}')
