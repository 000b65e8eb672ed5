import assert from 'node:assert/strict';
import { test } from 'node:test';

import { AuthError, ChatError, ChatMesh, ConnectionError } from '../chatmesh.js';
import { flushPromises, startClient } from './fake-socket.mjs';

test('token is sent as a subprotocol and not in the address', async (t) => {
  const { connect } = await startClient(t);
  const socket = await connect();
  assert.equal(socket.url.href, 'ws://chat.test/base/ws?userid=me');
  assert.deepEqual(socket.protocols, ['chatmesh.v1', 'bearer.tok']);
});

test('invalid user id or token is rejected without connecting', async (t) => {
  assert.throws(() => new ChatMesh({ url: 'http://x', userId: 'a b', token: 't' }), { code: 'invalid_user' });
  const { client, sockets } = await startClient(t, { token: 'two words' });
  client.connect();
  await flushPromises();
  assert.equal(client.state.state, 'closed');
  assert.ok(client.state.error instanceof AuthError);
  assert.equal(sockets().length, 0);
});

for (const code of [1005, 1006, 1000, 1011, 4408, 4409, 4503]) {
  test(`close ${code}: reconnects from its position with exponential backoff`, async (t) => {
    const { connect, sockets, tick, lastSocket, client } = await startClient(t);
    const socket = await connect({ position: 'p~0~0.7' });
    socket.closeByServer(code);
    assert.equal(client.state.state, 'waiting');
    await tick(249);
    assert.equal(sockets().length, 1);
    await tick(1);
    assert.equal(sockets().length, 2);
    assert.equal(lastSocket().url.searchParams.get('since'), 'p~0~0.7');
    for (const wait of [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000]) {
      const before = sockets().length;
      lastSocket().closeByServer(1006);
      await tick(wait - 1);
      assert.equal(sockets().length, before, `before ${wait} ms`);
      await tick(1);
      assert.equal(sockets().length, before + 1, `after ${wait} ms`);
    }
    lastSocket().welcome({ recovered: true });
    lastSocket().closeByServer(1006);
    await tick(250);
    assert.equal(client.state.state, 'connecting', 'a welcome resets the backoff');
  });
}

test('backoff is jittered between half and all of the delay', async (t) => {
  const { connect, client } = await startClient(t);
  const socket = await connect();
  Math.random.mock.mockImplementation(() => 0);
  socket.closeByServer(1006);
  assert.equal(client.state.retryInMs, 125);
});

for (const code of [1001, 1006]) {
  test(`delay of a closing frame is used after close ${code}`, async (t) => {
    const { connect, sockets, tick } = await startClient(t);
    const socket = await connect();
    socket.receive({ type: 'closing', reason: 'going_away', retry_after_ms: 5000 });
    socket.closeByServer(code);
    await tick(4999);
    assert.equal(sockets().length, 1);
    await tick(64);
    assert.equal(sockets().length, 2);
  });
}

test('close 4429: reconnects after at least 30 s', async (t) => {
  const { connect, sockets, tick } = await startClient(t);
  (await connect()).closeByServer(4429, 'rate_abused');
  await tick(29_999);
  assert.equal(sockets().length, 1);
  await tick(100);
  assert.equal(sockets().length, 2);
});

for (const code of [1002, 1003, 1007, 1009]) {
  test(`close ${code}: does not reconnect, and open messages fail`, async (t) => {
    const { client, connect, sockets, tick } = await startClient(t);
    const socket = await connect();
    const answer = client.send('hello');
    socket.closeByServer(code, 'too_big');
    await assert.rejects(answer.result, (error) => error instanceof ConnectionError && error.closeCode === code);
    await tick(600_000);
    assert.equal(sockets().length, 1);
    assert.equal(client.state.state, 'closed');
    assert.equal(client.send('more').state, 'failed');
  });
}

for (const code of [4401, 4403]) {
  test(`close ${code} with a fixed token: does not reconnect`, async (t) => {
    const { client, connect, sockets, tick } = await startClient(t);
    (await connect()).closeByServer(code);
    await tick(600_000);
    assert.equal(sockets().length, 1);
    assert.ok(client.state.error instanceof AuthError);
  });

  test(`close ${code} with a token callback: retries with a new token, at once and then with backoff`, async (t) => {
    const refusals = [];
    const token = async ({ refused }) => `t${refusals.push(refused)}`;
    const { client, connect, sockets, lastSocket, tick } = await startClient(t, { token });
    (await connect()).closeByServer(code);
    await flushPromises();
    assert.deepEqual(refusals, [false, true]);
    assert.deepEqual(lastSocket().protocols, ['chatmesh.v1', 'bearer.t2']);
    lastSocket().closeByServer(code);
    await flushPromises();
    assert.equal(sockets().length, 2, 'the second rejection in a row waits');
    for (let n = 0; n < 10; n += 1) {
      await tick(30_000);
      if (client.state.state === 'connecting') lastSocket().closeByServer(code);
    }
    assert.ok(client.state.error instanceof AuthError);
    assert.equal(sockets().length, 6);
  });
}

test('expired token is renewed before the next connection', async (t) => {
  let issued = 0;
  const token = async () => ({ token: `t${(issued += 1)}`, expiresInMs: 60_000 });
  const { connect, lastSocket, tick } = await startClient(t, { token });
  (await connect()).closeByServer(1006);
  await tick(250);
  assert.deepEqual(lastSocket().protocols[1], 'bearer.t1');
  lastSocket().welcome();
  await tick(55_000);
  lastSocket().closeByServer(1006);
  await tick(30_000);
  assert.deepEqual(lastSocket().protocols[1], 'bearer.t2');
});

test('failed token callback is retried, and its error is in the state', async (t) => {
  let isFailing = true;
  const token = async () => {
    if (isFailing) throw new Error('away');
    return 'tok';
  };
  const { client, sockets, tick } = await startClient(t, { token });
  client.connect();
  await flushPromises();
  assert.equal(client.state.state, 'waiting');
  assert.equal(client.state.error.message, 'away');
  isFailing = false;
  await tick(250);
  assert.equal(sockets().length, 1);
});

test('connection attempt without a welcome times out and is retried', async (t) => {
  const { client, sockets, lastSocket, tick } = await startClient(t);
  client.connect();
  await flushPromises();
  await tick(10_000);
  assert.equal(client.state.state, 'waiting');
  assert.equal(lastSocket().readyState, 3);
  await tick(250);
  assert.equal(sockets().length, 2);
  lastSocket().open();
  await tick(10_000);
  assert.equal(client.state.state, 'waiting', 'an open socket without a welcome does not count');
});

test('state distinguishes an unreachable server from a lost connection', async (t) => {
  const { client, lastSocket, tick } = await startClient(t);
  client.connect();
  await flushPromises();
  lastSocket().closeByServer(1006);
  assert.match(client.state.words, /could not be reached/);
  await tick(250);
  lastSocket().welcome();
  lastSocket().closeByServer(1006);
  assert.match(client.state.words, /was lost/);
});

test('invalid url is rejected with an explanation', () => {
  for (const url of ['ftp://x', 'x', '', '//x/y', 'http://', 'localhost:8000', undefined]) {
    const create = () => new ChatMesh({ url, userId: 'me', token: 't' });
    assert.throws(create, (error) => error instanceof ChatError && error.code === 'invalid_url' && error.message.includes('http://'), url);
  }
  for (const url of ['ws://x', 'wss://x/y?z#a', 'http://x', new URL('https://x')]) new ChatMesh({ url, userId: 'me', token: 't' });
});

test('silent connection is pinged, and dropped without a pong', async (t) => {
  const { client, connect, tick } = await startClient(t);
  const socket = await connect({ heartbeat_ms: 1000 });
  await tick(1000);
  assert.equal(socket.sentOfType('ping').length, 1);
  socket.receive({ type: 'pong' });
  await tick(1000);
  assert.equal(socket.sentOfType('ping').length, 2);
  await tick(10_000);
  assert.equal(client.state.state, 'waiting');
  assert.equal(socket.readyState, 3);
});

test('events of an abandoned socket are ignored', async (t) => {
  const { client, connect, tick, lastSocket } = await startClient(t);
  const oldSocket = await connect();
  await tick(25_000);
  await tick(10_000);
  await tick(250);
  lastSocket().welcome({ position: 'p~0~0.9' });
  oldSocket.receive({ type: 'welcome', position: 'p~0~0.2', recovered: true });
  oldSocket.closeByServer(4401);
  assert.equal(client.position, 'p~0~0.9');
  assert.equal(client.state.state, 'open');
});

test('server that selects no subprotocol is reported', async (t) => {
  const { client, lastSocket } = await startClient(t);
  client.connect();
  await flushPromises();
  const socket = lastSocket();
  socket.readyState = 1;
  socket.onopen({});
  assert.equal(client.state.error.code, 'protocol');
});

test('online and visibilitychange events trigger a reconnect or a ping', async (t) => {
  const browser = new EventTarget();
  const page = Object.assign(new EventTarget(), { visibilityState: 'visible' });
  for (const [name, value] of [['addEventListener', browser.addEventListener.bind(browser)], ['removeEventListener', browser.removeEventListener.bind(browser)], ['document', page]]) {
    globalThis[name] = value;
    t.after(() => delete globalThis[name]);
  }
  const { client, connect, sockets, lastSocket, tick } = await startClient(t);
  const socket = await connect();
  socket.closeByServer(1006);
  browser.dispatchEvent(new Event('online'));
  await flushPromises();
  assert.equal(sockets().length, 2);
  lastSocket().welcome({ recovered: true });
  page.dispatchEvent(new Event('visibilitychange'));
  assert.equal(lastSocket().sentOfType('ping').length, 1);
  await tick(3000);
  assert.equal(client.state.state, 'waiting', 'without a pong the connection is dropped');
  client.close();
  browser.dispatchEvent(new Event('online'));
  await flushPromises();
  assert.equal(sockets().length, 2, 'a closed client stays closed');
});

test('close fails open messages, and connect starts again', async (t) => {
  const { client, connect, sockets, tick } = await startClient(t);
  const socket = await connect();
  const answer = client.send('hello');
  client.close();
  assert.equal(socket.closedWith, 1000);
  await assert.rejects(answer.result, { code: 'closed' });
  await tick(600_000);
  assert.equal(sockets().length, 1);
  client.connect();
  await flushPromises();
  assert.equal(sockets().length, 2);
});

test('throwing listener does not stop the others', async (t) => {
  const { client, connect } = await startClient(t);
  const queueMicrotaskMock = t.mock.method(globalThis, 'queueMicrotask', () => {});
  client.on('reload', () => {
    throw new Error('mine');
  });
  let calls = 0;
  client.on('reload', () => (calls += 1));
  await connect();
  assert.throws(queueMicrotaskMock.mock.calls[0].arguments[0], /mine/, 'the error is reported as uncaught');
  assert.equal(calls, 1);
});
