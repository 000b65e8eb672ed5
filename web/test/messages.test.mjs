import assert from 'node:assert/strict';
import { test } from 'node:test';

import { MessageError } from '../chatmesh.js';
import { begin, collect, settle } from './fake.mjs';

const about = (frame, more) => ({ message_id: `m-${frame.id}`, id: frame.id, conversation_id: frame.conversation_id, ...more });
const accepted = (frame) => about(frame, { type: 'accepted' });
const delta = (frame, index, content, attempt = 1) => about(frame, { type: 'delta', attempt, index, content });
const response = (frame, content, more) => about(frame, { type: 'response', content, position: 'p~0~0.2', finish_reason: 'stop', model: 'm', ...more });

test('an answer grows by deltas and ends with the result', async (t) => {
  const { client, connect } = await begin(t);
  const socket = await connect();
  const answer = client.send('hello', { conversationId: 'c1' });
  const updates = [];
  const reading = (async () => {
    for await (const update of answer) updates.push(update);
  })();
  const [frame] = socket.of('message');
  assert.deepEqual(frame, { type: 'message', id: answer.id, content: 'hello', conversation_id: 'c1' });
  assert.equal(answer.state, 'sent');
  socket.say(accepted(frame));
  assert.equal(answer.state, 'accepted');
  for (const [index, word] of ['one', ' two'].entries()) {
    socket.say(delta(frame, index, word));
    await settle();
  }
  socket.say(response(frame, 'one two three'));
  await reading;
  assert.deepEqual(updates.map(({ delta, reset }) => [delta, reset]), [['one', false], [' two', false], [' three', false]]);
  assert.deepEqual(await answer.result, {
    status: 'answered', content: 'one two three', id: answer.id, messageId: `m-${answer.id}`, conversationId: 'c1',
    finishReason: 'stop', model: 'm', usage: null, position: 'p~0~0.2',
  });
  assert.equal(client.position, 'p~0~0.2');
  assert.equal(client.open.length, 0);
});

test('a slow reader gets what came meanwhile at once, and a late one everything', async (t) => {
  const { client, connect } = await begin(t);
  const socket = await connect();
  const answer = client.send('hello');
  const [frame] = socket.of('message');
  for (let index = 0; index < 1000; index += 1) socket.say(delta(frame, index, 'x'));
  const reading = collect(answer);
  await settle();
  socket.say(response(frame, 'x'.repeat(1001)));
  assert.deepEqual((await reading).map(({ delta }) => delta.length), [1000, 1]);
  assert.deepEqual((await collect(answer)).map(({ delta }) => delta.length), [1001]);
});

test('another attempt begins the text anew', async (t) => {
  const { client, connect } = await begin(t);
  const socket = await connect();
  const answer = client.send('hello');
  const reading = collect(answer);
  const [frame] = socket.of('message');
  socket.say(delta(frame, 0, 'first try'));
  await settle();
  socket.say(about(frame, { type: 'restarted', attempt: 2 }));
  await settle();
  socket.say(delta(frame, 0, 'second', 2));
  await settle();
  socket.say(delta(frame, 7, ' of the first', 1), delta(frame, 1, ' try', 2), response(frame, 'second try'));
  assert.deepEqual((await reading).map(({ delta, reset }) => [delta, reset]), [['first try', false], ['', true], ['second', false], [' try', false]]);
});

test('a snapshot goes on where the text was, or replaces it', async (t) => {
  const { client, connect } = await begin(t);
  const socket = await connect();
  const answer = client.send('hello');
  const reading = collect(answer);
  const [frame] = socket.of('message');
  const snapshot = (content, index) => about(frame, { type: 'snapshot', attempt: 1, index, content });
  socket.say(delta(frame, 0, 'one'));
  await settle();
  socket.say(snapshot('one two', 2), delta(frame, 1, 'LATE'), delta(frame, 2, ' three'));
  await settle();
  socket.say(snapshot('other', 1));
  await settle();
  socket.say(delta(frame, 3, 'AFTER A GAP'), response(frame, 'other text'));
  assert.deepEqual((await reading).map(({ delta, reset }) => [delta, reset]), [['one', false], [' two three', false], ['other', true], [' text', false]]);
});

test('what was not accepted is sent again: same id, same order, and nothing else', async (t) => {
  const { client, connect, last, tick } = await begin(t);
  const first = await connect();
  const answers = ['a', 'b', 'c'].map((text) => client.send(text, { conversationId: 'one' }));
  const other = client.send('d', { conversationId: 'two' });
  assert.deepEqual(first.of('message').map(({ content }) => content), ['a', 'd'], 'one of a conversation at a time');
  first.say(accepted(first.sent[0]));
  assert.deepEqual(first.of('message').map(({ content }) => content), ['a', 'd', 'b']);
  first.end(1006);
  const queued = client.send('e', { conversationId: 'one' });
  await tick(250);
  last().welcome({ recovered: true });
  await settle();
  const again = last();
  assert.deepEqual(again.of('message').map(({ id }) => id), [answers[1].id, other.id]);
  again.say(accepted(again.sent[0]));
  again.say(accepted(again.of('message').at(-1)));
  assert.deepEqual(again.of('message').map(({ content }) => content), ['b', 'd', 'c', 'e']);
  assert.equal(queued.state, 'sent');
});

test('unavailable means unknown: the same id again, a few times, with the order kept', async (t) => {
  const { client, connect, tick } = await begin(t);
  const socket = await connect();
  const answer = client.send('a');
  const next = client.send('b');
  for (let n = 0; n < 6; n += 1) {
    assert.equal(socket.of('message').length, n + 1);
    socket.say({ type: 'error', id: answer.id, code: 'unavailable', message: 'away', retryable: true });
    await tick(60_000);
  }
  await assert.rejects(answer.result, (error) => error instanceof MessageError && error.retryable && error.code === 'unavailable');
  assert.deepEqual(socket.of('message').slice(0, 6).map(({ id }) => id), Array(6).fill(answer.id));
  assert.equal(socket.of('message').at(-1).id, next.id);
});

test('a refusal fails the message and says when to try again', async (t) => {
  const { client, connect } = await begin(t);
  const socket = await connect();
  const answer = client.send('a');
  socket.say({ type: 'error', id: answer.id, code: 'rate_limited', message: 'slow down', retryable: true, retry_after_ms: 4200 });
  await assert.rejects(answer.result, { code: 'rate_limited', retryable: true, retryAfterMs: 4200, message: 'slow down' });
  assert.equal((await collect(answer)).at(-1).code, 'rate_limited');
  const again = client.send('a', { id: answer.id });
  assert.equal(socket.of('message').at(-1).id, answer.id);
  assert.notEqual(again, answer);
});

test('a failure after acceptance ends the message', async (t) => {
  const { client, connect } = await begin(t);
  const socket = await connect();
  const answer = client.send('a');
  const [frame] = socket.of('message');
  socket.say(accepted(frame), about(frame, { type: 'error', code: 'provider_failed', message: 'no', retryable: true, position: 'p~0~0.3' }));
  await assert.rejects(answer.result, { code: 'provider_failed', messageId: `m-${frame.id}` });
  assert.equal(client.position, 'p~0~0.3');
});

test('a message that the limits would refuse is not sent', async (t) => {
  const { client, connect } = await begin(t);
  const socket = await connect({ limits: { max_content_chars: 3, max_frame_bytes: 120, max_pending: 8 } });
  await assert.rejects(client.send('four').result, { code: 'too_large' });
  const emoji = client.send('😀😀😀');
  assert.equal(emoji.state, 'sent', 'characters are counted, not UTF-16 units');
  await assert.rejects(client.send('a', { conversationId: 'c'.repeat(64) }).result, { code: 'too_large' });
  assert.equal(socket.of('message').length, 1);
  for (const bad of ['', '  ', 7, null]) assert.throws(() => client.send(bad), { code: 'invalid_message' });
  assert.throws(() => client.send('a', { conversationId: 'a b' }), { code: 'invalid_message' });
});

test('the number of open messages is bounded, and so is what is remembered of ended ones', async (t) => {
  const { client, connect } = await begin(t);
  const socket = await connect();
  for (let n = 0; n < 256; n += 1) client.send(`${n}`);
  assert.throws(() => client.send('one more'), { code: 'queue_full' });
  socket.say({ type: 'accepted', message_id: 'm-other', id: 'other', conversation_id: 'x', content: 'q' });
  assert.equal(client.open.length, 256, 'other devices too');
  while (client.open.length > 0) {
    const frame = socket.of('message').at(-1);
    socket.say(accepted(frame), response(frame, 'done'));
  }
  assert.equal(socket.of('message').length, 256);
});

test('cancel: by id, told again after a break, and the server says what came of it', async (t) => {
  const { client, connect, last, tick } = await begin(t);
  const socket = await connect();
  const answer = client.send('a');
  const [frame] = socket.of('message');
  socket.say(accepted(frame), delta(frame, 0, 'half'));
  const cancelling = answer.cancel();
  assert.equal(answer.cancel(), cancelling, 'once');
  assert.deepEqual(socket.of('cancel'), [{ type: 'cancel', id: answer.id }]);
  socket.end(1006);
  await tick(250);
  last().welcome({ recovered: true });
  assert.deepEqual(last().of('cancel'), [{ type: 'cancel', id: answer.id }]);
  last().say({ type: 'cancel_result', id: answer.id, result: 'cancelling' });
  assert.equal(await cancelling, 'cancelling');
  last().say(about(frame, { type: 'cancelled', content: 'half', position: 'p~0~0.5' }));
  const result = await answer.result;
  assert.deepEqual([result.status, result.content, answer.state], ['cancelled', 'half', 'cancelled']);
  assert.equal(await answer.cancel(), 'already_done');
});

test('cancel of what was never sent stays here; of what may be there it follows the message', async (t) => {
  const { client, connect, last, tick } = await begin(t);
  const idle = client.send('never sent');
  assert.equal(await idle.cancel(), 'cancelling');
  assert.equal((await idle.result).status, 'cancelled');
  await settle();
  last().welcome();
  assert.equal(last().of('message').length, 0);
  const unknown = client.send('b');
  last().end(1006);
  unknown.cancel();
  await tick(250);
  last().welcome({ recovered: true });
  assert.deepEqual(last().sent.map(({ type }) => type), ['message', 'cancel']);
});

test('a cancel that could not be done is told', async (t) => {
  const { client, connect } = await begin(t);
  const socket = await connect();
  const answer = client.send('a');
  socket.say(accepted(socket.of('message')[0]));
  const cancelling = answer.cancel();
  socket.say({ type: 'error', id: answer.id, code: 'unavailable', message: 'away', retryable: true });
  await assert.rejects(cancelling, { code: 'unavailable' });
  assert.equal(answer.ended, false);
});

test('interrupt is asked for in the frame', async (t) => {
  const { client, connect } = await begin(t);
  const socket = await connect();
  client.send('a', { interrupt: true });
  assert.equal(socket.of('message')[0].interrupt, true);
});

test('messages of other devices are told, also when the delta overtakes the question', async (t) => {
  const { client, connect } = await begin(t);
  const told = [];
  client.on('message', (answer) => told.push(answer));
  const socket = await connect({ pending: [{ message_id: 'm-1', id: '1', conversation_id: 'c', content: 'pending question' }] });
  assert.deepEqual([told[0].question, told[0].conversationId, told[0].mine], ['pending question', 'c', false]);
  const frame = { id: '2', conversation_id: 'c' };
  socket.say(delta(frame, 0, 'an'));
  assert.equal(told[1].question, null);
  socket.say({ ...accepted(frame), content: 'question' });
  assert.equal(told[1].question, 'question');
  socket.say(response(frame, 'answer'));
  assert.equal((await told[1].result).content, 'answer');
  socket.say(accepted(frame), delta(frame, 0, 'late'));
  assert.equal(told.length, 2, 'late frames of an ended message begin nothing');
});

test('not recovered: reload is told, and what may have ended unseen is asked for by the same id', async (t) => {
  const { client, connect, last, tick } = await begin(t);
  let reloads = 0;
  client.on('reload', () => (reloads += 1));
  const socket = await connect();
  assert.equal(reloads, 1);
  const answers = ['a', 'b'].map((text) => client.send(text, { conversationId: text }));
  const [a, b] = socket.of('message');
  socket.say(accepted(a), accepted(b), delta({ id: 'x', conversation_id: 'c' }, 0, 'of another device'));
  const [, , foreign] = client.open;
  foreign.id = null;
  socket.end(1006);
  await tick(250);
  last().welcome({ recovered: false, position: 'p~0~0.9', pending: [{ message_id: 'm-' + b.id, id: b.id, conversation_id: 'b' }] });
  assert.equal(reloads, 2);
  assert.deepEqual(last().of('message').map(({ id }) => id), [a.id], 'b is still pending');
  await assert.rejects(foreign.result, { code: 'missed' });
  last().say(accepted(a), response(a, 'told again', { position: 'p~0~0.2' }));
  assert.equal((await answers[0].result).content, 'told again');
  assert.equal(client.position, 'p~0~0.9', 'a position from before is not gone back to');
});

test('a welcome in the middle of a connection works as well', async (t) => {
  const { client, connect } = await begin(t);
  const socket = await connect();
  const answer = client.send('a');
  const [frame] = socket.of('message');
  socket.say(accepted(frame));
  socket.welcome({ recovered: false });
  assert.equal(socket.of('message').length, 2);
  assert.equal(socket.of('message')[1].id, answer.id);
});

test('the history is asked for with the token in a header, and a refused token is renewed once', async (t) => {
  const calls = [];
  const replies = [];
  const fetch = async (url, { method, headers }) => {
    calls.push([method, url.pathname + url.search, headers.authorization]);
    const [status, body] = replies.shift();
    return { ok: status < 300, status, json: async () => body };
  };
  let given = 0;
  const { client } = await begin(t, { fetch, token: async () => `t${(given += 1)}` });
  replies.push([200, { conversations: [], next: null }], [401, { code: 'unauthorized', message: 'no' }], [200, { messages: [], next: null }], [204], [500, { code: 'internal', message: 'broken' }]);
  await client.conversations({ limit: 5, after: 'x' });
  await client.messages('a|b', { before: 'm1' });
  await client.forget('a');
  await assert.rejects(client.forgetAll(), { name: 'HttpError', status: 500, code: 'internal', retryable: true });
  assert.deepEqual(calls, [
    ['GET', '/base/conversations?userid=me&limit=5&after=x', 'Bearer t1'],
    ['GET', '/base/conversations/a%7Cb/messages?userid=me&before=m1', 'Bearer t1'],
    ['GET', '/base/conversations/a%7Cb/messages?userid=me&before=m1', 'Bearer t2'],
    ['DELETE', '/base/conversations/a?userid=me', 'Bearer t2'],
    ['DELETE', '/base/conversations?userid=me', 'Bearer t2'],
  ]);
});
