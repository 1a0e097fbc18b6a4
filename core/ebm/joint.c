/* SPDX-License-Identifier: Apache-2.0 */
/* A joint head: its layers, and f of some y and back. */
#include "ebm/joint.h"

#include "base/fmath.h"
#include "ebm/joint_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- opening ---- */

static int refuse(const struct layer_spec *s, int index, const char *why, struct err *e)
{
    return fail(e, FAIL_BAD_MODEL, "energy layer %d (%s%s%.63s): %s", index,
                layer_kind_names[s->kind], s->weights[0] ? " " : "", s->weights, why);
}

static bool is_activation(enum layer_kind k)
{
    return k == LAYER_SILU || k == LAYER_RELU || k == LAYER_LRELU;
}

static int find_weights(struct joint_stage *to, const struct layer_spec *s, int index,
                        const struct net_weights *w, struct err *e)
{
    char name[LAYER_NAME_MAX + 16];
    const int shape[2] = {s->out, s->in};
    if (!s->weights[0])
        return refuse(s, index, "a linear layer needs the name of its \"weights\"", e);
    snprintf(name, sizeof name, "%s.weight", s->weights);
    to->weight = w->find(w->ctx, name, shape, 2, e);
    if (!to->weight)
        return e ? -(int)e->code : -FAIL_BAD_MODEL;
    snprintf(name, sizeof name, "%s.bias", s->weights);
    to->bias = w->find(w->ctx, name, shape, 1, e);
    return to->bias ? 0 : e ? -(int)e->code : -FAIL_BAD_MODEL;
}

/* What linear layer number `at` takes in and, if it is the last one, makes; 0 = free to choose. */
static int linear_in(const struct joint *j, int at)
{
    if (at > 0)
        return j->stage[at - 1].out;
    return j->n_values + (j->kind == JOINT_MLP ? j->features : 0);
}

static int check_linear(const struct joint *j, const struct layer_spec *s, int index, bool last,
                        struct err *e)
{
    const int made = j->kind == JOINT_DOT ? j->features : 1;
    char why[160];
    if (s->in != linear_in(j, j->n_linear)) {
        snprintf(why, sizeof why, "\"in\" is %d, but it is given %d numbers", s->in,
                 linear_in(j, j->n_linear));
        return refuse(s, index, why, e);
    }
    if (last && s->out != made) {
        snprintf(why, sizeof why, "the last layer's \"out\" is %d and must be %d%s", s->out, made,
                 j->kind == JOINT_DOT ? ", as many as the network makes features" : "");
        return refuse(s, index, why, e);
    }
    if (!last && (s->out < 1 || s->out > JOINT_WIDTH_MAX)) {
        snprintf(why, sizeof why, "a hidden layer has 1..%d units", JOINT_WIDTH_MAX);
        return refuse(s, index, why, e);
    }
    return 0;
}

static int add_linear(struct joint *j, const struct layer_spec *s, int index, bool last,
                      const struct net_weights *w, struct err *e)
{
    struct joint_stage *to = &j->stage[j->n_linear];
    if (s->kind != LAYER_LINEAR)
        return refuse(s, index,
                      "linear layers and activations take turns, linear ones first and "
                      "last",
                      e);
    if (j->n_linear == JOINT_LINEARS_MAX)
        return refuse(s, index, "an energy has at most 8 linear layers", e);
    int rc = check_linear(j, s, index, last, e);
    if (rc != 0)
        return rc;
    *to = (struct joint_stage){.in = s->in, .out = s->out, .activation = LAYER_LINEAR};
    if (j->n_linear > 0)
        to->first = to[-1].first + to[-1].out;
    if (!last && to->first + to->out > JOINT_UNITS_MAX)
        return refuse(s, index, "the hidden layers have more than 2048 units", e);
    rc = find_weights(to, s, index, w, e);
    j->n_linear += rc == 0;
    return rc;
}

static int add_activation(struct joint *j, const struct layer_spec *s, int index, struct err *e)
{
    struct joint_stage *to = &j->stage[j->n_linear - 1];
    if (!is_activation(s->kind))
        return refuse(s, index,
                      "an activation (silu, relu or lrelu) stands between two linear "
                      "layers",
                      e);
    to->activation = s->kind;
    to->slope = s->kind == LAYER_LRELU ? s->slope : 0;
    return s->kind == LAYER_LRELU && !(s->slope >= 0 && s->slope <= 1)
               ? refuse(s, index, "the slope must be in [0, 1]", e)
               : 0;
}

static int add_layers(struct joint *j, const struct joint_spec *s, const struct net_weights *w,
                      struct err *e)
{
    int rc = 0;
    if (s->n_layers % 2 == 0)
        return fail(e, FAIL_BAD_MODEL,
                    "the energy's layers are linear ones with an activation between each two: an "
                    "odd number, not %d",
                    s->n_layers);
    for (int i = 0; rc == 0 && i < s->n_layers; i++) {
        const struct layer_spec *l = &s->layers[i];
        if (l->id[0] || l->from[0] || l->with[0])
            rc = refuse(l, i, "each layer takes the one before it: no \"id\", \"from\" or \"with\"",
                        e);
        else if (i % 2 == 0)
            rc = add_linear(j, l, i, i == s->n_layers - 1, w, e);
        else
            rc = add_activation(j, l, i, e);
    }
    return rc;
}

int joint_open(struct joint **out, const struct joint_spec *s, int features,
               const struct attributes *a, const struct net_weights *weights, struct err *e)
{
    if (features < 1 || features > JOINT_FEATURES_MAX)
        return fail(e, FAIL_BAD_MODEL, "the network makes %d features, the energy takes 1..%d",
                    features, JOINT_FEATURES_MAX);
    if (a->n_logits > JOINT_VALUES_MAX)
        return fail(e, FAIL_BAD_MODEL,
                    "the attributes have %d values in all, an energy of kind dot or mlp takes at "
                    "most %d",
                    a->n_logits, JOINT_VALUES_MAX);
    struct joint *j = calloc(1, sizeof *j);
    if (!j)
        return fail(e, FAIL_NO_MEMORY, "cannot allocate a joint head");
    *j = (struct joint){
        .kind = s->kind, .n = a->n, .n_values = a->n_logits, .features = features, .list = a->list};
    const int rc = add_layers(j, s, weights, e);
    if (rc != 0) {
        joint_close(j);
        return rc;
    }
    j->labels = joint_labels(j, NULL);
    *out = j;
    return 0;
}

void joint_close(struct joint *j)
{
    free(j);
}

int joint_features(const struct joint *j)
{
    return j->features;
}

int joint_spec_features(const struct joint_spec *s, const struct attributes *a)
{
    if (s->n_layers < 1)
        return 0;
    const int d =
        s->kind == JOINT_DOT ? s->layers[s->n_layers - 1].out : s->layers[0].in - a->n_logits;
    return d > 0 && d <= JOINT_FEATURES_MAX ? d : 0;
}

long long joint_parameters(const struct joint *j)
{
    long long n = 0;
    for (int i = 0; i < j->n_linear; i++)
        n += ((long long)j->stage[i].in + 1) * j->stage[i].out;
    return n;
}

void joint_macs(const struct joint *j, long long *image, long long *label)
{
    const struct joint_stage *first = &j->stage[0], *last = &j->stage[j->n_linear - 1];
    *image = j->kind == JOINT_DOT ? (long long)last->in * j->features
                                  : (long long)first->out * j->features;
    *label = j->n_linear > 1 ? last->in : 0;
    for (int i = 1; i + 1 < j->n_linear; i++)
        *label += (long long)j->stage[i].in * j->stage[i].out;
}

/* ---- arithmetic ---- */

enum { PARTIAL = 16 };

/* Sums in PARTIAL interleaved parts, so that it vectorises, always in this order. */
static float dot(const float *a, const float *b, int n)
{
    float part[PARTIAL] = {0}, sum = 0;
    int i = 0;
    for (; i + PARTIAL <= n; i += PARTIAL)
        for (int p = 0; p < PARTIAL; p++)
            part[p] += a[i + p] * b[i + p];
    for (int p = 0; p < PARTIAL; p++)
        sum += part[p];
    for (; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

static void add_scaled(float *to, const float *v, float by, int n)
{
    for (int i = 0; i < n; i++)
        to[i] += by * v[i];
}

/* Where the gradient to `weights` goes. */
static float *slope_of(const struct walk_weights *to, const float *weights)
{
    return to->gradient + (weights - to->base);
}

/* Column of y's first number in the first layer's weights. */
static int y_column(const struct joint *j)
{
    return j->kind == JOINT_MLP ? j->features : 0;
}

void joint_prepare(const struct joint *j, const float *phi, struct joint_image *out)
{
    const struct joint_stage *first = &j->stage[0], *last = &j->stage[j->n_linear - 1];
    const int d = j->features;
    if (j->n_linear > 1)
        memcpy(out->base, first->bias, (size_t)first->out * sizeof *out->base);
    if (j->kind == JOINT_DOT) {
        memset(out->top, 0, (size_t)last->in * sizeof *out->top);
        for (int i = 0; i < d; i++)
            add_scaled(out->top, last->weight + (size_t)i * (size_t)last->in, phi[i], last->in);
        out->constant = dot(last->bias, phi, d);
        return;
    }
    out->constant = last->bias[0];
    if (j->n_linear == 1) {
        out->constant += dot(last->weight, phi, d);
        memcpy(out->top, last->weight + d, (size_t)j->n_values * sizeof *out->top);
        return;
    }
    memcpy(out->top, last->weight, (size_t)last->in * sizeof *out->top);
    for (int o = 0; o < first->out; o++)
        out->base[o] += dot(first->weight + (size_t)o * (size_t)first->in, phi, d);
}

void joint_clear(const struct joint *j, struct joint_image *sums)
{
    const int top = j->n_linear > 1 ? j->stage[j->n_linear - 1].in : j->n_values;
    memset(sums->base, 0, (size_t)(j->n_linear > 1 ? j->stage[0].out : 0) * sizeof *sums->base);
    memset(sums->top, 0, (size_t)top * sizeof *sums->top);
    sums->constant = 0;
}

static void activate(const struct joint_stage *s, struct joint_room *room)
{
    float *unit = room->unit[s->first], *slope = room->slope[s->first];
    const int n = s->out * JOINT_LANES;
    for (int i = 0; i < n; i++) {
        const float v = unit[i];
        if (s->activation == LAYER_SILU) {
            const float gate = 1.0f / (1.0f + fm_exp(-v));
            unit[i] = v * gate;
            slope[i] = gate * (1.0f + v * (1.0f - gate));
        } else {
            slope[i] = v > 0 ? 1.0f : s->slope;
            unit[i] = v * slope[i];
        }
    }
}

/* The first hidden layer: base and a column an attribute. */
static void enter_labels(const struct joint *j, const struct joint_image *image,
                         struct joint_room *room)
{
    const struct joint_stage *s = &j->stage[0];
    for (int o = 0; o < s->out; o++) {
        const float *row = s->weight + (size_t)o * (size_t)s->in + y_column(j);
        float *unit = room->unit[o];
        for (int b = 0; b < JOINT_LANES; b++) {
            float sum = image->base[o];
            for (int k = 0; k < j->n; k++)
                sum += row[j->list[k].first + room->y[b][k]];
            unit[b] = sum;
        }
    }
}

static void multiply(const struct joint_stage *s, const struct joint_stage *before,
                     struct joint_room *room)
{
    for (int o = 0; o < s->out; o++) {
        const float *row = s->weight + (size_t)o * (size_t)s->in;
        float sum[JOINT_LANES];
        for (int b = 0; b < JOINT_LANES; b++)
            sum[b] = s->bias[o];
        for (int i = 0; i < s->in; i++)
            for (int b = 0; b < JOINT_LANES; b++)
                sum[b] += row[i] * room->unit[before->first + i][b];
        memcpy(room->unit[s->first + o], sum, sizeof sum);
    }
}

void joint_forward(const struct joint *j, const struct joint_image *image, struct joint_room *room,
                   float f[JOINT_LANES])
{
    for (int b = 0; b < JOINT_LANES; b++)
        f[b] = image->constant;
    if (j->n_linear == 1) {
        for (int b = 0; b < JOINT_LANES; b++)
            for (int k = 0; k < j->n; k++)
                f[b] += image->top[j->list[k].first + room->y[b][k]];
        return;
    }
    const int hidden = j->n_linear - 1;
    enter_labels(j, image, room);
    activate(&j->stage[0], room);
    for (int i = 1; i < hidden; i++) {
        multiply(&j->stage[i], &j->stage[i - 1], room);
        activate(&j->stage[i], room);
    }
    const struct joint_stage *top = &j->stage[hidden - 1];
    for (int h = 0; h < top->out; h++)
        for (int b = 0; b < JOINT_LANES; b++)
            f[b] += image->top[h] * room->unit[top->first + h][b];
}

static float lane_sum(const float v[JOINT_LANES])
{
    float sum = 0;
    for (int b = 0; b < JOINT_LANES; b++)
        sum += v[b];
    return sum;
}

/* Through stage s, whose units' gradients are in delta, to those of `before`, in `out`. */
static void return_through(const struct joint_stage *s, const struct joint_stage *before,
                           const struct joint_room *room, float delta[][JOINT_LANES],
                           float out[][JOINT_LANES], const struct walk_weights *to)
{
    memset(out, 0, (size_t)s->in * sizeof *out);
    for (int o = 0; o < s->out; o++) {
        const float *row = s->weight + (size_t)o * (size_t)s->in;
        for (int i = 0; i < s->in; i++)
            for (int b = 0; b < JOINT_LANES; b++)
                out[i][b] += row[i] * delta[o][b];
        if (!to)
            continue;
        float *slope = slope_of(to, row);
        slope_of(to, s->bias)[o] += lane_sum(delta[o]);
        for (int i = 0; i < s->in; i++) {
            float product[JOINT_LANES];
            for (int b = 0; b < JOINT_LANES; b++)
                product[b] = delta[o][b] * room->unit[before->first + i][b];
            slope[i] += lane_sum(product);
        }
    }
}

static void through_activation(const struct joint_stage *s, const struct joint_room *room,
                               float delta[][JOINT_LANES])
{
    for (int o = 0; o < s->out; o++)
        for (int b = 0; b < JOINT_LANES; b++)
            delta[o][b] *= room->slope[s->first + o][b];
}

/* From the first hidden layer's gradients. */
static void leave_labels(const struct joint *j, const struct joint_room *room,
                         float delta[][JOINT_LANES], struct joint_image *sums,
                         const struct walk_weights *to, float *dy)
{
    const struct joint_stage *s = &j->stage[0];
    if (dy)
        memset(dy, 0, (size_t)j->n_values * sizeof *dy);
    for (int o = 0; o < s->out; o++) {
        const float *row = s->weight + (size_t)o * (size_t)s->in + y_column(j);
        sums->base[o] += lane_sum(delta[o]);
        if (dy)
            add_scaled(dy, row, delta[o][0], j->n_values);
        for (int b = 0; to && b < JOINT_LANES; b++)
            for (int k = 0; k < j->n; k++)
                slope_of(to, row)[j->list[k].first + room->y[b][k]] += delta[o][b];
    }
}

void joint_backward(const struct joint *j, const struct joint_image *image, struct joint_room *room,
                    const float coefficient[JOINT_LANES], struct joint_image *sums,
                    const struct walk_weights *to, float *dy)
{
    sums->constant += lane_sum(coefficient);
    if (j->n_linear == 1) {
        for (int b = 0; b < JOINT_LANES; b++)
            for (int k = 0; k < j->n; k++)
                sums->top[j->list[k].first + room->y[b][k]] += coefficient[b];
        if (dy)
            memcpy(dy, image->top, (size_t)j->n_values * sizeof *dy);
        return;
    }
    int at = 0;
    const struct joint_stage *top = &j->stage[j->n_linear - 2];
    for (int h = 0; h < top->out; h++) {
        float product[JOINT_LANES];
        for (int b = 0; b < JOINT_LANES; b++) {
            product[b] = coefficient[b] * room->unit[top->first + h][b];
            room->delta[at][h][b] = coefficient[b] * image->top[h];
        }
        sums->top[h] += lane_sum(product);
    }
    through_activation(top, room, room->delta[at]);
    for (int i = j->n_linear - 2; i > 0; i--, at = !at) {
        return_through(&j->stage[i], &j->stage[i - 1], room, room->delta[at], room->delta[!at], to);
        through_activation(&j->stage[i - 1], room, room->delta[!at]);
    }
    leave_labels(j, room, room->delta[at], sums, to, dy);
}

static void finish_dot(const struct joint *j, const float *phi, const struct joint_image *sums,
                       float *dphi, const struct walk_weights *to)
{
    const struct joint_stage *last = &j->stage[j->n_linear - 1];
    for (int i = 0; i < j->features; i++) {
        const float *row = last->weight + (size_t)i * (size_t)last->in;
        if (dphi)
            dphi[i] += last->bias[i] * sums->constant + dot(row, sums->top, last->in);
        if (!to)
            continue;
        slope_of(to, last->bias)[i] += phi[i] * sums->constant;
        add_scaled(slope_of(to, row), sums->top, phi[i], last->in);
    }
}

static void finish_mlp(const struct joint *j, const float *phi, const struct joint_image *sums,
                       float *dphi, const struct walk_weights *to)
{
    const struct joint_stage *first = &j->stage[0], *last = &j->stage[j->n_linear - 1];
    const bool plain = j->n_linear == 1;
    const int d = j->features;
    for (int o = 0; o < (plain ? 1 : first->out); o++) {
        const float *row = first->weight + (size_t)o * (size_t)first->in;
        const float by = plain ? sums->constant : sums->base[o];
        if (dphi)
            add_scaled(dphi, row, by, d);
        if (to)
            add_scaled(slope_of(to, row), phi, by, d);
    }
    if (!to)
        return;
    add_scaled(slope_of(to, last->weight) + (plain ? d : 0), sums->top, 1,
               plain ? j->n_values : last->in);
    slope_of(to, last->bias)[0] += sums->constant;
}

void joint_finish(const struct joint *j, const float *phi, const struct joint_image *sums,
                  float *dphi, const struct walk_weights *to)
{
    if (to && j->n_linear > 1)
        add_scaled(slope_of(to, j->stage[0].bias), sums->base, 1, j->stage[0].out);
    if (j->kind == JOINT_DOT)
        finish_dot(j, phi, sums, dphi, to);
    else
        finish_mlp(j, phi, sums, dphi, to);
}
