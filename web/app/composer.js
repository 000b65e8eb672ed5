// The message input: Enter sends, Shift+Enter starts a new line.

import { $, icon, storage } from './dom.js';

const MAX_DRAFTS = 50;
const MAX_DRAFT_CHARS = 40_000;
/** From this number of remaining characters on, the number is shown. */
const SHOW_REMAINING_FROM = 200;

/** Unsent texts by conversation id; '' is the new conversation. Stored for this tab. */
export class Drafts {
  constructor(userId) {
    this.key = `chatmesh.drafts.${userId}`;
    const stored = storage.get(this.key, sessionStorage);
    const entries = stored && typeof stored === 'object' ? Object.entries(stored) : [];
    this.texts = new Map(entries.filter(([, text]) => typeof text === 'string').slice(-MAX_DRAFTS));
  }

  get(id) {
    return this.texts.get(id) ?? '';
  }

  set(id, text) {
    if (text === this.get(id)) return;
    this.texts.delete(id);
    if (text !== '' && text.length <= MAX_DRAFT_CHARS) this.texts.set(id, text);
    for (const oldest of [...this.texts.keys()].slice(0, -MAX_DRAFTS)) this.texts.delete(oldest);
    storage.set(this.key, this.texts.size ? Object.fromEntries(this.texts) : null, sessionStorage);
  }
}

/** The message box with its buttons. `send` returns false if the message could not be sent. */
export class Composer {
  constructor({ userId, send, stop, limits }) {
    this.limits = limits;
    this.drafts = new Drafts(userId);
    this.conversationId = null;
    const input = $('message-input');
    $('send').append(icon('send'));
    $('stop').append(icon('stop'));
    input.addEventListener('keydown', (event) => {
      // While an input method is composing, Enter belongs to it; Safari reports key code 229.
      if (event.key === 'Enter' && !event.shiftKey && !event.isComposing && event.keyCode !== 229) {
        event.preventDefault();
        this.#submit(send);
      }
    });
    input.addEventListener('input', () => this.#update());
    $('composer').addEventListener('submit', (event) => {
      event.preventDefault();
      this.#submit(send);
    });
    $('stop').addEventListener('click', () => {
      stop();
      this.focus();
    });
    this.#update();
  }

  focus() {
    $('message-input').focus();
  }

  /** Shows the draft of a conversation; '' is the new conversation. */
  show(conversationId) {
    if (conversationId === this.conversationId) return;
    this.conversationId = conversationId;
    $('message-input').value = this.drafts.get(conversationId);
    this.#update();
  }

  /** Deletes the draft of a conversation. */
  deleteDraft(conversationId) {
    this.drafts.set(conversationId, '');
  }

  /** Puts a text into the box, which the user can edit or send. */
  fill(text) {
    $('message-input').value = text;
    this.#update();
    this.focus();
  }

  /** Shows the stop button while an answer is in progress. */
  setAnswering(isAnswering) {
    $('stop').hidden = !isAnswering;
  }

  #submit(send) {
    const text = $('message-input').value;
    if (text.trim() === '' || this.#excess() > 0) return;
    const sentFrom = this.conversationId;
    if (send(text) === false) return;
    this.drafts.set(sentFrom, '');
    // The first message of a new conversation changes the current conversation.
    $('message-input').value = sentFrom === this.conversationId ? '' : this.drafts.get(this.conversationId);
    this.#update();
  }

  /** Characters above the limit; negative below it. */
  #excess() {
    const max = this.limits()?.max_content_chars ?? Infinity;
    const { length } = $('message-input').value;
    return length > max ? [...$('message-input').value].length - max : length - max;
  }

  /** Adapts the height, the stored draft, the send button and the character count to the text. */
  #update() {
    const input = $('message-input');
    if (!CSS.supports('field-sizing', 'content')) {
      input.style.height = 'auto';
      input.style.height = `${input.scrollHeight}px`;
    }
    if (this.conversationId !== null) this.drafts.set(this.conversationId, input.value);
    const excess = this.#excess();
    $('send').disabled = input.value.trim() === '' || excess > 0;
    $('characters-left').hidden = excess <= -SHOW_REMAINING_FROM;
    $('characters-left').textContent = excess > 0 ? `${countCharacters(excess)} too long.` : `${countCharacters(-excess)} left.`;
  }
}

function countCharacters(count) {
  return count === 1 ? '1 character' : `${count} characters`;
}
