// Shows the parts of an answer: text, refusals, reasoning, tool calls and sources.

import { h } from '../dom.js';
import { MarkdownView } from '../markdown/view.js';
import { formatJson, toBlocks } from './blocks.js';

/** Shows the parts of one answer in a root element. */
export class PartsView {
  /** The views of the blocks by key, in the order of display. */
  #views = new Map();
  #sources = null;
  #sourcesKey = '[]';

  constructor(root) {
    this.root = root;
    /** Whether a block shows that the answer is in progress. */
    this.isGrowing = false;
  }

  /** Shows the parts. `isStreaming` means that the answer has not ended. */
  update(parts, isStreaming) {
    const { blocks, sources } = toBlocks(parts, isStreaming);
    const earlier = this.#views;
    this.#views = new Map(blocks.map(({ key, kind }) => [key, earlier.get(key) ?? createView(kind)]));
    for (const [key, view] of earlier) if (!this.#views.has(key)) view.element.remove();
    const lastText = blocks.findLastIndex(({ kind, text }) => (kind === 'text' || kind === 'refusal') && text.trim() !== '');
    let next = this.root.firstChild;
    for (const [n, block] of blocks.entries()) {
      const view = this.#views.get(block.key);
      if (view.element === next) next = next.nextSibling;
      else this.root.insertBefore(view.element, next);
      view.update(block, { isStreaming, hasTextAfter: n < lastText });
    }
    this.isGrowing = blocks.some((block) => block.isGrowing);
    this.#showSources(sources);
  }

  /** The text of the answer as shown, without reasoning and tool calls. */
  get shownText() {
    return [...this.#views.values()].map((view) => view.shownText).filter((text) => text !== '').join('\n');
  }

  #showSources(sources) {
    const key = JSON.stringify(sources);
    if (this.#sourcesKey === key) return;
    this.#sourcesKey = key;
    this.#sources?.remove();
    this.#sources = sources.length > 0 ? renderSources(sources) : null;
    if (this.#sources) this.root.append(this.#sources);
  }
}

function createView(kind) {
  if (kind === 'text') return new TextView();
  if (kind === 'refusal') return new RefusalView();
  return kind === 'reasoning' ? new ReasoningView() : new ToolCallView();
}

class TextView {
  constructor() {
    this.element = h('div', { class: 'answer-text' });
    this.markdown = new MarkdownView(this.element);
  }

  update({ text }, { isStreaming }) {
    this.markdown.update(text, isStreaming);
  }

  get shownText() {
    return this.element.textContent;
  }
}

class RefusalView {
  constructor() {
    this.body = h('div', { class: 'answer-text' });
    this.markdown = new MarkdownView(this.body);
    this.element = h('div', { class: 'refusal' }, h('p', { class: 'part-label' }, 'The model declined:'), this.body);
  }

  update({ text }, { isStreaming }) {
    this.markdown.update(text, isStreaming);
  }

  get shownText() {
    return this.element.textContent;
  }
}

/** A fold-out. It is open until the text begins, unless the user opens or closes it. */
class ReasoningView {
  #isUserControlled = false;

  constructor() {
    this.label = h('span');
    this.body = h('div', { class: 'reasoning-text' });
    this.markdown = new MarkdownView(this.body);
    // Enter and Space on a summary are clicks, too; a change by the program is not.
    const summary = h('summary', { onclick: () => (this.#isUserControlled = true) }, this.label);
    this.element = h('details', { class: 'reasoning' }, summary, this.body);
  }

  update({ text, isGrowing }, { isStreaming, hasTextAfter }) {
    setText(this.label, isGrowing ? 'Thinking…' : 'Reasoning');
    this.element.classList.toggle('growing', isGrowing);
    this.markdown.update(text, isGrowing);
    if (this.#isUserControlled) return;
    if (hasTextAfter) this.element.open = false;
    else if (isStreaming) this.element.open = true;
  }

  get shownText() {
    return '';
  }
}

/** One line with the name of the tool, which folds out to the arguments. */
class ToolCallView {
  constructor() {
    this.spinner = h('span', { class: 'spinner', 'aria-hidden': 'true' });
    this.label = h('span', { dir: 'auto' });
    this.code = h('code');
    const body = h('pre', { tabindex: '0', dir: 'ltr', role: 'region', 'aria-label': 'Arguments' }, this.code);
    this.element = h('details', { class: 'tool-call' }, h('summary', {}, this.spinner, this.label), body);
  }

  update({ text, name, isGrowing }) {
    this.spinner.hidden = !isGrowing;
    setText(this.label, `Tool call: ${name || 'without a name'}${isGrowing ? '…' : ''}`);
    if (this.text === text && this.isGrowing === isGrowing) return;
    Object.assign(this, { text, isGrowing });
    // Incomplete JSON can't be indented.
    setText(this.code, (isGrowing ? text : formatJson(text)) || 'No arguments.');
  }

  get shownText() {
    return '';
  }
}

function renderSources(sources) {
  const items = sources.map(({ href, title, host }) => {
    const link = h('a', { href, target: '_blank', rel: 'noopener noreferrer nofollow', dir: 'auto' }, title);
    // The host shows where the link leads, whatever the title says.
    return h('li', {}, link, ...(title === host ? [] : [' ', h('span', { class: 'source-host' }, host)]));
  });
  return h('section', { class: 'sources', 'aria-label': 'Sources' }, h('p', { class: 'part-label' }, 'Sources'), h('ol', {}, ...items));
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
