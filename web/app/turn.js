// One question and its answer.

import { announce, button, copyButton, countdown, h } from './dom.js';
import { MarkdownView } from './markdown/view.js';

/** What went wrong and what to do, by the error's code; otherwise the server's own words. */
const ADVICE = {
  rate_limited: 'That was too much at once.',
  too_large: null,
  invalid_message: null,
  missed: null,
  unavailable: 'The server could not take this message. Try again in a moment.',
  unauthorized: 'You are signed out. Sign in again, then send it once more.',
  closed: 'The connection is closed. Connect again, then send it once more.',
  expired: 'This message waited too long for its turn. Send it again if you still need the answer.',
  provider_timeout: 'The model took too long to answer. Try again, or ask for something shorter.',
  provider_rate_limited: 'The model has too much to do now. Try again in a minute.',
  provider_rejected:
    'The model refused this request. If it happens with every message, tell whoever runs this server: its access to the model may not be set up.',
  provider_failed: 'The model could not answer. Try again in a moment.',
  internal: 'Something went wrong on the server. Try again in a moment.',
  queue_full: 'Too many messages wait for their answers. Let some of them finish first.',
};

/** The history does not tell why, so after a reload this is all that is known. */
const NOT_ANSWERED = 'This message was not answered.';
const NOT_SENT = 'This message was not sent.';
const EMPTY = 'The model gave an empty answer.';

function blank(text) {
  return text.trim() === '';
}

function adviceOf({ error, messageId }) {
  if (!error) return messageId ? NOT_ANSWERED : NOT_SENT;
  if (Object.hasOwn(ADVICE, error.code)) return ADVICE[error.code] ?? error.message;
  return error.messageId ? NOT_ANSWERED : error.message;
}

/** Time between two drawings while an answer grows; longer where drawing itself takes long. */
function nextFrame(spent) {
  return new Promise((resolve) => {
    // A tab in the background draws no frames, and the answer goes on all the same.
    const timer = setTimeout(resolve, Math.max(250, spent * 4));
    requestAnimationFrame(() => {
      if (spent < 8) {
        clearTimeout(timer);
        resolve();
      } else {
        setTimeout(() => {
          clearTimeout(timer);
          resolve();
        }, spent * 3);
      }
    });
  });
}

export class TurnView {
  #stopCountdown = () => {};

  constructor(turn, actions) {
    this.turn = turn;
    this.actions = actions;
    this.question = h('div', { class: 'question', dir: 'auto' });
    this.answer = h('div', { class: 'answer' });
    this.note = h('div', { class: 'note' });
    this.tools = h('div', { class: 'tools' });
    this.element = h(
      'article',
      { class: 'turn', 'aria-label': 'Message and answer' },
      h('h2', { class: 'unseen' }, 'You asked'),
      this.question,
      h('h2', { class: 'unseen' }, 'Answer'),
      this.answer,
      this.note,
      this.tools,
    );
    this.markdown = new MarkdownView(this.answer);
    this.shown = null;
    this.following = null;
    this.update();
  }

  /** Shows what the turn is now. */
  update() {
    const { turn } = this;
    const question = turn.question ?? 'A message of another device';
    if (this.question.textContent !== question) this.question.textContent = question;
    this.question.classList.toggle('unknown', turn.question === null);
    if (turn.live) {
      if (this.following !== turn.live) this.#follow(turn.live);
    } else if (this.following === null && this.shown !== turn.text) {
      this.#draw(turn.text, false);
    }
    this.element.setAttribute('aria-busy', String(this.#busy));
    this.#showNote();
  }

  /** Whether it grows, or its end is still to be drawn. */
  get #busy() {
    return this.turn.live !== null || this.following !== null;
  }

  async #follow(answer) {
    this.following = answer;
    let spent = 0;
    try {
      for await (const { text } of answer) {
        // Another conversation is shown now; coming back makes a new view.
        if (!this.element.isConnected) return;
        const began = performance.now();
        this.#draw(text, true);
        this.#showNote();
        spent = performance.now() - began;
        await nextFrame(spent);
      }
    } catch {
      // The turn has the error, and the note says it.
    }
    this.following = null;
    // What a failed one had begun is no answer, and the history does not have it.
    this.#draw(answer.state === 'failed' ? '' : answer.text, false);
    this.update();
    if (answer.state === 'answered') announce(blank(answer.text) ? EMPTY : `Answer: ${this.answer.textContent.slice(0, 2000)}`);
    else if (answer.state === 'cancelled') announce('The answer was stopped.');
  }

  #draw(text, growing) {
    this.shown = text;
    this.markdown.update(text, growing);
    this.actions.grown();
  }

  #showNote() {
    const { turn } = this;
    const state = turn.live ? `${turn.live.state} ${turn.live.text !== ''} ${turn.live.cancelling != null}` : `${turn.status} ${turn.error?.code} ${turn.messageId !== null} ${blank(turn.text)}`;
    const key = `${state} ${turn.question !== null} ${this.#busy}`;
    if (this.noted === key) return;
    this.noted = key;
    this.#stopCountdown();
    this.note.classList.toggle('bad', turn.status === 'failed');
    this.note.replaceChildren(...this.#noteParts());
    this.note.hidden = this.note.childNodes.length === 0;
    const done = !this.#busy && turn.status !== 'failed' && !blank(turn.text);
    this.tools.replaceChildren(...(done ? this.#toolParts() : []));
    this.tools.hidden = !done;
  }

  #noteParts() {
    const { turn } = this;
    if (turn.live) {
      if (turn.live.cancelling) return ['Stopping…'];
      if (turn.live.text !== '') return [];
      const words = { queued: 'Will be sent when there is a connection', sent: 'Sending', accepted: 'Waiting for the answer', streaming: 'Answering' };
      const dots = h('span', { class: 'waiting-dots', 'aria-hidden': 'true' }, h('i'), h('i'), h('i'));
      return [dots, h('span', {}, words[turn.live.state] ?? '')];
    }
    if (this.#busy) return [];
    if (turn.status === 'cancelled') {
      return [turn.text ? 'Stopped here.' : 'Stopped before it began.', ...this.#retryPart('Ask again')];
    }
    if (turn.status === 'failed') return this.#failedParts();
    if (blank(turn.text)) return [EMPTY, ...this.#retryPart('Ask again')];
    return [];
  }

  #failedParts() {
    const { error } = this.turn;
    // What failed long ago is no news.
    const text = h('span', { role: error ? 'alert' : null }, adviceOf(this.turn));
    const retry = this.#retryPart('Try again');
    if (error?.retryAfterMs > 0 && retry.length) {
      const left = h('span');
      this.#stopCountdown = countdown(error.retryAfterMs, (seconds) => {
        retry[0].disabled = seconds > 0;
        left.textContent = seconds > 0 ? `You can send again in ${seconds} s.` : 'You can send again now.';
      });
      return [text, left, ...retry];
    }
    return [text, ...retry];
  }

  #retryPart(label) {
    if (this.turn.question === null) return [];
    return [button('retry', label, () => this.actions.retry(this.turn), label)];
  }

  #toolParts() {
    return [copyButton('Copy the answer', () => this.turn.text)];
  }
}
