/* SPDX-License-Identifier: Apache-2.0 */
/* Any body, under a boundary that its first byte chooses, or one taken from it: multipart_parse
 * refuses it with a sentence, or gives parts that lie in the body one after the other, without a
 * boundary line in them. */
#include "file/clip.h"
#include "proto/multipart.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { MOST = 16 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_part(const struct multipart_part *p, const uint8_t *from, const uint8_t *end)
{
    invariant(p->data >= from && p->data <= end && p->size <= (size_t)(end - p->data));
    invariant(memchr(p->name, '\0', sizeof p->name));
    invariant(memchr(p->filename, '\0', sizeof p->filename));
    invariant(memchr(p->content_type, '\0', sizeof p->content_type));
    invariant(!strpbrk(p->name, "\r\n") && !strpbrk(p->filename, "\r\n"));
    invariant(p->has_filename || !p->filename[0]);
}

static void try(const char *type, const uint8_t *body, size_t size, const char *delimiter)
{
    struct multipart_part parts[MOST];
    struct err e = {0};
    int n = -7;
    const int rc = multipart_parse(type, body, size, parts, MOST, &n, &e);
    if (rc) {
        invariant(rc == -(int)e.code && n == -7 && e.text[0] && clip_is_utf8(e.text));
        invariant(e.has_limit == (e.code == FAIL_OUT_OF_RANGE));
        return;
    }
    invariant(n >= 0 && n <= MOST);
    const uint8_t *from = body;
    for (int i = 0; i < n; i++) {
        check_part(&parts[i], from, body + size);
        invariant(!delimiter ||
                  !memmem(parts[i].data, parts[i].size, delimiter, strlen(delimiter)));
        from = parts[i].data + parts[i].size;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    if (data[0] % 2) {
        try("multipart/form-data; boundary=xyz", data + 1, size - 1, "\r\n--xyz");
        return 0;
    }
    char type[128];
    const size_t taken = size - 1 < sizeof type / 2 ? size - 1 : sizeof type / 2;
    snprintf(type, sizeof type, "multipart/form-data;%.*s", (int)taken, (const char *)data + 1);
    try(type, data + 1 + taken, size - 1 - taken, NULL);
    return 0;
}
