// The official Node client against a running server: OVERFILL_URL, OVERFILL_MODEL.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import OpenAI from 'openai';

const baseURL = (process.env.OVERFILL_URL ?? 'http://127.0.0.1:8080') + '/v1';
const client = new OpenAI({ baseURL, apiKey: 'k', maxRetries: 0 });
const model = process.env.OVERFILL_MODEL ?? (await client.models.list()).data[0].id;
const messages = [{ role: 'user', content: 'Count to five, then say é and 🙂.' }];

test('a chat answer, whole', async () => {
  const answer = await client.chat.completions.create({ model, messages, max_tokens: 12, temperature: 0 });
  assert.equal(answer.object, 'chat.completion');
  assert.equal(answer.choices[0].message.role, 'assistant');
  assert.ok(answer.choices[0].message.content.length > 0);
  assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
});

test('a streamed chat answer is the whole one', async () => {
  const request = { model, messages, max_tokens: 24, temperature: 1, seed: 11, n: 2 };
  const whole = await client.chat.completions.create(request);
  const texts = ['', ''];
  const finishes = [];
  let usage;
  const stream = await client.chat.completions.create({
    ...request, stream: true, stream_options: { include_usage: true } });
  for await (const chunk of stream) {
    for (const choice of chunk.choices) {
      texts[choice.index] += choice.delta.content ?? '';
      if (choice.finish_reason) finishes[choice.index] = choice.finish_reason;
    }
    usage = chunk.usage ?? usage;
  }
  assert.deepEqual(texts, whole.choices.map((c) => c.message.content));
  assert.deepEqual(finishes, whole.choices.map((c) => c.finish_reason));
  assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
});

test('the stream helper collects the answer', async () => {
  const runner = client.chat.completions.stream({ model, messages, max_tokens: 12, temperature: 0 });
  const whole = await client.chat.completions.create({ model, messages, max_tokens: 12, temperature: 0 });
  assert.equal(await runner.finalContent(), whole.choices[0].message.content);
});

test('completions, whole and streamed', async () => {
  const request = { model, prompt: ['One two', 'three four five'], max_tokens: 8, temperature: 0 };
  const whole = await client.completions.create(request);
  const texts = ['', ''];
  for await (const chunk of await client.completions.create({ ...request, stream: true }))
    for (const choice of chunk.choices) texts[choice.index] += choice.text;
  assert.deepEqual(texts, whole.choices.map((c) => c.text));
});

test('a mistake is a typed error', async () => {
  await assert.rejects(
    client.chat.completions.create({ model, messages, temperature: 3 }),
    (error) => error instanceof OpenAI.BadRequestError && error.param === 'temperature' &&
      error.code === 'decimal_above_max_value' && Boolean(error.requestID));
  await assert.rejects(client.chat.completions.create({ model: 'nobody', messages }),
    (error) => error instanceof OpenAI.NotFoundError && error.code === 'model_not_found');
});

test('an aborted stream ends the work', async () => {
  const stream = await client.chat.completions.create({
    model, messages, max_tokens: 1000, stream: true, ignore_eos: true });
  for await (const chunk of stream) {
    assert.ok(chunk.id);
    stream.controller.abort();
    break;
  }
  const jobs = async () => {
    const text = await (await fetch(baseURL.replace('/v1', '/metrics'))).text();
    return Number(/^overfill_jobs\{.*\} (\d+)$/m.exec(text)[1]);
  };
  const end = Date.now() + 5000;
  while ((await jobs()) > 0 && Date.now() < end) await new Promise((r) => setTimeout(r, 20));
  assert.equal(await jobs(), 0);
});
