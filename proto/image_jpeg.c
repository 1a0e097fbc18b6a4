/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/image_codec.h"

/* jpeglib.h uses FILE without declaring it, so stdio.h goes before it. */
/* clang-format off */
#include <stdio.h>
#include <jpeglib.h>
#include <jerror.h>
/* clang-format on */

#include <limits.h>
#include <setjmp.h>
#include <string.h>

/*
 * Damage policy: a JPEG decoder invents pixels where data is missing, so every warning that means
 * invented pixels (early end, bad code, lost synchronisation, wrong progression) is an error. The
 * warnings in `harmless` mean no pixel is in doubt.
 * CMYK is refused: without its colour profile the conversion is a guess.
 */
enum {
    SCANS_MAX = 100, /* a scan of a few bytes costs a walk over the whole image */
    /* What libjpeg allocates beside coefficients: tables, and rows for a band or two of blocks,
     * 32 lines of 3 components at the worst sampling factors, with context and output rows. */
    TABLE_BYTES = 96 << 10,
    ROW_BYTES_A_COLUMN = 192
};

static const int harmless[] = {JWRN_EXTRANEOUS_DATA, JWRN_ADOBE_XFORM, JWRN_JFIF_MAJOR,
                               JWRN_BOGUS_ICC};

/* One decode. libjpeg may longjmp out of any call, so whatever must outlive that is in here and not
 * in a local variable of the function that called setjmp. */
struct reader {
    struct jpeg_decompress_struct jpeg;
    struct jpeg_error_mgr errors;
    struct jpeg_progress_mgr progress;
    jmp_buf escape;
    struct image_input *in;
    struct image image;
    int rc;
    struct err *e;
};

static int ends_early(const struct reader *r)
{
    return fail(r->e, FAIL_BAD_IMAGE, "the JPEG ends early: %zu bytes without the end of the image",
                r->in->size);
}

static int reading_error(struct reader *r)
{
    char message[JMSG_LENGTH_MAX];
    int rc;
    switch (r->errors.msg_code) {
    case JERR_OUT_OF_MEMORY:
        return fail(r->e, FAIL_NO_MEMORY, "out of memory while decoding a JPEG");
    case JERR_NO_BACKING_STORE:
        return image_memory_error(r->in, r->e);
    case JERR_IMAGE_TOO_BIG:
        rc = fail(r->e, FAIL_IMAGE_TOO_LARGE, "a side of the JPEG is over %ld pixels",
                  JPEG_MAX_DIMENSION);
        fail_limit(r->e, JPEG_MAX_DIMENSION);
        return rc;
    case JERR_INPUT_EOF:
    case JWRN_JPEG_EOF:
        return ends_early(r);
    default:
        r->errors.format_message((j_common_ptr)&r->jpeg, message);
        return fail(r->e, FAIL_BAD_IMAGE, "the JPEG cannot be decoded: %s", message);
    }
}

_Noreturn static void on_error(j_common_ptr jpeg)
{
    struct reader *const r = jpeg->client_data;
    r->rc = reading_error(r);
    longjmp(r->escape, 1);
}

static void on_message(j_common_ptr jpeg, int level)
{
    if (level >= 0)
        return;
    for (size_t i = 0; i < sizeof harmless / sizeof *harmless; i++)
        if (jpeg->err->msg_code == harmless[i])
            return;
    on_error(jpeg);
}

static void on_output(j_common_ptr jpeg)
{
    (void)jpeg;
}

static void on_progress(j_common_ptr jpeg)
{
    struct reader *const r = jpeg->client_data;
    if (r->jpeg.input_scan_number <= SCANS_MAX)
        return;
    r->rc = fail(r->e, FAIL_IMAGE_TOO_LARGE, "the JPEG has more than %d scans", SCANS_MAX);
    fail_limit(r->e, SCANS_MAX);
    longjmp(r->escape, 1);
}

/* APP1 is read where it lies: the source is the whole file in memory, so nothing is copied. */
static boolean on_app1(j_decompress_ptr jpeg)
{
    struct reader *const r = jpeg->client_data;
    struct jpeg_source_mgr *const src = jpeg->src;
    const unsigned char *const p = src->next_input_byte;
    const size_t length = src->bytes_in_buffer < 2 ? 0 : (size_t)p[0] << 8 | p[1];
    if (src->bytes_in_buffer < 2 || src->bytes_in_buffer < length)
        ERREXIT(jpeg, JERR_INPUT_EOF);
    if (length < 2)
        ERREXIT(jpeg, JERR_BAD_LENGTH);
    if (length > 8 && memcmp(p + 2, "Exif\0\0", 6) == 0)
        r->in->orientation = image_exif_orientation(p + 8, length - 8);
    src->next_input_byte += length;
    src->bytes_in_buffer -= length;
    return TRUE;
}

/* Chooses what libjpeg hands out. Grey is made from RGB by our own rule, as for a PNG. */
static int choose_colours(struct reader *r)
{
    switch (r->jpeg.jpeg_color_space) {
    case JCS_GRAYSCALE:
        r->jpeg.out_color_space = r->in->channels == 1 ? JCS_GRAYSCALE : JCS_RGB;
        return 0;
    case JCS_YCbCr:
    case JCS_RGB:
        r->jpeg.out_color_space = JCS_RGB;
        return 0;
    case JCS_CMYK:
    case JCS_YCCK:
        return fail(r->e, FAIL_BAD_IMAGE,
                    "the JPEG is in CMYK colours (made for print); convert it to RGB first");
    default:
        return fail(r->e, FAIL_BAD_IMAGE,
                    "the JPEG has %d colour components of an unknown kind; only grey and RGB "
                    "are read",
                    r->jpeg.num_components);
    }
}

/* What libjpeg will allocate, from the header: a file of several scans is held as coefficients. */
static size_t working_bytes(j_decompress_ptr jpeg)
{
    size_t blocks = 0;
    for (int i = 0; i < jpeg->num_components && jpeg_has_multiple_scans(jpeg); i++) {
        const jpeg_component_info *const c = &jpeg->comp_info[i];
        blocks += ((size_t)c->width_in_blocks + MAX_SAMP_FACTOR) *
                  ((size_t)c->height_in_blocks + MAX_SAMP_FACTOR);
    }
    return TABLE_BYTES + (size_t)jpeg->image_width * ROW_BYTES_A_COLUMN + blocks * sizeof(JBLOCK);
}

/* Everything that can be refused by the header, before memory of the image's size is asked for. */
static int admit(struct reader *r)
{
    struct image_input *const in = r->in;
    int rc = image_admit(in, r->jpeg.image_width, r->jpeg.image_height, r->e);
    if (rc == 0)
        rc = choose_colours(r);
    if (rc != 0)
        return rc;
    const size_t left = in->left_bytes;
    rc = image_spend(in, working_bytes(&r->jpeg), r->e);
    if (rc != 0)
        return rc;
    r->jpeg.mem->max_memory_to_use = left > (size_t)LONG_MAX ? LONG_MAX : (long)left;
    return image_init(&r->image, r->jpeg.image_width, r->jpeg.image_height, in->channels, r->e);
}

static void read_rows(struct reader *r)
{
    struct image *const im = &r->image;
    const size_t line = (size_t)im->width * (size_t)im->channels;
    const int direct = r->jpeg.output_components == im->channels;
    JSAMPROW row = NULL;
    if (!direct)
        row = r->jpeg.mem->alloc_large((j_common_ptr)&r->jpeg, JPOOL_IMAGE, (size_t)im->width * 3);
    while (r->jpeg.output_scanline < r->jpeg.output_height) {
        unsigned char *const to = im->data + r->jpeg.output_scanline * line;
        jpeg_read_scanlines(&r->jpeg, direct ? (JSAMPROW[]){to} : &row, 1);
        for (uint32_t x = 0; x < im->width && !direct; x++)
            to[x] = image_grey(row[3 * x], row[3 * x + 1], row[3 * x + 2]);
    }
}

static int read_jpeg(struct reader *r)
{
    if (setjmp(r->escape))
        return r->rc;
    jpeg_create_decompress(&r->jpeg);
    r->jpeg.progress = &r->progress;
    jpeg_mem_src(&r->jpeg, r->in->bytes, r->in->size);
    jpeg_set_marker_processor(&r->jpeg, JPEG_APP0 + 1, on_app1);
    jpeg_read_header(&r->jpeg, TRUE);
    const int rc = admit(r);
    if (rc != 0)
        return rc;
    jpeg_start_decompress(&r->jpeg);
    read_rows(r);
    jpeg_finish_decompress(&r->jpeg);
    return 0;
}

int image_jpeg_decode(struct image *out, struct image_input *in, struct err *e)
{
    struct reader r = {.in = in, .e = e};
    r.jpeg.err = jpeg_std_error(&r.errors);
    r.jpeg.client_data = &r;
    r.errors.error_exit = on_error;
    r.errors.emit_message = on_message;
    r.errors.output_message = on_output;
    r.progress.progress_monitor = on_progress;
    const int rc = read_jpeg(&r);
    jpeg_destroy_decompress(&r.jpeg);
    if (rc == 0)
        *out = r.image;
    else
        image_fini(&r.image);
    return rc;
}
