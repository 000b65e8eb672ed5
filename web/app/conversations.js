// The user's conversations: the history of the server, merged with the messages in progress here.

import { storage } from './dom.js';

/** Maximum number of stored titles. */
const MAX_TITLES = 200;
/** Maximum number of listed conversations. */
const MAX_LISTED = 400;
/** Maximum number of unsent messages that are stored so that the user can resend them. */
const MAX_UNSENT = 50;
/** Maximum number of turns in one page of the history. */
const PAGE_SIZE = 50;
/** Maximum number of conversations whose titles are fetched after one refresh. */
const MAX_TITLE_REQUESTS = 50;

function newConversationId() {
  const bytes = crypto.getRandomValues(new Uint8Array(10));
  return `c-${Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('')}`;
}

function toTitle(text) {
  const line = text.trim().replace(/\s+/g, ' ');
  return line.length > 80 ? `${line.slice(0, 79)}…` : line;
}

/**
 * Whether the server never accepted the message: it was rejected, or the connection was lost for
 * good.
 */
function isUnsent(turn) {
  return turn.status === 'failed' && turn.messageId === null && turn.question !== null;
}

/**
 * All conversations by id. A conversation has turns: `{ id, messageId, question, text, parts,
 * status, live, error }`. `status` is live, answered, cancelled or failed; `live` is the client's
 * Answer while the answer is streaming; `text` and `parts` are the answer after that.
 */
export class Conversations {
  constructor(client, onChange) {
    this.client = client;
    /** Called with 'list', with 'turns' and the conversation, or with 'deleted' and its id. */
    this.onChange = onChange;
    this.byId = new Map();
    this.current = null;
    // The keys contain the user, because another user may sign in on this browser.
    this.titlesKey = `chatmesh.titles.${client.userId}`;
    this.outboxKey = `chatmesh.outbox.${client.userId}`;
    this.titles = storage.get(this.titlesKey) ?? {};
    this.channel = typeof BroadcastChannel === 'function' ? new BroadcastChannel(`chatmesh.${client.userId}`) : null;
    if (this.channel) this.channel.onmessage = ({ data }) => this.#remove(data.forgotten);
    client.on('reload', () => this.refresh());
    client.on('message', (answer) => this.#addTurn(answer));
    client.on('accepted', (answer) => this.#handleAccepted(answer));
    client.on('end', (answer) => this.#handleEnd(answer));
  }

  /** All conversations, the most recently used first. */
  get list() {
    return [...this.byId.values()].sort((a, b) => b.updatedAt - a.updatedAt);
  }

  /** The conversation with this id, which is created if it is unknown. */
  #getOrCreate(id) {
    let conversation = this.byId.get(id);
    if (!conversation) {
      conversation = { id, title: this.titles[id] ?? null, updatedAt: Date.now(), turns: [], isStale: true, isLoaded: false, next: null, error: null };
      this.byId.set(id, conversation);
    }
    return conversation;
  }

  /** Makes a conversation the current one; null starts a new one. */
  open(id) {
    const previous = this.current;
    // Removes the entry of an address that named no existing conversation.
    if (previous?.isLoaded && previous.turns.length === 0 && previous.title === null) this.byId.delete(previous.id);
    this.current = id === null ? null : this.#getOrCreate(id);
    if (this.current?.isStale) this.load(this.current);
    this.onChange('list');
    this.onChange('turns', this.current);
  }

  /** Sends a message in the current conversation, or in a new one; returns whether it is new. */
  ask(question, { id } = {}) {
    const isNew = this.current === null;
    if (isNew) {
      this.current = this.#getOrCreate(newConversationId());
      this.current.isStale = false;
    }
    this.#addTurn(this.client.send(question, { conversationId: this.current.id, id }));
    return isNew;
  }

  /** Sends an unanswered message again. A message that the server never accepted keeps its id. */
  retry(conversation, turn) {
    const id = turn.messageId ? undefined : turn.id;
    const answer = this.client.send(turn.question, { conversationId: conversation.id, id });
    if (!turn.messageId) conversation.turns = conversation.turns.filter((other) => other !== turn);
    this.#addTurn(answer);
  }

  /**
   * Restores the outbox of the previous page: resends messages that were in flight, shows unsent
   * ones.
   */
  resume() {
    const outbox = storage.get(this.outboxKey, sessionStorage);
    if (!Array.isArray(outbox)) return;
    // Unsent messages come first, because each send overwrites the stored outbox.
    for (const entry of outbox) if (entry?.refusedAt) this.#restoreUnsent(entry);
    for (const entry of outbox) {
      try {
        const { id, conversationId, question, refusedAt } = entry;
        if (!refusedAt) this.#addTurn(this.client.send(question, { id, conversationId }));
      } catch {
        // A damaged entry must not stop the loop: the other messages are still sent.
      }
    }
  }

  #restoreUnsent({ id, conversationId, question, refusedAt }) {
    if (![id, conversationId, question].every((value) => typeof value === 'string')) return;
    const conversation = this.#getOrCreate(conversationId);
    conversation.updatedAt = Number(refusedAt) || conversation.updatedAt;
    conversation.turns.push({ id, messageId: null, question, text: '', parts: [], status: 'failed', live: null, error: null, refusedAt });
    if (conversation.title === null) this.#setTitle(conversation, question);
  }

  /** Reloads the list of conversations and the current conversation from the server. */
  async refresh() {
    for (const conversation of this.byId.values()) conversation.isStale = true;
    if (this.current) this.load(this.current);
    try {
      const entries = new Map();
      let after;
      do {
        const page = await this.client.conversations({ limit: 200, after });
        for (const entry of page.conversations) entries.set(entry.conversation_id, entry);
        after = page.next;
      } while (after && entries.size < MAX_LISTED);
      for (const conversation of [...this.byId.values()]) {
        const hasLocalState = conversation === this.current || conversation.turns.some((turn) => turn.live || isUnsent(turn));
        if (!entries.has(conversation.id) && !hasLocalState) this.byId.delete(conversation.id);
      }
      for (const [id, entry] of entries) this.#getOrCreate(id).updatedAt = Date.parse(entry.updated_at) || Date.now();
      this.onChange('list');
      await this.#fetchMissingTitles();
    } catch {
      // The list stays as it was. The connection status shows the problem, and the next `reload`
      // event or a click on a conversation retries.
    }
  }

  /** Sets missing titles, of conversations from other devices, to the latest questions. */
  async #fetchMissingTitles() {
    for (const conversation of this.list.filter(({ title }) => title === null).slice(0, MAX_TITLE_REQUESTS)) {
      const { messages } = await this.client.messages(conversation.id, { limit: 1 });
      const question = messages[0]?.question;
      if (question) this.#setTitle(conversation, question);
    }
    this.onChange('list');
  }

  #setTitle(conversation, question) {
    conversation.title = toTitle(question);
    delete this.titles[conversation.id];
    this.titles[conversation.id] = conversation.title;
    for (const id of Object.keys(this.titles).slice(0, -MAX_TITLES)) delete this.titles[id];
    storage.set(this.titlesKey, this.titles);
  }

  /** Loads the newest turns of a conversation. */
  async load(conversation) {
    conversation.isStale = false;
    const startedAt = performance.now();
    conversation.loadStartedAt = startedAt;
    try {
      const page = await this.client.messages(conversation.id, { limit: PAGE_SIZE });
      // A later load is in progress and has newer data.
      if (conversation.loadStartedAt !== startedAt) return;
      conversation.error = null;
      this.#merge(conversation, page, startedAt);
    } catch (error) {
      if (conversation.loadStartedAt !== startedAt) return;
      conversation.isStale = true;
      conversation.error = `The earlier messages could not be loaded: ${error.message}`;
    }
    this.onChange('turns', conversation);
  }

  /** Loads the page of turns before the loaded ones. */
  async loadOlder(conversation) {
    const before = conversation.next;
    if (!before) return;
    try {
      const page = await this.client.messages(conversation.id, { limit: PAGE_SIZE, before });
      // Another load has changed the turns.
      if (conversation.next !== before) return;
      conversation.error = null;
      conversation.turns.unshift(...this.#toTurns(conversation, page));
      conversation.next = page.next;
    } catch (error) {
      // 404: the turn has been dropped from the bounded history, and so have the turns before it.
      if (error.status === 404) conversation.next = null;
      else conversation.error = `The earlier messages could not be loaded: ${error.message}`;
    }
    this.onChange('turns', conversation);
  }

  /** Turns of a history page in the order of display; known turns keep their objects. */
  #toTurns(conversation, page) {
    const known = new Map(conversation.turns.filter((turn) => turn.messageId).map((turn) => [turn.messageId, turn]));
    return page.messages.toReversed().map((entry) => {
      const turn = known.get(entry.message_id) ?? { id: null, messageId: entry.message_id, live: null, error: null };
      // For a failed message, the history has the error text in place of an answer.
      const text = entry.status === 'failed' ? '' : entry.answer;
      // A turn that already shows this answer keeps its parts: they may have reasoning that the
      // history does not have.
      const isKnown = turn.status === entry.status && turn.text === text && turn.parts.length >= entry.parts.length;
      if (!turn.live && !isKnown) Object.assign(turn, { text, parts: entry.parts, status: entry.status });
      turn.question = entry.question ?? turn.question ?? null;
      return turn;
    });
  }

  /**
   * Sets the turns to the history's, followed by local ones: live, unsent, or ended since the
   * request.
   */
  #merge(conversation, page, startedAt) {
    const turns = this.#toTurns(conversation, page);
    const listed = new Set(turns);
    const local = conversation.turns.filter((turn) => !listed.has(turn) && (turn.live || !turn.messageId || turn.endedAt >= startedAt));
    conversation.turns = [...turns, ...local];
    conversation.next = page.next;
    conversation.isLoaded = true;
    const question = conversation.turns.find((turn) => turn.question)?.question;
    if (conversation.title === null && question) this.#setTitle(conversation, question);
  }

  /** Deletes a conversation on the server, and in all tabs of this browser. */
  async delete(conversation) {
    await this.client.forget(conversation.id);
    this.channel?.postMessage({ forgotten: conversation.id });
    this.#remove(conversation.id);
  }

  #remove(id) {
    this.byId.delete(id);
    delete this.titles[id];
    storage.set(this.titlesKey, this.titles);
    if (this.current?.id === id) {
      this.current = null;
      this.onChange('turns', null);
    }
    this.#saveOutbox();
    this.onChange('deleted', id);
    this.onChange('list');
  }

  // --- Events of the client -------------------------------------------------------------------

  #addTurn(answer) {
    const conversation = this.#getOrCreate(answer.conversationId);
    conversation.updatedAt = Date.now();
    // The turn may already have been loaded from the history.
    let turn = conversation.turns.find(({ messageId }) => messageId !== null && messageId === answer.messageId);
    if (!turn) {
      turn = { id: answer.id, messageId: answer.messageId, error: null, text: '', parts: [] };
      conversation.turns.push(turn);
    }
    Object.assign(turn, { live: answer, status: 'live', question: answer.question ?? turn.question ?? null });
    if (conversation.title === null && turn.question) this.#setTitle(conversation, turn.question);
    // A message that could not be sent has already ended. Its `end` event preceded this turn.
    if (answer.ended) this.#handleEnd(answer);
    this.#saveOutbox();
    this.onChange('list');
    this.onChange('turns', conversation);
  }

  #findTurn(answer) {
    const conversation = this.byId.get(answer.conversationId);
    const turn = conversation?.turns.find(({ live }) => live === answer);
    return turn ? [conversation, turn] : [];
  }

  #handleAccepted(answer) {
    const [conversation, turn] = this.#findTurn(answer);
    this.#saveOutbox();
    if (!turn) return;
    turn.messageId = answer.messageId;
    turn.question ??= answer.question;
    if (conversation.title === null && turn.question) this.#setTitle(conversation, turn.question);
    this.onChange('list');
    this.onChange('turns', conversation);
  }

  #handleEnd(answer) {
    const [conversation, turn] = this.#findTurn(answer);
    if (!turn) return this.#saveOutbox();
    turn.live = null;
    turn.endedAt = performance.now();
    turn.messageId = answer.messageId;
    turn.text = answer.state === 'failed' ? '' : answer.text;
    turn.parts = answer.state === 'failed' ? [] : answer.parts;
    turn.status = answer.state;
    turn.error = answer.error;
    if (isUnsent(turn)) turn.refusedAt = Date.now();
    this.#saveOutbox();
    // A history load may have added the same message as another turn.
    conversation.turns = conversation.turns.filter((other) => other === turn || other.messageId === null || other.messageId !== turn.messageId);
    if (turn.question === null || answer.error?.code === 'missed') {
      conversation.isStale = true;
      if (conversation === this.current) this.load(conversation);
      // The list shows a placeholder for a missing title.
      else this.#fetchMissingTitles().catch(() => {});
    }
    this.onChange('list');
    this.onChange('turns', conversation);
  }

  /** Stores messages that the server has not accepted, for the next page of this tab. */
  #saveOutbox() {
    const unaccepted = this.client.open.filter(({ mine, state }) => mine && (state === 'queued' || state === 'sent'));
    const outbox = unaccepted.map(({ id, conversationId, question }) => ({ id, conversationId, question }));
    const queuedIds = new Set(outbox.map(({ id }) => id));
    const unsent = [...this.byId.values()].flatMap(({ id: conversationId, turns }) =>
      turns.filter((turn) => isUnsent(turn) && !queuedIds.has(turn.id)).map(({ id, question, refusedAt }) => ({ id, conversationId, question, refusedAt })),
    );
    outbox.push(...unsent.sort((a, b) => a.refusedAt - b.refusedAt).slice(-MAX_UNSENT));
    storage.set(this.outboxKey, outbox.length ? outbox : null, sessionStorage);
  }
}
