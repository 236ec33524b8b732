/* overfill: finds the subcommand and runs it. Each one is in the file of its name. */
#include "cli/cli.h"

#include <stdio.h>
#include <string.h>

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *summary;
} COMMANDS[] = {
    {"serve", cli_serve, "answer OpenAI API requests over HTTP"},
    {"generate", cli_generate, "answer one prompt on the terminal"},
#ifdef OVERFILL_HAVE_PRUNE
    {"prune", cli_prune, "make a model's pruned twin"},
#endif
#ifdef OVERFILL_HAVE_FRONTIER
    {"frontier", cli_frontier, "find the best twin for so many bytes a token"},
#endif
#ifdef OVERFILL_HAVE_EVAL
    {"eval", cli_eval, "measure the quality of a model and its twin"},
#endif
#ifdef OVERFILL_HAVE_BENCH
    {"bench", cli_bench, "measure this machine's peaks and our share of them"},
#endif
#ifdef OVERFILL_HAVE_INSPECT
    {"inspect", cli_inspect, "show what a model file holds"},
#endif
#ifdef OVERFILL_HAVE_TOKENIZE
    {"tokenize", cli_tokenize, "turn texts and chats into token ids, for training"},
#endif
};

#define N_COMMANDS (sizeof(COMMANDS) / sizeof(COMMANDS[0]))

static void print_help(FILE *out)
{
    fputs("overfill " OVERFILL_VERSION ": the full model reads the prompt, its pruned twin writes "
          "the answer\n\nusage: overfill COMMAND [options]\n\n",
          out);
    for (size_t i = 0; i < N_COMMANDS; i++)
        fprintf(out, "  %-10s %s\n", COMMANDS[i].name, COMMANDS[i].summary);
    fputs("\n`overfill COMMAND --help` lists its options; --version prints the version.\n", out);
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        print_help(stderr);
        return CLI_WRONG_CALL;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        strcmp(argv[1], "help") == 0) {
        print_help(stdout);
        return CLI_DONE;
    }
    if (strcmp(argv[1], "--version") == 0) {
        puts("overfill " OVERFILL_VERSION);
        return CLI_DONE;
    }
    for (size_t i = 0; i < N_COMMANDS; i++)
        if (strcmp(argv[1], COMMANDS[i].name) == 0)
            return COMMANDS[i].run(argc - 1, argv + 1);
    fprintf(stderr, "overfill: %s: unknown command; `overfill --help` lists them\n", argv[1]);
    return CLI_WRONG_CALL;
}
