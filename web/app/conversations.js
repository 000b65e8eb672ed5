// Conversations and what was said in them: the history of the server, and what is under way here.

import { kept } from './dom.js';

const MOST_TITLES = 200;
const MOST_LISTED = 400;
/** Messages that were refused, and are kept until they are sent after all. */
const MOST_REFUSED = 50;

function newChatId() {
  const bytes = crypto.getRandomValues(new Uint8Array(10));
  return `c-${Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('')}`;
}

function titleOf(text) {
  const line = text.trim().replace(/\s+/g, ' ');
  return line.length > 80 ? `${line.slice(0, 79)}…` : line;
}

/** The server never took it: refused, or there was no connection to the end. */
function refused(turn) {
  return turn.status === 'failed' && turn.messageId === null && turn.question !== null;
}

/**
 * A turn: `{ id, messageId, question, text, status, live, error }`. `status` is live, answered,
 * cancelled or failed; `live` is the client's Answer while it grows.
 */
export class Chats {
  constructor(client, changed) {
    this.client = client;
    /** Called with 'list', with 'turns' and the chat, or with 'gone' and its id. */
    this.changed = changed;
    this.all = new Map();
    this.current = null;
    // Of this user only: somebody else may sign in here next.
    this.titlesKey = `chatmesh.titles.${client.userId}`;
    this.outboxKey = `chatmesh.outbox.${client.userId}`;
    this.titles = kept.get(this.titlesKey) ?? {};
    this.channel = typeof BroadcastChannel === 'function' ? new BroadcastChannel(`chatmesh.${client.userId}`) : null;
    if (this.channel) this.channel.onmessage = ({ data }) => this.#drop(data.forgotten);
    client.on('reload', () => this.refresh());
    client.on('message', (answer) => this.#adopt(answer));
    client.on('accepted', (answer) => this.#accepted(answer));
    client.on('end', (answer) => this.#ended(answer));
  }

  /** Conversations, the newest first. */
  get list() {
    return [...this.all.values()].sort((a, b) => b.updatedAt - a.updatedAt);
  }

  #chat(id) {
    let chat = this.all.get(id);
    if (!chat) {
      chat = { id, title: this.titles[id] ?? null, updatedAt: Date.now(), turns: [], stale: true, loaded: false, next: null, trouble: null };
      this.all.set(id, chat);
    }
    return chat;
  }

  /** Shows a conversation; null begins a new one. */
  open(id) {
    const before = this.current;
    // An address that named nothing.
    if (before?.loaded && before.turns.length === 0 && before.title === null) this.all.delete(before.id);
    this.current = id === null ? null : this.#chat(id);
    if (this.current?.stale) this.load(this.current);
    this.changed('list');
    this.changed('turns', this.current);
  }

  /** Asks in the current conversation, or in a new one. */
  ask(question, { id } = {}) {
    const began = this.current === null;
    if (began) {
      this.current = this.#chat(newChatId());
      this.current.stale = false;
    }
    this.#adopt(this.client.send(question, { conversationId: this.current.id, id }));
    return began;
  }

  /** Asks again what was not answered. What the server never took keeps its id. */
  retry(chat, turn) {
    const id = turn.messageId ? undefined : turn.id;
    const again = this.client.send(turn.question, { conversationId: chat.id, id });
    if (!turn.messageId) chat.turns = chat.turns.filter((one) => one !== turn);
    this.#adopt(again);
  }

  /** What was sent before the page was left and was never accepted is sent again; what was refused is shown. */
  resume() {
    const outbox = kept.get(this.outboxKey, sessionStorage);
    if (!Array.isArray(outbox)) return;
    // All of the refused ones first: with each message that is sent the outbox is written anew.
    for (const one of outbox) if (one?.refusedAt) this.#showRefused(one);
    for (const one of outbox) {
      try {
        const { id, conversationId, question, refusedAt } = one;
        if (!refusedAt) this.#adopt(this.client.send(question, { id, conversationId }));
      } catch {
        // Damaged by hand; the others are still sent.
      }
    }
  }

  #showRefused({ id, conversationId, question, refusedAt }) {
    if (![id, conversationId, question].every((one) => typeof one === 'string')) return;
    const chat = this.#chat(conversationId);
    chat.updatedAt = Number(refusedAt) || chat.updatedAt;
    chat.turns.push({ id, messageId: null, question, text: '', status: 'failed', live: null, error: null, refusedAt });
    if (chat.title === null) this.#name(chat, question);
  }

  /** The server's list anew, and the conversation that is shown. */
  async refresh() {
    for (const chat of this.all.values()) chat.stale = true;
    if (this.current) this.load(this.current);
    try {
      const found = new Map();
      let after;
      do {
        const page = await this.client.conversations({ limit: 200, after });
        for (const one of page.conversations) found.set(one.conversation_id, one);
        after = page.next;
      } while (after && found.size < MOST_LISTED);
      for (const chat of [...this.all.values()]) {
        const busy = chat === this.current || chat.turns.some((turn) => turn.live || refused(turn));
        if (!found.has(chat.id) && !busy) this.all.delete(chat.id);
      }
      for (const [id, one] of found) this.#chat(id).updatedAt = Date.parse(one.updated_at) || Date.now();
      this.changed('list');
      await this.#nameUnknown();
    } catch {
      // The list is as it was; the connection says in words what is wrong, and another
      // `reload` or a click on a conversation tries again.
    }
  }

  /** Conversations of other devices are named by what was asked last in them. */
  async #nameUnknown() {
    for (const chat of this.list.filter((one) => one.title === null).slice(0, 50)) {
      const { messages } = await this.client.messages(chat.id, { limit: 1 });
      const question = messages[0]?.question;
      if (question) this.#name(chat, question);
    }
    this.changed('list');
  }

  #name(chat, question) {
    chat.title = titleOf(question);
    delete this.titles[chat.id];
    this.titles[chat.id] = chat.title;
    for (const id of Object.keys(this.titles).slice(0, -MOST_TITLES)) delete this.titles[id];
    kept.set(this.titlesKey, this.titles);
  }

  /** The newest turns of a conversation. */
  async load(chat) {
    chat.stale = false;
    const began = performance.now();
    chat.asked = began;
    try {
      const page = await this.client.messages(chat.id, { limit: 50 });
      // Another one was begun later, and knows more.
      if (chat.asked !== began) return;
      chat.trouble = null;
      this.#merge(chat, page, began);
    } catch (error) {
      if (chat.asked !== began) return;
      chat.stale = true;
      chat.trouble = `The earlier messages could not be loaded: ${error.message}`;
    }
    this.changed('turns', chat);
  }

  /** The turns before those that are shown. */
  async older(chat) {
    const before = chat.next;
    if (!before) return;
    try {
      const page = await this.client.messages(chat.id, { limit: 50, before });
      // Asked twice, or loaded anew meanwhile.
      if (chat.next !== before) return;
      chat.trouble = null;
      chat.turns.unshift(...this.#turns(chat, page));
      chat.next = page.next;
    } catch (error) {
      // 404: that turn is gone, so nothing before it is left either.
      if (error.status === 404) chat.next = null;
      else chat.trouble = `The earlier messages could not be loaded: ${error.message}`;
    }
    this.changed('turns', chat);
  }

  #turns(chat, page) {
    const known = new Map(chat.turns.filter((turn) => turn.messageId).map((turn) => [turn.messageId, turn]));
    return page.messages.toReversed().map((one) => {
      const turn = known.get(one.message_id) ?? { id: null, messageId: one.message_id, live: null, error: null };
      // Of a failed one the history has words about the failure, which nobody asked or answered.
      const text = one.status === 'failed' ? '' : one.answer;
      if (!turn.live) Object.assign(turn, { text, status: one.status });
      turn.question = one.question ?? turn.question ?? null;
      return turn;
    });
  }

  /** The history's turns, and behind them what is only here: under way, never accepted, or ended since it was asked. */
  #merge(chat, page, began) {
    const turns = this.#turns(chat, page);
    const listed = new Set(turns);
    const own = chat.turns.filter((turn) => !listed.has(turn) && (turn.live || !turn.messageId || turn.endedAt >= began));
    chat.turns = [...turns, ...own];
    chat.next = page.next;
    chat.loaded = true;
    const question = chat.turns.find((turn) => turn.question)?.question;
    if (chat.title === null && question) this.#name(chat, question);
  }

  async forget(chat) {
    await this.client.forget(chat.id);
    this.channel?.postMessage({ forgotten: chat.id });
    this.#drop(chat.id);
  }

  #drop(id) {
    this.all.delete(id);
    delete this.titles[id];
    kept.set(this.titlesKey, this.titles);
    if (this.current?.id === id) {
      this.current = null;
      this.changed('turns', null);
    }
    this.#keepOutbox();
    this.changed('gone', id);
    this.changed('list');
  }

  // --- What the client tells -------------------------------------------------------------------

  #adopt(answer) {
    const chat = this.#chat(answer.conversationId);
    chat.updatedAt = Date.now();
    // The history may have it already.
    let turn = chat.turns.find((one) => one.messageId !== null && one.messageId === answer.messageId);
    if (!turn) {
      turn = { id: answer.id, messageId: answer.messageId, error: null, text: '' };
      chat.turns.push(turn);
    }
    Object.assign(turn, { live: answer, status: 'live', question: answer.question ?? turn.question ?? null });
    if (chat.title === null && turn.question) this.#name(chat, turn.question);
    // Where it could not even be tried, its end has been told already.
    if (answer.ended) this.#ended(answer);
    this.#keepOutbox();
    this.changed('list');
    this.changed('turns', chat);
  }

  #turnOf(answer) {
    const chat = this.all.get(answer.conversationId);
    const turn = chat?.turns.find((one) => one.live === answer);
    return turn ? [chat, turn] : [];
  }

  #accepted(answer) {
    const [chat, turn] = this.#turnOf(answer);
    this.#keepOutbox();
    if (!turn) return;
    turn.messageId = answer.messageId;
    turn.question ??= answer.question;
    if (chat.title === null && turn.question) this.#name(chat, turn.question);
    this.changed('list');
    this.changed('turns', chat);
  }

  #ended(answer) {
    const [chat, turn] = this.#turnOf(answer);
    if (!turn) return this.#keepOutbox();
    turn.live = null;
    turn.endedAt = performance.now();
    turn.messageId = answer.messageId;
    turn.text = answer.state === 'failed' ? '' : answer.text;
    turn.status = answer.state;
    turn.error = answer.error;
    if (refused(turn)) turn.refusedAt = Date.now();
    this.#keepOutbox();
    // The history may have brought it under its message id meanwhile.
    chat.turns = chat.turns.filter((one) => one === turn || one.messageId === null || one.messageId !== turn.messageId);
    if (turn.question === null || answer.error?.code === 'missed') {
      chat.stale = true;
      if (chat === this.current) this.load(chat);
      // The list goes on without its name where it can't be had.
      else this.#nameUnknown().catch(() => {});
    }
    this.changed('list');
    this.changed('turns', chat);
  }

  #keepOutbox() {
    const waiting = this.client.open.filter((one) => one.mine && (one.state === 'queued' || one.state === 'sent'));
    const outbox = waiting.map(({ id, conversationId, question }) => ({ id, conversationId, question }));
    const given = new Set(outbox.map(({ id }) => id));
    const left = [...this.all.values()].flatMap(({ id: conversationId, turns }) =>
      turns.filter((turn) => refused(turn) && !given.has(turn.id)).map(({ id, question, refusedAt }) => ({ id, conversationId, question, refusedAt })),
    );
    outbox.push(...left.sort((a, b) => a.refusedAt - b.refusedAt).slice(-MOST_REFUSED));
    kept.set(this.outboxKey, outbox.length ? outbox : null, sessionStorage);
  }
}
