/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* The directory side of segment.c, private to it and its tests: which files are segments of ours,
 * what their records say, which are in use, and their removal. See segment.h for the rules. */
#include "file/digest.h"
#include "file/segment.h"

#include <sys/types.h>

enum {
    PLACE_NAME_BYTES = 64,
    PLACE_BOOT_BYTES = 40,
    PLACE_RECORD_BYTES = 4096 /* what a record takes in the file */
};

/* A directory of segments, and whose we are, for the time of one call. */
struct place {
    const char *path, *build;
    int directory;
    uid_t owner;
    char prefix[24];
    char boot[PLACE_BOOT_BYTES];
};

/* The end of a segment's file. Two records are equal in all bytes or not at all. */
struct place_record {
    char magic[8];
    uint64_t data_bytes;
    char boot[PLACE_BOOT_BYTES];
    char build[SEGMENT_BUILD_MAX];
    char key[SEGMENT_KEY_MAX];
    char check[DIGEST_HEX]; /* of all that is before it */
    char zero[7];
};

/* Where in the file the record of so many bytes of data stands. */
static inline uint64_t place_record_at(uint64_t data_bytes)
{
    return (data_bytes + PLACE_RECORD_BYTES - 1) / PLACE_RECORD_BYTES * PLACE_RECORD_BYTES;
}

/* 0, or -1 with errno. */
int place_open(struct place *p, const struct segment_options *o);
void place_close(struct place *p);

/* What must stand in the file of c, and its names. */
void place_record(const struct place *p, const struct segment_content *c, struct place_record *r);
void place_names(const struct place *p, const struct place_record *r, char name[PLACE_NAME_BYTES],
                 char temporary[PLACE_NAME_BYTES]);

/* Opens for reading; links are not followed and nothing waits. -1 with errno. */
int place_find(const struct place *p, const char *name);
/* Whether fd is what now has that name. */
bool place_has(const struct place *p, const char *name, int fd);
/* The record of a regular file of our own with the right mode and length. */
bool place_read(const struct place *p, int fd, struct place_record *r);

enum place_answer { PLACE_GONE, PLACE_IN_USE, PLACE_REFUSED };

/* Removes what has that name unless it is in use. REFUSED: not ours, or it cannot be removed. */
enum place_answer place_clear(const struct place *p, const char *name);
/* Removes what nobody could attach, and what was last used at `before_ns` (since the epoch) or
 * earlier; counts into *census. 0, or -1 with errno. */
int place_sweep(const struct place *p, int64_t before_ns, struct segment_census *census);

/* What all our files take, and which unused one was used longest ago ("" for none). */
struct place_survey {
    uint64_t bytes, in_use_bytes;
    int64_t oldest_ns;
    char oldest[PLACE_NAME_BYTES];
};

/* 0, or -1 with errno. */
int place_survey(const struct place *p, struct place_survey *v);
/* False when nothing unused was left to remove. */
bool place_drop_oldest(const struct place *p, const struct place_survey *v);
