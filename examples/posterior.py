"""The posterior by NUTS, and predictions: the stopping distance of a car at a given speed.

The data are stopping distances of cars from the 1920s (Ezekiel, 1930). The reaction distance is
proportional to speed, the braking distance to its square, and the spread grows with speed.
"""

import numpy as np
import pyro
import pyro.distributions as dist

import probdl

SPEED = """4 4 7 7 8 9 10 10 10 11 11 12 12 12 12 13 13 13 13 14 14 14 14 15 15 15 16 16 17 17 17 18
18 18 18 19 19 19 20 20 20 20 20 22 23 24 24 24 24 25"""  # miles per hour
DISTANCE = """2 10 4 22 16 10 18 26 34 17 28 14 20 24 28 26 34 34 46 26 36 60 80 20 26 54 32 40 32
40 50 42 56 76 84 36 46 68 32 48 52 56 64 66 54 70 92 93 120 85"""  # feet


def model(speed, distance=None):
    """Draw the distances of cars at these speeds."""
    reaction = pyro.sample("reaction", dist.HalfNormal(2.0))
    braking = pyro.sample("braking", dist.HalfNormal(0.2))
    spread = pyro.sample("spread", dist.HalfNormal(2.0))
    with pyro.plate("car", len(speed)):
        mean = reaction * speed + braking * speed**2
        pyro.sample("distance", dist.Normal(mean, spread * speed), obs=distance)


speed, distance = (np.array(text.split(), dtype=float) for text in (SPEED, DISTANCE))
fit = probdl.infer(model, speed, distance, method=probdl.NUTS(target_accept=0.95), seed=1)
print(fit.summary())
print(f"\nFindings: {fit.diagnose()}")

at = np.array([10.0, 30.0])  # 30 is beyond the data
draws = fit.predict(at)["distance"].reshape(-1, 2)
for where, column in zip(at, draws.T, strict=True):
    low, middle, high = np.quantile(column, [0.05, 0.5, 0.95])
    print(f"At {where:.0f} mph: {middle:.0f} feet (90 % interval {low:.0f} to {high:.0f} feet).")

inside = np.quantile(fit.posterior_predictive()["distance"], [0.05, 0.95], axis=(0, 1))
share = np.mean((distance >= inside[0]) & (distance <= inside[1]))
print(f"Of the {len(distance)} measured cars, {share:.0%} are inside their 90 % interval.")
