"""Stochastic variational inference: a guide is fitted to the posterior by maximising the ELBO."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pyro.distributions as dist
import torch
from pyro.infer import ELBO, TraceGraph_ELBO
from pyro.infer.autoguide import AutoContinuous, AutoLaplaceApproximation
from pyro.optim import PyroOptim
from torch import Tensor
from torch.utils.data import DataLoader

from probdl.compile import ENGINES, choose
from probdl.compile.step import Parameters
from probdl.errors import ModelError, ProbdlError, SettingError
from probdl.findings import TAIL_DRAWS_MIN, Finding
from probdl.io.pareto import psis
from probdl.methods.approximate.comparison import compare_with_density
from probdl.methods.approximate.reference import has_reference
from probdl.methods.approximate.unweighted import draw_unweighted, uneven_rows
from probdl.methods.approximate.weighting import (
    WeightedDraws,
    compiled_scorer,
    draw_weighted,
    scorer_of,
)
from probdl.methods.base import Method
from probdl.methods.guide_sites import sampled_by
from probdl.methods.tails import check_tails
from probdl.methods.training.checkpoint import checkpoint_of
from probdl.methods.training.minibatch import Batches, FullData, LoaderBatches, PlateBatches
from probdl.methods.training.optimizers import (
    SCHEDULES,
    ScheduledOptimizer,
    check_optimizer,
    check_schedule,
)
from probdl.methods.training.trainable import Trainable
from probdl.methods.variational.checks import check_annealing, check_collapse
from probdl.methods.variational.copies import AUTOMATIC
from probdl.methods.variational.guides import (
    GUIDES,
    check_guide,
    default_guide,
    make_guide,
    own_guide,
    starts_itself,
)
from probdl.methods.variational.objective import ELBOS, Objective, resolve_elbo
from probdl.methods.variational.starting import Start, find_start, place_guide
from probdl.methods.variational.training import Outcome, Plan, train
from probdl.methods.variational.validation import Validation, held_out
from probdl.model.density import LogDensity
from probdl.model.distributions import base_distribution
from probdl.model.program import Program
from probdl.model.sites import Site, Structure, data_plate, data_plates, discover
from probdl.model.starting import checked_values
from probdl.results.enumeration import sampled_sites
from probdl.results.fit import Fit
from probdl.results.guided import GuidedFit
from probdl.results.latent import Proposal, Scorer, computes_rows, draw_shared, local_sites
from probdl.results.weights import Reference, check_approximation
from probdl.util.clock import timed
from probdl.util.isolation import evaluation
from probdl.util.ranks import ALONE, Ranks, current_ranks
from probdl.util.seeds import stream
from probdl.util.settings import check_path

__all__ = ["SVI"]

DEFAULT_STEPS = 10_000
PARTICLES_MAX = 10**6  # which are in memory at once

SLOW_FULL_RANK_MIN = 1000  # ours: latent scalars whose full covariance is slow to train
CHECK_DRAWS = 4000  # draws of a guide that are weighted, to see how it differs from the posterior
CHECK_DRAWS_MIN = 100
CHECK_WORK_MAX = 2e7  # evaluations of an observed value for that, about a second without compiling
# Evaluations of an observed value after training: from which number compiled code saves time, and
# the largest numbers without and with it, about ten seconds each.
COMPILE_WORK_MIN = 2e7
WORK_MAX = 2e8
NATIVE_WORK_MAX = 2e9


@dataclass(frozen=True, repr=False)
class SVI(Method, name="svi"):
    r"""Stochastic variational inference, which maximises the evidence lower bound of a guide q(z).

    .. math:: \log p(x) \ge E_{q(z|x)}[\log p(x|z)] - KL(q(z|x) \| p(z))
        \qquad\text{(Eqs. 20 to 22)}

    The parameters of the model (``pyro.param``, the weights of a network) are fitted together with
    those of the guide. If each row of the data has its own latent sites, the model is a variational
    autoencoder. A model without latent sites is fitted by maximum likelihood. Networks train in
    their own dtype, other models in float64.

    If the latent sites are shared by all data, the fit holds draws of the guide, and ``stats`` has
    ``pareto_k``, ``log_weights`` and ``log_evidence`` from importance sampling. If they belong to
    rows (they are in the data plate, and the guide is not automatic), the fit holds the parameters
    of the model, and ``fit.elbo``, ``fit.log_evidence``, ``fit.encode``, ``fit.decode`` and
    ``fit.reconstruct`` compute quantities of the latent sites. ``stats`` also has ``elbo`` (nats,
    at each step), ``params`` (of model and guide by name), ``best_step`` (of the state that the
    fit holds: the last one, unless an earlier one was clearly better) and ``engine``: ``native``
    for compiled C; for networks ``graph``, a traced graph that torch runs, or ``inductor``, the
    same graph compiled by torch, if the number of steps is large enough (12,000); ``eager`` for
    Pyro's own evaluation.

    Args:
        guide: a name (``"normal"``, ``"diagonal_normal"``, ``"multivariate_normal"``,
            ``"lowrank"``, ``"delta"``, ``"iaf"``, ``"structured"``, ``"gaussian"``), a guide as
            Pyro's users write it (``AutoNormal(model)``, an ``AutoGuideList``, a class of
            automatic guides, a function that makes a guide of a model), or a function or module
            that samples the latent sites. The fit trains its own copy of a guide, which goes on
            from where the guide is. None means the method ``guide`` of the model; without one,
            ``"multivariate_normal"`` for 2 to 100 latent scalars (without networks), and
            ``"normal"`` for other models. Default: None.
        steps: number of steps. None, the default, means 10,000, or the number that follows from
            ``epochs``.
            Default: None.
        epochs: number of passes through the data, instead of ``steps``. Default: None.
        batch_size: number of rows of the data plate in each step; None uses all rows. Arguments
            with as many rows as the plate are indexed along their first dimension, and the log
            probabilities of sites in the plate are scaled by N / B. A DataLoader as the model's
            only argument has the same effect: its batches are spread over the model's arguments,
            or passed as a whole if the model takes one argument. All results cover all rows of
            its dataset, in the dataset's order. ``pyro.plate(name, N, subsample_size=len(x))`` is
            scaled once. Under ``torchrun``, the processes divide the rows of each batch.
            Default: None.
        optimizer: a class of ``torch.optim``, its name, or a ``pyro.optim.PyroOptim``.
            Default: ``"Adam"``.
        learning_rate: initial learning rate. Default: 0.01.
        schedule: ``"cosine"`` or ``"linear"`` (to zero), ``"exponential"`` (to one hundredth),
            ``"constant"``, or a function that makes a ``torch.optim.lr_scheduler`` of an optimizer.
            Default: ``"cosine"``.
        elbo: the estimator: ``"trace"``, ``"mean_field"``, ``"enum"``, ``"renyi"``, or one of
            Pyro's. ``"auto"`` means ``"enum"`` if there are discrete latent sites, and ``"trace"``
            otherwise. Default: ``"auto"``.
        num_particles: number of draws of the latent sites that are averaged in each step.
            Default: 1.
        kl_annealing: number of steps over which the weight of the KL term rises to 1. Default: 0.
        clip_norm: gradients are clipped to this norm; None leaves them. Default: None.
        patience: training ends if the ELBO, smoothed over 100 steps, or with ``validation`` the
            ELBO of the held-out data, has not improved for this number of steps; None for no
            limit. Default: None.
        validation: held-out data, as a tuple of the model's arguments, ``(x_test,)``, a dict of
            them by name, or a DataLoader. Their ELBO per row (without the KL terms of sites that
            all rows share) is evaluated once in an epoch, or every 100 steps if these are more
            (in long runs, at steps that are 3% apart), and is drawn by ``plot_elbo``. It replaces
            the training's ELBO for ``patience`` and for the choice of the best state, unless the
            guide is a distribution of sites that all rows share, as in a Bayesian network: their
            KL terms keep it from overfitting.
            ``stats`` then has ``validation_elbo`` (nats per row) and ``validation_steps``.
            Default: None.
        init: values of latent sites by name, from which the search for the start of an automatic
            guide begins, as in ``{"mu": 2.0}``; None begins at random points. Default: None.
        draws: number of draws of the guide that the fit holds. Default: 1000.
        checkpoint: a folder in which the training is saved. After a kill the same call resumes
            there and gives the same result; a finished training continues to a larger number of
            steps (with a constant learning rate). Default: None.
        every: number of steps between checkpoints, rounded up to a multiple of 100. Default: 1000.
        engine: ``"auto"``, ``"native"`` or ``"eager"``. Default: ``"auto"``.

    Raises:
        SettingError: a setting is out of range, or ``batch_size`` is larger than the data.
        ModelError: guide and model differ in their sites, minibatches are requested without a data
            plate, or the loss is not finite at the first step.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, probdl
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("obs", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> fit = probdl.infer(model, torch.ones(3), method=probdl.SVI(steps=2000), seed=1)
        >>> abs(fit.draws["mu"].mean() - 0.75) < 0.05     # the posterior is N(3/4, 1/4)
        np.True_

    Source: Kingma and Welling, "Auto-encoding variational Bayes" (2014); Hoffman, Blei, Wang and
    Paisley, "Stochastic variational inference", JMLR 14 (2013).
    """

    takes_loader: ClassVar[bool] = True
    trains_networks: ClassVar[bool] = True
    draws_are_independent: ClassVar[bool] = True
    sums_out: ClassVar[bool] = False  # a guide may sample them
    fit_type: ClassVar[type[Fit]] = GuidedFit

    guide: str | Callable[..., Any] | None = None
    steps: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    optimizer: Any = "Adam"
    learning_rate: float = 0.01
    schedule: str | Callable[..., Any] = "cosine"
    elbo: str | ELBO = "auto"
    num_particles: int = 1
    kl_annealing: int = 0
    clip_norm: float | None = None
    patience: int | None = None
    validation: Any = None
    init: Mapping[str, Any] | None = None
    draws: int = 1000
    checkpoint: str | os.PathLike[str] | None = None
    every: int = 1000
    engine: str = "auto"

    def __post_init__(self) -> None:
        check_path(type(self).__name__, checkpoint=self.checkpoint)
        self._check_int(kl_annealing=0, draws=1, every=1)
        self._check_int(PARTICLES_MAX, num_particles=1)
        for setting in ("steps", "epochs", "batch_size", "patience"):
            if getattr(self, setting) is not None:
                self._check_int(**{setting: 1})
        self._check_init()
        self._check_real(learning_rate=(0, math.inf))
        if self.clip_norm is not None:
            self._check_real(clip_norm=(0, math.inf))
        self._check_choice(engine=ENGINES)
        if not isinstance(self.elbo, ELBO):
            self._check_choice(elbo=("auto", *ELBOS))
        if self.elbo == "renyi" and self.num_particles < 2:
            self._refuse("num_particles", "must be at least 2 for elbo='renyi'")
        if self.steps is not None and self.epochs is not None:
            self._refuse("epochs", "cannot be combined with steps; pass one of them")
        for setting, check in (
            ("guide", check_guide),
            ("optimizer", check_optimizer),
            ("schedule", check_schedule),
        ):
            if wrong := check(getattr(self, setting)):
                self._refuse(setting, wrong)

    def run(self, program: Program, seed: int, progress: bool | None) -> Fit:
        """Fit the guide and the parameters of the model."""
        dtype = program.training_dtype
        if dtype != torch.float64:
            program = program.to(dtype)
        structure = self._discover(program)
        in_batches = program.loader is not None or self.batch_size is not None
        ranks = current_ranks() if in_batches else ALONE
        batches = self._batches(program, structure, ranks)
        held_out_program = None
        if self.validation is not None:
            held_out_program = held_out(program, self.validation)
        if batches.plate is not None:
            masked = bool(program.used)
            program = program.in_minibatches()
            if masked:  # other batches may have other unused elements
                structure = self._discover(program)
        with evaluation(dtype=dtype):
            with timed("start"):
                start = self._start(program, structure, batches, seed)
            guide = make_guide(program, structure, self.guide, start.values)
            automatic = isinstance(guide.model, AUTOMATIC)
            structure = structure.with_sampled(sampled_by(guide, structure))
            structure.check_summable()
            self._check_local(structure, batches, automatic)
            if automatic and held_out_program is not None:
                self._check_held_out(structure)
            if automatic:
                self._check_supports(structure)
                _check_subsampled(program, structure, guide)
            self._check_estimator(automatic)
            objective = Objective(
                program,
                guide,
                structure,
                resolve_elbo(self.elbo, self.num_particles, structure),
                automatic=self.elbo == "auto",
                plate=batches.plate,
                size=batches.size,
                annealed=bool(self.kl_annealing),
            )
            if not objective.leaves:
                raise ModelError(
                    f"Neither the model '{program.name}' nor its guide '{guide.name}' has a "
                    "parameter, so there is nothing to fit. Declare parameters with pyro.param or "
                    "in a module."
                )
            objective.check_sites()
            units = place_guide(guide.model, objective, start) if automatic else None
            local = () if automatic else local_sites(structure, objective.traces(())[0])
            of_rows = [name for name in local if structure.sites[name].kind == "latent"]
            whole = batches.plate is None
            if of_rows and whole and not computes_rows(program, structure, guide, of_rows):
                local = ()
            spreads = _draws_shared_sites(objective, local)
            parameters = Parameters(objective.leaves)
            parameters.units = units
            plan = self._plan(program, objective, parameters, batches, seed, progress)
            plan = replace(plan, ranks=ranks)
            if held_out_program is not None:
                validation = Validation(
                    held_out_program,
                    guide,
                    objective,
                    local,
                    stream(seed, "validation"),
                    selects=not spreads,
                )
                validation.check(parameters.values)
                plan = replace(plan, validation=validation)
            outcome = train(objective, parameters, batches, plan)
            params = objective.finish(parameters.values)
        for module in [*program.modules, *guide.modules]:
            module.eval()
        proposal = Proposal(guide, params, objective.parameters, local)
        structure = structure.with_values(params)
        checks = [
            *check_annealing(self.kl_annealing, outcome.best_step),
            *check_collapse(program, structure, proposal, stream(seed, "collapse")),
        ]
        stats = {
            "elbo": -outcome.losses,
            "best_step": outcome.best_step,
            "engine": outcome.engine,
            "params": {name: value.numpy() for name, value in params.items()},
        }
        if outcome.held_out:
            steps, values = zip(*outcome.held_out, strict=True)
            stats |= {
                "validation_steps": np.array(steps),
                "validation_elbo": np.array(values),
                "rows": batches.size or sum(data_plates(structure).values()),
            }
        # Seeded again, so that a resumed run makes the same draws.
        torch.default_generator.manual_seed(stream(seed, "draws"))
        with timed("checking draws"):
            draws, weight_stats, findings = self._draws(
                program, structure, proposal, spreads, batches, start, outcome, seed, progress
            )
            if isinstance(guide.model, AutoLaplaceApproximation):
                findings.append(_without_approximation())
        if start.findings:  # these report several modes already
            findings = [finding for finding in findings if finding.check != "multimodal"]
        findings += uneven_rows(program)
        return GuidedFit(
            self,
            program,
            structure,
            draws,
            stats | weight_stats,
            seed,
            [*start.findings, *outcome.findings, *checks, *findings],
            proposal=proposal,
        )

    def restore(
        self,
        program: Program,
        structure: Structure,
        saved: Proposal,
        start: Mapping[str, Tensor],
    ) -> Proposal:
        """Rebuild the guide of a saved fit."""
        with evaluation(dtype=program.dtype):
            guide = make_guide(program, structure, self.guide, start)
            found = Trainable(program, guide, structure)
        return replace(saved, program=guide, parameters=found.parameters)

    # -- before training --------------------------------------------------------------------

    def _divides_batches(self, args: Sequence[Any]) -> bool:
        """Return whether there are minibatches."""
        return self.batch_size is not None or any(isinstance(x, DataLoader) for x in args)

    def _batches(self, program: Program, structure: Structure, ranks: Ranks) -> Batches:
        if program.loader is not None:
            if self.batch_size is not None:
                self._refuse("batch_size", "is the DataLoader's; leave it out")
            return LoaderBatches(program, structure, ranks)
        if self.batch_size is None:
            return FullData(program)
        if program.subsampled:
            self._refuse(
                "batch_size",
                f"cannot be combined with subsample_size= of plate {min(program.subsampled)!r}, by "
                "which the model forms its own minibatches; leave one of them out",
            )
        return PlateBatches(program, structure, self.batch_size, ranks=ranks)

    def _start(self, program: Program, structure: Structure, batches: Batches, seed: int) -> Start:
        """Find where an automatic guide starts."""
        if starts_itself(self.guide, program) or not structure.of("latent"):
            if self.init is not None:
                self._refuse("init", "applies to automatic guides; set the start in your guide")
            return Start()
        if program.modules:
            return Start(checked_values(_latent(structure), self.init or {}))
        return find_start(
            program,
            structure,
            batches,
            self.init,
            steps=self._steps(batches),
            engine=self.engine,
            seed=seed,
        )

    def _steps(self, batches: Batches) -> int:
        if self.epochs is not None:
            return self.epochs * batches.per_epoch
        return self.steps or DEFAULT_STEPS

    def _check_local(self, structure: Structure, batches: Batches, automatic: bool) -> None:
        """Raise ModelError for an automatic guide of rows that is to be trained on minibatches."""
        plate = batches.plate
        local = [s.name for s in structure.of("latent") if plate is not None and plate in s.dims]
        if local and automatic:
            raise ModelError(
                f"The latent sites {', '.join(map(repr, local))} are in the data plate '{plate}', "
                "so an automatic guide has parameters for each row, which cannot be trained on "
                "minibatches. Leave out batch_size, or pass a guide that computes the parameters "
                "from the data."
            )

    def _check_held_out(self, structure: Structure) -> None:
        """Raise SettingError for an automatic guide of rows, which has no held-out ones."""
        plates = data_plates(structure)
        local = [s.name for s in structure.of("latent") if plates.keys() & set(s.dims)]
        if local:
            raise SettingError(
                f"SVI(validation=...): the latent sites {', '.join(map(repr, local))} are in the "
                "data plate, so an automatic guide has parameters for each row of the data, and "
                "no values for held-out rows. Pass a guide that computes them from the data, or "
                "leave out validation."
            )

    def _check_supports(self, structure: Structure) -> None:
        """Raise ModelError for an automatic guide of a site with a support that moves."""
        latent = [s for s in structure.of("latent") if not s.is_discrete]
        moving = [s.name for s in latent if s.transform is None]
        if moving:
            raise ModelError(
                f"The support of {', '.join(map(repr, moving))} depends on other sites, and Pyro's "
                "automatic guides take the support of their first run for all. Use method='nuts', "
                "or sample a part of the interval: pyro.sample(..., dist.Beta(1, 1)) times its "
                "length."
            )

    def _check_estimator(self, automatic: bool) -> None:
        if automatic and self.elbo == "mean_field":
            self._refuse(
                "elbo",
                "must not be 'mean_field' with an automatic guide: Pyro's mean-field estimator "
                "leaves out the Jacobian of the guide's transforms; use 'trace'",
            )

    def _plan(
        self,
        program: Program,
        objective: Objective,
        parameters: Parameters,
        batches: Batches,
        seed: int,
        progress: bool | None,
    ) -> Plan:
        def make_optimizer(flat: bool) -> ScheduledOptimizer:
            return ScheduledOptimizer(
                parameters,
                objective.names,
                self.optimizer,
                self.learning_rate,
                self.schedule,
                self.clip_norm,
                flat,
            )

        checkpoint = checkpoint_of(
            self,
            seed,
            list(zip(objective.names, map(tuple, parameters.shapes), strict=True)),
            program,
        )
        rates = None
        if self.optimizer in ("Adam", torch.optim.Adam) and isinstance(self.schedule, str):
            factor, rate = SCHEDULES[self.schedule], self.learning_rate
            rates = lambda done: rate * factor(done)  # noqa: E731
        # The averages that reduce the variance of score-function gradients change in each step.
        eager = isinstance(objective.elbo, TraceGraph_ELBO)
        return Plan(
            self._steps(batches),
            make_optimizer,
            "eager" if eager else self.engine,
            seed,
            progress,
            rates,
            isinstance(self.schedule, str)
            and self.schedule != "constant"
            and not isinstance(self.optimizer, PyroOptim),
            self.clip_norm,
            self.kl_annealing,
            self.patience,
            checkpoint,
        )

    # -- after training ---------------------------------------------------------------------

    def _draws(
        self,
        program: Program,
        structure: Structure,
        proposal: Proposal,
        spreads: bool,
        batches: Batches,
        start: Start,
        outcome: Outcome,
        seed: int,
        progress: bool | None,
    ) -> tuple[dict[str, Any], dict[str, Any], list[Finding]]:
        """Draw from the guide, and check the draws by their importance weights.

        With ``spreads``, the guide is more than a point.
        """
        latent = [s.name for s in structure.of("latent")]
        if not latent or set(latent) & set(proposal.local):
            shared = [name for name in latent if name not in proposal.local]
            if shared:
                values = draw_shared(program, structure, proposal, shared, self.draws)
                return {name: v.numpy()[None] for name, v in values.items()}, {}, []
            fitted = {s.name: s.value for s in structure.of("param")} or proposal.values
            return {name: v.numpy()[None, None] for name, v in fitted.items()}, {}, []
        if program.dtype != torch.float64:
            program = program.to(torch.float64)
            structure = discover(program).with_values(proposal.values)
        wanted = self.draws if spreads else 1
        found: list[Finding] = []
        scorer, count = None, wanted
        if wanted >= TAIL_DRAWS_MIN:  # more draws make the check more precise
            elements = max(structure.count_values("observed"), 1)
            if program.loader is not None:  # the structure is that of one batch
                elements = elements * batches.size // data_plate(program, structure)[1]
            held = structure.count_values("latent", "deterministic")  # by each draw of the fit
            # If control flow depends on values, each draw needs a separate run.
            if outcome.engine != "eager":
                affordable = int(CHECK_WORK_MAX // max(elements, held))
                count = max(wanted, min(CHECK_DRAWS, affordable))
            work = WORK_MAX
            try:
                large = count * elements > COMPILE_WORK_MIN
                if (known := _scorer_of(start, program, structure, progress)) is not None:
                    scorer = known
                elif large and program.loader is None and not _draws_discrete(structure):
                    scorer = compiled_scorer(program, structure, self.engine, seed, progress)
            except KeyboardInterrupt as stop:
                return draw_unweighted(program, structure, proposal, wanted, stop)
            if scorer is not None:
                work = NATIVE_WORK_MAX
            count = max(min(count, int(work // elements)), CHECK_DRAWS_MIN)
            if count < wanted:
                found.append(_fewer_draws(count, wanted, elements))
        try:
            weighted = draw_weighted(program, structure, proposal, count, found, scorer)
        except KeyboardInterrupt as stop:
            return draw_unweighted(program, structure, proposal, wanted, stop)
        except ProbdlError as error:
            if program.loader is None:
                raise
            return draw_unweighted(program, structure, proposal, wanted, error)
        draws = {name: value.numpy()[None, :wanted] for name, value in weighted.draws.items()}
        stats: dict[str, Any] = {"lp": weighted.lp[None, :wanted]}
        points = [
            name
            for name, site in _latent(structure).items()
            if not site.is_discrete and _is_point(weighted.draws[name])
        ]
        if points and wanted > 1:
            found.append(_points(points))
        if points or wanted < TAIL_DRAWS_MIN:
            return draws, stats, found
        stats |= {
            "pareto_k": weighted.pareto_k,
            "log_weights": psis(weighted.log_ratios[:wanted])[0][None],
            "log_evidence": weighted.log_evidence,
        }
        found += check_approximation(
            {name: weighted.draws[name].numpy() for name in latent},
            weighted.log_weights,
            weighted.pareto_k,
            "the guide",
            self._remedy(program, structure, outcome),
            self._reference(program, structure, weighted, seed, found),
            log_evidence=weighted.log_evidence,
        )
        return draws, stats, found

    def _remedy(self, program: Program, structure: Structure, outcome: Outcome) -> str:
        used = self.guide
        if used is None:
            used = own_guide(program) or default_guide(program, structure)
        flexible = "multivariate_normal"
        if structure.count_values("latent") > SLOW_FULL_RANK_MIN:
            flexible = "lowrank"
        advice = ["train for more steps"]
        if not any(finding.check == "not_converged" for finding in outcome.findings):
            advice = ["train for more steps, if these still raise the ELBO"]
        named = GUIDES[used] if isinstance(used, str) else used
        kind = named if isinstance(named, type) else type(named)
        if kind not in (GUIDES[flexible], GUIDES["multivariate_normal"]):
            advice.insert(0, f"use a more flexible guide (guide={flexible!r})")
        text = ", or ".join(advice)
        return f"{text[0].upper()}{text[1:]}."

    def _reference(
        self,
        program: Program,
        structure: Structure,
        weighted: WeightedDraws,
        seed: int,
        findings: list[Finding],
    ) -> Reference | None:
        """Find weighted draws that do not depend on the guide.

        Reports moments that do not exist, and modes that the guide does not cover.
        """
        if program.loader is not None or _draws_discrete(structure):
            return None
        density = LogDensity(program, structure)
        z = density.unconstrain({name: weighted.draws[name] for name in density.blocks}).numpy()
        if not has_reference(density):
            findings += check_tails(density, density, z)
            return None
        evaluator, _ = choose(density, self.engine, seed)
        compared = compare_with_density(density, evaluator, z, seed)
        findings += compared.findings
        return compared.reference


def _check_subsampled(program: Program, structure: Structure, guide: Program) -> None:
    """Raise ModelError for a guide that draws rows of a random part with all other sites."""
    partial = [s.name for s in structure.of("latent") if {*s.dims} & {*program.subsampled}]
    joint = [m for m in guide.model.modules() if isinstance(m, AutoContinuous)] if partial else []
    if joint:
        raise ModelError(
            f"The latent sites {', '.join(map(repr, partial))} are in a plate with subsample_size=,"
            f" and {type(joint[0]).__name__} has one distribution of all sites, of the size of a "
            "single part. Use guide='normal', or leave out subsample_size."
        )


def _draws_shared_sites(objective: Objective, local: Sequence[str]) -> bool:
    """Return whether the guide is a distribution, no point, of sites that all rows share.

    An automatic guide may draw all sites at once, at a site that the model does not have.
    """
    return any(
        name not in local and not isinstance(base_distribution(node["fn"]), dist.Delta)
        for name, node in sampled_sites(objective.traces(())[0])
    )


def _is_point(draws: Tensor) -> bool:
    return bool((draws == draws[:1]).all())


def _points(sites: Sequence[str]) -> Finding:
    held = ", ".join(map(repr, sites))
    return Finding(
        "info",
        "point_guide",
        f"The guide holds {held} at a point, without uncertainty, so its draws cannot be weighted: "
        "there is no check of them and no evidence.",
        "Give these sites a distribution in the guide.",
        tuple(sites),
    )


def _without_approximation() -> Finding:
    return Finding(
        "warning",
        "point_guide",
        "AutoLaplaceApproximation trains a point, so the fit is a point estimate.",
        "Use method='laplace', or guide='multivariate_normal', for a normal approximation.",
    )


def _latent(structure: Structure) -> dict[str, Site]:
    return {site.name: site for site in structure.of("latent")}


def _scorer_of(
    start: Start, program: Program, structure: Structure, progress: bool | None
) -> Scorer | None:
    """Return log p(z, x) by the native density of the start, if it is that of the fit."""
    if start.evaluator is None or start.density is None or start.density.program is not program:
        return None
    if structure.of("param") or set(start.density.blocks) != set(_latent(structure)):
        return None
    return scorer_of(start.density, start.evaluator, progress)


def _draws_discrete(structure: Structure) -> bool:
    return any(site.is_discrete for site in structure.of("latent"))


def _fewer_draws(count: int, wanted: int, elements: int) -> Finding:
    return Finding(
        "info",
        "fewer_draws",
        f"The fit holds {count} draws of the guide instead of {wanted}, because each draw is "
        f"weighted by its density at all {elements} observed values.",
        "This is enough for means and standard deviations. predict() makes as many predictions.",
    )
