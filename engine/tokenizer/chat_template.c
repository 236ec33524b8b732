/* Recognising a family and rendering messages with it. The families are in chat_families.c. See
 * chat_template.h. */
#include "engine/tokenizer/chat_template.h"

#include "engine/base/mem.h"
#include "engine/tokenizer/chat_families.h"
#include "engine/tokenizer/tokenizer_internal.h"

#include <string.h>

#define THOUGHTS_END "</think>"

static bool has_marks(const struct chat_template *family, const char *jinja)
{
    for (size_t i = 0; i < CHAT_MAX_MARKS && family->marks[i]; i++)
        if (!strstr(jinja, family->marks[i]))
            return false;
    for (size_t i = 0; i < CHAT_MAX_MARKS && family->absent[i]; i++)
        if (strstr(jinja, family->absent[i]))
            return false;
    return family->marks[0] != NULL;
}

int chat_template_find(const char *name, const char *jinja,
                       const struct chat_template **ret_template, struct error *err)
{
    for (size_t i = 0; i < n_chat_families; i++) {
        const struct chat_template *family = &chat_families[i];
        if (name ? strcmp(name, family->name) == 0 : jinja && has_marks(family, jinja)) {
            *ret_template = family;
            return 0;
        }
    }
    if (name)
        return error_set(err, ERROR_UNSUPPORTED,
                         "chat template %.40s is not known; --chat-template NAME with one of: %s",
                         name, chat_family_names);
    return error_set(err, ERROR_UNSUPPORTED,
                     "tokenizer.chat_template: %s; choose one with --chat-template NAME: %s",
                     jinja ? "not one of the families known here" : "the model has none",
                     chat_family_names);
}

const char *chat_template_name(const struct chat_template *tmpl)
{
    return tmpl->name;
}

const char *chat_template_names(void)
{
    return chat_family_names;
}

struct renderer {
    const struct chat_template *family;
    const struct chat_message *messages;
    size_t n_messages;
    size_t last_user; /* n_messages if there is none */
    struct chat_prompt prompt;
    bool failed; /* a span could not be kept */
};

/* Neighbours of the same kind are one span: a control token may be put together from several pieces
 * of a template. */
static void add(struct renderer *r, const char *text, size_t len, bool special)
{
    struct chat_prompt *p = &r->prompt;
    struct chat_span *last = p->n_spans ? &p->spans[p->n_spans - 1] : NULL;

    if (len == 0)
        return;
    if (last && last->special == special) {
        last->len += len;
    } else {
        if (!p->spans || p->n_spans == p->cap_spans) {
            size_t cap = p->cap_spans ? 2 * p->cap_spans : 16;
            struct chat_span *spans = mem_realloc(p->spans, cap, sizeof(*spans));
            if (!spans) {
                r->failed = true;
                return;
            }
            p->spans = spans;
            p->cap_spans = cap;
        }
        p->spans[p->n_spans++] =
            (struct chat_span){.start = p->text.len, .len = len, .special = special};
    }
    buf_append(&p->text, text, len);
}

static void add_template(struct renderer *r, const char *text)
{
    add(r, text, strlen(text), true);
}

static bool is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static void drop_thoughts(const char **text, size_t *len)
{
    const size_t n = sizeof(THOUGHTS_END) - 1;
    const char *found;

    while ((found = memmem(*text, *len, THOUGHTS_END, n))) {
        *len -= (size_t)(found + n - *text);
        *text = found + n;
        while (*len && **text == '\n') {
            (*text)++;
            (*len)--;
        }
    }
}

static void add_content(struct renderer *r, enum chat_role role, const char *text, size_t len)
{
    if (role == CHAT_ASSISTANT && r->family->drops_thoughts)
        drop_thoughts(&text, &len);
    if (r->family->trims || (role == CHAT_ASSISTANT && r->family->trims_answers)) {
        while (len && is_space(text[len - 1]))
            len--;
        while (len && is_space(*text)) {
            text++;
            len--;
        }
    }
    add(r, text, len, false);
}

/* CHAT_N_ROLES: not a role. */
static enum chat_role role_of(const struct chat_message *message)
{
    static const struct {
        const char *name;
        enum chat_role role;
    } names[] = {{"system", CHAT_SYSTEM},
                 {"developer", CHAT_SYSTEM},
                 {"user", CHAT_USER},
                 {"assistant", CHAT_ASSISTANT},
                 {"tool", CHAT_TOOL}};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (strcmp(message->role, names[i].name) == 0)
            return names[i].role;
    return CHAT_N_ROLES;
}

static size_t find_last_user(const struct chat_message *messages, size_t n_messages)
{
    for (size_t i = n_messages; i > 0; i--)
        if (role_of(&messages[i - 1]) == CHAT_USER)
            return i - 1;
    return n_messages;
}

static int check_messages(const struct renderer *r, struct error *err)
{
    const struct chat_template *family = r->family;

    if (r->n_messages == 0)
        return error_set(err, ERROR_INVALID, "messages: at least one expected");
    for (size_t i = 0; i < r->n_messages; i++) {
        enum chat_role role = role_of(&r->messages[i]);
        if (role == CHAT_N_ROLES)
            return error_set(err, ERROR_INVALID,
                             "messages[%zu].role: system, developer, user, assistant or tool "
                             "expected, found \"%.40s\"",
                             i, r->messages[i].role);
        if (!family->turns[role].open)
            return error_set(err, ERROR_INVALID,
                             "messages[%zu].role: the model's chat template (%s) has no place for "
                             "\"%s\"",
                             i, family->name, r->messages[i].role);
        if (role == CHAT_SYSTEM && family->system_place != CHAT_SYSTEM_OWN_TURN &&
            (r->last_user == r->n_messages || i > r->last_user))
            return error_set(err, ERROR_INVALID,
                             "messages[%zu].role: the model's chat template (%s) puts \"%s\" into "
                             "a user message after it: there is none",
                             i, family->name, r->messages[i].role);
    }
    return 0;
}

/* System texts that belong into the user message i: those since the user message before it, or all
 * of them in the last one. */
static void add_carried_system(struct renderer *r, size_t i)
{
    const struct chat_turn *turn = &r->family->turns[CHAT_SYSTEM];
    bool in_last = r->family->system_place == CHAT_SYSTEM_IN_LAST_USER;
    size_t first = in_last ? 0 : i;

    if (r->family->system_place == CHAT_SYSTEM_OWN_TURN || (in_last && i != r->last_user))
        return;
    while (first > 0 && role_of(&r->messages[first - 1]) != CHAT_USER)
        first--;
    for (size_t s = first; s < i; s++) {
        const struct chat_message *m = &r->messages[s];
        if (role_of(m) != CHAT_SYSTEM)
            continue;
        add_template(r, turn->open);
        add_content(r, CHAT_SYSTEM, m->content, m->content_len);
        add_template(r, turn->close);
    }
}

static bool has_role(const struct renderer *r, size_t i, enum chat_role role)
{
    return i < r->n_messages && role_of(&r->messages[i]) == role;
}

static void add_message(struct renderer *r, size_t i)
{
    const struct chat_message *m = &r->messages[i];
    enum chat_role role = role_of(m);
    const struct chat_turn *turn = &r->family->turns[role];

    if (role == CHAT_SYSTEM && r->family->system_place != CHAT_SYSTEM_OWN_TURN)
        return;
    if (!turn->join || i == 0 || !has_role(r, i - 1, role))
        add_template(r, turn->open);
    if (role == CHAT_USER)
        add_carried_system(r, i);
    add_content(r, role, m->content, m->content_len);
    add_template(r, turn->join && has_role(r, i + 1, role) ? turn->join : turn->close);
}

int chat_template_render(const struct chat_template *tmpl, const struct chat_message *messages,
                         size_t n_messages, bool add_generation_prompt,
                         struct chat_prompt *ret_prompt, struct error *err)
{
    struct renderer r = {.family = tmpl,
                         .messages = messages,
                         .n_messages = n_messages,
                         .last_user = find_last_user(messages, n_messages)};
    int rc = check_messages(&r, err);
    if (rc)
        return rc;

    if (tmpl->default_system && !has_role(&r, 0, CHAT_SYSTEM)) {
        add_template(&r, tmpl->turns[CHAT_SYSTEM].open);
        add_template(&r, tmpl->default_system);
        add_template(&r, tmpl->turns[CHAT_SYSTEM].close);
    }
    for (size_t i = 0; i < n_messages; i++)
        add_message(&r, i);
    if (add_generation_prompt)
        add_template(&r, tmpl->generation);
    if (r.failed || r.prompt.text.failed) {
        chat_prompt_free(&r.prompt);
        return error_memory(err, "chat prompt", r.prompt.text.len);
    }
    *ret_prompt = r.prompt;
    return 0;
}

void chat_prompt_free(struct chat_prompt *prompt)
{
    buf_free(&prompt->text);
    mem_free(prompt->spans);
    *prompt = (struct chat_prompt){0};
}

int chat_prompt_encode(const struct chat_prompt *prompt, const struct tokenizer *tokenizer,
                       struct token_list *list, struct error *err)
{
    const struct vocab *v = tokenizer_vocab(tokenizer);
    struct token_list ids = {0};
    int rc = tokenizer_encode_spans(tokenizer, prompt->text.data, prompt->text.len, prompt->spans,
                                    prompt->n_spans, &ids, err);

    if (rc == 0 && v->add_bos && v->bos >= 0 && (ids.n == 0 || ids.ids[0] != v->bos))
        rc = token_list_append(list, &v->bos, 1, err);
    if (rc == 0)
        rc = token_list_append(list, ids.ids, ids.n, err);
    token_list_free(&ids);
    return rc;
}
