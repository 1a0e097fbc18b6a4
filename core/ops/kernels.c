/* SPDX-License-Identifier: Apache-2.0 */
#include "ops/kernels.h"

#include "base/isa.h"

#include <string.h>

const char *const algorithm_names[ALGORITHMS] = {"direct",    "winograd", "winograd2",
                                                 "polyphase", "dense",    "columns"};

int kernels_available(const struct kernels *out[KERNELS_MAX])
{
    static const struct kernels *const tables[] = {&kernels_generic, &kernels_avx2,
                                                   &kernels_avx512};
    const int best = (int)isa_best();
    int n = 0;
    for (int level = best < ISA_AVX512 ? best : ISA_AVX512; level >= 0; level--)
        out[n++] = tables[level];
    if (best == ISA_AMX) {
        out[n++] = &kernels_amx;
        out[n++] = &kernels_amx_bf16;
    }
    if (best >= ISA_AVX512_BF16)
        out[n++] = &kernels_avx512_bf16;
    return n;
}

const struct kernels *kernels_of_precision(enum precision precision)
{
    const struct kernels *available[KERNELS_MAX];
    const int n = kernels_available(available);
    for (int i = 0; i < n; i++)
        if (available[i]->precision == precision)
            return available[i];
    return NULL;
}

const struct kernels *kernels_choose(void)
{
    return kernels_of_precision(PRECISION_FLOAT);
}

static bool fits(const struct map *m, enum algorithm a)
{
    const struct method *method = m->kernels->methods[a];
    return method && method->fits(&m->conv, m->backward);
}

/* What a method does in a second and how fast packed weights arrive, as measured with AVX-512
 * (docs/performance.md): only their proportions matter. */
static const double DIRECT_MACS = 80e9, WINOGRAD_MACS = 270e9, WINOGRAD2_MACS = 150e9,
                    POLYPHASE_MACS = 190e9, POLYPHASE_PADDED_MACS = 125e9, WEIGHT_BYTES = 19e9;

/* About how long a convolution of so many images takes. */
static double seconds(const struct map *m, enum algorithm a, int images)
{
    const struct conv *c = &m->conv;
    const int side = a == ALGORITHM_WINOGRAD2 ? 2 : 4; /* of a tile */
    const int h = (c->hout + side - 1) / side, w = (c->wout + side - 1) / side;
    double pixels = (double)c->hout * c->wout, rate = DIRECT_MACS;
    if (a == ALGORITHM_WINOGRAD)
        rate = WINOGRAD_MACS;
    if (a == ALGORITHM_WINOGRAD2)
        rate = WINOGRAD2_MACS;
    if (a == ALGORITHM_POLYPHASE)
        rate = c->kh == 4 ? POLYPHASE_MACS : POLYPHASE_PADDED_MACS;
    if (a != ALGORITHM_DIRECT && a != ALGORITHM_DENSE && a != ALGORITHM_COLUMNS)
        pixels = (double)side * side * h * w; /* whole tiles */
    const double macs = pixels * c->cin * c->cout * c->kh * c->kw * images;
    return macs / rate + (double)m->kernels->methods[a]->packed_bytes(m) / WEIGHT_BYTES;
}

static enum algorithm choose(const struct map *m, const struct wish *w)
{
    static const enum algorithm tiled[] = {ALGORITHM_WINOGRAD, ALGORITHM_WINOGRAD2,
                                           ALGORITHM_POLYPHASE};
    const int most = m->conv.cin > m->conv.cout ? m->conv.cin : m->conv.cout;
    enum algorithm best = ALGORITHM_DIRECT;
    if (w->algorithm != ALGORITHMS && fits(m, w->algorithm))
        return w->algorithm;
    if (w->image && fits(m, ALGORITHM_COLUMNS))
        return ALGORITHM_COLUMNS;
    if (fits(m, ALGORITHM_DENSE))
        return ALGORITHM_DENSE;
    for (int i = 0; i < 3 && most >= LANES; i++) /* else the blocks are mostly zeros */
        if (fits(m, tiled[i]) && seconds(m, tiled[i], w->images) < seconds(m, best, w->images))
            best = tiled[i];
    return best;
}

void map_init(struct map *m, const struct kernels *k, const struct conv *c, bool backward,
              const struct wish *w)
{
    *m = (struct map){.conv = *c, .backward = backward, .kernels = k};
    m->in = (struct layout){.form = k->operand,
                            .channels = backward ? c->cout : c->cin,
                            .h = backward ? c->hout : c->hin,
                            .w = backward ? c->wout : c->win};
    m->algorithm = choose(m, w);
    m->packed_bytes = k->methods[m->algorithm]->packed_bytes(m);
}

double map_seconds(const struct map *m, int images)
{
    return seconds(m, m->algorithm, images);
}
