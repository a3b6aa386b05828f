"""Variational inference: an autoencoder of handwritten digits, trained by SVI.

Training uses no labels, but equal digits get similar codes, and log p(x) separates digits from
noise.
"""

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

import probdl

digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
images = torch.tensor(digits.images[order] > 7, dtype=torch.float32)  # (1797, 8, 8), 0 and 1
label = digits.target[order]
train, test = slice(0, 1500), slice(1500, None)

torch.manual_seed(0)  # for the initial weights
vae = probdl.models.VAE.mlp((8, 8), latent_dim=8, hidden=64)
method = probdl.SVI(epochs=150, batch_size=100, learning_rate=3e-3)
fit = probdl.infer(vae, images[train], method=method, seed=1)
print(f"Findings: {fit.diagnose()}\n")

codes = fit.encode(images)["z"]
neighbours = KNeighborsClassifier(10).fit(codes[train], label[train])
accuracy = neighbours.score(codes[test], label[test])
print(f"Nearest neighbours of the codes classify {accuracy:.0%} of {len(label[test])} digits.")

some = images[test][:100]
noise = some.flatten()[torch.randperm(some.numel())].reshape(some.shape)  # shuffled pixels
evidence = fit.log_evidence(some, num_samples=100).pointwise.mean()
of_noise = fit.log_evidence(noise, num_samples=100).pointwise.mean()
print(f"Mean log p(x) of held-out digits: {evidence:.1f} nats, of noise: {of_noise:.1f}.\n")

print("Three digits, their reconstructions, and three new digits drawn from the model:")
rows = [*images[test][:3], *fit.reconstruct(images[test][:3])["x"], *fit.predict(size=3)["x"][0, 0]]
for line in range(8):
    print("  ".join("".join(" ░▒▓█"[round(4 * float(p))] for p in image[line]) for image in rows))
