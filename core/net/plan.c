/* SPDX-License-Identifier: Apache-2.0 */
#include "net/plan.h"

#include "base/mem.h"

#include <stdint.h>
#include <stdlib.h>

static int larger_first(const void *a, const void *b)
{
    const struct plan_buffer *x = *(struct plan_buffer *const *)a;
    const struct plan_buffer *y = *(struct plan_buffer *const *)b;
    if (x->size_bytes != y->size_bytes)
        return x->size_bytes < y->size_bytes ? 1 : -1;
    return x < y ? -1 : x > y;
}

static int by_offset(const void *a, const void *b)
{
    const struct plan_buffer *x = *(struct plan_buffer *const *)a;
    const struct plan_buffer *y = *(struct plan_buffer *const *)b;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

static size_t lowest_gap(const struct plan_buffer *b, struct plan_buffer **rivals, int n)
{
    size_t at = 0;
    qsort(rivals, (size_t)n, sizeof *rivals, by_offset);
    for (int i = 0; i < n; i++) {
        const size_t end = rivals[i]->offset + arena_round(rivals[i]->size_bytes);
        if (rivals[i]->offset >= at + arena_round(b->size_bytes))
            break;
        at = end > at ? end : at;
    }
    return at;
}

size_t plan_place(struct plan_buffer *buffers, int n)
{
    size_t total = 0;
    struct plan_buffer **order = calloc((size_t)n * 2 + 1, sizeof *order);
    if (!order)
        return SIZE_MAX;
    struct plan_buffer **rivals = order + n;
    for (int i = 0; i < n; i++)
        order[i] = &buffers[i];
    qsort(order, (size_t)n, sizeof *order, larger_first);
    for (int i = 0; i < n && order[i]->size_bytes > 0; i++) {
        struct plan_buffer *b = order[i];
        int count = 0;
        for (int j = 0; j < i; j++)
            if (order[j]->first <= b->last && b->first <= order[j]->last)
                rivals[count++] = order[j];
        b->offset = lowest_gap(b, rivals, count);
        const size_t end = b->offset + arena_round(b->size_bytes);
        total = end > total ? end : total;
    }
    free(order);
    return total;
}
