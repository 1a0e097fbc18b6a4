/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Errors as HTTP: the one table from error codes to status, title and help, and RFC 9457
 * problem+json bodies. Used by the route layer only. */
#include "base/fail.h"
#include "base/mem.h"

#define PROBLEM_CONTENT_TYPE "application/problem+json"

int problem_status(enum fail_code code);
/* A few words, the same for every occurrence. */
const char *problem_title(enum fail_code code);
/* What causes it and what to do: the page /problems/{code}. */
const char *problem_help(enum fail_code code);
/* The code called `name`, or FAIL_NONE. */
enum fail_code problem_find(const char *name);
/* {type,title,status,code,detail,instance,request_id,errors:[…]}; NULL when out of memory. */
struct blob *problem_body(const struct err *e, const char *instance, const char *request_id);
/* What is said then, always the same; one reference. */
struct blob *problem_without_memory(void);
