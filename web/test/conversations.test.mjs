import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Chats } from '../app/chats.js';
import { Drafts } from '../app/composer.js';
import { ChatError, MessageError } from '../chatmesh.js';
import { begin } from './fake.mjs';

/** As a browser has it. */
class Store {
  map = new Map();
  getItem = (key) => this.map.get(key) ?? null;
  setItem = (key, value) => this.map.set(key, String(value));
  removeItem = (key) => this.map.delete(key);
}

function stores(t) {
  const before = globalThis.BroadcastChannel;
  Object.assign(globalThis, { localStorage: new Store(), sessionStorage: new Store(), BroadcastChannel: undefined });
  t.after(() => {
    globalThis.BroadcastChannel = before;
    delete globalThis.localStorage;
    delete globalThis.sessionStorage;
  });
}

const OUTBOX = 'chatmesh.outbox.me';
const outbox = () => JSON.parse(sessionStorage.getItem(OUTBOX)) ?? [];
const history = (pages) => ({
  fetch: async (url) => ({ ok: true, status: 200, json: async () => pages[url.pathname.split('/').at(-1)] ?? { conversations: [], messages: [], next: null } }),
});

test('refused messages are kept, bounded, shown by the next page, and sent by it with the same id', async (t) => {
  stores(t);
  const { client, connect } = await begin(t, history({}));
  const chats = new Chats(client, () => {});
  const socket = await connect();
  for (let n = 0; n < 60; n += 1) {
    chats.current = null;
    chats.ask(`question ${n}`);
    socket.say({ type: 'error', id: socket.of('message').at(-1).id, code: 'rate_limited', message: 'slow', retryable: true, retry_after_ms: 9 });
    t.mock.timers.tick(1);
  }
  assert.deepEqual(outbox().map(({ question }) => question), Array.from({ length: 50 }, (_, n) => `question ${n + 10}`));

  const next = new Chats(client, () => {});
  const before = socket.of('message').length;
  next.resume();
  assert.equal(socket.of('message').length, before, 'nothing is sent unasked');
  assert.deepEqual([next.list.length, next.list[0].title], [50, 'question 59']);
  await next.refresh();
  assert.equal(next.list.length, 50, 'the server does not know them, and they stay');
  const [chat] = next.list;
  const [turn] = chat.turns;
  assert.deepEqual([turn.status, turn.question, turn.error], ['failed', 'question 59', null]);
  next.retry(chat, turn);
  assert.equal(socket.of('message').at(-1).id, turn.id);
  assert.deepEqual(chat.turns.map(({ status }) => status), ['live']);
  assert.equal(outbox().filter(({ question }) => question === 'question 59').length, 1);
});

test('an outbox that was damaged is none', async (t) => {
  stores(t);
  const { client } = await begin(t, history({}));
  for (const damaged of ['{}', '7', '"x"', '[null, 3, {"refusedAt": 1}, {"refusedAt": 1, "id": 1, "conversationId": "c", "question": "q"}]']) {
    sessionStorage.setItem(OUTBOX, damaged);
    const chats = new Chats(client, () => {});
    chats.resume();
    assert.equal(chats.list.length, 0, damaged);
  }
});

test('what can not be sent at all ends at once, and does not hang', async (t) => {
  stores(t);
  const { client, connect } = await begin(t, history({}));
  const chats = new Chats(client, () => {});
  await connect();
  client.close();
  chats.ask('too late');
  const [turn] = chats.current.turns;
  assert.deepEqual([turn.live, turn.status, turn.error.code], [null, 'failed', 'closed']);
  assert.equal(outbox().length, 1);
  t.mock.method(client, 'send', () => {
    throw new ChatError('queue_full', 'full');
  });
  assert.throws(() => chats.retry(chats.current, turn), { code: 'queue_full' });
  assert.deepEqual(chats.current.turns, [turn], 'it is not lost by trying');
});

test('the history of a failed turn gives no answer, and the error that is known stays', async (t) => {
  stores(t);
  const failed = { message_id: 'm1', question: 'q', answer: 'Service temporarily unavailable', status: 'failed', timestamp: '' };
  const { client, connect } = await begin(t, history({ messages: { messages: [failed], next: null } }));
  const chats = new Chats(client, () => {});
  await connect();
  chats.open('c');
  const { current } = chats;
  await chats.load(current);
  assert.deepEqual([current.turns[0].text, current.turns[0].status], ['', 'failed']);
  current.turns[0].error = new MessageError('provider_rejected', 'no', { messageId: 'm1' });
  await chats.load(current);
  assert.equal(current.turns[0].error.code, 'provider_rejected');
});

test('a conversation that is nowhere leaves no trace, and a deleted one takes what was not sent with it', async (t) => {
  stores(t);
  const gone = [];
  const { client, connect } = await begin(t, history({}));
  const chats = new Chats(client, (what, chat) => what === 'gone' && gone.push(chat));
  chats.open('does-not-exist');
  await chats.load(chats.current);
  assert.equal(chats.current.loaded, true);
  chats.open(null);
  assert.equal(chats.list.length, 0);
  const socket = await connect();
  chats.ask('refused');
  socket.say({ type: 'error', id: socket.of('message')[0].id, code: 'rate_limited', message: 'slow' });
  assert.equal(outbox().length, 1);
  const { id } = chats.current;
  await chats.forget(chats.current);
  assert.deepEqual([outbox(), gone], [[], [id]]);
});

test('each conversation has its draft, kept for the next page, and there is a bound', (t) => {
  stores(t);
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
