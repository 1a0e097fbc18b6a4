/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/image_codec.h"

#include <png.h>

#include <setjmp.h>
#include <stdalign.h>
#include <stdlib.h>
#include <string.h>

/*
 * The chunk list is walked before libpng sees a byte: that finds truncation and oversize with exact
 * sentences, and before any allocation. Ancillary chunks other than tRNS and eXIf are skipped
 * unread (a compressed profile or text is never inflated), whatever their size up to ANCILLARY_MAX.
 */
enum {
    SIGNATURE_BYTES = 8,
    CHUNK_FRAME_BYTES = 12, /* length, name, CRC */
    IHDR_BYTES = 13,
    ANCILLARY_MAX_BYTES = 4 << 20,
    CHUNK_CACHE_MAX = 8,
    ADAM7_PASSES = PNG_INTERLACE_ADAM7_PASSES
};

struct chunk {
    size_t at;
    uint32_t length;
    char name[5];
};

static uint32_t be32(const unsigned char *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static int is_letter(char c)
{
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

static int read_chunk(struct chunk *c, const struct image_input *in, size_t at, struct err *e)
{
    const size_t left = in->size - at;
    if (left < CHUNK_FRAME_BYTES)
        return fail(e, FAIL_BAD_IMAGE, "the PNG ends early: %zu bytes without an IEND chunk",
                    in->size);
    *c = (struct chunk){.at = at, .length = be32(in->bytes + at)};
    memcpy(c->name, in->bytes + at + 4, 4);
    for (int i = 0; i < 4; i++)
        if (!is_letter(c->name[i]))
            return fail(e, FAIL_BAD_IMAGE, "the PNG is damaged: no chunk name at byte %zu", at);
    const int ancillary = c->name[0] >= 'a';
    if (ancillary && c->length > ANCILLARY_MAX_BYTES) {
        const int rc =
            fail(e, FAIL_IMAGE_TOO_LARGE, "the PNG's %s chunk has %u bytes, it may have at most %d",
                 c->name, c->length, ANCILLARY_MAX_BYTES);
        fail_limit(e, ANCILLARY_MAX_BYTES);
        return rc;
    }
    if (left - CHUNK_FRAME_BYTES < c->length)
        return fail(e, FAIL_BAD_IMAGE,
                    "the PNG ends early: its %s chunk at byte %zu has %u bytes, only %zu follow",
                    c->name, at, c->length, left - CHUNK_FRAME_BYTES);
    return 0;
}

/* Admits the size in IHDR and sets *end to the byte after IEND; what follows is not ours. */
static int walk_chunks(size_t *end, struct image_input *in, struct err *e)
{
    struct chunk c;
    size_t at = SIGNATURE_BYTES;
    int rc = read_chunk(&c, in, at, e);
    if (rc != 0)
        return rc;
    if (strcmp(c.name, "IHDR") != 0 || c.length != IHDR_BYTES)
        return fail(e, FAIL_BAD_IMAGE, "the PNG does not begin with an IHDR chunk of %d bytes",
                    IHDR_BYTES);
    rc = image_admit(in, be32(in->bytes + at + 8), be32(in->bytes + at + 12), e);
    while (rc == 0 && strcmp(c.name, "IEND") != 0) {
        at += CHUNK_FRAME_BYTES + (size_t)c.length;
        rc = read_chunk(&c, in, at, e);
    }
    if (rc == 0)
        *end = at + CHUNK_FRAME_BYTES + (size_t)c.length;
    return rc;
}

/* One decode. libpng may longjmp out of any call, so whatever must outlive that is in here and not
 * in a local variable of the function that called setjmp. */
struct reader {
    struct image_input *in;
    size_t at, end;
    png_structp png;
    png_infop info;
    unsigned char *row;
    struct image image;
    int over_limit, out_of_memory; /* why the last refused allocation was refused */
    int rc;
    struct err *e;
};

/* In front of every allocation made for libpng, so that freeing gives the bytes back. */
struct piece {
    alignas(max_align_t) size_t cost_bytes;
};

static png_voidp take_memory(png_structp png, png_alloc_size_t bytes)
{
    struct reader *const r = png_get_mem_ptr(png);
    size_t cost;
    if (__builtin_add_overflow(bytes, sizeof(struct piece), &cost) || cost > r->in->left_bytes) {
        r->over_limit = 1;
        return NULL;
    }
    struct piece *const p = malloc(cost);
    if (!p) {
        r->out_of_memory = 1;
        return NULL;
    }
    r->in->left_bytes -= cost;
    p->cost_bytes = cost;
    return p + 1;
}

static void give_memory(png_structp png, png_voidp memory)
{
    struct reader *const r = png_get_mem_ptr(png);
    struct piece *const p = (struct piece *)memory - 1;
    r->in->left_bytes += p->cost_bytes;
    free(p);
}

static int reading_error(struct reader *r, const char *message)
{
    if (r->over_limit)
        return image_memory_error(r->in, r->e);
    if (r->out_of_memory)
        return fail(r->e, FAIL_NO_MEMORY, "out of memory while decoding a PNG");
    return fail(r->e, FAIL_BAD_IMAGE, "the PNG cannot be decoded: %s", message);
}

static void on_read_error(png_structp png, png_const_charp message)
{
    struct reader *const r = png_get_error_ptr(png);
    r->rc = reading_error(r, message);
    png_longjmp(png, 1);
}

static void on_warning(png_structp png, png_const_charp message)
{
    (void)png;
    (void)message;
}

static void on_read(png_structp png, png_bytep to, size_t bytes)
{
    struct reader *const r = png_get_io_ptr(png);
    if (bytes > r->end - r->at)
        png_error(png, "the data ends early");
    memcpy(to, r->in->bytes + r->at, bytes);
    r->at += bytes;
}

static void configure(struct reader *r)
{
    static const png_byte exif[] = "eXIf";
    const png_uint_32 side = r->in->limits->max_side;
    png_set_read_fn(r->png, r, on_read);
    png_set_user_limits(r->png, side > PNG_UINT_31_MAX ? PNG_UINT_31_MAX : side,
                        side > PNG_UINT_31_MAX ? PNG_UINT_31_MAX : side);
    png_set_chunk_malloc_max(r->png, ANCILLARY_MAX_BYTES);
    png_set_chunk_cache_max(r->png, CHUNK_CACHE_MAX);
    png_set_benign_errors(r->png, 1);
    png_set_crc_action(r->png, PNG_CRC_ERROR_QUIT, PNG_CRC_WARN_DISCARD);
    png_set_keep_unknown_chunks(r->png, PNG_HANDLE_CHUNK_NEVER, NULL, -1);
    png_set_keep_unknown_chunks(r->png, PNG_HANDLE_CHUNK_AS_DEFAULT, exif, 1);
}

static unsigned over_white(unsigned v, unsigned alpha)
{
    return (v * alpha + 255 * (255 - alpha) + 127) / 255;
}

/* n pixels of 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA) bytes -> every `step`th pixel of a
 * row of 1 or 3 bytes. */
static void store_row(const struct reader *r, unsigned char *to, size_t step, uint32_t n)
{
    const int have = png_get_channels(r->png, r->info), want = r->image.channels;
    const int colour = have >= 3, alpha = have % 2 == 0;
    const unsigned char *from = r->row;
    for (uint32_t i = 0; i < n; i++, from += have, to += step * (size_t)want) {
        unsigned red = from[0], green = from[colour ? 1 : 0], blue = from[colour ? 2 : 0];
        if (alpha) {
            const unsigned a = from[have - 1];
            red = over_white(red, a);
            green = over_white(green, a);
            blue = over_white(blue, a);
        }
        to[0] = want == 3 || !colour ? (unsigned char)red : image_grey(red, green, blue);
        if (want == 3) {
            to[1] = (unsigned char)green;
            to[2] = (unsigned char)blue;
        }
    }
}

/* Without png_set_interlace_handling libpng hands out the seven sub-images as they are stored, so
 * one row of memory does for interlaced files too. */
static void read_pass(struct reader *r, uint32_t start[2], uint32_t step[2])
{
    struct image *const im = &r->image;
    if (start[0] >= im->width)
        return;
    const uint32_t columns = (im->width - start[0] + step[0] - 1) / step[0];
    for (uint32_t y = start[1]; y < im->height; y += step[1]) {
        png_read_row(r->png, r->row, NULL);
        store_row(r, im->data + ((size_t)y * im->width + start[0]) * (size_t)im->channels, step[0],
                  columns);
    }
}

static void read_rows(struct reader *r)
{
    if (png_get_interlace_type(r->png, r->info) == PNG_INTERLACE_NONE) {
        read_pass(r, (uint32_t[]){0, 0}, (uint32_t[]){1, 1});
        return;
    }
    for (int pass = 0; pass < ADAM7_PASSES; pass++)
        read_pass(r, (uint32_t[]){PNG_PASS_START_COL(pass), PNG_PASS_START_ROW(pass)},
                  (uint32_t[]){PNG_PASS_COL_OFFSET(pass), PNG_PASS_ROW_OFFSET(pass)});
}

static void read_orientation(struct reader *r)
{
    png_uint_32 size;
    png_bytep tiff;
    if (png_get_eXIf_1(r->png, r->info, &size, &tiff) == PNG_INFO_eXIf)
        r->in->orientation = image_exif_orientation(tiff, size);
}

static int read_png(struct reader *r)
{
    if (setjmp(png_jmpbuf(r->png)))
        return r->rc;
    configure(r);
    r->info = png_create_info_struct(r->png);
    if (!r->info)
        png_error(r->png, "no memory for its header");
    png_read_info(r->png, r->info);
    png_set_expand(r->png);
    png_set_scale_16(r->png);
    png_read_update_info(r->png, r->info);
    r->row = png_malloc(r->png, png_get_rowbytes(r->png, r->info));
    const int rc = image_init(&r->image, png_get_image_width(r->png, r->info),
                              png_get_image_height(r->png, r->info), r->in->channels, r->e);
    if (rc != 0)
        return rc;
    read_rows(r);
    png_read_end(r->png, r->info);
    read_orientation(r);
    return 0;
}

int image_png_decode(struct image *out, struct image_input *in, struct err *e)
{
    struct reader r = {.in = in, .e = e};
    int rc = walk_chunks(&r.end, in, e);
    if (rc != 0)
        return rc;
    r.png = png_create_read_struct_2(PNG_LIBPNG_VER_STRING, &r, on_read_error, on_warning, &r,
                                     take_memory, give_memory);
    if (!r.png)
        return reading_error(&r, "libpng does not start");
    rc = read_png(&r);
    png_free(r.png, r.row);
    png_destroy_read_struct(&r.png, &r.info, NULL);
    if (rc == 0)
        *out = r.image;
    else
        image_fini(&r.image);
    return rc;
}

struct writer {
    png_structp png;
    png_infop info;
    unsigned char *bytes;
    size_t size, capacity;
    int rc;
    struct err *e;
};

static void on_write_error(png_structp png, png_const_charp message)
{
    struct writer *const w = png_get_error_ptr(png);
    w->rc = fail(w->e, FAIL_NO_MEMORY, "out of memory while encoding a PNG (%s)", message);
    png_longjmp(png, 1);
}

static void on_write(png_structp png, png_bytep bytes, size_t size)
{
    struct writer *const w = png_get_io_ptr(png);
    if (size > w->capacity - w->size) {
        const size_t capacity = 2 * w->capacity + size + 1024;
        unsigned char *const grown = realloc(w->bytes, capacity);
        if (!grown)
            png_error(png, "its bytes do not fit");
        w->bytes = grown;
        w->capacity = capacity;
    }
    memcpy(w->bytes + w->size, bytes, size);
    w->size += size;
}

static void on_flush(png_structp png)
{
    (void)png;
}

static int write_png(struct writer *w, const struct image *im, int compression)
{
    if (setjmp(png_jmpbuf(w->png)))
        return w->rc;
    w->info = png_create_info_struct(w->png);
    if (!w->info)
        png_error(w->png, "no room for its header");
    png_set_write_fn(w->png, w, on_write, on_flush);
    png_set_compression_level(w->png, compression);
    png_set_IHDR(w->png, w->info, im->width, im->height, 8,
                 im->channels == 1 ? PNG_COLOR_TYPE_GRAY : PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE,
                 PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
    png_write_info(w->png, w->info);
    const size_t line = (size_t)im->width * (size_t)im->channels;
    for (uint32_t y = 0; y < im->height; y++)
        png_write_row(w->png, im->data + y * line);
    png_write_end(w->png, NULL);
    return 0;
}

int image_encode_png(struct blob **out, const struct image *im, int compression, struct err *e)
{
    invariant(im->channels == 1 || im->channels == 3);
    invariant(compression >= 0 && compression <= 9);
    struct writer w = {.e = e};
    struct blob *blob = NULL;
    w.png = png_create_write_struct(PNG_LIBPNG_VER_STRING, &w, on_write_error, on_warning);
    if (!w.png)
        return fail(e, FAIL_NO_MEMORY, "out of memory while encoding a PNG");
    int rc = write_png(&w, im, compression);
    if (rc == 0 && !(blob = blob_copy(w.bytes, w.size)))
        rc = fail(e, FAIL_NO_MEMORY, "out of memory for a PNG of %zu bytes", w.size);
    if (rc == 0)
        *out = blob;
    png_destroy_write_struct(&w.png, &w.info);
    free(w.bytes);
    return rc;
}
