"""Messages for invalid input say what is wrong, where, and what to do."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

import probdl
from probdl.methods import METHODS
from probdl.models import beta_binomial, gamma_poisson, linear_regression, normal_normal

X = np.arange(12.0).reshape(6, 2)
Y = np.arange(6.0)


def message_of(kind, model, *args, **kwargs):
    with pytest.raises(kind) as error:
        probdl.infer(model, *args, seed=0, progress=False, **kwargs)
    assert isinstance(error.value, probdl.ProbdlError)
    assert isinstance(error.value, ValueError)
    return str(error.value)


def test_no_observed_site_for_mle():
    message = message_of(probdl.ModelError, normal_normal, np.ones(3), method="mle")
    assert "'normal_normal' has no observed site" in message
    assert "obs=" in message


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_data_that_are_not_finite_name_the_argument_and_the_index(bad):
    x = X.copy()
    x[4, 1] = bad
    message = message_of(probdl.DataError, linear_regression, x, Y)
    assert "Argument 'x': 1 of 12 values are NaN or infinite" in message
    assert f"index (4, 1) = {bad}" in message
    y = Y.copy()
    y[[2, 3]] = bad
    message = message_of(probdl.DataError, linear_regression, X, y=y)
    assert "Argument 'y': 2 of 6 values" in message
    assert "index 2 =" in message


def test_data_in_a_dict_are_named_by_their_key():
    def model(data):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=data["y"])

    message = message_of(probdl.DataError, model, {"y": np.array([1.0, np.nan])})
    assert "Argument 'data['y']'" in message


def line(x, y=None):
    slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
    with pyro.plate("obs", len(x)):
        pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


@pytest.mark.parametrize("method", ["nuts", "laplace", "svi", "importance", "map"])
def test_a_predictor_that_is_a_column(method):
    x = np.linspace(0.0, 1.0, 8)
    with pytest.raises(probdl.DataError, match=r"would be used 8 times.*pass x\[:, 0\]"):
        probdl.infer(line, x[:, None], 3 * x, method=method, seed=1)


def test_shapes_other_than_those_of_the_fit():
    x = np.linspace(0.0, 1.0, 8)
    fit = probdl.infer(line, x, 3 * x, method="laplace", seed=1)
    with pytest.raises(probdl.DataError, match=r"shape \(5, 5\).*shape \(8,\) in the fit"):
        fit.predict(x[:5, None])
    with pytest.raises(probdl.DataError, match="would be used 5 times"):
        fit.log_predictive(x[:5, None], x[:5])


@pytest.mark.parametrize("y", [np.ones(1), np.array(1.0)])
def test_a_single_value_for_many_rows(y):
    with pytest.raises(probdl.DataError, match="a single value"):
        probdl.infer(line, np.ones(8), y, method="laplace", seed=1)


def test_data_may_be_broadcast_along_plates_and_constants_everywhere():
    def several(y):
        with pyro.plate("model", 3, dim=-2):
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            with pyro.plate("obs", len(y), dim=-1):
                pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        with pyro.plate("model_again", 3):
            pyro.sample("zero", dist.Normal(mu[:, 0], 1.0), obs=torch.tensor(0.0))

    fit = probdl.infer(several, torch.tensor([1.0, 2.0]), method="laplace", seed=1)
    mean = fit.draws["mu"].mean((0, 1)).reshape(-1)  # N(3/4, 1/4) each
    np.testing.assert_allclose(mean, 0.75, atol=5 * 0.5 / 1000**0.5)
    assert fit.predict()["y"].shape == (1, 1000, 3, 2)


def test_integers_in_a_matrix_product():
    def model(x, y):
        b = pyro.sample("b", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Normal(x @ b, 1.0), obs=y)

    message = message_of(probdl.ModelError, model, np.ones((3, 2), int), np.ones(3))
    assert "convert it in the model, as in x.double() @ b" in message


def test_writes_to_what_the_gradient_needs():
    def model(y):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        x = torch.zeros(len(y))
        for t in range(1, len(y)):
            x[t] = a * x[t - 1] + y[t]
        pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)

    with pytest.raises(probdl.ModelError, match=r"to a list, and use torch\.stack"):
        probdl.infer(model, torch.ones(5), seed=1)


def test_a_table_in_minibatches():
    def model(table, y):
        slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
        with pyro.plate("obs", len(y)):
            x = torch.as_tensor(table["x"].to_numpy())
            pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)

    table = pd.DataFrame({"x": np.ones(8)})
    method = probdl.SVI(batch_size=4, steps=10)
    with pytest.raises(probdl.SettingError, match=r"'table' is a DataFrame.*to_numpy"):
        probdl.infer(model, table, np.ones(8), method=method, seed=1)


@pytest.mark.parametrize(
    "labels",
    [
        pd.date_range("2020", periods=2, tz="UTC"),
        pd.period_range("2020", periods=2, freq="M"),
        [2**70, 1],
        ["a\0b", "c"],
        ["\ud800", "c"],
        ["\x1b[2J", "c"],
        pd.to_timedelta([1, 2], unit="s"),
        [None, "a"],
    ],
)
def test_labels_that_cannot_be_saved(labels):
    with pytest.raises(probdl.SettingError, match=r"Labels are texts|Use labels of printable"):
        probdl.infer(line, np.ones(2), np.ones(2), method="map", coords={"obs": labels})


def test_networks_of_a_vae():
    with pytest.raises(probdl.SettingError, match="encoder"):
        probdl.models.VAE(None, torch.nn.Linear(1, 1), 1)


def test_arguments_that_contain_themselves():
    endless: list = [1.0]
    endless.append(endless)
    message = message_of(probdl.DataError, linear_regression, endless, y=[1.0])
    assert "Argument 'x' of the model is nested too deeply, or contains itself" in message


def test_data_in_a_closure_are_named_by_their_site():
    data = torch.tensor([1.0, float("nan")])

    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=data)

    assert "Site 'y'" in message_of(probdl.DataError, model)


def test_values_outside_the_support():
    count = np.array([1.0, 2.0, 3.0, 0.0, -1.0, -2.0])
    message = message_of(probdl.DataError, gamma_poisson, np.ones(6), count)
    assert message.startswith("Site 'count': 2 of 6 values are outside the support of Poisson")
    assert "(first: index 4 = -1.0)" in message
    assert "passed as 'count'" in message
    message = message_of(probdl.DataError, beta_binomial, np.full(2, 3), np.array([1, 4]))
    assert "outside the support of Binomial" in message


def test_a_support_that_depends_on_a_latent_site_is_not_bad_data():
    def model(y):
        top = pyro.sample("top", dist.Exponential(0.1))
        pyro.sample("y", dist.Uniform(0.0, top + 5), obs=y)

    fit = probdl.infer(model, np.array([4.0, 2.0]), method="laplace", seed=0)
    assert np.isfinite(fit.stats["log_evidence"])


def test_shapes_that_do_not_match_a_plate():
    message = message_of(probdl.DataError, linear_regression, X, Y[:, None])
    assert "Site 'y'" in message
    assert "shape (6, 1)" in message
    assert "plate 'obs' of size 6" in message
    message = message_of(probdl.DataError, linear_regression, X, np.arange(5.0))
    assert "shape (5,)" in message


def test_a_latent_site_that_does_not_match_its_plate():
    def model(y):
        with pyro.plate("obs", 4):
            mu = pyro.sample("mu", dist.Normal(torch.zeros(3), 1.0))
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    message = message_of(probdl.ModelError, model, np.zeros(4))
    assert "The model 'model' failed at test_errors.py" in message
    assert "pyro.sample" in message


def test_a_discrete_site_that_cannot_be_summed_out():
    def model(y):
        k = pyro.sample("k", dist.Poisson(3.0))
        pyro.sample("y", dist.Normal(k, 1.0), obs=y)

    message = message_of(probdl.ModelError, model, Y)
    assert "Site 'k': Poisson is discrete without a finite support" in message
    assert "sum" in message.split("support", 1)[1]


def test_no_latent_site():
    def model(y):
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    for method in ("nuts", "map", "laplace", "mle"):
        message = message_of(probdl.ModelError, model, Y, method=method)
        assert "'model' has no site to infer" in message


@pytest.mark.parametrize(
    ("name", "nearest"), [("nutz", "nuts"), ("MLEE", "mle"), ("laplas", "laplace")]
)
def test_an_unknown_method_gets_the_nearest(name, nearest):
    message = message_of(probdl.SettingError, normal_normal, Y, method=name)
    assert f"There is no method {name!r}; did you mean {nearest!r}?" in message
    assert "'map'" in message


def test_a_method_of_another_type():
    assert "pass a name" in message_of(probdl.SettingError, normal_normal, Y, method=3)


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda: probdl.NUTS(draws=0), "NUTS(draws=0): draws must be an integer of at least 1"),
        (lambda: probdl.NUTS(draws=1.5), "draws must be an integer"),
        (lambda: probdl.NUTS(chains=True), "chains must be an integer"),
        (lambda: probdl.NUTS(target_accept=1.0), "target_accept must be a number above 0"),
        (lambda: probdl.NUTS(target_accept="high"), "target_accept must be a number"),
        (lambda: probdl.NUTS(max_treedepth=0), "max_treedepth must be"),
        (lambda: probdl.NUTS(engine="natve"), "did you mean 'native'?"),
        (
            lambda: probdl.NUTS(mass_matrix="full"),
            "one of 'auto', 'diag', 'low_rank', 'dense'",
        ),
        (lambda: probdl.MLE(engine="c"), "engine must be one of 'auto', 'native', 'eager'"),
        (lambda: probdl.HMC(trajectory_length=-1), "trajectory_length must be a number above 0"),
        (lambda: probdl.MLE(starts=0), "MLE(starts=0)"),
        (lambda: probdl.MAP(ci_prob=95), "ci_prob must be a number above 0 and below 1"),
        (lambda: probdl.Laplace(draws=1), "Laplace(draws=1)"),
    ],
)
def test_a_setting_out_of_range(make, part):
    with pytest.raises(probdl.SettingError) as error:
        make()
    assert part in str(error.value)


@pytest.mark.parametrize("seed", [-1, 1.5, "a", True])
def test_invalid_seeds(seed):
    with pytest.raises(probdl.SettingError, match="seed must be an integer"):
        probdl.infer(normal_normal, Y, seed=seed)


def test_numpy_integers_are_accepted():
    assert probdl.NUTS(draws=np.int64(10)).draws == 10
    sigma, y, seed = np.ones(6), Y, np.int64(3)
    assert probdl.infer(normal_normal, sigma, y, method="map", seed=seed).seed == 3


def test_a_site_observed_in_one_run_and_latent_in_another():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y if mu > 0 else None)

    message = message_of(probdl.ModelError, model, torch.tensor(1.0))
    assert "Site 'y' is" in message
    assert "latent" in message
    assert "observed" in message


def test_a_site_that_exists_in_some_runs_only():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        if mu > 0:
            pyro.sample("extra", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    message = message_of(probdl.ModelError, model, torch.tensor(1.0))
    assert "Site 'extra' exists in one run" in message


def test_a_model_that_never_finds_a_finite_start():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Uniform(mu, mu + 1), obs=y)

    message = message_of(probdl.ModelError, model, torch.tensor([1e6]))
    assert "no finite log density at any of 100 random starts" in message
    assert "site 'y' ~ Uniform" in message


def test_arguments_that_the_model_does_not_accept():
    message = message_of(probdl.ModelError, linear_regression, X, Y, noize=1.0)
    assert "noize" in message
    assert "linear_regression(x" in message


def test_an_argument_with_a_name_that_infer_uses():
    def model(seed, y):
        mu = pyro.sample("mu", dist.Normal(seed, 1.0))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    message = message_of(probdl.ModelError, model, 1.0, Y)
    assert "'seed', which is an argument of infer() itself" in message


def test_text_among_the_data():
    message = message_of(probdl.ModelError, normal_normal, np.array(["a", "b"]), np.ones(2))
    assert "The texts in 'sigma' became codes from 0, in this order: 'a', 'b' (2)." in message
    message = message_of(probdl.DataError, normal_normal, np.array(["1.5", "2"]))
    assert "array of dtype <U3" in message


def test_integers_that_torch_cannot_hold():
    large = np.array([1, 2**64 - 1], dtype=np.uint64)
    message = message_of(probdl.DataError, normal_normal, np.ones(2), large)
    assert "Argument 'y' of the model holds the integer 18446744073709551615" in message
    with pytest.raises(probdl.DataError, match="Argument 'sigma'"):
        probdl.infer(normal_normal, {"a": np.uint64(2**63)}, np.ones(2))


@pytest.mark.parametrize("name", ["nuts", "hmc", "metropolis", "laplace", "pathfinder", "svi"])
def test_draws_that_exceed_the_memory(name):
    def wide():
        with pyro.plate("rows", 10_000):
            pyro.sample("x", dist.Normal(0.0, 1.0))

    message = message_of(probdl.SettingError, wide, method=METHODS[name](draws=10**9))
    assert "draws=1000000000" in message
    assert "GiB of memory. Request fewer draws." in message


@pytest.mark.parametrize("name", ["chain", "draw", "", ".", "a\0b", "\ud800"])
def test_invalid_site_names(name):
    def latent(y):
        pyro.sample("y", dist.Normal(pyro.sample(name, dist.Normal(0.0, 1.0)), 1.0), obs=y)

    def param(y):
        pyro.sample("y", dist.Normal(pyro.param(name, torch.zeros(())), 1.0), obs=y)

    for model in (latent, param):
        assert repr(name) in message_of(probdl.ModelError, model, torch.ones(()), method="mle")


def test_not_a_model():
    assert "cannot be called" in message_of(probdl.ModelError, "eight_schools", Y)


def test_an_error_inside_the_model_reports_its_line_and_the_shapes():
    def model(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(x @ w, 1.0).to_event(1), obs=y)

    message = message_of(probdl.ModelError, model, X, Y)
    assert "failed at test_errors.py:" in message
    assert "x @ w" in message
    assert "x (6, 2) float64, y (6,) float64" in message


def test_invalid_coords_or_dims_are_reported_before_the_fit():
    message = message_of(probdl.SettingError, linear_regression, X, Y, dims={"betta": ["p"]})
    assert "dims= names 'betta'" in message
    message = message_of(probdl.SettingError, linear_regression, X, Y, coords={"predictor": "abc"})
    assert "coords['predictor'] has 3 labels, but 'beta' has length 2" in message


def test_a_flat_prior_has_no_predictive():
    def model(y):
        mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    fit = probdl.infer(model, Y, method="laplace", seed=0)
    with pytest.raises(probdl.ModelError, match="prior of 'mu' is flat"):
        fit.to_idata(prior=True)


@pytest.mark.parametrize(
    "labels", [{"a", "b"}, {"a": 1}, [("a", 1), ("b", 2)], np.zeros((2, 2)), 3, iter("ab")]
)
def test_labels_that_are_not_a_list(labels):
    with pytest.raises(probdl.SettingError, match=r"(?s)coords.* must be a list of labels"):
        probdl.infer(
            probdl.models.eight_schools,
            np.ones(2),
            np.ones(2),
            method="map",
            coords={"school": labels},
        )


# -- functions of the user -------------------------------------------------------------------

SCHEDULERS = torch.optim.lr_scheduler
OPTIMIZING = {
    "no length": ({"schedule": SCHEDULERS.CosineAnnealingLR}, "schedule=lambda o: CosineAnneal"),
    "on a plateau": ({"schedule": lambda o: SCHEDULERS.ReduceLROnPlateau(o)}, "patience="),
    "no scheduler": ({"schedule": lambda o: None}, "returned a NoneType"),
    "an error": ({"schedule": lambda o: 1 / 0}, "1 / 0.*ZeroDivisionError"),
    "L-BFGS": ({"optimizer": "LBFGS"}, "Use optimizer='Adam'"),
    "no rate": ({"optimizer": lambda p: torch.optim.Adam(p)}, "optimizer.parameters, lr="),
    "sparse": ({"optimizer": "SparseAdam"}, "does not support dense gradients"),
}


@pytest.mark.parametrize("name", OPTIMIZING)
def test_an_optimizer_that_cannot_train_is_an_error(name):
    settings, message = OPTIMIZING[name]

    def fit():
        method = probdl.SVI(steps=50, draws=30, **settings)
        probdl.infer(normal_normal, np.ones(2), np.ones(2), method=method, seed=1)

    with pytest.raises(probdl.SettingError, match=message):
        fit()


def test_the_line_of_the_user_is_named_and_not_that_of_pandas():
    def model(table):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(table)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=table["wrong"])

    table = pd.DataFrame({"y": [1.0, 2.0]})
    for method in ("nuts", "svi", "map"):
        message = message_of(probdl.ModelError, model, table, method=method)
        assert 'obs=table["wrong"]' in message
        assert "KeyError: 'wrong'" in message


def test_an_error_in_a_guide_is_named_with_its_line():
    def guide(sigma, y=None):
        pyro.sample("mu", dist.Normal(sigma.wrong, 1.0))

    for method in (probdl.SVI(guide=guide), probdl.Importance(guide=guide)):
        message = message_of(
            probdl.ModelError, normal_normal, np.ones(2), np.ones(2), method=method
        )
        assert "sigma.wrong" in message
