"""An autoencoder of handwritten digits, trained by several processes.

    torchrun --nproc-per-node=4 examples/on_torchrun.py
    python examples/on_torchrun.py                        # the same, by one process

Each process takes its part of every minibatch, so the results do not depend on their number but
for chance. The first one reports, and writes the checkpoint from which a killed training resumes.
"""

import os

import numpy as np
import torch
from sklearn.datasets import load_digits

import probdl

images = torch.tensor(load_digits().images > 7, dtype=torch.float32)  # (1797, 8, 8), 0 and 1
images = images[np.random.default_rng(0).permutation(len(images))]

torch.manual_seed(0)  # the same initial weights in all processes
vae = probdl.models.VAE.mlp((8, 8), latent_dim=8, hidden=64)
method = probdl.SVI(epochs=150, batch_size=120, learning_rate=3e-3, checkpoint="digits")
fit = probdl.infer(vae, images[:1500], method=method, seed=1)

evidence = fit.log_evidence(images[1500:1600], num_samples=100).pointwise.mean()
if os.environ.get("RANK", "0") == "0":
    fit.save("digits-fit")
    print(f"Mean log p(x) of held-out digits: {evidence:.1f} nats.")
