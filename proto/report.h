/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The report of an evaluation as one page: everything it shows is in the JSON object that
 * server/evaluation.c makes (docs/evaluation.md) and in the pictures. The page is complete in itself
 * (no script, style, font or image from elsewhere), light and dark, and fit for print.
 */
#include "base/mem.h"
#include "file/json.h"

/* What the entry of the same number in the report's "pictures" tells about. */
struct report_picture {
    struct blob *png;
    int width, height; /* pixels */
};

/* The page as malloc'd text, which the caller frees. Members of the report that are missing or of
 * another type are left out. Errors: NO_MEMORY. */
int report_html(char **out, const json_t *report, const struct report_picture *pictures,
                int n_pictures, struct err *e);
