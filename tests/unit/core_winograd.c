/* SPDX-License-Identifier: Apache-2.0 */
/* Convolutions by tiles (core/ops/isa/winograd.c, winograd2.c, polyphase.c) on every instruction set
 * of this machine, against plain loops. Buffers are just as large as the contract says, and begin as
 * NaN. */
#include "ops/kernels.h"

#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { TEAM_MAX = 3 };

static const struct kernels *targets[KERNELS_MAX];
static int n_targets;
static enum algorithm three_by_three; /* the scheme of stride 1 at hand */

static float draw(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (float)((double)(*state >> 40) / (double)(1 << 23) - 1.0);
}

static float *drawn(size_t n, uint64_t seed)
{
    float *v = malloc(n * sizeof *v);
    assert_non_null(v);
    for (size_t i = 0; i < n; i++)
        v[i] = draw(&seed);
    return v;
}

/* Aligned as the workspace is, all bits set: every float a NaN. */
static void *unwritten(size_t bytes)
{
    const size_t rounded = (bytes + 63) / 64 * 64;
    char *p = aligned_alloc(64, rounded ? rounded : 64);
    assert_non_null(p);
    memset(p, 0xff, rounded);
    return p;
}

static struct layout layout(int channels, int h, int w)
{
    return (struct layout){.form = FORM_F32, .channels = channels, .h = h, .w = w};
}

static float *element(const struct layout *l, void *tensor, int image, int channel, int y, int x)
{
    char *p = (char *)tensor + (size_t)image * layout_image_bytes(l);
    return (float *)(void *)(p + layout_at(l, channel / LANES, y, x)) + channel % LANES;
}

static void *blocked(const struct layout *l, int n, const float *dense)
{
    void *t = unwritten((size_t)n * layout_image_bytes(l));
    memset(t, 0, (size_t)n * layout_image_bytes(l));
    for (int i = 0; i < n; i++)
        for (int c = 0; c < l->channels; c++)
            for (int y = 0; y < l->h; y++)
                for (int x = 0; x < l->w; x++)
                    *element(l, t, i, c, y, x) = *dense++;
    return t;
}

static float *unblocked(const struct layout *l, int n, void *tensor)
{
    float *dense = malloc((size_t)n * (size_t)l->channels * (size_t)(l->h * l->w) * sizeof *dense);
    assert_non_null(dense);
    float *p = dense;
    for (int i = 0; i < n; i++)
        for (int c = 0; c < l->channels; c++)
            for (int y = 0; y < l->h; y++)
                for (int x = 0; x < l->w; x++)
                    *p++ = *element(l, tensor, i, c, y, x);
    return dense;
}

/* The tensor is what `blocked` makes of its own elements: zeros everywhere else. */
static void check_zeros(const struct layout *l, int n, void *tensor)
{
    float *dense = unblocked(l, n, tensor);
    float *again = blocked(l, n, dense);
    for (size_t i = 0; i < (size_t)n * layout_image_bytes(l) / sizeof(float); i++)
        assert_true(again[i] == ((float *)tensor)[i] || isnan(again[i]));
    free(dense);
    free(again);
}

/* A convolution made ready in one direction on one target. */
struct setup {
    struct map map;
    const struct method *method;
    struct layout out;
    float *weight, *bias;
    void *packed;
};

static struct conv conv_of(int kernel, int stride, int pad, const int s[4])
{
    return (struct conv){.cin = s[0],
                         .cout = s[1],
                         .hin = s[2],
                         .win = s[3],
                         .hout = (s[2] + 2 * pad - kernel) / stride + 1,
                         .wout = (s[3] + 2 * pad - kernel) / stride + 1,
                         .kh = kernel,
                         .kw = kernel,
                         .stride = stride,
                         .pad = pad};
}

static void setup_init(struct setup *s, const struct kernels *k, const struct conv *c,
                       bool backward)
{
    const int planes = (c->cout + LANES - 1) / LANES;
    memset(s, 0, sizeof *s);
    s->weight = drawn((size_t)(c->cout * c->cin * c->kh * c->kw), 3);
    s->bias = drawn((size_t)(planes * LANES), 4);
    for (int i = c->cout; i < planes * LANES; i++)
        s->bias[i] = 0;
    s->map.conv = *c;
    s->map.conv.weight = s->weight;
    s->map.conv.bias = s->bias;
    s->map.backward = backward;
    s->map.algorithm = c->stride == 1 ? three_by_three : ALGORITHM_POLYPHASE;
    s->map.kernels = k;
    s->method = k->methods[s->map.algorithm];
    assert_non_null(s->method);
    assert_true(s->method->fits(c, backward));
    s->map.in = backward ? layout(c->cout, c->hout, c->wout) : layout(c->cin, c->hin, c->win);
    s->out = backward ? layout(c->cin, c->hin, c->win) : layout(c->cout, c->hout, c->wout);
    s->method->margins(&s->map, &s->map.in);
    s->map.packed_bytes = s->method->packed_bytes(&s->map);
    s->packed = unwritten(s->map.packed_bytes);
    for (int part = 0; part < 3; part++)
        s->method->pack(&s->map, s->packed, part, 3);
    s->map.packed = s->packed;
}

static void setup_fini(struct setup *s)
{
    free(s->weight);
    free(s->bias);
    free(s->packed);
}

struct member {
    const struct map *map;
    const struct method *method;
    struct task task;
    pthread_t thread;
};

static void *compute(void *arg)
{
    struct member *m = arg;
    m->method->run(m->map, &m->task);
    return NULL;
}

static void run(const struct setup *s, int n, const void *in, const struct epilogue *e, int size)
{
    struct team team;
    struct member members[TEAM_MAX];
    team_init(&team, size);
    char *shared = unwritten(s->method->shared_bytes(&s->map, n, size));
    for (int i = 0; i < size; i++) {
        char *scratch = unwritten(s->method->scratch_bytes(&s->map, n, size));
        members[i] = (struct member){.map = &s->map,
                                     .method = s->method,
                                     .task = {.n = n,
                                              .in = in,
                                              .epilogue = e,
                                              .scratch = scratch,
                                              .shared_scratch = shared,
                                              .team = &team,
                                              .rank = i}};
        assert_int_equal(pthread_create(&members[i].thread, NULL, compute, &members[i]), 0);
    }
    for (int i = 0; i < size; i++) {
        assert_int_equal(pthread_join(members[i].thread, NULL), 0);
        free(members[i].task.scratch);
    }
    free(shared);
}

/* Only the result, dense. */
static float *result(const struct setup *s, int n, const float *dense, int size)
{
    float *in = blocked(&s->map.in, n, dense);
    float *out = unwritten((size_t)n * layout_image_bytes(&s->out));
    run(s, n, in, &(struct epilogue){.plain = out, .plain_layout = s->out}, size);
    check_zeros(&s->out, n, out);
    float *y = unblocked(&s->out, n, out);
    free(in);
    free(out);
    return y;
}

static size_t in_floats(const struct setup *s)
{
    return (size_t)(s->map.in.channels * s->map.in.h * s->map.in.w);
}

static size_t out_floats(const struct setup *s)
{
    return (size_t)(s->out.channels * s->out.h * s->out.w);
}

static double distance(const float *a, const float *b, size_t n)
{
    double difference = 0, norm = 1e-30;
    for (size_t i = 0; i < n; i++) {
        const double d = (double)a[i] - (double)b[i];
        difference += d * d;
        norm += (double)b[i] * (double)b[i];
    }
    return sqrt(difference / norm);
}

static float *truth(const struct setup *s, int n, const float *in)
{
    const struct conv *c = &s->map.conv;
    float *y = malloc((size_t)n * out_floats(s) * sizeof *y);
    assert_non_null(y);
    if (s->map.backward) {
        ops_ref.conv_backward_input(c, n, in, y, NULL);
    } else {
        struct conv plain = *c;
        float *zero = calloc((size_t)c->cout, sizeof *zero);
        assert_non_null(zero);
        plain.bias = zero;
        ops_ref.conv_forward(&plain, n, in, y, NULL);
        free(zero);
    }
    return y;
}

/* Of `count` results together: few of them may all be small by cancellation. */
static double tolerance(const struct kernels *k, size_t count)
{
    if (k->precision == PRECISION_BFLOAT16)
        return count < 64 ? 0.3 : 2.5e-2;
    return 5e-6;
}

static void check_shape(const struct conv *c, int n, int size)
{
    for (int backward = 0; backward < 2; backward++) {
        float *in = NULL, *expected = NULL; /* of any target */
        for (int t = 0; t < n_targets; t++) {
            struct setup s;
            setup_init(&s, targets[t], c, backward);
            if (!in) {
                in = drawn((size_t)n * in_floats(&s), 7);
                expected = truth(&s, n, in);
            }
            float *y = result(&s, n, in, size);
            const size_t count = (size_t)n * out_floats(&s);
            const double error = distance(y, expected, count);
            if (!(error < tolerance(targets[t], count)))
                fail_msg("%s %s k%d s%d p%d %dx%dx%d->%d: %g", targets[t]->name,
                         backward ? "backward" : "forward", c->kh, c->stride, c->pad, c->cin,
                         c->hin, c->win, c->cout, error);
            free(y);
            setup_fini(&s);
        }
        free(in);
        free(expected);
    }
}

static void check_kernel(int kernel, int stride, int pad)
{
    static const int shapes[][4] = {{16, 16, 8, 8},   {1, 1, 3, 3},     {3, 5, 1, 7},
                                    {17, 33, 5, 4},   {40, 24, 13, 6},  {5, 70, 9, 65},
                                    {64, 31, 16, 12}, {2, 100, 65, 33}, {130, 20, 4, 18}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const struct conv c = conv_of(kernel, stride, pad, shapes[i]);
        if (c.hout > 0 && c.wout > 0 && c.hin + 2 * pad >= kernel && c.win + 2 * pad >= kernel)
            check_shape(&c, 1 + (int)i % 3, 1 + (int)i % TEAM_MAX);
    }
}

static void three_by_three_is_the_convolution_at_every_pad(void **state)
{
    (void)state;
    for (int pad = 0; pad < 3; pad++)
        check_kernel(3, 1, pad);
}

static void three_by_three_by_two_is_the_convolution_at_every_pad(void **state)
{
    (void)state;
    for (int pad = 0; pad < 3; pad++)
        check_kernel(3, 2, pad);
}

static void four_by_four_by_two_is_the_convolution_at_every_pad(void **state)
{
    (void)state;
    for (int pad = 0; pad < 4; pad++)
        check_kernel(4, 2, pad);
}

static void every_small_height_and_width_is_right(void **state)
{
    (void)state;
    for (int h = 1; h <= 18; h += 1 + h / 10) {
        for (int w = 1; w <= 18; w += 1 + w / 10) {
            const struct conv one = conv_of(3, 1, 1, (const int[4]){3, 2, h, w});
            const struct conv two = conv_of(3, 2, 1, (const int[4]){2, 3, h, w});
            const struct conv four = conv_of(4, 2, 1, (const int[4]){2, 3, h, w});
            check_shape(&one, 2, 1);
            check_shape(&two, 2, 1);
            if (h > 1 && w > 1)
                check_shape(&four, 2, 1);
        }
    }
}

static void deep_sums_keep_their_precision(void **state)
{
    (void)state;
    const struct conv one = conv_of(3, 1, 1, (const int[4]){640, 32, 8, 8});
    const struct conv two = conv_of(3, 2, 1, (const int[4]){320, 320, 8, 8});
    const struct conv four = conv_of(4, 2, 1, (const int[4]){256, 256, 8, 8});
    check_shape(&one, 1, 1);
    check_shape(&two, 1, 1);
    check_shape(&four, 1, 1);
}

static void other_kernels_do_not_fit(void **state)
{
    (void)state;
    for (int t = 0; t < n_targets; t++) {
        const struct method *w = targets[t]->methods[three_by_three];
        const struct method *p = targets[t]->methods[ALGORITHM_POLYPHASE];
        const struct conv one = conv_of(3, 1, 1, (const int[4]){16, 16, 8, 8});
        const struct conv two = conv_of(3, 2, 1, (const int[4]){16, 16, 8, 8});
        const struct conv point = conv_of(1, 1, 0, (const int[4]){16, 16, 8, 8});
        const struct conv far = conv_of(3, 1, 3, (const int[4]){16, 16, 8, 8});
        struct conv oblong = one;
        oblong.kw = 1;
        assert_false(w->fits(&two, false));
        assert_false(w->fits(&point, false));
        assert_false(w->fits(&far, true));
        assert_false(w->fits(&oblong, false));
        assert_false(p->fits(&one, true));
        assert_false(p->fits(&point, false));
    }
}

/* A batch of n by a team gives each image the bits it has alone. */
static void check_bits(const struct conv *c, int n, bool backward)
{
    for (int t = 0; t < n_targets; t++) {
        struct setup s;
        setup_init(&s, targets[t], c, backward);
        float *in = drawn((size_t)n * in_floats(&s), 9);
        float *first = result(&s, n, in, 1);
        for (int size = 2; size <= TEAM_MAX; size++) {
            float *y = result(&s, n, in, size);
            assert_memory_equal(y, first, (size_t)n * out_floats(&s) * sizeof *y);
            free(y);
        }
        for (int i = 0; i < n; i += 1 + n / 5) {
            for (int size = 1; size <= TEAM_MAX; size++) {
                float *y = result(&s, 1, in + (size_t)i * in_floats(&s), size);
                assert_memory_equal(y, first + (size_t)i * out_floats(&s),
                                    out_floats(&s) * sizeof *y);
                free(y);
            }
        }
        free(in);
        free(first);
        setup_fini(&s);
    }
}

static void bits_do_not_depend_on_batch_position_or_team(void **state)
{
    (void)state;
    static const int batches[] = {2, 3, 7, 16, 33};
    for (size_t i = 0; i < sizeof batches / sizeof *batches; i++) {
        const struct conv one = conv_of(3, 1, 1, (const int[4]){20, 70, 13, 9});
        const struct conv two = conv_of(3, 2, 1, (const int[4]){33, 70, 14, 9});
        const struct conv four = conv_of(4, 2, 1, (const int[4]){20, 70, 10, 17});
        for (int backward = 0; backward < 2; backward++) {
            check_bits(&one, batches[i], backward);
            check_bits(&two, batches[i], backward);
            check_bits(&four, batches[i], backward);
        }
    }
}

/* Images of one tile: a batch of n is one run of n rows, as far as runs go. */
static void bits_do_not_depend_on_the_length_of_a_run(void **state)
{
    (void)state;
    const struct conv one = conv_of(3, 1, 1, (const int[4]){20, 18, 4, 4});
    for (int n = 2; n <= 15; n++)
        check_bits(&one, n, false);
}

static void many_tiles_of_few_outputs_give_the_same_bits(void **state)
{
    (void)state;
    const struct conv one = conv_of(3, 1, 1, (const int[4]){4, 6, 65, 65});
    const struct conv four = conv_of(4, 2, 1, (const int[4]){6, 4, 65, 65});
    for (int backward = 0; backward < 2; backward++) {
        check_bits(&one, 5, backward);
        check_bits(&four, 5, backward);
    }
}

static void a_nan_stays_in_its_image(void **state)
{
    (void)state;
    const struct conv convs[] = {conv_of(3, 1, 1, (const int[4]){16, 32, 6, 7}),
                                 conv_of(3, 2, 1, (const int[4]){16, 32, 6, 7}),
                                 conv_of(4, 2, 1, (const int[4]){16, 32, 6, 7})};
    for (int k = 0; k < 6; k++) {
        for (int t = 0; t < n_targets; t++) {
            struct setup s;
            setup_init(&s, targets[t], &convs[k / 2], k % 2);
            const size_t in_size = in_floats(&s), out_size = out_floats(&s);
            float *in = drawn(3 * in_size, 9);
            float *clean = result(&s, 3, in, 2);
            for (size_t i = 0; i < in_size; i++)
                in[in_size + i] = NAN;
            float *y = result(&s, 3, in, 2);
            assert_memory_equal(y, clean, out_size * sizeof *y);
            assert_memory_equal(y + 2 * out_size, clean + 2 * out_size, out_size * sizeof *y);
            assert_true(isnan(y[out_size]));
            free(in);
            free(clean);
            free(y);
            setup_fini(&s);
        }
    }
}

/* Every tensor an epilogue may read or write, for one setup and n images. */
struct outputs {
    struct epilogue e;
    float *dense_residual, *dense_factor;
    uint16_t *mask;
    void *owned[9];
    int n_owned;
};

static void *own(struct outputs *o, void *p)
{
    o->owned[o->n_owned++] = p;
    return p;
}

static void outputs_fini(struct outputs *o)
{
    for (int i = 0; i < o->n_owned; i++)
        free(o->owned[i]);
}

/* Number of an element's pixel in tensors without margins. */
static size_t pixel(const struct layout *l, int image, int channel, int y, int x)
{
    const size_t plane = (size_t)(image * layout_planes(l) + channel / LANES);
    return (plane * (size_t)l->h + (size_t)y) * (size_t)l->w + (size_t)x;
}

/* Bias, the derivative asked for, residual; plain, raw operand, `act` with keep, active, operand. */
static void outputs_init(struct outputs *o, const struct setup *s, int n, enum activation derive,
                         enum activation act)
{
    memset(o, 0, sizeof *o);
    struct layout l = s->out, wide = s->out;
    wide.top = wide.side = 1;
    wide.bottom = 2;
    const size_t pixels = (size_t)n * (size_t)layout_planes(&l) * (size_t)(l.h * l.w);
    const size_t bytes = (size_t)n * layout_image_bytes(&wide);
    o->e.bias = s->bias;
    o->e.derive = derive;
    o->e.derive_slope = 0.25f;
    o->dense_factor = own(o, drawn(pixels * LANES, 11));
    o->mask = own(o, malloc(pixels * sizeof *o->mask));
    for (size_t i = 0; i < pixels; i++)
        o->mask[i] = (uint16_t)(i * 40503u >> 3);
    o->e.derivative = derive == ACT_LRELU ? (void *)o->mask : o->dense_factor;
    o->dense_residual = own(o, drawn((size_t)n * out_floats(s), 12));
    o->e.residual = own(o, blocked(&wide, n, o->dense_residual));
    o->e.plain = own(o, unwritten(bytes));
    o->e.raw_operand = own(o, unwritten(bytes));
    o->e.active = own(o, unwritten(bytes));
    o->e.operand = own(o, unwritten(bytes));
    o->e.keep = own(o, unwritten((size_t)n * activation_keep_bytes(act, &l)));
    o->e.act = act;
    o->e.slope = 0.125f;
    o->e.residual_layout = o->e.plain_layout = o->e.raw_operand_layout = wide;
    o->e.active_layout = o->e.operand_layout = wide;
}

/* One element of every tensor written, given the bare result v. */
static void check_element(const struct outputs *o, const struct layout *l, float v, float residual,
                          const int at[4])
{
    const struct epilogue *e = &o->e;
    const struct layout *wide = &e->plain_layout;
    const int image = at[0], channel = at[1], y = at[2], x = at[3], lane = channel % LANES;
    const size_t p = pixel(l, image, channel, y, x), kept = p * LANES + (size_t)lane;
    v += e->bias[channel];
    if (e->derive == ACT_LRELU)
        v *= o->mask[p] >> lane & 1 ? 1.0f : e->derive_slope;
    else if (e->derive != ACT_NONE)
        v *= o->dense_factor[kept];
    v += residual;
    assert_true(*element(wide, e->plain, image, channel, y, x) == v);
    assert_true(*element(wide, e->raw_operand, image, channel, y, x) == v);
    float active = v;
    if (e->act == ACT_LRELU) {
        assert_int_equal(((uint16_t *)e->keep)[p] >> lane & 1, v > 0);
        active = v > 0 ? v : v * e->slope;
    } else if (e->act == ACT_SQUARE) {
        assert_true(((float *)e->keep)[kept] == v + v);
        active = v * v;
    } else if (e->act == ACT_SILU) {
        const double sigmoid = 1 / (1 + exp(-(double)v));
        const double derivative = sigmoid * (1 + (double)v * (1 - sigmoid));
        assert_true(fabs((double)((float *)e->keep)[kept] - derivative) < 1e-6);
        active = *element(wide, e->active, image, channel, y, x);
        assert_true(fabs((double)active - (double)v * sigmoid) < 1e-6 * (1 + fabs((double)v)));
    }
    assert_true(*element(wide, e->active, image, channel, y, x) == active);
    assert_true(*element(wide, e->operand, image, channel, y, x) == active);
}

static void check_epilogue(const struct setup *s, enum activation derive, enum activation act)
{
    enum { N = 3 };
    struct outputs o;
    outputs_init(&o, s, N, derive, act);
    float *dense = drawn(N * in_floats(s), 8);
    float *bare = result(s, N, dense, 1), *in = blocked(&s->map.in, N, dense);
    run(s, N, in, &o.e, 2);
    size_t i = 0;
    for (int n = 0; n < N; n++)
        for (int c = 0; c < s->out.channels; c++)
            for (int y = 0; y < s->out.h; y++)
                for (int x = 0; x < s->out.w; x++, i++)
                    check_element(&o, &s->out, bare[i], o.dense_residual[i],
                                  (const int[4]){n, c, y, x});
    free(dense);
    free(bare);
    free(in);
    outputs_fini(&o);
}

static void every_piece_of_an_epilogue_lands_where_it_belongs(void **state)
{
    (void)state;
    static const int kernels[][2] = {{3, 1}, {3, 2}, {4, 2}};
    for (int k = 0; k < 3 * n_targets; k++) {
        for (int backward = 0; backward < 2; backward++) {
            const int channels = 37; /* one bias serves both directions */
            const struct conv c = conv_of(kernels[k % 3][0], kernels[k % 3][1], 1,
                                          (const int[4]){channels, channels, 14, 37});
            struct setup s;
            setup_init(&s, targets[k / 3], &c, backward);
            check_epilogue(&s, ACT_NONE, ACT_LRELU);
            check_epilogue(&s, ACT_LRELU, ACT_SILU);
            check_epilogue(&s, ACT_SQUARE, ACT_SQUARE);
            setup_fini(&s);
        }
    }
}

static void packing_in_parts_gives_the_same_bytes(void **state)
{
    (void)state;
    static const int kernels[][2] = {{3, 1}, {3, 2}, {4, 2}};
    for (int k = 0; k < 6 * n_targets; k++) {
        const struct conv c =
            conv_of(kernels[k % 3][0], kernels[k % 3][1], 1, (const int[4]){37, 70, 8, 8});
        struct setup s;
        setup_init(&s, targets[k / 6], &c, k % 6 / 3);
        void *whole = unwritten(s.map.packed_bytes);
        s.method->pack(&s.map, whole, 0, 1);
        assert_memory_equal(whole, s.packed, s.map.packed_bytes);
        free(whole);
        setup_fini(&s);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(three_by_three_is_the_convolution_at_every_pad),
        cmocka_unit_test(three_by_three_by_two_is_the_convolution_at_every_pad),
        cmocka_unit_test(four_by_four_by_two_is_the_convolution_at_every_pad),
        cmocka_unit_test(every_small_height_and_width_is_right),
        cmocka_unit_test(deep_sums_keep_their_precision),
        cmocka_unit_test(other_kernels_do_not_fit),
        cmocka_unit_test(bits_do_not_depend_on_batch_position_or_team),
        cmocka_unit_test(bits_do_not_depend_on_the_length_of_a_run),
        cmocka_unit_test(many_tiles_of_few_outputs_give_the_same_bits),
        cmocka_unit_test(a_nan_stays_in_its_image),
        cmocka_unit_test(every_piece_of_an_epilogue_lands_where_it_belongs),
        cmocka_unit_test(packing_in_parts_gives_the_same_bytes),
    };
    const struct kernels *all[KERNELS_MAX];
    const int n = kernels_available(all);
    for (int i = 0; i < n; i++)
        if (all[i]->methods[ALGORITHM_WINOGRAD])
            targets[n_targets++] = all[i];
    int failed = n_targets == 0;
    three_by_three = ALGORITHM_WINOGRAD;
    failed += cmocka_run_group_tests_name("winograd, polyphase", tests, NULL, NULL);
    three_by_three = ALGORITHM_WINOGRAD2;
    failed += cmocka_run_group_tests_name("winograd2, polyphase", tests, NULL, NULL);
    return failed;
}
