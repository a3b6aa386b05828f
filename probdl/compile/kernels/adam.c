/* Many steps of Adam (Kingma and Ba, 2015) on a compiled loss, without Python in between.
   This follows noise.c in its translation unit. */

typedef int64_t (*Loss)(uint64_t, const double *, double *, double *, const void *);

/* The settings of a run; the numbers are those of torch.optim.Adam. */
typedef struct {
    double beta1, beta2, epsilon, clip_norm; /* clip_norm is 0 where gradients are left as they are */
    uint64_t dim, arrays;                    /* how many parameters, and how many arrays of noise */
    double *z, *grad, *first, *second;       /* parameters, gradient and the two moments */
    double *good;                            /* the parameters at the last finite loss */
    const double *units;                     /* the units in which the parameters are measured */
    double *const *noise;                    /* where the loss reads its noise */
    const Noise *specs;                      /* what it is; NULL if it was drawn before */
} Run;

/* Take `steps` steps; return how many came about, fewer where a loss or a gradient is not finite.
   Their noise is drawn with a key, from the step `at` of its block on, or read from `drawn`. */
uint64_t adam(Loss loss, const void *user, const Run *run, uint64_t steps, uint64_t done,
              const double *rates, double *losses, uint64_t key, uint64_t at,
              const double *const *drawn, const uint64_t *sizes) {
    for (uint64_t s = 0; s < steps; s++) {
        for (uint64_t a = 0; a < run->arrays; a++) {
            if (run->specs)
                fill_noise(run->specs + a, a, key, at + s, run->noise[a]);
            else
                memcpy(run->noise[a], drawn[a] + (at + s) * sizes[a], sizes[a] * sizeof(double));
        }
        if (loss(run->dim, run->z, run->grad, losses + s, user) != 0) return s;
        memcpy(run->good, run->z, run->dim * sizeof(double));
        for (uint64_t i = 0; i < run->dim; i++) run->grad[i] *= run->units[i];
        double shrink = 1.0;
        if (run->clip_norm > 0.0) {
            double norm = 0.0;
            for (uint64_t i = 0; i < run->dim; i++) norm += run->grad[i] * run->grad[i];
            shrink = fmin(1.0, run->clip_norm / (sqrt(norm) + 1e-6));
        }
        double t = (double)(done + s + 1);
        double rate = rates[s] / (1.0 - pow(run->beta1, t));
        double root = sqrt(1.0 - pow(run->beta2, t));
        for (uint64_t i = 0; i < run->dim; i++) {
            double g = shrink * run->grad[i];
            double m = run->beta1 * run->first[i] + (1.0 - run->beta1) * g;
            double v = run->beta2 * run->second[i] + (1.0 - run->beta2) * g * g;
            run->first[i] = m;
            run->second[i] = v;
            run->z[i] -= rate * m / (sqrt(v) / root + run->epsilon) * run->units[i];
        }
    }
    return steps;
}
