import assert from 'node:assert/strict';
import { test } from 'node:test';

import { collect, delta, flushPromises, startClient } from './fake-socket.mjs';

const MESSAGE = { message_id: 'm-1', id: 'i-1', conversation_id: 'c' };
const STREAM = 'k3Jd.1';
const TEXT_KINDS = ['text', 'refusal'];

const frame = (fields) => ({ ...MESSAGE, ...fields });
const deltaFrame = (...fields) => frame(delta(...fields));
const snapshot = (parts, stream = STREAM) => frame({ type: 'snapshot', userid: 'me', stream, attempt: 1, parts });
const restarted = (stream, attempt = 2) => frame({ type: 'restarted', userid: 'me', stream, attempt });
const response = (content, parts) => frame({ type: 'response', userid: 'me', content, position: 'p~0~0.2', ...(parts && { parts }) });

/** The parts as `[kind, text]`, or `[kind, text, meta]` where there is meta data. */
const shown = ({ parts }) => parts.map(({ kind, text, meta }) => (meta ? [kind, text, meta] : [kind, text]));
const textOf = (parts) => parts.filter(({ kind }) => TEXT_KINDS.includes(kind)).map(({ text }) => text).join('');

/** Checks what holds for an answer at any time. */
function assertConsistent(answer) {
  assert.deepEqual(answer.parts.map(({ index }) => index), answer.parts.map((_, index) => index));
  assert.equal(answer.text, textOf(answer.parts));
}

/** A client that has sent one message, which the server has accepted. */
async function startAnswer(t) {
  const context = await startClient(t);
  const socket = await context.connect();
  const answer = context.client.send('question', { id: MESSAGE.id, conversationId: MESSAGE.conversation_id });
  socket.receive(frame({ type: 'accepted' }));
  return { ...context, socket, answer };
}

/** A pseudorandom number generator (mulberry32), so that a failure can be repeated by its seed. */
function randomNumbers(seed) {
  let state = seed;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let value = Math.imul(state ^ (state >>> 15), 1 | state);
    value = (value + Math.imul(value ^ (value >>> 7), 61 | value)) ^ value;
    return ((value ^ (value >>> 14)) >>> 0) % below;
  };
}

/** Characters: of the basic plane, outside of it, combined, joined, and right to left. */
const CHARACTERS = ['a', ' ', 'ß', '😀', 'e\u0301', '👩‍👩‍👧', '\u05d0', '𝒳', '"', '\\', '\n', '<b>'];
const META = {
  tool_call: { id: 'call-1', name: 'search' },
  source: { url: 'https://a.example/', title: 'A' },
  data: { name: 'chart' },
};
const KINDS = ['text', 'refusal', 'reasoning', 'tool_call', 'source', 'data', 'of_a_later_server'];

function randomParts(random) {
  return Array.from({ length: 1 + random(6) }, (_, index) => {
    const kind = KINDS[random(KINDS.length)];
    const text = kind === 'source' ? '' : Array.from({ length: random(9) }, () => CHARACTERS[random(CHARACTERS.length)]).join('');
    return { index, kind, meta: META[kind] ?? null, text };
  });
}

/** The deltas of a stream: each part is opened and then extended by pieces of random lengths. */
function toDeltas(parts, random, stream = STREAM) {
  return parts.flatMap(({ index, kind, meta, text }) => {
    const characters = [...text];
    const deltas = [];
    let offset = 0;
    do {
      const content = characters.splice(0, random(4)).join('');
      if (content === '' && offset > 0) continue;
      deltas.push(deltaFrame(stream, index, offset, content, { kind, meta, previousEnd: parts[index - 1]?.text.length }));
      // The opening of an empty part is followed by the piece at the same offset.
      if (offset === 0 && content === '' && characters.length > 0) {
        const next = characters.splice(0, 1 + random(3)).join('');
        const { kind: _kind, meta: _meta, previous_end: _end, ...later } = deltaFrame(stream, index, 0, next, { kind });
        deltas.push(later);
        offset += next.length;
      }
      offset += content.length;
    } while (characters.length > 0);
    return deltas;
  });
}

/** The parts of a snapshot after the first `count` deltas. */
function joinDeltas(deltas, count) {
  const parts = [];
  for (const { part, offset, kind, meta, content } of deltas.slice(0, count)) {
    parts[part] ??= { kind, ...(meta && { meta }), content: '' };
    assert.equal(parts[part].content.length, offset, 'the generated deltas follow each other');
    parts[part].content += content;
  }
  return parts;
}

/** The parts of a terminal frame, by the rules of the protocol. */
function toTerminal(parts, keepsReasoning) {
  const content = textOf(parts);
  if (parts.length === 1 && parts[0].kind === 'text') return response(content);
  return response(content, parts.map(({ kind, meta, text }) => {
    if (TEXT_KINDS.includes(kind)) return { kind, length: text.length };
    if (kind === 'reasoning') return { kind, length: text.length, ...(keepsReasoning && { content: text }) };
    return { kind, ...(meta && { meta }), content: text };
  }));
}

test('deltas of any parts and pieces add up, whatever is repeated, and the terminal frame changes nothing', async (t) => {
  const { client, connect } = await startClient(t);
  const socket = await connect();
  for (let seed = 1; seed <= 120; seed += 1) {
    const random = randomNumbers(seed);
    const parts = randomParts(random);
    const deltas = toDeltas(parts, random);
    const own = (other) => ({ ...other, message_id: `m-${seed}`, id: `i-${seed}` });
    const answer = client.send('q', { id: `i-${seed}`, conversationId: `c${seed}` });
    for (const [n, next] of deltas.entries()) {
      socket.receive(own(next));
      // Any earlier delta of the stream may arrive again.
      const repeated = deltas[random(n + 1)];
      socket.receive(own(repeated));
      assertConsistent(answer);
    }
    assert.deepEqual(answer.parts, parts, `seed ${seed}`);
    const streamed = answer.parts;
    socket.receive(own(toTerminal(parts, seed % 2 === 0)));
    assert.equal(answer.parts, streamed, `seed ${seed}: the parts were not replaced`);
    assert.deepEqual((await answer.result).parts, parts, `seed ${seed}`);
    assert.equal((await answer.result).content, textOf(parts));
  }
});

test('snapshot at any point resumes to the same parts, with deltas from before and after it', async (t) => {
  const { client, connect } = await startClient(t);
  const socket = await connect();
  const received = [];
  client.on('message', (answer) => received.push(answer));
  for (let seed = 1; seed <= 30; seed += 1) {
    const random = randomNumbers(seed);
    const parts = randomParts(random);
    const deltas = toDeltas(parts, random);
    for (let cut = 0; cut <= deltas.length; cut += 1) {
      const own = (other) => ({ ...other, message_id: `m-${seed}-${cut}`, id: `i-${seed}-${cut}` });
      // The snapshot has the first deltas, of which some follow late.
      socket.receive(own(snapshot(joinDeltas(deltas, cut))));
      const answer = received.at(-1);
      for (const next of deltas.slice(random(cut + 1))) socket.receive(own(next));
      assert.deepEqual(answer.parts, parts, `seed ${seed}, cut ${cut}`);
      assertConsistent(answer);
      const before = answer.parts;
      socket.receive(own(snapshot(joinDeltas(deltas, deltas.length))));
      assert.equal(answer.parts, before, 'the snapshot of the same parts replaces nothing');
      socket.receive(own(response(textOf(parts), toTerminal(parts).parts)));
      assert.deepEqual(answer.parts, parts);
    }
  }
});

test('lost delta at any point never mixes up the parts, and a snapshot repairs them', async (t) => {
  const { client, connect } = await startClient(t);
  const socket = await connect();
  for (let seed = 1; seed <= 30; seed += 1) {
    const random = randomNumbers(seed);
    const parts = randomParts(random);
    const deltas = toDeltas(parts, random);
    for (let lost = 0; lost < deltas.length; lost += 1) {
      // The loss of an empty piece is no gap.
      if (lost > 0 && deltas[lost].content === '' && deltas[lost].kind === undefined) continue;
      const id = `i-${seed}-${lost}`;
      const own = (other) => ({ ...other, message_id: `m-${id}`, id });
      const answer = client.send('q', { id, conversationId: id });
      for (const [n, next] of deltas.entries()) if (n !== lost) socket.receive(own(next));
      const expected = joinDeltas(deltas, lost).map(({ kind, content }) => [kind, content]);
      assert.deepEqual(answer.parts.map(({ kind, text }) => [kind, text]), expected, `seed ${seed}, lost ${lost}`);
      socket.receive(own(snapshot(joinDeltas(deltas, deltas.length))));
      assert.deepEqual(answer.parts, parts, `seed ${seed}, lost ${lost}`);
      socket.receive(own(toTerminal(parts)));
    }
  }
});

test('readers of any speed get the whole text as deltas and each part at its end', async (t) => {
  const { client, connect } = await startClient(t);
  const socket = await connect();
  for (let seed = 1; seed <= 60; seed += 1) {
    const random = randomNumbers(seed);
    const first = randomParts(random);
    const second = randomParts(random);
    const own = (other) => ({ ...other, message_id: `m-${seed}`, id: `i-${seed}` });
    const answer = client.send('q', { id: `i-${seed}`, conversationId: `c${seed}` });
    const readers = [0, 1, 5].map((pauses) => read(answer, pauses));
    const before = toDeltas(first, random).slice(0, 1 + random(6));
    const frames = [...before, restarted('other.2'), ...toDeltas(second, random, 'other.2'), toTerminal(second)];
    for (const next of frames) {
      socket.receive(own(next));
      if (random(2) === 0) await flushPromises();
    }
    for (const { text, parts, updates } of await Promise.all(readers)) {
      assert.equal(text, answer.text, `seed ${seed}`);
      assert.deepEqual(parts, second, `seed ${seed}`);
      assert.ok(updates <= frames.length + second.length + 1, `seed ${seed}: ${updates} updates`);
    }
  }

  /** Applies the updates as a program would, with pauses of some turns of the queue. */
  async function read(answer, pauses) {
    const state = { text: '', parts: [], updates: 0 };
    for await (const { part, kind, delta: added, text, reset } of answer) {
      state.updates += 1;
      if (reset) Object.assign(state, { text: '', parts: [] });
      state.text += added;
      assert.equal(text, state.text, 'the text agrees with the deltas');
      assert.equal(kind, part?.kind ?? null);
      if (!reset && !TEXT_KINDS.includes(kind)) assert.equal(added, '');
      if (part) {
        assert.ok(part.index <= state.parts.length, 'the parts are reported in order');
        state.parts[part.index] = { ...part };
      }
      for (let n = 0; n < pauses; n += 1) await Promise.resolve();
    }
    return state;
  }
});

test('updates name the part that has changed', async (t) => {
  const { socket, answer } = await startAnswer(t);
  const reading = collect(answer);
  const frames = [
    deltaFrame(STREAM, 0, 0, 'Hm', { kind: 'reasoning' }),
    deltaFrame(STREAM, 0, 2, 'm', {}),
    deltaFrame(STREAM, 1, 0, '', { kind: 'text', previousEnd: 3 }),
    deltaFrame(STREAM, 2, 0, '{}', { kind: 'tool_call', meta: META.tool_call, previousEnd: 0 }),
    deltaFrame(STREAM, 3, 0, 'No', { kind: 'refusal', previousEnd: 2 }),
    deltaFrame(STREAM, 3, 2, '!', {}),
  ];
  for (const next of frames) {
    socket.receive(next);
    await flushPromises();
  }
  socket.receive(frame({ type: 'cancelled', content: 'No!', parts: [{ kind: 'reasoning', length: 3 }, { kind: 'text', length: 0 }, { kind: 'tool_call', meta: META.tool_call, content: '{}' }, { kind: 'refusal', length: 3 }] }));
  const updates = await reading;
  assert.deepEqual(updates.map(({ kind, delta: added, text, reset }) => [kind, added, text, reset]), [
    ['reasoning', '', '', false], ['reasoning', '', '', false], ['text', '', '', false], ['tool_call', '', '', false],
    ['refusal', 'No', 'No', false], ['refusal', '!', 'No!', false],
  ]);
  assert.ok(updates.every(({ part }) => part === answer.parts[part.index]));
  assert.deepEqual(updates.map(({ part }) => part.index), [0, 0, 1, 2, 3, 3]);
  const { status, content, parts } = await answer.result;
  assert.deepEqual([status, content, parts], ['cancelled', 'No!', answer.parts]);
  assert.deepEqual(shown(answer), [['reasoning', 'Hmm'], ['text', ''], ['tool_call', '{}', META.tool_call], ['refusal', 'No!']]);
});

test('slow reader gets one update per part', async (t) => {
  const { socket, answer } = await startAnswer(t);
  const updates = answer[Symbol.asyncIterator]();
  socket.receive(deltaFrame(STREAM, 0, 0, 'x', { kind: 'reasoning' }));
  assert.equal((await updates.next()).value.part.text, 'x');
  for (let offset = 1; offset < 500; offset += 1) socket.receive(deltaFrame(STREAM, 0, offset, 'x', {}));
  socket.receive(deltaFrame(STREAM, 1, 0, 'y', { kind: 'text', previousEnd: 500 }));
  for (let offset = 1; offset < 500; offset += 1) socket.receive(deltaFrame(STREAM, 1, offset, 'y', {}));
  const first = (await updates.next()).value;
  assert.deepEqual([first.kind, first.delta, first.part.text.length], ['reasoning', '', 500]);
  const second = (await updates.next()).value;
  assert.deepEqual([second.kind, second.delta.length], ['text', 500]);
  socket.receive(response('y'.repeat(500), [{ kind: 'reasoning', length: 500 }, { kind: 'text', length: 500 }]));
  assert.equal((await updates.next()).done, true);
});

test('delta that overlaps is cut to what is new', async (t) => {
  const { socket, answer } = await startAnswer(t);
  socket.receive(
    deltaFrame(STREAM, 0, 0, 'ab😀', { kind: 'text' }),
    deltaFrame(STREAM, 0, 1, 'b😀cd', {}),
    deltaFrame(STREAM, 0, 4, 'c', {}),
    deltaFrame(STREAM, 0, 0, 'ab😀cd!', { kind: 'text' }),
  );
  assert.deepEqual(shown(answer), [['text', 'ab😀cd!']]);
});

/** Deltas that reveal a loss after the part `text` with the text "abc". */
const GAPS = {
  'offset beyond the length': deltaFrame(STREAM, 0, 4, 'e', {}),
  'later delta of a part that is not open': deltaFrame(STREAM, 1, 1, 'x', {}),
  'opening after the next part': deltaFrame(STREAM, 2, 0, 'x', { kind: 'text', previousEnd: 3 }),
  'previous part is longer': deltaFrame(STREAM, 1, 0, 'x', { kind: 'text', previousEnd: 4 }),
  'previous part is shorter': deltaFrame(STREAM, 1, 0, 'x', { kind: 'text', previousEnd: 2 }),
  'no previous_end': deltaFrame(STREAM, 1, 0, 'x', { kind: 'text' }),
  'next part without a kind': deltaFrame(STREAM, 1, 0, 'x', { previousEnd: 3 }),
  'next part from its middle on': { ...deltaFrame(STREAM, 1, 0, 'x', { kind: 'text', previousEnd: 3 }), offset: 1, end: 2 },
  'end that does not fit the content': { ...deltaFrame(STREAM, 0, 3, 'd', {}), end: 5 },
  'content that is no text': { ...deltaFrame(STREAM, 0, 3, 'd', {}), content: ['d'] },
  'part that is no number': { ...deltaFrame(STREAM, 0, 3, 'd', {}), part: 'length' },
  'negative offset': { ...deltaFrame(STREAM, 0, 3, 'd', {}), offset: -1, end: 0 },
};
for (const [name, gap] of Object.entries(GAPS)) {
  test(`gap: ${name}: everything is ignored until a snapshot`, async (t) => {
    const { socket, answer } = await startAnswer(t);
    socket.receive(deltaFrame(STREAM, 0, 0, 'abc', { kind: 'text' }));
    const missed = deltaFrame(STREAM, 0, 3, 'd', {});
    socket.receive(gap, missed, deltaFrame(STREAM, 1, 0, 'x', { kind: 'text', previousEnd: 3 }));
    assert.deepEqual(shown(answer), [['text', 'abc']]);
    socket.receive(snapshot([{ kind: 'text', content: 'abcd' }]), deltaFrame(STREAM, 0, 4, 'e', {}));
    assert.deepEqual(shown(answer), [['text', 'abcde']]);
  });
}

test('part that is followed by another one does not grow', async (t) => {
  const { socket, answer } = await startAnswer(t);
  socket.receive(deltaFrame(STREAM, 0, 0, 'a', { kind: 'text' }), deltaFrame(STREAM, 1, 0, 'b', { kind: 'text', previousEnd: 1 }));
  socket.receive(deltaFrame(STREAM, 0, 1, 'X', {}), deltaFrame(STREAM, 1, 1, 'Y', {}));
  assert.equal(answer.text, 'ab');
});

test('restarted and the opening of another stream end a gap, other frames of that stream do not', async (t) => {
  const { socket, answer } = await startAnswer(t);
  const gap = (stream) => deltaFrame(stream, 0, 90, 'x', {});
  socket.receive(deltaFrame(STREAM, 0, 0, 'abc', { kind: 'text' }), gap(STREAM));
  socket.receive(restarted('b.2'), deltaFrame('b.2', 0, 0, 'b', { kind: 'text' }));
  assert.equal(answer.text, 'b');
  socket.receive(gap('b.2'), deltaFrame('c.3', 1, 0, 'x', { kind: 'text', previousEnd: 1 }), deltaFrame('c.3', 0, 1, 'x', {}));
  assert.equal(answer.text, 'b');
  socket.receive(deltaFrame('c.3', 0, 0, 'c', { kind: 'text' }), deltaFrame('c.3', 0, 1, 'd', {}));
  assert.equal(answer.text, 'cd');
});

test('restarted clears the parts, and late deltas of the earlier stream are ignored', async (t) => {
  const { socket, answer } = await startAnswer(t);
  const reading = collect(answer);
  socket.receive(deltaFrame(STREAM, 0, 0, 'Hm', { kind: 'reasoning' }), deltaFrame(STREAM, 1, 0, 'old', { kind: 'text', previousEnd: 2 }));
  await flushPromises();
  socket.receive(restarted('p0Qa.2'));
  assert.deepEqual([answer.parts, answer.text, answer.state, answer.attempt], [[], '', 'accepted', 2]);
  await flushPromises();
  socket.receive(deltaFrame(STREAM, 1, 3, 'er', {}), deltaFrame('p0Qa.2', 0, 0, 'new', { kind: 'text' }), deltaFrame(STREAM, 1, 3, 'er', {}));
  assert.deepEqual(shown(answer), [['text', 'new']]);
  socket.receive(response('new'));
  assert.deepEqual((await reading).map(({ kind, delta: added, reset }) => [kind, added, reset]), [
    ['reasoning', '', false], ['text', 'old', false], [null, '', true], ['text', 'new', false],
  ]);
});

test('reset yields the whole text at once, and then each other part', async (t) => {
  const { socket, answer } = await startAnswer(t);
  const updates = answer[Symbol.asyncIterator]();
  socket.receive(deltaFrame(STREAM, 0, 0, 'old', { kind: 'text' }));
  await updates.next();
  socket.receive(snapshot([{ kind: 'reasoning', content: 'Hm' }, { kind: 'text', content: 'one ' }, { kind: 'text', content: 'two' }], 'b.2'));
  const describe = async () => {
    const { part, delta: added, text, reset } = (await updates.next()).value;
    return [part.index, added, text, reset];
  };
  assert.deepEqual(await describe(), [0, 'one two', 'one two', true]);
  socket.receive(deltaFrame('b.2', 2, 3, ' three', {}));
  assert.deepEqual(await describe(), [1, '', 'one two', false]);
  assert.deepEqual(await describe(), [2, ' three', 'one two three', false]);
});

test('only parts that extend the earlier ones are no reset', async (t) => {
  const { socket, answer } = await startAnswer(t);
  const source = (url) => ({ kind: 'source', meta: { url }, content: '' });
  const reasoning = (content) => ({ kind: 'reasoning', content });
  const text = (content) => ({ kind: 'text', content });
  const steps = [
    [true, [source('https://a.example/')]],
    [true, [source('https://a.example/'), reasoning('H')]],
    [true, [source('https://a.example/'), reasoning('Hm'), text('')]],
    [false, [source('https://b.example/'), reasoning('Hm'), text('')], 'other meta data'],
    [false, [source('https://b.example/'), reasoning('Hm'), reasoning('')], 'another kind'],
    [false, [source('https://b.example/'), reasoning('Hm!'), reasoning('')], 'longer text before the last part'],
    [false, [source('https://b.example/'), reasoning('Hm!')], 'fewer parts'],
    [false, [source('https://b.example/'), reasoning('No')], 'other text'],
  ];
  for (const [isExtension, parts, reason] of steps) {
    const before = answer.parts;
    socket.receive(snapshot(parts));
    assert.equal(answer.parts === before, isExtension, reason);
    assert.deepEqual(answer.parts.map(({ kind, meta, text: content }) => [kind, meta, content]), parts.map(({ kind, meta = null, content }) => [kind, meta, content]));
  }
});

test('late frames of an ended message change nothing and create no answer', async (t) => {
  const { client, socket, answer } = await startAnswer(t);
  const received = [];
  client.on('message', (other) => received.push(other));
  socket.receive(deltaFrame(STREAM, 0, 0, 'done', { kind: 'text' }), response('done'));
  const late = [deltaFrame(STREAM, 0, 4, '!', {}), deltaFrame('b.2', 0, 0, 'late', { kind: 'text' }), snapshot([{ kind: 'text', content: 'late' }]), restarted('b.2'), frame({ type: 'accepted', content: 'question' }), response('late')];
  socket.receive(...late, ...late.map(({ id, ...other }) => other));
  assert.deepEqual([answer.text, answer.state, client.open.length, received.length], ['done', 'answered', 0, 0]);
});

test('message that is sent again with its id gets no late deltas, but everything from its acceptance on', async (t) => {
  const { client, socket } = await startAnswer(t);
  socket.receive(frame({ type: 'error', code: 'provider_failed', message: 'no', retryable: true }));
  const again = client.send('question', { id: MESSAGE.id, conversationId: MESSAGE.conversation_id });
  socket.receive(deltaFrame(STREAM, 0, 0, 'late', { kind: 'text' }), snapshot([{ kind: 'text', content: 'late' }]), restarted('b.2'));
  assert.deepEqual([again.text, again.messageId, again.state], ['', null, 'sent']);
  socket.receive(frame({ type: 'accepted' }), deltaFrame('c.3', 0, 0, 'new', { kind: 'text' }));
  assert.equal(again.text, 'new');
});

test('only the opening of the first part, a snapshot or restarted creates an answer', async (t) => {
  const { client, connect } = await startClient(t);
  const socket = await connect();
  socket.receive(
    deltaFrame(STREAM, 0, 3, 'lo', {}),
    deltaFrame(STREAM, 0, 0, 'lo', {}),
    { ...deltaFrame(STREAM, 0, 3, 'lo', {}), kind: 'text' },
    deltaFrame(STREAM, 1, 0, 'x', { kind: 'text', previousEnd: 3 }),
  );
  assert.equal(client.open.length, 0);
  const creating = [deltaFrame(STREAM, 0, 0, 'Hel', { kind: 'text' }), snapshot([]), restarted(STREAM)];
  for (const [n, next] of creating.entries()) {
    socket.receive({ ...next, message_id: `other-${n}`, id: undefined });
    assert.equal(client.open.length, n + 1, next.type);
  }
  assert.deepEqual(client.open.map(({ text, state }) => [text, state]), [['Hel', 'streaming'], ['', 'accepted'], ['', 'accepted']]);
});

test('empty snapshot is followed by the opening of the first part', async (t) => {
  const { socket, answer } = await startAnswer(t);
  socket.receive(snapshot([]), deltaFrame(STREAM, 0, 0, '', { kind: 'text' }), deltaFrame(STREAM, 0, 0, 'a', {}), deltaFrame(STREAM, 0, 1, 'b', {}));
  assert.deepEqual([shown(answer), answer.state], [[['text', 'ab']], 'streaming']);
});

test('number of parts is bounded', async (t) => {
  const { socket, answer } = await startAnswer(t);
  for (let index = 0; index < 300; index += 1) socket.receive(deltaFrame(STREAM, index, 0, 'x', { kind: 'text', previousEnd: 1 }));
  assert.equal(answer.parts.length, 256);
  socket.receive(snapshot(Array.from({ length: 300 }, () => ({ kind: 'text', content: 'x' }))));
  assert.equal(answer.parts.length, 256);
});

test('fields of parts that are no text or object count as missing', async (t) => {
  const { socket, answer } = await startAnswer(t);
  socket.receive(snapshot([null, { kind: 'text', meta: 'x', content: ['x'] }]));
  assert.deepEqual(answer.parts, [{ index: 0, kind: 'undefined', meta: null, text: '' }, { index: 1, kind: 'text', meta: null, text: '' }]);
  socket.receive(snapshot('no list'));
  assert.deepEqual(answer.parts, []);
});

test('terminal frame completes the parts by their shares of the content', async (t) => {
  const { socket, answer } = await startAnswer(t);
  socket.receive(deltaFrame(STREAM, 0, 0, 'Let me', { kind: 'reasoning' }));
  socket.receive(response('Für 😀: no.', [
    { kind: 'reasoning', length: 12 },
    { kind: 'text', length: 7 },
    { kind: 'source', meta: META.source, content: '' },
    { kind: 'refusal', length: 4 },
    { kind: 'reasoning', length: 5 },
    { kind: 'data', meta: META.data, content: '[1]' },
    { kind: 'of_a_later_server', content: 'x' },
  ]));
  assert.deepEqual(shown(answer), [
    ['reasoning', 'Let me'], ['text', 'Für 😀:'], ['source', '', META.source], ['refusal', ' no.'], ['reasoning', ''], ['data', '[1]', META.data], ['of_a_later_server', 'x'],
  ]);
  assertConsistent(answer);
});

test('streamed reasoning is kept only at the same place, and stored reasoning replaces it', async (t) => {
  const { client, connect } = await startClient(t);
  const socket = await connect();
  const end = (n, parts, meta) => {
    const own = (other) => ({ ...other, message_id: `m-${n}`, id: `i-${n}` });
    const answer = client.send('q', { id: `i-${n}`, conversationId: `c${n}` });
    socket.receive(own(deltaFrame(STREAM, 0, 0, 'streamed', { kind: 'reasoning', meta })), own(response('a', parts)));
    return shown(answer);
  };
  const text = { kind: 'text', length: 1 };
  assert.deepEqual(end(1, [{ kind: 'reasoning', length: 8 }, text]), [['reasoning', 'streamed'], ['text', 'a']]);
  assert.deepEqual(end(2, [{ kind: 'reasoning', length: 6, content: 'stored' }, text]), [['reasoning', 'stored'], ['text', 'a']]);
  assert.deepEqual(end(3, [text, { kind: 'reasoning', length: 8 }]), [['text', 'a'], ['reasoning', '']]);
  assert.deepEqual(end(4), [['text', 'a']]);
  assert.deepEqual(end(5, [{ kind: 'of_a_later_server' }, text]), [['of_a_later_server', ''], ['text', 'a']]);
  assert.deepEqual(end(6, [{ kind: 'reasoning', length: 8 }, text], { a: 1 }), [['reasoning', 'streamed', { a: 1 }], ['text', 'a']]);
});

test('terminal frame whose lengths do not fit loses no text', async (t) => {
  const { client, connect } = await startClient(t);
  const socket = await connect();
  for (const [n, length] of [undefined, 0, -3, 1.5, 'x', 2, 99].entries()) {
    const answer = client.send('q', { id: `i-${n}`, conversationId: `c${n}` });
    socket.receive({ ...response('abc', [{ kind: 'text', length }, null]), message_id: `m-${n}`, id: `i-${n}` });
    assert.equal(answer.text, 'abc', String(length));
    assert.equal((await answer.result).content, 'abc');
  }
});

test('answer without parts in its terminal frame is one text part, and an empty one has none', async (t) => {
  const { client, connect } = await startClient(t);
  const socket = await connect();
  const end = (n, content, streamed = []) => {
    const own = (other) => ({ ...other, message_id: `m-${n}`, id: `i-${n}` });
    const answer = client.send('q', { id: `i-${n}`, conversationId: `c${n}` });
    socket.receive(...streamed.map(own), own(response(content)));
    return answer;
  };
  assert.deepEqual(shown(end(1, 'abc')), [['text', 'abc']]);
  assert.deepEqual(shown(end(2, '')), []);
  const answer = end(3, '', [deltaFrame(STREAM, 0, 0, '', { kind: 'text' })]);
  assert.deepEqual((await collect(answer)).map(({ reset }) => reset), [false], 'the empty part stays');
});

test('cancelled frame without content keeps the parts', async (t) => {
  const { socket, answer } = await startAnswer(t);
  socket.receive(deltaFrame(STREAM, 0, 0, 'half', { kind: 'text' }), frame({ type: 'cancelled' }));
  assert.deepEqual([shown(answer), (await answer.result).content], [[['text', 'half']], 'half']);
});

test('entries of the history have parts', async (t) => {
  const messages = [
    { message_id: 'm1', question: 'q', answer: 'plain', status: 'answered' },
    { message_id: 'm2', question: 'q', answer: 'ab', status: 'cancelled', parts: [{ kind: 'reasoning', length: 2, content: 'Hm' }, { kind: 'text', length: 1 }, { kind: 'tool_call', meta: META.tool_call, content: '{}' }, { kind: 'refusal', length: 1 }] },
    { message_id: 'm3', question: 'q', answer: 'Service unavailable', status: 'failed' },
    { message_id: 'm4', question: 'q', answer: '', status: 'cancelled' },
  ];
  const fetch = async () => ({ ok: true, status: 200, json: async () => ({ messages, next: 'm0' }) });
  const { client } = await startClient(t, { fetch });
  const page = await client.messages('c');
  assert.equal(page.next, 'm0');
  assert.deepEqual(page.messages.map(shown), [
    [['text', 'plain']],
    [['reasoning', 'Hm'], ['text', 'a'], ['tool_call', '{}', META.tool_call], ['refusal', 'b']],
    [],
    [],
  ]);
  assert.deepEqual(page.messages[1].parts[2], { index: 2, kind: 'tool_call', meta: META.tool_call, text: '{}' });
});
