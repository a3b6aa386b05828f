"""Each chain of NUTS as one job, and their fits joined: for a queue such as Slurm's.

    sbatch --array=0-3 --wrap "python examples/on_slurm.py"   # one chain a job
    python examples/on_slurm.py join                          # when all have ended

The joined fit is that of one run with four chains. A job that was killed goes on from its
checkpoint if it is submitted again.
"""

import os
import sys

import numpy as np
import pyro
import pyro.distributions as dist

import probdl

SIGMA = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
EFFECT = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
CHAINS = 4


def schools(sigma, effect):
    """Draw the effects of coaching in schools, which share a mean and a spread."""
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    spread = pyro.sample("spread", dist.HalfNormal(10.0))
    with pyro.plate("school", len(sigma)):
        offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
        pyro.sample("effect", dist.Normal(mean + spread * offset, sigma), obs=effect)


if sys.argv[1:] == ["join"]:
    parts = [probdl.load(f"chain{i}", model=schools) for i in range(CHAINS)]
    fit = probdl.concat(parts)
    print(fit.summary().loc[["mean", "spread"]])
    print(f"Findings: {fit.diagnose()}")
else:
    chain = int(os.environ.get("SLURM_ARRAY_TASK_ID", 0))
    method = probdl.NUTS(
        chains=CHAINS,
        chain_ids=[chain],
        checkpoint=f"checkpoint{chain}",
        target_accept=0.95,
    )
    fit = probdl.infer(schools, SIGMA, EFFECT, method=method, seed=1)
    fit.save(f"chain{chain}")
