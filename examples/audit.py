"""Networks of three frameworks and a classical reconstruction, attacked side by side on NumPy arrays."""

import jax
from fastmri.models import VarNet
from flax import nnx
from others import EquinoxUNet, NnxUNet, cg_sense

import jaxrec
from jaxrec.data import synthetic

arrays = [(scan.kspace, scan.mask) for scan in (synthetic.scan(seed, rows=48, cols=48, coils=2) for seed in (1, 2))]

scans = [jaxrec.Scan.from_kspace(kspace, mask, box=(18, 14, 16, 16)) for kspace, mask in arrays]
networks = {
  'Equinox U-Net': jaxrec.network(EquinoxUNet(jax.random.key(0)), inputs=jaxrec.networks.zero_filled),
  'nnx U-Net': jaxrec.network(NnxUNet(nnx.Rngs(0)), inputs=jaxrec.networks.zero_filled),
  'CG-SENSE': cg_sense,
  'torch VarNet': jaxrec.torch_network(
    VarNet(1, chans=4, pools=2, sens_chans=2, sens_pools=2), inputs=jaxrec.networks.fastmri
  ),
}
noise = jaxrec.Sweep(jaxrec.coil_noise, (0.01, 0.02), search=jaxrec.pgd(num_steps=3))
rows = jaxrec.audit(networks, scans, {'noise': noise}, folder='runs/audit')
print(jaxrec.report('runs/audit'))
