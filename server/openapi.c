/* See openapi.h. Schemas of requests come from the field table; those of replies stand here as
 * text, with ' for ". */
#include "server/openapi.h"

#include "server/internal.h"
#include "server/json_write.h"

#include <string.h>

const struct operation OPERATIONS[] = {
    {"POST", "/v1/chat/completions", "An answer to a conversation (OpenAI).", ON_CHAT,
     "ChatRequest", "ChatCompletion", true, true},
    {"POST", "/v1/completions", "Text that follows a text (OpenAI, legacy).", ON_COMPLETIONS,
     "CompletionRequest", "Completion", true, true},
    {"POST", "/v1/responses", "An answer to an input (OpenAI Responses, without state).",
     ON_RESPONSES, "ResponseRequest", "Response", true, true},
    {"POST", "/v1/messages", "An answer to a conversation (Anthropic).", ON_MESSAGES,
     "MessageRequest", "Message", true, true},
    {"POST", "/v1/messages/count_tokens", "Tokens of a conversation (Anthropic).", ON_COUNT,
     "CountRequest", "Count", false, true},
    {"GET", "/v1/models", "The served model.", 0, NULL, "ModelList", false, true},
    {"GET", "/v1/models/{id}", "One model.", 0, NULL, "Model", false, true},
    {"POST", "/tokenize", "A text or a conversation as token ids (vLLM, llama-server).",
     ON_TOKENIZE, "TokenizeRequest", "Tokens", false, true},
    {"POST", "/detokenize", "Token ids as text (vLLM, llama-server).", ON_DETOKENIZE,
     "DetokenizeRequest", "Text", false, true},
    {"GET", "/tokenizer_info", "The tokenizer's special tokens and chat template (vLLM).", 0, NULL,
     "TokenizerInfo", false, true},
    {"GET", "/health", "200 when requests are served; 503 while loading, draining or stalled.", 0,
     NULL, "Health", false, false},
    {"GET", "/metrics", "Prometheus metrics.", 0, NULL, NULL, false, false},
    {"GET", "/version", "The program's version.", 0, NULL, "Version", false, false},
    {"GET", "/openapi.json", "This description.", 0, NULL, "OpenApi", false, false},
    {"GET", "/", "The list of routes.", 0, NULL, NULL, false, false},
};
const size_t N_OPERATIONS = sizeof(OPERATIONS) / sizeof(OPERATIONS[0]);

#define OBJECT(required, properties)                                                               \
    "{'type':'object','required':[" required "],'properties':{" properties "}}"
#define STRING "{'type':'string'}"
#define NULLABLE "{'type':['string','null']}"
#define UINT "{'type':'integer','minimum':0}"
#define NUMBER "{'type':'number'}"
#define LOGPROB_LIST                                                                               \
    "{'type':'array','items':" OBJECT("'token','logprob','bytes','top_logprobs'",                  \
                                      "'token':" STRING ",'logprob':" NUMBER                       \
                                      ",'bytes':{'type':'array','items':" UINT                     \
                                      "},'top_logprobs':{'type':'array'}") "}"
/* Items: null, or token id to an object. */
#define PROMPT_LOGPROBS                                                                            \
    "'prompt_logprobs':{'type':'array','items':{'type':['object','null'],"                         \
    "'additionalProperties':" OBJECT("'logprob','rank','decoded_token'",                           \
                                     "'logprob':" NUMBER ",'rank':" UINT                           \
                                     ",'decoded_token':" STRING) "}}"
#define CHOICE_END "'finish_reason':{'enum':['stop','length']},'index':" UINT

/* clang-format off */
static const char SCHEMAS[] =
    "'Error':" OBJECT("'error'", "'error':" OBJECT("'message','type','param','code'",
            "'message':" STRING ",'type':" STRING ",'param':" NULLABLE ",'code':" NULLABLE
            ",'n_prompt_tokens':" UINT ",'n_ctx':" UINT))
    ",'AnthropicError':" OBJECT("'type','error'", "'type':{'const':'error'},'error':" OBJECT(
            "'message','type'", "'message':" STRING ",'type':" STRING))
    ",'Usage':" OBJECT("'prompt_tokens','completion_tokens','total_tokens'", "'prompt_tokens':"
        UINT ",'completion_tokens':" UINT ",'total_tokens':" UINT ",'prompt_tokens_details':"
        OBJECT("'cached_tokens'", "'cached_tokens':" UINT) ",'completion_tokens_details':" OBJECT(
            "'reasoning_tokens'", "'reasoning_tokens':" UINT))
    ",'Timings':" OBJECT("'cache_n','prompt_n','prompt_ms','predicted_n','predicted_ms'",
        "'cache_n':" UINT ",'prompt_n':" UINT ",'prompt_ms':" NUMBER ",'predicted_n':" UINT
        ",'predicted_ms':" NUMBER ",'queue_ms':" NUMBER)
    ",'ChatCompletion':" OBJECT("'id','object','created','model','system_fingerprint'"
        ",'choices','usage'", "'id':" STRING ",'object':{'const':'chat.completion'},'created':"
        UINT ",'model':" STRING ",'system_fingerprint':" STRING ",'choices':{'type':'array'"
        ",'minItems':1,'items':" OBJECT("'index','message','logprobs','finish_reason'",
            "'message':" OBJECT("'role','content','refusal'", "'role':{'const':'assistant'}"
                ",'content':" STRING ",'refusal':{'type':'null'}")
            ",'logprobs':{'anyOf':[{'type':'null'}," OBJECT("'content'", "'content':" LOGPROB_LIST)
            "]}," CHOICE_END) "}," PROMPT_LOGPROBS ",'usage':{'$ref':'#/components/schemas/Usage'}"
        ",'timings':{'$ref':'#/components/schemas/Timings'}")
    ",'Completion':" OBJECT("'id','object','created','model','system_fingerprint','choices'"
        ",'usage'", "'id':" STRING ",'object':{'const':'text_completion'},'created':" UINT
        ",'model':" STRING ",'system_fingerprint':" STRING ",'choices':{'type':'array'"
        ",'minItems':1,'items':" OBJECT("'index','text','logprobs','finish_reason'", "'text':"
            STRING ",'logprobs':{'anyOf':[{'type':'null'}," OBJECT("'tokens','token_logprobs'"
                ",'top_logprobs','text_offset'", "'tokens':{'type':'array','items':" STRING "}"
                ",'token_logprobs':{'type':'array','items':{'type':['number','null']}}"
                ",'top_logprobs':{'type':['array','null']},'text_offset':{'type':'array'"
                ",'items':" UINT "}") "]}," PROMPT_LOGPROBS "," CHOICE_END) "}"
        ",'usage':{'$ref':'#/components/schemas/Usage'}"
        ",'timings':{'$ref':'#/components/schemas/Timings'}")
    ",'Response':" OBJECT("'id','object','created_at','status','error','incomplete_details'"
        ",'model','output','usage'", "'id':" STRING ",'object':{'const':'response'}"
        ",'created_at':" UINT ",'status':{'enum':['completed','incomplete']}"
        ",'error':{'type':'null'},'incomplete_details':{'type':['object','null']},'model':" STRING
        ",'output':{'type':'array','items':" OBJECT("'id','type','status','role','content'",
            "'type':{'const':'message'},'role':{'const':'assistant'},'content':{'type':'array'"
            ",'items':" OBJECT("'type','text','annotations'", "'type':{'const':'output_text'}"
                ",'text':" STRING ",'annotations':{'type':'array'}") "}") "},'usage':" OBJECT(
            "'input_tokens','output_tokens','total_tokens'", "'input_tokens':" UINT
            ",'output_tokens':" UINT ",'total_tokens':" UINT))
    ",'Message':" OBJECT("'id','type','role','content','model','stop_reason','stop_sequence'"
        ",'usage'", "'id':" STRING ",'type':{'const':'message'},'role':{'const':'assistant'}"
        ",'content':{'type':'array','items':" OBJECT("'type','text'", "'type':{'const':'text'}"
            ",'text':" STRING) "},'model':" STRING ",'stop_reason':{'enum':['end_turn'"
        ",'max_tokens','stop_sequence']},'stop_sequence':" NULLABLE ",'usage':" OBJECT(
            "'input_tokens','output_tokens'", "'input_tokens':" UINT ",'output_tokens':" UINT))
    ",'Count':" OBJECT("'input_tokens'", "'input_tokens':" UINT)
    ",'Model':" OBJECT("'id','object','created','owned_by'", "'id':" STRING
        ",'object':{'const':'model'},'created':" UINT ",'owned_by':" STRING ",'max_model_len':"
        UINT ",'meta':{'type':'object'}")
    ",'ModelList':" OBJECT("'object','data'", "'object':{'const':'list'}"
        ",'data':{'type':'array','items':{'$ref':'#/components/schemas/Model'}}")
    ",'Tokens':" OBJECT("'count','max_model_len','tokens'", "'count':" UINT ",'max_model_len':"
        UINT ",'tokens':{'type':'array','items':{'anyOf':[" UINT "," OBJECT("'id','piece'", "'id':"
            UINT ",'piece':{'type':['string','array']}") "]}},'token_strs':{'type':['array'"
        ",'null']}")
    ",'Text':" OBJECT("'prompt','content'", "'prompt':" STRING ",'content':" STRING)
    ",'TokenizerInfo':" OBJECT("'tokenizer_class','chat_template','bos_token','eos_token'",
        "'tokenizer_class':" STRING ",'chat_template':" NULLABLE ",'bos_token':" NULLABLE
        ",'eos_token':" NULLABLE)
    ",'Health':" OBJECT("'status'", "'status':" STRING)
    ",'Version':" OBJECT("'version'", "'version':" STRING)
    ",'OpenApi':{'type':'object'}";
/* clang-format on */

/* Appends text in which ' stands for ". */
static void write_text(struct buf *out, const char *text)
{
    size_t start = out->len;

    buf_append_str(out, text);
    if (out->failed)
        return;
    for (size_t i = start; i < out->len; i++)
        if (out->data[i] == '\'')
            out->data[i] = '"';
}

static void write_string(struct buf *out, const char *text)
{
    json_write_string(out, text, strlen(text));
}

/* {"type":["integer","null"],"minimum":..,"maximum":..} */
static void write_scalar(struct buf *out, const struct field *field, const char *type,
                         bool may_be_null)
{
    buf_printf(out, may_be_null ? "\"type\":[\"%s\",\"null\"]" : "\"type\":\"%s\"", type);
    if (field->max > field->min)
        buf_printf(out, ",\"minimum\":%.10g,\"maximum\":%.10g", field->min, field->max);
}

static void write_neutral(struct buf *out, const struct field *field)
{
    write_text(out, "'enum':[null,false,'',[],{}");
    if (field->neutral) {
        buf_append(out, ",", 1);
        if (field_neutral_is_string(field))
            write_string(out, field->neutral);
        else
            buf_append_str(out, field->neutral);
    }
    buf_append(out, "]", 1);
}

static void write_type(struct buf *out, const struct field *field, bool may_be_null)
{
    switch (field->kind) {
    case FIELD_BOOL:
        write_scalar(out, field, "boolean", may_be_null);
        return;
    case FIELD_UINT:
    case FIELD_INT:
        write_scalar(out, field, "integer", may_be_null);
        return;
    case FIELD_FLOAT:
    case FIELD_DOUBLE:
        write_scalar(out, field, "number", may_be_null);
        return;
    case FIELD_STRING:
        write_scalar(out, field, "string", may_be_null);
        return;
    case FIELD_READ:
        write_text(out, "'anyOf':[");
        write_text(out, field->schema);
        write_text(out, may_be_null ? ",{'type':'null'}]" : "]");
        return;
    case FIELD_ACCEPTED:
        write_text(out, "'x-effect':'none'");
        return;
    case FIELD_UNSUPPORTED:
        write_neutral(out, field);
        return;
    }
}

static void write_field(struct buf *out, const struct field *field, enum field_route route,
                        const char *model_id)
{
    write_string(out, field->name);
    buf_append_str(out, ":{");
    write_type(out, field, !(field->required & route));
    if (model_id && strcmp(field->name, "model") == 0) {
        buf_append_str(out, field->required & route ? ",\"enum\":[" : ",\"enum\":[null,");
        write_string(out, model_id);
        buf_append(out, "]", 1);
    }
    if (field->preset)
        buf_printf(out, ",\"default\":%s", field->preset);
    const char *help = field->help;
    if (!help)
        help = field->kind == FIELD_UNSUPPORTED ? "Not supported by this server."
                                                : "Taken; without an effect on the answer.";
    buf_append_str(out, ",\"description\":");
    write_string(out, help);
    buf_append(out, "}", 1);
}

static void write_request_schema(struct buf *out, const struct operation *operation,
                                 const char *model_id)
{
    enum field_route route = operation->route;
    const char *comma = "";
    size_t n;
    const struct field *table = field_table(&n);

    write_string(out, operation->request);
    write_text(out, ":{'type':'object','required':[");
    for (size_t i = 0; i < n; i++)
        if (table[i].required & route) {
            buf_append_str(out, comma);
            write_string(out, table[i].name);
            comma = ",";
        }
    write_text(out, "],'properties':{");
    comma = "";
    for (size_t i = 0; i < n; i++)
        if (table[i].routes & route) {
            buf_append_str(out, comma);
            write_field(out, &table[i], route, model_id);
            comma = ",";
        }
    buf_append_str(out, "}}");
}

static void write_reply_content(struct buf *out, const struct operation *operation)
{
    write_text(out, "'200':{'description':'Done.','content':{");
    if (!operation->reply)
        write_text(out, "'text/plain':{'schema':{'type':'string'}}");
    else
        buf_printf(out, "\"application/json\":{\"schema\":{\"$ref\":\"#/components/schemas/%s\"}}",
                   operation->reply);
    if (operation->streams)
        write_text(out, ",'text/event-stream':{}");
    write_text(out, "}}");
}

static void write_errors(struct buf *out, const struct operation *operation)
{
    static const struct {
        unsigned status;
        const char *text;
    } ERRORS[] = {{400, "The request is wrong; param names the field."},
                  {401, "No key, or a wrong one."},
                  {404, "No such model."},
                  {405, "Another method is allowed here."},
                  {408, "The request did not arrive in time."},
                  {413, "The body is too large."},
                  {429, "The queue or the key's rate is exhausted; see retry-after."},
                  {500, "A fault of the server."},
                  {503, "Loading, draining or out of memory; see retry-after."}};
    bool is_anthropic = (operation->route & ON_ANTHROPIC) != 0;

    for (size_t i = 0; i < sizeof(ERRORS) / sizeof(ERRORS[0]); i++) {
        buf_printf(out, ",\"%u\":{\"description\":", ERRORS[i].status);
        write_string(out, ERRORS[i].text);
        write_text(out, ",'content':{'application/json':{'schema':{'$ref':");
        write_string(out, is_anthropic ? "#/components/schemas/AnthropicError"
                                       : "#/components/schemas/Error");
        buf_append_str(out, "}}}}");
    }
}

static void write_operation(struct buf *out, const struct operation *operation)
{
    buf_append_str(out, strcmp(operation->method, "GET") == 0 ? "\"get\":{" : "\"post\":{");
    buf_append_str(out, "\"summary\":");
    write_string(out, operation->summary);
    if (!operation->needs_key)
        write_text(out, ",'security':[]");
    if (strchr(operation->path, '{'))
        write_text(out, ",'parameters':[{'name':'id','in':'path','required':true,"
                        "'schema':{'type':'string'}}]");
    if (operation->route)
        buf_printf(out,
                   ",\"requestBody\":{\"required\":true,\"content\":{\"application/json\":{"
                   "\"schema\":{\"$ref\":\"#/components/schemas/%s\"}}}}",
                   operation->request);
    write_text(out, ",'responses':{");
    write_reply_content(out, operation);
    write_errors(out, operation);
    buf_append_str(out, "}}");
}

void openapi_write(struct buf *out, const char *model_id)
{
    write_text(out, "{'openapi':'3.1.0','info':{'title':'overfill','version':'" OVERFILL_VERSION
                    "','description':'OpenAI-compatible inference on CPUs.'},"
                    "'security':[{},{'bearer':[]},{'key':[]}],'paths':{");
    for (size_t i = 0; i < N_OPERATIONS; i++) {
        if (i > 0)
            buf_append(out, ",", 1);
        write_string(out, OPERATIONS[i].path);
        buf_append_str(out, ":{");
        write_operation(out, &OPERATIONS[i]);
        buf_append(out, "}", 1);
    }
    write_text(out, "},'components':{'securitySchemes':{'bearer':{'type':'http','scheme':'bearer'},"
                    "'key':{'type':'apiKey','in':'header','name':'x-api-key'}},'schemas':{");
    for (size_t i = 0; i < N_OPERATIONS; i++)
        if (OPERATIONS[i].route) {
            write_request_schema(out, &OPERATIONS[i], model_id);
            buf_append(out, ",", 1);
        }
    write_text(out, SCHEMAS);
    buf_append_str(out, "}}}");
}

void handle_openapi(struct exchange *x)
{
    struct buf *kept = &x->server->openapi_json;
    struct buf text = {0};

    if (!kept->data) {
        openapi_write(&text, x->server->engine ? x->server->info.model_id : NULL);
        if (text.failed || !x->server->engine) { /* a failure is told as one of memory */
            exchange_reply(x, 200, "application/json", &text);
            return;
        }
        *kept = text;
    }
    exchange_reply_static(x, 200, "application/json", kept->data, kept->len);
}
