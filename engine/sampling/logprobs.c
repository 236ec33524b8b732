/* Log-probabilities under the model's own logits. See sampler.h. */
#include "engine/sampling/sampling_internal.h"

#include <math.h>

/* Keeps the k best so far, best first. Equal logits stay in the order of ids, because ids come in
 * ascending order. */
static size_t insert(struct token_logprob *top, size_t n, size_t k, int32_t token, float logit)
{
    if (n == k && !(logit > top[n - 1].logprob))
        return n;
    if (n < k)
        n++;
    size_t i = n - 1;
    for (; i > 0 && logit > top[i - 1].logprob; i--)
        top[i] = top[i - 1];
    top[i] = (struct token_logprob){.token = token, .logprob = logit};
    return n;
}

static float clean(float logit)
{
    return isnan(logit) ? -INFINITY : logit;
}

/* log p = (x - max) - log_sum; nothing is more probable than a logit of +infinity. */
static float log_softmax(float logit, float max, double log_sum)
{
    if (logit == max)
        return (float)-log_sum;
    return (float)((double)logit - max - log_sum);
}

size_t sampling_logprobs(const float *logits, uint32_t n_vocab, int32_t token, size_t k,
                         float *ret_logprob, struct token_logprob *top)
{
    float max = -INFINITY;
    double sum = 0;
    size_t n = 0;

    for (size_t i = 0; i < n_vocab; i += SAMPLING_BLOCK) {
        size_t n_block = sampling_block(i, n_vocab);
        float highest = select_max(logits + i, n_block);
        max = highest > max ? highest : max;
        if (n < k || (k && highest > top[n - 1].logprob))
            for (size_t j = i; j < i + n_block; j++)
                n = insert(top, n, k, (int32_t)j, clean(logits[j]));
    }
    for (size_t i = 0; i < n_vocab; i += SAMPLING_BLOCK) {
        float weights[SAMPLING_BLOCK];
        sum += sampling_weigh(logits + i, sampling_block(i, n_vocab), max, 1, weights);
    }
    double log_sum = sum > 0 ? log(sum) : 0;

    if (max == -INFINITY) /* no token is possible */
        log_sum = INFINITY;
    for (size_t i = 0; i < n; i++)
        top[i].logprob = log_softmax(top[i].logprob, max, log_sum);
    *ret_logprob = token >= 0 && (uint32_t)token < n_vocab
                       ? log_softmax(clean(logits[token]), max, log_sum)
                       : -INFINITY;
    return n;
}

uint32_t sampling_rank(const float *logits, uint32_t n_vocab, int32_t token)
{
    float own = clean(logits[token]);
    uint32_t rank = 1;

    for (uint32_t i = 0; i < n_vocab; i++)
        rank += logits[i] > own; /* never so for NaN */
    return rank;
}
