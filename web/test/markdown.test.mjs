import assert from 'node:assert/strict';
import { test } from 'node:test';

import { parseBlocks, splitLines } from '../app/markdown/blocks.js';
import { highlight } from '../app/markdown/highlight.js';
import { parseInline, safeUrl } from '../app/markdown/inline.js';

const blocks = (text) => parseBlocks(splitLines(text)).map(({ first, next, ...block }) => block);
const types = (text) => blocks(text).map(({ type }) => type);

/** All nodes of a tree. */
function* nodes(tree) {
  for (const node of tree) {
    yield node;
    if (node.children) yield* nodes(node.children);
  }
}

test('only http, https and mailto URLs become links', () => {
  for (const url of ['http://a.b', 'https://a.b/c?d=e#f', 'mailto:a@b.c', 'HTTPS://A.B']) assert.ok(safeUrl(url), url);
  const unsafeUrls = [
    'javascript:alert(1)', 'JaVaScRiPt:alert(1)', ' javascript:alert(1)', 'java\nscript:alert(1)', 'data:text/html,x', 'vbscript:x',
    'file:///etc/passwd', '//evil.test', '/local', '#x', 'https:evil', 'https://', '', '\u0001javascript:alert(1)',
  ];
  for (const url of unsafeUrls) {
    assert.equal(safeUrl(url), null, url);
    for (const text of [`[x](${url})`, `<${url}>`, `![x](${url})`, `[x](<${url}>)`]) {
      const links = [...nodes(parseInline(text))].filter(({ type }) => type === 'link');
      assert.deepEqual(links, [], text);
    }
  }
});

test('HTML tags are plain text', () => {
  const text = '<img src=x onerror=alert(1)> <script>alert(1)</script>';
  assert.deepEqual(parseInline(text), [text]);
  assert.deepEqual(blocks(`<div>\n\n${text}`), [{ type: 'paragraph', text: '<div>' }, { type: 'paragraph', text }]);
});

test('emphasis, code and links are parsed and nested', () => {
  const strong = (...children) => ({ type: 'strong', children });
  const emphasis = (...children) => ({ type: 'emphasis', children });
  const code = (text) => ({ type: 'code', text });
  const link = (href, ...children) => ({ type: 'link', href, children });
  const cases = [
    ['a *b* **c** `d`', ['a ', emphasis('b'), ' ', strong('c'), ' ', code('d')]],
    ['**bold *both* bold**', [strong('bold ', emphasis('both'), ' bold')]],
    ['***x***', [emphasis(strong('x'))]],
    ['snake_case_name and 2 * 3 * 4', ['snake_case_name and 2 * 3 * 4']],
    ['`` a ` b ``', [code('a ` b')]],
    ['`**no**`', [code('**no**')]],
    ['~~gone~~ ~kept~', [{ type: 'deleted', children: ['gone'] }, ' ~kept~']],
    ['\\*no\\* \\x', ['*no* \\x']],
    ['[a **b**](https://x.y/z_(1) "t")', [link('https://x.y/z_(1)', 'a ', strong('b'))]],
    ['![alt](https://x.y/i.png)', [link('https://x.y/i.png', 'alt')]],
    ['see https://x.y/a_b. (https://x.y/c)', ['see ', link('https://x.y/a_b', 'https://x.y/a_b'), '. (', link('https://x.y/c', 'https://x.y/c'), ')']],
    ['a &lt;b&gt; &amp;lt;', ['a <b> &lt;']],
    ['&copy; &mdash; &#39; &#x2014; &nope; &#0; &constructor; a&b', ['© — \' — &nope; \ufffd &constructor; a&b']],
    ['\\(a_1 * b_2 * c\\) and \\[x^2\\]', ['\\(a_1 * b_2 * c\\) and \\[x^2\\]']],
    ['\\(f\\)(x)', ['\\(f\\)(x)']],
    ['\\[no link\\](https://x.y) \\(open', ['[no link](', { type: 'link', href: 'https://x.y/', children: ['https://x.y'] }, ') (open']],
    ['one  \ntwo\\\nthree\nfour', ['one', { type: 'break' }, 'two', { type: 'break' }, 'three\nfour']],
    ['un**closed `code', ['un**closed `code']],
  ];
  for (const [text, tree] of cases) assert.deepEqual(parseInline(text), tree, text);
  assert.deepEqual(parseInline('un**closed `code', true), ['un', strong('closed ', code('code'))]);
  assert.deepEqual(parseInline('an *em', true), ['an ', emphasis('em')]);
  assert.deepEqual(parseInline('2*3', true), ['2*3']);
  assert.deepEqual(parseInline('\\(a', true), ['\\(a']);
});

test('blocks are parsed', () => {
  assert.deepEqual(types('# a\nb\n\n- c\n\n1. d\n> e\n\n---\n```js\nf\n```\n|a|b|\n|-|-|\n|c|d|'), [
    'heading', 'paragraph', 'list', 'list', 'quote', 'rule', 'code', 'table',
  ]);
  assert.deepEqual(blocks('a\n===\n\nb\n---'), [{ type: 'heading', level: 1, text: 'a' }, { type: 'heading', level: 2, text: 'b' }]);
  assert.deepEqual(blocks('```js x\na\n\n`b`\n'), [{ type: 'code', language: 'js', text: 'a\n\n`b`\n', closed: false }]);
  assert.deepEqual(blocks('~~~\n```\n~~~~\nx')[0], { type: 'code', language: '', text: '```', closed: true });
  const [table] = blocks('| a | b |\n|:--|:-:|\n| 1 | x\\|y |\n| 2 |\nend');
  assert.deepEqual([table.align, table.rows], [['left', 'center'], [['1', 'x|y'], ['2', '']]]);
  assert.deepEqual(types('Here it is:\n| a | b |\n|---|---|'), ['paragraph', 'table']);
  assert.deepEqual(types('a | b\nno table'), ['paragraph']);
});

test('nested, numbered and loose lists, with code and tasks, are parsed', () => {
  const [list] = blocks('3. a\n   - b\n     - c\n4. d\n\n   ```sh\n   x\n   ```\n');
  assert.deepEqual([list.ordered, list.start, list.items.length], [true, 3, 2]);
  assert.equal(list.items[0].blocks[1].items[0].blocks[1].type, 'list');
  assert.equal(list.items[1].blocks[1].text, 'x');
  assert.deepEqual(blocks('- [x] a\n- [ ] b')[0].items.map(({ task }) => task), [true, false]);
  assert.equal(blocks('- a\n- b')[0].loose, false);
  assert.equal(blocks('- a\n\n- b')[0].loose, true);
  assert.equal(blocks('1. a\n  - under it\n2. b')[0].items[0].blocks[1].type, 'list', 'less indented than CommonMark requires');
  assert.deepEqual(types('text\n2. not a list\n1. a list'), ['paragraph', 'list']);
});

test('highlighting keeps the code unchanged', () => {
  const code = 'fn f() { // let\n  let s = "a \\" fn"; /* x */ 0x1F + 2.5 // it\'s\n}';
  const tokens = highlight(code, 'rust');
  assert.equal(tokens.map(([, text]) => text).join(''), code);
  const textsOf = (kind) => tokens.filter(([tokenKind]) => tokenKind === kind).map(([, text]) => text);
  assert.deepEqual(textsOf('word'), ['fn', 'let']);
  assert.deepEqual(textsOf('comment'), ['// let', '/* x */', '// it\'s']);
  assert.deepEqual(textsOf('string'), ['"a \\" fn"']);
  assert.deepEqual(textsOf('number'), ['0x1F', '2.5']);
  assert.deepEqual(highlight('# no "x', 'python')[0], ['comment', '# no "x']);
  assert.deepEqual(highlight('SELECT a -- b', 'sql').map(([kind]) => kind), ['word', null, 'comment']);
  for (const text of ['\'', '"', '/*', '`', '/', '-', '#', '\\', '\'\n', 'é "']) {
    for (const language of ['js', 'sh', 'sql', 'x']) assert.equal(highlight(text.repeat(500), language).map(([, token]) => token).join(''), text.repeat(500));
  }
  assert.deepEqual(highlight('let x', 'text'), [[null, 'let x']]);
});

test('hostile text is parsed in linear time without exhausting the stack', () => {
  const start = process.cpuUsage();
  for (const text of ['> '.repeat(2e4), '- '.repeat(2e4) + 'x', '['.repeat(2e4), '*a_'.repeat(1e4), '**a'.repeat(1e4), '``a`'.repeat(2e4), '[a](' .repeat(2e4), '|a|\n'.repeat(2e4), '- a\n'.repeat(2e4), '<'.repeat(2e4), '\\'.repeat(2e4), '\\('.repeat(2e4), '\\['.repeat(2e4) + '\\](x']) {
    for (const isGrowing of [true, false]) parseInline(text, isGrowing);
    parseBlocks(splitLines(text));
  }
  // The test measures CPU time, because the machine may be busy. Linear parsing takes less than a
  // second, and quadratic parsing would take minutes.
  const { user, system } = process.cpuUsage(start);
  assert.ok((user + system) / 1000 < 20_000);
});
