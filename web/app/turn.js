// The view of a turn: a question and its answer.

import { announce, button, copyButton, countdown, h } from './dom.js';
import { PartsView } from './parts/view.js';

/** Text for each error code: the problem and what to do. null: the server's message is shown. */
const ADVICE = {
  rate_limited: 'Too many messages in a short time. Try again in a moment.',
  too_large: null,
  invalid_message: null,
  missed: null,
  unavailable: 'The server could not accept this message. Try again in a moment.',
  unauthorized: 'You are signed out. Sign in again, then send it once more.',
  closed: 'The connection is closed. Connect again, then send it once more.',
  expired: 'This message waited too long for its turn. Send it again if you still need the answer.',
  provider_timeout: 'The model took too long to answer. Try again, or ask for something shorter.',
  provider_rate_limited: 'The model has too much to do now. Try again in a minute.',
  provider_rejected:
    'The model refused this request. If it happens with every message, contact the operator of this server: its access to the model may not be configured.',
  provider_failed: 'The model could not answer. Try again in a moment.',
  internal: 'The server had an internal error. Try again in a moment.',
  queue_full: 'Too many messages wait for their answers. Let some of them finish first.',
};

/** Texts for errors without a known code: the history does not have the codes of errors. */
const NOT_ANSWERED = 'This message was not answered.';
const NOT_SENT = 'This message was not sent.';
const EMPTY_ANSWER = 'The model gave an empty answer.';

function isBlank(text) {
  return text.trim() === '';
}

/** Whether the answer has neither text nor a tool call. */
function isEmptyAnswer({ text, parts }) {
  return isBlank(text) && !parts.some(({ kind }) => kind === 'tool_call');
}

function errorText({ error, messageId }) {
  if (!error) return messageId ? NOT_ANSWERED : NOT_SENT;
  if (Object.hasOwn(ADVICE, error.code)) return ADVICE[error.code] ?? error.message;
  return error.messageId ? NOT_ANSWERED : error.message;
}

/** Waits before the next drawing of a streaming answer: longer if the last drawing took longer. */
function nextFrame(drawTimeMs) {
  return new Promise((resolve) => {
    // Background tabs have no animation frames, so a timer keeps the drawing going there.
    const timer = setTimeout(resolve, Math.max(250, drawTimeMs * 4));
    requestAnimationFrame(() => {
      if (drawTimeMs < 8) {
        clearTimeout(timer);
        resolve();
      } else {
        setTimeout(() => {
          clearTimeout(timer);
          resolve();
        }, drawTimeMs * 3);
      }
    });
  });
}

/** Shows one turn, and draws its answer while it is streaming. */
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
      h('h2', { class: 'visually-hidden' }, 'You asked'),
      this.question,
      h('h2', { class: 'visually-hidden' }, 'Answer'),
      this.answer,
      this.note,
      this.tools,
    );
    this.parts = new PartsView(this.answer);
    /** The parts that were drawn last, of an answer that had ended. */
    this.drawnParts = null;
    /** The Answer whose stream is being drawn. */
    this.streaming = null;
    this.update();
  }

  /** Updates the view to the current state of the turn. */
  update() {
    const { turn } = this;
    const question = turn.question ?? 'A message of another device';
    if (this.question.textContent !== question) this.question.textContent = question;
    this.question.classList.toggle('unknown', turn.question === null);
    if (turn.live) {
      if (this.streaming !== turn.live) this.#drawStream(turn.live);
    } else if (this.streaming === null && this.drawnParts !== turn.parts) {
      this.#draw(turn.parts, false);
    }
    this.element.setAttribute('aria-busy', String(this.#isBusy));
    this.#showNote();
  }

  /** Whether the answer is streaming, or its end has not been drawn yet. */
  get #isBusy() {
    return this.turn.live !== null || this.streaming !== null;
  }

  async #drawStream(answer) {
    this.streaming = answer;
    let drawn = null;
    try {
      for await (const update of answer) {
        // The page shows another conversation. Returning to this one creates a new view.
        if (!this.element.isConnected) return;
        // One drawing shows all parts, and several updates may be about them.
        const { parts } = answer;
        const state = [parts, parts.length, parts.at(-1)?.text.length];
        if (drawn && state.every((value, n) => value === drawn[n])) continue;
        drawn = state;
        const startedAt = performance.now();
        this.#draw(parts, true);
        this.#showNote();
        await nextFrame(performance.now() - startedAt);
      }
    } catch {
      // The note shows the error of the turn.
    }
    this.streaming = null;
    // Draws the final parts of the turn: none if it failed, as in the history.
    this.update();
    if (answer.state === 'answered') announce(this.#endAnnouncement(answer));
    else if (answer.state === 'cancelled') announce('The answer was stopped.');
  }

  /** The text for screen readers when an answer has ended; reasoning is not read aloud. */
  #endAnnouncement(answer) {
    if (isEmptyAnswer(answer)) return EMPTY_ANSWER;
    return isBlank(answer.text) ? 'The model called a tool.' : `Answer: ${this.parts.shownText.slice(0, 2000)}`;
  }

  #draw(parts, isStreaming) {
    this.drawnParts = isStreaming ? null : parts;
    this.parts.update(parts, isStreaming);
    this.actions.onResize();
  }

  #showNote() {
    const { turn } = this;
    const state = turn.live ? `${turn.live.state} ${this.#showsProgress} ${turn.live.pendingCancel != null}` : `${turn.status} ${turn.error?.code} ${turn.messageId !== null} ${isBlank(turn.text)} ${isEmptyAnswer(turn)} ${this.answer.hasChildNodes()}`;
    const key = `${state} ${turn.question !== null} ${this.#isBusy}`;
    if (this.noteKey === key) return;
    this.noteKey = key;
    this.#stopCountdown();
    this.note.classList.toggle('failed', turn.status === 'failed');
    this.note.replaceChildren(...this.#noteParts());
    this.note.hidden = this.note.childNodes.length === 0;
    const hasTools = !this.#isBusy && turn.status !== 'failed' && !isBlank(turn.text);
    this.tools.replaceChildren(...(hasTools ? this.#toolParts() : []));
    this.tools.hidden = !hasTools;
  }

  /** Whether the text, or a block at the end of the answer, shows that it is in progress. */
  get #showsProgress() {
    return this.turn.live.text !== '' || this.parts.isGrowing;
  }

  #noteParts() {
    const { turn } = this;
    if (turn.live) {
      if (turn.live.pendingCancel) return ['Stopping…'];
      if (this.#showsProgress) return [];
      const labels = { queued: 'Will be sent when there is a connection', sent: 'Sending', accepted: 'Waiting for the answer', streaming: 'Answering' };
      const dots = h('span', { class: 'waiting-dots', 'aria-hidden': 'true' }, h('i'), h('i'), h('i'));
      return [dots, h('span', {}, labels[turn.live.state] ?? '')];
    }
    if (this.#isBusy) return [];
    if (turn.status === 'cancelled') {
      return [this.answer.hasChildNodes() ? 'Stopped here.' : 'Stopped before it began.', ...this.#retryPart('Ask again')];
    }
    if (turn.status === 'failed') return this.#failedParts();
    if (isEmptyAnswer(turn)) return [EMPTY_ANSWER, ...this.#retryPart('Ask again')];
    return [];
  }

  #failedParts() {
    const { error } = this.turn;
    // Only a new failure is an alert for screen readers.
    const text = h('span', { role: error ? 'alert' : null }, errorText(this.turn));
    const retry = this.#retryPart('Try again');
    if (error?.retryAfterMs > 0 && retry.length) {
      const remaining = h('span');
      this.#stopCountdown = countdown(error.retryAfterMs, (seconds) => {
        retry[0].disabled = seconds > 0;
        remaining.textContent = seconds > 0 ? `You can send again in ${seconds} s.` : 'You can send again now.';
      });
      return [text, remaining, ...retry];
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
