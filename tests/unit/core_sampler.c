/* SPDX-License-Identifier: Apache-2.0 */
/* The step against its formula, and the law of chains run through the engine on energies whose law
 * is known: a Gaussian exactly, a mixture by iterating the sampler's own kernel on a grid. Seeds
 * are fixed; each comparison allows 5.7 standard deviations, a false alarm in 1.2e-8; all 60 of
 * them together stay below 1e-6. */
#include "unit/law_help.h"

enum { N = 37, DRAWN = 3333 };

static const struct sampler plain = {
    .steps = 10, .langevin_steps = 1, .step_size = 0.3f, .noise = 0.1f, .temperature = 1};

static void fill(float *x, float *g, float *z)
{
    test_fill(x, N, 1);
    test_fill(g, N, 2);
    test_fill(z, N, 3);
}

static double mean_abs(const float *g)
{
    double sum = 0;
    for (int i = 0; i < N; i++)
        sum += fabs((double)g[i]);
    return sum / N;
}

/* x + clamp(a g / T) + noise z, clamped, in double. */
static void check_step(const struct sampler *s, int t, double a, double noise)
{
    float x[N], before[N], g[N], z[N];
    fill(x, g, z);
    memcpy(before, x, sizeof x);
    const struct sampler_step r = sampler_step(s, t, x, g, noise > 0 ? z : NULL, N);
    assert_true(r.finite);
    assert_true(fabs((double)r.step_size - a) < 1e-6 * a);
    const double slope = mean_abs(g) / (double)s->temperature;
    assert_true(fabs((double)r.mean_abs_grad - slope) < 1e-6 * slope);
    for (int i = 0; i < N; i++) {
        const double limit = s->pixel_clamp > 0 ? (double)s->pixel_clamp : (double)INFINITY;
        double v = a * (double)g[i] / (double)s->temperature;
        v = (double)before[i] + fmin(fmax(v, -limit), limit) + noise * (double)z[i];
        if (s->clamp)
            v = fmin(fmax(v, (double)s->clamp_lo), (double)s->clamp_hi);
        assert_true(fabs((double)x[i] - v) < 1e-6 * (1 + fabs(v)));
    }
}

static void each_kind_takes_its_step(void **state)
{
    (void)state;
    struct sampler s = plain;
    check_step(&s, 0, 0.3, 0.1);
    s.kind = SAMPLER_GIBBS;
    check_step(&s, 3, 0.3, 0.1);
    s.kind = SAMPLER_ULA;
    check_step(&s, 3, 0.3, sqrt(0.6));
    s.temperature = 4;
    check_step(&s, 3, 0.3, sqrt(0.6)); /* the noise is not divided */
}

static void the_normalised_rule_bounds_the_mean_move(void **state)
{
    (void)state;
    float x[N], g[N], z[N];
    struct sampler s = plain;
    fill(x, g, z);
    s.rule = SAMPLER_NORMALISED;
    s.step_norm = 0.02f;
    check_step(&s, 0, 0.02 / mean_abs(g), 0.1);
    s.temperature = 2;
    check_step(&s, 0, 0.02 / (mean_abs(g) / 2), 0.1);
    s.step_norm = 100;
    check_step(&s, 0, 0.3, 0.1);
    memset(g, 0, sizeof g);
    assert_true(sampler_step(&s, 0, x, g, z, N).step_size == s.step_size);
}

static void the_last_steps_are_cooled(void **state)
{
    (void)state;
    struct sampler s = plain;
    s.cool_last = 4;
    for (int t = 0; t < 10; t++) {
        const bool cold = t >= 6;
        assert_int_equal(sampler_noiseless(&s, t), cold);
        check_step(&s, t, cold ? 0.3 * (10 - t) / 4.0 : 0.3, cold ? 0 : 0.1);
    }
    s.cool_last = 0;
    assert_false(sampler_noiseless(&s, 9));
}

static void clamps_hold(void **state)
{
    (void)state;
    struct sampler s = plain;
    s.pixel_clamp = 0.05f;
    check_step(&s, 0, 0.3, 0.1);
    s.clamp = true;
    s.clamp_lo = -0.4f;
    s.clamp_hi = 0.5f;
    check_step(&s, 0, 0.3, 0.1);
    s.pixel_clamp = 0;
    check_step(&s, 0, 0.3, 0.1);
}

static void y_is_drawn_before_each_block_of_langevin_steps(void **state)
{
    (void)state;
    struct sampler s = plain;
    assert_false(sampler_draws_y(&s, 0));
    s.kind = SAMPLER_GIBBS;
    s.langevin_steps = 3;
    for (int t = 0; t < 10; t++)
        assert_int_equal(sampler_draws_y(&s, t), t % 3 == 0);
}

static void a_gradient_that_is_not_finite_moves_nothing(void **state)
{
    (void)state;
    static const float bad[] = {NAN, INFINITY, -INFINITY, 3e38f};
    for (int i = 0; i < 4; i++) {
        float x[N], before[N], g[N], z[N];
        fill(x, g, z);
        memcpy(before, x, sizeof x);
        g[i * 9] = bad[i];
        g[36] = i == 3 ? 3e38f : g[36]; /* a sum that overflows */
        assert_false(sampler_step(&plain, 0, x, g, z, N).finite);
        assert_memory_equal(x, before, sizeof x);
    }
}

static void check_drawn(const struct sampler *s, int t, size_t n)
{
    static float x[DRAWN], drawn[DRAWN], g[DRAWN], z[DRAWN];
    const struct rng_stream stream = {
        .seed = 3, .step = (uint32_t)t, .chain = 5, .purpose = RNG_LANGEVIN};
    test_fill(x, DRAWN, 1);
    test_fill(g, DRAWN, 2);
    memcpy(drawn, x, sizeof x);
    rng_normal(&stream, z, n);
    const struct sampler_step r = sampler_step(s, t, x, g, z, n);
    const struct sampler_step q = sampler_step_drawn(s, t, drawn, g, &stream, n);
    assert_true(r.finite && q.finite);
    assert_true(q.step_size == r.step_size && q.mean_abs_grad == r.mean_abs_grad);
    assert_memory_equal(drawn, x, sizeof x);
}

static void a_step_that_draws_its_noise_is_the_same_step(void **state)
{
    (void)state;
    static const size_t lengths[] = {1, 3, 37, 1023, 1024, 1025, 2052, 3072, DRAWN};
    struct sampler s = plain;
    s.cool_last = 4;
    s.pixel_clamp = 0.2f;
    for (int kind = 0; kind < SAMPLER_MALA; kind++) {
        s.kind = (enum sampler_kind)kind;
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
            check_drawn(&s, 2, lengths[i]);
            check_drawn(&s, 8, lengths[i]); /* cooling */
        }
    }
    float x[N], before[N], g[N], z[N];
    const struct rng_stream stream = {.seed = 3};
    fill(x, g, z);
    memcpy(before, x, sizeof x);
    g[30] = NAN;
    assert_false(sampler_step_drawn(&s, 2, x, g, &stream, N).finite);
    assert_memory_equal(x, before, sizeof x);
}

static void every_setting_is_checked(void **state)
{
    (void)state;
    const struct {
        const char *field;
        struct sampler s;
    } cases[] = {
        {"steps", {.steps = -1}},
        {"steps", {.steps = 10000001}},
        {"langevin_steps", {.langevin_steps = 0}},
        {"langevin_steps", {.langevin_steps = 1001}},
        {"cool_last", {.cool_last = -1}},
        {"cool_last", {.cool_last = 11}},
        {"step_size", {.step_size = -1}},
        {"step_size", {.step_size = NAN}},
        {"step_size", {.step_size = INFINITY}},
        {"step_norm", {.step_norm = -1}},
        {"noise", {.noise = NAN}},
        {"noise", {.noise = 1e4f}},
        {"temperature", {.temperature = 0}},
        {"temperature", {.temperature = NAN}},
        {"pixel_clamp", {.pixel_clamp = -1}},
        {"start.grid", {.start_grid = -1}},
        {"start.noise", {.start_noise = -1}},
        {"clamp", {.clamp = true, .clamp_lo = 1, .clamp_hi = 1}},
        {"clamp", {.clamp = true, .clamp_lo = NAN, .clamp_hi = 1}},
        {"clamp", {.clamp = true, .clamp_lo = -INFINITY, .clamp_hi = 1}},
        {"clamp", {.clamp = true, .clamp_lo = 0, .clamp_hi = INFINITY}},
    };
    struct err e;
    assert_int_equal(sampler_check(&plain, &e), 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct sampler *c = &cases[i].s;
        struct sampler s = plain;
        const char *f = cases[i].field;
        s.steps = c->steps ? c->steps : s.steps;
        s.langevin_steps = strcmp(f, "langevin_steps") ? 1 : c->langevin_steps;
        s.cool_last = c->cool_last;
        s.step_size = c->step_size;
        s.step_norm = c->step_norm;
        s.noise = c->noise;
        s.temperature = strcmp(f, "temperature") ? 1 : c->temperature;
        s.pixel_clamp = c->pixel_clamp;
        s.start_grid = c->start_grid;
        s.start_noise = c->start_noise;
        s.clamp = c->clamp;
        s.clamp_lo = c->clamp_lo;
        s.clamp_hi = c->clamp_hi;
        assert_int_equal(sampler_check(&s, &e), -FAIL_OUT_OF_RANGE);
        assert_string_equal(e.pointer, f);
    }
}

/* x' = x + a p (mu - x) + sqrt(2 a) n: the mean is mu, the variance 2 a / (1 - (1 - a p)^2)
 * = 2 / (p (2 - a p)), of precision p / T at temperature T. Both after t steps, exactly. */
static void check_gaussian(float temperature)
{
    enum { D = 6, CHAINS = 3000, STEPS = 120 };
    static const float p[D] = {1, 2, 0.5f, 4, 1, 3}, mu[D] = {0, 1, -1, 0.5f, 2, -2};
    float linear[D];
    const float bias[2] = {0, 0}, a = 0.1f;
    for (int i = 0; i < D; i++)
        linear[i] = p[i] * mu[i];
    float two[2 * D];
    memcpy(two, linear, sizeof linear);
    memcpy(two + D, linear, sizeof linear);
    struct model *m = quadratic(D, 2, p, two, bias);
    struct condition c;
    struct err e;
    struct runs r;
    const struct sampler s = {.kind = SAMPLER_ULA,
                              .steps = STEPS,
                              .langevin_steps = 1,
                              .step_size = a,
                              .temperature = temperature};
    assert_int_equal(condition_init(&c, &m->d.attributes, 1, &e), 0);
    struct chains *engine = run_chains(&r, m, &c, &s, CHAINS);
    double sum[D] = {0}, squares[D] = {0};
    for (int i = 0; i < CHAINS; i++) {
        struct chain_result result;
        chain_group_result(r.g, i, &result);
        for (int k = 0; k < D; k++) {
            sum[k] += (double)result.x[k] - (double)mu[k];
            squares[k] += pow((double)result.x[k] - (double)mu[k], 2);
        }
    }
    for (int k = 0; k < D; k++) {
        const double q = 1 - (double)a * (double)p[k] / (double)temperature;
        const double left = pow(q, 2.0 * STEPS); /* of the start U(-2, 2) */
        const double mean = -pow(q, STEPS) * (double)mu[k];
        const double var = 2 * (double)a * (1 - left) / (1 - q * q) + left * 4.0 / 3;
        check_mean("mean", sum[k] / CHAINS, mean, sqrt(var / CHAINS));
        check_mean("variance", squares[k] / CHAINS, var + mean * mean,
                   (var + mean * mean) * sqrt(2.0 / CHAINS));
    }
    end_runs(&r, engine);
    condition_fini(&c);
    model_put(m);
}

static void ula_has_the_known_law_on_a_gaussian(void **state)
{
    (void)state;
    check_gaussian(1);
}

static void a_temperature_flattens_the_law(void **state)
{
    (void)state;
    check_gaussian(2);
}

/* The mixture in one dimension, and the law of the sampler's chain on a grid. */
enum { VALUES = 3, GRID = 480 };
static const double centres[VALUES] = {-1.5, 0.5, 2}, priors[VALUES] = {0.2, -0.3, 0.6};
static const double LOW = -6, HIGH = 6;

struct law {
    const struct sampler *s;
    const struct condition *c;
    double density[GRID];       /* of x before the next step, if y is not kept */
    double joint[VALUES][GRID]; /* of (y, x) after a step given y */
};

static double place(int i)
{
    return LOW + (HIGH - LOW) * (i + 0.5) / GRID;
}

static double logit(int v, double x)
{
    return -0.5 * (x - centres[v]) * (x - centres[v]) + priors[v];
}

/* p(y = v | x) of the draw, and d score / dx of the marginal over the allowed values. */
static double weight_of(const struct law *l, int v, double x)
{
    double sum = 0;
    const double w = (double)l->c->weights[0];
    for (int u = 0; u < VALUES; u++)
        sum += l->c->allowed[u] ? exp(w * logit(u, x)) : 0;
    return l->c->allowed[v] ? exp(w * logit(v, x)) / sum : 0;
}

/* Moves a density by x' = x + a drift(x) + s n; y < 0: the marginal's drift. */
static void push(const struct law *l, int y, const double *from, double *to)
{
    const double a = (double)l->s->step_size, sd = (double)l->s->noise;
    const double step = (HIGH - LOW) / GRID, scale = step / (sd * sqrt(2 * 3.14159265358979323846));
    memset(to, 0, GRID * sizeof *to);
    for (int i = 0; i < GRID; i++) {
        double drift = 0;
        if (from[i] < 1e-18)
            continue;
        for (int v = 0; v < VALUES; v++) {
            const double share = y < 0 ? weight_of(l, v, place(i)) : v == y;
            drift += share * (double)l->c->weights[0] * (centres[v] - place(i));
        }
        for (int j = 0; j < GRID; j++) {
            const double z = (place(j) - place(i) - a * drift) / sd;
            to[j] += from[i] * scale * exp(-0.5 * z * z);
        }
    }
}

/* After s->steps steps from U(-2, 2): joint (Gibbs), density (else). */
static void iterate_law(struct law *l)
{
    double next[GRID];
    for (int i = 0; i < GRID; i++)
        l->density[i] = fabs(place(i)) < 2 ? 3.0 / GRID : 0;
    for (int t = 0; t < l->s->steps; t++) {
        if (l->s->kind != SAMPLER_GIBBS) {
            push(l, -1, l->density, next);
            memcpy(l->density, next, sizeof next);
            continue;
        }
        if (sampler_draws_y(l->s, t))
            for (int v = 0; v < VALUES; v++)
                for (int i = 0; i < GRID; i++)
                    l->joint[v][i] = l->density[i] * weight_of(l, v, place(i));
        memset(l->density, 0, sizeof l->density);
        for (int v = 0; v < VALUES; v++) {
            push(l, v, l->joint[v], next);
            memcpy(l->joint[v], next, sizeof next);
            for (int i = 0; i < GRID; i++)
                l->density[i] += next[i];
        }
    }
}

struct moments {
    double mass, mean, square;
};

static struct moments moments_of(const double *density)
{
    struct moments m = {0};
    for (int i = 0; i < GRID; i++) {
        m.mass += density[i];
        m.mean += density[i] * place(i);
        m.square += density[i] * place(i) * place(i);
    }
    m.mean /= m.mass;
    m.square /= m.mass;
    return m;
}

static struct model *mixture(void)
{
    const float one = 1;
    float linear[VALUES], bias[VALUES];
    for (int v = 0; v < VALUES; v++) {
        linear[v] = (float)centres[v];
        bias[v] = (float)(priors[v] - 0.5 * centres[v] * centres[v]);
    }
    return quadratic(1, VALUES, &one, linear, bias);
}

enum { MIXED = 6000 };

static void check_gibbs(const struct sampler *s, const struct condition *c, struct model *m)
{
    static struct law l;
    struct runs r;
    double n[VALUES] = {0}, sum[VALUES] = {0};
    l = (struct law){.s = s, .c = c};
    iterate_law(&l);
    struct chains *engine = run_chains(&r, m, c, s, MIXED);
    for (int i = 0; i < MIXED; i++) {
        struct chain_result result;
        chain_group_result(r.g, i, &result);
        n[result.y[0]]++;
        sum[result.y[0]] += (double)result.x[0];
    }
    for (int v = 0; v < VALUES; v++) {
        const struct moments e = moments_of(l.joint[v]);
        if (!c->allowed[v]) {
            assert_true(n[v] == 0);
            continue;
        }
        check_mean("p(y)", n[v] / MIXED, e.mass, sqrt(e.mass * (1 - e.mass) / MIXED));
        check_mean("E[x|y]", sum[v] / n[v], e.mean, sqrt((e.square - e.mean * e.mean) / n[v]));
    }
    end_runs(&r, engine);
}

static void block_gibbs_has_the_law_of_its_kernel_on_a_mixture(void **state)
{
    (void)state;
    struct model *m = mixture();
    struct condition c;
    struct err e;
    struct sampler s = {.kind = SAMPLER_GIBBS,
                        .steps = 40,
                        .langevin_steps = 1,
                        .step_size = 0.25f,
                        .noise = 0.7f,
                        .temperature = 1};
    assert_int_equal(condition_init(&c, &m->d.attributes, 1, &e), 0);
    check_gibbs(&s, &c, m);
    s.langevin_steps = 3;
    s.steps = 41; /* ends within a block */
    check_gibbs(&s, &c, m);
    const uint8_t outer[VALUES] = {1, 0, 1};
    assert_int_equal(condition_set(&c, 0, 0, outer, &e), 0);
    check_gibbs(&s, &c, m);
    condition_weigh(&c, 0, 0, 0.5f);
    check_gibbs(&s, &c, m);
    condition_fini(&c);
    model_put(m);
}

/* As the step shrinks the marginal of y goes to its exact value, proportional to e^prior. */
static void the_grids_own_law_is_near_the_exact_one(void **state)
{
    (void)state;
    static struct law l;
    struct model *m = mixture();
    struct condition c;
    struct err e;
    const struct sampler s = {.kind = SAMPLER_GIBBS,
                              .steps = 200,
                              .langevin_steps = 1,
                              .step_size = 0.05f,
                              .noise = 0.316227766f,
                              .temperature = 1};
    double total = 0;
    assert_int_equal(condition_init(&c, &m->d.attributes, 1, &e), 0);
    l = (struct law){.s = &s, .c = &c};
    iterate_law(&l);
    for (int v = 0; v < VALUES; v++)
        total += exp(priors[v]);
    for (int v = 0; v < VALUES; v++) {
        const struct moments got = moments_of(l.joint[v]);
        assert_true(fabs(got.mass - exp(priors[v]) / total) < 0.02);
        assert_true(fabs(got.mean - centres[v]) < 0.05);
    }
    condition_fini(&c);
    model_put(m);
}

static void check_marginal(const struct sampler *s, const struct condition *c,
                           const struct condition *grid, struct model *m)
{
    static struct law l;
    struct runs r;
    double sum = 0, squares = 0;
    l = (struct law){.s = s, .c = grid};
    iterate_law(&l);
    struct chains *engine = run_chains(&r, m, c, s, MIXED);
    for (int i = 0; i < MIXED; i++) {
        struct chain_result result;
        chain_group_result(r.g, i, &result);
        sum += (double)result.x[0];
        squares += (double)result.x[0] * (double)result.x[0];
    }
    const struct moments e = moments_of(l.density);
    check_mean("E[x]", sum / MIXED, e.mean, sqrt((e.square - e.mean * e.mean) / MIXED));
    double fourth = 0;
    for (int i = 0; i < GRID; i++)
        fourth += l.density[i] * pow(place(i), 4);
    check_mean("E[x^2]", squares / MIXED, e.square, sqrt((fourth - e.square * e.square) / MIXED));
    end_runs(&r, engine);
}

static void sgld_has_the_law_of_its_kernel_also_on_alternatives(void **state)
{
    (void)state;
    struct model *m = mixture();
    struct condition c, either;
    struct err e;
    const uint8_t outer[VALUES] = {1, 0, 1};
    const struct sampler s = {
        .steps = 40, .langevin_steps = 1, .step_size = 0.25f, .noise = 0.7f, .temperature = 1};
    assert_int_equal(condition_init(&c, &m->d.attributes, 1, &e), 0);
    assert_int_equal(condition_init(&either, &m->d.attributes, 2, &e), 0);
    check_marginal(&s, &c, &c, m);
    assert_int_equal(condition_set(&c, 0, 0, outer, &e), 0);
    check_marginal(&s, &c, &c, m);
    condition_fix(&either, 0, 0, 0); /* "v0 or v2" as alternatives is the set {v0, v2} */
    condition_fix(&either, 1, 0, 2);
    check_marginal(&s, &either, &c, m);
    condition_fini(&c);
    condition_fini(&either);
    model_put(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_kind_takes_its_step),
        cmocka_unit_test(the_normalised_rule_bounds_the_mean_move),
        cmocka_unit_test(the_last_steps_are_cooled),
        cmocka_unit_test(clamps_hold),
        cmocka_unit_test(y_is_drawn_before_each_block_of_langevin_steps),
        cmocka_unit_test(a_gradient_that_is_not_finite_moves_nothing),
        cmocka_unit_test(a_step_that_draws_its_noise_is_the_same_step),
        cmocka_unit_test(every_setting_is_checked),
        cmocka_unit_test(ula_has_the_known_law_on_a_gaussian),
        cmocka_unit_test(a_temperature_flattens_the_law),
        cmocka_unit_test(block_gibbs_has_the_law_of_its_kernel_on_a_mixture),
        cmocka_unit_test(the_grids_own_law_is_near_the_exact_one),
        cmocka_unit_test(sgld_has_the_law_of_its_kernel_also_on_alternatives),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
