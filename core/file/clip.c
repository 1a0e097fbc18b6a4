/* SPDX-License-Identifier: Apache-2.0 */
#include "file/clip.h"

#include <string.h>

/* Length of the well-formed sequence at s[n], n > 0 (RFC 3629, section 4); 0 when there is none. */
static size_t sequence(const unsigned char *s, size_t n)
{
    const unsigned char c = s[0];
    if (c < 0x80)
        return 1;
    if (c < 0xc2 || c > 0xf4)
        return 0;
    const size_t length = c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
    if (n < length)
        return 0;
    for (size_t i = 1; i < length; i++) {
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    }
    const bool overlong = (c == 0xe0 && s[1] < 0xa0) || (c == 0xf0 && s[1] < 0x90);
    const bool surrogate = c == 0xed && s[1] > 0x9f;
    const bool beyond = c == 0xf4 && s[1] > 0x8f;
    return overlong || surrogate || beyond ? 0 : length;
}

static bool is_control(const unsigned char *s, size_t length)
{
    return (length == 1 && (s[0] < 0x20 || s[0] == 0x7f)) ||
           (length == 2 && s[0] == 0xc2 && s[1] < 0xa0);
}

/* Copies s[n] after the first `used` bytes of c, at most `limit` bytes of it. */
static void copy(struct clip *c, size_t used, const unsigned char *s, size_t n, size_t limit)
{
    const size_t end = used + limit;
    while (n) {
        const size_t length = sequence(s, n);
        const bool shown = length && !is_control(s, length);
        const size_t step = length ? length : 1, width = shown ? length : 1;
        if (used + width > end) {
            memcpy(c->text + used, "...", 3);
            used += 3;
            break;
        }
        if (shown)
            memcpy(c->text + used, s, length);
        else
            c->text[used] = '?';
        used += width;
        s += step;
        n -= step;
    }
    c->text[used] = '\0';
}

struct clip clip_bytes(const char *text, size_t size)
{
    struct clip c;
    copy(&c, 0, (const unsigned char *)text, size, CLIP_TEXT);
    return c;
}

struct clip clip_text(const char *text)
{
    return clip_bytes(text, strlen(text));
}

struct clip clip_path(const char *path)
{
    const unsigned char *s = (const unsigned char *)path;
    size_t n = strlen(path), used = 0;
    struct clip c;
    if (n > CLIP_PATH) {
        s += n - CLIP_PATH;
        n = CLIP_PATH;
        memcpy(c.text, "...", 3);
        used = 3;
        while (n && (*s & 0xc0) == 0x80) {
            s++;
            n--;
        }
    }
    copy(&c, used, s, n, CLIP_PATH);
    return c;
}

void clip_end(char *text)
{
    unsigned char *s = (unsigned char *)text;
    const size_t n = strlen(text);
    for (size_t back = 1; back <= n && back < 4; back++) {
        unsigned char *at = s + n - back;
        if ((*at & 0xc0) == 0x80)
            continue;
        if (!sequence(at, back))
            *at = '\0';
        return;
    }
}

bool clip_is_utf8(const char *text)
{
    const unsigned char *s = (const unsigned char *)text;
    for (size_t n = strlen(text); n;) {
        const size_t length = sequence(s, n);
        if (!length)
            return false;
        s += length;
        n -= length;
    }
    return true;
}
