"""The launcher as users run it: one command, resumed after kills, clear about mistakes."""

import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import jax
import numpy as np
import pytest

import jaxrec
from jaxrec.data import annotations, fastmri
from jaxrec.data import source as sources

ROOT = Path(__file__).parents[2]
TIMING = ('seconds',)


def environment(**extra):
  env = {k: v for k, v in os.environ.items() if k not in ('FASTMRI_ROOT', 'LDCT_ROOT')}
  return {**env, 'PYTHONPATH': str(ROOT), **extra}


def command(workdir, *arguments, config='configs/unet_8x.py:smoke'):
  return [sys.executable, '-m', 'jaxrec.main', f'--config={config}', f'--workdir={workdir}', *arguments]


def launch(workdir, *arguments, config='configs/unet_8x.py:smoke', **env):
  return subprocess.run(
    command(workdir, *arguments, config=config), cwd=ROOT, env=environment(**env), capture_output=True, text=True
  )


def results(workdir):
  with open(workdir / 'results.csv') as stream:
    return [{k: v for k, v in row.items() if k not in TIMING} for row in csv.DictReader(stream)]


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """An uninterrupted run."""
  workdir = tmp_path_factory.mktemp('runs') / 'whole'
  done = launch(workdir)
  assert done.returncode == 0, done.stderr
  return workdir, done


def test_one_command_trains_attacks_and_reports(finished):
  workdir, done = finished
  assert done.stdout.splitlines()[0].startswith('unet_8x: smoke profile on the built-in phantom')
  assert re.search(r'train: 4 steps', done.stdout) and re.search(r'forward and \d+ backward', done.stdout)
  page = Path(re.search(r'report: (.*)', done.stdout)[1])
  text = page.read_text()
  assert 'built-in phantom' in text and text.count('<img') >= 5 and 'src="http' not in text
  assert 'DeprecationWarning' not in done.stderr
  for name in ('config.json', 'provenance.json', 'metrics.jsonl', 'results.csv', 'images.h5'):
    assert (workdir / name).exists(), name
  provenance = json.loads((workdir / 'provenance.json').read_text())
  assert provenance['versions']['jax'] and provenance['devices'] and provenance['data_fingerprint']
  # On graphics cards nothing repeats without it; what else was set stays.
  assert provenance['xla_flags'].split()[-1] == '--xla_gpu_deterministic_ops=true' and provenance['cores'] > 0
  assert os.environ.get('XLA_FLAGS', '') in provenance['xla_flags']


def test_rows_are_complete_and_consistent(finished):
  rows = results(finished[0])
  # 3 examples x 2 aims x (3 noise levels + 3 angles)
  assert len(rows) == 36
  for row in rows:
    values = {k: float(v) for k, v in row.items() if '_clean' in k or '_adv' in k}
    assert np.isfinite(list(values.values())).all()
    assert 0 <= float(row['budget_used']) <= 1
    assert row['acceleration'] == '8'
    if float(row['strength']) == 0:
      for name in ('ssim_region', 'psnr_image', 'objective'):
        assert row[f'{name}_clean'] == row[f'{name}_adv']
    assert float(row['objective_adv']) >= float(row['objective_clean'])


def test_pictures_belong_to_their_rows(finished):
  workdir, _ = finished
  rows = {
    (r['file'], r['slice'].zfill(3), r['annotation'], r['perturbation'], r['attacked'], float(r['strength'])): r
    for r in results(workdir)
  }
  with h5py.File(workdir / 'images.h5') as file:
    assert len(file) == 2 * 4 + 1
    sampled = file['sampling/sampled'][()]
    assert np.array_equal(np.where(sampled > 0, file['sampling/kspace'][()], 0), sampled)
    for name, group in file.items():
      if name == 'sampling':
        continue
      example, perturbation, aim = name.rsplit('.', 2)
      volume, slice_index, annotation = example.rsplit('-', 2)
      row = rows[volume, slice_index, annotation, perturbation, aim, float(round(float(group['strength'][()]), 4))]
      box = group['region'][()] > 0
      error = ((group['adversarial'][()] - group['target'][()])[box] ** 2).sum() / (group['target'][()][box] ** 2).sum()
      np.testing.assert_allclose(error, float(row['nmse_region_adv']), rtol=1e-4)


def test_the_same_command_again_computes_nothing(finished):
  workdir, _ = finished
  before = {p: p.read_bytes() for p in [workdir / 'results.csv', *(workdir / 'rows').glob('*')]}
  start = (workdir / 'metrics.jsonl').read_bytes()
  done = launch(workdir)
  assert done.returncode == 0, done.stderr
  assert {p: p.read_bytes() for p in before} == before and (workdir / 'metrics.jsonl').read_bytes() == start


def test_a_run_repeats_from_its_seed(finished, tmp_path):
  shutil.copytree(finished[0].parent, tmp_path / 'runs', ignore=shutil.ignore_patterns('whole'))
  again = tmp_path / 'runs' / 'again'
  assert launch(again).returncode == 0
  assert results(again) == results(finished[0])
  assert (again / 'metrics.jsonl').read_bytes() == (finished[0] / 'metrics.jsonl').read_bytes()


def progress(workdir):
  """Bytes written so far."""
  return sum(p.stat().st_size for p in [*workdir.glob('rows/*.jsonl'), *workdir.glob('metrics.jsonl')])


@pytest.mark.fault
def test_kills_leave_no_gap_and_no_duplicate(finished, tmp_path):
  workdir, _ = finished
  shutil.copytree(workdir.parent, tmp_path / 'runs', ignore=shutil.ignore_patterns('whole'))
  killed = tmp_path / 'runs' / 'killed'
  whole = progress(workdir)
  moments = sorted(random.Random(0).uniform(0, 0.95 * whole) for _ in range(5))
  for moment in moments:
    process = subprocess.Popen(
      command(killed), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while progress(killed) <= moment and process.poll() is None:
      time.sleep(0.01)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
  assert launch(killed).returncode == 0
  assert results(killed) == results(workdir)
  assert (killed / 'metrics.jsonl').read_bytes() == (workdir / 'metrics.jsonl').read_bytes()


@pytest.mark.fault
def test_a_sweep_killed_between_rows_is_completed(finished, tmp_path):
  shutil.copytree(finished[0].parent, tmp_path / 'runs')
  cut = tmp_path / 'runs' / 'whole'
  rows = cut / 'rows' / '00000.jsonl'
  content = rows.read_bytes()
  for share in (0.3, 0.62):
    # Torn in the middle of a line, results and pictures lost.
    rows.write_bytes(content[: int(len(content) * share)])
    (cut / 'results.csv').unlink()
    (cut / 'images.h5').unlink()
    assert launch(cut).returncode == 0
    assert results(cut) == results(finished[0])
    assert (cut / 'images.h5').exists()


# Jobs in the background of a shell inherit an ignored SIGINT, which Python then leaves ignored.
LISTENING = 'import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])'


@pytest.mark.fault
def test_ctrl_c_says_how_to_go_on(tmp_path):
  process = subprocess.Popen(
    [sys.executable, '-c', LISTENING, *command(tmp_path / 'run')],
    cwd=ROOT,
    env=environment(),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  for line in process.stdout:
    if line.startswith('train:'):
      break
  process.send_signal(signal.SIGINT)
  _, err = process.communicate(timeout=120)
  assert process.returncode == 130
  assert 'the same command goes on' in err and 'Traceback' not in err


MISTAKES = {
  'no config': (['--workdir=x'], '--config: is missing', None),
  'no such config': ([], 'no_such', 'configs/no_such.py'),
  'profile': ([], "'fast' is unknown; choose one of paper, demo, smoke", 'configs/unet_8x.py:fast'),
  'option': (['--config.model.depth=3'], 'depth', None),
  'model': (['--config.model.name=transformer'], "model.name: 'transformer' is unknown", None),
  'eta': (
    ['--config.perturbation.coil_noise.relative_radius=(-0.1,)'],
    'perturbation.coil_noise.relative_radius: -0.1',
    None,
  ),
  'no eta': (['--config.perturbation.coil_noise.relative_radius=(0.0,)'], 'at least one strength above 0', None),
  'norm': (['--config.perturbation.coil_noise.norm=l1'], "perturbation.coil_noise.norm: 'l1' is unknown", None),
  'search': (['--config.search.coil_noise.name=newton'], "search.coil_noise.name: 'newton' is unknown", None),
  'aim': (['--config.attack.attacked=("foot",)'], "attack.attacked: 'foot' is unknown", None),
  'stage': (['--config.stages=("dance",)'], "stages: 'dance' is unknown", None),
  'optimizer': (['--config.train.optimizer=sgd'], "train.optimizer: 'sgd' is unknown", None),
  'root': (['--config.data.root=/nowhere'], "data.root: '/nowhere' is not allowed; give a folder that exists", None),
  'mask': (['--config.data.mask=spiral'], "data.mask: 'spiral' is unknown", None),
  'weights': (
    ['--config.model.weights=/nowhere.pt'],
    "model.weights: '/nowhere.pt' is not allowed; give a file that exists",
    None,
  ),
  'annotations': (
    ['--config.data.root={data}', '--config.data.annotations=/none.csv'],
    "data.annotations: '/none.csv'",
    None,
  ),
  'section': (['--config.perturbation.translation.max_pixels=(1.0,)'], "has no section or option 'translation'", None),
  'boxes': (['--config.data.boxes=largest'], "data.boxes: 'largest' is unknown", None),
  'flag': (['--wrkdir=x'], 'wrkdir', None),
}


def run_main(capsys, monkeypatch, arguments):
  """The launcher in this process: flags are parsed anew for every case."""
  from absl import flags

  from jaxrec import main

  monkeypatch.chdir(ROOT)
  monkeypatch.delenv('FASTMRI_ROOT', raising=False)
  # ml_collections looks for overrides in sys.argv.
  monkeypatch.setattr(sys, 'argv', ['main', *arguments])
  flags.FLAGS.unparse_flags()
  for name in list(flags.FLAGS):
    if name.startswith('config.'):
      delattr(flags.FLAGS, name)
  flags.FLAGS['config'].value = flags.FLAGS['workdir'].value = None
  flags.FLAGS['config'].present = 0
  code = main.main(['main', *arguments])
  return code, capsys.readouterr()


@pytest.mark.parametrize('variable, config, demo', [
  (None, 'varnet_8x', True), ('FASTMRI_ROOT', 'varnet_8x', False), ('LDCT_ROOT', 'varnet_8x', True), ('FASTMRI_ROOT', 'cnn10', True),
  ('LDCT_ROOT', 'cnn10', False), ('LDCT_ROOT', 'invariances_cnn10', False), ('FASTMRI_ROOT', 'invariances_cnn10', True),
])  # fmt: skip
def test_the_demo_runs_without_data_of_its_kind(variable, config, demo, monkeypatch):
  from jaxrec.experiments import catalog

  monkeypatch.chdir(ROOT)
  for name in ('FASTMRI_ROOT', 'LDCT_ROOT'):
    monkeypatch.delenv(name, raising=False)
  if variable:
    monkeypatch.setenv(variable, '/data')
  path = f'configs/{config}.py'
  for given in ([f'--config={path}'], ['--config', path]):
    assert catalog.with_demo(['main', *given])[-1] == given[-1] + (':demo' if demo else '')
  assert catalog.with_demo(['main', f'--config={path}', '--config.data.root=/x'])[1] == f'--config={path}'
  assert catalog.with_demo(['main', '--config=configs/none.py'])[1] == '--config=configs/none.py'


@pytest.mark.parametrize('kind', MISTAKES)
@pytest.mark.fault
def test_a_mistake_gives_one_line_and_exit_code_2(kind, tmp_path, dataset, capsys, monkeypatch):
  arguments, words, config = MISTAKES[kind]
  arguments = [a.format(data=dataset) for a in arguments]
  if kind != 'no config':
    stages = (
      []
      if kind == 'stage'
      else ['--config.stages=("attack",)']
      if kind not in ('optimizer', 'no such config', 'profile')
      else []
    )
    arguments = [f'--config={config or "configs/unet_8x.py:smoke"}', f'--workdir={tmp_path}/run', *stages, *arguments]
  code, captured = run_main(capsys, monkeypatch, arguments)
  assert code == 2
  lines = [line for line in captured.err.splitlines() if line.startswith('error: ')]
  assert len(lines) == 1 and words in lines[0], captured.err


def test_a_study_of_ones_own_needs_no_file_of_the_repository(tmp_path, capsys, monkeypatch):
  """Perturbation, search, objective and network come from a module beside a config in another folder."""
  shutil.copytree(ROOT / 'examples' / 'own', tmp_path / 'study')
  monkeypatch.setattr(sys, 'path', [*sys.path])
  arguments = [
    f'--config={tmp_path}/study/study.py:smoke',
    f'--workdir={tmp_path}/run',
    '--config.attack.max_examples=1',
  ]
  code, captured = run_main(capsys, monkeypatch, arguments)
  assert code == 0, captured.err
  text = (tmp_path / 'run' / 'report.html').read_text()
  assert 'Worst-case ghosting' in text and '>0.3 radians<' in text
  for row in results(tmp_path / 'run'):
    assert (
      row['unit'] == 'radians'
      and row['model'] == 'parts:smoothed'
      and row['steps'] == ('3' if float(row['strength']) else '0')
    )
    assert abs(float(row['delta'])) <= float(row['strength']) + 1e-6
    assert (float(row['objective_adv']) > float(row['objective_clean'])) == (float(row['strength']) > 0)
  for n, (words, option) in enumerate((
    ("model.name: 'parts:none' cannot be", 'model.name=parts:none'), ("'nowhere:x' cannot be imported", 'objective.name=nowhere:x'),
    ('speed', 'search.ghosting.speed=1'), ("leave 'train' out", 'stages=("train",)'),
  )):  # fmt: skip
    code, captured = run_main(capsys, monkeypatch, [arguments[0], f'--workdir={tmp_path}/{n}', f'--config.{option}'])
    assert code == 2 and re.search(words, captured.err), captured.err


TRANSFER = """
from configs import common

def get_config(arg=''):
  config = common.base('transfer', 'smoke')
  config.stages = ('attack',)
  config.model.update(name='parts:smoothed', width=3)
  config.perturbation.coil_noise.relative_radius = (0.05,)
  del config.perturbation.rotation, config.search.rotation
  config.attack.max_examples = 1
  return config
"""


def test_a_surrogate_from_a_config_gives_the_rows_of_a_direct_call(tmp_path, capsys, monkeypatch):
  """The search looks at the network of another run; images and scores are the network's own."""
  shutil.copy(ROOT / 'examples' / 'own' / 'parts.py', tmp_path)
  (tmp_path / 'transfer.py').write_text(TRANSFER)
  monkeypatch.setattr(sys, 'path', [*sys.path])
  found = {}
  for run, option in (('other', 'model.width=9'), ('white', 'model.width=3'), ('black', 'attack.surrogate=other')):
    code, captured = run_main(
      capsys, monkeypatch, [f'--config={tmp_path}/transfer.py', f'--workdir={tmp_path}/{run}', f'--config.{option}']
    )
    assert code == 0, captured.err
    found[run] = {r['attacked']: r for r in results(tmp_path / run) if float(r['strength'])}
  import parts

  net, other = parts.smoothed(3), parts.smoothed(9)
  (root,) = tmp_path.glob('phantom*')
  row = found['white']['region']
  (volume,) = (v for v in fastmri.index(root / 'multicoil_val').volumes if v.name == row['file'])
  draw = fastmri.mask_drawer(kind='random', center_fractions=(0.04,), accelerations=(8,))
  scan = sources.KSpace('').read(volume, int(row['slice']), draw)
  shape = scan.target.shape
  regions = [annotations.locate(box, shape) for box in annotations.read(root / 'annotations.csv').boxes[row['file']]]
  (region,) = (r for r in regions if r.annotation == int(row['annotation']))
  scan = scan.replace(region=annotations.region_mask(region, shape))
  for run, surrogate in (('white', None), ('black', other)):
    worst = jax.jit(
      jaxrec.attack(
        net.reconstruct, jaxrec.coil_noise(0.05), jaxrec.pgd(num_steps=2), jaxrec.region_mse(), surrogate=surrogate
      )
    )
    for aim, sample in (('region', scan), ('image', scan.replace(region=np.ones_like(scan.region)))):
      loss = float(worst(net.variables, jax.random.key(0), sample).loss)
      assert float(found[run][aim]['objective_adv']) == pytest.approx(loss, rel=1e-4), (run, aim)
  for aim, row in found['white'].items():
    assert row['objective_clean'] == found['black'][aim]['objective_clean']
    assert float(row['objective_adv']) > 1.001 * float(found['black'][aim]['objective_adv'])


@pytest.mark.fault
def test_help_that_nobody_reads_to_its_end_is_no_error():
  process = subprocess.Popen(
    [sys.executable, '-m', 'jaxrec.main', '--help'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )
  process.stdout.close()
  assert (process.stderr.read(), process.wait()) == ('', 0)


def test_help_lists_every_config_with_its_cost(capsys, monkeypatch):
  code, captured = run_main(capsys, monkeypatch, ['--help'])
  assert code == 0 and '--workdir' in captured.out
  for path in (ROOT / 'configs').glob('*.py'):
    if 'def get_config' in path.read_text():
      assert re.search(rf'^  {path.stem} +\S.*\n +\S', captured.out, re.M), path.stem


@pytest.mark.parametrize('given, found', [
  ('quickstart', ROOT / 'configs/quickstart.py:demo'), ('quickstart:smoke', ROOT / 'configs/quickstart.py:smoke'),
  ('configs/varnet_8x.py:smoke', ROOT / 'configs/varnet_8x.py:smoke'), ('configs/none.py', 'configs/none.py'),
])  # fmt: skip
def test_configs_of_the_package_are_found_from_anywhere(given, found, tmp_path, monkeypatch):
  from jaxrec.experiments import catalog

  monkeypatch.chdir(tmp_path)
  monkeypatch.delenv('FASTMRI_ROOT', raising=False)
  assert catalog.prepare(['main', f'--config={given}']) == ['main', f'--config={found}']
  assert catalog.prepare(['main', '--config', given])[-1] == str(found)
  with pytest.raises(ValueError, match="'quickstrat' is neither a file nor a config.*quickstart"):
    catalog.prepare(['main', '--config=quickstrat'])


@pytest.mark.fault
def test_bad_files_are_skipped_counted_and_listed(finished, dataset, tmp_path):
  data = tmp_path / 'data'
  shutil.copytree(dataset, data)
  first, second = sorted((data / 'multicoil_val').glob('*.h5'))
  first.write_bytes(first.read_bytes()[:2000])
  with h5py.File(second, 'r+') as file:
    file['kspace'][1] = np.nan
  arguments = (
    f'--config.data.root={data}',
    f'--config.data.annotations={data}/annotations.csv',
    '--config.attack.max_examples=0',
    '--config.train.max_validation=1',
  )
  done = launch(tmp_path / 'run', *arguments)
  assert done.returncode == 0, done.stderr
  assert 'skipped 2 bad files' in done.stdout
  text = (tmp_path / 'run' / 'report.html').read_text()
  assert str(first) in text and 'NaN' in text
  assert {(r['file'], r['slice']) for r in results(tmp_path / 'run')} == {(second.stem, '0')}


@pytest.mark.fault
def test_verify_data_names_bad_files(dataset, tmp_path):
  data = tmp_path / 'data'
  shutil.copytree(dataset, data)
  bad = sorted((data / 'multicoil_val').glob('*.h5'))[0]
  bad.write_bytes(bad.read_bytes()[:2000])
  run = [sys.executable, '-m', 'jaxrec.experiments.verify_data']
  done = subprocess.run(
    [*run, str(data), str(data / 'annotations.csv')], cwd=ROOT, env=environment(), capture_output=True, text=True
  )
  assert done.returncode == 2 and f'bad: {bad}' in done.stdout and 'usable boxes' in done.stdout
  good = subprocess.run([*run, str(dataset)], cwd=ROOT, env=environment(), capture_output=True, text=True)
  assert good.returncode == 0, good.stdout + good.stderr


@pytest.mark.fault
def test_a_run_folder_of_another_config_is_refused(finished, capsys, monkeypatch):
  code, captured = run_main(
    capsys, monkeypatch, ['--config=configs/unet_8x.py:smoke', f'--workdir={finished[0]}', '--config.seed=7']
  )
  assert code == 2 and 'seed=0, now it is 7' in captured.err


def test_two_processes_share_the_work(finished, tmp_path):
  shutil.copytree(finished[0].parent, tmp_path / 'runs', ignore=shutil.ignore_patterns('whole'))
  workdir = tmp_path / 'runs' / 'two'
  done = subprocess.run(
    ['bash', 'launch/local_processes.sh', '--config=configs/unet_8x.py:smoke', f'--workdir={workdir}'],
    cwd=ROOT, env=environment(PROCESSES='2', PYTHON=sys.executable), capture_output=True, text=True, timeout=400,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  parts = [p.read_text().splitlines() for p in sorted((workdir / 'rows').glob('*.jsonl'))]
  assert len(parts) == 2 and all(parts)
  examples = [{(r['file'], r['slice'], r['annotation']) for r in map(json.loads, part)} for part in parts]
  assert not examples[0] & examples[1]
  ours, alone = results(workdir), results(finished[0])
  assert [tuple(r[k] for k in ('file', 'slice', 'annotation', 'perturbation', 'strength')) for r in ours] == [
    tuple(r[k] for k in ('file', 'slice', 'annotation', 'perturbation', 'strength')) for r in alone
  ]
  # Two devices of one process add gradients in the same order as two processes, so all steps agree.
  pair = tmp_path / 'runs' / 'pair'
  devices = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count=2'
  assert launch(pair, '--config.stages=("train",)', XLA_FLAGS=devices).returncode == 0
  ours, pair, alone = (
    [json.loads(line) for line in (w / 'metrics.jsonl').read_text().splitlines()] for w in (workdir, pair, finished[0])
  )
  assert len(ours) == len(pair) == len(alone)
  for a, b in zip(ours, pair):
    assert a == pytest.approx(b, rel=1e-5)
  assert ours[0] == pytest.approx(alone[0], rel=1e-5)
