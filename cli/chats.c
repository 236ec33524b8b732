/* Many questions through the engine. See chats.h. */
#include "cli/chats.h"

#include "cli/cli.h"
#include "engine/base/mem.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

struct chat {
    char *question;
    struct buf answer;
    bool done;
};

struct chat_list {
    struct chat *items;
    size_t n, cap;
    size_t n_sent, n_done, n_printed;
};

static void list_free(struct chat_list *list)
{
    for (size_t i = 0; i < list->n; i++) {
        mem_free(list->items[i].question);
        buf_free(&list->items[i].answer);
    }
    mem_free(list->items);
}

static int add_question(struct chat_list *list, const char *line, struct error *err)
{
    if (list->n == list->cap) {
        size_t cap = list->cap ? 2 * list->cap : 64;
        struct chat *items = mem_realloc(list->items, cap, sizeof(*items));
        if (!items)
            return error_memory(err, "questions", cap * sizeof(*items));
        list->items = items;
        list->cap = cap;
    }
    char *question = mem_strdup(line);
    if (!question)
        return error_memory(err, "questions", strlen(line));
    list->items[list->n++] = (struct chat){.question = question};
    return 0;
}

static int read_questions(const char *path, struct chat_list *list, struct error *err)
{
    char line[4096];
    int rc = 0;
    FILE *f = fopen(path, "re");
    if (!f)
        return error_set(err, ERROR_IO, "--questions: %s: %s", path, strerror(errno));
    while (rc == 0 && fgets(line, sizeof(line), f)) {
        line[strcspn(line, "\r\n")] = 0;
        if (*line)
            rc = add_question(list, line, err);
    }
    if (rc == 0 && ferror(f))
        rc = error_set(err, ERROR_IO, "--questions: %s: %s", path, strerror(errno));
    fclose(f);
    if (rc == 0 && !list->n)
        rc = error_set(err, ERROR_INVALID, "--questions: %s: expected a question a line", path);
    return rc;
}

static int send_next(const struct chats *chats, struct chat_list *list, struct engine *engine,
                     struct error *err)
{
    struct chat *chat = &list->items[list->n_sent];
    struct chat_message message = {"user", chat->question, strlen(chat->question)};
    struct engine_request request = chats->request;
    uint64_t id;
    request.messages = &message;
    request.n_messages = 1;
    request.user = chat;
    request.sampling.seed += list->n_sent;
    int rc = engine_submit(engine, &request, &id, err);
    list->n_sent += rc == 0;
    return rc;
}

static int take_output(struct chat_list *list, const struct engine_output *output,
                       struct error *err)
{
    struct chat *chat = output->user;
    for (size_t i = 0; i < output->n_tokens; i++)
        if (output->tokens[i].text_len)
            buf_append(&chat->answer, output->text + output->tokens[i].text_start,
                       output->tokens[i].text_len);
    if (output->done && output->error) {
        *err = *output->error;
        return -(int)err->code;
    }
    chat->done = output->done;
    list->n_done += output->done;
    return chat->answer.failed ? error_memory(err, "answer", chat->answer.len) : 0;
}

/* All that are done, up to the first that is not. */
static int print_done(struct chat_list *list, struct error *err)
{
    for (; list->n_printed < list->n && list->items[list->n_printed].done; list->n_printed++) {
        struct chat *chat = &list->items[list->n_printed];
        _cleanup_buf_ struct buf row = {0};
        buf_append_str(&row, "{\"messages\":[{\"role\":\"user\",\"content\":");
        cli_json_string(&row, chat->question, strlen(chat->question));
        buf_append_str(&row, "},{\"role\":\"assistant\",\"content\":");
        cli_json_string(&row, chat->answer.data, chat->answer.len);
        buf_append_str(&row, "}]}\n");
        int rc = cli_print(&row, err);
        if (rc)
            return rc;
        buf_free(&chat->answer);
    }
    return 0;
}

int chats_run(const struct chats *chats, struct engine *engine, struct error *err)
{
    struct chat_list list = {0};
    int rc = read_questions(chats->path, &list, err);
    while (rc == 0 && list.n_done < list.n) {
        while (rc == 0 && list.n_sent < list.n && list.n_sent - list.n_done < CHATS_AT_ONCE)
            rc = send_next(chats, &list, engine, err);
        const struct engine_output *output = rc ? NULL : engine_wait(engine, -1);
        if (!output)
            continue;
        rc = take_output(&list, output, err);
        if (rc == 0 && output->done) {
            rc = print_done(&list, err);
            chats->progress(chats->user, "answers", (double)list.n_done / (double)list.n);
        }
    }
    list_free(&list);
    return rc;
}
