// Renders a growing Markdown text as DOM nodes. Only the blocks at the end are rendered again.

import { copyButton, h } from '../dom.js';
import { parseBlocks, splitLines } from './blocks.js';
import { highlight } from './highlight.js';
import { parseInline } from './inline.js';

/** Renders one Markdown text into a root element. */
export class MarkdownView {
  constructor(root) {
    this.root = root;
    this.text = '';
    /** Number of characters whose blocks can't change any more. */
    this.finalLength = 0;
    /** Number of nodes of these blocks. */
    this.finalNodes = 0;
    /** The open code block at the end, which is extended instead of rendered again. */
    this.openCode = null;
  }

  /** Renders `text`. `isGrowing` means that its last block may continue. */
  update(text, isGrowing) {
    if (!text.startsWith(this.text)) {
      this.finalLength = 0;
      this.finalNodes = 0;
      this.openCode = null;
    }
    this.text = text;
    const rest = text.slice(this.finalLength);
    const lines = splitLines(rest);
    const blocks = parseBlocks(lines);
    const [firstBlock] = blocks;
    if (isGrowing && this.openCode && blocks.length === 1 && !firstBlock.closed && firstBlock.language === this.openCode.language) {
      this.#extendCode(firstBlock.text);
      return;
    }
    this.openCode = null;
    while (this.root.childNodes.length > this.finalNodes) this.root.lastChild.remove();
    for (const [n, block] of blocks.entries()) {
      this.root.append(renderBlock(block, isGrowing && n === blocks.length - 1));
    }
    if (!isGrowing || blocks.length === 0) return;
    // The last block can change. If that block is a single line, the block before it can change,
    // too, because more text may make the line a part of it.
    const last = blocks.at(-1);
    const openBlocks = last.first === lines.length - 1 ? 2 : 1;
    const firstOpen = blocks.at(-openBlocks);
    if (firstOpen && blocks.length > openBlocks) {
      this.finalLength += lineOffset(rest, firstOpen.first);
      this.finalNodes = this.root.childNodes.length - openBlocks;
    }
    if (openBlocks === 1 && last.type === 'code' && !last.closed) {
      const text = this.root.lastChild.querySelector('code').firstChild;
      this.openCode = { language: last.language, text };
    }
  }

  #extendCode(code) {
    // The code gets shorter when more text completes a closing fence that looked like code.
    const { text } = this.openCode;
    if (code.startsWith(text.data)) text.appendData(code.slice(text.data.length));
    else text.data = code;
  }
}

/** Index of the first character of a line. */
function lineOffset(text, line) {
  let offset = 0;
  for (let n = 0; n < line; n += 1) offset = text.indexOf('\n', offset) + 1;
  return offset;
}

function renderBlock(block, isGrowing) {
  switch (block.type) {
    case 'heading':
      // The page itself uses h1 and h2.
      return h(`h${Math.min(6, block.level + 2)}`, { dir: 'auto' }, ...renderInline(block.text, isGrowing));
    case 'rule':
      return h('hr');
    case 'code':
      return renderCode(block, isGrowing);
    case 'quote':
      return h('blockquote', { dir: 'auto' }, ...renderBlocks(block.blocks, isGrowing));
    case 'list':
      return renderList(block, isGrowing);
    case 'table':
      return renderTable(block, isGrowing);
    default:
      return h('p', { dir: 'auto' }, ...renderInline(block.text, isGrowing));
  }
}

function renderBlocks(blocks, isGrowing) {
  return blocks.map((block, n) => renderBlock(block, isGrowing && n === blocks.length - 1));
}

function renderCode({ language, text, closed }, isGrowing) {
  // The code is highlighted when it is complete.
  const tokens = isGrowing && !closed ? [[null, text]] : highlight(text, language);
  const parts = tokens.map(([kind, token]) => (kind ? h('span', { class: `code-${kind}` }, token) : document.createTextNode(token)));
  const code = h('code', {}, ...parts);
  const label = language || 'text';
  return h(
    'figure',
    { class: 'code' },
    h('figcaption', {}, h('span', {}, label), copyButton('Copy code', () => code.textContent)),
    h('pre', { tabindex: '0', dir: 'ltr', 'aria-label': `Code, ${label}`, role: 'region' }, code),
  );
}

function renderList(list, isGrowing) {
  const element = h(list.ordered ? 'ol' : 'ul', { dir: 'auto', ...(list.ordered && list.start !== 1 && { start: list.start }) });
  for (const [n, item] of list.items.entries()) {
    const isOpen = isGrowing && n === list.items.length - 1;
    const inner = item.blocks.flatMap((block, m) => {
      const isLast = isOpen && m === item.blocks.length - 1;
      const isTight = block.type === 'paragraph' && !list.loose;
      return isTight ? renderInline(block.text, isLast) : [renderBlock(block, isLast)];
    });
    const checkbox = item.task === null ? [] : [h('span', { class: 'task', role: 'img', 'aria-label': item.task ? 'Done:' : 'To do:' }, item.task ? '☑ ' : '☐ ')];
    element.append(h('li', { class: checkbox.length ? 'has-task' : undefined }, ...checkbox, ...inner));
  }
  return element;
}

function renderTable({ align, head, rows }, isGrowing) {
  const renderRow = (tag, cells, isLast) =>
    h('tr', {}, ...cells.map((cell, n) => h(tag, { class: `align-${align[n]}`, dir: 'auto', ...(tag === 'th' && { scope: 'col' }) }, ...renderInline(cell, isLast))));
  const body = rows.map((cells, n) => renderRow('td', cells, isGrowing && n === rows.length - 1));
  return h(
    'div',
    { class: 'table', tabindex: '0', role: 'region', 'aria-label': 'Table' },
    h('table', {}, h('thead', {}, renderRow('th', head, false)), h('tbody', {}, ...body)),
  );
}

function renderInline(text, isGrowing) {
  return parseInline(text, isGrowing).map(renderNode);
}

const TAGS = { emphasis: 'em', strong: 'strong', deleted: 'del', span: 'span' };

function renderNode(node) {
  if (typeof node === 'string') return document.createTextNode(node);
  if (node.type === 'code') return h('code', { dir: 'ltr' }, node.text);
  if (node.type === 'break') return h('br');
  const inner = node.children.map(renderNode);
  if (node.type === 'link') return h('a', { href: node.href, target: '_blank', rel: 'noopener noreferrer nofollow' }, ...inner);
  return h(TAGS[node.type], {}, ...inner);
}
