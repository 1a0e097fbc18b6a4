/* SPDX-License-Identifier: Apache-2.0 */
#include "ebm/sampler.h"

#include "base/isa/loops.h"

#include <math.h>

const char *const sampler_kind_names[SAMPLER_KINDS] = {"sgld", "ula", "gibbs", "mala", "hmc"};
const char *const sampler_rule_names[SAMPLER_RULES] = {"fixed", "normalised"};
const char *const start_kind_names[START_KINDS] = {"noise", "buffer", "image", "gaussian"};

bool sampler_noiseless(const struct sampler *s, int t)
{
    return s->steps - t <= s->cool_last;
}

bool sampler_draws_y(const struct sampler *s, int t)
{
    return s->kind == SAMPLER_GIBBS && t % s->langevin_steps == 0;
}

bool sampler_keeps_y(const struct sampler *s)
{
    return s->kind == SAMPLER_GIBBS && s->steps > 0;
}

bool sampler_is_metropolis(const struct sampler *s)
{
    return s->kind == SAMPLER_MALA || s->kind == SAMPLER_HMC;
}

struct sampler sampler_metropolis_like(const struct sampler *s, enum sampler_kind kind, float lo,
                                       float hi)
{
    const bool hmc = kind == SAMPLER_HMC;
    return (struct sampler){.kind = kind,
                            .steps = s->steps,
                            .langevin_steps = 1,
                            .step_size = hmc ? s->noise : 0.5f * s->noise * s->noise,
                            .temperature = s->temperature,
                            .start = s->start,
                            .start_grid = s->start_grid,
                            .start_noise = s->start_noise,
                            .leapfrog_steps = hmc ? SAMPLER_LEAPFROG_STEPS : 0,
                            .range_lo = lo,
                            .range_hi = hi};
}

/* Elements drawn at a time: they stay in the first-level cache. */
enum { PIECE = 1024 };

/* What the gradient's size makes of step t. */
static struct loops_move plan(const struct sampler *s, int t, struct sampler_step *r)
{
    invariant(!sampler_is_metropolis(s));
    float a = s->step_size;
    if (s->rule == SAMPLER_NORMALISED && s->step_norm < a * r->mean_abs_grad)
        a = s->step_norm / r->mean_abs_grad;
    float noise = s->kind == SAMPLER_ULA ? sqrtf(2.0f * a) : s->noise;
    if (sampler_noiseless(s, t)) {
        a *= (float)(s->steps - t) / (float)s->cool_last;
        noise = 0;
    }
    r->step_size = a;
    return (struct loops_move){.scale = a * (1.0f / s->temperature),
                               .most = s->pixel_clamp > 0 ? s->pixel_clamp : INFINITY,
                               .noise = noise,
                               .lo = s->clamp ? s->clamp_lo : -INFINITY,
                               .hi = s->clamp ? s->clamp_hi : INFINITY};
}

static struct sampler_step measure(const struct sampler *s, const float *grad, size_t n,
                                   size_t moving)
{
    const float inverse = 1.0f / s->temperature;
    const float mean = loops_best()->sum_abs(grad, n) / (float)moving * inverse;
    return (struct sampler_step){.mean_abs_grad = mean, .finite = isfinite(mean)};
}

struct sampler_step sampler_step(const struct sampler *s, int t, float *x, const float *grad,
                                 const float *normal, size_t n)
{
    struct sampler_step r = measure(s, grad, n, n);
    if (!r.finite)
        return r;
    const struct loops_move move = plan(s, t, &r);
    loops_best()->move(&move, x, grad, move.noise > 0 ? normal : NULL, n);
    return r;
}

struct sampler_step sampler_step_drawn(const struct sampler *s, int t, float *x, const float *grad,
                                       const struct rng_stream *stream, size_t n)
{
    return sampler_step_masked(s, t, x, grad, stream, n, n);
}

struct sampler_step sampler_step_masked(const struct sampler *s, int t, float *x, const float *grad,
                                        const struct rng_stream *stream, size_t n, size_t moving)
{
    struct sampler_step r = measure(s, grad, n, moving);
    if (!r.finite)
        return r;
    const struct loops *loops = loops_best();
    const struct loops_move move = plan(s, t, &r);
    for (size_t i = 0; i < n; i += PIECE) {
        float normal[PIECE];
        const size_t m = n - i < PIECE ? n - i : PIECE;
        if (move.noise > 0)
            loops->normal(stream, i, normal, m);
        loops->move(&move, x + i, grad + i, move.noise > 0 ? normal : NULL, m);
    }
    return r;
}

static int number(struct err *e, const char *field, float v, float lo, float hi)
{
    if (v >= lo && v <= hi)
        return 0;
    fail(e, FAIL_OUT_OF_RANGE, "sampler %s must be in [%g, %g]", field, (double)lo, (double)hi);
    return fail_at(e, field);
}

static int count(struct err *e, const char *field, int v, int lo, int hi)
{
    if (v >= lo && v <= hi)
        return 0;
    fail(e, FAIL_OUT_OF_RANGE, "sampler %s must be in [%d, %d]", field, lo, hi);
    fail_limit(e, v < lo ? lo : hi);
    return fail_at(e, field);
}

/* What kinds cannot have: the field is not as if it had been left out. */
static int unsupported(struct err *e, const struct sampler *s, const char *field, const char *why)
{
    fail(e, FAIL_UNSUPPORTED, "kind \"%s\" %s", sampler_kind_names[s->kind], why);
    return fail_at(e, field);
}

static int check_others(const struct sampler *s, struct err *e)
{
    if (s->leapfrog_steps != 0)
        return unsupported(e, s, "leapfrog_steps", "has no leapfrog steps: use \"hmc\"");
    if (s->range_lo != 0 || s->range_hi != 0)
        return unsupported(e, s, "range",
                           "rejects nothing: set \"clamp\", or use \"mala\" or \"hmc\"");
    return 0;
}

static int check_metropolis(const struct sampler *s, struct err *e)
{
    if (s->rule != SAMPLER_FIXED)
        return unsupported(e, s, "step_rule",
                           "needs a step that no gradient changes: use \"fixed\"");
    if (s->step_norm != 0)
        return unsupported(e, s, "step_norm", "has no normalised steps: set \"step_size\" alone");
    if (s->noise != 0)
        return unsupported(e, s, "noise", "takes its noise from the step size");
    if (s->clamp)
        return unsupported(e, s, "clamp", "never clamps: it rejects what leaves \"range\"");
    if (s->pixel_clamp != 0)
        return unsupported(e, s, "pixel_clamp", "never clamps: make \"step_size\" smaller");
    if (s->cool_last != 0)
        return unsupported(e, s, "cool_last", "never cools: its law would not be the model's");
    if (s->langevin_steps != 1)
        return unsupported(e, s, "langevin_steps", "draws no y between its steps: use \"gibbs\"");
    if (s->kind != SAMPLER_HMC && s->leapfrog_steps != 0)
        return unsupported(e, s, "leapfrog_steps", "has one step: use \"hmc\" for more");
    if (!(s->step_size > 0)) {
        fail(e, FAIL_OUT_OF_RANGE, "sampler step_size must be above 0 for kind \"%s\"",
             sampler_kind_names[s->kind]);
        return fail_at(e, "step_size");
    }
    if (!(s->range_lo < s->range_hi)) {
        fail(e, FAIL_OUT_OF_RANGE, "sampler range must be [low, high] with low < high");
        return fail_at(e, "range");
    }
    return s->kind == SAMPLER_HMC
               ? count(e, "leapfrog_steps", s->leapfrog_steps, 1, SAMPLER_LEAPFROG_MAX)
               : 0;
}

int sampler_check(const struct sampler *s, struct err *e)
{
    int rc = count(e, "steps", s->steps, 0, 10000000);
    if (rc == 0)
        rc = count(e, "langevin_steps", s->langevin_steps, 1, 1000);
    if (rc == 0)
        rc = count(e, "cool_last", s->cool_last, 0, s->steps);
    if (rc == 0)
        rc = number(e, "step_size", s->step_size, 0, 1e6f);
    if (rc == 0)
        rc = number(e, "step_norm", s->step_norm, 0, 1e3f);
    if (rc == 0)
        rc = number(e, "noise", s->noise, 0, 1e3f);
    if (rc == 0)
        rc = number(e, "temperature", s->temperature, 1e-6f, 1e6f);
    if (rc == 0)
        rc = number(e, "pixel_clamp", s->pixel_clamp, 0, 1e6f);
    if (rc == 0)
        rc = count(e, "start.grid", s->start_grid, 0, 4096);
    if (rc == 0)
        rc = number(e, "start.noise", s->start_noise, 0, 1e3f);
    if (rc == 0 && s->clamp &&
        !(s->clamp_lo < s->clamp_hi && isfinite(s->clamp_lo) && isfinite(s->clamp_hi))) {
        fail(e, FAIL_OUT_OF_RANGE, "sampler clamp must be [low, high] with low < high");
        rc = fail_at(e, "clamp");
    }
    if (rc != 0)
        return rc;
    return sampler_is_metropolis(s) ? check_metropolis(s, e) : check_others(s, e);
}
