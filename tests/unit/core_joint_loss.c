/* SPDX-License-Identifier: Apache-2.0 */
/* The losses of the general family: against an interpreter in double and its finite differences, to
 * features, to the head's weights, and through the network to all parameters. */
#include "ebm/joint.h"
#include "learn/gradient.h"
#include "learn/joint_loss.h"
#include "learn/kl.h"
#include "unit/joint_nets.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

enum { IMAGES = 4, GROUPS = 5 };

static const struct loss_weights weightings[GROUPS] = {
    {.log_pxy = -1, .cross_entropy = 1, .square_pxy = 0.05f},
    {.log_px = -1, .cross_entropy = 0.7f, .square_px = 0.1f},
    {.log_pxy = 1},
    {.cross_entropy = 1},
    {.log_px = 0.3f,
     .log_pxy = -0.6f,
     .cross_entropy = 0.2f,
     .square_px = 0.02f,
     .square_pxy = 0.03f},
};

static const int values[] = {3, 2, 2, 0}, hidden[] = {7, 4, 0};

/* Some labels are missing, all of the last image's. */
static const uint8_t labels[IMAGES * 3] = {2, 0, 1, 0, 255, 1, 255, 255, 0, 255, 255, 255};

/* The loss by the interpreter. */
static double loss_of(const struct head *h, const struct loss_weights *w,
                      double phi[][HEAD_FEATURES])
{
    double log_px = 0, log_pxy = 0, entropy = 0, square_px = 0, square_pxy = 0;
    int known = 0;
    for (int i = 0; i < IMAGES; i++) {
        const uint8_t *label = labels + i * 3;
        double all = 0, agreeing = 0, marginal[3] = {0};
        uint16_t y[HEAD_ATTRIBUTES];
        for (int l = 0; head_label(h, l, y); l++) {
            const double p = exp(head_of(h, phi[i], y));
            bool agrees = true;
            for (int k = 0; k < 3; k++) {
                agrees &= label[k] == 255 || label[k] == y[k];
                marginal[k] += label[k] == y[k] ? p : 0;
            }
            all += p;
            agreeing += agrees ? p : 0;
        }
        for (int k = 0; k < 3; k++) {
            known += label[k] != 255;
            entropy -= label[k] == 255 ? 0 : log(marginal[k] / all);
        }
        log_px += log(all) / IMAGES;
        log_pxy += log(agreeing) / IMAGES;
        square_px += log(all) * log(all) / IMAGES;
        square_pxy += log(agreeing) * log(agreeing) / IMAGES;
    }
    return (double)w->log_px * log_px + (double)w->log_pxy * log_pxy +
           (double)w->cross_entropy * entropy / known + (double)w->square_px * square_px +
           (double)w->square_pxy * square_pxy;
}

#define SLOPE(at, expression)                                                                      \
    ({                                                                                             \
        const double was_ = *(at), h_ = 1e-5;                                                      \
        *(at) = was_ + h_;                                                                         \
        const double up_ = (expression);                                                           \
        *(at) = was_ - h_;                                                                         \
        const double down_ = (expression);                                                         \
        *(at) = was_;                                                                              \
        (up_ - down_) / (2 * h_);                                                                  \
    })

static void near(double got, double wanted, double tolerance, const char *what, int at)
{
    if (!(fabs(got - wanted) <= tolerance * (1 + fabs(wanted))))
        fail_msg("%s of case %d: %.9g, not %.9g", what, at, got, wanted);
}

static void losses_and_slopes_are_the_interpreters(void **state)
{
    (void)state;
    for (int at = 0; at < 2 * GROUPS; at++) {
        static struct head h;
        static float slope[HEAD_FLOATS];
        float phi[IMAGES * 9], dphi[IMAGES * 9];
        double same[IMAGES][HEAD_FEATURES];
        struct loss_values v;
        head_open(&h, at % 2 ? JOINT_MLP : JOINT_DOT, 9, values, hidden);
        for (int i = 0; i < IMAGES; i++)
            head_phi(&h, (uint64_t)(at * IMAGES + i), phi + i * 9, same[i]);
        memset(slope, 0, sizeof slope);
        const struct walk_weights to = {.base = h.weights, .gradient = slope};
        const struct loss_weights *w = &weightings[at / 2];
        const struct loss_group g = {
            .weights = *w, .n = IMAGES, .logits = phi, .labels = labels, .slope = &to};
        loss_gradient(&h.attributes, &g, dphi, &v);
        near(v.loss, loss_of(&h, w, same), 2e-5, "the loss", at);
        assert_int_equal(v.labels, 6);
        for (int i = 0; i < IMAGES * 9; i++)
            near((double)dphi[i], SLOPE(&same[i / 9][i % 9], loss_of(&h, w, same)), 5e-5,
                 "a feature's slope", at);
        for (int i = 0; i < h.taken; i++)
            near((double)slope[i], SLOPE(&h.exact[i], loss_of(&h, w, same)), 5e-5,
                 "a weight's slope", at);
        head_close(&h);
    }
}

/* ---- with a network under it ---- */

static const char text[] =
    "{\"format\":1,\"name\":\"n\",\"version\":\"1\",\"input\":{\"channels\":1,\"height\":4,"
    "\"width\":3,\"range\":[0,1]},\"layers\":[{\"kind\":\"conv\",\"weights\":\"c\",\"in\":1,"
    "\"out\":3,\"kernel\":2},{\"kind\":\"silu\"},{\"kind\":\"flatten\"},{\"kind\":\"linear\","
    "\"weights\":\"l\",\"in\":18,\"out\":5}],\"energy\":{\"kind\":\"%s\",\"layers\":["
    "{\"kind\":\"linear\",\"weights\":\"y0\",\"in\":%d,\"out\":6},{\"kind\":\"silu\"},"
    "{\"kind\":\"linear\",\"weights\":\"y1\",\"in\":6,\"out\":%d}]},\"attributes\":["
    "{\"name\":\"a\",\"values\":[\"0\",\"1\",\"2\"]},{\"name\":\"b\",\"values\":[\"0\",\"1\"]},"
    "{\"name\":\"c\",\"values\":[\"0\",\"1\"]}]}";

struct all {
    struct description d;
    struct parameters p;
    struct net *net;
    struct joint *head;
    struct attributes attributes;
    struct gradient *gradient;
    float x[IMAGES * 12], dlogits[IMAGES * 5];
};

static void all_open(struct all *a, bool dot)
{
    struct err e;
    char json[2048];
    snprintf(json, sizeof json, text, dot ? "dot" : "mlp", dot ? 7 : 12, dot ? 5 : 1);
    *a = (struct all){0};
    if (description_parse(&a->d, json, "test", &e) != 0 ||
        parameters_init_model(&a->p, &a->d, &e) != 0)
        fail_msg("%s", e.text);
    const struct net_weights source = parameters_source(&a->p);
    const struct gradient_options o = {.batch = IMAGES};
    if (net_open(&a->net, a->d.layers, a->d.n_layers, a->d.input, &source, &e) != 0 ||
        joint_open(&a->head, &a->d.energy, net_logits(a->net), &a->d.attributes, &source, &e) !=
            0 ||
        gradient_open(&a->gradient, a->net, &a->p, &o, &e) != 0)
        fail_msg("%s", e.text);
    a->attributes = a->d.attributes;
    a->attributes.joint = a->head;
    const struct rng_stream s = {.seed = 8, .purpose = 77}, t = {.seed = 9, .purpose = 77};
    rng_normal(&s, a->p.values, a->p.n);
    rng_uniform(&t, a->x, IMAGES * 12);
    for (size_t i = 0; i < a->p.n; i++)
        a->p.values[i] *= 0.5f;
}

static void all_close(struct all *a)
{
    gradient_close(a->gradient);
    joint_close(a->head);
    net_close(a->net);
    parameters_fini(&a->p);
    description_fini(&a->d);
}

static double all_loss(struct all *a, const struct loss_weights *w, float *slope)
{
    struct loss_values v;
    const struct walk_weights to = {.base = a->p.values, .gradient = slope};
    const struct loss_group g = {.weights = *w,
                                 .n = IMAGES,
                                 .logits = gradient_forward(a->gradient, IMAGES, a->x),
                                 .labels = labels,
                                 .slope = slope ? &to : NULL};
    loss_gradient(&a->attributes, &g, a->dlogits, &v);
    if (slope)
        gradient_backward(a->gradient, IMAGES, a->dlogits, NULL, slope);
    return v.loss;
}

/* The parameters' slope along random directions against central differences of float losses. */
static void slopes_reach_every_parameter(void **state)
{
    (void)state;
    for (int at = 0; at < 2 * GROUPS; at++) {
        struct all a;
        all_open(&a, at % 2);
        assert_int_equal(a.p.n, 15 + 95 + (at % 2 ? 48 + 35 : 78 + 7));
        assert_non_null(parameters_find(&a.p, "y1.bias"));
        float *slope = calloc(a.p.n, sizeof *slope), *u = calloc(a.p.n, sizeof *u);
        float *was = calloc(a.p.n, sizeof *was);
        assert_true(slope && u && was);
        const struct loss_weights *w = &weightings[at / 2];
        all_loss(&a, w, slope);
        memcpy(was, a.p.values, a.p.n * sizeof *was);
        for (uint64_t direction = 0; direction < 6; direction++) {
            const struct rng_stream s = {.seed = direction, .purpose = 80};
            double along = 0, size = 0;
            rng_normal(&s, u, a.p.n);
            for (size_t i = 0; i < a.p.n; i++) {
                along += (double)slope[i] * (double)u[i];
                size += (double)slope[i] * (double)slope[i];
            }
            double loss[2];
            for (int side = 0; side < 2; side++) {
                for (size_t i = 0; i < a.p.n; i++)
                    a.p.values[i] = was[i] + (side ? -3e-3f : 3e-3f) * u[i];
                loss[side] = all_loss(&a, w, NULL);
            }
            memcpy(a.p.values, was, a.p.n * sizeof *was);
            const double difference = (loss[0] - loss[1]) / 6e-3;
            if (!(fabs(difference - along) < 0.01 * sqrt(size)))
                fail_msg("case %d: %.6g along a direction, not %.6g", at, along, difference);
        }
        free(slope);
        free(u);
        free(was);
        all_close(&a);
    }
}

static void what_cannot_be_summed_is_said_before_training(void **state)
{
    (void)state;
    struct head h;
    struct err e;
    const uint8_t known[] = {0, 1, 2, 3, 1, 2}, missing[] = {0, 1, 2, 255, 255, 255};
    head_open(&h, JOINT_DOT, 3, (const int[]){17, 16, 16, 0}, (const int[]){4, 0});
    const struct loss_weights plain = {.log_pxy = -1, .square_pxy = 0.1f};
    assert_int_equal(joint_loss_check(&h.attributes, &plain, false, known, 2, &e), 0);
    assert_int_equal(joint_loss_check(&h.attributes, &plain, true, known, 2, &e),
                     -FAIL_UNSUPPORTED);
    assert_non_null(strstr(e.text, "chains.labels"));
    assert_int_equal(joint_loss_check(&h.attributes, &plain, false, missing, 2, &e),
                     -FAIL_UNSUPPORTED);
    assert_non_null(strstr(e.text, "row 1"));
    const struct loss_weights more = {.log_pxy = -1, .cross_entropy = 1};
    assert_int_equal(joint_loss_check(&h.attributes, &more, false, known, 2, &e),
                     -FAIL_UNSUPPORTED);
    assert_non_null(strstr(e.text, "loss.cross_entropy"));
    head_close(&h);
}

static void the_kl_term_refuses_the_family(void **state)
{
    (void)state;
    struct all a;
    struct kl *k = NULL;
    struct err e;
    all_open(&a, true);
    const struct kl_options o = {.step_size = 1};
    assert_int_equal(kl_open(&k, a.gradient, &a.attributes, &o, &e), -FAIL_UNSUPPORTED);
    assert_null(k);
    all_close(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(losses_and_slopes_are_the_interpreters),
        cmocka_unit_test(slopes_reach_every_parameter),
        cmocka_unit_test(what_cannot_be_summed_is_said_before_training),
        cmocka_unit_test(the_kl_term_refuses_the_family),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
