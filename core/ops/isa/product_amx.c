/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `product` on Intel's tiles: 16 or 32 rows x 32 outputs, sums in four tiles. FORM_BF16X2 adds three
 * products a segment, small ones last: high high, high low, low high (the low low one is below the
 * rounding of the parts).
 */
#include "ops/isa/product.h"

#include <stdint.h>
#include <string.h>

enum { TILE_BYTES = 1024, TILE_ROW = 64, SPLIT = TARGET_FORM == FORM_BF16X2, PART = 64 };

/* As the hardware reads it: Intel SDM, LDTILECFG. */
struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

/* Tiles: sums 0 1 (first run, outputs 0-15 and 16-31) and 2 3 (second run), rows 4 5, weights 6 7. */
void TARGET_NAME(product_begin)(int rows)
{
    struct tile_config c = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        c.row_bytes[i] = TILE_ROW;
        c.rows[i] = (uint8_t)(i < 6 ? rows : 16);
    }
    __asm__ volatile("" ::"r"(&c) : "memory"); /* the intrinsic names only eight bytes of it */
    _tile_loadconfig(&c);
}

void TARGET_NAME(product_end)(void)
{
    _tile_release();
}

static void two_runs(const struct product *p)
{
    const ptrdiff_t step = p->row_bytes;
    const ptrdiff_t second = p->a2 - p->a;
    const char *b = p->b;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int s = 0; s < p->segments; s++, b += SEGMENT_BYTES) {
        const char *a = p->a + p->offsets[s];
        _tile_loadd(4, a, step);
        _tile_loadd(6, b, TILE_ROW);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + TILE_BYTES, TILE_ROW);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a + second, step);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        if (!SPLIT)
            continue;
        _tile_loadd(6, b + 2 * TILE_BYTES, TILE_ROW);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(2, 5, 6);
        _tile_loadd(7, b + 3 * TILE_BYTES, TILE_ROW);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
        _tile_loadd(4, a + PART, step);
        _tile_loadd(6, b, TILE_ROW);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + TILE_BYTES, TILE_ROW);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a + second + PART, step);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
}

static void one_run(const struct product *p)
{
    const ptrdiff_t step = p->row_bytes;
    const char *b = p->b;
    _tile_zero(0);
    _tile_zero(1);
    for (int s = 0; s < p->segments; s++, b += SEGMENT_BYTES) {
        const char *a = p->a + p->offsets[s];
        _tile_loadd(4, a, step);
        _tile_loadd(6, b, TILE_ROW);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + TILE_BYTES, TILE_ROW);
        _tile_dpbf16ps(1, 4, 7);
        if (!SPLIT)
            continue;
        _tile_loadd(6, b + 2 * TILE_BYTES, TILE_ROW);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + 3 * TILE_BYTES, TILE_ROW);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(4, a + PART, step);
        _tile_loadd(6, b, TILE_ROW);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + TILE_BYTES, TILE_ROW);
        _tile_dpbf16ps(1, 4, 7);
    }
}

void TARGET_NAME(product)(const struct product *p)
{
    const ptrdiff_t step = p->c_row * (ptrdiff_t)sizeof(float);
    __asm__ volatile("" ::: "memory"); /* the intrinsics do not say that they read memory */
    if (p->a2) {
        two_runs(p);
        _tile_stored(2, p->c2, step);
        _tile_stored(3, p->c2 + p->c_plane, step);
    } else {
        one_run(p);
    }
    _tile_stored(0, p->c, step);
    _tile_stored(1, p->c + p->c_plane, step);
    __asm__ volatile("" ::: "memory");
}

static uint16_t bf16_of(float v)
{
    uint16_t bits;
    const __m128bh packed = _mm_cvtneps_pbh(_mm_set_ss(v));
    memcpy(&bits, &packed, sizeof bits);
    return bits;
}

static float bf16_value(uint16_t bits)
{
    const uint32_t wide = (uint32_t)bits << 16;
    float v;
    memcpy(&v, &wide, sizeof v);
    return v;
}

/* Tile of outputs t (0, 1): row d / 2 holds depths d, d + 1 of 16 outputs side by side. */
void TARGET_NAME(product_pack)(char *segment, const struct product_source *s)
{
    uint16_t *out = (uint16_t *)(void *)segment;
    memset(segment, 0, SEGMENT_BYTES);
    for (int o = 0; o < s->outputs; o++) {
        uint16_t *tile = out + o / LANES * (TILE_BYTES / 2) + o % LANES * 2;
        for (int d = 0; d < s->depth; d++) {
            const float v = s->w[d * s->depth_step + o * s->output_step];
            const uint16_t high = bf16_of(v);
            const int at = d / 2 * (TILE_ROW / 2) + d % 2;
            tile[at] = high;
            if (SPLIT)
                tile[at + TILE_BYTES] = bf16_of(v - bf16_value(high));
        }
    }
}

double TARGET_NAME(product_exercise)(void)
{
    enum { ROUNDS = 1 << 17, PRODUCTS = 4 };
    TARGET_NAME(product_begin)(16);
    for (int i = 0; i < ROUNDS; i++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    TARGET_NAME(product_end)();
    return (double)ROUNDS * PRODUCTS * 16 * 16 * TARGET_DEPTH / (SPLIT ? 3 : 1);
}
