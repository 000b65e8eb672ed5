import assert from 'node:assert/strict';
import { test } from 'node:test';

import { AuthError, ChatError, ChatMesh, ConnectionError } from '../chatmesh.js';
import { begin, settle } from './fake.mjs';

test('the token travels as a subprotocol and never in the address', async (t) => {
  const { connect } = await begin(t);
  const socket = await connect();
  assert.equal(socket.url.href, 'ws://chat.test/base/ws?userid=me');
  assert.deepEqual(socket.protocols, ['chatmesh.v1', 'bearer.tok']);
});

test('a user id or a token that can not be right is refused at once', async (t) => {
  assert.throws(() => new ChatMesh({ url: 'http://x', userId: 'a b', token: 't' }), { code: 'invalid_user' });
  const { client, sockets } = await begin(t, { token: 'two words' });
  client.connect();
  await settle();
  assert.equal(client.state.state, 'closed');
  assert.ok(client.state.error instanceof AuthError);
  assert.equal(sockets().length, 0);
});

for (const code of [1005, 1006, 1000, 1011, 4408, 4409, 4503]) {
  test(`close ${code}: comes back with its position, later each time`, async (t) => {
    const { connect, sockets, tick, last, client } = await begin(t);
    const socket = await connect({ position: 'p~0~0.7' });
    socket.end(code);
    assert.equal(client.state.state, 'waiting');
    await tick(249);
    assert.equal(sockets().length, 1);
    await tick(1);
    assert.equal(sockets().length, 2);
    assert.equal(last().url.searchParams.get('since'), 'p~0~0.7');
    for (const wait of [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000]) {
      const before = sockets().length;
      last().end(1006);
      await tick(wait - 1);
      assert.equal(sockets().length, before, `before ${wait} ms`);
      await tick(1);
      assert.equal(sockets().length, before + 1, `after ${wait} ms`);
    }
    last().welcome({ recovered: true });
    last().end(1006);
    await tick(250);
    assert.equal(client.state.state, 'connecting', 'a welcome begins the waiting times anew');
  });
}

test('the waiting time is jittered between half of it and all', async (t) => {
  const { connect, client } = await begin(t);
  const socket = await connect();
  Math.random.mock.mockImplementation(() => 0);
  socket.end(1006);
  assert.equal(client.state.retryInMs, 125);
});

for (const code of [1001, 1006]) {
  test(`a closing server says when to come back, also when the end is ${code}`, async (t) => {
    const { connect, sockets, tick } = await begin(t);
    const socket = await connect();
    socket.say({ type: 'closing', reason: 'going_away', retry_after_ms: 5000 });
    socket.end(code);
    await tick(4999);
    assert.equal(sockets().length, 1);
    await tick(64);
    assert.equal(sockets().length, 2);
  });
}

test('4429 waits at least half a minute', async (t) => {
  const { connect, sockets, tick } = await begin(t);
  (await connect()).end(4429, 'rate_abused');
  await tick(29_999);
  assert.equal(sockets().length, 1);
  await tick(100);
  assert.equal(sockets().length, 2);
});

for (const code of [1002, 1003, 1007, 1009]) {
  test(`close ${code}: never comes back, and what was open fails`, async (t) => {
    const { client, connect, sockets, tick } = await begin(t);
    const socket = await connect();
    const answer = client.send('hello');
    socket.end(code, 'too_big');
    await assert.rejects(answer.result, (error) => error instanceof ConnectionError && error.closeCode === code);
    await tick(600_000);
    assert.equal(sockets().length, 1);
    assert.equal(client.state.state, 'closed');
    assert.equal(client.send('more').state, 'failed');
  });
}

for (const code of [4401, 4403]) {
  test(`close ${code} with a fixed token: closed for good`, async (t) => {
    const { client, connect, sockets, tick } = await begin(t);
    (await connect()).end(code);
    await tick(600_000);
    assert.equal(sockets().length, 1);
    assert.ok(client.state.error instanceof AuthError);
  });

  test(`close ${code} with a token callback: a new one, at once, and then ever later`, async (t) => {
    const asked = [];
    const token = async (why) => `t${asked.push(why.refused)}`;
    const { client, connect, sockets, last, tick } = await begin(t, { token });
    (await connect()).end(code);
    await settle();
    assert.deepEqual(asked, [false, true]);
    assert.deepEqual(last().protocols, ['chatmesh.v1', 'bearer.t2']);
    last().end(code);
    await settle();
    assert.equal(sockets().length, 2, 'the second refusal in a row waits');
    for (let n = 0; n < 10; n += 1) {
      await tick(30_000);
      if (client.state.state === 'connecting') last().end(code);
    }
    assert.ok(client.state.error instanceof AuthError);
    assert.equal(sockets().length, 6);
  });
}

test('a token that ends is renewed before it is used again', async (t) => {
  let given = 0;
  const token = async () => ({ token: `t${(given += 1)}`, expiresInMs: 60_000 });
  const { connect, last, tick } = await begin(t, { token });
  (await connect()).end(1006);
  await tick(250);
  assert.deepEqual(last().protocols[1], 'bearer.t1');
  last().welcome();
  await tick(55_000);
  last().end(1006);
  await tick(30_000);
  assert.deepEqual(last().protocols[1], 'bearer.t2');
});

test('a token callback that fails is tried again, and its error is told', async (t) => {
  let fails = true;
  const token = async () => {
    if (fails) throw new Error('away');
    return 'tok';
  };
  const { client, sockets, tick } = await begin(t, { token });
  client.connect();
  await settle();
  assert.equal(client.state.state, 'waiting');
  assert.equal(client.state.error.message, 'away');
  fails = false;
  await tick(250);
  assert.equal(sockets().length, 1);
});

test('a server that never answers is given up on and tried again', async (t) => {
  const { client, sockets, last, tick } = await begin(t);
  client.connect();
  await settle();
  await tick(10_000);
  assert.equal(client.state.state, 'waiting');
  assert.equal(last().readyState, 3);
  await tick(250);
  assert.equal(sockets().length, 2);
  last().open();
  await tick(10_000);
  assert.equal(client.state.state, 'waiting', 'an open socket without a welcome is none');
});

test('a server that was never reached is not called lost', async (t) => {
  const { client, last, tick } = await begin(t);
  client.connect();
  await settle();
  last().end(1006);
  assert.match(client.state.words, /could not be reached/);
  await tick(250);
  last().welcome();
  last().end(1006);
  assert.match(client.state.words, /was lost/);
});

test('an address that is none is told in words', () => {
  for (const url of ['ftp://x', 'x', '', '//x/y', 'http://', 'localhost:8000', undefined]) {
    const made = () => new ChatMesh({ url, userId: 'me', token: 't' });
    assert.throws(made, (error) => error instanceof ChatError && error.code === 'invalid_url' && error.message.includes('http://'), url);
  }
  for (const url of ['ws://x', 'wss://x/y?z#a', 'http://x', new URL('https://x')]) new ChatMesh({ url, userId: 'me', token: 't' });
});

test('a silent connection is pinged, and dropped when no pong comes', async (t) => {
  const { client, connect, tick } = await begin(t);
  const socket = await connect({ heartbeat_ms: 1000 });
  await tick(1000);
  assert.equal(socket.of('ping').length, 1);
  socket.say({ type: 'pong' });
  await tick(1000);
  assert.equal(socket.of('ping').length, 2);
  await tick(10_000);
  assert.equal(client.state.state, 'waiting');
  assert.equal(socket.readyState, 3);
});

test('what a socket says after it was given up counts no more', async (t) => {
  const { client, connect, tick, last } = await begin(t);
  const old = await connect();
  await tick(25_000);
  await tick(10_000);
  await tick(250);
  last().welcome({ position: 'p~0~0.9' });
  old.say({ type: 'welcome', position: 'p~0~0.2', recovered: true });
  old.end(4401);
  assert.equal(client.position, 'p~0~0.9');
  assert.equal(client.state.state, 'open');
});

test('a server of another protocol is told from one of ours', async (t) => {
  const { client, last } = await begin(t);
  client.connect();
  await settle();
  const socket = last();
  socket.readyState = 1;
  socket.onopen({});
  assert.equal(client.state.error.code, 'protocol');
});

test('a browser that is online again, or shown again, tries at once', async (t) => {
  const world = new EventTarget();
  const page = Object.assign(new EventTarget(), { visibilityState: 'visible' });
  for (const [name, value] of [['addEventListener', world.addEventListener.bind(world)], ['removeEventListener', world.removeEventListener.bind(world)], ['document', page]]) {
    globalThis[name] = value;
    t.after(() => delete globalThis[name]);
  }
  const { client, connect, sockets, last, tick } = await begin(t);
  const socket = await connect();
  socket.end(1006);
  world.dispatchEvent(new Event('online'));
  await settle();
  assert.equal(sockets().length, 2);
  last().welcome({ recovered: true });
  page.dispatchEvent(new Event('visibilitychange'));
  assert.equal(last().of('ping').length, 1);
  await tick(3000);
  assert.equal(client.state.state, 'waiting', 'after a sleep nobody answers any more');
  client.close();
  world.dispatchEvent(new Event('online'));
  await settle();
  assert.equal(sockets().length, 2, 'closed is closed');
});

test('close says goodbye, fails what is open, and connect begins anew', async (t) => {
  const { client, connect, sockets, tick } = await begin(t);
  const socket = await connect();
  const answer = client.send('hello');
  client.close();
  assert.equal(socket.closedWith, 1000);
  await assert.rejects(answer.result, { code: 'closed' });
  await tick(600_000);
  assert.equal(sockets().length, 1);
  client.connect();
  await settle();
  assert.equal(sockets().length, 2);
});

test('a listener that throws does not stop the others', async (t) => {
  const { client, connect } = await begin(t);
  const later = t.mock.method(globalThis, 'queueMicrotask', () => {});
  client.on('reload', () => {
    throw new Error('mine');
  });
  let told = 0;
  client.on('reload', () => (told += 1));
  await connect();
  assert.throws(later.mock.calls[0].arguments[0], /mine/, 'its owner sees it');
  assert.equal(told, 1);
});
