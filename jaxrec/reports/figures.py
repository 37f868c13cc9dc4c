"""Every picture of a report. The only module that knows matplotlib.

Functions take rows or arrays and return a matplotlib figure; nothing is shown
or saved here.
"""

import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxrec import statistics
from jaxrec.data.ldct import normalise

_COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9')
_LINES = ('-', '--', ':', '-.')
# Lines of a figure beyond this number have no bands, as nobody could tell those apart.
MOST_BANDS = len(_COLOURS)
_NAMES = {'varnet': 'E2E-VarNet', 'unet_recon': 'U-Net'}


def png(figure: Figure, *, dpi: int) -> bytes:
  """A figure as a PNG file, which says nothing of the program that drew it: equal figures are equal files."""
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png', dpi=dpi, metadata={'Software': None})
  return buffer.getvalue()


def name_of(row: Mapping[str, Any]) -> str:
  """Name of a run, or else network and acceleration as readers know them."""
  if row.get('network'):
    return row['network']
  return f'{_NAMES.get(row["model"], row["model"])} {row["acceleration"]}x'


def looks(names: Iterable[str]) -> dict[str, tuple[int, str]]:
  """Line and colour of every network of a report, the same in all of its figures.

  Args:
    names: of the networks, see `name_of`.

  Returns:
    Number of the line style, and colour, by name; a second round of colours has other lines.
  """
  names = sorted(set(names))
  return {name: (i // len(_COLOURS), _COLOURS[i % len(_COLOURS)]) for i, name in enumerate(names)}


def strength_curve(rows: Iterable[Mapping[str, Any]], metric: str, groups: Sequence[tuple[str, Sequence[Mapping[str, Any]]]] | None = None,
                   *, axis: str = 'strength', draws: int = 1000, look: Mapping[str, tuple[int, str]] | None = None) -> Figure:  # fmt: skip
  """A metric against the strength of the attack, with 95% bands over patients.

  Args:
    rows: rows of one perturbation; lines are networks unless `groups` is given.
    metric: column to show.
    groups: `(label, rows)` per line; more than `MOST_BANDS` are drawn without bands.
    axis: what the strength is.
    draws: bootstrap draws.
    look: see `looks`; that of the networks in the rows if `None`. Further lines of
      one network have its colour.

  Returns:
    The figure (Morshuis et al. 2022, figures 1a, 1b and 4a).
  """
  rows = list(rows)
  figure, axes = _axes()
  if groups is None:
    groups = _grouped(rows, name_of)
  unit = rows[0]['unit']
  factor = 100 if unit == 'relative' else 1
  many = len(groups) > MOST_BANDS
  look = look or looks(map(name_of, rows))
  rounds = 1 + max(number for number, _ in look.values())
  drawn: Counter[str] = Counter()
  for label, members in groups:
    network = name_of(members[0])
    number, colour = look[network]
    line = _LINES[(number + rounds * drawn[network]) % len(_LINES)]
    drawn[network] += 1
    strengths = sorted({r['strength'] for r in members})
    stats = []
    for strength in strengths:
      at = [r for r in members if r['strength'] == strength]
      stats.append(statistics.bootstrap([r[metric] for r in at], [r['patient'] for r in at], draws=draws))
    mean, low, high = np.array(stats).T
    x = factor * np.array(strengths)
    axes.plot(x, mean, marker='o', ls=line, ms=3.5, color=colour, label=label)
    if not many:
      axes.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)
  if unit == 'relative':
    _mark_thermal_noise(axes, [factor * r['thermal_eta'] for r in rows if 'thermal_eta' in r])
  axes.set_xlabel(f'{axis} [{"%" if unit == "relative" else unit}]')
  axes.set_ylabel(_metric_name(metric))
  _legend(figure, axes, many)
  return figure


def _mark_thermal_noise(axes, etas):
  if not etas:
    return
  eta, look = np.median(etas), dict(va='top', ha='right', fontsize=8, color='0.35')
  if eta <= axes.get_xlim()[1] * 1.6:
    axes.axvline(eta, color='0.4', ls=':', lw=1.2)
    axes.annotate('thermal noise', (eta, 0.98), xycoords=('data', 'axes fraction'), rotation=90, **look)
  else:
    axes.annotate(f'thermal noise: {eta:.1f}% (off scale)', (0.98, 0.97), xycoords='axes fraction', **look)


def angle_curve(curves: Sequence[tuple[str, np.ndarray, np.ndarray]], look: Mapping[str, tuple[int, str]]) -> Figure:
  """SSIM in the box against the angle of rotation for one example per network.

  Args:
    curves: `(label, angles in degrees, SSIM)` each.
    look: see `looks`.

  Returns:
    The figure (Morshuis et al. 2022, figure 4b).
  """
  figure, axes = _axes()
  for label, angles, values in curves:
    line, colour = look[label]
    axes.plot(angles, values, ls=_LINES[line % len(_LINES)], color=colour, label=label, lw=1.3)
  axes.set_xlabel('rotation [degrees]')
  axes.set_ylabel('SSIM in the box')
  axes.legend(frameon=False, fontsize=9)
  return figure


def panel(examples: Sequence[tuple[str, Mapping[str, np.ndarray]]], caption: str) -> Figure:
  """Full sampling, clean, attacked, attacked but fully sampled, difference; box below.

  Args:
    examples: `(label, arrays of one attacked example)`, one block of rows each.
    caption: title.

  Returns:
    The figure (Morshuis et al. 2022, figures 2, 3 and 5).
  """
  titles = ('fully sampled', 'reconstruction', 'attacked', 'attacked, fully sampled', '|attacked - clean|')
  figure = Figure(figsize=(12.5, 5.3 * len(examples) + 0.5), layout='constrained')
  grid = figure.subplots(2 * len(examples), len(titles), squeeze=False)
  for block, (label, arrays) in enumerate(examples):
    images = [np.asarray(arrays[k], float) for k in ('target', 'clean', 'adversarial', 'control')]
    images.append(np.abs(images[2] - images[1]))
    bottom, top = _window(images[0])
    rows, cols = np.nonzero(np.asarray(arrays['region']))
    box = (rows.min(), rows.max() + 1, cols.min(), cols.max() + 1)
    for column, (title, image) in enumerate(zip(titles, images)):
      limits = (
        dict(cmap='gray', vmin=bottom, vmax=top)
        if column < 4
        else dict(cmap='magma', vmin=0, vmax=0.25 * (top - bottom))
      )
      for line, part in enumerate((image, image[box[0] : box[1], box[2] : box[3]])):
        axes = grid[2 * block + line, column]
        axes.imshow(part, interpolation='nearest', **limits)
        axes.set_xticks([])
        axes.set_yticks([])
        if line == 0:
          axes.add_patch(_rectangle(box))
          if block == 0:
            axes.set_title(title, fontsize=10)
    grid[2 * block, 0].set_ylabel(label, fontsize=10)
    grid[2 * block + 1, 0].set_ylabel('box', fontsize=10)
  figure.suptitle(caption, fontsize=11)
  return figure


def validation_panel(examples: Sequence[tuple[str, np.ndarray, np.ndarray]], caption: str) -> Figure:
  """Target, reconstruction and the size of the error; the error's white is a quarter of the image's.

  Args:
    examples: `(label, target, reconstruction)`, images of one shape each.
    caption: title.

  Returns:
    The figure.
  """
  titles = ('target', 'reconstruction', '|error|, x 4')
  figure = Figure(figsize=(7.2, 2.4 * len(examples) + 0.5), layout='constrained')
  grid = figure.subplots(len(examples), len(titles), squeeze=False)
  for line, (label, target, image) in zip(grid, examples):
    bottom, top = _window(target)
    error = dict(cmap='magma', vmin=0, vmax=0.25 * (top - bottom))
    for axes, shown in zip(line, (target, image, np.abs(image - target))):
      limits = error if axes is line[-1] else dict(cmap='gray', vmin=bottom, vmax=top)
      axes.imshow(shown, interpolation='nearest', **limits)
      axes.set_xticks([])
      axes.set_yticks([])
    line[0].set_ylabel(label, fontsize=8)
  for axes, title in zip(grid[0], titles):
    axes.set_title(title, fontsize=10)
  figure.suptitle(caption, fontsize=10)
  return figure


def training_curve(records: Mapping[str, Sequence[Mapping[str, Any]]], look: Mapping[str, tuple[int, str]]) -> Figure:
  """Training loss and validation SSIM against the step.

  Args:
    records: metrics by network.
    look: see `looks`.

  Returns:
    The figure.
  """
  figure = Figure(figsize=(8, 3.2), layout='constrained')
  left, right = figure.subplots(1, 2)
  for label, lines in records.items():
    number, colour = look[label]
    line = _LINES[number % len(_LINES)]
    for axes, name in ((left, 'loss'), (right, 'val_ssim')):
      points = [(r['step'], r[name]) for r in lines if name in r]
      if points:
        axes.plot(
          *zip(*points), ls=line, color=colour, label=label, lw=1.2, marker='o' if name == 'val_ssim' else None, ms=3
        )
  left.set_ylabel('training loss')
  right.set_ylabel('validation SSIM')
  for axes in (left, right):
    axes.set_xlabel('step')
    _plain(axes)
  many = len(records) > len(_COLOURS)
  _legend(figure, right if many else left, many)
  return figure


def players_curve(records: Sequence[Mapping[str, Any]]) -> Figure:
  """Both players of adversarial training against the step.

  Args:
    records: metrics of one run.

  Returns:
    The figure (Huang and Liang 2020, figure 4, and what it leaves out).
  """
  figure = Figure(figsize=(12, 3.2), layout='constrained')
  panels = (
    ('loss', (('loss_clean', 'reconstructor, clean'), ('loss_perturbed', 'reconstructor, perturbed'))),
    ('generator loss', (('loss_generator', 'generator'),)),
    ('gradient norm', (('gradient_norm', 'reconstructor'), ('gradient_norm_generator', 'generator'))),
    ('share', (('budget_used', 'budget used'), ('diversity', 'diversity'))),
  )
  records = [r for r in records if 'loss_generator' in r]
  for axes, (title, lines) in zip(figure.subplots(1, len(panels)), panels):
    for (name, label), colour in zip(lines, _cycle(_COLOURS)):
      axes.plot([r['step'] for r in records], [r[name] for r in records], color=colour, label=label, lw=1.1)
    if title in ('generator loss', 'gradient norm'):
      axes.set_yscale('symlog', linthresh=1e-2)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel('step')
    axes.legend(frameon=False, fontsize=8)
    _plain(axes)
  return figure


def perturbation_panel(examples: Sequence[tuple[str, Mapping[str, np.ndarray]]], caption: str) -> Figure:
  """Per network: clean reconstruction, perturbation, perturbed full image, attacked reconstruction.

  Args:
    examples: `(label, arrays of one attacked example)`.
    caption: title.

  Returns:
    The figure (Huang and Liang 2020, figure 6).
  """
  titles = ('reconstruction', 'perturbation', 'fully sampled, perturbed', 'reconstruction under attack')
  figure = Figure(figsize=(10.5, 2.8 * len(examples) + 0.5), layout='constrained')
  grid = figure.subplots(len(examples), len(titles), squeeze=False)
  for line, (label, arrays) in enumerate(examples):
    target, clean, attacked, control = (
      np.asarray(arrays[k], float) for k in ('target', 'clean', 'adversarial', 'control')
    )
    bottom, top = _window(target)
    change = 0.25 * (top - bottom)
    for column, image in enumerate((clean, control - target, control, attacked)):
      axes = grid[line, column]
      signed = column == 1
      limits = dict(vmin=-change, vmax=change, cmap='RdBu_r') if signed else dict(vmin=bottom, vmax=top, cmap='gray')
      axes.imshow(image, interpolation='nearest', **limits)
      axes.set_xticks([])
      axes.set_yticks([])
      if line == 0:
        axes.set_title(titles[column], fontsize=10)
    grid[line, 0].set_ylabel(label, fontsize=10)
  figure.suptitle(caption, fontsize=11)
  return figure


def sampling_panel(arrays: Mapping[str, np.ndarray]) -> Figure:
  """Full and undersampled k-space and their images.

  Args:
    arrays: `kspace`, `sampled`, `image`, `zero_filled`, magnitudes `[row, col]`.

  Returns:
    The figure (Huang and Liang 2020, figure 5).
  """
  figure = Figure(figsize=(10.5, 3.0), layout='constrained')
  level = np.quantile(arrays['kspace'], 0.5) or 1.0
  top = float(np.quantile(arrays['image'], 0.999))
  shown = (
    ('k-space, full', 'kspace'),
    ('its image', 'image'),
    ('k-space, sampled', 'sampled'),
    ('zero-filled', 'zero_filled'),
  )
  for axes, (title, name) in zip(figure.subplots(1, 4), shown):
    spectrum = name in ('kspace', 'sampled')
    image = np.log1p(arrays[name] / level) if spectrum else arrays[name]
    axes.imshow(
      image,
      cmap='gray',
      vmin=0,
      vmax=np.log1p(arrays['kspace'].max() / level) if spectrum else top,
      interpolation='nearest',
    )
    axes.set_title(title, fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])
  return figure


def retained_curves(rows: Sequence[Mapping[str, Any]], unit: str) -> Figure:
  """Retained detectability against the detectability in the input, one panel per size, one line per network.

  Args:
    rows: of `detectability.csv`, of one or several networks.
    unit: of the sizes.

  Returns:
    The figure.
  """
  sizes = sorted({float(r['size']) for r in rows})
  names = list(dict.fromkeys(r['network'] for r in rows))
  figure = Figure(figsize=(2.6 * len(sizes) + 2.4, 3.4), layout='constrained')
  styles = ('-', '--', ':')
  for axes, size in zip(figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0], sizes):
    for k, name in enumerate(names):
      at = sorted(
        (r for r in rows if r['network'] == name and float(r['size']) == size), key=lambda r: float(r['input'])
      )
      if not at:
        continue
      x, y, low, high = (
        np.array([float(r[c]) for r in at]) for c in ('input', 'retained', 'retained_low', 'retained_high')
      )
      colour = _COLOURS[k % len(_COLOURS)]
      axes.plot(x, y, marker='o', ms=3, color=colour, ls=styles[k // len(_COLOURS)], lw=1.2, label=name)
      axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
    axes.axhline(1, color='0.7', ls=':', lw=0.8)
    axes.axhline(0.5, color='0.7', ls='--', lw=0.8)
    axes.set_title(f'{size:g} {unit}', fontsize=10)
    axes.set_xlabel("d' in the input")
    _plain(axes)
  # Only now: a limit that is set stops the others, which share it, from making room.
  figure.axes[0].set_ylim(bottom=min(0, figure.axes[0].get_ylim()[0]))
  figure.axes[0].set_ylabel("r = d' output / d' input")
  figure.legend(*figure.axes[0].get_legend_handles_labels(), frameon=False, fontsize=8, loc='outside right center')
  return figure


def sample_panel(rows: Sequence[tuple[str, Mapping[str, np.ndarray]]], ct: bool) -> Figure:
  """Input, target, output, samples and their standard deviation, and the output of every sample; per layer.

  Args:
    rows: `(layer, arrays of one case)`; all rows have the same noise v.
    ct: show the lung window.

  Returns:
    The figure (Eulig et al. 2022, slides on sampled invariances).
  """
  count = rows[0][1]['samples'].shape[0]
  titles = ('x', 'y', 'f(x)', *(f'sample {i + 1}' for i in range(count)), 'deviation')
  figure = Figure(figsize=(1.55 * len(titles), 3.1 * len(rows) + 0.3), layout='constrained')
  grid = figure.subplots(2 * len(rows), len(titles), squeeze=False)
  for line, (layer, arrays) in enumerate(rows):
    above = [arrays['input'], arrays['target'], arrays['output'], *arrays['samples'], arrays['deviation']]
    below = [None, None, None, *arrays['outputs'], None]
    for row, images in enumerate((above, below)):
      for column, image in enumerate(images):
        axes = grid[2 * line + row, column]
        if image is None:
          axes.axis('off')
          continue
        deviation = column == len(images) - 1
        _show(axes, image, ct, arrays, deviation=deviation)
        if not deviation:
          _circle(axes, arrays)
        if line == row == 0:
          axes.set_title(titles[column], fontsize=9)
    grid[2 * line, 0].set_ylabel(layer, fontsize=9)
    grid[2 * line + 1, 3].set_ylabel('f of it', fontsize=9)
  return figure


def change_panel(arrays: Mapping[str, np.ndarray], ct: bool) -> Figure:
  """Samples ranked by their largest change near the structure, with its box, and by mean absolute difference.

  Args:
    arrays: of one case.
    ct: show the lung window.

  Returns:
    The figure.
  """
  count = arrays['altered'].shape[0]
  figure = Figure(figsize=(1.7 * (count + 2), 3.7), layout='constrained')
  grid = figure.subplots(2, count + 2, squeeze=False)
  for line, name in enumerate(('altered', 'different')):
    for column, (title, image) in enumerate(
      (('y', arrays['target']), ('f(x)', arrays['output']), *((f'{i + 1}', x) for i, x in enumerate(arrays[name])))
    ):
      axes = grid[line, column]
      _show(axes, image, ct, arrays)
      if column < 2:
        _circle(axes, arrays)
      elif line == 0 and arrays['boxes'][column - 2][2]:
        row, col, height, width = arrays['boxes'][column - 2]
        axes.add_patch(_rectangle((row, row + height, col, col + width)))
      axes.set_title(title, fontsize=9)
  axes = grid[1, 0]
  axes.clear()
  axes.imshow(
    arrays['excess'], cmap='magma', vmin=0, vmax=max(2.0, float(arrays['excess'].max())), interpolation='nearest'
  )
  axes.set_title('excess variation', fontsize=9)
  axes.set_xticks([])
  axes.set_yticks([])
  grid[0, 0].set_ylabel('largest change', fontsize=9)
  grid[1, 0].set_ylabel('mean difference', fontsize=9)
  return figure


def anatomy_panel(arrays: Mapping[str, np.ndarray], ct: bool) -> Figure:
  """Target, output, and anatomies sampled in the high-dose domain.

  Args:
    arrays: of one input.
    ct: show the lung window.

  Returns:
    The figure.
  """
  images = [
    ('y', arrays['target']),
    ('f(x)', arrays['output']),
    *((f'sample {i + 1}', x) for i, x in enumerate(arrays['anatomies'])),
  ]
  figure = Figure(figsize=(1.7 * len(images), 2.0), layout='constrained')
  for axes, (title, image) in zip(figure.subplots(1, len(images), squeeze=False)[0], images):
    _show(axes, image, ct, arrays)
    _circle(axes, arrays)
    axes.set_title(title, fontsize=9)
  return figure


def _show(axes, image, ct, arrays, *, deviation=False):
  if deviation:
    limits = dict(cmap='magma', vmin=0, vmax=float(np.quantile(image, 0.995)))
  elif ct:
    # The lung window of the LDCT data, -600 +- 750 HU.
    low, high = normalise(np.array([-1350.0, 150.0]))
    limits = dict(cmap='gray', vmin=low, vmax=high)
  else:
    low, high = _window(arrays['target'])
    limits = dict(cmap='gray', vmin=low, vmax=high)
  axes.imshow(image, interpolation='nearest', **limits)
  axes.set_xticks([])
  axes.set_yticks([])


def _circle(axes, arrays):
  from matplotlib.patches import Circle

  row, col = arrays['centre']
  axes.add_patch(Circle((col, row), float(arrays['diameter']) / 2 + 3, fill=False, ec='#ffd400', lw=1.0))


def _window(target):
  """Black and white of images: 0 is black in MR, air in CT, whose values are below 0."""
  return min(0.0, float(np.quantile(target, 0.001))), float(np.quantile(target, 0.999))


def _rectangle(box):
  from matplotlib.patches import Rectangle

  return Rectangle((box[2] - 0.5, box[0] - 0.5), box[3] - box[2], box[1] - box[0], fill=False, ec='#ffd400', lw=1.2)


def _axes():
  figure = Figure(figsize=(5.2, 3.6), layout='constrained')
  axes = figure.subplots()
  _plain(axes)
  return figure, axes


def _plain(axes):
  axes.spines[['top', 'right']].set_visible(False)
  axes.grid(axis='y', color='0.9', lw=0.8)


def _cycle(colours):
  while True:
    yield from colours


def _legend(figure, axes, many):
  if not many:
    axes.legend(frameon=False, fontsize=9)
    return
  # Beside the axes, where many names hide no line.
  figure.set_size_inches(figure.get_figwidth() + 2.6, figure.get_figheight())
  axes.legend(frameon=False, fontsize=8, loc='center left', bbox_to_anchor=(1.02, 0.5))


def _grouped(rows, key):
  groups = defaultdict(list)
  for row in rows:
    groups[key(row)].append(row)
  return sorted(groups.items())


def _metric_name(metric):
  kind, where, _ = metric.split('_')
  return f'{kind.upper()} {"in the box" if where == "region" else "of the image"}'
