"""What training cost is what the network has behind it, through every interruption."""

import json
import time

import pytest

from configs import unet_8x
from jaxrec import results
from jaxrec.data import loader
from jaxrec.experiments import build
from jaxrec.training import data_parallel
from jaxrec.workflows import datasets, train


class Stop(Exception):
  """In place of a kill."""


@pytest.mark.parametrize('fault', ['training is stopped', 'and its costs are lost'])
def test_steps_before_an_interruption_count(fault, tmp_path, monkeypatch):
  monkeypatch.delenv('FASTMRI_ROOT', raising=False)
  config = unet_8x.get_config('smoke')
  config.data.workers = 0
  parallel = data_parallel(1)
  folder = results.Run(tmp_path / 'run')
  experiment = build.build(config, folder.folder)
  context = train.Context(datasets.data(experiment.data, folder.folder, parallel), parallel, build.stored)
  cost = folder.folder / 'cost.json'

  def late(*arguments, **options):
    for batch in training_batches(*arguments, **options):
      time.sleep(0.2)
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

  with monkeypatch.context() as patch:
    patch.setattr(results, 'append_jsonl', stop_after_the_checkpoint)
    with pytest.raises(Stop):
      go()
  assert json.loads(cost.read_text())['steps'] == 2
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
