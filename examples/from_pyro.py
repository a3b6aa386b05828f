"""Convert a Pyro script to probdl: `BEFORE` is a complete Pyro script, `AFTER` uses probdl.

The model stays the same. Only the lines that fit it change; the script prints them as a diff.
"""

import difflib
import time

BEFORE = """
import numpy as np, torch, pyro, pyro.distributions as dist
from pyro.infer import MCMC, NUTS, Predictive

rng = np.random.default_rng(0)
x = rng.normal(size=40)
y = 1.0 + 2.0 * x + rng.normal(size=40)

def model(x, y=None):
    intercept = pyro.sample("intercept", dist.Normal(0.0, 10.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
    with pyro.plate("obs", len(x)):
        pyro.sample("y", dist.Normal(intercept + slope * x, 1.0), obs=y)

pyro.set_rng_seed(1)
mcmc = MCMC(NUTS(model), num_samples=200, warmup_steps=100, disable_progbar=True)
mcmc.run(torch.tensor(x), torch.tensor(y))
draws = mcmc.get_samples()
new = Predictive(model, draws)(torch.tensor([2.0]))["y"]
"""

AFTER = BEFORE
for old, new in (
    ("import numpy as np, torch, pyro", "import numpy as np, probdl, pyro"),
    ("from pyro.infer import MCMC, NUTS, Predictive\n", ""),
    ("pyro.set_rng_seed(1)\n", ""),
    ("mcmc = MCMC(NUTS(model), num_samples=200, warmup_steps=100, disable_progbar=True)\n", ""),
    ("mcmc.run(torch.tensor(x), torch.tensor(y))", "fit = probdl.infer(model, x, y, seed=1)"),
    ("mcmc.get_samples()", "fit.draws"),
    ('Predictive(model, draws)(torch.tensor([2.0]))["y"]', 'fit.predict(np.array([2.0]))["y"]'),
):
    AFTER = AFTER.replace(old, new)

print("Changed lines:\n")
for line in difflib.unified_diff(BEFORE.splitlines(), AFTER.splitlines(), lineterm="", n=0):
    if line[:2] not in ("--", "++", ""):
        print(line)

for name, script in (("Pyro", BEFORE), ("probdl", AFTER)):
    start, namespace = time.perf_counter(), {}
    exec(script, namespace)
    print(f"\n{name}, {time.perf_counter() - start:.1f} s:")
    for site in ("intercept", "slope"):
        draws = namespace["draws"][site]
        print(f"  {site} {float(draws.mean()):.3f} ± {float(draws.std()):.3f}")
    print(f"  prediction at x = 2: {float(namespace['new'].mean()):.2f}")
