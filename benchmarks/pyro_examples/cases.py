"""What is run of each example: its model, small synthetic data, and the method that it uses."""

from __future__ import annotations

import functools
import math
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoNormal

import probdl

__all__ = ["CASES", "Case", "Run"]

NUTS = probdl.NUTS(chains=2, warmup=100, draws=100)
STEPS = 200


@dataclass(frozen=True)
class Run:
    """The call of ``infer`` that fits an example."""

    model: Callable[..., Any]
    args: tuple[Any, ...] = ()
    method: Any = NUTS
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One model of an example file."""

    path: str  # under examples/
    name: str
    make: Callable[[Any], Run]  # of the loaded module


CASES: list[Case] = []


def case(path: str, name: str = "") -> Callable[[Callable[[Any], Run]], Callable[[Any], Run]]:
    """Register a function of the example's module that returns what to run."""

    def register(make: Callable[[Any], Run]) -> Callable[[Any], Run]:
        CASES.append(Case(path, name or make.__name__, make))
        return make

    return register


def svi(**settings: Any) -> probdl.SVI:
    return probdl.SVI(**{"steps": STEPS, "draws": 100} | settings)


# -- regressions and hierarchies ----------------------------------------------------------------

AT_BATS = torch.full((18,), 45.0)
HITS = torch.tensor([18.0, 17, 16, 15, 14, 14, 13, 12, 11, 11, 10, 10, 10, 10, 10, 9, 8, 7])

for _name in ("fully_pooled", "not_pooled", "partially_pooled", "partially_pooled_with_logit"):

    def _baseball(module: Any, name: str = _name) -> Run:
        return Run(getattr(module, name), (AT_BATS, HITS))

    CASES.append(Case("baseball.py", _name, _baseball))


@case("eight_schools/mcmc.py")
def conditioned_model(module: Any) -> Run:
    data = module.data
    return Run(module.conditioned_model, (module.model, data.sigma, data.y))


@case("eight_schools/svi.py")
def model_and_guide(module: Any) -> Run:
    data = torch.stack([module.y, module.sigma], dim=1)
    return Run(module.model, (data,), svi(guide=module.guide))


@case("lkj.py")
def lkj(module: Any) -> Run:
    return Run(module.model, (torch.randn(50, 2),))


@case("inclined_plane.py")
def inclined_plane(module: Any) -> Run:
    torch.manual_seed(0)
    data = torch.tensor([module.simulate(0.12, noise_sigma=0.02) for _ in range(4)])
    return Run(module.model, (data,), probdl.Importance(num_samples=100))


@case("sparse_regression.py")
def sparse_regression(module: Any) -> Run:
    x, y, _, _ = module.get_data(N=30, P=6, S=3, Q=2)
    hypers = {
        "expected_sparsity": 2.0,
        "alpha1": 3.0,
        "beta1": 1.0,
        "alpha2": 3.0,
        "beta2": 1.0,
        "alpha3": 1.0,
        "c": 1.0,
    }
    return Run(module.model, (x, y, hypers), probdl.MAP())


@case("svi_torch.py")
def pyro_module(module: Any) -> Run:
    torch.manual_seed(0)
    x = torch.randn(100)
    model = module.Model(100)
    return Run(model, (x, 1 + 2 * x + torch.randn(100)), svi(guide=AutoNormal(model)))


@case("svi_lightning.py")
def lightning(module: Any) -> Run:
    x = torch.linspace(-1, 1, 100)
    return Run(module.Model(100), (x, 1 + 2 * x), svi())


@case("svi_horovod.py")
def horovod(module: Any) -> Run:
    x = torch.linspace(-1, 1, 100)
    return Run(module.Model(100), (x, 1 + 2 * x), svi())


@case("neutra.py")
def banana(module: Any) -> Run:
    return Run(module.model, (1.15, 1.0))


# -- discrete latent sites ----------------------------------------------------------------------


@case("toy_mixture_model_discrete_enumeration.py")
def enumerated_network(module: Any) -> Run:
    torch.manual_seed(0)
    prior, _, data = module.generate_data(100)
    return Run(module.model, (prior, data, 100), svi(guide=module.guide))


def _captures() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    alive = torch.ones(30)
    seen = [torch.bernoulli(torch.full((30,), 0.6))]
    for _ in range(5):
        alive = alive * torch.bernoulli(torch.full((30,), 0.7))
        seen.append(alive * torch.bernoulli(torch.full((30,), 0.5)))
    return torch.stack(seen, 1), torch.bernoulli(torch.full((30,), 0.5))


for _number in range(1, 6):

    def _cjs_svi(module: Any, number: int = _number) -> Run:
        model = getattr(module, f"model_{number}")

        def expose(msg: Any) -> bool:
            return bool(msg["name"][0:6] in ("phi_lo", "phi", "rho") or "beta" in msg["name"]) or (
                msg["type"] == "sample" and not msg["is_observed"] and msg["name"][0:2] != "z_"
            )

        guide = AutoDiagonalNormal(poutine.block(model, expose_fn=expose))
        return Run(model, _captures(), svi(guide=guide))

    def _cjs_nuts(module: Any, number: int = _number) -> Run:
        return Run(getattr(module, f"model_{number}"), _captures())

    CASES.append(Case("capture_recapture/cjs.py", f"model_{_number}, SVI", _cjs_svi))
    CASES.append(Case("capture_recapture/cjs.py", f"model_{_number}, NUTS", _cjs_nuts))


def _sequences(args: Namespace) -> tuple[Any, ...]:
    torch.manual_seed(0)
    lengths = torch.tensor([8, 7, 6, 5])
    return torch.bernoulli(torch.full((4, 8, 5), 0.4)), lengths, args


for _number in range(8):

    def _hmm(module: Any, number: int = _number) -> Run:
        args = Namespace(hidden_dim=4, nn_dim=8, nn_channels=2, jit=False)
        args.raftery_parameterization = False
        model = module.models[str(number)]
        if number == 6:
            return Run(model, _sequences(args), probdl.MLE())
        exposed = poutine.block(model, expose_fn=lambda msg: msg["name"].startswith("probs_"))
        return Run(model, _sequences(args), svi(guide=AutoDelta(exposed)))

    CASES.append(Case("hmm.py", f"model_{_number}", _hmm))


@case("lda.py")
def lda(module: Any) -> Run:
    torch.manual_seed(0)
    args = Namespace(
        num_topics=3, num_words=20, num_docs=30, num_words_per_doc=16, layer_sizes="10-10"
    )
    _, _, data = module.model(args=args)
    guide = functools.partial(module.parametrized_guide, module.make_predictor(args))
    method = svi(guide=guide)
    return Run(module.model, (data, args), method)


@case("mixed_hmm/model.py", "no random effects")
def mixed_hmm_none(module: Any) -> Run:
    return _mixed_hmm(module, None)


@case("mixed_hmm/model.py", "discrete random effects")
def mixed_hmm_discrete(module: Any) -> Run:
    return _mixed_hmm(module, "discrete")


@case("mixed_hmm/model.py", "continuous random effects")
def mixed_hmm_continuous(module: Any) -> Run:
    return _mixed_hmm(module, "continuous")


def _mixed_hmm(module: Any, effects: str | None) -> Run:
    torch.manual_seed(0)
    shape = (4, 2, 5)
    config = {
        "MISSING": 1e-6,
        "sizes": {"state": 2, "random": 2, "group": 2, "individual": 4, "timesteps": 5},
        "group": {"random": effects, "fixed": None},
        "individual": {"random": effects, "fixed": None, "mask": torch.ones(4, 2).bool()},
        "timestep": {"random": None, "fixed": None, "mask": torch.ones(shape).bool()},
        "observations": {
            "step": torch.rand(shape) + 0.1,
            "angle": torch.rand(shape) - 0.5,
            "omega": torch.rand(shape) * 0.8 + 0.1,
        },
    }
    if effects == "continuous":
        return Run(module.model_generic, (config,), svi(guide=module.guide_generic))
    return Run(module.model_generic, (config,), probdl.MLE())


@case("contrib/autoname/mixture.py")
def named_mixture(module: Any) -> Run:
    data = torch.tensor([0.0, 1.0, 2.0, 20.0, 30.0, 40.0])
    return Run(module.model, (data, 2), svi(guide=module.guide))


@case("contrib/autoname/scoping_mixture.py")
def scoped_mixture(module: Any) -> Run:
    data = torch.tensor([0.0, 1.0, 10.0, 11.0, 12.0])
    from pyro.infer import config_enumerate

    return Run(module.model, (2, data), svi(guide=config_enumerate(module.guide)))


@case("contrib/autoname/tree_data.py")
def tree_data(module: Any) -> Run:
    one = torch.tensor(1.0)
    data = {"foo": one, "bar": [0 * one, 2 * one], "baz": {"noun": one, "verb": 2 * one}}
    return Run(module.model, (data,), svi(guide=module.guide))


# -- networks -----------------------------------------------------------------------------------


@case("vae/vae.py")
def vae(module: Any) -> Run:
    torch.manual_seed(0)
    net = module.VAE(z_dim=4, hidden_dim=16)
    x = torch.bernoulli(torch.rand(32, 1, 28, 28))
    return Run(net.model, (x,), svi(guide=net.guide))


def _digits() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    labels = torch.eye(10)[torch.randint(0, 10, (32,))]
    return torch.bernoulli(torch.rand(32, 784)), labels


@case("vae/ss_vae_M2.py", "supervised")
def ss_vae(module: Any) -> Run:
    net = module.SSVAE(z_dim=4, hidden_layers=[16])
    return Run(net.model, _digits(), svi(guide=net.guide))


@case("vae/ss_vae_M2.py", "unsupervised")
def ss_vae_unsupervised(module: Any) -> Run:
    from pyro.infer import config_enumerate

    net = module.SSVAE(z_dim=4, hidden_layers=[16], config_enum="parallel")
    guide = config_enumerate(net.guide, "parallel", expand=True)
    return Run(net.model, _digits()[:1], svi(guide=guide))


@case("cvae/cvae.py")
def cvae(module: Any) -> Run:
    baseline = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 784))
    net = module.CVAE(4, 16, 16, baseline)
    x = torch.bernoulli(torch.rand(16, 28, 28))
    y = x.clone()
    x[:, 14:] = -1
    return Run(net.model, (x, y), svi(guide=net.guide))


@case("dmm.py")
def dmm(module: Any) -> Run:
    torch.manual_seed(0)
    net = module.DMM(
        input_dim=10, z_dim=4, emission_dim=6, transition_dim=8, rnn_dim=8, rnn_dropout_rate=0.0
    )
    lengths = torch.tensor([6, 5, 4])
    x = torch.bernoulli(torch.rand(3, 6, 10))
    mask = (torch.arange(6) < lengths[:, None]).float()
    reverse = torch.nn.utils.rnn.pack_padded_sequence(x.flip(1), lengths, batch_first=True)
    return Run(net.model, (x, reverse, mask, lengths), svi(guide=net.guide))


@case("air/air.py")
def air(module: Any) -> Run:
    torch.manual_seed(0)
    net = module.AIR(
        num_steps=2,
        x_size=20,
        window_size=10,
        z_what_size=4,
        rnn_hidden_size=16,
        encoder_net=[16],
        decoder_net=[16],
        predict_net=[16],
        bl_predict_net=[16],
    )
    return Run(net.model, (torch.rand(8, 20, 20), 8), svi(guide=net.guide))


@case("scanvi/scanvi.py")
def scanvi(module: Any) -> Run:
    torch.manual_seed(0)
    net = module.SCANVI(
        num_genes=20, num_labels=3, l_loc=2.0, l_scale=1.0, scale_factor=1.0 / (16 * 20)
    )
    x = torch.poisson(torch.full((16, 20), 3.0))
    y = torch.eye(3)[torch.arange(16) % 3]
    return Run(net.model, (x, y), svi(guide=net.guide))


@case("contrib/cevae/synthetic.py")
def cevae(module: Any) -> Run:
    args = Namespace(num_data=60, feature_dim=5)
    x, t, y, _ = module.generate_data(args)
    net = module.CEVAE(feature_dim=5, latent_dim=3, hidden_dim=10, num_layers=2)
    net.whiten = lambda x: x
    return Run(net.model, (x, t, y), svi(guide=net.guide))


@case("contrib/gp/sv-dkl.py")
def deep_kernel(module: Any) -> Run:
    import pyro.contrib.gp as gp

    torch.manual_seed(0)
    x = torch.rand(16, 1, 28, 28)
    y = torch.arange(16) % 10
    rbf = gp.kernels.RBF(input_dim=10, lengthscale=torch.ones(10))
    kernel = gp.kernels.Warping(rbf, iwarping_fn=module.CNN())
    model = gp.models.VariationalSparseGP(
        X=x,
        y=y,
        kernel=kernel,
        Xu=x[:6],
        likelihood=gp.likelihoods.MultiClass(num_classes=10),
        latent_shape=torch.Size([10]),
        num_data=16,
        whiten=True,
        jitter=2e-6,
    )
    return Run(model.model, (), svi(guide=model.guide))


@case("sparse_gamma_def.py", "model and guide")
def sparse_gamma(module: Any) -> Run:
    model, x = _sparse_gamma(module)
    return Run(model.model, (x,), svi(guide=model.guide))


@case("sparse_gamma_def.py", "EasyGuide")
def sparse_gamma_easy(module: Any) -> Run:
    model, x = _sparse_gamma(module)
    guide = module.MyEasyGuide(model.model)
    guide.alpha_init, guide.mean_init, guide.sigma_init = 0.5, 0.0, 0.1
    return Run(model.model, (x,), svi(guide=guide))


@case("sparse_gamma_def.py", "automatic guide")
def sparse_gamma_auto(module: Any) -> Run:
    model, x = _sparse_gamma(module)
    return Run(model.model, (x,), svi(guide=AutoDiagonalNormal(model.model)))


def _sparse_gamma(module: Any) -> tuple[Any, torch.Tensor]:
    model = module.SparseGammaDEF()
    model.top_width, model.mid_width, model.bottom_width, model.image_size = 4, 3, 2, 16
    torch.manual_seed(0)
    return model, torch.poisson(torch.full((8, 16), 2.0))


# -- time series --------------------------------------------------------------------------------


@case("sir_hmc.py", "continuous_model")
def sir_continuous(module: Any) -> Run:
    module.args = Namespace(population=20, recovery_time=5.0)
    data = torch.tensor([1.0, 2.0, 2.0])
    return Run(
        module.continuous_model, (module.args, data), probdl.NUTS(chains=1, warmup=50, draws=50)
    )


@case("sir_hmc.py", "vectorized_model")
def sir_vectorized(module: Any) -> Run:
    module.args = Namespace(population=20, recovery_time=5.0)
    data = torch.tensor([1.0, 2.0, 2.0])
    start = module.heuristic_init(module.args, data)
    return Run(
        module.vectorized_model,
        (module.args, data),
        probdl.NUTS(chains=1, warmup=50, draws=50, init=dict(start)),
    )


@case("sir_hmc.py", "reparameterized_discrete_model")
def sir_reparameterized(module: Any) -> Run:
    module.args = Namespace(population=4, recovery_time=5.0)
    data = torch.tensor([1.0, 1.0])
    return Run(
        module.reparameterized_discrete_model,
        (module.args, data),
        probdl.NUTS(chains=1, warmup=50, draws=50),
    )


@case("contrib/epidemiology/sir.py")
def epidemiology(module: Any) -> Run:
    args = Namespace(
        heterogeneous=False,
        incubation_time=0.0,
        overdispersion=0.0,
        concentration=math.inf,
        population=100,
        recovery_time=5.0,
    )
    model = module.Model(args, torch.tensor([1.0, 2, 3, 5, 4, 3]))
    return Run(model._relaxed_model, ())


@case("contrib/epidemiology/regional.py")
def regional(module: Any) -> Run:
    coupling = torch.eye(2).clamp(min=0.1)
    population = torch.tensor([100.0, 50.0])
    args = Namespace(recovery_time=5.0)
    data = torch.tensor([[1.0, 0], [2, 1], [3, 1], [4, 2]])
    model = module.RegionalSIRModel(population, coupling, args.recovery_time, data)
    return Run(model._relaxed_model, ())


@case("contrib/forecast/bart.py")
def forecast(module: Any) -> Run:
    torch.manual_seed(0)
    data = torch.randn(24 * 7 + 12, 2)
    return Run(module.Model(), (data, torch.zeros(len(data), 0)), svi(guide="normal"))


@case("contrib/timeseries/gp_models.py", "IndependentMaternGP")
def matern(module: Any) -> Run:
    return _timeseries(module.IndependentMaternGP(nu=1.5, obs_dim=2))


@case("contrib/timeseries/gp_models.py", "LinearlyCoupledMaternGP")
def coupled_matern(module: Any) -> Run:
    return _timeseries(module.LinearlyCoupledMaternGP(nu=1.5, obs_dim=2, num_gps=2))


def _timeseries(gp: Any) -> Run:
    torch.manual_seed(0)

    def model(data: torch.Tensor) -> None:
        pyro.module("gp", gp)
        pyro.factor("log_prob", gp.log_prob(data).sum())

    return Run(model, (torch.randn(30, 2),), probdl.MLE())


@case("contrib/mue/ProfileHMM.py")
def profile_hmm(module: Any) -> Run:
    torch.manual_seed(0)
    data = torch.eye(4)[torch.randint(0, 4, (5, 6))]
    mue = module.ProfileHMM(6, 4, prior_scale=1.0, indel_prior_bias=10.0)
    return Run(mue.model, (data, torch.tensor(1.0)), svi(guide=mue.guide, steps=50))


@case("contrib/mue/FactorMuE.py")
def factor_mue(module: Any) -> Run:
    torch.manual_seed(0)
    data = torch.eye(4)[torch.randint(0, 4, (5, 6))]
    mue = module.FactorMuE(6, 4, 2, latent_seq_length=6, indel_factor_dependence=False)
    args = (data, torch.tensor(1.0), torch.tensor(1.0))
    return Run(mue.model, args, svi(guide=mue.guide, steps=50))
