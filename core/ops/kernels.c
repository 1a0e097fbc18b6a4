/* SPDX-License-Identifier: Apache-2.0 */
#include "ops/kernels.h"

#include "base/isa.h"

#include <string.h>

const char *const algorithm_names[ALGORITHMS] = {"direct", "winograd", "polyphase", "dense",
                                                 "columns"};

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
    return n;
}

const struct kernels *kernels_of_form(enum form operands)
{
    const struct kernels *available[KERNELS_MAX];
    const int n = kernels_available(available);
    for (int i = 0; i < n; i++)
        if (available[i]->operand == operands)
            return available[i];
    return NULL;
}

const struct kernels *kernels_choose(void)
{
    return kernels_of_form(FORM_F32);
}

const struct kernels *kernels_find(const char *name)
{
    const struct kernels *available[KERNELS_MAX];
    const int n = kernels_available(available);
    for (int i = 0; i < n; i++)
        if (strcmp(available[i]->name, name) == 0)
            return available[i];
    return NULL;
}

static bool fits(const struct map *m, enum algorithm a)
{
    const struct method *method = m->kernels->methods[a];
    return method && method->fits(&m->conv, m->backward);
}

/* Winograd's transforms pay when channels are many on both sides. */
static bool pays(const struct conv *c)
{
    return c->cin >= 2 * LANES && c->cout >= 2 * LANES && c->hout * c->wout >= 16;
}

static enum algorithm choose(const struct map *m, bool image, enum algorithm wanted)
{
    if (wanted != ALGORITHMS && fits(m, wanted))
        return wanted;
    if (image && fits(m, ALGORITHM_COLUMNS))
        return ALGORITHM_COLUMNS;
    if (fits(m, ALGORITHM_DENSE))
        return ALGORITHM_DENSE;
    if (pays(&m->conv) && fits(m, ALGORITHM_WINOGRAD))
        return ALGORITHM_WINOGRAD;
    if (pays(&m->conv) && fits(m, ALGORITHM_POLYPHASE))
        return ALGORITHM_POLYPHASE;
    return ALGORITHM_DIRECT;
}

void map_init(struct map *m, const struct kernels *k, const struct conv *c, bool backward,
              bool image, enum algorithm algorithm)
{
    *m = (struct map){.conv = *c, .backward = backward, .kernels = k};
    m->in = (struct layout){.form = k->operand,
                            .channels = backward ? c->cout : c->cin,
                            .h = backward ? c->hout : c->hin,
                            .w = backward ? c->wout : c->win};
    m->algorithm = choose(m, image, algorithm);
    m->packed_bytes = k->methods[m->algorithm]->packed_bytes(m);
}
