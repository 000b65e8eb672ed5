import assert from 'node:assert/strict';
import { test } from 'node:test';

import { formatJson, toBlocks, toSource } from '../app/parts/blocks.js';
import { PartsView } from '../app/parts/view.js';
import { TurnView } from '../app/turn.js';
import { installDocument } from './fake-dom.mjs';
import { delta, startClient } from './fake-socket.mjs';

/** Parts from `[kind, text, meta]`. */
const toParts = (...parts) => parts.map(([kind, text, meta = null], index) => ({ index, kind, text, meta }));
const describe = ({ blocks }) => blocks.map(({ key, text, isGrowing }) => [key, text, isGrowing]);
const source = (url, title) => ['source', '', { url, title }];

function createPartsView(t) {
  installDocument(t);
  const root = document.createElement('div');
  return { root, view: new PartsView(root) };
}

test('text that only sources and unknown parts interrupt is one block', () => {
  const parts = toParts(['text', 'a'], source('https://a.example', 'A'), ['text', 'b'], ['data', '[1]'], ['of_a_later_server', 'x'], ['text', 'c'], ['refusal', 'd'], ['text', 'e']);
  const result = toBlocks(parts, true);
  assert.deepEqual(describe(result), [['text 0', 'abc', false], ['refusal 6', 'd', false], ['text 7', 'e', true]]);
  assert.deepEqual(result.sources, [{ href: 'https://a.example/', title: 'A', host: 'a.example' }]);
  assert.equal(toBlocks(parts, false).blocks.at(-1).isGrowing, false);
  assert.deepEqual(describe(toBlocks(parts.slice(0, 6), true)), [['text 0', 'abc', true]]);
});

test('empty parts are not shown, except for a tool call and reasoning in progress', () => {
  const parts = toParts(['text', ''], ['refusal', ''], ['tool_call', '', { name: 'f' }], ['reasoning', '']);
  assert.deepEqual(describe(toBlocks(parts, true)), [['tool_call 2', '', false], ['reasoning 3', '', true]]);
  assert.deepEqual(describe(toBlocks(parts, false)), [['tool_call 2', '', false]]);
});

test('number of shown parts is bounded', () => {
  const parts = toParts(...Array.from({ length: 300 }, () => ['tool_call', '', null]));
  assert.equal(toBlocks(parts, false).blocks.length, 256);
});

test('only http and https URLs become sources, with a bounded title', () => {
  const hostile = ['javascript:alert(1)', 'mailto:a@b.c', 'data:text/html,x', '//a.example', ' https://a.example', 'https://', 'ftp://a.example', '', 7, null, undefined, `https://a.example/${'x'.repeat(2048)}`];
  for (const url of hostile) assert.equal(toSource({ url, title: 'A' }), null, String(url));
  assert.equal(toSource(null), null);
  assert.deepEqual(toSource({ url: 'HTTP://A.example:8080/p?q#f' }), { href: 'http://a.example:8080/p?q#f', title: 'a.example:8080', host: 'a.example:8080' });
  assert.equal(toSource({ url: 'https://bank.example@evil.example/' }).host, 'evil.example');
  assert.equal(toSource({ url: 'https://a.example', title: ' a\n b ' }).title, 'a b');
  assert.equal(toSource({ url: 'https://a.example', title: { length: 1 } }).title, 'a.example');
  const title = [...toSource({ url: 'https://a.example', title: '😀'.repeat(9999) }).title];
  assert.deepEqual([title.length, title[0], title[118], title[119]], [120, '😀', '😀', '…']);
});

test('JSON is indented without changing its values', () => {
  assert.equal(formatJson('{"a":12345678901234567890,"b":[1.0,{}],"c":"{\\"x\\": [1, 2]}","d":[],"a":null}'), [
    '{', '  "a": 12345678901234567890,', '  "b": [', '    1.0,', '    {}', '  ],', '  "c": "{\\"x\\": [1, 2]}",', '  "d": [],', '  "a": null', '}',
  ].join('\n'));
  assert.equal(formatJson(' [ { } , [\n] ] '), '[\n  {},\n  []\n]');
  for (const text of ['', '{"a":', 'no JSON', '{]}', '"{', '7', 'true', '"a"']) assert.equal(formatJson(text), text);
  const long = JSON.stringify({ a: 'x'.repeat(50_000) });
  assert.equal(formatJson(long), long);
  const deep = `${'['.repeat(20_000)}${']'.repeat(20_000)}`;
  assert.ok(formatJson(deep).length < 40 * deep.length);
});

test('reasoning is open while it streams, and closes when the text begins', (t) => {
  const { root, view } = createPartsView(t);
  view.update(toParts(['reasoning', '']), true);
  const details = root.firstChild;
  assert.deepEqual([details.tag, details.open, details.querySelector('summary').textContent, view.isGrowing], ['details', true, 'Thinking…', true]);
  view.update(toParts(['reasoning', 'Step 1'], ['tool_call', '{', { name: 'f' }]), true);
  assert.deepEqual([details.open, details.querySelector('summary').textContent], [true, 'Reasoning']);
  view.update(toParts(['reasoning', 'Step 1'], ['tool_call', '{}', { name: 'f' }], ['text', ' \n']), true);
  assert.equal(details.open, true, 'white space is not the beginning of the text');
  view.update(toParts(['reasoning', 'Step 1'], ['tool_call', '{}', { name: 'f' }], ['text', 'So']), true);
  assert.equal(details.open, false);
  assert.equal(root.firstChild, details);
  assert.equal(details.findClass('reasoning-text').textContent, 'Step 1');
});

test('reasoning stays as the user left it', (t) => {
  const { root, view } = createPartsView(t);
  for (const isOpen of [true, false]) {
    view.update([], true);
    view.update(toParts(['reasoning', 'a']), true);
    const details = root.firstChild;
    details.querySelector('summary').listeners.click();
    details.open = isOpen;
    for (const isStreaming of [true, false]) view.update(toParts(['reasoning', 'ab'], ['text', 'So']), isStreaming);
    assert.equal(details.open, isOpen);
  }
});

test('reasoning of the history is closed, and of an answer without text it stays open', (t) => {
  const { root, view } = createPartsView(t);
  view.update(toParts(['reasoning', 'a'], ['text', 'b']), false);
  assert.equal(root.firstChild.open, false);
  view.update([], false);
  view.update(toParts(['reasoning', 'a']), false);
  assert.equal(root.firstChild.open, false);
  view.update([], false);
  assert.equal(root.querySelector('details'), null);
  view.update(toParts(['reasoning', 'a']), true);
  view.update(toParts(['reasoning', 'a']), false);
  assert.deepEqual([root.firstChild.open, root.querySelector('summary').textContent], [true, 'Reasoning']);
});

test('tool call has a spinner while it streams, and its arguments are text', (t) => {
  const { root, view } = createPartsView(t);
  const meta = { id: '1', name: '<b>f</b>' };
  view.update(toParts(['tool_call', '{"a":"<img', meta]), true);
  const details = root.firstChild;
  const spinner = details.findClass('spinner');
  assert.deepEqual([details.open, spinner.hidden, details.querySelector('summary').textContent], [false, false, 'Tool call: <b>f</b>…']);
  assert.equal(details.querySelector('code').textContent, '{"a":"<img');
  view.update(toParts(['tool_call', '{"a":"<img>"}', meta], ['source', '', null]), true);
  assert.deepEqual([spinner.hidden, details.querySelector('summary').textContent], [true, 'Tool call: <b>f</b>']);
  assert.equal(details.querySelector('code').textContent, '{\n  "a": "<img>"\n}');
  assert.equal(root.querySelector('b') ?? root.querySelector('img'), null);
  view.update(toParts(['tool_call', '', null]), false);
  assert.deepEqual([root.querySelector('summary').textContent, root.querySelector('code').textContent], ['Tool call: without a name', 'No arguments.']);
});

test('sources are numbered links after the answer', (t) => {
  const { root, view } = createPartsView(t);
  view.update(toParts(source('https://a.example/1', '<i>A</i>'), ['text', 'x'], source('javascript:alert(1)', 'bad'), source('https://b.example', '')), true);
  view.update(toParts(source('https://a.example/1', '<i>A</i>'), ['text', 'x'], source('javascript:alert(1)', 'bad'), source('https://b.example', ''), ['text', 'y'], ['refusal', 'z']), true);
  const sources = root.lastChild;
  assert.deepEqual([sources.attributes.class, root.childNodes.length, root.firstChild.textContent], ['sources', 3, 'xy']);
  const links = [...sources.querySelector('ol').elements()].filter(({ tag }) => tag === 'a');
  assert.deepEqual(links.map(({ attributes, textContent }) => [attributes.href, attributes.rel, textContent]), [
    ['https://a.example/1', 'noopener noreferrer nofollow', '<i>A</i>'],
    ['https://b.example/', 'noopener noreferrer nofollow', 'b.example'],
  ]);
  const hosts = [...sources.elements()].filter(({ classList }) => classList.contains('source-host'));
  assert.deepEqual(hosts.map(({ textContent }) => textContent), ['a.example'], 'a title that is the host needs no host');
  view.update(toParts(['text', 'other']), true);
  assert.equal(root.findClass('sources'), null);
});

test('blocks are in the order of the parts, also after the parts were replaced', (t) => {
  const { root, view } = createPartsView(t);
  const order = () => root.childNodes.map(({ attributes }) => attributes.class.split(' ')[0]);
  view.update(toParts(['text', 'a'], ['tool_call', '{}'], ['refusal', 'b']), true);
  assert.deepEqual(order(), ['answer-text', 'tool-call', 'refusal']);
  view.update(toParts(['reasoning', 'r'], ['tool_call', '{}'], ['text', 'c'], ['tool_call', '{}']), true);
  assert.deepEqual(order(), ['reasoning', 'tool-call', 'answer-text', 'tool-call']);
  view.update(toParts(['text', ''], ['tool_call', '{}']), true);
  view.update(toParts(['text', 'late'], ['tool_call', '{}']), true);
  assert.deepEqual(order(), ['answer-text', 'tool-call']);
  view.update([], false);
  assert.equal(root.hasChildNodes(), false);
});

/** A client with one message whose turn is shown. */
async function showTurn(t) {
  const announcer = installDocument(t);
  const { client, connect, tick } = await startClient(t);
  const socket = await connect();
  const answer = client.send('question', { id: 'i', conversationId: 'c' });
  const turn = { id: 'i', messageId: 'm', question: 'question', text: '', parts: [], status: 'live', live: answer, error: null };
  const view = new TurnView(turn, { onResize: () => {}, retry: () => {} });
  client.on('accepted', () => view.update());
  client.on('end', () => {
    const hasFailed = answer.state === 'failed';
    Object.assign(turn, { live: null, status: answer.state, text: hasFailed ? '' : answer.text, parts: hasFailed ? [] : answer.parts, error: answer.error });
    view.update();
  });
  const receive = async (fields) => {
    socket.receive({ message_id: 'm', id: 'i', conversation_id: 'c', ...fields });
    for (let n = 0; n < 20; n += 1) await tick(300);
  };
  await receive({ type: 'accepted' });
  return { view, turn, receive, announcer };
}

test('turn shows reasoning in place of the dots, and announces the text without it', async (t) => {
  const { view, receive, announcer } = await showTurn(t);
  assert.equal(view.note.textContent, 'Waiting for the answer');
  await receive(delta('s.1', 0, 0, 'Hm', { kind: 'reasoning' }));
  assert.deepEqual([view.note.hidden, view.answer.querySelector('summary').textContent], [true, 'Thinking…']);
  await receive(delta('s.1', 1, 0, '', { kind: 'data', meta: { name: 'd' }, previousEnd: 2 }));
  assert.equal(view.note.textContent, 'Answering');
  assert.equal(announcer.textContent, '');
  await receive(delta('s.1', 2, 0, 'Hel', { kind: 'text', previousEnd: 0 }));
  assert.equal(view.note.hidden, true);
  await receive({ type: 'response', content: 'Hello.', parts: [{ kind: 'reasoning', length: 2 }, { kind: 'data', meta: { name: 'd' }, content: '' }, { kind: 'text', length: 6 }] });
  const details = view.answer.querySelector('details');
  assert.deepEqual([details.open, details.findClass('reasoning-text').textContent], [false, 'Hm'], 'reasoning stays on the screen');
  assert.equal(announcer.textContent, 'Answer: Hello.');
  assert.equal(view.tools.hidden, false);
});

test('turn with only a tool call is not an empty answer', async (t) => {
  const { view, receive, announcer } = await showTurn(t);
  await receive(delta('s.1', 0, 0, '{}', { kind: 'tool_call', meta: { id: '1', name: 'f' } }));
  assert.equal(view.note.hidden, true);
  await receive({ type: 'response', content: '', parts: [{ kind: 'tool_call', meta: { id: '1', name: 'f' }, content: '{}' }] });
  assert.deepEqual([view.note.hidden, announcer.textContent, view.tools.hidden], [true, 'The model called a tool.', true]);
});

test('turn whose answer is restarted or fails discards the parts', async (t) => {
  const { view, receive } = await showTurn(t);
  await receive(delta('s.1', 0, 0, 'Hm', { kind: 'reasoning' }));
  await receive({ type: 'restarted', stream: 's.2', attempt: 2 });
  assert.deepEqual([view.answer.hasChildNodes(), view.note.textContent], [false, 'Waiting for the answer']);
  await receive(delta('s.2', 0, 0, 'a', { kind: 'text' }));
  assert.equal(view.answer.textContent, 'a');
  await receive({ type: 'error', code: 'provider_failed', message: 'no', retryable: true });
  assert.equal(view.answer.hasChildNodes(), false);
});

test('turn that was stopped while the model reasoned says so', async (t) => {
  const { view, receive, announcer } = await showTurn(t);
  await receive(delta('s.1', 0, 0, 'Hm', { kind: 'reasoning' }));
  await receive({ type: 'cancelled', content: '', parts: [{ kind: 'reasoning', length: 2 }] });
  assert.match(view.note.textContent, /^Stopped here\./);
  assert.equal(view.answer.querySelector('summary').textContent, 'Reasoning', 'the end is drawn');
  assert.equal(announcer.textContent, 'The answer was stopped.');
});

test('turn of the history shows its parts', (t) => {
  installDocument(t);
  const parts = toParts(['reasoning', 'Hm'], ['text', 'a'], ['tool_call', '[1]', { name: 'f' }], ['refusal', 'no'], source('https://a.example', 'A'));
  const turn = { id: null, messageId: 'm', question: 'q', text: 'ano', parts, status: 'answered', live: null, error: null };
  const view = new TurnView(turn, { onResize: () => {}, retry: () => {} });
  assert.equal(view.answer.textContent, 'ReasoningHmaTool call: f[\n  1\n]The model declined:noSourcesA a.example');
});
