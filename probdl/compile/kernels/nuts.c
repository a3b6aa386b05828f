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

/* The trees of a level hold at most three points, and the trajectory some more; each level has two
   sums of momenta. Arrays of `dim` numbers in all for a number of levels: */
#define POINTS(levels) (3 * (levels) + 8)
#define ARRAYS(levels) (4 * POINTS(levels) + 2 * (levels))
enum { LEVELS_MAX = 31 };
enum { BLOCK = 1024 }; /* coordinates, whose numbers of some points fit into a first-level cache */

/* The arrays of `dim` numbers that a chain needs as its `work`. */
uint64_t work_arrays(uint64_t max_depth) { return ARRAYS(max_depth + 1); }
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
    double *work;                           /* ARRAYS(max_depth + 1) * dim + rank numbers */
    Moments now, next;
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

static double dot(uint64_t n, const double *restrict a, const double *restrict b) {
    double sum = 0.0;
#pragma omp simd reduction(+ : sum)
    for (uint64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

static double log_add(double a, double b) {
    double high = a > b ? a : b, low = a > b ? b : a;
    return low == -INFINITY ? high : high + log1p(exp(low - high));
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

static void draw_momentum(const Chain *chain, Random *random, double *p, double *coefficients) {
    const uint64_t n = chain->dim;
    for (uint64_t i = 0; i < n; i++) p[i] = normal(random);
    for (uint64_t k = 0; k < chain->rank; k++)
        coefficients[k] = (1.0 / sqrt(chain->variances[k]) - 1.0) *
                          dot(n, chain->directions + k * n, p);
    for (uint64_t k = 0; k < chain->rank; k++) {
        const double *u = chain->directions + k * n, c = coefficients[k];
        for (uint64_t i = 0; i < n; i++) p[i] += c * u[i];
    }
    for (uint64_t i = 0; i < n; i++) p[i] /= chain->scale[i];
}

/* A point of a trajectory, which is free for another when nothing holds it. After the
   start, its velocity is stored for a low-rank metric only: for a diagonal one it costs less to
   compute than to read. */
typedef struct {
    double *z, *grad, *p, *v;
    double value, energy;
    int holders;
} Point;

typedef struct {
    const Chain *chain;
    Density density;
    const void *user;
    Random random;
    double start_energy;
    Point points[POINTS(LEVELS_MAX)];
    Point *free[POINTS(LEVELS_MAX)];
    int used, free_count;
    double *sums, *coefficients;
    Point *end;                  /* that moves */
    uint64_t steps;
    double acceptance;
    int diverging;
    const volatile int64_t *stop;
} Trajectory;

static void begin(Trajectory *t, const Chain *chain, Density density, const void *user) {
    const uint64_t n = chain->dim;
    t->chain = chain, t->density = density, t->user = user;
    t->random = seeded(chain->key, chain->transition);
    t->used = t->free_count = 0;
    t->sums = chain->work + 4 * POINTS(chain->max_depth + 1) * n;
    t->coefficients = chain->work + ARRAYS(chain->max_depth + 1) * n;
    t->steps = 0, t->acceptance = 0.0, t->diverging = 0;
}

static Point *hold(Point *point) {
    point->holders++;
    return point;
}

static Point *take(Trajectory *t) {
    if (t->free_count) return hold(t->free[--t->free_count]);
    const uint64_t n = t->chain->dim;
    double *w = t->chain->work + 4 * n * (uint64_t)t->used;
    Point *point = t->points + t->used++;
    *point = (Point){w, w + n, w + 2 * n, w + 3 * n, 0.0, 0.0, 0};
    return hold(point);
}

static void release(Trajectory *t, Point *point) {
    if (!--point->holders) t->free[t->free_count++] = point;
}

/* A point with the position of the chain and another momentum. */
static Point *start(Trajectory *t) {
    const uint64_t n = t->chain->dim, bytes = n * sizeof(double);
    Point *point = take(t);
    memcpy(point->z, t->chain->z, bytes);
    memcpy(point->grad, t->chain->grad, bytes);
    draw_momentum(t->chain, &t->random, point->p, t->coefficients);
    velocity(t->chain, point->p, point->v, t->coefficients);
    point->value = t->chain->value;
    point->energy = 0.5 * dot(n, point->p, point->v) - point->value;
    t->start_energy = point->energy;
    return point;
}

/* The new momentum and position of a step, with a diagonal metric in one pass. */
static void kick_and_drift(const Trajectory *t, const Point *from, Point *to, double step) {
    const uint64_t n = t->chain->dim;
    const double *restrict grad = from->grad, *restrict p = from->p, *restrict z = from->z;
    const double *restrict scale = t->chain->scale;
    double *restrict new_p = to->p, *restrict new_z = to->z;
    if (t->chain->rank) {
        for (uint64_t i = 0; i < n; i++) new_p[i] = p[i] + 0.5 * step * grad[i];
        velocity(t->chain, new_p, to->v, t->coefficients);
        for (uint64_t i = 0; i < n; i++) new_z[i] = z[i] + step * to->v[i];
        return;
    }
    for (uint64_t i = 0; i < n; i++) {
        double half = p[i] + 0.5 * step * grad[i];
        new_p[i] = half;
        new_z[i] = z[i] + step * scale[i] * scale[i] * half;
    }
}

/* A trajectory or a part of it: its ends along the direction of time, a point of it that was drawn,
   and the sum of its momenta. It holds the points. */
typedef struct {
    Point *first, *last, *drawn;
    const double *sum;
    double log_weight;
} Tree;

static void release_tree(Trajectory *t, const Tree *tree) {
    release(t, tree->first);
    release(t, tree->last);
    release(t, tree->drawn);
}

/* Two adjacent parts of a trajectory that become one. They go on, together and each with the nearest
   point of the other, if the velocities at both ends point along the sum of the momenta. */
typedef struct {
    const Point *first, *last, *next, *end; /* the ends of the first part and of the second */
    const double *sum_first, *sum_second;
    double *sum;     /* which is written */
    double along[6]; /* products of velocities and sums */
} Join;

static Join join(const Tree *first, const Tree *second, double *sum) {
    return (Join){first->first, first->last, second->first, second->last,
                  first->sum,   second->sum, sum,           {0.0}};
}

static int is_pair(const Join *join) { return join->first == join->last && join->next == join->end; }

static inline __attribute__((always_inline)) void add_coordinates(const Chain *chain, Join *join,
                                                                  uint64_t from, uint64_t to,
                                                                  int diagonal) {
    const double *restrict s = chain->scale, *restrict sum_a = join->sum_first;
    const double *restrict sum_b = join->sum_second;
    const double *restrict p1 = join->first->p, *restrict p2 = join->last->p;
    const double *restrict p3 = join->next->p, *restrict p4 = join->end->p;
    const double *restrict v1 = join->first->v, *restrict v2 = join->last->v;
    const double *restrict v3 = join->next->v, *restrict v4 = join->end->v;
    double *restrict sum = join->sum;
#define VELOCITY(k) (diagonal ? s[i] * s[i] * p##k[i] : v##k[i])
    double first = 0.0, last = 0.0;
    if (is_pair(join)) {
#pragma omp simd reduction(+ : first, last)
        for (uint64_t i = from; i < to; i++) {
            double both = sum_a[i] + sum_b[i];
            sum[i] = both;
            first += VELOCITY(1) * both;
            last += VELOCITY(4) * both;
        }
        join->along[0] += first, join->along[1] += last;
        return;
    }
    double left_first = 0.0, left_last = 0.0, right_first = 0.0, right_last = 0.0;
#pragma omp simd reduction(+ : first, last, left_first, left_last, right_first, right_last)
    for (uint64_t i = from; i < to; i++) {
        double both = sum_a[i] + sum_b[i], left = sum_a[i] + p3[i], right = p2[i] + sum_b[i];
        sum[i] = both;
        first += VELOCITY(1) * both;
        last += VELOCITY(4) * both;
        left_first += VELOCITY(1) * left;
        left_last += VELOCITY(3) * left;
        right_first += VELOCITY(2) * right;
        right_last += VELOCITY(4) * right;
    }
#undef VELOCITY
    join->along[0] += first, join->along[1] += last;
    join->along[2] += left_first, join->along[3] += left_last;
    join->along[4] += right_first, join->along[5] += right_last;
}

/* Add what the coordinates of a block contribute. */
static void add_block(const Chain *chain, Join *join, uint64_t from, uint64_t to) {
    if (chain->rank) add_coordinates(chain, join, from, to, 0);
    else add_coordinates(chain, join, from, to, 1);
}

static int goes_on(const Join *join) {
    const double *a = join->along;
    if (!(a[0] > 0.0 && a[1] > 0.0)) return 0;
    return is_pair(join) || (a[2] > 0.0 && a[3] > 0.0 && a[4] > 0.0 && a[5] > 0.0);
}

/* The other half of the momentum of a step, for a block of coordinates and a diagonal metric, and the
   first half and the position of the next step, to `ahead` if that is not NULL. Returns twice the
   kinetic energy. */
static inline double kick_block(const Chain *chain, Point *point, Point *ahead, double step,
                                uint64_t from, uint64_t to) {
    const double *restrict grad = point->grad, *restrict scale = chain->scale;
    double *restrict p = point->p;
    double twice = 0.0;
    if (!ahead) {
#pragma omp simd reduction(+ : twice)
        for (uint64_t i = from; i < to; i++) {
            double whole = p[i] + 0.5 * step * grad[i];
            p[i] = whole;
            twice += whole * (scale[i] * scale[i] * whole);
        }
        return twice;
    }
    const double *restrict z = point->z;
    double *restrict new_p = ahead->p, *restrict new_z = ahead->z;
#pragma omp simd reduction(+ : twice)
    for (uint64_t i = from; i < to; i++) {
        double whole = p[i] + 0.5 * step * grad[i], half = whole + 0.5 * step * grad[i];
        p[i] = whole;
        twice += whole * (scale[i] * scale[i] * whole);
        new_p[i] = half;
        new_z[i] = z[i] + step * scale[i] * scale[i] * half;
    }
    return twice;
}

/* Complete a step of leapfrog to a point, with the joins of the parts that it completes, in one pass
   over memory. The energy is INFINITY, and nothing else is right, where the density is not finite. */
static void arrive(Trajectory *t, Point *point, double step, Point *ahead, Join *joins,
                   uint64_t count) {
    const Chain *chain = t->chain;
    const uint64_t n = chain->dim;
    point->value = -INFINITY;
    point->energy = INFINITY;
    if (t->density(n, point->z, point->grad, &point->value, t->user) || !isfinite(point->value))
        return;
    double twice = 0.0;
    if (chain->rank) {
        for (uint64_t i = 0; i < n; i++) point->p[i] += 0.5 * step * point->grad[i];
        velocity(chain, point->p, point->v, t->coefficients);
        twice = dot(n, point->p, point->v);
    }
    for (uint64_t from = 0; from < n; from += BLOCK) {
        uint64_t to = from + BLOCK < n ? from + BLOCK : n;
        if (!chain->rank) twice += kick_block(chain, point, ahead, step, from, to);
        for (uint64_t k = 0; k < count; k++) add_block(chain, joins + k, from, to);
    }
    double energy = 0.5 * twice - point->value;
    if (isfinite(energy)) point->energy = energy;
}

/* The part of a trajectory of 2^depth steps from the moving end. Returns whether all of it goes on; if
   not, the tree holds nothing.

   Trees of 1, 2, 4, ... points wait for the other half of a larger one: when `made` steps are made,
   those at the bits of this number. */
static int build(Trajectory *t, uint64_t depth, double step, Tree *tree) {
    const uint64_t n = t->chain->dim, steps = (uint64_t)1 << depth;
    Tree waiting[LEVELS_MAX];
    Join joins[LEVELS_MAX];
    Point *ahead = NULL;
    uint64_t made = 0, joined = 0;
    int on = 1;
    while (on && made < steps) {
        if (*t->stop) {
            on = 0;
            break;
        }
        Point *point = ahead ? ahead : take(t);
        if (!ahead) kick_and_drift(t, t->end, point, step);
        const uint64_t count = (uint64_t)__builtin_ctzll(~made);
        for (uint64_t k = 0; k < count; k++) {
            Tree first = waiting[k], second = {point, point, point, point->p, 0.0};
            if (k) second.first = waiting[k - 1].first, second.sum = joins[k - 1].sum;
            joins[k] = join(&first, &second, t->sums + (2 * (k + 1) + (made >> (k + 1) & 1)) * n);
        }
        ahead = t->chain->rank || made + 1 == steps ? NULL : take(t);
        arrive(t, point, step, ahead, joins, count);
        double gain = t->start_energy - point->energy;
        t->steps++;
        if (!(gain > -ENERGY_ERROR_MAX)) { /* or no number, if the metric is far off */
            t->diverging = 1;
            release(t, point);
            on = 0;
            break;
        }
        t->acceptance += gain > 0.0 ? 1.0 : exp(gain);
        release(t, t->end);
        t->end = point;
        *tree = (Tree){hold(point), hold(point), hold(point), point->p, gain};
        for (joined = 0; on && joined < count; joined++) {
            const Tree first = waiting[joined], second = *tree;
            double log_weight = log_add(first.log_weight, second.log_weight);
            int is_second = log(unit(&t->random)) < second.log_weight - log_weight;
            *tree = (Tree){first.first, second.last, is_second ? second.drawn : first.drawn,
                           joins[joined].sum, log_weight};
            release(t, is_second ? first.drawn : second.drawn);
            release(t, first.last);
            release(t, second.first);
            on = goes_on(joins + joined);
        }
        if (!on) {
            release_tree(t, tree);
            break;
        }
        waiting[count] = *tree;
        made++;
        joined = 0;
    }
    if (on) return 1;
    if (ahead) release(t, ahead);
    for (uint64_t k = joined; made >> k; k++)
        if (made >> k & 1) release_tree(t, waiting + k);
    return 0;
}

/* One transition. Returns whether the chain moved, or -1 if `stop` was set before it was complete. */
static int transit(Chain *chain, Density density, const void *user, const volatile int64_t *stop,
                   Record *record) {
    const uint64_t n = chain->dim, bytes = n * sizeof(double);
    Trajectory t;
    begin(&t, chain, density, user);
    t.stop = stop;
    Point *origin = start(&t);
    double *sum = t.sums; /* the first two, which no tree of a level below has */
    memcpy(sum, origin->p, bytes);
    /* Backward in time, a trajectory is a tree whose ends change places. */
    Tree whole = {origin, hold(origin), hold(origin), sum, 0.0};
    uint64_t depth = 0;
    int on = 1, moved = 0;
    for (; on && depth < chain->max_depth; depth++) {
        int forward = unit(&t.random) < 0.5;
        Tree tree;
        t.end = hold(forward ? whole.last : whole.first);
        on = build(&t, depth, (forward ? 1.0 : -1.0) * chain->step, &tree);
        release(&t, t.end);
        if (!on) break;
        if (log(unit(&t.random)) < tree.log_weight - whole.log_weight) {
            release(&t, whole.drawn);
            whole.drawn = hold(tree.drawn);
            moved = 1;
        }
        whole.log_weight = log_add(whole.log_weight, tree.log_weight);
        if (!forward) { /* the criterion does not depend on the direction of time */
            Point *first = whole.first;
            whole.first = whole.last;
            whole.last = first;
        }
        double *other = sum == t.sums ? sum + n : t.sums;
        Join all = join(&whole, &tree, other);
        for (uint64_t from = 0; from < n; from += BLOCK) {
            uint64_t to = from + BLOCK < n ? from + BLOCK : n;
            add_block(chain, &all, from, to);
        }
        on = goes_on(&all);
        whole.sum = sum = other;
        release(&t, whole.last);
        whole.last = hold(tree.last);
        if (!forward) {
            Point *first = whole.first;
            whole.first = whole.last;
            whole.last = first;
        }
        release_tree(&t, &tree);
    }
    if (*stop) return -1;
    record->value = whole.drawn->value;
    record->energy = whole.drawn->energy;
    record->acceptance = t.acceptance / (double)t.steps;
    record->step = chain->step;
    record->steps = t.steps;
    record->depth = depth;
    record->diverging = t.diverging;
    record->saturated = on;
    if (!moved) return 0;
    memcpy(chain->z, whole.drawn->z, bytes);
    memcpy(chain->grad, whole.drawn->grad, bytes);
    chain->value = whole.drawn->value;
    return 1;
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
        int moved = transit(chain, density, user, &task->stop, record);
        if (moved < 0) break;
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
    Trajectory t;
    begin(&t, chain, density, user);
    double goal = log(chain->target);
    int last = 0;
    for (int tries = 0; tries < 100; tries++) {
        Point *from = start(&t), *to = take(&t);
        kick_and_drift(&t, from, to, chain->step);
        arrive(&t, to, chain->step, NULL, NULL, 0);
        int way = from->energy - to->energy > goal ? 1 : -1;
        release(&t, from);
        release(&t, to);
        if (last && way != last) break;
        last = way;
        chain->step *= way > 0 ? 2.0 : 0.5;
    }
    chain->log_step = chain->log_mean_step = log(chain->step);
    chain->centre = log(10.0 * chain->step);
    chain->mean_error = 0.0;
    chain->adapted = 0;
}
