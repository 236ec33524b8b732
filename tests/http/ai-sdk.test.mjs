// The AI SDK with its provider for OpenAI-compatible servers: OVERFILL_URL, OVERFILL_MODEL.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateText, streamText } from 'ai';

const provider = createOpenAICompatible({
  name: 'overfill', baseURL: process.env.OVERFILL_URL + '/v1', apiKey: 'k', includeUsage: true });
const model = provider(process.env.OVERFILL_MODEL);
const request = { model, prompt: 'ab cd ef gh é 🙂', maxOutputTokens: 12, temperature: 0, maxRetries: 0 };

test('a text, whole', async () => {
  const answer = await generateText({ ...request, system: 'Be short.' });
  assert.ok(answer.text.length > 0);
  assert.ok(['stop', 'length'].includes(answer.finishReason));
  assert.equal(answer.usage.totalTokens, answer.usage.inputTokens + answer.usage.outputTokens);
});

test('a streamed text is the whole one', async () => {
  const whole = await generateText(request);
  const stream = streamText(request);
  let text = '';
  for await (const piece of stream.textStream) text += piece;
  assert.equal(text, whole.text);
  assert.equal(await stream.finishReason, whole.finishReason);
  assert.equal((await stream.usage).outputTokens, whole.usage.outputTokens);
});

test('a mistake is an error with its status', async () => {
  await assert.rejects(generateText({ ...request, temperature: 7 }),
    (error) => error.statusCode === 400 && /temperature/.test(error.message));
  await assert.rejects(generateText({ ...request, model: provider('nobody') }),
    (error) => error.statusCode === 404);
});
