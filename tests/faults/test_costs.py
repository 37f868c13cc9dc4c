"""What training cost is what the network has behind it, through every interruption."""

import contextlib
import json
import time

import pytest

from configs import unet_8x
from jaxrec import results
from jaxrec.data import loader
from jaxrec.experiments import build
from jaxrec.training import Stopped, data_parallel
from jaxrec.workflows import datasets, train, workers


class Stop(Exception):
  """In place of a kill."""


@pytest.mark.parametrize(
  'fault', ['training is stopped', 'and its costs are lost', 'it was asked to end', 'after a checkpoint by the clock']
)
def test_steps_before_an_interruption_count(fault, tmp_path, monkeypatch):
  monkeypatch.delenv('FASTMRI_ROOT', raising=False)
  config = unet_8x.get_config('smoke')
  config.data.workers = 0
  clock = fault == 'after a checkpoint by the clock'
  if clock:
    config.train.update(checkpoint_minutes=1e-9, validate_every=4)
  parallel = data_parallel(1)
  folder = results.Run(tmp_path / 'run')
  experiment = build.build(config, folder.folder)
  context = train.Context(datasets.data(experiment.data, folder.folder, parallel), parallel, build.stored)
  cost = folder.folder / 'cost.json'

  read = []

  def late(*arguments, **options):
    for batch in training_batches(*arguments, **options):
      time.sleep(0.2)
      read.append(batch)
      yield batch

  training_batches = loader.training_batches
  monkeypatch.setattr(loader, 'training_batches', late)

  def go():
    train.run(experiment, folder, context)

  append = results.append_jsonl

  def stop_after_the_checkpoint(path, records):
    if records[0]['step'] > 2:
      raise Stop
    append(path, records)

  asked = fault == 'it was asked to end'
  with monkeypatch.context() as patch:
    if asked:
      patch.setattr(workers, 'termination', lambda: contextlib.nullcontext(lambda: len(read) > 3))
    else:
      patch.setattr(results, 'append_jsonl', stop_after_the_checkpoint)
    with pytest.raises(Stopped if asked else Stop):
      go()
  assert json.loads(cost.read_text())['steps'] == (3 if asked else 2)
  if fault == 'and its costs are lost':
    cost.unlink()
  seen = json.loads(cost.read_text())['seconds'] if cost.exists() else 0
  go()
  whole = json.loads(cost.read_text())
  assert whole['steps'] == config.train.num_steps == 4 and whole['seconds'] > seen
  assert whole['forward_per_step'] == config.train.batch_size
  assert 0 < whole['waited'] < whole['seconds']
  before = cost.read_bytes()
  go()
  assert cost.read_bytes() == before
