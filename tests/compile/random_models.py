"""Random models as source text: elementwise, with matrices, with loops, with discrete sites.

A model is a function of data, made from a seed, whose density is smooth enough to be compared in
two engines: arguments of functions are moved into their ranges, and values stay of moderate size.
"""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch

KINDS = ("elementwise", "matrices", "loops", "enumerated")

PRIORS = (
    *("dist.Normal(0.0, 1.0)", "dist.StudentT(4.0, 0.0, 1.0)", "dist.Laplace(0.0, 1.0)"),
    *(
        "dist.HalfNormal(1.0)",
        "dist.Exponential(1.0)",
        "dist.Gamma(2.0, 2.0)",
        "dist.Beta(2.0, 3.0)",
    ),
    *("dist.LogNormal(0.0, 0.5)", "dist.Uniform(-1.0, 2.0)", "dist.InverseGamma(3.0, 2.0)"),
    *("dist.Gumbel(0.0, 1.0)", "dist.HalfCauchy(1.0)", "dist.Cauchy(0.0, 1.0)"),
    *("dist.Weibull(1.5, 2.0)", "dist.Kumaraswamy(2.0, 3.0)", "dist.Logistic(0.0, 1.0)"),
    *("dist.VonMises(0.0, 2.0)", "dist.Chi2(4.0)", "dist.AsymmetricLaplace(0.0, 1.0, 2.0)"),
)
UNARY = (
    *("torch.tanh({})", "torch.sigmoid({})", "torch.sin({})", "torch.cos({})", "torch.atan({})"),
    *("torch.exp(-{}.abs())", "torch.exp({}.clamp(-2.0, 2.0))", "torch.log1p({}.abs())"),
    *("torch.sqrt({}.abs() + 0.1)", "torch.rsqrt({}.square() + 0.5)", "1 / (1 + {}.square())"),
    *("torch.nn.functional.softplus({})", "torch.nn.functional.silu({})", "torch.relu({})"),
    *("torch.nn.functional.gelu({})", "torch.nn.functional.elu({})", "torch.erf({})"),
    *("torch.lgamma({}.abs() + 0.5)", "torch.digamma({}.abs() + 1.0)", "torch.expm1(-{}.abs())"),
    *("torch.special.ndtr({})", "torch.special.log_ndtr({})", "torch.special.i0e({})"),
    *(
        "torch.asinh({})",
        "torch.logit(torch.sigmoid({}))",
        "torch.where({0} > 0.3, {0}, 0.5 * {0})",
    ),
    *(
        "{}.abs() ** 1.5",
        "2.0 ** {}.clamp(-2, 2)",
        "torch.special.xlogy({0}.abs(), {0}.abs() + 0.1)",
    ),
)
BINARY = (
    *("{} + {}", "{} - {}", "{} * {}", "{} / (1 + {}.square())", "torch.maximum({}, {})"),
    *("torch.minimum({}, {})", "torch.atan2({}, {}.abs() + 0.5)", "torch.hypot({}, {} + 0.1)"),
    *("torch.logaddexp({}, {})", "({}.abs() + 0.2) ** torch.tanh({})"),
    *("torch.where({0} > {1}, {0}, 0.3 * {1})", "torch.lerp({}, {}, 0.3)"),
)
REDUCTIONS = ("sum", "mean", "logsumexp", "amax", "var", "prod")
LIKELIHOODS = {
    "dist.Normal({}, 0.7)": "normal",
    "dist.StudentT(5.0, {}, 1.2)": "normal",
    "dist.Normal(0.3, torch.nn.functional.softplus({}) + 0.1)": "normal",
    "dist.Poisson(torch.exp({}.clamp(-3.0, 3.0)))": "count",
    "dist.Bernoulli(logits={})": "binary",
    "dist.NegativeBinomial(2.0, logits={})": "count",
    "dist.Gamma(2.0, torch.exp({}.clamp(-2.0, 2.0)))": "positive",
    "dist.Binomial(5, logits={})": "binary",
    "dist.Beta(torch.nn.functional.softplus({}) + 0.5, 2.0)": "share",
    "dist.VonMises({}, 1.5)": "normal",
    "dist.ZeroInflatedPoisson(torch.exp({}.clamp(-2.0, 2.0)), gate=torch.tensor(0.3))": "count",
}


class Writer:
    """Writes a model line by line, and keeps the shapes of its variables."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.lines: list[str] = []
        self.indent = "    "
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.data: dict[str, np.ndarray] = {}
        self.count = 0

    def name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def write(self, line: str) -> None:
        self.lines.append(self.indent + line)

    def pick(self, options):
        return options[self.rng.integers(len(options))]

    def size(self, low: int = 1, high: int = 6) -> int:
        return int(self.rng.integers(low, high + 1))

    def define(self, stem: str, expression: str, shape: tuple[int, ...]) -> str:
        name = self.name(stem)
        self.write(f"{name} = {expression}")
        self.shapes[name] = shape
        return name

    def argument(self, values: np.ndarray) -> str:
        name = self.name("data")
        self.data[name] = values
        self.shapes[name] = values.shape
        return name

    def latent(self, shape: tuple[int, ...] = (), prior: str | None = None) -> str:
        """Sample a latent site of a shape, in plates or as an event."""
        name = self.name("z")
        fn = prior or self.pick(PRIORS)
        if shape and self.rng.random() < 0.5:
            fn = f"{fn}.expand({list(shape)}).to_event({len(shape)})"
            self.write(f"{name} = pyro.sample('{name}', {fn})")
        elif shape:
            for axis, size in enumerate(shape):
                self.write(
                    f"plate{axis}_{name} = pyro.plate('plate{axis}_{name}', {size}, "
                    f"dim={axis - len(shape)})"
                )
            plates = ", ".join(f"plate{axis}_{name}" for axis in range(len(shape)))
            self.write(f"with {plates}:")
            self.write(f"    {name} = pyro.sample('{name}', {fn})")
        else:
            self.write(f"{name} = pyro.sample('{name}', {fn})")
        self.shapes[name] = shape
        return name

    def observe(self, mean: str) -> None:
        """Observe data with a variable as the parameter of their distribution."""
        fn, kind = self.pick(tuple(LIKELIHOODS.items()))
        shape = self.shapes[mean]
        draw = {
            "normal": lambda: self.rng.normal(size=shape),
            "count": lambda: self.rng.poisson(2.0, shape).astype(float),
            "binary": lambda: (self.rng.random(shape) < 0.5).astype(float),
            "positive": lambda: self.rng.gamma(2.0, 1.0, shape),
            "share": lambda: self.rng.uniform(0.05, 0.95, shape),
        }[kind]
        data = self.argument(np.asarray(draw()))
        fn = fn.format(mean)
        event = f".to_event({len(shape)})" if shape else ""
        self.write(f"pyro.sample('{self.name('y')}', {fn}{event}, obs={data})")

    def mix(self, names: list[str], steps: int) -> str:
        """Combine variables by random functions of elements, shapes and indices."""
        names = list(names)
        for _ in range(steps):
            names.append(self.step(names))
        return names[-1]

    def step(self, names: list[str]) -> str:
        a, b = self.pick(names), self.pick(names)
        shape = self.shapes[a]
        choice = self.rng.random()
        if choice < 0.35:
            return self.define("u", self.pick(UNARY).format(a), shape)
        if choice < 0.7:
            try:
                joint = np.broadcast_shapes(shape, self.shapes[b])
            except ValueError:
                return self.define("u", self.pick(UNARY).format(a), shape)
            return self.define("v", self.pick(BINARY).format(a, b), joint)
        if not shape:
            return self.define("u", self.pick(UNARY).format(a), shape)
        axis = int(self.rng.integers(len(shape)))
        if choice < 0.78:
            how = self.pick(REDUCTIONS)
            if how == "var" and shape[axis] < 2:
                how = "mean"
            kept = bool(self.rng.integers(2))
            rest = [*shape]
            rest[axis : axis + 1] = [1] if kept else []
            keep = f", keepdim={kept}" if how != "prod" or kept else ""
            return self.define("r", f"{a}.{how}({axis}{keep})", tuple(rest))
        return self.reshaped(a, shape, axis)

    def reshaped(self, a: str, shape: tuple[int, ...], axis: int) -> str:
        size = shape[axis]
        index = self.rng.integers(0, size, self.size(1, 7))
        picked = (*shape[:axis], len(index), *shape[axis + 1 :])
        cut = int(self.rng.integers(1, size + 1))
        narrow = (*shape[:axis], cut, *shape[axis + 1 :])
        options = [
            (f"torch.cumsum({a}, {axis})", shape),
            (f"torch.softmax({a}, {axis})", shape),
            (f"torch.log_softmax({a}, {axis})", shape),
            (f"{a}.flip({axis})", shape),
            (f"torch.roll({a}, 1, {axis})", shape),
            (f"{a}.narrow({axis}, 0, {cut})", narrow),
            (f"torch.cat([{a}, 0.5 * {a}], {axis})", (*shape[:axis], 2 * size, *shape[axis + 1 :])),
            (f"torch.stack([{a}, -{a}], -1)", (*shape, 2)),
            (f"{a}.reshape(-1)", (int(np.prod(shape)),)),
            (f"{a}.unsqueeze({axis})", (*shape[:axis], 1, *shape[axis:])),
            (
                f"{a}.transpose(0, -1)",
                (shape[-1], *shape[1:-1], shape[0]) if len(shape) > 1 else shape,
            ),
            (f"torch.cumprod(torch.tanh({a}), {axis})", shape),
            (f"torch.nn.functional.pad({a}, (1, 1))", (*shape[:-1], shape[-1] + 2)),
        ]
        expression, result = self.pick(options)
        if self.rng.random() < 0.3:
            at = self.argument(index)
            expression, result = f"{a}.index_select({axis}, {at})", picked
        return self.define("w", expression, result)

    def source(self) -> str:
        return "\n".join([f"def model({', '.join(self.data)}):", *self.lines])


def _elementwise(w: Writer) -> None:
    shapes = [(), (w.size(),), (w.size(), w.size())]
    names = [w.latent(w.pick(shapes)) for _ in range(w.size(1, 4))]
    names.append(w.argument(w.rng.normal(size=w.pick(shapes[1:]))))
    for _ in range(w.size(1, 3)):
        w.observe(w.mix(names, w.size(1, 8)))


def _matrices(w: Writer) -> None:
    n, k = w.size(2, 6), w.size(1, 5)
    x = w.argument(w.rng.normal(size=(n, k)))
    square = w.argument(w.rng.normal(size=(n, n)))
    s = w.latent((), "dist.HalfNormal(1.0)")
    v, m = w.latent((k,), "dist.Normal(0.0, 1.0)"), w.latent((k, n), "dist.Normal(0.0, 1.0)")
    cov = w.define("cov", f"{x} @ {x}.mT * {s} + ({s} + 0.5) * torch.eye({n})", (n, n))
    near = w.define(
        "near",
        f"torch.exp(-0.5 * torch.cdist({x}, {x}).square() / (0.3 + {s})) + 0.1 * torch.eye({n})",
        (n, n),
    )
    chol = w.define("chol", f"torch.linalg.cholesky({w.pick([cov, near])})", (n, n))
    options = [
        (f"{x} @ {v}", (n,)),
        (f"{x} @ {m}", (n, n)),
        (f"{m} @ {x}", (k, k)),
        (f"torch.einsum('ij,j,jk->ik', {x}, {v}, {m})", (n, n)),
        (f"{chol} @ ({x} @ {v})", (n,)),
        (f"torch.linalg.solve_triangular({chol}, {x}, upper=False)", (n, k)),
        (f"torch.cholesky_solve({x}, {chol})", (n, k)),
        (f"torch.linalg.solve({cov}, {x} @ {m})", (n, n)),
        (f"torch.linalg.inv({cov})", (n, n)),
        (f"torch.logdet({cov})", ()),
        (f"torch.linalg.slogdet({near})[1]", ()),
        (f"torch.linalg.eigvalsh({cov} + torch.diag(torch.arange({n}) * 1.0))", (n,)),
        (f"torch.outer({v}, {x}[0])", (k, k)),
        (f"torch.tril({square} * {s})", (n, n)),
        (f"torch.diag({x} @ {v})", (n, n)),
        (f"torch.diagonal({cov})", (n,)),
        (f"torch.trace({cov})", ()),
        (f"torch.linalg.norm({x} @ {m})", ()),
        (f"torch.bmm({m}.expand(3, {k}, {n}), torch.stack([{x}] * 3))", (3, k, k)),
        (f"torch.kron(torch.diag({v}), {x}[:1])", (k, k * k)),
        (f"torch.matrix_exp(0.1 * {s} * {square})", (n, n)),
        (f"torch.linalg.multi_dot([{x}, {m}, {square}])", (n, n)),
        (f"{chol}.mT", (n, n)),
        (f"torch.addmm({square}, {x}, {m})", (n, n)),
    ]
    chosen = [options[i] for i in w.rng.permutation(len(options))[: w.size(2, 4)]]
    names = [w.define("p", *option) for option in chosen]
    for _ in range(w.size(1, 2)):
        w.observe(w.mix(names, w.size(1, 4)))
    y = w.argument(w.rng.normal(size=n))
    mean = f"{x} @ {v}"
    normal = w.pick(
        [
            f"dist.MultivariateNormal({mean}, covariance_matrix={near})",
            f"dist.MultivariateNormal({mean}, scale_tril={chol})",
            f"dist.MultivariateNormal({mean}, precision_matrix={cov})",
            f"dist.LowRankMultivariateNormal({mean}, {m}.mT, {s}.expand({n}) + 0.1)",
            f"dist.MultivariateStudentT(torch.tensor(5.0), {mean}, {chol})",
        ]
    )
    w.write(f"pyro.sample('normal', {normal}, obs={y})")
    if w.rng.random() < 0.4:
        size = w.size(2, 4)
        w.write(f"omega = pyro.sample('omega', dist.LKJCholesky({size}, 1.5))")
        rows = w.argument(w.rng.normal(size=(5, size)))
        w.write("with pyro.plate('rows', 5):")
        w.write(
            f"    pyro.sample('rows_y', dist.MultivariateNormal(torch.zeros({size}), "
            f"scale_tril={s} * omega + 0.0), obs={rows})"
        )


def _loops(w: Writer) -> None:
    steps, width = w.size(2, 40), w.size(1, 3)
    wide = (width,) if w.rng.random() < 0.5 else ()
    a, b = w.latent(), w.latent(wide)
    c = w.latent(prior="dist.Beta(2.0, 2.0)")
    x = w.argument(w.rng.normal(size=(steps,)))
    joint = np.broadcast_shapes(w.shapes[a], w.shapes[b])
    noise = w.latent((steps,), "dist.Normal(0.0, 1.0)") if w.rng.random() < 0.5 else None
    w.write(f"h = 0.1 * {b} + 0.0 * {a}")
    w.write("g, states = h, []")
    in_place = w.rng.random() < 0.5
    place = w.pick(["t", "-1 - t", "t // 2", f"(3 * t) % {steps}"])
    kept = w.size(0, steps - 1)
    if in_place:
        shape = ", ".join(map(str, (steps, *joint)))
        w.write(f"buffer = torch.{w.pick(['zeros', 'ones'])}({shape})")
        w.write("kept = buffer.clone()")
    backwards = w.rng.random() < 0.3
    w.write(f"for t in {f'reversed(range({steps}))' if backwards else f'range({steps})'}:")
    w.indent = "        "
    step = w.pick(
        [
            "{c} * h + {a} * x",
            "torch.tanh({a} * h + {b} * x)",
            "{c} * h + 0.3 * {c} * g + 0.1 * {b}",
            "h + 0.1 * (x - torch.sin(h) * {a})",
            "torch.logaddexp(h - 0.5, {a} * x)",
            "torch.where(h > 0.4, {c} * h, h + 0.1 * {a} * x)",
            "(h * {c} + (1 - {c}) * x**2).clamp(-5.0, 5.0)",
            "torch.sqrt(0.1 + {c} * h.square() + (1 - {c}) * x**2)",
            "h + 0.05 * ({a} * h * (1 - h.tanh()) - {c} * g)",
        ]
    ).format(a=a, b=b, c=c)
    term = f" + 0.2 * {noise}[t]" if noise else ""
    branch = w.rng.random()
    w.write(f"x = {x}[t]")
    if branch < 0.2:
        w.write(f"new = {step}{term} if t % {w.size(2, 3)} else 0.9 * h")
    else:
        w.write(f"new = {step}{term}")
    if branch > 0.8:
        w.write("new = 0.5 * new + 0.5 * torch.tanh(new)")
    w.write("g, h = h, new")
    each = w.rng.random() < 0.3
    if each:
        y = w.argument(w.rng.normal(size=(steps, *joint)))
        event = f".to_event({len(joint)})" if joint else ""
        w.write(f"pyro.sample(f'y_{{t}}', dist.Normal(h, 0.5){event}, obs={y}[t])")
    if in_place:
        w.write(f"buffer[{place}] = h")
        w.write(f"kept = buffer.clone() if t == {kept} else kept")
    else:
        w.write("states.append(h)")
    w.indent = "    "
    made = "buffer + 0.5 * kept" if in_place else "torch.stack(states)"
    path = w.define("path", made, (steps, *joint))
    w.observe(w.mix([path], w.size(0, 2)) if w.rng.random() < 0.5 else path)


def _enumerated(w: Writer) -> None:
    k, n = w.size(2, 4), w.size(2, 8)
    w.write(f"weights = pyro.sample('weights', dist.Dirichlet(torch.full(({k},), 1.5)))")
    loc = w.latent((k,), "dist.Normal(0.0, 2.0)")
    scale = w.latent((), "dist.HalfNormal(1.0)")
    y = w.argument(w.rng.normal(size=n))
    form = w.size(0, 4)
    if form == 0:  # a mixture
        w.write(f"with pyro.plate('row', {n}):")
        w.write("    c = pyro.sample('c', dist.Categorical(weights))")
        w.write(f"    pyro.sample('y', dist.Normal({loc}[c], {scale} + 0.1), obs={y})")
    elif form == 1:  # a hidden Markov chain
        w.write(
            f"moves = pyro.sample('moves', dist.Dirichlet(torch.full(({k}, {k}), 2.0)).to_event(1))"
        )
        w.write("c = 0")
        w.write(f"for t in pyro.markov(range({n})):")
        w.write("    c = pyro.sample(f'c_{t}', dist.Categorical(moves[c]))")
        w.write(f"    pyro.sample(f'y_{{t}}', dist.Normal({loc}[c], {scale} + 0.1), obs={y}[t])")
    elif form == 2:  # two binary causes of each row
        w.write("share = pyro.sample('share', dist.Beta(2.0, 2.0).expand([2]).to_event(1))")
        w.write(f"with pyro.plate('row', {n}):")
        w.write("    a = pyro.sample('a', dist.Bernoulli(share[0]))")
        w.write(
            "    b = pyro.sample('b', dist.Bernoulli(torch.where(a > 0, share[1], 1 - share[0])))"
        )
        w.write(
            f"    pyro.sample('y', dist.Normal({loc}[0] * a + {loc}[1] * b * a, {scale} + 0.1), "
            f"obs={y})"
        )
    elif form == 3:  # a shared class, and a class of each row given it
        w.write("top = pyro.sample('top', dist.Categorical(weights))")
        w.write(f"rates = pyro.sample('rates', dist.Beta(2.0, 2.0).expand([{k}]).to_event(1))")
        w.write(f"with pyro.plate('row', {n}):")
        w.write("    c = pyro.sample('c', dist.Bernoulli(rates[top]))")
        w.write(f"    pyro.sample('y', dist.Normal({loc}[top] + c, {scale} + 0.1), obs={y})")
    else:  # integrated by a distribution
        w.write(
            f"moves = pyro.sample('moves', dist.Dirichlet(torch.full(({k}, {k}), 2.0)).to_event(1))"
        )
        w.write(
            f"hidden = dist.DiscreteHMM(weights.log(), moves.log(), "
            f"dist.Normal({loc}, {scale} + 0.1), duration={n})"
        )
        w.write(f"pyro.sample('y', hidden, obs={y})")


_WRITERS = {
    "elementwise": _elementwise,
    "matrices": _matrices,
    "loops": _loops,
    "enumerated": _enumerated,
}


def random_model(kind: str, seed: int):
    """Return the source of a random model, the model, and its data."""
    writer = Writer(seed)
    _WRITERS[kind](writer)
    source = writer.source()
    scope = {"pyro": pyro, "dist": dist, "torch": torch}
    exec(compile(source, f"<{kind} {seed}>", "exec"), scope)
    return source, scope["model"], list(writer.data.values())
