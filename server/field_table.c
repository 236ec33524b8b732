/* The table of request fields. Everything that is said about a field stands in its row and nowhere
 * else: how it is checked (fields.c), what an error calls it, what /openapi.json and docs/API.md
 * say. A field that is not here is accepted and named in the log once; a field that asks for
 * something this server does not do is refused with `unsupported_parameter`, never ignored. */
#include "server/fields.h"

#include <string.h>

#define AT(member) .offset = offsetof(struct params, member)
#define RANGE(low, high) .min = (low), .max = (high)
#define UINT_MAX_TOKENS 4294967294.0

/* JSON schemas of fields with a shape of their own. */
#define SCHEMA_PART                                                                                \
    "{'type':'object','required':['type','text'],'properties':{'type':{'const':'text'},'text':{"   \
    "'type':'string'}}}"
#define SCHEMA_CONTENT                                                                             \
    "{'oneOf':[{'type':'string'},{'type':'array','minItems':1,'items':" SCHEMA_PART "}]}"
#define SCHEMA_SYSTEM "{'oneOf':[{'type':'string'},{'type':'array','items':" SCHEMA_PART "}]}"
#define SCHEMA_MESSAGES                                                                            \
    "{'type':'array','minItems':1,'maxItems':4096,'items':{'type':'object','required':['role',"    \
    "'content'],'properties':{'role':{'enum':['system','developer','user','assistant']},"          \
    "'content':" SCHEMA_CONTENT "}}}"
#define SCHEMA_MESSAGES_ANTHROPIC                                                                  \
    "{'type':'array','minItems':1,'maxItems':4096,'items':{'type':'object','required':['role',"    \
    "'content'],'properties':{'role':{'enum':['user','assistant']},'content':" SCHEMA_CONTENT      \
    "}}}"
#define SCHEMA_INPUT                                                                               \
    "{'oneOf':[{'type':'string'},{'type':'array','minItems':1,'maxItems':4096,'items':{'type':"    \
    "'object','required':['role','content'],'properties':{'type':{'const':'message'},'role':{"     \
    "'enum':['system','developer','user','assistant']},'content':{'oneOf':[{'type':'string'},{"    \
    "'type':'array','minItems':1,'items':{'type':'object','required':['type','text'],"             \
    "'properties':{'type':{'enum':['input_text','output_text','text']},'text':{'type':"            \
    "'string'}}}}]}}}}]}"
#define SCHEMA_IDS "{'type':'array','items':{'type':'integer','minimum':0}}"
#define SCHEMA_PROMPT                                                                              \
    "{'oneOf':[{'type':'string'},{'type':'array','minItems':1,'items':{'type':'integer',"          \
    "'minimum':0}},{'type':'array','minItems':1,'maxItems':1024,'items':{'oneOf':[{'type':"        \
    "'string'},{'type':'array','minItems':1,'items':{'type':'integer','minimum':0}}]}}]}"
#define SCHEMA_STOP                                                                                \
    "{'oneOf':[{'type':'string','minLength':1},{'type':'array','maxItems':4,'items':{'type':"      \
    "'string','minLength':1}}]}"
#define SCHEMA_STOP_LIST "{'type':'array','maxItems':4,'items':{'type':'string','minLength':1}}"
#define SCHEMA_BIAS                                                                                \
    "{'type':'object','maxProperties':1024,'additionalProperties':{'type':'number','minimum':"     \
    "-100,'maximum':100},'propertyNames':{'pattern':'^[0-9]{1,9}$'}}"
#define SCHEMA_SEED "{'oneOf':[{'type':'integer'},{'type':'string','pattern':'^-?[0-9]{1,19}$'}]}"
#define SCHEMA_SWITCH "{'type':['boolean','null']}"
#define SCHEMA_STREAM_OPTIONS                                                                      \
    "{'type':'object','properties':{'include_usage':" SCHEMA_SWITCH ",'continuous_usage_stats':"   \
    "" SCHEMA_SWITCH ",'include_obfuscation':" SCHEMA_SWITCH "}}"
#define SCHEMA_OVERFILL                                                                            \
    "{'type':'object','additionalProperties':false,'properties':{'decode':{'enum':['pruned',"      \
    "'refresh','verify','full']},'every':{'type':'integer','minimum':1,'maximum':256}}}"
#define SCHEMA_TYPE_TEXT                                                                           \
    "{'type':'object','required':['type'],'properties':{'type':{'const':'text'}}}"
#define SCHEMA_TEXT_FORMAT                                                                         \
    "{'type':'object','properties':{'format':" SCHEMA_TYPE_TEXT ",'verbosity':{'const':'medium'}}" \
    "}"
#define SCHEMA_MODALITIES "{'type':'array','items':{'const':'text'}}"
#define SCHEMA_INCLUDE                                                                             \
    "{'type':'array','items':{'enum':['message.output_text.logprobs',"                             \
    "'reasoning.encrypted_content']}}"
#define SCHEMA_THINKING                                                                            \
    "{'type':'object','required':['type'],'properties':{'type':{'const':'disabled'}}}"

static const struct field FIELDS[] = {
    {"model", ON_ALL, FIELD_STRING, AT(model), .required = ON_GENERATE | ON_COUNT,
     .help = "Id of the served model, as /v1/models gives it."},

    /* The prompt. */
    {"messages", ON_CHAT, FIELD_READ, .read = field_read_messages, .schema = SCHEMA_MESSAGES,
     .required = ON_CHAT, .help = "The conversation: text only. `developer` counts as `system`."},
    {"messages", ON_ANTHROPIC, FIELD_READ, .read = field_read_messages,
     .schema = SCHEMA_MESSAGES_ANTHROPIC, .required = ON_ANTHROPIC,
     .help = "The conversation: text only; the last message is the user's."},
    {"messages", ON_TOKENIZE, FIELD_READ, .read = field_read_messages, .schema = SCHEMA_MESSAGES,
     .help = "A conversation, put through the chat template; instead of a text."},
    {"input", ON_RESPONSES, FIELD_READ, .read = field_read_input, .schema = SCHEMA_INPUT,
     .required = ON_RESPONSES, .help = "A text, or the conversation so far."},
    {"instructions", ON_RESPONSES, FIELD_READ, .read = field_read_system,
     .schema = "{'type':'string'}", .help = "System text, in front of the input."},
    {"system", ON_ANTHROPIC, FIELD_READ, .read = field_read_system, .schema = SCHEMA_SYSTEM,
     .help = "System text, in front of the messages."},
    {"prompt", ON_COMPLETIONS, FIELD_READ, .read = field_read_prompt, .schema = SCHEMA_PROMPT,
     .required = ON_COMPLETIONS,
     .help = "A text, token ids, or a list of texts and lists of ids: each gives `n` choices."},
    {"prompt", ON_TOKENIZE, FIELD_READ, .read = field_read_prompt, .schema = "{'type':'string'}",
     .help = "The text, in vLLM's wording."},
    {"content", ON_TOKENIZE, FIELD_STRING, AT(content),
     .help = "The text, in llama-server's wording."},
    {"tokens", ON_DETOKENIZE, FIELD_READ, .read = field_read_tokens, .schema = SCHEMA_IDS,
     .required = ON_DETOKENIZE, .help = "Token ids."},
    {"add_special_tokens", ON_TOKENIZE, FIELD_BOOL, AT(add_special_tokens), .preset = "true",
     .help = "With `prompt`: begin (and end) tokens as the vocabulary asks."},
    {"add_special", ON_TOKENIZE, FIELD_BOOL, AT(add_special), .preset = "false",
     .help = "The same with `content`."},
    {"parse_special", ON_TOKENIZE, FIELD_BOOL, AT(parse_special), .preset = "true",
     .help = "Whether the text of a control token becomes that token."},
    {"add_generation_prompt", ON_TOKENIZE, FIELD_BOOL, AT(add_generation_prompt), .preset = "true",
     .help = "With `messages`: open the answer's turn; false is not supported."},
    {"with_pieces", ON_TOKENIZE, FIELD_BOOL, AT(with_pieces), .preset = "false",
     .help = "Each of `tokens` is `{\"id\", \"piece\"}`; bytes where the text is not UTF-8."},
    {"return_token_strs", ON_TOKENIZE, FIELD_BOOL, AT(return_token_strs), .preset = "false",
     .help = "Also each token's text, in `token_strs`."},

    /* How much, and how it is told. */
    {"stream", ON_GENERATE, FIELD_BOOL, AT(stream), .preset = "false",
     .help = "Server-sent events while the answer is written."},
    {"stream_options", ON_BOTH, FIELD_READ, .read = field_read_stream_options,
     .schema = SCHEMA_STREAM_OPTIONS,
     .help = "With `stream`: `include_usage` adds a last event with the usage, "
             "`continuous_usage_stats` the usage so far to every event."},
    {"stream_options", ON_RESPONSES, FIELD_READ, .read = field_read_stream_options,
     .schema = SCHEMA_STREAM_OPTIONS, .help = "Taken; the last event always has the usage."},
    {"n", ON_BOTH, FIELD_UINT, RANGE(1, ENGINE_MAX_CHOICES), AT(n), .preset = "1",
     .help = "Choices for each prompt."},
    {"best_of", ON_COMPLETIONS, FIELD_UINT, RANGE(1, 20), AT(best_of),
     .help = "Must equal `n`: choices are not ranked."},
    {"max_tokens", ON_CHAT, FIELD_UINT, RANGE(1, UINT_MAX_TOKENS), AT(max_tokens),
     .help = "Tokens of the answer at most; without it until the context is full. A prompt that "
             "leaves too little room is an error."},
    {"max_tokens", ON_COMPLETIONS, FIELD_UINT, RANGE(0, UINT_MAX_TOKENS), AT(max_tokens),
     .preset = "16", .help = "Tokens of the answer at most; 0 with `echo` gives the prompt only."},
    {"max_tokens", ON_MESSAGES, FIELD_UINT, RANGE(1, UINT_MAX_TOKENS), AT(max_tokens),
     .required = ON_MESSAGES,
     .help = "Tokens of the answer at most; also ends when the context is full."},
    {"max_completion_tokens", ON_BOTH, FIELD_UINT, RANGE(1, UINT_MAX_TOKENS),
     AT(max_completion_tokens), .help = "The newer name of `max_tokens`; wins over it."},
    {"max_output_tokens", ON_RESPONSES, FIELD_UINT, RANGE(1, UINT_MAX_TOKENS), AT(max_tokens),
     .help = "Tokens of the answer at most; also ends when the context is full."},
    {"min_tokens", ON_BOTH, FIELD_UINT, RANGE(0, UINT_MAX_TOKENS), AT(min_tokens), .preset = "0",
     .help = "The answer cannot end by itself before that many tokens."},
    {"ignore_eos", ON_BOTH, FIELD_BOOL, AT(ignore_eos), .preset = "false",
     .help = "Goes on to `max_tokens` whatever the model says: for measurements."},
    {"echo", ON_COMPLETIONS, FIELD_BOOL, AT(echo), .preset = "false",
     .help = "The prompt in front of the answer; with `logprobs` also its log-probabilities."},
    {"parse_special", ON_COMPLETIONS, FIELD_BOOL, AT(parse_special), .preset = "false",
     .help = "Whether the text of a control token in the prompt becomes that token."},
    {"logprobs", ON_CHAT, FIELD_BOOL, AT(logprobs), .preset = "false",
     .help = "Log-probabilities of the answer's tokens."},
    {"top_logprobs", ON_CHAT, FIELD_INT, RANGE(0, ENGINE_MAX_LOGPROBS), AT(top_logprobs),
     .help = "With `logprobs`: also the likeliest tokens at each place."},
    {"top_logprobs", ON_RESPONSES, FIELD_INT, RANGE(0, ENGINE_MAX_LOGPROBS), AT(top_logprobs),
     .help = "With `message.output_text.logprobs` in `include`: also the likeliest tokens."},
    {"logprobs", ON_COMPLETIONS, FIELD_INT, RANGE(0, 5), AT(n_logprobs),
     .help = "Log-probabilities of the tokens, and of the likeliest at each place."},
    {"prompt_logprobs", ON_BOTH, FIELD_INT, RANGE(0, ENGINE_MAX_LOGPROBS), AT(n_prompt_logprobs),
     .help = "As vLLM has it: log-probability and rank of each token of the prompt, and the "
             "likeliest tokens at its place. Not with `stream`."},
    {"include", ON_RESPONSES, FIELD_READ, .read = field_read_include, .schema = SCHEMA_INCLUDE,
     .help = "`message.output_text.logprobs` adds log-probabilities."},
    {"stop", ON_BOTH, FIELD_READ, .read = field_read_stop, .schema = SCHEMA_STOP,
     .help = "The answer ends before these texts; up to 4."},
    {"stop_sequences", ON_MESSAGES, FIELD_READ, .read = field_read_stop, .schema = SCHEMA_STOP_LIST,
     .help = "The answer ends before these texts; up to 4."},

    /* Sampling. */
    {"seed", ON_GENERATE, FIELD_READ, .read = field_read_seed, .schema = SCHEMA_SEED,
     .help = "The same seed and request give the same answer. A string of digits is taken too, for "
             "clients that lose those of a number above 2^53."},
    {"temperature", ON_BOTH | ON_RESPONSES, FIELD_FLOAT, RANGE(0, 2), AT(sampling.temperature),
     .preset = "1", .help = "0 takes the likeliest token each time."},
    {"temperature", ON_MESSAGES, FIELD_FLOAT, RANGE(0, 1), AT(sampling.temperature), .preset = "1",
     .help = "0 takes the likeliest token each time."},
    {"top_p", ON_GENERATE, FIELD_FLOAT, RANGE(0, 1), AT(sampling.top_p), .preset = "1",
     .help = "Only the likeliest tokens that together have this probability."},
    {"top_k", ON_BOTH, FIELD_INT, RANGE(-1, INT32_MAX), AT(sampling.top_k), .preset = "0",
     .help = "Only the k likeliest tokens; 0 and -1: all."},
    {"top_k", ON_MESSAGES, FIELD_INT, RANGE(0, INT32_MAX), AT(sampling.top_k),
     .help = "Only the k likeliest tokens; 0: all."},
    {"min_p", ON_BOTH, FIELD_FLOAT, RANGE(0, 1), AT(sampling.min_p), .preset = "0",
     .help = "Only tokens with at least this share of the likeliest one's probability."},
    {"repeat_penalty", ON_BOTH, FIELD_FLOAT, RANGE(0.01, 100), AT(sampling.repeat_penalty),
     .preset = "1", .help = "Above 1 makes tokens of prompt and answer less likely."},
    {"repetition_penalty", ON_BOTH, FIELD_FLOAT, RANGE(0.01, 100), AT(sampling.repeat_penalty),
     .preset = "1", .help = "vLLM's name for `repeat_penalty`."},
    {"frequency_penalty", ON_BOTH, FIELD_FLOAT, RANGE(-2, 2), AT(sampling.frequency_penalty),
     .preset = "0", .help = "Lowers a token's logit for each time the answer has it."},
    {"presence_penalty", ON_BOTH, FIELD_FLOAT, RANGE(-2, 2), AT(sampling.presence_penalty),
     .preset = "0", .help = "Lowers a token's logit once the answer has it."},
    {"logit_bias", ON_BOTH, FIELD_READ, .read = field_read_logit_bias, .schema = SCHEMA_BIAS,
     .help = "Token id to what is added to its logit, -100 to 100; up to 1024."},
    {"overfill", ON_GENERATE, FIELD_READ, .read = field_read_overfill, .schema = SCHEMA_OVERFILL,
     .help = "The quality dial. `decode`: who writes the answer after the first token: `pruned` "
             "(the twin), `refresh` (the twin, whose tokens the full model reads again after every "
             "`every`), `verify` (the twin drafts `every`, the full model accepts or replaces "
             "them), `full`. `every`: 1 to 256."},
    {"priority", ON_GENERATE, FIELD_INT, RANGE(INT32_MIN, INT32_MAX), AT(priority), .preset = "0",
     .help = "Lower goes first; requests of equal priority take turns by key."},
    {"cache_prompt", ON_GENERATE, FIELD_BOOL, AT(cache_prompt), .preset = "true",
     .help = "false: the prompt is neither looked for in the prefix cache nor kept there."},
    {"sse_ping_interval", ON_GENERATE, FIELD_DOUBLE, RANGE(-1, 3600), AT(ping_s),
     .help = "Seconds of silence after which a stream gets a comment line; -1: never."},
    {"response_format", ON_BOTH, FIELD_READ, .read = field_read_response_format,
     .schema = SCHEMA_TYPE_TEXT, .help = "`{\"type\": \"text\"}` only."},
    {"text", ON_RESPONSES, FIELD_READ, .read = field_read_text_format, .schema = SCHEMA_TEXT_FORMAT,
     .help = "`{\"format\": {\"type\": \"text\"}}` only."},
    {"modalities", ON_CHAT, FIELD_READ, .read = field_read_modalities, .schema = SCHEMA_MODALITIES,
     .help = "`[\"text\"]` only."},
    {"thinking", ON_ANTHROPIC, FIELD_READ, .read = field_read_thinking, .schema = SCHEMA_THINKING,
     .help = "`{\"type\": \"disabled\"}` only."},

    /* Without an effect on an answer of ours. */
    {"user", ON_GENERATE, FIELD_ACCEPTED},
    {"metadata", ON_GENERATE, FIELD_ACCEPTED},
    {"store", ON_BOTH | ON_RESPONSES, FIELD_ACCEPTED, .help = "Nothing is ever stored."},
    {"service_tier", ON_GENERATE, FIELD_ACCEPTED},
    {"safety_identifier", ON_BOTH | ON_RESPONSES, FIELD_ACCEPTED},
    {"prompt_cache_key", ON_BOTH | ON_RESPONSES, FIELD_ACCEPTED},
    {"prompt_cache_retention", ON_BOTH | ON_RESPONSES, FIELD_ACCEPTED},
    {"parallel_tool_calls", ON_CHAT | ON_RESPONSES, FIELD_ACCEPTED,
     .help = "Says nothing without tools."},
    {"max_tool_calls", ON_RESPONSES, FIELD_ACCEPTED, .help = "Says nothing without tools."},

    /* Known, and not done here. */
    {"tools", ON_CHAT | ON_RESPONSES | ON_ANTHROPIC, FIELD_UNSUPPORTED},
    {"tool_choice", ON_CHAT | ON_ANTHROPIC, FIELD_UNSUPPORTED, .neutral = "none"},
    {"tool_choice", ON_RESPONSES, FIELD_UNSUPPORTED, .neutral = "auto"},
    {"functions", ON_CHAT, FIELD_UNSUPPORTED},
    {"function_call", ON_CHAT, FIELD_UNSUPPORTED, .neutral = "none"},
    {"audio", ON_CHAT, FIELD_UNSUPPORTED},
    {"prediction", ON_CHAT, FIELD_UNSUPPORTED},
    {"web_search_options", ON_CHAT, FIELD_UNSUPPORTED},
    {"reasoning_effort", ON_CHAT, FIELD_UNSUPPORTED, .neutral = "none"},
    {"reasoning", ON_RESPONSES, FIELD_UNSUPPORTED},
    {"verbosity", ON_CHAT, FIELD_UNSUPPORTED, .neutral = "medium"},
    {"previous_response_id", ON_RESPONSES, FIELD_UNSUPPORTED},
    {"conversation", ON_RESPONSES, FIELD_UNSUPPORTED},
    {"background", ON_RESPONSES, FIELD_UNSUPPORTED},
    {"truncation", ON_RESPONSES, FIELD_UNSUPPORTED, .neutral = "disabled"},
    {"container", ON_MESSAGES, FIELD_UNSUPPORTED},
    {"mcp_servers", ON_ANTHROPIC, FIELD_UNSUPPORTED},
    {"output_format", ON_ANTHROPIC, FIELD_UNSUPPORTED},
    {"suffix", ON_COMPLETIONS, FIELD_UNSUPPORTED},
    {"add_generation_prompt", ON_CHAT, FIELD_UNSUPPORTED, .neutral = "true"},
    {"continue_final_message", ON_CHAT | ON_TOKENIZE, FIELD_UNSUPPORTED},
    {"chat_template", ON_CHAT | ON_TOKENIZE, FIELD_UNSUPPORTED},
    {"chat_template_kwargs", ON_CHAT | ON_TOKENIZE, FIELD_UNSUPPORTED},
    {"documents", ON_CHAT, FIELD_UNSUPPORTED},
    {"grammar", ON_BOTH, FIELD_UNSUPPORTED},
    {"json_schema", ON_BOTH, FIELD_UNSUPPORTED},
    {"guided_json", ON_BOTH, FIELD_UNSUPPORTED},
    {"guided_regex", ON_BOTH, FIELD_UNSUPPORTED},
    {"guided_choice", ON_BOTH, FIELD_UNSUPPORTED},
    {"guided_grammar", ON_BOTH, FIELD_UNSUPPORTED},
    {"structured_outputs", ON_BOTH, FIELD_UNSUPPORTED},
    {"return_token_ids", ON_BOTH, FIELD_UNSUPPORTED},
    {"return_progress", ON_BOTH, FIELD_UNSUPPORTED},
    {"include_stop_str_in_output", ON_BOTH, FIELD_UNSUPPORTED},
    {"stop_token_ids", ON_BOTH, FIELD_UNSUPPORTED},
    {"allowed_token_ids", ON_BOTH, FIELD_UNSUPPORTED},
    {"bad_words", ON_BOTH, FIELD_UNSUPPORTED},
    {"truncate_prompt_tokens", ON_BOTH, FIELD_UNSUPPORTED},
    {"skip_special_tokens", ON_BOTH | ON_DETOKENIZE, FIELD_UNSUPPORTED, .neutral = "true"},
    {"spaces_between_special_tokens", ON_BOTH, FIELD_UNSUPPORTED, .neutral = "true"},
    {"use_beam_search", ON_BOTH, FIELD_UNSUPPORTED},
    {"length_penalty", ON_BOTH, FIELD_UNSUPPORTED, .neutral = "1"},
    {"n_probs", ON_BOTH, FIELD_UNSUPPORTED, .neutral = "0"},
    {"n_predict", ON_BOTH, FIELD_UNSUPPORTED},
    {"n_keep", ON_BOTH, FIELD_UNSUPPORTED, .neutral = "0"},
    {"typical_p", ON_BOTH, FIELD_UNSUPPORTED, .neutral = "1"},
    {"mirostat", ON_BOTH, FIELD_UNSUPPORTED, .neutral = "0"},
    {"dry_multiplier", ON_BOTH, FIELD_UNSUPPORTED, .neutral = "0"},
    {"xtc_probability", ON_BOTH, FIELD_UNSUPPORTED, .neutral = "0"},
    {"dynatemp_range", ON_BOTH, FIELD_UNSUPPORTED, .neutral = "0"},
    {"top_n_sigma", ON_BOTH, FIELD_UNSUPPORTED, .neutral = "-1"},
    {"lora", ON_BOTH, FIELD_UNSUPPORTED},
    {"kv_transfer_params", ON_BOTH, FIELD_UNSUPPORTED},
};

const struct field *field_table(size_t *ret_n)
{
    *ret_n = sizeof(FIELDS) / sizeof(FIELDS[0]);
    return FIELDS;
}

const struct field *field_find(const char *name, enum field_route route)
{
    for (size_t i = 0; i < sizeof(FIELDS) / sizeof(FIELDS[0]); i++)
        if ((FIELDS[i].routes & route) && strcmp(FIELDS[i].name, name) == 0)
            return &FIELDS[i];
    return NULL;
}
