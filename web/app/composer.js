// The message box: Enter sends, Shift+Enter begins a new line.

import { $, icon, kept } from './dom.js';

const MOST_DRAFTS = 50;
const MOST_DRAFT_CHARS = 40_000;

/** What is written and not sent, by conversation; '' is a new one. For this tab, also after a reload. */
export class Drafts {
  constructor(userId) {
    this.key = `chatmesh.drafts.${userId}`;
    const found = kept.get(this.key, sessionStorage);
    const entries = found && typeof found === 'object' ? Object.entries(found) : [];
    this.texts = new Map(entries.filter(([, text]) => typeof text === 'string').slice(-MOST_DRAFTS));
  }

  get(id) {
    return this.texts.get(id) ?? '';
  }

  set(id, text) {
    if (text === this.get(id)) return;
    this.texts.delete(id);
    if (text !== '' && text.length <= MOST_DRAFT_CHARS) this.texts.set(id, text);
    for (const oldest of [...this.texts.keys()].slice(0, -MOST_DRAFTS)) this.texts.delete(oldest);
    kept.set(this.key, this.texts.size ? Object.fromEntries(this.texts) : null, sessionStorage);
  }
}

export class Composer {
  constructor({ userId, send, stop, limits }) {
    this.limits = limits;
    this.drafts = new Drafts(userId);
    this.chatId = null;
    const box = $('box');
    $('send').append(icon('send'));
    $('stop').append(icon('stop'));
    box.addEventListener('keydown', (event) => {
      // While an input method composes, Enter is its own.
      if (event.key === 'Enter' && !event.shiftKey && !event.isComposing && event.keyCode !== 229) {
        event.preventDefault();
        this.#submit(send);
      }
    });
    box.addEventListener('input', () => this.#changed());
    $('composer').addEventListener('submit', (event) => {
      event.preventDefault();
      this.#submit(send);
    });
    $('stop').addEventListener('click', () => {
      stop();
      this.focus();
    });
    this.#changed();
  }

  focus() {
    $('box').focus();
  }

  /** The draft of this conversation; '' is a new one. */
  show(chatId) {
    if (chatId === this.chatId) return;
    this.chatId = chatId;
    $('box').value = this.drafts.get(chatId);
    this.#changed();
  }

  /** The conversation is gone, and its draft with it. */
  forget(chatId) {
    this.drafts.set(chatId, '');
  }

  /** Offers a text to be changed or sent. */
  fill(text) {
    $('box').value = text;
    this.#changed();
    this.focus();
  }

  /** Whether there is an answer that can be stopped. */
  answering(is) {
    $('stop').hidden = !is;
  }

  #submit(send) {
    const text = $('box').value;
    if (text.trim() === '' || this.#over() > 0) return;
    const from = this.chatId;
    if (send(text) === false) return;
    this.drafts.set(from, '');
    // A new conversation has its own draft from now on.
    $('box').value = from === this.chatId ? '' : this.drafts.get(this.chatId);
    this.#changed();
  }

  #over() {
    const most = this.limits()?.max_content_chars ?? Infinity;
    const { length } = $('box').value;
    return length > most ? [...$('box').value].length - most : length - most;
  }

  #changed() {
    const box = $('box');
    if (!CSS.supports('field-sizing', 'content')) {
      box.style.height = 'auto';
      box.style.height = `${box.scrollHeight}px`;
    }
    if (this.chatId !== null) this.drafts.set(this.chatId, box.value);
    const over = this.#over();
    $('send').disabled = box.value.trim() === '' || over > 0;
    $('box-count').hidden = over <= -200;
    $('box-count').textContent = over > 0 ? `${characters(over)} too long.` : `${characters(-over)} left.`;
  }
}

function characters(count) {
  return count === 1 ? '1 character' : `${count} characters`;
}
