/* Random numbers of a step: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
   1, 2, 3", 2011), and normals by inversion with the quantile function PPND16 of Wichura ("Algorithm
   AS 241", 1988). A number depends on the key, the step, the array and its place in the array only,
   so that it does not matter how many steps are taken at once. */
#include <math.h>
#include <stdint.h>
#include <string.h>

/* An array of noise: shift + scale x, where x is standard normal, or uniform on (0, 1). */
typedef struct {
    uint64_t size, normal;
    double shift, scale;
} Noise;

static void philox(uint32_t counter[4], uint64_t key) {
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t left = (uint64_t)0xD2511F53u * counter[0];
        uint64_t right = (uint64_t)0xCD9E8D57u * counter[2];
        uint32_t next[4] = {(uint32_t)(right >> 32) ^ counter[1] ^ k0, (uint32_t)right,
                            (uint32_t)(left >> 32) ^ counter[3] ^ k1, (uint32_t)left};
        memcpy(counter, next, sizeof next);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

/* The centre of one of 2^52 equal intervals of (0, 1), which is a double; that of 2^53 is not. */
static double uniform(uint32_t high, uint32_t low) {
    uint64_t bits = (((uint64_t)high << 32) | low) >> 12;
    return ((double)bits + 0.5) * 0x1p-52;
}

static double normal_quantile(double p) {
    double q = p - 0.5;
    if (fabs(q) <= 0.425) {
        double r = 0.180625 - q * q;
        double above = 2.5090809287301226727e+3;
        above = above * r + 3.3430575583588128105e+4;
        above = above * r + 6.7265770927008700853e+4;
        above = above * r + 4.5921953931549871457e+4;
        above = above * r + 1.3731693765509461125e+4;
        above = above * r + 1.9715909503065514427e+3;
        above = above * r + 1.3314166789178437745e+2;
        above = above * r + 3.3871328727963666080e+0;
        double below = 5.2264952788528545610e+3;
        below = below * r + 2.8729085735721942674e+4;
        below = below * r + 3.9307895800092710610e+4;
        below = below * r + 2.1213794301586595867e+4;
        below = below * r + 5.3941960214247511077e+3;
        below = below * r + 6.8718700749205790830e+2;
        below = below * r + 4.2313330701600911252e+1;
        return q * above / (below * r + 1.0);
    }
    double r = sqrt(-log(fmin(p, 1.0 - p)));
    double above, below;
    if (r <= 5.0) {
        r -= 1.6;
        above = 7.74545014278341407640e-4;
        above = above * r + 2.27238449892691845833e-2;
        above = above * r + 2.41780725177450611770e-1;
        above = above * r + 1.27045825245236838258e+0;
        above = above * r + 3.64784832476320460504e+0;
        above = above * r + 5.76949722146069140550e+0;
        above = above * r + 4.63033784615654529590e+0;
        above = above * r + 1.42343711074968357734e+0;
        below = 1.05075007164441684324e-9;
        below = below * r + 5.47593808499534494600e-4;
        below = below * r + 1.51986665636164571966e-2;
        below = below * r + 1.48103976427480074590e-1;
        below = below * r + 6.89767334985100004550e-1;
        below = below * r + 1.67638483018380384940e+0;
        below = below * r + 2.05319162663775882187e+0;
    } else {
        r -= 5.0;
        above = 2.01033439929228813265e-7;
        above = above * r + 2.71155556874348757815e-5;
        above = above * r + 1.24266094738807843860e-3;
        above = above * r + 2.65321895265761230930e-2;
        above = above * r + 2.96560571828504891230e-1;
        above = above * r + 1.78482653991729133580e+0;
        above = above * r + 5.46378491116411436990e+0;
        above = above * r + 6.65790464350110377720e+0;
        below = 2.04426310338993978564e-15;
        below = below * r + 1.42151175831644588870e-7;
        below = below * r + 1.84631831751005468180e-5;
        below = below * r + 7.86869131145613259100e-4;
        below = below * r + 1.48753612908506148525e-2;
        below = below * r + 1.36929880922735805310e-1;
        below = below * r + 5.99832206555887937690e-1;
    }
    return copysign(above / (below * r + 1.0), q);
}

/* Fill an array with the noise of a step. */
void fill_noise(const Noise *noise, uint64_t array, uint64_t key, uint64_t step, double *out) {
    for (uint64_t i = 0; i < noise->size; i += 2) {
        uint32_t words[4] = {(uint32_t)(i / 2), (uint32_t)array, (uint32_t)step,
                             (uint32_t)(step >> 32)};
        philox(words, key);
        double pair[2] = {uniform(words[0], words[1]), uniform(words[2], words[3])};
        for (uint64_t j = i; j < i + 2 && j < noise->size; j++) {
            double x = noise->normal ? normal_quantile(pair[j - i]) : pair[j - i];
            out[j] = noise->shift + noise->scale * x;
        }
    }
}

/* The noise of several steps: (steps, size). */
void fill_steps(const Noise *noise, uint64_t array, uint64_t key, uint64_t first, uint64_t steps,
                double *out) {
    for (uint64_t s = 0; s < steps; s++)
        fill_noise(noise, array, key, first + s, out + s * noise->size);
}
