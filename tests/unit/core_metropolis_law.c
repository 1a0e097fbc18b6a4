/* SPDX-License-Identifier: Apache-2.0 */
/* The law of MALA's and HMC's chains run through the engine, walls, conditions, temperature and masks
 * included, and what a diverging chain does to its batch. Seeds are fixed; each of the some 110
 * comparisons of moments allows 5.7 standard deviations, a false alarm in 1.2e-8: below 2e-6 together. */
#include "unit/law_help.h"
#include "unit/metropolis_help.h"

enum { D = 6, CHAINS = 3000, CUTS = 4000 };
static const float precisions[D] = {1, 2, 0.5f, 4, 1, 3}, centres[D] = {0, 1, -1, 0.5f, 2, -2};

struct moments {
    double mean, var, fourth; /* about the mean */
};

/* Of exp(-p (x - mu)^2 / 2) within the range. */
static struct moments cut_gaussian(double p, double mu, double lo, double hi)
{
    const double sd = 1 / sqrt(p), from = fmax(lo, mu - 12 * sd), to = fmin(hi, mu + 12 * sd);
    struct moments m = {0};
    double mass = 0;
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < CUTS; i++) {
            const double x = from + (to - from) * (i + 0.5) / CUTS;
            const double density = exp(-0.5 * p * (x - mu) * (x - mu)), d = x - m.mean / mass;
            if (pass == 0) {
                mass += density;
                m.mean += density * x;
            } else {
                m.var += density * d * d;
                m.fourth += density * d * d * d * d;
            }
        }
    return (struct moments){m.mean / mass, m.var / mass, m.fourth / mass};
}

static struct model *gaussian(void)
{
    float linear[2 * D];
    const float bias[2] = {0, 0};
    for (int i = 0; i < 2 * D; i++)
        linear[i] = precisions[i % D] * centres[i % D];
    return quadratic(D, 2, precisions, linear, bias);
}

/* Acceptance rate of all chains. */
static double accepted(const struct runs *r, const struct sampler *s)
{
    long proposals = 0, taken = 0;
    const int each = (s->steps + metropolis_leaps(s) - 1) / metropolis_leaps(s);
    for (int i = 0; i < CHAINS; i++) {
        struct chain_result result;
        chain_group_result(r->g, i, &result);
        assert_true(result.finished && !result.diverged && result.steps == s->steps);
        assert_int_equal(result.proposals, each);
        proposals += result.proposals;
        taken += result.accepted;
    }
    return (double)taken / (double)proposals;
}

/* Mean and variance of pixel k of all chains. */
static struct moments measured(const struct runs *r, int k, double about)
{
    struct moments m = {0};
    for (int i = 0; i < CHAINS; i++) {
        struct chain_result result;
        chain_group_result(r->g, i, &result);
        m.mean += (double)result.x[k] / CHAINS;
        m.var += pow((double)result.x[k] - about, 2) / CHAINS;
    }
    return m;
}

static void check_pixel(const struct runs *r, const struct sampler *s, int k)
{
    const double p = (double)precisions[k] / (double)s->temperature;
    const struct moments wanted =
        cut_gaussian(p, (double)centres[k], (double)s->range_lo, (double)s->range_hi);
    const struct moments got = measured(r, k, wanted.mean);
    check_mean("mean", got.mean, wanted.mean, sqrt(wanted.var / CHAINS));
    check_mean("variance", got.var, wanted.var,
               sqrt((wanted.fourth - wanted.var * wanted.var) / CHAINS));
}

static void both_have_the_law_of_a_gaussian_at_any_temperature_and_between_walls(void **state)
{
    (void)state;
    struct sampler cases[6];
    struct model *m = gaussian();
    struct condition c;
    struct err e;
    assert_int_equal(condition_init(&c, &m->d.attributes, 1, &e), 0);
    for (int i = 0; i < 6; i++) {
        struct sampler *s = &cases[i];
        struct runs r;
        *s = i % 2 ? hmc(3, 0.3f) : mala;
        s->steps = i % 2 ? 403 : 400;
        s->step_size = i % 2 ? s->step_size : 0.12f;
        s->temperature = i / 2 == 1 ? 2 : 1;
        if (i / 2 == 2) {
            s->range_lo = -1.4f;
            s->range_hi = 1.6f;
            s->step_size = i % 2 ? 0.15f : 0.05f;
        }
        assert_int_equal(sampler_check(s, &e), 0);
        struct chains *engine = run_chains(&r, m, &c, s, CHAINS);
        const double rate = accepted(&r, s);
        if (!(rate > 0.15 && rate < 0.999))
            fail_msg("case %d: %.3f accepted", i, rate);
        for (int k = 0; k < D; k++)
            check_pixel(&r, s, k);
        end_runs(&r, engine);
    }
    condition_fini(&c);
    model_put(m);
}

/* ULA's variance is 2 / (p (2 - a p)): with a = 0.4 a quarter too large for p = 1. */
static void mala_is_exact_where_ula_is_biased(void **state)
{
    (void)state;
    struct model *m = gaussian();
    struct condition c;
    struct err e;
    struct runs r;
    struct sampler s = mala, ula = {.kind = SAMPLER_ULA,
                                    .steps = 300,
                                    .langevin_steps = 1,
                                    .step_size = 0.4f,
                                    .temperature = 1};
    s.temperature = 1;
    s.steps = 300;
    s.step_size = ula.step_size;
    assert_int_equal(condition_init(&c, &m->d.attributes, 1, &e), 0);
    struct chains *engine = run_chains(&r, m, &c, &s, CHAINS);
    assert_true(accepted(&r, &s) > 0.2);
    for (int k = 0; k < D; k++)
        check_pixel(&r, &s, k);
    end_runs(&r, engine);
    engine = run_chains(&r, m, &c, &ula, CHAINS);
    for (int k = 0; k < D; k++) {
        const double p = (double)precisions[k], bias = 2 / (2 - 0.4 * p);
        const double var = measured(&r, k, (double)centres[k]).var * p;
        check_mean("variance of ULA", var, bias, bias * sqrt(2.0 / CHAINS));
        assert_true(p < 1 || (var - 1) / sqrt(2.0 / CHAINS) > BOUND);
    }
    end_runs(&r, engine);
    condition_fini(&c);
    model_put(m);
}

/* Fixed pixels far out in their tails would spoil the odds if they took part in them. */
static void a_mask_holds_pixels_and_leaves_the_law_of_the_others(void **state)
{
    (void)state;
    static const float image[D] = {0.5f, 5, 0, -4, 1, -0.0f};
    static const uint8_t mask[D] = {1, 0, 1, 0, 1, 0};
    struct model *m = gaussian();
    struct condition c;
    struct err e;
    assert_int_equal(condition_init(&c, &m->d.attributes, 1, &e), 0);
    for (int kind = 0; kind < 2; kind++) {
        struct runs r;
        struct sampler s = kind ? hmc(3, 0.3f) : mala;
        s.steps = 300;
        s.step_size = kind ? s.step_size : 0.12f;
        s.temperature = 1;
        struct chains *engine = run_masked(&r, m, &c, &s, CHAINS, image, mask);
        assert_true(accepted(&r, &s) > 0.9);
        for (int k = 0; k < D; k++) {
            struct chain_result result;
            if (mask[k])
                check_pixel(&r, &s, k);
            for (int i = 0; !mask[k] && i < CHAINS; i++) {
                chain_group_result(r.g, i, &result);
                assert_memory_equal(&result.x[k], &image[k], sizeof image[k]);
            }
        }
        end_runs(&r, engine);
    }
    condition_fini(&c);
    model_put(m);
}

/* exp(w log sum over the allowed v of exp(-(x - c_v)^2 / 2 + b_v) / T), on a grid. */
static struct moments mixture_law(const struct condition *c, const double *at, const double *bias,
                                  double temperature)
{
    struct moments m = {0};
    double mass = 0;
    for (int i = 0; i < CUTS; i++) {
        const double x = -12 + 24 * (i + 0.5) / CUTS;
        double sum = 0;
        for (int v = 0; v < 3; v++)
            sum += c->allowed[v] ? exp(-0.5 * (x - at[v]) * (x - at[v]) + bias[v]) : 0;
        const double density = exp((double)c->weights[0] * log(sum) / temperature);
        mass += density;
        m.mean += density * x;
        m.var += density * x * x;
        m.fourth += density * x * x * x * x;
    }
    return (struct moments){m.mean / mass, m.var / mass, m.fourth / mass}; /* about 0 */
}

static void conditions_and_weights_are_in_the_law(void **state)
{
    (void)state;
    static const double at[3] = {-1.5, 0.5, 2}, bias[3] = {0.2, -0.3, 0.6};
    const uint8_t outer[3] = {1, 0, 1};
    const float one = 1;
    float linear[3], constant[3];
    for (int v = 0; v < 3; v++) {
        linear[v] = (float)at[v];
        constant[v] = (float)(bias[v] - 0.5 * at[v] * at[v]);
    }
    struct model *m = quadratic(1, 3, &one, linear, constant);
    struct condition c;
    struct err e;
    assert_int_equal(condition_init(&c, &m->d.attributes, 1, &e), 0);
    for (int i = 0; i < 6; i++) {
        struct runs r;
        struct sampler s = i % 2 ? hmc(6, 0.4f) : mala;
        s.steps = 360;
        s.step_size = i % 2 ? s.step_size : 0.5f;
        s.temperature = i / 2 == 2 ? 2 : 1;
        if (i == 2)
            assert_int_equal(condition_set(&c, 0, 0, outer, &e), 0);
        if (i == 4)
            condition_weigh(&c, 0, 0, 1.5f);
        struct chains *engine = run_chains(&r, m, &c, &s, CHAINS);
        assert_true(accepted(&r, &s) > 0.3);
        const struct moments wanted = mixture_law(&c, at, bias, (double)s.temperature);
        const struct moments got = measured(&r, 0, 0);
        check_mean("E[x]", got.mean, wanted.mean,
                   sqrt((wanted.var - wanted.mean * wanted.mean) / CHAINS));
        check_mean("E[x^2]", got.var, wanted.var,
                   sqrt((wanted.fourth - wanted.var * wanted.var) / CHAINS));
        for (int k = 0; k < CHAINS; k++) {
            struct chain_result result;
            chain_group_result(r.g, k, &result);
            assert_true(c.allowed[result.y[0]]);
        }
        end_runs(&r, engine);
    }
    condition_fini(&c);
    model_put(m);
}

/* ---- divergence ---- */

enum { GOOD = 4, FEW = 5 };

/* What GOOD groups leave that run in one batch, with a group that flies away if `wild`. */
static void run_batch(struct model *m, const struct condition *c, const struct sampler *wild,
                      float x[GOOD][FEW][D], float scores[GOOD][FEW])
{
    struct sampler s[GOOD] = {mala, hmc(3, 0.3f)};
    struct runs good[GOOD], bad;
    struct chains *engine = open_engine(1);
    s[2] = s[3] = (struct sampler){
        .steps = 10, .langevin_steps = 1, .step_size = 0.05f, .noise = 0.1f, .temperature = 1};
    s[3].kind = SAMPLER_GIBBS;
    if (wild)
        start_runs(&bad, engine, c,
                   (struct chain_task){.model = m, .n_chains = 3, .sampler = wild});
    for (int i = 0; i < GOOD; i++) {
        s[i].steps = 300;
        start_runs(&good[i], engine, c,
                   (struct chain_task){.model = m, .n_chains = FEW, .sampler = &s[i]});
    }
    for (int i = 0; i < GOOD; i++)
        wait_runs(&good[i]);
    if (wild)
        wait_runs(&bad);
    chains_stop(engine);
    for (int i = 0; i < GOOD; i++) {
        for (int k = 0; k < FEW; k++) {
            struct chain_result r;
            chain_group_result(good[i].g, k, &r);
            assert_true(r.finished && !r.diverged && r.steps == 300);
            memcpy(x[i][k], r.x, sizeof x[i][k]);
            scores[i][k] = r.score;
        }
        end_runs(&good[i], NULL);
    }
    for (int k = 0; wild && k < 3; k++) {
        struct chain_result r;
        chain_group_result(bad.g, k, &r);
        assert_true(r.diverged && !r.finished && r.steps > 0 && r.steps < 100);
        for (int j = 0; j < D; j++)
            assert_true(isfinite(r.x[j]));
    }
    if (wild)
        end_runs(&bad, NULL);
    chains_close(engine);
}

static void a_chain_that_flies_away_leaves_its_batch_as_it_would_have_been(void **state)
{
    (void)state;
    static float alone[GOOD][FEW][D], beside[GOOD][FEW][D], scores[2][GOOD][FEW];
    struct model *m = gaussian();
    struct condition c;
    struct err e;
    const struct sampler wild = {
        .steps = 1000, .langevin_steps = 1, .step_size = 1000, .noise = 0.1f, .temperature = 1};
    assert_int_equal(condition_init(&c, &m->d.attributes, 1, &e), 0);
    run_batch(m, &c, NULL, alone, scores[0]);
    run_batch(m, &c, &wild, beside, scores[1]);
    assert_memory_equal(alone, beside, sizeof alone);
    assert_memory_equal(scores[0], scores[1], sizeof scores[0]);
    condition_fini(&c);
    model_put(m);
}

/* A start that the model cannot judge is the end; a proposal that it cannot judge is a rejected one. */
static void metropolis_diverges_at_a_start_alone(void **state)
{
    (void)state;
    static const uint8_t mask[D] = {1, 1, 1, 1, 1, 0};
    static const float flat[D] = {0, 0, 0, 0, 0, 1e30f}, sane[D] = {0, 1, -1, 0.5f, 2, -2};
    struct model *m = gaussian();
    struct condition c;
    struct err e;
    assert_int_equal(condition_init(&c, &m->d.attributes, 1, &e), 0);
    for (int kind = 0; kind < 2; kind++)
        for (int bad_start = 0; bad_start < 2; bad_start++) {
            struct runs r;
            struct sampler s = kind ? hmc(4, 1e18f) : mala;
            s.step_size = kind ? s.step_size : 1e37f;
            s.range_lo = -INFINITY;
            s.range_hi = INFINITY;
            struct chains *engine =
                run_masked(&r, m, &c, &s, 3, bad_start ? flat : sane, bad_start ? mask : NULL);
            for (int k = 0; k < 3; k++) {
                struct chain_result result;
                chain_group_result(r.g, k, &result);
                assert_true(result.diverged == (bad_start == 1) &&
                            result.finished != result.diverged);
                assert_int_equal(result.steps, bad_start ? 0 : s.steps);
                assert_int_equal(result.accepted, 0);
                for (int j = 0; j < D; j++)
                    assert_true(isfinite(result.x[j]));
            }
            end_runs(&r, engine);
        }
    condition_fini(&c);
    model_put(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_have_the_law_of_a_gaussian_at_any_temperature_and_between_walls),
        cmocka_unit_test(mala_is_exact_where_ula_is_biased),
        cmocka_unit_test(a_mask_holds_pixels_and_leaves_the_law_of_the_others),
        cmocka_unit_test(conditions_and_weights_are_in_the_law),
        cmocka_unit_test(a_chain_that_flies_away_leaves_its_batch_as_it_would_have_been),
        cmocka_unit_test(metropolis_diverges_at_a_start_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
