"""The known answers of `make bench-honesty`, and its judge."""

import itertools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy import special, stats

import probdl
from benchmarks.honesty.case import METHODS, UNDEFINED, Case, Known
from benchmarks.honesty.child import fit_once
from benchmarks.honesty.judge import Figure, classify, compare
from benchmarks.honesty.known import maximum, moments, solve
from benchmarks.honesty.models import CASES
from probdl.findings import Finding
from probdl.methods import METHODS as ALL_METHODS
from tests.reference.files import read

ONE_SITE = {
    "normal_mean": (-20, 30),
    "beta_bernoulli": (0, 1),
    "beta_all_successes": (0, 1),
    "gamma_poisson": (0, 15),
    "poisson_all_zero": (0, 4),
    "gamma_exponential": (0, 10),
    "logistic_slope": (-2, 10),
    "cauchy_location": (-20, 20),
    "bounded_mean": (0, 1),
    "uniform_pareto": (4961, 1e6),
    "far_away": (4900, 5100),
    "correlation": (-1, 1),
    "masked": (-5, 12),
    "scaled": (-5, 12),
    "censored": (0, 4),
}


def log_joint(case, sites):
    """Evaluate the log joint density of the Pyro program of a case."""
    arguments = [torch.as_tensor(a) for a in case.arguments]
    values = {name: torch.tensor(value, dtype=torch.float64) for name, value in sites.items()}
    trace = poutine.trace(poutine.condition(case.model, values)).get_trace(*arguments)
    return float(trace.log_prob_sum())


@pytest.mark.parametrize("name", ONE_SITE)
def test_the_answer_agrees_with_quadrature_of_the_pyro_program(name):
    case = CASES[name].build()
    ((site, known),) = case.posterior.items()
    low, high = ONE_SITE[name]
    middle, width = known.value, known.sd
    ends = [low, *(middle + k * width for k in (-6, -2, 0, 2, 6, 30)), high]
    ends = [end for end in ends if low <= end <= high]
    nodes, weights = special.roots_legendre(16)
    x = np.concatenate([a + (b - a) * (nodes + 1) / 2 for a, b in itertools.pairwise(ends)])
    mass = np.concatenate([weights * (b - a) / 2 for a, b in itertools.pairwise(ends)])
    mass *= np.exp([log_joint(case, {site: point}) - case.log_evidence for point in x])
    off = x - middle
    assert mass.sum() == pytest.approx(1, abs=2e-3)
    assert mass @ off == pytest.approx(0, abs=5e-3 * width)
    assert (mass @ off**2) ** 0.5 == pytest.approx(width, rel=1e-2)


def agree(left, right):
    assert left.keys() == right.keys()
    for label, known in left.items():
        assert right[label].value == pytest.approx(known.value, rel=1e-4, abs=1e-4), label
        assert right[label].sd == pytest.approx(known.sd, rel=1e-3), label


def check(case, found):
    for answer in ("mle", "map", "posterior"):
        agree(getattr(case, answer), found[answer])
    assert found["log_evidence"] == pytest.approx(case.log_evidence, abs=1e-5)


def test_normal_inverse_gamma_agrees_with_quadrature():
    case = CASES["normal_inverse_gamma"].build()
    (y,) = case.arguments

    def log_likelihood(at):
        return stats.norm.logpdf(y, at["mu"], np.sqrt(at["v"])).sum(-1, keepdims=True)

    def log_prior(at):
        mu = stats.norm.logpdf(at["mu"], 0, np.sqrt(2 * at["v"]))
        return mu + stats.invgamma.logpdf(at["v"], 3, scale=2)

    check(case, solve(log_likelihood, log_prior, {"v": (0.1, 300), "mu": (-30, 40)}))
    assert log_joint(case, {"v": 2.0, "mu": 1.0}) == pytest.approx(
        float((log_likelihood(at := {"v": 2.0, "mu": 1.0}) + log_prior(at))[0])
    )


def test_dirichlet_agrees_with_quadrature():
    case = CASES["dirichlet_categorical"].build()
    counts = np.bincount(case.arguments[0])

    def log_likelihood(at):
        rest = 1 - at["p[0]"] - at["p[1]"]
        return sum(
            n * np.log(p) for n, p in zip(counts, (at["p[0]"], at["p[1]"], rest), strict=True)
        )

    def log_prior(at):
        rest = 1 - at["p[0]"] - at["p[1]"]
        constant = special.gammaln(9) - special.gammaln([2, 3, 4]).sum()
        return constant + np.log(at["p[0]"]) + 2 * np.log(at["p[1]"]) + 3 * np.log(rest)

    found = solve(log_likelihood, log_prior, {"p[0]": (0, 1), "p[1]": (0, 1)})
    for answer in ("mle", "map", "posterior"):
        known = {k: v for k, v in getattr(case, answer).items() if k != "p[2]"}
        agree(known, found[answer])
    assert found["log_evidence"] == pytest.approx(case.log_evidence, abs=1e-5)


def test_eight_schools_agrees_with_the_long_run(shared):
    _, reference, count = read(shared / "posteriordb", "eight_schools-eight_schools_noncentered")
    known = CASES["eight_schools"].build().posterior
    for label, there in (("mu", "mu"), ("tau", "tau"), ("theta[0]", "theta[1]")):
        facts = reference[there]
        assert abs(known[label].value - facts["mean"]) < 4 * facts["sd"] / count**0.5
        assert known[label].sd == pytest.approx(facts["sd"], rel=0.05)


def test_moments_and_maximum_of_a_correlated_normal():
    covariance = np.array([[2.0, 1.2], [1.2, 1.0]])
    law = stats.multivariate_normal([1.0, -2.0], covariance)

    def log_density(at):
        return law.logpdf(np.concatenate([at["a"], at["b"]], -1))

    box = {"a": (-300.0, 200.0), "b": (-50.0, 70.0)}
    found, log_mass = moments(log_density, box)
    expected = {"a": Known(1.0, 2**0.5), "b": Known(-2.0, 1.0)}
    agree(expected, found)
    agree(expected, maximum(log_density, box))
    assert log_mass == pytest.approx(0, abs=1e-6)


def test_there_are_sixty_models_and_all_methods():
    assert len(CASES) >= 60
    assert set(METHODS) == {*ALL_METHODS} - {"gan"}


# -- the judge ---------------------------------------------------------------------------------


def finding(severity="warning", check="divergences", sites=()):
    return Finding(severity, check, "message", "remedy", sites)


WRONG = {"mu": "mu is off"}
SITES = {"mu": "mu", "tau": "tau"}


@pytest.mark.parametrize(
    ("wrong", "findings", "verdict"),
    [
        ({}, [], "right"),
        ({}, [finding("info", "several_optima")], "right"),
        ({}, [finding(check="engine"), finding(check="prior_conflict")], "right"),
        ({}, [finding()], "false alarm"),
        (WRONG, [], "silent"),
        (WRONG, [finding("info", "several_optima")], "silent"),
        (WRONG, [finding(check="engine")], "silent"),
        (WRONG, [finding()], "told"),
        (WRONG, [finding("error")], "told"),
        (WRONG, [finding(check="ess", sites=("mu",))], "told"),
        (WRONG, [finding(check="ess", sites=("tau",))], "silent"),
        (WRONG, [finding(check="rhat", sites=("tau",))], "told"),
        (WRONG | {"tau": "tau is off"}, [finding(check="ess", sites=("tau",))], "silent"),
    ],
)
def test_classify(wrong, findings, verdict):
    assert classify(wrong, findings, SITES).verdict == verdict


def test_classify_what_has_no_right_answer_or_large_errors():
    assert classify({}, [], SITES, defined=False).verdict == "silent"
    assert classify({}, [finding()], SITES, defined=False).verdict == "told"
    # A warning about an imprecise figure is no false alarm.
    assert classify({}, [finding(check="ess")], SITES, precise=False).verdict == "told"


@pytest.mark.parametrize(
    ("method", "figure", "right"),
    [
        ("nuts", Figure(1.0, 2.0), True),
        ("nuts", Figure(1.19, 2.29), True),
        ("nuts", Figure(1.21, 2.0), False),
        ("nuts", Figure(1.21, 2.0, value_error=0.06), True),
        ("nuts", Figure(1.0, 2.31), False),
        ("nuts", Figure(1.0, 2.31, sd_error=0.08), True),
        ("nuts", Figure(1.0, 1.6), False),
        ("nuts", Figure(np.nan, 2.0), False),
        ("nuts", Figure(1.0, np.inf), False),
        ("mle", Figure(1.19, 2.0), True),
        ("mle", Figure(1.21, 2.0), False),
        ("mle", Figure(1.0, np.nan), False),
    ],
)
def test_compare(method, figure, right):
    assert (not compare(method, {"mu": Known(1.0, 2.0)}, {"mu": figure})) == right


def test_what_has_no_standard_error_or_is_missing_is_wrong():
    assert compare("mle", {"p": Known(1.0, np.nan)}, {"p": Figure(1.0, 1e-9)})
    assert compare("nuts", {"p": Known(1.0, 1.0)}, {})


def normal(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("obs", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def test_fits_are_judged_by_what_they_report():
    y = np.ones(3)
    known = {"mu": Known(0.75, 0.5)}
    case = Case(normal, (y,), posterior=known, mle={"mu": Known(1.0, 3**-0.5)})
    assert fit_once(case, "laplace", 1)["verdict"] == "right"
    assert fit_once(case, "mle", 1)["verdict"] == "right"
    shifted = Case(normal, (y,), posterior={"mu": Known(1.75, 0.5)})
    row = fit_once(shifted, "laplace", 1)
    assert row["verdict"] == "silent"
    assert row["wrong"][0].startswith("mu 0.7")
    evidence = Case(normal, (y,), posterior=known, log_evidence=-20.0)
    assert fit_once(evidence, "laplace", 1)["wrong"][0].startswith("log evidence")


def test_errors_are_told_if_they_are_probdls_own():
    def broken(y):
        raise RuntimeError("from the model")

    row = fit_once(Case(broken, (np.ones(2),), posterior=UNDEFINED), "nuts", 1)
    assert (row["verdict"], row["findings"]) == ("told", ["CheckError"])

    def scalars(draws):
        raise RuntimeError("from outside")

    failing = Case(normal, (np.ones(2),), posterior=UNDEFINED, scalars=scalars)
    assert fit_once(failing, "laplace", 1)["verdict"] == "failed"
    assert issubclass(probdl.errors.ModelError, probdl.ProbdlError)
