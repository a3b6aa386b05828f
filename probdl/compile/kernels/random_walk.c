/* A random walk of Metropolis et al. (1953) on a compiled log density, without Python in between. */
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef int64_t (*Density)(uint64_t, const double *, double *, double *, const void *);

/* Propose z + moves[s] for each of `steps` steps, and accept where log_u[s] is below the change of
   the log density. `z` and `value` are the state, `room` has 2 dim numbers. Returns how many were
   accepted. The gradient is computed along with the value, and not used. */
uint64_t walk(Density density, const void *user, uint64_t dim, uint64_t steps, const double *moves,
              const double *log_u, double *z, double *value, double *room) {
    uint64_t accepted = 0;
    double *ahead = room, *grad = room + dim;
    for (uint64_t s = 0; s < steps; s++) {
        for (uint64_t i = 0; i < dim; i++) ahead[i] = z[i] + moves[s * dim + i];
        double there = -INFINITY;
        density(dim, ahead, grad, &there, user);
        if (isfinite(there) && log_u[s] < there - *value) {
            memcpy(z, ahead, dim * sizeof(double));
            *value = there;
            accepted++;
        }
    }
    return accepted;
}
