"""Batches bucketed by shape, deterministic and resumable, read through grain.

Batch number i of a run is a pure function of the examples, the seed and i, so a
run resumes at any batch without state; processes read disjoint parts of it.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np

from jaxrec.data import annotations as annotations_lib
from jaxrec.data.fastmri import Example


def shape_of(example: Example) -> tuple[int, ...]:
  """Bucket of an example: coils, rows, columns and target size."""
  return (*example.volume.shape[1:], *example.volume.crop)


def slices_of(volumes: Sequence[Any], *, keep: float = 1.0) -> list[Example]:
  """All slices without boxes; `keep` below 1 takes the central share of each volume.

  Args:
    volumes: usable volumes.
    keep: central share of the slices, in (0, 1].

  Returns:
    One example per slice.
  """
  examples = []
  for volume in volumes:
    count = volume.shape[0]
    used = max(int(round(count * keep)), 1)
    first = (count - used) // 2
    examples += [Example(volume, s, None) for s in range(first, first + used)]
  return examples


def annotated(
  volumes: Sequence[Any],
  annotations: annotations_lib.Annotations,
  *,
  policy: str = 'all',
  seed: int = 0,
  others: Collection[str] = (),
) -> tuple[list[Example], dict[str, int]]:
  """Examples for every usable box, each exactly once.

  Args:
    volumes: usable volumes.
    annotations: the boxes.
    policy: `all`, `first` or `random` box of a slice.
    seed: seed of the random choice.
    others: names of volumes that are known, but not meant.

  Returns:
    The examples, and counts of the boxes left out by reason.
  """
  skipped: dict[str, int] = defaultdict(int, annotations.unusable)
  known = {v.name: v for v in volumes}
  for name, boxes in annotations.boxes.items():
    if name not in known and name not in others:
      skipped['unknown file'] += len(boxes)
  examples = []
  for name, volume in known.items():
    by_slice = defaultdict(list)
    for box in annotations.boxes.get(name, ()):
      if not 0 <= box.slice < volume.shape[0]:
        skipped['slice outside the volume'] += 1
        continue
      region = annotations_lib.locate(box, volume.crop)
      if isinstance(region, str):
        skipped[region] += 1
      else:
        by_slice[box.slice].append(region)
    for s in sorted(by_slice):
      examples += [Example(volume, s, r) for r in annotations_lib.choose(by_slice[s], policy, seed=seed)]
  return examples, dict(skipped)


def spread(examples: Sequence[Any], limit: int) -> list[Any]:
  """At most `limit` examples, evenly spread so that a short run sees all volumes; all if 0."""
  if not limit or len(examples) <= limit:
    return list(examples)
  return [examples[i * len(examples) // limit] for i in range(limit)]


def plan(shapes: Sequence[tuple[int, ...]], batch_size: int, *, epoch: int, seed: int) -> list[list[int]]:
  """Batches of one epoch: within a bucket shuffled, then all batches shuffled.

  The last batch of a bucket is filled with other members of the bucket.

  Args:
    shapes: bucket of every example.
    batch_size: examples per batch.
    epoch: number of the epoch.
    seed: seed of the order.

  Returns:
    Indices of the examples of each batch.
  """
  rng = np.random.default_rng([seed, epoch])
  buckets = defaultdict(list)
  for i, shape in enumerate(shapes):
    buckets[shape].append(i)
  batches = []
  for members in buckets.values():
    order = rng.permutation(members)
    order = np.resize(order, -(-len(order) // batch_size) * batch_size)
    batches += order.reshape(-1, batch_size).tolist()
  return [batches[i] for i in rng.permutation(len(batches))]


class _Source:
  """Random access to the batches of all epochs; picklable for worker processes."""

  def __init__(self, examples, read, batch_size, seed, part, parts):
    self.examples, self.read, self.batch_size, self.seed = examples, read, batch_size, seed
    self.part, self.parts = part, parts
    self.shapes = [shape_of(e) for e in examples]
    self.per_epoch = len(plan(self.shapes, batch_size, epoch=0, seed=seed))
    self._epoch = (None, None)

  def __call__(self, position: int) -> Any:
    epoch, i = divmod(int(position), self.per_epoch)
    if self._epoch[0] != epoch:
      self._epoch = (epoch, plan(self.shapes, self.batch_size, epoch=epoch, seed=self.seed))
    chosen = self._epoch[1][i]
    share = len(chosen) // self.parts
    chosen = chosen[self.part * share : (self.part + 1) * share]
    return stack([self.read(self.examples[c], epoch) for c in chosen])


def batch_files(examples: Sequence[Example], batch_size: int, number: int, *, seed: int) -> list[str]:
  """File and slice of each example of training batch `number`, over all processes."""
  shapes = [shape_of(e) for e in examples]
  epoch, i = divmod(number, len(plan(shapes, batch_size, epoch=0, seed=seed)))
  chosen = plan(shapes, batch_size, epoch=epoch, seed=seed)[i]
  return [f'{examples[c].volume.path} slice {examples[c].slice}' for c in chosen]


def stack(samples: Sequence[Any]) -> Any:
  """Stacks pytrees of NumPy arrays along a new leading axis."""
  return jax.tree.map(lambda *x: np.stack(x), *samples)


def steps_per_epoch(examples: Sequence[Example], batch_size: int) -> int:
  """Batches in one pass over the examples."""
  return len(plan([shape_of(e) for e in examples], batch_size, epoch=0, seed=0))


def training_batches(
  examples: Sequence[Example],
  read: Callable[[Example, int], Any],
  batch_size: int,
  *,
  seed: int,
  start: int = 0,
  workers: int = 0,
  part: int = 0,
  parts: int = 1,
) -> Iterator[Any]:
  """Endless stream of training batches from batch number `start` on.

  Args:
    examples: what to read.
    read: `(example, epoch) -> sample` of NumPy arrays.
    batch_size: examples per batch over all processes.
    seed: seed of the order.
    start: number of the first batch, for resuming.
    workers: reading processes; 0 reads in threads.
    part: this process.
    parts: number of processes that share each batch.

  Returns:
    Iterator over stacked samples, `batch_size / parts` each.

  Raises:
    ValueError: if there is nothing to read or the batch does not split.
  """
  if not examples:
    raise ValueError('data: there are no training slices; check data.root')
  if batch_size % parts:
    raise ValueError(f'train.batch_size: {batch_size} does not split over {parts} processes')
  source = _Source(list(examples), read, batch_size, seed, part, parts)
  dataset = grain.MapDataset.range(start, 1 << 40).map(source)
  stream = dataset.to_iter_dataset(grain.ReadOptions(num_threads=0 if workers else 2, prefetch_buffer_size=4))
  if workers:
    stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
  return iter(stream)


def evaluation_batches(
  examples: Sequence[Example], read: Callable[[Example, int], Any], batch_size: int
) -> Iterator[tuple[list[Example], Any]]:
  """One pass in order, bucket by bucket; the last batch is padded by repetition.

  Args:
    examples: what to read.
    read: `(example, epoch) -> sample`.
    batch_size: examples per batch.

  Yields:
    The examples of a batch without padding, and the stacked samples with it.
  """
  for members in evaluation_plan(examples, batch_size):
    chosen = [examples[i] for i in members]
    samples = [read(e, 0) for e in chosen]
    samples += [samples[-1]] * (batch_size - len(samples))
    yield chosen, stack(samples)


def evaluation_plan(examples: Sequence[Example], batch_size: int) -> list[list[int]]:
  """Indices of the examples of each batch, bucket by bucket, in order."""
  buckets = defaultdict(list)
  for i, example in enumerate(examples):
    buckets[shape_of(example)].append(i)
  return [m[i : i + batch_size] for m in buckets.values() for i in range(0, len(m), batch_size)]
