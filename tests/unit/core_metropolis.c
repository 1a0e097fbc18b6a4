/* SPDX-License-Identifier: Apache-2.0 */
/* MALA and HMC: the step against proposal densities written out, leapfrog's two virtues, detailed
 * balance, and what is refused. Seeds are fixed; four comparisons allow 5.7 standard deviations, as do
 * three chi-squares: false alarms below 1e-7 together. */
#include "unit/law_help.h"
#include "unit/metropolis_help.h"

enum { N = 7 };

/* A score that is no quadratic: -sum (x_i^4 / 4 + i x_i^2 / 4) + sum x_i x_i+1 / 2. */
static double score_of(const float *x, float *grad)
{
    double sum = 0;
    for (int i = 0; i < N; i++) {
        const double v = (double)x[i], next = i + 1 < N ? (double)x[i + 1] : 0;
        const double before = i > 0 ? (double)x[i - 1] : 0;
        sum += -0.25 * v * v * v * v - 0.25 * i * v * v + 0.5 * v * next;
        grad[i] = (float)(-v * v * v - 0.5 * i * v + 0.5 * (next + before));
    }
    return sum;
}

/* One trajectory from x, by the parts. */
static void leapfrog(const struct sampler *s, int leaps, float *x, float *p)
{
    float grad[N];
    score_of(x, grad);
    metropolis_kick(s, 0.5f, NULL, grad, p, N);
    for (int i = 0; i < leaps; i++) {
        assert_true(metropolis_drift(s, NULL, p, x, N));
        score_of(x, grad);
        metropolis_kick(s, i + 1 < leaps ? 1 : 0.5f, NULL, grad, p, N);
    }
}

/* log N(to; from + a grad / T, 2 a), up to its constant. */
static double log_proposal(const struct sampler *s, const float *from, const float *to)
{
    const double a = (double)s->step_size, t = (double)s->temperature;
    float grad[N];
    double sum = 0;
    score_of(from, grad);
    for (int i = 0; i < N; i++)
        sum += pow((double)to[i] - (double)from[i] - a * (double)grad[i] / t, 2);
    return -sum / (4 * a);
}

static void mala_accepts_with_the_ratio_of_its_proposal_densities(void **state)
{
    (void)state;
    for (uint32_t draw = 0; draw < 50; draw++) {
        const struct rng_stream stream = {.seed = 4, .step = draw, .purpose = RNG_MOMENTUM};
        float x[N], before[N], z[N], p[N], grad[N];
        test_fill(x, N, draw);
        memcpy(before, x, sizeof x);
        rng_normal(&stream, z, N);
        const double kinetic = metropolis_momentum(&stream, NULL, p, N);
        assert_memory_equal(p, z, sizeof p);
        const double score = score_of(before, grad), a = (double)mala.step_size;
        leapfrog(&mala, 1, x, p);
        for (int i = 0; i < N; i++) {
            const double wanted =
                (double)before[i] + a * (double)grad[i] / 1.7 + sqrt(2 * a) * (double)z[i];
            assert_true(fabs((double)x[i] - wanted) < 1e-6);
        }
        const double new_score = score_of(x, grad);
        const double wanted = (new_score - score) / 1.7 + log_proposal(&mala, x, before) -
                              log_proposal(&mala, before, x);
        const double odds = metropolis_log_odds(&mala, (float)score, kinetic, (float)new_score,
                                                metropolis_kinetic(p, N));
        if (fabs(odds - wanted) > 1e-5)
            fail_msg("draw %u: log odds %.7f, by the densities %.7f", draw, odds, wanted);
    }
}

/* With its momentum turned round a trajectory comes back to where it began. */
static void leapfrog_is_reversible(void **state)
{
    (void)state;
    const struct sampler s = hmc(25, 0.05f);
    for (uint32_t draw = 0; draw < 20; draw++) {
        const struct rng_stream stream = {.seed = 5, .step = draw, .purpose = RNG_MOMENTUM};
        float x[N], before[N], p[N], first[N];
        double moved = 0;
        test_fill(x, N, draw);
        memcpy(before, x, sizeof x);
        metropolis_momentum(&stream, NULL, p, N);
        memcpy(first, p, sizeof p);
        leapfrog(&s, 25, x, p);
        for (int i = 0; i < N; i++) {
            moved += fabs((double)x[i] - (double)before[i]);
            p[i] = -p[i];
        }
        assert_true(moved > 0.5);
        leapfrog(&s, 25, x, p);
        for (int i = 0; i < N; i++) {
            assert_true(fabs((double)x[i] - (double)before[i]) < 2e-5);
            assert_true(fabs((double)p[i] + (double)first[i]) < 2e-5);
        }
    }
}

/* Mean |H' - H| over trajectories of length 1. */
static double energy_error(float eps)
{
    const int leaps = (int)lroundf(1 / eps);
    const struct sampler s = hmc(leaps, eps);
    double sum = 0;
    for (uint32_t draw = 0; draw < 100; draw++) {
        const struct rng_stream stream = {.seed = 6, .step = draw, .purpose = RNG_MOMENTUM};
        float x[N], p[N], grad[N];
        test_fill(x, N, draw);
        const double score = score_of(x, grad), kinetic = metropolis_momentum(&stream, NULL, p, N);
        leapfrog(&s, leaps, x, p);
        sum += fabs(metropolis_log_odds(&s, (float)score, kinetic, (float)score_of(x, grad),
                                        metropolis_kinetic(p, N)));
    }
    return sum / 100;
}

static void the_energy_error_falls_with_the_square_of_the_step(void **state)
{
    (void)state;
    double before = energy_error(0.2f);
    for (float eps = 0.1f; eps > 0.02f; eps /= 2) {
        const double error = energy_error(eps), ratio = before / error;
        if (!(ratio > 3.5 && ratio < 4.6))
            fail_msg("eps %g: error %g, %.2f times less than with the double step", (double)eps,
                     error, ratio);
        before = error;
    }
}

static void odds_are_the_odds(void **state)
{
    (void)state;
    static const double chances[] = {0.9, 0.5, 0.03, 0};
    enum { DRAWS = 200000 };
    struct rng_stream stream = {.seed = 7, .purpose = RNG_ACCEPT};
    for (size_t c = 0; c < sizeof chances / sizeof chances[0]; c++) {
        int n = 0;
        for (stream.step = 0; stream.step < DRAWS; stream.step++)
            n += metropolis_accepts(&stream, log(chances[c]));
        const double sd = sqrt(DRAWS * chances[c] * (1 - chances[c]));
        assert_true(fabs(n - DRAWS * chances[c]) <= BOUND * sd);
    }
    for (stream.step = 0; stream.step < 1000; stream.step++) {
        assert_true(metropolis_accepts(&stream, 0) && metropolis_accepts(&stream, 3));
        assert_true(metropolis_accepts(&stream, (double)INFINITY));
        assert_false(metropolis_accepts(&stream, (double)NAN));
        assert_false(metropolis_accepts(&stream, (double)-INFINITY));
    }
}

static void what_leaves_the_range_is_told_and_what_is_masked_stays(void **state)
{
    (void)state;
    static const uint8_t mask[N] = {1, 0, 1, 0, 0, 1, 1};
    struct sampler s = hmc(1, 0.1f);
    float x[N] = {0, 9, 0.5f, -0.0f, -9, 0.2f, 0}, grad[N], p[N] = {0};
    const float before[N] = {0, 9, 0.5f, -0.0f, -9, 0.2f, 0};
    const struct rng_stream stream = {.seed = 8, .purpose = RNG_MOMENTUM};
    s.range_lo = -1;
    s.range_hi = 1;
    test_fill(grad, N, 3);
    const double kinetic = metropolis_momentum(&stream, mask, p, N);
    metropolis_kick(&s, 0.5f, mask, grad, p, N);
    assert_true(kinetic > 0);
    for (int i = 0; i < N; i++)
        assert_true((p[i] != 0) == (mask[i] != 0));
    assert_true(metropolis_drift(&s, mask, p, x, N)); /* though masked pixels are outside */
    for (int i = 0; i < N; i++)
        assert_true((memcmp(&x[i], &before[i], sizeof x[i]) != 0) == (mask[i] != 0));
    p[2] = 30;
    assert_false(metropolis_drift(&s, mask, p, x, N));
    p[2] = NAN;
    assert_false(metropolis_drift(&s, mask, p, x, N));
    s.range_lo = -INFINITY;
    s.range_hi = INFINITY;
    p[2] = 0;
    x[2] = 1e30f;
    assert_true(metropolis_drift(&s, mask, p, x, N));
}

static void what_a_metropolis_step_cannot_have_is_refused(void **state)
{
    (void)state;
    const struct sampler good[] = {mala, hmc(10, 0.1f), hmc(1, 0.1f), hmc(1000, 1e-6f)};
    struct sampler bad[16];
    static const char *const fields[16] = {
        "step_rule",      "step_norm",      "noise",          "clamp",
        "pixel_clamp",    "cool_last",      "langevin_steps", "leapfrog_steps",
        "step_size",      "step_size",      "range",          "range",
        "leapfrog_steps", "leapfrog_steps", "leapfrog_steps", "range"};
    struct err e;
    for (int i = 0; i < 4; i++)
        assert_int_equal(sampler_check(&good[i], &e), 0);
    for (int i = 0; i < 16; i++)
        bad[i] = i < 12 ? mala : hmc(10, 0.1f);
    bad[0].rule = SAMPLER_NORMALISED;
    bad[1].step_norm = 0.1f;
    bad[2].noise = 0.01f;
    bad[3].clamp = true;
    bad[3].clamp_hi = 1;
    bad[4].pixel_clamp = 1;
    bad[5].cool_last = 1;
    bad[6].langevin_steps = 2;
    bad[7].leapfrog_steps = 1;
    bad[8].step_size = 0;
    bad[9].step_size = NAN;
    bad[10].range_lo = bad[10].range_hi = 1;
    bad[11].range_lo = NAN;
    bad[12].leapfrog_steps = 0;
    bad[13].leapfrog_steps = 1001;
    bad[14].kind = SAMPLER_SGLD;
    bad[15].kind = SAMPLER_SGLD;
    bad[15].leapfrog_steps = 0;
    for (int i = 0; i < 16; i++) {
        const bool wrong = i >= 8 && i < 14;
        const int rc = sampler_check(&bad[i], &e);
        if (rc != (wrong ? -FAIL_OUT_OF_RANGE : -FAIL_UNSUPPORTED) ||
            strcmp(e.pointer, fields[i]) != 0)
            fail_msg("case %d: %d at %s", i, rc, rc ? e.pointer : "-");
    }
}

static void another_samplers_settings_become_those_of_a_metropolis_step(void **state)
{
    (void)state;
    struct err e;
    const struct sampler tuned = {.kind = SAMPLER_SGLD,
                                  .rule = SAMPLER_NORMALISED,
                                  .steps = 60,
                                  .langevin_steps = 3,
                                  .cool_last = 20,
                                  .step_size = 10,
                                  .step_norm = 0.03f,
                                  .noise = 0.02f,
                                  .temperature = 2,
                                  .clamp = true,
                                  .clamp_hi = 1,
                                  .pixel_clamp = 1,
                                  .start = START_BUFFER};
    for (int kind = SAMPLER_MALA; kind <= SAMPLER_HMC; kind++) {
        const struct sampler s = sampler_metropolis_like(&tuned, (enum sampler_kind)kind, -1, 1);
        assert_int_equal(sampler_check(&s, &e), 0);
        assert_true(s.kind == (enum sampler_kind)kind && s.steps == 60 && s.temperature == 2);
        assert_true(s.start == START_BUFFER && s.range_lo == -1 && s.range_hi == 1);
        assert_true(fabsf(metropolis_step(&s) - 0.02f) < 1e-8f);
        assert_int_equal(metropolis_leaps(&s), kind == SAMPLER_HMC ? 10 : 1);
    }
}

/* ---- detailed balance, in one dimension with two wells of unlike depth and two walls ---- */

enum { CELLS = 4000, BINS = 8, DRAWS = 300000 };

static double well(double x, double *slope)
{
    *slope = -4.8 * x * (x * x - 1) + 0.4;
    return -1.2 * (x * x - 1) * (x * x - 1) + 0.4 * x;
}

/* x of the exact law, from two uniforms. */
static float exact_draw(const struct sampler *s, const double *cumulated, uint32_t draw)
{
    const struct rng_stream stream = {.seed = 11, .step = draw, .purpose = RNG_START_UNIFORM};
    const double width = ((double)s->range_hi - (double)s->range_lo) / CELLS;
    float u[2];
    int lo = 0, hi = CELLS - 1;
    rng_uniform(&stream, u, 2);
    while (lo < hi) {
        const int mid = (lo + hi) / 2;
        if (cumulated[mid] < (double)u[0] * cumulated[CELLS - 1])
            lo = mid + 1;
        else
            hi = mid;
    }
    return (float)((double)s->range_lo + width * (lo + (double)u[1]));
}

/* One transition; `always` leaves the acceptance out. Returns whether it moved. */
static bool transition(const struct sampler *s, uint32_t draw, bool always, float *x)
{
    struct rng_stream stream = {.seed = 12, .step = draw, .purpose = RNG_MOMENTUM};
    const int leaps = metropolis_leaps(s);
    float p, at = *x, grad;
    double slope;
    const double kinetic = metropolis_momentum(&stream, NULL, &p, 1);
    const float score = (float)well((double)at, &slope);
    float end = score;
    grad = (float)slope;
    metropolis_kick(s, 0.5f, NULL, &grad, &p, 1);
    for (int i = 0; i < leaps; i++) {
        if (!metropolis_drift(s, NULL, &p, &at, 1))
            return false;
        end = (float)well((double)at, &slope);
        grad = (float)slope;
        metropolis_kick(s, i + 1 < leaps ? 1 : 0.5f, NULL, &grad, &p, 1);
    }
    stream.purpose = RNG_ACCEPT;
    if (!always && !metropolis_accepts(&stream, metropolis_log_odds(s, score, kinetic, end,
                                                                    metropolis_kinetic(&p, 1))))
        return false;
    *x = at;
    return true;
}

static int bin_of(const struct sampler *s, float x)
{
    const int bin = (int)((x - s->range_lo) / (s->range_hi - s->range_lo) * BINS);
    return bin < BINS ? bin : BINS - 1;
}

/* Chi-square of flows i -> j against j -> i of the exact law, as standard deviations (Wilson and
 * Hilferty); the share of moves to *moved. */
static double imbalance(const struct sampler *s, bool always, double *moved)
{
    static double cumulated[CELLS];
    static int flow[BINS][BINS];
    const double width = ((double)s->range_hi - (double)s->range_lo) / CELLS;
    double sum = 0, chi = 0, slope;
    int degrees = 0, moves = 0;
    memset(flow, 0, sizeof flow);
    for (int i = 0; i < CELLS; i++) {
        sum += exp(well((double)s->range_lo + width * (i + 0.5), &slope) / (double)s->temperature);
        cumulated[i] = sum;
    }
    for (uint32_t draw = 0; draw < DRAWS; draw++) {
        float x = exact_draw(s, cumulated, draw);
        const int from = bin_of(s, x);
        moves += transition(s, draw, always, &x);
        flow[from][bin_of(s, x)]++;
    }
    for (int i = 0; i < BINS; i++)
        for (int j = 0; j < i; j++) {
            const double both = flow[i][j] + flow[j][i], apart = flow[i][j] - flow[j][i];
            degrees += both >= 20;
            chi += both >= 20 ? apart * apart / both : 0;
        }
    assert_true(degrees > BINS);
    *moved = (double)moves / DRAWS;
    return (cbrt(chi / degrees) - (1 - 2.0 / (9 * degrees))) / sqrt(2.0 / (9 * degrees));
}

static void transitions_are_in_detailed_balance(void **state)
{
    (void)state;
    struct sampler kinds[3] = {mala, hmc(3, 0.35f), hmc(7, 0.25f)};
    kinds[0].step_size = 0.15f;
    for (int i = 0; i < 3; i++) {
        double moved, blind;
        kinds[i].range_lo = -1.4f;
        kinds[i].range_hi = 1.8f;
        kinds[i].temperature = i == 1 ? 0.7f : 1;
        const double z = imbalance(&kinds[i], false, &moved);
        const double wrong = imbalance(&kinds[i], true, &blind);
        if (!(z < BOUND && moved > 0.3 && moved < 0.95))
            fail_msg("case %d: %.1f standard deviations off balance, %.2f moved", i, z, moved);
        if (!(wrong > 2 * BOUND))
            fail_msg("case %d: accepting all is off balance by %.1f only", i, wrong);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mala_accepts_with_the_ratio_of_its_proposal_densities),
        cmocka_unit_test(leapfrog_is_reversible),
        cmocka_unit_test(the_energy_error_falls_with_the_square_of_the_step),
        cmocka_unit_test(odds_are_the_odds),
        cmocka_unit_test(what_leaves_the_range_is_told_and_what_is_masked_stays),
        cmocka_unit_test(what_a_metropolis_step_cannot_have_is_refused),
        cmocka_unit_test(another_samplers_settings_become_those_of_a_metropolis_step),
        cmocka_unit_test(transitions_are_in_detailed_balance),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
