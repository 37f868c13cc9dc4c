"""Networks of any framework as one thing that attacks, audits and reports take."""

import copy
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.buffer_callback import buffer_callback
from jaxtyping import Bool, Float, Int

from jaxrec.fourier import ifft2c, rss
from jaxrec.types import Array, Image, Reconstructor, Sample, Scan, Variables

Inputs = Callable[[Sample], tuple]


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
  """A reconstruction network with its weights.

  Attributes:
    reconstruct: `(variables, sample) -> [row, col]` float image of the full field
      of view, in the units of the sample's target; pure and differentiable.
    variables: the weights, a pytree of arrays; `None` if there are none.
    name: what rows call the network's kind.
    surrogate: another network that gradient searches look at instead, for
      transfer: `dataclasses.replace(mine, surrogate=other)`.
    one_program: whether the network is part of the XLA program that attacks it.
    inner: what images depend on beside `variables`, a torch module or a function: run
      folders tell networks apart by it.
  """

  reconstruct: Reconstructor
  variables: Variables = None
  name: str = 'network'
  surrogate: 'Network | None' = None
  one_program: bool = True
  inner: Any = None

  def __call__(self, sample: Sample) -> Image:
    """Reconstructs one sample."""
    return self.reconstruct(self.variables, sample)


def measured(sample: Sample) -> tuple:
  """Inputs of this package's networks: k-space, mask and centre of a `Scan`, the image of a `Slice`.

  Args:
    sample: a scan or slice.

  Returns:
    `(kspace, mask, acs)`, or the image alone.
  """
  return (sample.kspace, sample.mask, sample.acs) if isinstance(sample, Scan) else (sample.input,)


def zero_filled(sample: Sample) -> tuple[Image]:
  """Input of networks that map an image to an image: RSS of the zero-filled coils.

  Args:
    sample: a scan, or a slice, whose image it is.

  Returns:
    `([row, col],)` float.
  """
  if not isinstance(sample, Scan):
    return (sample.input,)
  return (rss(ifft2c(jnp.where(sample.mask, sample.kspace, 0))),)


def fastmri(
  scan: Scan,
) -> tuple[Float[Array, '1 coil row col 2'], Bool[Array, '1 1 1 col 1'], Int[Array, '']]:
  """Inputs of the fastMRI package's `VarNet`.

  Args:
    scan: its mask must be of columns, `[1, col]`.

  Returns:
    Masked k-space `[1, coil, row, col, 2]`, mask `[1, 1, 1, col, 1]` and the
    number of columns in the centre `[]`.
  """
  kspace = jnp.where(scan.mask, scan.kspace, 0)
  return (
    jnp.stack([kspace.real, kspace.imag], -1)[None],
    scan.mask.reshape(1, 1, *scan.mask.shape, 1),
    jnp.sum(scan.acs),
  )


def network(
  model: Any, variables: Variables = None, *, inputs: Inputs | None = None, name: str | None = None
) -> Network:
  """Makes a `Network` of what a user has.

  Training tasks need more than a function: they take Flax linen modules.

  Args:
    model: a Flax linen module, whose `variables` are given too; an nnx module; any
      callable pytree, such as an Equinox module; a function `(sample) -> image`,
      or, with `variables`, `(variables, sample) -> image`.
    variables: of a linen module or of a function. The arrays of a function
      without them become constants of the program, slow to compile if large.
    inputs: `(sample) -> tuple`, the arguments of a module's call; `measured` if
      `None`; `zero_filled` is for networks of images. Modules may add axes of
      length 1 to their image.
    name: the class or function's name if `None`.

  Returns:
    The network, in evaluation mode where that is known: nnx modules are copied
    with `eval()`; give an Equinox module after `eqx.nn.inference_mode`.

  Raises:
    ValueError: if weights are missing or the model cannot be called.

  Example:
    >>> import jax, jaxrec
    >>> from jaxrec.data import synthetic
    >>> scan = synthetic.scan(0, rows=32, cols=32, coils=2)
    >>> sense = jaxrec.network(lambda scan: jaxrec.networks.zero_filled(scan)[0], name='zero-filled')
    >>> sense(scan).shape
    (32, 32)
  """
  if isinstance(model, Network):
    return model
  label: str = name if name else getattr(model, '__name__', type(model).__name__)
  if not callable(model):
    raise ValueError(f'network: {label} cannot be called; give a module or a function of a sample')
  if is_torch(model):
    raise ValueError(f'network: {label} is a torch module; use jaxrec.torch_network')
  if isinstance(model, nn.Module):
    if variables is None:
      raise ValueError(
        f'network: {label} is a linen module, which holds no weights; give its variables as second argument'
      )
    called = _called(lambda variables, *args: model.apply(variables, *args), inputs, label)
    return Network(called, variables, label, inner=inputs)
  apply, held = _split(model)
  if held is not None:
    if variables is not None:
      raise ValueError(f'network: {label} holds its own weights; leave variables out')
    return Network(_called(apply, inputs, label), held, label, inner=inputs)
  if inputs is not None:
    raise ValueError(f'network: {label} is a function of a sample; leave inputs out')
  given = variables is not None
  return Network(
    lambda variables, sample: _image(model(variables, sample) if given else model(sample), label), variables, label,
    inner=model,
  )  # fmt: skip


def is_torch(model: Any) -> bool:
  """Whether it is a module of torch, which need not be installed."""
  return any(c.__module__.split('.')[0] == 'torch' for c in type(model).__mro__)


def arrays_of(model: Any) -> list[Any] | None:
  """Arrays of an nnx module or a pytree, such as an Equinox module; `None` of anything else."""
  held = _split(model)[1]
  return None if held is None else jax.tree.leaves(held)


def _split(model):
  """A module as `(function of arrays and arguments, arrays)`; `(None, None)` for a plain function."""
  from flax import nnx  # Slow to import, and few need it.

  if isinstance(model, nnx.Module):
    graph, state = nnx.split(model)

    def apply(state, *args):
      merged = nnx.merge(graph, state)
      merged.eval()
      return merged(*args)

    return apply, state
  leaves, tree = jax.tree.flatten(model)
  if jax.tree_util.treedef_is_leaf(tree):
    return None, None
  is_array = [isinstance(leaf, (jax.Array, np.ndarray)) for leaf in leaves]

  def call(arrays, *args):
    arrays = iter(arrays)
    return tree.unflatten([next(arrays) if array else leaf for leaf, array in zip(leaves, is_array)])(*args)

  return call, [leaf for leaf, array in zip(leaves, is_array) if array]


def _called(apply, inputs, name):
  return lambda variables, sample: _image(apply(variables, *(inputs or measured)(sample)), name)


def _image(image, name):
  """`[row, col]` without the axes of length 1 that modules add."""
  if not hasattr(image, 'shape'):
    raise ValueError(f'network {name}: its output is a {type(image).__name__}; it must be a float image [row, col]')
  shape = jnp.shape(image)
  kept = tuple(n for n in shape[:-2] if n != 1) + tuple(shape[-2:])
  if len(kept) == 3 and kept[-1] == 1:
    kept = kept[:-1]
  if len(kept) != 2 or not jnp.issubdtype(image.dtype, jnp.floating):
    raise ValueError(f'network {name}: its output is {image.dtype}{list(shape)}; it must be a float image [row, col]')
  return image.reshape(kept)


def zero_filling() -> Network:
  """The reconstruction that knows nothing, for comparisons: RSS of the zero-filled coils."""
  return network(lambda sample: zero_filled(sample)[0], name='zero-filled')


def torch_network(module: Any, *, inputs: Inputs, name: str | None = None) -> Network:
  """A PyTorch module as a `Network`: slow, but exact.

  Every call leaves the XLA program for the host and runs `module` there, on its
  own device, one example at a time; the gradient is autograd's. It is not one XLA
  program: use it to audit what cannot be converted. Images and gradients agree with
  those of a converted network to rounding, which searches of many steps amplify: in
  single precision their rows may differ in the second digit, in double they do not.

  Args:
    module: a `torch.nn.Module`; a copy in evaluation mode is used.
    inputs: `(sample) -> tuple`, the arrays that `module` takes, as JAX makes them;
      `fastmri` is for the fastMRI package's VarNet. Gradients pass through
      floating and complex ones.
    name: the class's name if `None`.

  Returns:
    A network whose `one_program` is false; its weights stay inside `module`.

  Raises:
    ValueError: if `module` is no torch module, or makes no float image.
  """
  if not is_torch(module):
    raise ValueError(f'torch_network: {type(module).__name__} is no torch module; use jaxrec.network')
  import torch

  name = name or type(module).__name__
  module = copy.deepcopy(module).eval()
  device = next((p.device for p in module.parameters()), torch.device('cpu'))

  def tensors(arrays):
    # Copied: torch wants memory that it may write to.
    return [torch.from_numpy(np.array(x)).to(device) for x in arrays]

  def forward(*arrays):
    with torch.no_grad():
      made = module(*tensors(arrays))
    if not isinstance(made, torch.Tensor) or made.dtype == torch.bfloat16:
      kind = made.dtype if isinstance(made, torch.Tensor) else f'a {type(made).__name__}'
      raise ValueError(f'network {name}: its output is {kind}; it must be a float image [row, col]')
    return (made.cpu().numpy(),)

  def backward(cotangent, *arrays):
    with torch.enable_grad():
      given = [x.requires_grad_(x.is_floating_point() or x.is_complex()) for x in tensors(arrays)]
      wanted = [x for x in given if x.requires_grad]
      seed = torch.from_numpy(np.array(cotangent)).to(device)
      found = torch.autograd.grad(module(*given), wanted, seed, allow_unused=True)
    # Torch's gradient is the conjugate of JAX's.
    return tuple(
      np.zeros(x.shape, x.detach().cpu().numpy().dtype) if g is None else g.conj().resolve_conj().cpu().numpy()
      for x, g in zip(wanted, found)
    )

  def shape_of(args):
    # What a module makes of zeros has the shape and type of all it makes of such arrays.
    (made,) = forward(*(np.zeros(x.shape, x.dtype) for x in args))
    return (jax.ShapeDtypeStruct(made.shape, made.dtype),)

  @jax.custom_vjp
  def call(*args):
    return _on_host(forward, shape_of(args), *args)[0]

  def call_backward(args, cotangent):
    wanted = [jnp.issubdtype(x.dtype, jnp.inexact) for x in args]
    shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x, w in zip(args, wanted) if w)
    found = iter(_on_host(backward, shapes, cotangent, *args))
    return tuple(next(found) if w else np.zeros(x.shape, jax.dtypes.float0) for x, w in zip(args, wanted))

  call.defvjp(lambda *args: (call(*args), args), call_backward)

  def reconstruct(variables, sample):
    del variables
    return _image(call(*map(jnp.asarray, inputs(sample))), name)

  return Network(reconstruct, None, name, one_program=False, inner=[module, inputs])


def _on_host(function, shapes, *args):
  """Arrays of NumPy to a tuple of them, within a program."""

  def write(_, places, *buffers):
    for place, made in zip(places, function(*map(np.asarray, buffers)), strict=True):
      np.asarray(place)[...] = made

  # On the CPU `pure_callback` hands over what another of JAX's threads has yet to copy, and with one core waits for ever (JAX issue 24255).
  return lax.platform_dependent(
    *args,
    cpu=buffer_callback(write, shapes, vmap_method='sequential'),
    default=partial(jax.pure_callback, function, shapes, vmap_method='sequential'),
  )
