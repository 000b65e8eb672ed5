import assert from 'node:assert/strict';
import { test } from 'node:test';

import { MessageError } from '../chatmesh.js';
import { startClient, collect, delta as deltaOf, flushPromises } from './fake-socket.mjs';

const frameFor = (frame, fields) => ({ message_id: `m-${frame.id}`, id: frame.id, conversation_id: frame.conversation_id, ...fields });
const accepted = (frame) => frameFor(frame, { type: 'accepted' });
/** A delta of the answer's only part, whose stream is the attempt's. */
const delta = (frame, offset, content, attempt = 1) => frameFor(frame, deltaOf(`s.${attempt}`, 0, offset, content, { kind: 'text', attempt }));
const response = (frame, content, fields) => frameFor(frame, { type: 'response', content, position: 'p~0~0.2', finish_reason: 'stop', model: 'm', ...fields });

test('answer streams by deltas and ends with the result', async (t) => {
  const { client, connect } = await startClient(t);
  const socket = await connect();
  const answer = client.send('hello', { conversationId: 'c1' });
  const updates = [];
  const reading = (async () => {
    for await (const update of answer) updates.push(update);
  })();
  const [frame] = socket.sentOfType('message');
  assert.deepEqual(frame, { type: 'message', id: answer.id, content: 'hello', conversation_id: 'c1' });
  assert.equal(answer.state, 'sent');
  socket.receive(accepted(frame));
  assert.equal(answer.state, 'accepted');
  for (const [offset, word] of [[0, 'one'], [3, ' two']]) {
    socket.receive(delta(frame, offset, word));
    await flushPromises();
  }
  socket.receive(response(frame, 'one two three'));
  await reading;
  assert.deepEqual(updates.map(({ delta, reset }) => [delta, reset]), [['one', false], [' two', false], [' three', false]]);
  assert.deepEqual(await answer.result, {
    status: 'answered', content: 'one two three', parts: [{ index: 0, kind: 'text', meta: null, text: 'one two three' }], id: answer.id, messageId: `m-${answer.id}`, conversationId: 'c1',
    finishReason: 'stop', model: 'm', usage: null, position: 'p~0~0.2',
  });
  assert.equal(client.position, 'p~0~0.2');
  assert.equal(client.open.length, 0);
});

test('slow reader gets several deltas as one update, and a late reader the whole text', async (t) => {
  const { client, connect } = await startClient(t);
  const socket = await connect();
  const answer = client.send('hello');
  const [frame] = socket.sentOfType('message');
  for (let offset = 0; offset < 1000; offset += 1) socket.receive(delta(frame, offset, 'x'));
  const reading = collect(answer);
  await flushPromises();
  socket.receive(response(frame, 'x'.repeat(1001)));
  assert.deepEqual((await reading).map(({ delta }) => delta.length), [1000, 1]);
  assert.deepEqual((await collect(answer)).map(({ delta }) => delta.length), [1001]);
});

test('restarted resets the text', async (t) => {
  const { client, connect } = await startClient(t);
  const socket = await connect();
  const answer = client.send('hello');
  const reading = collect(answer);
  const [frame] = socket.sentOfType('message');
  socket.receive(delta(frame, 0, 'first try'));
  await flushPromises();
  socket.receive(frameFor(frame, { type: 'restarted', stream: 's.2', attempt: 2 }));
  await flushPromises();
  socket.receive(delta(frame, 0, 'second', 2));
  await flushPromises();
  socket.receive(delta(frame, 9, ' of the first', 1), delta(frame, 6, ' of the first', 1), delta(frame, 6, ' try', 2), response(frame, 'second try'));
  assert.deepEqual((await reading).map(({ delta, reset }) => [delta, reset]), [['first try', false], ['', true], ['second', false], [' try', false]]);
});

test('snapshot extends the text or replaces it', async (t) => {
  const { client, connect } = await startClient(t);
  const socket = await connect();
  const answer = client.send('hello');
  const reading = collect(answer);
  const [frame] = socket.sentOfType('message');
  const snapshot = (content) => frameFor(frame, { type: 'snapshot', stream: 's.1', attempt: 1, parts: [{ kind: 'text', content }] });
  socket.receive(delta(frame, 0, 'one'));
  await flushPromises();
  socket.receive(snapshot('one two'), delta(frame, 3, ' two'), delta(frame, 7, ' three'));
  await flushPromises();
  socket.receive(snapshot('other'));
  await flushPromises();
  socket.receive(delta(frame, 6, 'AFTER A GAP'), response(frame, 'other text'));
  assert.deepEqual((await reading).map(({ delta, reset }) => [delta, reset]), [['one', false], [' two three', false], ['other', true], [' text', false]]);
});

test('unaccepted messages are resent with the same id and in the same order', async (t) => {
  const { client, connect, lastSocket, tick } = await startClient(t);
  const first = await connect();
  const answers = ['a', 'b', 'c'].map((text) => client.send(text, { conversationId: 'one' }));
  const other = client.send('d', { conversationId: 'two' });
  assert.deepEqual(first.sentOfType('message').map(({ content }) => content), ['a', 'd'], 'one message per conversation at a time');
  first.receive(accepted(first.sent[0]));
  assert.deepEqual(first.sentOfType('message').map(({ content }) => content), ['a', 'd', 'b']);
  first.closeByServer(1006);
  const queued = client.send('e', { conversationId: 'one' });
  await tick(250);
  lastSocket().welcome({ recovered: true });
  await flushPromises();
  const secondSocket = lastSocket();
  assert.deepEqual(secondSocket.sentOfType('message').map(({ id }) => id), [answers[1].id, other.id]);
  secondSocket.receive(accepted(secondSocket.sent[0]));
  secondSocket.receive(accepted(secondSocket.sentOfType('message').at(-1)));
  assert.deepEqual(secondSocket.sentOfType('message').map(({ content }) => content), ['b', 'd', 'c', 'e']);
  assert.equal(queued.state, 'sent');
});

test('message is resent a limited number of times after unavailable, and the order is kept', async (t) => {
  const { client, connect, tick } = await startClient(t);
  const socket = await connect();
  const answer = client.send('a');
  const next = client.send('b');
  for (let n = 0; n < 6; n += 1) {
    assert.equal(socket.sentOfType('message').length, n + 1);
    socket.receive({ type: 'error', id: answer.id, code: 'unavailable', message: 'away', retryable: true });
    await tick(60_000);
  }
  await assert.rejects(answer.result, (error) => error instanceof MessageError && error.retryable && error.code === 'unavailable');
  assert.deepEqual(socket.sentOfType('message').slice(0, 6).map(({ id }) => id), Array(6).fill(answer.id));
  assert.equal(socket.sentOfType('message').at(-1).id, next.id);
});

test('rejection fails the message with its retry delay', async (t) => {
  const { client, connect } = await startClient(t);
  const socket = await connect();
  const answer = client.send('a');
  socket.receive({ type: 'error', id: answer.id, code: 'rate_limited', message: 'slow down', retryable: true, retry_after_ms: 4200 });
  await assert.rejects(answer.result, { code: 'rate_limited', retryable: true, retryAfterMs: 4200, message: 'slow down' });
  assert.equal((await collect(answer)).at(-1).code, 'rate_limited');
  const resent = client.send('a', { id: answer.id });
  assert.equal(socket.sentOfType('message').at(-1).id, answer.id);
  assert.notEqual(resent, answer);
});

test('error after acceptance ends the message', async (t) => {
  const { client, connect } = await startClient(t);
  const socket = await connect();
  const answer = client.send('a');
  const [frame] = socket.sentOfType('message');
  socket.receive(accepted(frame), frameFor(frame, { type: 'error', code: 'provider_failed', message: 'no', retryable: true, position: 'p~0~0.3' }));
  await assert.rejects(answer.result, { code: 'provider_failed', messageId: `m-${frame.id}` });
  assert.equal(client.position, 'p~0~0.3');
});

test('message above the limits is not sent', async (t) => {
  const { client, connect } = await startClient(t);
  const socket = await connect({ limits: { max_content_chars: 3, max_frame_bytes: 120, max_pending: 8 } });
  await assert.rejects(client.send('four').result, { code: 'too_large' });
  const emoji = client.send('😀😀😀');
  assert.equal(emoji.state, 'sent', 'characters are counted, not UTF-16 units');
  await assert.rejects(client.send('a', { conversationId: 'c'.repeat(64) }).result, { code: 'too_large' });
  assert.equal(socket.sentOfType('message').length, 1);
  for (const invalid of ['', '  ', 7, null]) assert.throws(() => client.send(invalid), { code: 'invalid_message' });
  assert.throws(() => client.send('a', { conversationId: 'a b' }), { code: 'invalid_message' });
});

test('number of open messages is bounded', async (t) => {
  const { client, connect } = await startClient(t);
  const socket = await connect();
  for (let n = 0; n < 256; n += 1) client.send(`${n}`);
  assert.throws(() => client.send('one more'), { code: 'queue_full' });
  socket.receive({ type: 'accepted', message_id: 'm-other', id: 'other', conversation_id: 'x', content: 'q' });
  assert.equal(client.open.length, 256, 'messages of other devices count, too');
  while (client.open.length > 0) {
    const frame = socket.sentOfType('message').at(-1);
    socket.receive(accepted(frame), response(frame, 'done'));
  }
  assert.equal(socket.sentOfType('message').length, 256);
});

test('cancel is resent after a reconnect and resolves with the result of the server', async (t) => {
  const { client, connect, lastSocket, tick } = await startClient(t);
  const socket = await connect();
  const answer = client.send('a');
  const [frame] = socket.sentOfType('message');
  socket.receive(accepted(frame), delta(frame, 0, 'half'));
  const cancelling = answer.cancel();
  assert.equal(answer.cancel(), cancelling, 'a second cancel shares the request');
  assert.deepEqual(socket.sentOfType('cancel'), [{ type: 'cancel', id: answer.id }]);
  socket.closeByServer(1006);
  await tick(250);
  lastSocket().welcome({ recovered: true });
  assert.deepEqual(lastSocket().sentOfType('cancel'), [{ type: 'cancel', id: answer.id }]);
  lastSocket().receive({ type: 'cancel_result', id: answer.id, result: 'cancelling' });
  assert.equal(await cancelling, 'cancelling');
  lastSocket().receive(frameFor(frame, { type: 'cancelled', content: 'half', position: 'p~0~0.5' }));
  const result = await answer.result;
  assert.deepEqual([result.status, result.content, answer.state], ['cancelled', 'half', 'cancelled']);
  assert.equal(await answer.cancel(), 'already_done');
});

test('cancel of an unsent message is local, and of a possibly accepted one it is sent after the message', async (t) => {
  const { client, connect, lastSocket, tick } = await startClient(t);
  const unsent = client.send('never sent');
  assert.equal(await unsent.cancel(), 'cancelling');
  assert.equal((await unsent.result).status, 'cancelled');
  await flushPromises();
  lastSocket().welcome();
  assert.equal(lastSocket().sentOfType('message').length, 0);
  const possiblyAccepted = client.send('b');
  lastSocket().closeByServer(1006);
  possiblyAccepted.cancel();
  await tick(250);
  lastSocket().welcome({ recovered: true });
  assert.deepEqual(lastSocket().sent.map(({ type }) => type), ['message', 'cancel']);
});

test('failed cancel rejects and leaves the message open', async (t) => {
  const { client, connect } = await startClient(t);
  const socket = await connect();
  const answer = client.send('a');
  socket.receive(accepted(socket.sentOfType('message')[0]));
  const cancelling = answer.cancel();
  socket.receive({ type: 'error', id: answer.id, code: 'unavailable', message: 'away', retryable: true });
  await assert.rejects(cancelling, { code: 'unavailable' });
  assert.equal(answer.ended, false);
});

test('interrupt is a field of the message frame', async (t) => {
  const { client, connect } = await startClient(t);
  const socket = await connect();
  client.send('a', { interrupt: true });
  assert.equal(socket.sentOfType('message')[0].interrupt, true);
});

test('messages of other devices are reported, also when a delta arrives before the question', async (t) => {
  const { client, connect } = await startClient(t);
  const received = [];
  client.on('message', (answer) => received.push(answer));
  const socket = await connect({ pending: [{ message_id: 'm-1', id: '1', conversation_id: 'c', content: 'pending question' }] });
  assert.deepEqual([received[0].question, received[0].conversationId, received[0].mine], ['pending question', 'c', false]);
  const frame = { id: '2', conversation_id: 'c' };
  socket.receive(delta(frame, 0, 'an'));
  assert.equal(received[1].question, null);
  socket.receive({ ...accepted(frame), content: 'question' });
  assert.equal(received[1].question, 'question');
  socket.receive(response(frame, 'answer'));
  assert.equal((await received[1].result).content, 'answer');
  socket.receive(accepted(frame), delta(frame, 0, 'late'));
  assert.equal(received.length, 2, 'late frames of an ended message change nothing');
});

test('without recovery, reload is emitted and possibly ended messages are resent with the same id', async (t) => {
  const { client, connect, lastSocket, tick } = await startClient(t);
  let reloads = 0;
  client.on('reload', () => (reloads += 1));
  const socket = await connect();
  assert.equal(reloads, 1);
  const answers = ['a', 'b'].map((text) => client.send(text, { conversationId: text }));
  const [a, b] = socket.sentOfType('message');
  socket.receive(accepted(a), accepted(b), delta({ id: 'x', conversation_id: 'c' }, 0, 'of another device'));
  const [, , answerOfOtherDevice] = client.open;
  answerOfOtherDevice.id = null;
  socket.closeByServer(1006);
  await tick(250);
  lastSocket().welcome({ recovered: false, position: 'p~0~0.9', pending: [{ message_id: 'm-' + b.id, id: b.id, conversation_id: 'b' }] });
  assert.equal(reloads, 2);
  assert.deepEqual(lastSocket().sentOfType('message').map(({ id }) => id), [a.id], 'b is still pending');
  await assert.rejects(answerOfOtherDevice.result, { code: 'missed' });
  lastSocket().receive(accepted(a), response(a, 'repeated', { position: 'p~0~0.2' }));
  assert.equal((await answers[0].result).content, 'repeated');
  assert.equal(client.position, 'p~0~0.9', 'an older position is ignored');
});

test('welcome in the middle of a connection is handled', async (t) => {
  const { client, connect } = await startClient(t);
  const socket = await connect();
  const answer = client.send('a');
  const [frame] = socket.sentOfType('message');
  socket.receive(accepted(frame));
  socket.welcome({ recovered: false });
  assert.equal(socket.sentOfType('message').length, 2);
  assert.equal(socket.sentOfType('message')[1].id, answer.id);
});

test('history requests send the token in a header and renew a rejected one once', async (t) => {
  const calls = [];
  const replies = [];
  const fetch = async (url, { method, headers }) => {
    calls.push([method, url.pathname + url.search, headers.authorization]);
    const [status, body] = replies.shift();
    return { ok: status < 300, status, json: async () => body };
  };
  let issued = 0;
  const { client } = await startClient(t, { fetch, token: async () => `t${(issued += 1)}` });
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
