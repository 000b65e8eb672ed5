import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Drafts } from '../app/composer.js';
import { Conversations } from '../app/conversations.js';
import { ChatError, MessageError } from '../chatmesh.js';
import { delta, startClient } from './fake-socket.mjs';

/** Replaces the browser's Storage. */
class FakeStorage {
  entries = new Map();
  getItem = (key) => this.entries.get(key) ?? null;
  setItem = (key, value) => this.entries.set(key, String(value));
  removeItem = (key) => this.entries.delete(key);
}

function installStorage(t) {
  const original = globalThis.BroadcastChannel;
  Object.assign(globalThis, { localStorage: new FakeStorage(), sessionStorage: new FakeStorage(), BroadcastChannel: undefined });
  t.after(() => {
    globalThis.BroadcastChannel = original;
    delete globalThis.localStorage;
    delete globalThis.sessionStorage;
  });
}

const OUTBOX_KEY = 'chatmesh.outbox.me';
const outbox = () => JSON.parse(sessionStorage.getItem(OUTBOX_KEY)) ?? [];
const history = (pages) => ({
  fetch: async (url) => ({ ok: true, status: 200, json: async () => pages[url.pathname.split('/').at(-1)] ?? { conversations: [], messages: [], next: null } }),
});

test('rejected messages are stored up to a limit, and the next page shows and resends them with the same id', async (t) => {
  installStorage(t);
  const { client, connect } = await startClient(t, history({}));
  const conversations = new Conversations(client, () => {});
  const socket = await connect();
  for (let n = 0; n < 60; n += 1) {
    conversations.current = null;
    conversations.ask(`question ${n}`);
    socket.receive({ type: 'error', id: socket.sentOfType('message').at(-1).id, code: 'rate_limited', message: 'slow', retryable: true, retry_after_ms: 9 });
    t.mock.timers.tick(1);
  }
  assert.deepEqual(outbox().map(({ question }) => question), Array.from({ length: 50 }, (_, n) => `question ${n + 10}`));

  const nextPage = new Conversations(client, () => {});
  const before = socket.sentOfType('message').length;
  nextPage.resume();
  assert.equal(socket.sentOfType('message').length, before, 'the page sends nothing without an action of the user');
  assert.deepEqual([nextPage.list.length, nextPage.list[0].title], [50, 'question 59']);
  await nextPage.refresh();
  assert.equal(nextPage.list.length, 50, 'unsent messages stay although the server does not know them');
  const [conversation] = nextPage.list;
  const [turn] = conversation.turns;
  assert.deepEqual([turn.status, turn.question, turn.error, turn.parts], ['failed', 'question 59', null, []]);
  nextPage.retry(conversation, turn);
  assert.equal(socket.sentOfType('message').at(-1).id, turn.id);
  assert.deepEqual(conversation.turns.map(({ status }) => status), ['live']);
  assert.equal(outbox().filter(({ question }) => question === 'question 59').length, 1);
});

test('damaged outbox is ignored', async (t) => {
  installStorage(t);
  const { client } = await startClient(t, history({}));
  for (const damaged of ['{}', '7', '"x"', '[null, 3, {"refusedAt": 1}, {"refusedAt": 1, "id": 1, "conversationId": "c", "question": "q"}]']) {
    sessionStorage.setItem(OUTBOX_KEY, damaged);
    const conversations = new Conversations(client, () => {});
    conversations.resume();
    assert.equal(conversations.list.length, 0, damaged);
  }
});

test('message that can not be sent fails at once and stays resendable', async (t) => {
  installStorage(t);
  const { client, connect } = await startClient(t, history({}));
  const conversations = new Conversations(client, () => {});
  await connect();
  client.close();
  conversations.ask('too late');
  const [turn] = conversations.current.turns;
  assert.deepEqual([turn.live, turn.status, turn.error.code], [null, 'failed', 'closed']);
  assert.equal(outbox().length, 1);
  t.mock.method(client, 'send', () => {
    throw new ChatError('queue_full', 'full');
  });
  assert.throws(() => conversations.retry(conversations.current, turn), { code: 'queue_full' });
  assert.deepEqual(conversations.current.turns, [turn], 'a failed retry does not remove the turn');
});

test('failed turn from the history has no answer text and keeps its known error', async (t) => {
  installStorage(t);
  const failed = { message_id: 'm1', question: 'q', answer: 'Service temporarily unavailable', status: 'failed', timestamp: '' };
  const { client, connect } = await startClient(t, history({ messages: { messages: [failed], next: null } }));
  const conversations = new Conversations(client, () => {});
  await connect();
  conversations.open('c');
  const { current } = conversations;
  await conversations.load(current);
  assert.deepEqual([current.turns[0].text, current.turns[0].status], ['', 'failed']);
  current.turns[0].error = new MessageError('provider_rejected', 'no', { messageId: 'm1' });
  await conversations.load(current);
  assert.equal(current.turns[0].error.code, 'provider_rejected');
});

test('turns have the parts of the history, and keep reasoning that only this page has received', async (t) => {
  installStorage(t);
  const entry = (id, fields) => ({ message_id: id, question: 'q', answer: 'ab', status: 'answered', timestamp: '', ...fields });
  const pages = { messages: { messages: [], next: null } };
  const { client, connect } = await startClient(t, history(pages));
  const conversations = new Conversations(client, () => {});
  const socket = await connect();
  conversations.ask('q');
  const { current } = conversations;
  const [turn] = current.turns;
  const frame = { message_id: 'm2', id: turn.id, conversation_id: current.id };
  socket.receive({ ...frame, ...delta('s.1', 0, 0, 'Hm', { kind: 'reasoning' }) });
  socket.receive({ ...frame, type: 'response', content: 'ab', parts: [{ kind: 'reasoning', length: 2 }, { kind: 'text', length: 2 }] });
  const shownParts = () => current.turns.map(({ parts }) => parts.map(({ kind, text }) => [kind, text]));
  const streamed = [['reasoning', 'Hm'], ['text', 'ab']];
  assert.deepEqual(shownParts(), [streamed]);
  pages.messages.messages = [entry('m2'), entry('m1', { parts: [{ kind: 'text', length: 1 }, { kind: 'source', meta: { url: 'u' }, content: '' }, { kind: 'refusal', length: 1 }] })];
  await conversations.load(current);
  const fromHistory = [['text', 'a'], ['source', ''], ['refusal', 'b']];
  assert.deepEqual(shownParts(), [fromHistory, streamed]);
  pages.messages.messages = [entry('m2', { answer: 'abc' }), entry('m1', { status: 'failed' })];
  await conversations.load(current);
  assert.deepEqual(shownParts(), [[], [['text', 'abc']]]);
  socket.receive({ type: 'accepted', message_id: 'm3', id: 'i3', conversation_id: current.id, content: 'q' }, { message_id: 'm3', id: 'i3', conversation_id: current.id, ...delta('s.3', 0, 0, 'half', { kind: 'text' }) });
  socket.receive({ type: 'error', message_id: 'm3', id: 'i3', conversation_id: current.id, code: 'internal', message: 'no' });
  assert.deepEqual(shownParts().at(-1), [], 'a failed turn has no parts');
});

test('unknown conversation is not listed, and deleting one removes its unsent messages', async (t) => {
  installStorage(t);
  const deleted = [];
  const { client, connect } = await startClient(t, history({}));
  const conversations = new Conversations(client, (change, id) => change === 'deleted' && deleted.push(id));
  conversations.open('does-not-exist');
  await conversations.load(conversations.current);
  assert.equal(conversations.current.isLoaded, true);
  conversations.open(null);
  assert.equal(conversations.list.length, 0);
  const socket = await connect();
  conversations.ask('refused');
  socket.receive({ type: 'error', id: socket.sentOfType('message')[0].id, code: 'rate_limited', message: 'slow' });
  assert.equal(outbox().length, 1);
  const { id } = conversations.current;
  await conversations.delete(conversations.current);
  assert.deepEqual([outbox(), deleted], [[], [id]]);
});

test('each conversation has its own draft, stored up to a limit', (t) => {
  installStorage(t);
  const drafts = new Drafts('me');
  drafts.set('', 'new');
  drafts.set('a', 'of a');
  assert.deepEqual(['', 'a', 'b'].map((id) => new Drafts('me').get(id)), ['new', 'of a', '']);
  assert.equal(new Drafts('you').get('a'), '');
  drafts.set('a', '');
  drafts.set('b', 'x'.repeat(40_001));
  assert.deepEqual(['a', 'b'].map((id) => new Drafts('me').get(id)), ['', '']);
  for (let n = 0; n < 60; n += 1) drafts.set(`c${n}`, 'text');
  assert.equal(Object.keys(JSON.parse(sessionStorage.getItem('chatmesh.drafts.me'))).length, 50);
  sessionStorage.setItem('chatmesh.drafts.me', '[7, null]');
  assert.equal(new Drafts('me').get('0'), '');
});
