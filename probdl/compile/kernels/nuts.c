/* The No-U-Turn sampler on a compiled log density, many transitions in one call.

   Multinomial sampling of a trajectory with biased progressive steps, and the generalised criterion
   of a U-turn, also between the halves of a trajectory (Hoffman and Gelman, JMLR 15, 2014; Betancourt,
   arXiv:1701.02434, 2017). The metric is diagonal plus low rank,

       M^-1 = S (I + U' (L - I) U) S,    S = diag(scale), L = diag(variances), U U' = I,

   and during warm-up, the diagonal minimises the Fisher divergence between the density and a normal
   one, from the variances of draws and of gradients (Seyboldt, Carlson and Carpenter,
   arXiv:2603.18845). The step size is adapted by dual averaging.

   Random numbers depend on the key of the chain and the number of the transition only, so that a
   chain goes on from its state as if it had not stopped. Nothing is allocated. */

typedef int64_t (*Density)(uint64_t, const double *, double *, double *, const void *);

enum { LEVELS = 31, PER_LEVEL = 8, MOMENTUM = 0, CHOICES = 1 };
#define ENERGY_ERROR_MAX 1000.0 /* of a step, beyond which a trajectory has diverged */
/* Of dual averaging, as by Hoffman and Gelman. */
#define SHRINKAGE 0.05
#define STABILISER 10.0
#define DECAY 0.75
#define VARIANCE_MIN 1e-20
#define VARIANCE_MAX 1e20

/* Running means and sums of squares of draws and gradients; each of the arrays has `dim` numbers. */
typedef struct {
    uint64_t count;
    double *mean, *squares, *grad_mean, *grad_squares;
} Moments;

typedef struct {
    uint64_t dim, rank, key, transition, max_depth;
    double target, value, step;
    /* Of dual averaging: the logs of the step and of its mean, the mean error, and the centre. */
    double log_step, log_mean_step, mean_error, centre;
    uint64_t adapted;
    double *z, *grad;
    double *scale, *directions, *variances; /* of the metric; directions are (rank, dim) */
    double *work;                           /* (LEVELS * PER_LEVEL + 10) * dim + rank numbers */
    Moments now, next;
    uint64_t choices; /* random numbers of this transition so far */
} Chain;

/* Of each transition. */
typedef struct {
    double value, energy, acceptance, step;
    uint64_t steps, depth, diverging, saturated;
} Record;

/* What is to be done in a call. */
typedef struct {
    uint64_t transitions;
    uint64_t adapt_step, adapt_scale;
    uint64_t window;       /* draws after which the older moments are left */
    volatile int64_t stop; /* set by another thread */
    volatile uint64_t done;
    volatile uint64_t divergences;
    double *draws, *grads; /* (transitions, dim), or NULL */
    Record *records;
} Task;

typedef struct {
    const Chain *chain;
    Density density;
    const void *user;
    double start_energy, step;
    double *z, *grad, *p, *v; /* the end that moves */
    double *coefficients;
    double value;
    uint64_t steps;
    double acceptance;
    int diverging;
} Trajectory;

static double dot(uint64_t n, const double *a, const double *b) {
    double s0 = 0.0, s1 = 0.0, s2 = 0.0, s3 = 0.0;
    uint64_t i = 0;
    for (; i + 4 <= n; i += 4) {
        s0 += a[i] * b[i];
        s1 += a[i + 1] * b[i + 1];
        s2 += a[i + 2] * b[i + 2];
        s3 += a[i + 3] * b[i + 3];
    }
    for (; i < n; i++) s0 += a[i] * b[i];
    return (s0 + s1) + (s2 + s3);
}

static double log_add(double a, double b) {
    double high = a > b ? a : b, low = a > b ? b : a;
    return low == -INFINITY ? high : high + log1p(exp(low - high));
}

static double choice(Chain *chain) {
    uint64_t number = chain->choices++;
    uint32_t words[4] = {(uint32_t)number, CHOICES, (uint32_t)chain->transition,
                         (uint32_t)(chain->transition >> 32)};
    philox(words, chain->key);
    return uniform(words[0], words[1]);
}

/* v = M^-1 p */
static void velocity(const Chain *chain, const double *p, double *v, double *coefficients) {
    const uint64_t n = chain->dim;
    const double *s = chain->scale;
    if (!chain->rank) {
        for (uint64_t i = 0; i < n; i++) v[i] = s[i] * s[i] * p[i];
        return;
    }
    for (uint64_t i = 0; i < n; i++) v[i] = s[i] * p[i];
    for (uint64_t k = 0; k < chain->rank; k++)
        coefficients[k] = (chain->variances[k] - 1.0) * dot(n, chain->directions + k * n, v);
    for (uint64_t k = 0; k < chain->rank; k++) {
        const double *u = chain->directions + k * n, c = coefficients[k];
        for (uint64_t i = 0; i < n; i++) v[i] += c * u[i];
    }
    for (uint64_t i = 0; i < n; i++) v[i] *= s[i];
}

static void draw_momentum(const Chain *chain, double *p, double *coefficients) {
    const uint64_t n = chain->dim;
    const Noise normal = {n, 1, 0.0, 1.0};
    fill_noise(&normal, MOMENTUM, chain->key, chain->transition, p);
    for (uint64_t k = 0; k < chain->rank; k++)
        coefficients[k] = (1.0 / sqrt(chain->variances[k]) - 1.0) *
                          dot(n, chain->directions + k * n, p);
    for (uint64_t k = 0; k < chain->rank; k++) {
        const double *u = chain->directions + k * n, c = coefficients[k];
        for (uint64_t i = 0; i < n; i++) p[i] += c * u[i];
    }
    for (uint64_t i = 0; i < n; i++) p[i] /= chain->scale[i];
}

/* One step of leapfrog; the energy after it, and INFINITY where the density is not finite. */
static double leapfrog(Trajectory *t, double step) {
    const uint64_t n = t->chain->dim;
    for (uint64_t i = 0; i < n; i++) t->p[i] += 0.5 * step * t->grad[i];
    velocity(t->chain, t->p, t->v, t->coefficients);
    for (uint64_t i = 0; i < n; i++) t->z[i] += step * t->v[i];
    t->value = -INFINITY;
    if (t->density(n, t->z, t->grad, &t->value, t->user) || !isfinite(t->value)) return INFINITY;
    for (uint64_t i = 0; i < n; i++) t->p[i] += 0.5 * step * t->grad[i];
    velocity(t->chain, t->p, t->v, t->coefficients);
    double energy = 0.5 * dot(n, t->p, t->v) - t->value;
    return isfinite(energy) ? energy : INFINITY;
}

/* A trajectory or a part of it: its first and last momentum and velocity along the direction of
   time, the sum of its momenta, and a point of it. */
typedef struct {
    double *p_first, *v_first, *p_last, *v_last, *sum;
    double *z, *grad;
    double value, energy, log_weight;
} Tree;

/* Whether a trajectory still goes on, between two velocities and with `sum` plus `more` as the sum
   of its momenta. */
static int goes_on(uint64_t n, const double *v_first, const double *v_last, const double *sum,
                   const double *more) {
    double first = dot(n, v_first, sum) + dot(n, v_first, more);
    double last = dot(n, v_last, sum) + dot(n, v_last, more);
    return first > 0.0 && last > 0.0;
}

/* Build a tree of 2^depth steps from the moving end. Its arrays are there already, but for those of
   the ends that the caller holds; `room` has PER_LEVEL arrays for each level below. Returns whether
   all of it goes on. */
static int build(Trajectory *t, Chain *chain, uint64_t depth, double direction, Tree *tree,
                 double *room) {
    const uint64_t n = chain->dim, bytes = n * sizeof(double);
    if (!depth) {
        double energy = leapfrog(t, direction * t->step);
        double gain = t->start_energy - energy;
        t->steps++;
        t->acceptance += gain > 0.0 ? 1.0 : exp(gain);
        if (!(gain > -ENERGY_ERROR_MAX)) {
            t->diverging = 1;
            return 0;
        }
        memcpy(tree->p_first, t->p, bytes);
        memcpy(tree->p_last, t->p, bytes);
        memcpy(tree->v_first, t->v, bytes);
        memcpy(tree->v_last, t->v, bytes);
        memcpy(tree->sum, t->p, bytes);
        memcpy(tree->z, t->z, bytes);
        memcpy(tree->grad, t->grad, bytes);
        tree->value = t->value;
        tree->energy = energy;
        tree->log_weight = gain;
        return 1;
    }
    double *below = room + PER_LEVEL * n;
    /* The first half ends, and the second begins, in this level's room. */
    Tree first = *tree, second = *tree;
    first.p_last = room;
    first.v_last = room + n;
    second.p_first = room + 2 * n;
    second.v_first = room + 3 * n;
    second.sum = room + 4 * n;
    second.z = room + 5 * n;
    second.grad = room + 6 * n;
    if (!build(t, chain, depth - 1, direction, &first, below)) return 0;
    if (!build(t, chain, depth - 1, direction, &second, below)) return 0;
    tree->log_weight = log_add(first.log_weight, second.log_weight);
    if (log(choice(chain)) < second.log_weight - tree->log_weight) {
        memcpy(tree->z, second.z, bytes);
        memcpy(tree->grad, second.grad, bytes);
        tree->value = second.value;
        tree->energy = second.energy;
    } else {
        tree->value = first.value;
        tree->energy = first.energy;
    }
    int on = goes_on(n, tree->v_first, tree->v_last, first.sum, second.sum) &&
             goes_on(n, tree->v_first, second.v_first, first.sum, second.p_first) &&
             goes_on(n, first.v_last, tree->v_last, second.sum, first.p_last);
    for (uint64_t i = 0; i < n; i++) tree->sum[i] = first.sum[i] + second.sum[i];
    return on;
}

/* One transition. Returns whether the chain moved. */
static int transit(Chain *chain, Density density, const void *user, Record *record) {
    const uint64_t n = chain->dim, bytes = n * sizeof(double);
    double *w = chain->work;
    /* Both ends: position, gradient, momentum and velocity of each. */
    double *ends[2][4];
    for (int side = 0; side < 2; side++)
        for (int i = 0; i < 4; i++, w += n) ends[side][i] = w;
    double *sum = w, *room = w + n, *coefficients = room + (LEVELS * PER_LEVEL + 1) * n;
    chain->choices = 0;
    draw_momentum(chain, ends[0][2], coefficients);
    velocity(chain, ends[0][2], ends[0][3], coefficients);
    memcpy(ends[0][0], chain->z, bytes);
    memcpy(ends[0][1], chain->grad, bytes);
    for (int i = 0; i < 4; i++) memcpy(ends[1][i], ends[0][i], bytes);
    memcpy(sum, ends[0][2], bytes);
    Trajectory t = {chain, density, user, 0.5 * dot(n, ends[0][2], ends[0][3]) - chain->value,
                    chain->step, NULL, NULL, NULL, NULL, coefficients, 0.0, 0, 0.0, 0};
    double log_weight = 0.0, energy = t.start_energy;
    uint64_t depth = 0;
    int moved = 0, on = 1;
    for (; on && depth < chain->max_depth; depth++) {
        int forward = choice(chain) < 0.5;
        double **end = ends[forward], **other = ends[!forward];
        t.z = end[0], t.grad = end[1], t.p = end[2], t.v = end[3];
        /* In this level's room: the last momentum of the part so far, and the tree. */
        Tree tree = {room,         room + n,     room + 2 * n, room + 3 * n, room + 4 * n,
                     room + 5 * n, room + 6 * n, 0.0,          0.0,          -INFINITY};
        double *p_before = room + 7 * n, *v_before = room + 8 * n;
        memcpy(p_before, end[2], bytes);
        memcpy(v_before, end[3], bytes);
        if (!build(&t, chain, depth, forward ? 1.0 : -1.0, &tree, room + 9 * n)) {
            on = 0;
            break;
        }
        if (log(choice(chain)) < tree.log_weight - log_weight) {
            memcpy(chain->z, tree.z, bytes);
            memcpy(chain->grad, tree.grad, bytes);
            chain->value = tree.value;
            energy = tree.energy;
            moved = 1;
        }
        log_weight = log_add(log_weight, tree.log_weight);
        /* The criterion does not depend on the direction of time. */
        on = goes_on(n, other[3], end[3], sum, tree.sum) &&
             goes_on(n, other[3], tree.v_first, sum, tree.p_first) &&
             goes_on(n, v_before, end[3], tree.sum, p_before);
        for (uint64_t i = 0; i < n; i++) sum[i] += tree.sum[i];
    }
    record->value = chain->value;
    record->energy = energy;
    record->acceptance = t.acceptance / (double)t.steps;
    record->step = chain->step;
    record->steps = t.steps;
    record->depth = depth;
    record->diverging = t.diverging;
    record->saturated = on;
    return moved;
}

static void adapt_step(Chain *chain, double acceptance) {
    chain->adapted++;
    double count = (double)chain->adapted, share = 1.0 / (count + STABILISER);
    chain->mean_error += share * (chain->target - acceptance - chain->mean_error);
    chain->log_step = chain->centre - chain->mean_error * sqrt(count) / SHRINKAGE;
    double decay = pow(count, -DECAY);
    chain->log_mean_step += decay * (chain->log_step - chain->log_mean_step);
    chain->step = exp(chain->log_step);
}

static void add_moments(const Chain *chain, Moments *of) {
    of->count++;
    double share = 1.0 / (double)of->count;
    for (uint64_t i = 0; i < chain->dim; i++) {
        double off = chain->z[i] - of->mean[i];
        of->mean[i] += share * off;
        of->squares[i] += off * (chain->z[i] - of->mean[i]);
        double grad_off = chain->grad[i] - of->grad_mean[i];
        of->grad_mean[i] += share * grad_off;
        of->grad_squares[i] += grad_off * (chain->grad[i] - of->grad_mean[i]);
    }
}

static void adapt_scale(Chain *chain, uint64_t window) {
    add_moments(chain, &chain->now);
    add_moments(chain, &chain->next);
    const uint64_t n = chain->dim, bytes = n * sizeof(double);
    if (chain->next.count >= window) {
        Moments left = chain->now;
        chain->now = chain->next;
        chain->next = left;
        chain->next.count = 0;
        memset(left.mean, 0, bytes);
        memset(left.squares, 0, bytes);
        memset(left.grad_mean, 0, bytes);
        memset(left.grad_squares, 0, bytes);
    }
    if (chain->now.count < 3) return;
    for (uint64_t i = 0; i < n; i++) {
        double variance = sqrt(chain->now.squares[i] / chain->now.grad_squares[i]);
        if (variance > VARIANCE_MIN && variance < VARIANCE_MAX) chain->scale[i] = sqrt(variance);
    }
}

/* Make transitions, until all are done or `stop` is set. */
void nuts(Density density, const void *user, Chain *chain, Task *task) {
    const uint64_t n = chain->dim, bytes = n * sizeof(double);
    while (task->done < task->transitions && !task->stop) {
        Record *record = task->records + task->done;
        int moved = transit(chain, density, user, record);
        chain->transition++;
        if (task->adapt_step) adapt_step(chain, record->acceptance);
        if (task->adapt_scale && moved) adapt_scale(chain, task->window);
        if (task->draws) memcpy(task->draws + task->done * n, chain->z, bytes);
        if (task->grads) memcpy(task->grads + task->done * n, chain->grad, bytes);
        task->divergences += record->diverging;
        task->done++;
    }
}

/* A step size for which one step is accepted with about the target probability. */
void find_step(Density density, const void *user, Chain *chain) {
    const uint64_t n = chain->dim, bytes = n * sizeof(double);
    double *w = chain->work, *coefficients = w + (LEVELS * PER_LEVEL + 10) * n;
    Trajectory t = {chain, density, user, 0.0, 0.0, w, w + n, w + 2 * n, w + 3 * n,
                    coefficients, 0.0, 0, 0.0, 0};
    double goal = log(chain->target);
    int last = 0;
    for (int tries = 0; tries < 100; tries++) {
        memcpy(t.z, chain->z, bytes);
        memcpy(t.grad, chain->grad, bytes);
        draw_momentum(chain, t.p, coefficients);
        velocity(chain, t.p, t.v, coefficients);
        double before = 0.5 * dot(n, t.p, t.v) - chain->value;
        double gain = before - leapfrog(&t, chain->step);
        int way = gain > goal ? 1 : -1;
        if (last && way != last) break;
        last = way;
        chain->step *= way > 0 ? 2.0 : 0.5;
    }
    chain->log_step = chain->log_mean_step = log(chain->step);
    chain->centre = log(10.0 * chain->step);
    chain->mean_error = 0.0;
    chain->adapted = 0;
}
