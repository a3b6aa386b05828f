"""Discrete latent sites: mixtures, recapture, annotators, topics, guides that sample."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoNormal
from pyro.ops.indexing import Vindex
from torch.distributions import constraints

from tests.pyro_programs.programs.registry import about, exact, program, seeded

TWO = torch.cat(
    [torch.randn(30, generator=seeded(0)) - 3, torch.randn(20, generator=seeded(1)) + 3]
)


def mixture(y):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("components", 2):
        loc = pyro.sample("loc", dist.Normal(torch.tensor([-1.0, 1.0]), 3.0))
    with pyro.plate("n", len(y)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(loc[z], 1.0), obs=y)


IN_TWO = about(loc=[-3.0, 3.0], weights=[0.6, 0.4])
program("Gaussian mixture", mixture, (TWO,), IN_TWO)
program("Gaussian mixture, decorator", config_enumerate(mixture), (TWO,), IN_TWO)
_exposed = poutine.block(mixture, expose=["weights", "loc"])
program("Gaussian mixture, SVI", mixture, (TWO,), IN_TWO, "svi", guide=AutoNormal(_exposed))


def _at_the_mode(fit):
    loc = fit.draws["loc"].reshape(-1, 2)
    assert abs(loc[0, 0] + 3) < 0.8
    assert abs(loc[0, 1] - 3) < 0.8


program(
    "Gaussian mixture, AutoDelta", mixture, (TWO,), _at_the_mode, "svi", guide=AutoDelta(_exposed)
)


def stick_breaking(y):
    with pyro.plate("sticks", 3):
        beta = pyro.sample("beta", dist.Beta(1, 1.0))
    with pyro.plate("components", 4):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    rest = torch.cat([torch.ones(1), (1 - beta).cumprod(-1)])
    weights = torch.cat([beta, torch.ones(1)]) * rest
    with pyro.plate("n", len(y)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


def stick_breaking_guide(y):
    kappa = pyro.param("kappa", torch.ones(3), constraint=constraints.positive)
    tau = pyro.param("tau", torch.tensor([-2.0, 2.0, 0.0, 1.0]))
    phi = pyro.param("phi", torch.ones(len(y), 4) / 4, constraint=constraints.simplex)
    with pyro.plate("sticks", 3):
        pyro.sample("beta", dist.Beta(torch.ones(3), kappa))
    with pyro.plate("components", 4):
        pyro.sample("mu", dist.Normal(tau, 1.0))
    with pyro.plate("n", len(y)):
        pyro.sample("z", dist.Categorical(phi))


def _has_both_clusters(fit):
    tau = fit.stats["params"]["tau"]
    assert min(abs(tau + 3)) < 1
    assert min(abs(tau - 3)) < 1


program(
    "Dirichlet process",
    stick_breaking,
    (TWO,),
    _has_both_clusters,
    "svi",
    guide=stick_breaking_guide,
    engine="graph",  # a Beta is drawn by rejection
    learning_rate=0.03,
    steps=800,
)


def _captures() -> torch.Tensor:
    generator, alive = seeded(2), torch.ones(60)
    seen = [torch.ones(60)]
    for _ in range(4):
        alive = alive * torch.bernoulli(torch.full((60,), 0.8), generator=generator)
        seen.append(alive * torch.bernoulli(torch.full((60,), 0.6), generator=generator))
    return torch.stack(seen, 1)


CAPTURES = _captures()


def _recapture(history, phi_at):
    """Cormack, Jolly and Seber: animals survive with phi, and are seen with rho."""
    n, times = history.shape
    rho = pyro.sample("rho", dist.Uniform(0.0, 1.0))
    z = torch.ones(n)
    mask = torch.zeros(n).bool()
    animals = pyro.plate("animals", n, dim=-1)
    for t in pyro.markov(range(times)):
        phi = phi_at(t)
        with animals, poutine.mask(mask=mask):
            z = pyro.sample(
                f"z_{t}",
                dist.Bernoulli(mask.float() * phi * z + (1 - mask.float())),
                infer={"enumerate": "parallel"},
            )
            pyro.sample(f"y_{t}", dist.Bernoulli(rho * z), obs=history[:, t])
        mask = mask | history[:, t].bool()


def recapture_1(history):
    phi = pyro.sample("phi", dist.Uniform(0.0, 1.0))
    _recapture(history, lambda t: phi)


def recapture_2(history):
    _recapture(history, lambda t: pyro.sample(f"phi_{t}", dist.Uniform(0.0, 1.0)) if t > 0 else 1.0)


def recapture_3(history):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.5))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))

    def phi_at(t):
        if t == 0:
            return 1.0
        return torch.sigmoid(pyro.sample(f"logit_{t}", dist.Normal(loc, scale)))

    _recapture(history, phi_at)


def recapture_4(history, group):
    with pyro.plate("groups", 2):
        phis = pyro.sample("phis", dist.Uniform(0.0, 1.0))
    _recapture(history, lambda t: phis[group])


GROUP = torch.arange(60) % 2
program("recapture, constant", recapture_1, (CAPTURES,), about(phi=0.8, rho=0.6))
program("recapture, by time", recapture_2, (CAPTURES,), about(rho=0.6))
program("recapture, random effects", recapture_3, (CAPTURES,), about(rho=0.6))
program("recapture, by group", recapture_4, (CAPTURES, GROUP), about(phis=[0.8, 0.8], rho=0.6))
program(
    "recapture, by time, SVI",
    recapture_2,
    (CAPTURES,),
    about(rho=0.6),
    "svi",
    guide=AutoNormal(poutine.block(recapture_2, hide_fn=lambda m: m["name"][:2] in ("z_", "y_"))),
)


def network(a, c):
    """A chain of binary sites, of which the middle one is not seen."""
    p_a = pyro.sample("p_a", dist.Beta(1.0, 1.0))
    p_b = pyro.sample("p_b", dist.Beta(torch.ones(2), torch.ones(2)).to_event(1))
    with pyro.plate("data", len(a)):
        a = pyro.sample("a", dist.Bernoulli(p_a), obs=a)
        b = pyro.sample("b", dist.Bernoulli(Vindex(p_b)[a.long()]), infer={"enumerate": "parallel"})
        pyro.sample("c", dist.Bernoulli(Vindex(torch.tensor([0.05, 0.95]))[b.long()]), obs=c)


A = torch.bernoulli(torch.full((200,), 0.7), generator=seeded(3))
B = torch.bernoulli(torch.where(A > 0, 0.8, 0.2), generator=seeded(4))
C = torch.bernoulli(torch.where(B > 0, 0.95, 0.05), generator=seeded(5))
program("a hidden binary site", network, (A, C), about(p_a=0.7, p_b=[0.2, 0.8]))


def annotators(votes):
    items, people = votes.shape
    share = pyro.sample("share", dist.Dirichlet(torch.ones(2)))
    skill = pyro.sample("skill", dist.Beta(torch.full((people,), 4.0), 1.0).to_event(1))
    with pyro.plate("items", items):
        truth = pyro.sample("truth", dist.Categorical(share))
        right = torch.where(truth[..., None] == 1, skill, 1 - skill)
        pyro.sample("votes", dist.Bernoulli(right).to_event(1), obs=votes)


TRUTH = torch.bernoulli(torch.full((100,), 0.4), generator=seeded(6))
SKILL = torch.tensor([0.9, 0.8, 0.7, 0.95])
VOTES = torch.bernoulli(torch.where(TRUTH[:, None] > 0, SKILL, 1 - SKILL), generator=seeded(7))
program("annotators", annotators, (VOTES,), about(skill=SKILL, share=[0.6, 0.4]))


def topics(words):
    with pyro.plate("topics", 2):
        topic_words = pyro.sample("topic_words", dist.Dirichlet(torch.ones(4)))
    with pyro.plate("documents", words.shape[1]):
        share = pyro.sample("share", dist.Dirichlet(torch.ones(2)))
        with pyro.plate("words", words.shape[0]):
            topic = pyro.sample("topic", dist.Categorical(share), infer={"enumerate": "parallel"})
            pyro.sample("word", dist.Categorical(topic_words[topic]), obs=words)


def _words_add_up(fit):
    found = fit.draws["topic_words"]
    assert abs(found.sum(-1) - 1).max() < 1e-9
    assert found.std((0, 1)).min() > 0


WORDS = torch.randint(0, 4, (8, 6), generator=seeded(8))
program("topics", topics, (WORDS,), _words_add_up)


def zero_inflated(y):
    gate = pyro.sample("gate", dist.Beta(1.0, 1.0))
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.ZeroInflatedPoisson(rate, gate=gate), obs=y)


ZEROS = torch.bernoulli(torch.full((150,), 0.7), generator=seeded(9))
INFLATED = ZEROS * torch.poisson(torch.full((150,), 3.0), generator=seeded(10))
program("zero-inflated counts", zero_inflated, (INFLATED,), about(gate=0.3, rate=3.0))


def counts(y):
    n = pyro.sample("n", dist.Poisson(3.0))
    pyro.sample("y", dist.Normal(n, 0.5), obs=y)


def counts_guide(y):
    rate = pyro.param("rate", torch.tensor(3.0), constraint=constraints.positive)
    pyro.sample("n", dist.Poisson(rate))


def _near_four(fit):
    assert abs(fit.stats["params"]["rate"] - 4) < 1.5


program(
    "a guide that samples counts",
    counts,
    (torch.tensor(4.0),),
    _near_four,
    "svi",
    guide=counts_guide,
    engine="eager",  # baselines of the score function change in each step
    steps=400,
)


def change(y):
    """A change of the rate at an unknown time."""
    with pyro.plate("rates", 2):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    when = pyro.sample("when", dist.Categorical(torch.ones(len(y))))
    times = torch.arange(len(y))
    later = (times > when).long()
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Poisson(Vindex(rate)[later]), obs=y)


CHANGE = torch.poisson(torch.tensor([1.0] * 15 + [5.0] * 15), generator=seeded(11))
program("change point", change, (CHANGE,), about(rate=[1.0, 5.0]))


def item_response(x):
    people, items = x.shape
    with pyro.plate("items", items, dim=-1):
        difficulty = pyro.sample("difficulty", dist.Normal(0.0, 1.5))
    with pyro.plate("people", people, dim=-2):
        ability = pyro.sample("ability", dist.Normal(0.0, 1.0))
        with pyro.plate("answers", items, dim=-1):
            pyro.sample("x", dist.Bernoulli(logits=ability - difficulty), obs=x)


DIFFICULTY = torch.tensor([-1.0, 0.0, 1.0])
ABILITY = torch.randn(80, 1, generator=seeded(12))
ANSWERS = torch.bernoulli(torch.sigmoid(ABILITY - DIFFICULTY), generator=seeded(13))
program("item response", item_response, (ANSWERS,), about(difficulty=DIFFICULTY))


def dirichlet_multinomial(y):
    concentration = pyro.sample("concentration", dist.Gamma(2.0 * torch.ones(3), 0.5).to_event(1))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.DirichletMultinomial(concentration, total_count=20), obs=y)


def _multinomials() -> torch.Tensor:
    draws = torch.multinomial(torch.ones(20, 3), 20, replacement=True, generator=seeded(14))
    return torch.stack([(draws == k).sum(1) for k in range(3)], 1).float()


MULTINOMIALS = _multinomials()


def _even(fit):
    shares = fit.draws["concentration"] / fit.draws["concentration"].sum(-1, keepdims=True)
    assert abs(shares.mean((0, 1)) - 1 / 3).max() < 0.05


program("Dirichlet multinomial", dirichlet_multinomial, (MULTINOMIALS,), _even)


def multinomial(y):
    p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Multinomial(20, p), obs=y)


_total = MULTINOMIALS.sum(0) + 1
_share = _total / _total.sum()
program(
    "Multinomial",
    multinomial,
    (MULTINOMIALS,),
    exact(p=(_share, (_share * (1 - _share) / (_total.sum() + 1)).sqrt())),
)
