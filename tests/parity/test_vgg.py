"""VGG features from a checkpoint in torchvision's layout."""

import jax
import numpy as np
import pytest

from jaxrec import models
from jaxrec.models.weights import WeightsError

torch = pytest.importorskip('torch', reason='torch is not installed')


def features(counts=(2, 2, 3, 3, 3)):
  parts, chans = [], 3
  for block, count in enumerate(counts):
    for _ in range(count):
      width = min(64 * 2**block, 512)
      parts += [torch.nn.Conv2d(chans, width, 3, padding=1), torch.nn.ReLU()]
      chans = width
    parts.append(torch.nn.MaxPool2d(2))
  return torch.nn.Sequential(*parts)


def test_features_agree_with_torch(tmp_path):
  torch.manual_seed(0)
  theirs = features()
  path = tmp_path / 'vgg16.pth'
  torch.save({f'features.{k}': v for k, v in theirs.state_dict().items()}, path)
  module, variables = models.load_vgg(path, 'vgg16')
  image = np.random.default_rng(0).standard_normal((2, 16, 24)).astype(np.float32)
  x = torch.from_numpy(image)[:, None].repeat(1, 3, 1, 1)
  expected = []
  with torch.no_grad():
    for i, part in enumerate(theirs[:23]):
      x = part(x)
      if i in (3, 8, 15, 22):
        expected.append(x.permute(0, 2, 3, 1).numpy())
  ours = jax.jit(module.apply)(variables, image)
  for a, b in zip(ours, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
  distance = models.perceptual(lambda x: module.apply(variables, x))
  np.testing.assert_allclose(distance(image, image), 0)
  assert (distance(image, image[::-1]) > 0).all()
  with pytest.raises(WeightsError, match='it is no vgg19 of torchvision'):
    models.load_vgg(path, 'vgg19')
  with pytest.raises(WeightsError, match='its SHA-256 is'):
    models.load_vgg(path, 'vgg16', sha256='0' * 64)
