"""Numbers and pictures of "A real scan" out of the run of `configs/phantom_to_real.py`: `python docs/real_slice.py RUN`."""

import csv
import json
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
from matplotlib.figure import Figure

HERE = Path(__file__).parent
NUMBERS = HERE / 'numbers' / 'phantom_to_real'


def main(run: Path):
  """Writes files that say the same as the run."""
  NUMBERS.mkdir(exist_ok=True)
  shutil.copy(run / 'summary.csv', NUMBERS)
  for name in ('config.json', 'provenance.json', 'cost.json'):
    shutil.copy(run / 'varnet' / name, NUMBERS)
  gains = clean(run / 'summary.csv')
  with (NUMBERS / 'gain.csv').open('w', newline='') as file:
    writer = csv.writer(file)
    writer.writerow(['data', 'zero_filled', 'varnet', 'gain'])
    writer.writerows([data, zero, net, net - zero] for data, (zero, net) in gains.items())
  curve(run / 'varnet' / 'metrics.jsonl', gains['phantom'][0]).savefig(HERE / 'real_curve.png', dpi=130)
  panel(run).savefig(HERE / 'brain_panel.png', dpi=130)


def clean(summary: Path) -> dict[str, tuple[float, float]]:
  """PSNR in dB without attack, zero-filled and of the VarNet, by data."""
  with summary.open() as file:
    rows = [r for r in csv.DictReader(file) if float(r['strength']) == 0 and r['perturbation'] == 'coil_noise']
  found = {r['network']: float(r['psnr_image_mean']) for r in rows}
  return {data: (found[f'zero-filled, {data}'], found[f'VarNet, {data}']) for data in ('phantom', 'real')}


def curve(metrics: Path, zero_filled: float) -> Figure:
  """PSNR of held-out phantoms over the training."""
  records = [json.loads(line) for line in metrics.read_text().splitlines()]
  steps, psnr = zip(*((r['step'], r['val_psnr']) for r in records if 'val_psnr' in r))
  figure = Figure(figsize=(4.2, 2.6), layout='constrained')
  axes = figure.subplots()
  axes.plot(steps, psnr, marker='o', markersize=3, label='VarNet, 4x and 8x')
  axes.axhline(zero_filled, color='0.4', linestyle='--', label='zero-filled, 8x')
  axes.set(xlabel='step', ylabel='PSNR [dB]', title='held-out phantoms', xlim=(0, None))
  axes.legend(frameon=False, fontsize=8)
  axes.spines[['top', 'right']].set_visible(False)
  return figure


def panel(run: Path) -> Figure:
  """The real slice: target, zero-filled, VarNet, and attacked."""
  with h5py.File(run / 'varnet_real' / 'images.h5') as file, h5py.File(run / 'zero_filled_real' / 'images.h5') as other:
    case = next(name for name in file if name.endswith('.coil_noise.region'))
    noise, rotation = file[case], file[case.replace('coil_noise', 'rotation')]
    target, region = noise['target'][:], noise['region'][:]
    images = {
      'fully sampled': target,
      'zero-filled, 4x': other[case]['clean'][:],
      'VarNet': noise['clean'][:],
      f'{float(noise["strength"][()]):.1%} noise': noise['adversarial'][:],
      f'{float(rotation["strength"][()]):g}° rotation': rotation['adversarial'][:],
    }
  rows, cols = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
  box = slice(rows[0] - 15, rows[-1] + 16), slice(cols[0] - 15, cols[-1] + 16)
  top = float(np.quantile(target, 0.998))
  figure = Figure(figsize=(1.8 * len(images), 4.2), layout='constrained')
  axes = figure.subplots(2, len(images))
  for column, (title, image) in enumerate(images.items()):
    for axis, shown in zip(axes[:, column], (image, image[box])):
      axis.imshow(shown, cmap='gray', vmin=0, vmax=top, interpolation='nearest')
      axis.axis('off')
    axes[0, column].set_title(title, fontsize=9)
    x, y = [cols[0], cols[-1], cols[-1], cols[0], cols[0]], [rows[0], rows[0], rows[-1], rows[-1], rows[0]]
    axes[0, column].plot(x, y, color='gold', linewidth=1)
  return figure


if __name__ == '__main__':
  main(Path(sys.argv[1]))
