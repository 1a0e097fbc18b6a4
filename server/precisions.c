/* SPDX-License-Identifier: Apache-2.0 */
#include "server/precisions.h"

#include "base/logger.h"
#include "ebm/description.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

/* Texts of a length, inside of another. */
struct piece {
    const char *at;
    size_t length;
};

/* "bfloat16" (name.at is NULL) or "sprites=bfloat16". */
struct part {
    struct piece name, word;
};

/* The part that begins at or behind *text, which moves to its end; false = there is none. */
static bool next_part(const char **text, struct part *out)
{
    static const char separators[] = ", \t";
    const char *from = *text + strspn(*text, separators);
    const size_t length = strcspn(from, separators);
    const char *equals = memchr(from, '=', length);
    *text = from + length;
    *out = (struct part){.word = {from, length}};
    if (equals) {
        const size_t name = (size_t)(equals - from);
        *out = (struct part){.name = {from, name}, .word = {equals + 1, length - name - 1}};
    }
    return length > 0;
}

static bool is(const struct piece *p, const char *text)
{
    return p->length == strlen(text) && memcmp(p->at, text, p->length) == 0;
}

static int word_of(const struct piece *p, enum precision *out)
{
    for (int i = 0; i < PRECISIONS; i++) {
        if (is(p, precision_names[i])) {
            *out = (enum precision)i;
            return 0;
        }
    }
    return -1;
}

static const char *quote(const struct piece *p, char out[96])
{
    char text[40];
    snprintf(text, sizeof text, "%.*s", (int)p->length, p->at);
    return logger_quote(text, out, 96);
}

static bool same_name(const struct part *a, const struct part *b)
{
    if (!a->name.at || !b->name.at)
        return a->name.at == b->name.at;
    return a->name.length == b->name.length && memcmp(a->name.at, b->name.at, a->name.length) == 0;
}

/* That no part of the text before p is about the same models. */
static int check_first(const char *text, const struct part *p, struct err *e)
{
    struct part before;
    char quoted[96];
    while (next_part(&text, &before) && before.word.at != p->word.at) {
        if (!same_name(&before, p))
            continue;
        if (!p->name.at)
            return fail(e, FAIL_BAD_SETTING,
                        "%s is a second word for all models; write MODEL=WORD for one of them",
                        quote(&p->word, quoted));
        return fail(e, FAIL_BAD_SETTING, "the model %s has two precisions",
                    quote(&p->name, quoted));
    }
    return 0;
}

static int check_part(const struct part *p, struct err *e)
{
    enum precision precision;
    char quoted[96];
    if (p->name.at && p->name.length == 0)
        return fail(e, FAIL_BAD_SETTING, "%s has an empty model name before it",
                    quote(&p->word, quoted));
    if (p->name.length >= DESCRIPTION_NAME_MAX)
        return fail(e, FAIL_BAD_SETTING, "a model's name has at most %d bytes, not %zu: %s...",
                    DESCRIPTION_NAME_MAX - 1, p->name.length, quote(&p->name, quoted));
    if (word_of(&p->word, &precision) != 0)
        return fail(e, FAIL_BAD_SETTING, "%s is not " PRECISIONS_WORDS, quote(&p->word, quoted));
    return 0;
}

int precisions_word(const char *word, enum precision *out)
{
    return word_of(&(struct piece){word, strlen(word)}, out);
}

int precisions_check(const char *text, struct err *e)
{
    struct part p;
    if (strlen(text) >= PRECISIONS_TEXT_MAX)
        return fail(e, FAIL_BAD_SETTING, "more than %d bytes", PRECISIONS_TEXT_MAX - 1);
    for (const char *at = text; next_part(&at, &p);) {
        int rc = check_part(&p, e);
        if (rc == 0)
            rc = check_first(text, &p, e);
        if (rc != 0)
            return rc;
    }
    return 0;
}

enum precision precisions_of(const char *text, const char *model)
{
    enum precision of_all = PRECISION_FLOAT, own;
    struct part p;
    while (next_part(&text, &p)) {
        if (!p.name.at)
            word_of(&p.word, &of_all);
        else if (model && is(&p.name, model) && word_of(&p.word, &own) == 0)
            return own;
    }
    return of_all;
}
