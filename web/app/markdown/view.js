// Shows a Markdown text that grows: DOM nodes only, and only the end of it is built anew.

import { copyButton, h } from '../dom.js';
import { blocksOf, linesOf } from './blocks.js';
import { piecesOf } from './colour.js';
import { inlinesOf } from './inline.js';

export class MarkdownView {
  constructor(root) {
    this.root = root;
    this.text = '';
    /** Characters whose blocks will not change any more, and how many nodes these are. */
    this.settled = 0;
    this.nodes = 0;
    /** The code block at the end, which is added to instead of being built anew. */
    this.code = null;
  }

  /** Shows `text`. While `growing` its last block is open. */
  update(text, growing) {
    if (!text.startsWith(this.text)) {
      this.settled = 0;
      this.nodes = 0;
      this.code = null;
    }
    this.text = text;
    const rest = text.slice(this.settled);
    const lines = linesOf(rest);
    const blocks = blocksOf(lines);
    const [only] = blocks;
    if (growing && this.code && blocks.length === 1 && !only.closed && only.language === this.code.language) {
      this.#addCode(only.text);
      return;
    }
    this.code = null;
    while (this.root.childNodes.length > this.nodes) this.root.lastChild.remove();
    for (const [n, block] of blocks.entries()) {
      this.root.append(build(block, growing && n === blocks.length - 1));
    }
    if (!growing || blocks.length === 0) return;
    // A line that has only begun may turn out to belong to the block before it.
    const last = blocks.at(-1);
    const begun = last.first === lines.length - 1 ? 2 : 1;
    const open = blocks.at(-begun);
    if (open && blocks.length > begun) {
      this.settled += offsetOf(rest, open.first);
      this.nodes = this.root.childNodes.length - begun;
    }
    if (begun === 1 && last.type === 'code' && !last.closed) {
      const text = this.root.lastChild.querySelector('code').firstChild;
      this.code = { language: last.language, text };
    }
  }

  #addCode(all) {
    // The tail may be taken back: a closing fence that has only begun.
    const { text } = this.code;
    if (all.startsWith(text.data)) text.appendData(all.slice(text.data.length));
    else text.data = all;
  }
}

function offsetOf(text, line) {
  let at = 0;
  for (let n = 0; n < line; n += 1) at = text.indexOf('\n', at) + 1;
  return at;
}

function build(block, growing) {
  switch (block.type) {
    case 'heading':
      // The page has headings of its own above these.
      return h(`h${Math.min(6, block.level + 2)}`, { dir: 'auto' }, ...inline(block.text, growing));
    case 'rule':
      return h('hr');
    case 'code':
      return buildCode(block, growing);
    case 'quote':
      return h('blockquote', { dir: 'auto' }, ...children(block.blocks, growing));
    case 'list':
      return buildList(block, growing);
    case 'table':
      return buildTable(block, growing);
    default:
      return h('p', { dir: 'auto' }, ...inline(block.text, growing));
  }
}

function children(blocks, growing) {
  return blocks.map((block, n) => build(block, growing && n === blocks.length - 1));
}

function buildCode({ language, text, closed }, growing) {
  // Coloured when it is whole.
  const pieces = growing && !closed ? [[null, text]] : piecesOf(text, language);
  const parts = pieces.map(([kind, piece]) => (kind ? h('span', { class: `code-${kind}` }, piece) : document.createTextNode(piece)));
  const code = h('code', {}, ...parts);
  const label = language || 'text';
  return h(
    'figure',
    { class: 'code' },
    h('figcaption', {}, h('span', {}, label), copyButton('Copy code', () => code.textContent)),
    h('pre', { tabindex: '0', dir: 'ltr', 'aria-label': `Code, ${label}`, role: 'region' }, code),
  );
}

function buildList(list, growing) {
  const element = h(list.ordered ? 'ol' : 'ul', { dir: 'auto', ...(list.ordered && list.start !== 1 && { start: list.start }) });
  for (const [n, item] of list.items.entries()) {
    const open = growing && n === list.items.length - 1;
    const inner = item.blocks.flatMap((block, m) => {
      const last = open && m === item.blocks.length - 1;
      const tight = block.type === 'paragraph' && !list.loose;
      return tight ? inline(block.text, last) : [build(block, last)];
    });
    const box = item.task === null ? [] : [h('span', { class: 'task', role: 'img', 'aria-label': item.task ? 'Done:' : 'To do:' }, item.task ? '☑ ' : '☐ ')];
    element.append(h('li', { class: box.length ? 'has-task' : undefined }, ...box, ...inner));
  }
  return element;
}

function buildTable({ align, head, rows }, growing) {
  const row = (tag, cells, last) =>
    h('tr', {}, ...cells.map((cell, n) => h(tag, { class: `to-${align[n]}`, dir: 'auto', ...(tag === 'th' && { scope: 'col' }) }, ...inline(cell, last))));
  const body = rows.map((cells, n) => row('td', cells, growing && n === rows.length - 1));
  return h(
    'div',
    { class: 'table', tabindex: '0', role: 'region', 'aria-label': 'Table' },
    h('table', {}, h('thead', {}, row('th', head, false)), h('tbody', {}, ...body)),
  );
}

function inline(text, growing) {
  return inlinesOf(text, growing).map(node);
}

const TAGS = { emphasis: 'em', strong: 'strong', deleted: 'del', span: 'span' };

function node(one) {
  if (typeof one === 'string') return document.createTextNode(one);
  if (one.type === 'code') return h('code', { dir: 'ltr' }, one.text);
  if (one.type === 'break') return h('br');
  const inner = one.children.map(node);
  if (one.type === 'link') return h('a', { href: one.href, target: '_blank', rel: 'noopener noreferrer nofollow' }, ...inner);
  return h(TAGS[one.type], {}, ...inner);
}
