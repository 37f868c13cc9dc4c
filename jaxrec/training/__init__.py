"""Training tasks, the loop, checkpoints and data parallelism."""

from jaxrec.training.augmentation import augmented, noisier
from jaxrec.training.averaging import AveragedState, averaged
from jaxrec.training.checkpoint import Checkpointer, CheckpointError
from jaxrec.training.gan import GANState, cut_mix, du_gan, sobel, wgan_vgg
from jaxrec.training.generative import AdversarialState, Adversary, adversarial, image_adversary, kspace_adversary
from jaxrec.training.loop import Diverged, Stopped, fit
from jaxrec.training.parallel import Parallel, data_parallel
from jaxrec.training.representation import VAEState, cvae, flow
from jaxrec.training.robust import consistency, free, jacobian, jitter, worst_case
from jaxrec.training.schedules import schedule
from jaxrec.training.tasks import Task, TrainState, image_loss, image_scores, optimizer, supervised

__all__ = [
  'AdversarialState', 'Adversary', 'AveragedState', 'Checkpointer', 'CheckpointError', 'Diverged', 'GANState', 'Parallel', 'Stopped', 'Task', 'TrainState',
  'VAEState', 'adversarial', 'augmented', 'averaged', 'consistency', 'cut_mix', 'cvae', 'data_parallel', 'du_gan', 'fit', 'flow', 'free', 'image_adversary', 'image_loss', 'image_scores',
  'jacobian', 'jitter', 'kspace_adversary', 'noisier', 'optimizer', 'schedule', 'sobel', 'supervised',
  'wgan_vgg', 'worst_case',
]  # fmt: skip
