/* Points as text, and which of them can be made. See frontier.h. */
#include "engine/frontier/frontier.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WIDTH_MULTIPLE 32 /* the pruner's */

static void put_name(const struct frontier_point *p, char between, char slash,
                     char ret_name[FRONTIER_NAME_BYTES])
{
    int n = snprintf(ret_name, FRONTIER_NAME_BYTES, "%ux%u%c%s", p->hidden, p->mlp, between,
                     tensor_type_name(p->type));
    if (p->head_type != p->type)
        snprintf(ret_name + n, FRONTIER_NAME_BYTES - (size_t)n, "%c%s", slash,
                 tensor_type_name(p->head_type));
    for (char *c = ret_name; *c; c++)
        *c = (char)tolower((unsigned char)*c);
}

void frontier_point_name(const struct frontier_point *point, char ret_name[FRONTIER_NAME_BYTES])
{
    put_name(point, ':', '/', ret_name);
}

void frontier_point_file(const struct frontier_point *point, char ret_name[FRONTIER_NAME_BYTES])
{
    put_name(point, '-', '-', ret_name);
}

/* A width that ends with `end`; what is behind it, or NULL. */
static const char *parse_width(const char *text, char end, uint32_t *ret_width)
{
    char *behind;
    if (*text < '1' || *text > '9')
        return NULL;
    unsigned long width = strtoul(text, &behind, 10);
    if (*behind != end || width > INT32_MAX)
        return NULL;
    *ret_width = (uint32_t)width;
    return behind + 1;
}

static bool parse_type(const char *text, size_t len, enum tensor_type *ret_type)
{
    char name[16];
    if (len >= sizeof(name))
        return false;
    memcpy(name, text, len);
    name[len] = '\0';
    int type = tensor_type_from_name(name);
    if (type < 0 || !tensor_type_is_writable((enum tensor_type)type))
        return false;
    *ret_type = (enum tensor_type)type;
    return true;
}

bool frontier_point_parse(const char *text, struct frontier_point *ret_point)
{
    struct frontier_point p;
    const char *at = parse_width(text, 'x', &p.hidden);
    at = at ? parse_width(at, ':', &p.mlp) : NULL;
    if (!at)
        return false;
    size_t len = strcspn(at, "/");
    const char *head = at[len] ? at + len + 1 : at;
    if (!parse_type(at, len, &p.type) ||
        !parse_type(head, at[len] ? strlen(head) : len, &p.head_type))
        return false;
    *ret_point = p;
    return true;
}

bool frontier_point_equal(const struct frontier_point *a, const struct frontier_point *b)
{
    return a->hidden == b->hidden && a->mlp == b->mlp && a->type == b->type &&
           a->head_type == b->head_type;
}

static int check_width(const char *what, uint32_t width, uint32_t full, struct error *err)
{
    if (width == full || (width < full && width % WIDTH_MULTIPLE == 0))
        return 0;
    return error_set(err, ERROR_INVALID, "%s %u: %u, or a multiple of %d below it, expected", what,
                     width, full, WIDTH_MULTIPLE);
}

static int check_rows(enum tensor_type type, uint32_t n, struct error *err)
{
    enum tensor_type stored = tensor_type_for_rows(type, n);
    if (n % tensor_block_elements(stored) == 0)
        return 0;
    return error_set(err, ERROR_INVALID, "rows of %u do not fill the blocks of %u of %s", n,
                     tensor_block_elements(stored), tensor_type_name(stored));
}

int frontier_point_check(const struct frontier_point *point, const struct model_params *full,
                         struct error *err)
{
    int rc = check_width("hidden", point->hidden, full->hidden, err);
    if (rc == 0)
        rc = check_width("mlp", point->mlp, full->mlp, err);
    if (rc == 0)
        rc = check_rows(point->type, point->hidden, err);
    if (rc == 0)
        rc = check_rows(point->type, point->mlp, err);
    if (rc == 0)
        rc = check_rows(point->type, full->n_heads * full->head_dim, err);
    if (rc == 0)
        rc = check_rows(point->head_type, point->hidden, err);
    if (rc == 0)
        return 0;
    char name[FRONTIER_NAME_BYTES];
    frontier_point_name(point, name);
    return error_prefix(err, "%s", name);
}

struct model_cost frontier_point_cost(const struct frontier_point *point,
                                      const struct model_params *full)
{
    struct model_params p = *full;
    p.hidden = point->hidden;
    p.mlp = point->mlp;
    return model_cost(&p, point->type, point->head_type);
}
