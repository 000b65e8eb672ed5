/**
 * The chatmesh client: one file without dependencies, for browsers and for Node 22 or newer.
 *
 * It keeps one connection by the subprotocol `chatmesh.v1`: reconnects, goes on from its position,
 * sends again (same id, same order) what was not accepted, and hands out each answer as it grows.
 * Types are in chatmesh.d.ts, a guide is in README.md.
 */

export const SUBPROTOCOL = 'chatmesh.v1';

/** Milliseconds. */
const BACKOFF_FIRST = 250;
const BACKOFF_MOST = 30_000;
const AFTER_ABUSE = 30_000;
const CONNECT_TIMEOUT = 10_000;
const PONG_TIMEOUT = 10_000;
const POKE_TIMEOUT = 3_000;
const TOKEN_MARGIN = 10_000;

const TOKEN_REFUSALS = 5;
const RESENDS = 5;
/** Messages that have not ended, and ended ones that late frames are still told from. */
const MOST_OPEN = 256;
const MOST_REMEMBERED = 512;

const USER_ID = /^[A-Za-z0-9._:@|+-]{1,128}$/;
const NAME = /^[A-Za-z0-9._:@|+-]{1,64}$/;
/** What a subprotocol's name may hold, and so a token. */
const TOKEN = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/;

/** Close codes after which the same would happen again. */
const FATAL = new Set([1002, 1003, 1007, 1009]);
const UNAUTHORIZED = new Set([4401, 4403]);

/** Anything that goes wrong. `code` is for programs, the message for people. */
export class ChatError extends Error {
  constructor(code, message, more = {}) {
    super(message, more.cause === undefined ? undefined : { cause: more.cause });
    this.name = new.target.name;
    this.code = code;
    this.retryable = more.retryable ?? false;
    this.retryAfterMs = more.retryAfterMs ?? null;
  }
}

/** A message was refused, or ended without an answer. */
export class MessageError extends ChatError {
  constructor(code, message, more = {}) {
    super(code, message, more);
    this.messageId = more.messageId ?? null;
  }
}

/** The connection is closed for good; `connect()` tries anew. */
export class ConnectionError extends ChatError {
  constructor(code, message, more = {}) {
    super(code, message, more);
    this.closeCode = more.closeCode ?? null;
  }
}

/** There is no token that the server takes. */
export class AuthError extends ConnectionError {}

/** A call of the history failed. `status` is 0 where nothing answered. */
export class HttpError extends ChatError {
  constructor(status, code, message, more = {}) {
    super(code, message, { retryable: status === 0 || status >= 500, ...more });
    this.status = status;
  }
}

const grow = Symbol('grow');
const begin = Symbol('begin');
const end = Symbol('end');
const note = Symbol('note');

/** A message and the answer to it, which may still grow. */
export class Answer {
  #client;
  #epoch = 0;
  #wakeups = new Set();
  #settle;

  constructor(client, fields) {
    this.#client = client;
    this.id = fields.id ?? null;
    this.messageId = fields.messageId ?? null;
    this.conversationId = fields.conversationId ?? 'default';
    /** What was asked; null where this device does not know. */
    this.question = fields.question ?? null;
    /** Whether this client sent it. */
    this.mine = fields.mine ?? false;
    this.interrupt = fields.interrupt ?? false;
    /** queued, sent, accepted, streaming, answered, cancelled or failed. */
    this.state = fields.state ?? 'accepted';
    /** The answer so far. */
    this.text = '';
    this.attempt = 0;
    this.error = null;
    /** The end: resolves when it is answered or cancelled, rejects with a MessageError. */
    this.result = new Promise((resolve, reject) => {
      this.#settle = { resolve, reject };
    });
    // Who only iterates has heard of the error there.
    this.result.catch(() => {});
  }

  get ended() {
    return this.state === 'answered' || this.state === 'cancelled' || this.state === 'failed';
  }

  /** Stops it; resolves with what the server says: cancelling, already_done or unknown. */
  cancel() {
    return this.#client.cancel(this);
  }

  /**
   * Yields `{ delta, text, reset }` whenever the text has grown. A slow reader gets what came
   * meanwhile at once. `reset`: what was yielded before no longer holds, `text` does.
   */
  async *[Symbol.asyncIterator]() {
    let seen = 0;
    let epoch = this.#epoch;
    for (;;) {
      const reset = epoch !== this.#epoch;
      if (reset || this.text.length !== seen) {
        const update = { delta: reset ? this.text : this.text.slice(seen), text: this.text, reset };
        epoch = this.#epoch;
        seen = this.text.length;
        yield update;
      } else if (this.ended) {
        if (this.error) throw this.error;
        return;
      } else {
        await new Promise((resolve) => this.#wakeups.add(resolve));
      }
    }
  }

  /** The text goes on. */
  [grow](piece) {
    this.text += piece;
    this.state = 'streaming';
    this.#wake();
  }

  /** The text is this from now on. */
  [begin](text, state = 'streaming') {
    if (!text.startsWith(this.text)) this.#epoch += 1;
    this.text = text;
    this.state = state;
    this.#wake();
  }

  /** Another state, and nothing about the text. */
  [note](state) {
    this.state = state;
    this.#wake();
  }

  [end](state, result) {
    if (this.ended) return;
    this.state = state;
    if (state === 'failed') {
      this.error = result;
      this.#settle.reject(result);
    } else {
      this.#settle.resolve(result);
    }
    this.#wake();
  }

  #wake() {
    const wakeups = [...this.#wakeups];
    this.#wakeups.clear();
    for (const wakeup of wakeups) wakeup();
  }
}

export class ChatMesh {
  #options;
  #base;
  #listeners = new Map();
  #socket = null;
  /** What this socket has been told: message ids that were sent, and cancels. */
  #told = null;
  #timers = {};
  #state = { state: 'idle', words: 'Not connected.' };
  #position;
  #limits = null;
  #heartbeat = 25_000;
  #failures = 0;
  #refusals = 0;
  #comeBack = null;
  /** Whether this socket has ever been open. */
  #reached = false;
  #token = null;
  #tokenEnds = Infinity;
  #tokenCall = null;
  #stop = [];

  /** Messages that have not ended, in their order: by `id`, and by `message_id` once it is known. */
  #open = new Set();
  #byId = new Map();
  #byMessageId = new Map();
  #ended = new Set();

  constructor(options = {}) {
    if (!USER_ID.test(options.userId ?? '')) {
      throw new ChatError('invalid_user', 'userId must be 1 to 128 characters of A-Z a-z 0-9 . _ : @ | + -');
    }
    this.#options = options;
    this.#base = baseOf(options.url ?? globalThis.location?.href);
    this.#position = options.position ?? null;
  }

  get userId() {
    return this.#options.userId;
  }

  /** `{ state, words, retryInMs?, error? }`; state is idle, connecting, open, waiting or closed. */
  get state() {
    return this.#state;
  }

  /** From here another client of this user can go on: give it as the option `position`. */
  get position() {
    return this.#position;
  }

  /** What `welcome` said: max_content_chars, max_frame_bytes, max_pending; null before. */
  get limits() {
    return this.#limits;
  }

  /** Every message that has not ended, in order. */
  get open() {
    return [...this.#open];
  }

  /** Calls `listener` from now on; returns a function that ends it. */
  on(event, listener) {
    const listeners = this.#listeners.get(event) ?? new Set();
    this.#listeners.set(event, listeners.add(listener));
    return () => listeners.delete(listener);
  }

  #emit(event, detail) {
    for (const listener of [...(this.#listeners.get(event) ?? [])]) {
      try {
        listener(detail);
      } catch (error) {
        // A listener's fault is its owner's to see, and must not stop the connection.
        queueMicrotask(() => {
          throw error;
        });
      }
    }
  }

  // --- Messages -------------------------------------------------------------------------------

  /**
   * Sends a message and returns its Answer at once. It is sent when there is a connection, and
   * again until it is accepted. The same `id` again is the same message, never answered twice.
   */
  send(question, { conversationId = 'default', id, interrupt = false } = {}) {
    if (typeof question !== 'string' || question.trim() === '') {
      throw new ChatError('invalid_message', 'A message needs a text.');
    }
    if (!NAME.test(conversationId) || (id !== undefined && !NAME.test(id))) {
      throw new ChatError('invalid_message', 'id and conversationId must be 1 to 64 characters of A-Z a-z 0-9 . _ : @ | + -');
    }
    if (id !== undefined && this.#byId.has(id)) return this.#byId.get(id);
    if (this.#open.size >= MOST_OPEN) {
      throw new ChatError('queue_full', 'Too many messages wait for their answers.', { retryable: true });
    }
    const own = { id: id ?? newId(), conversationId, question, interrupt, mine: true, state: 'queued' };
    const answer = this.#track(new Answer(this, own));
    answer.resends = 0;
    if (this.#state.state === 'idle') this.connect();
    else if (this.#state.state === 'closed') this.#fail(answer, this.#state.error ?? closedByUs());
    else this.#pump();
    return answer;
  }

  /** See Answer.cancel. */
  cancel(answer) {
    if (answer.ended) return Promise.resolve('already_done');
    if (answer.state === 'queued' && !answer.everSent) {
      this.#finish(answer, 'cancelled', resultOf(answer, 'cancelled', ''));
      return Promise.resolve('cancelling');
    }
    answer.cancelling ??= deferred();
    this.#pump();
    return answer.cancelling.promise;
  }

  #track(answer) {
    this.#open.add(answer);
    if (answer.id) this.#byId.set(answer.id, answer);
    if (answer.messageId) this.#byMessageId.set(answer.messageId, answer);
    return answer;
  }

  #forget(answer) {
    this.#open.delete(answer);
    if (answer.id) this.#byId.delete(answer.id);
    if (answer.messageId) {
      this.#byMessageId.delete(answer.messageId);
      this.#ended.add(answer.messageId);
      if (this.#ended.size > MOST_REMEMBERED) this.#ended.delete(first(this.#ended));
    }
  }

  #finish(answer, state, result) {
    this.#forget(answer);
    answer[end](state, result);
    answer.cancelling?.resolve(state === 'cancelled' ? 'cancelling' : 'already_done');
    this.#emit('end', answer);
    this.#pump();
  }

  #fail(answer, error) {
    this.#finish(answer, 'failed', error);
  }

  #failAll(error) {
    for (const answer of [...this.#open]) this.#fail(answer, error);
  }

  /**
   * Sends what this socket has not been told yet. One message of a conversation at a time, until
   * it is accepted: so the order holds, also when one of them has to be sent again.
   */
  #pump() {
    if (this.#state.state !== 'open') return;
    const busy = new Set();
    for (const answer of [...this.#open]) {
      const waits = answer.state === 'queued' || answer.state === 'sent';
      if (waits && answer.mine && !busy.has(answer.conversationId)) {
        busy.add(answer.conversationId);
        if (!answer.pause && !this.#told.has(answer)) this.#sendMessage(answer);
      }
      const sent = !waits || this.#told.has(answer);
      if (answer.cancelling && sent && !answer.ended && !this.#told.has(answer.cancelling)) {
        this.#told.add(answer.cancelling);
        this.#write(answer.id ? { type: 'cancel', id: answer.id } : { type: 'cancel', message_id: answer.messageId });
      }
    }
  }

  #sendMessage(answer) {
    const frame = { type: 'message', id: answer.id, content: answer.question, conversation_id: answer.conversationId };
    if (answer.interrupt) frame.interrupt = true;
    const tooLong = tooLarge(frame, this.#limits);
    if (tooLong) {
      this.#fail(answer, new MessageError('too_large', tooLong));
      return;
    }
    this.#told.add(answer);
    answer.resent = answer.everSent ?? false;
    answer.everSent = true;
    answer[note]('sent');
    this.#write(frame);
  }

  #write(frame) {
    // A socket that is closing says so by its close event, and then everything is told again.
    if (this.#socket?.readyState === 1) this.#socket.send(JSON.stringify(frame));
  }

  // --- Frames ---------------------------------------------------------------------------------

  #frame(frame) {
    switch (frame.type) {
      case 'welcome':
        return this.#welcome(frame);
      case 'accepted': {
        const answer = this.#of(frame);
        if (!answer) return;
        if (answer.state === 'queued' || answer.state === 'sent') answer[note]('accepted');
        this.#emit('accepted', answer);
        return this.#pump();
      }
      case 'delta':
        return this.#delta(frame);
      case 'snapshot': {
        const answer = this.#of(frame);
        if (!answer) return;
        answer.attempt = frame.attempt;
        answer.next = frame.index;
        return answer[begin](frame.content);
      }
      case 'restarted': {
        const answer = this.#of(frame);
        if (!answer) return;
        answer.attempt = frame.attempt;
        answer.next = 0;
        return answer[begin]('', 'accepted');
      }
      case 'response':
      case 'cancelled':
        return this.#terminal(frame);
      case 'error':
        return frame.message_id ? this.#terminal(frame) : this.#refused(frame);
      case 'cancel_result': {
        const answer = this.#byId.get(frame.id) ?? this.#byMessageId.get(frame.message_id);
        const waits = answer?.cancelling;
        if (!waits) return;
        answer.cancelling = null;
        return waits.resolve(frame.result);
      }
      case 'closing':
        this.#comeBack = Math.max(0, Number(frame.retry_after_ms) || 0);
    }
  }

  /** The answer that a frame is about; a new one where another device sent the message. */
  #of(frame) {
    let answer = this.#byMessageId.get(frame.message_id) ?? this.#byId.get(frame.id);
    if (answer) {
      if (!answer.messageId && frame.message_id) {
        answer.messageId = frame.message_id;
        this.#byMessageId.set(frame.message_id, answer);
      }
      answer.question ??= frame.type === 'accepted' ? (frame.content ?? null) : null;
      return answer;
    }
    if (!frame.message_id || this.#ended.has(frame.message_id)) return null;
    if (this.#open.size >= MOST_OPEN) return null;
    answer = this.#track(
      new Answer(this, {
        id: frame.id,
        messageId: frame.message_id,
        conversationId: frame.conversation_id,
        question: frame.type === 'accepted' || frame.type === 'pending' ? frame.content : null,
      }),
    );
    this.#emit('message', answer);
    return answer;
  }

  #delta(frame) {
    const answer = this.#of(frame);
    if (!answer) return;
    if (frame.index === 0) {
      answer.attempt = frame.attempt;
      answer.next = 1;
      answer[begin](frame.content);
    } else if (frame.attempt === answer.attempt && frame.index === answer.next) {
      answer.next += 1;
      answer[grow](frame.content);
    }
    // Anything else has a beginning that this client did not see: a snapshot or the end follows.
  }

  #terminal(frame) {
    const answer = this.#of(frame);
    // One that was sent again may come from before this position.
    if (frame.position && answer && !answer.resent) this.#position = frame.position;
    if (!answer) return;
    if (frame.type === 'error') {
      this.#fail(answer, messageError(frame));
      return;
    }
    const state = frame.type === 'response' ? 'answered' : 'cancelled';
    answer[begin](frame.content ?? answer.text, answer.state);
    this.#finish(answer, state, resultOf(answer, state, answer.text, frame));
  }

  /** Not accepted, or a cancel that could not be done. */
  #refused(frame) {
    const answer = this.#byId.get(frame.id);
    const error = messageError(frame);
    if (!answer) {
      this.#emit('error', error);
    } else if (answer.state !== 'queued' && answer.state !== 'sent') {
      answer.cancelling?.reject(error);
      answer.cancelling = null;
    } else if (frame.code === 'unavailable' && answer.resends < RESENDS) {
      // Nobody knows whether it was taken; the same id again is safe.
      answer.resends += 1;
      this.#told?.delete(answer);
      answer.pause = setTimeout(() => {
        answer.pause = null;
        this.#pump();
      }, jittered(BACKOFF_FIRST * 2 ** answer.resends));
    } else {
      this.#fail(answer, error);
    }
  }

  #welcome(frame) {
    this.#position = frame.position;
    this.#limits = frame.limits ?? null;
    this.#heartbeat = frame.heartbeat_ms || this.#heartbeat;
    const pending = new Set();
    for (const one of frame.pending ?? []) {
      pending.add(one.message_id);
      this.#of({ ...one, type: 'pending' });
    }
    if (!frame.recovered) {
      // What ended unseen is told again to who sends the same id again.
      for (const answer of [...this.#open]) {
        if (answer.state === 'queued' || answer.state === 'sent' || pending.has(answer.messageId)) continue;
        if (answer.id && answer.question !== null) {
          answer.mine = true;
          answer.resends = 0;
          this.#told.delete(answer);
          answer[note]('queued');
        } else {
          const text = 'How this message ended was missed; it is in the history.';
          this.#fail(answer, new MessageError('missed', text, { messageId: answer.messageId }));
        }
      }
    }
    this.#clear('connect');
    this.#alive();
    this.#failures = 0;
    this.#refusals = 0;
    this.#setState({ state: 'open', words: 'Connected.' });
    if (!frame.recovered) this.#emit('reload', { serverId: frame.server_id });
    this.#pump();
  }

  // --- Connection -----------------------------------------------------------------------------

  /** Connects and stays connected. Sending does so by itself. */
  connect() {
    if (['connecting', 'open', 'waiting'].includes(this.#state.state)) return;
    this.#refusals = 0;
    this.#failures = 0;
    this.#listen();
    this.#dial();
  }

  /** Says goodbye. What has not ended here fails with the code `closed`; the server goes on. */
  close() {
    this.#shut(closedByUs(), 1000);
  }

  /** Tries now what would be tried later, and looks whether the connection is alive. */
  poke() {
    if (this.#state.state === 'waiting') {
      this.#clear('retry');
      this.#dial();
    } else if (this.#state.state === 'open') {
      this.#ping(POKE_TIMEOUT);
    }
  }

  #setState(state) {
    this.#state = state;
    this.#emit('state', state);
  }

  #listen() {
    if (this.#stop.length > 0 || typeof globalThis.addEventListener !== 'function') return;
    const on = (target, name, call) => {
      target.addEventListener(name, call);
      this.#stop.push(() => target.removeEventListener(name, call));
    };
    on(globalThis, 'online', () => this.poke());
    on(globalThis, 'pageshow', () => this.poke());
    on(globalThis, 'offline', () => {
      // Only a hint: the server may be on this machine.
      if (this.#state.state === 'open') this.#ping(POKE_TIMEOUT);
      else if (this.#state.state === 'waiting') this.#setState({ ...this.#state, words: offlineWords() });
    });
    const page = globalThis.document;
    if (page?.addEventListener) {
      on(page, 'visibilitychange', () => page.visibilityState === 'visible' && this.poke());
    }
  }

  #clear(timer) {
    clearTimeout(this.#timers[timer]);
    delete this.#timers[timer];
  }

  #later(timer, time, call) {
    this.#clear(timer);
    this.#timers[timer] = setTimeout(call, time);
  }

  async #dial() {
    this.#setState({ state: 'connecting', words: this.#failures > 0 ? 'Connecting again…' : 'Connecting…' });
    const mine = (this.#told = new WeakSet());
    let token;
    try {
      token = await this.#getToken();
    } catch (error) {
      if (this.#told !== mine) return;
      if (error instanceof ChatError && !error.retryable) this.#shut(error);
      else this.#retry('No token could be got.', undefined, error);
      return;
    }
    // Closed meanwhile, or dialled again.
    if (this.#told !== mine) return;
    const Socket = this.#options.WebSocket ?? globalThis.WebSocket;
    if (!Socket) {
      this.#shut(new ConnectionError('no_websocket', 'There is no WebSocket here: use Node 22 or newer, or give one as the option WebSocket.'));
      return;
    }
    const url = this.#at('ws', { userid: this.userId, since: this.#position ?? undefined });
    url.protocol = url.protocol.replace('http', 'ws');
    // Not in the address: addresses end up in logs.
    let socket;
    try {
      socket = new Socket(url.href, [SUBPROTOCOL, `bearer.${token}`]);
    } catch (cause) {
      // Such as ws: on a page of https:.
      this.#shut(new ConnectionError('no_websocket', `No WebSocket could be opened: ${cause.message}`, { cause }));
      return;
    }
    this.#socket = socket;
    this.#comeBack = null;
    const current = () => this.#socket === socket;
    this.#reached = false;
    socket.onopen = () => {
      if (current()) this.#reached = true;
      if (current() && socket.protocol !== undefined && socket.protocol !== SUBPROTOCOL) {
        this.#shut(new ConnectionError('protocol', `The server does not speak ${SUBPROTOCOL}.`), 1000);
      }
    };
    socket.onmessage = (event) => {
      if (!current()) return;
      this.#alive();
      let frame;
      try {
        frame = JSON.parse(event.data);
      } catch {
        return;
      }
      if (frame !== null && typeof frame === 'object') this.#frame(frame);
    };
    // Its close event says more.
    socket.onerror = () => {};
    socket.onclose = (event) => current() && this.#lost(event.code, event.reason);
    this.#later('connect', this.#options.connectTimeoutMs ?? CONNECT_TIMEOUT, () => this.#drop('The server did not answer in time.'));
  }

  /** Something came: the connection lives. */
  #alive() {
    this.#clear('pong');
    this.#later('ping', this.#heartbeat, () => this.#ping(PONG_TIMEOUT));
  }

  #ping(patience) {
    this.#write({ type: 'ping' });
    // A busy one that waits already is not given more time.
    if (!this.#timers.pong) this.#later('pong', patience, () => this.#drop('The connection went silent.'));
  }

  /** Lets go of a socket without waiting for its goodbye, which a dead one never says. */
  #drop(why) {
    this.#hangUp(1000);
    this.#retry(why);
  }

  #hangUp(code) {
    const socket = this.#socket;
    this.#socket = null;
    this.#told = null;
    for (const timer of Object.keys(this.#timers)) this.#clear(timer);
    try {
      socket?.close(code);
    } catch {
      // It was not open yet, or is gone.
    }
  }

  #lost(code, reason) {
    const comeBack = this.#comeBack;
    this.#hangUp(1000);
    if (UNAUTHORIZED.has(code)) {
      this.#tokenRefused(code);
    } else if (FATAL.has(code)) {
      const text = `The server closed the connection and would again (${code} ${reason || 'protocol error'}).`;
      this.#shut(new ConnectionError(reason || 'protocol_error', text, { closeCode: code }));
    } else if (code === 4429) {
      this.#retry('Too many messages in a short time.', AFTER_ABUSE);
    } else if (code === 1001) {
      this.#retry('The server restarts.', comeBack ?? undefined);
    } else {
      const why = this.#reached ? 'The connection was lost.' : 'The server could not be reached.';
      this.#retry(code === 4503 ? 'The server has trouble behind it.' : why, comeBack ?? undefined);
    }
  }

  #tokenRefused(code) {
    this.#token = null;
    this.#refusals += 1;
    if (typeof this.#options.token !== 'function' || this.#refusals > TOKEN_REFUSALS) {
      this.#shut(new AuthError(code === 4403 ? 'forbidden' : 'unauthorized', 'The server did not take the token.', { closeCode: code }));
    } else if (this.#refusals === 1) {
      this.#dial();
    } else {
      this.#retry('The server did not take the token.');
    }
  }

  #retry(why, least, error) {
    this.#hangUp(1000);
    const backoff = jittered(Math.min(BACKOFF_MOST, BACKOFF_FIRST * 2 ** Math.min(this.#failures, 16)));
    // Who is told when to come does so, a little spread where all are told the same.
    const time = Math.round(least === undefined ? backoff : least + backoff / 4);
    this.#failures += 1;
    this.#later('retry', time, () => this.#dial());
    const words = globalThis.navigator?.onLine === false ? offlineWords() : `${why} Trying again…`;
    this.#setState({ state: 'waiting', words, retryInMs: time, ...(error && { error }) });
  }

  #shut(error, code = 1000) {
    this.#hangUp(code);
    for (const stop of this.#stop.splice(0)) stop();
    for (const answer of this.#open) clearTimeout(answer.pause);
    this.#setState({ state: 'closed', words: error.message, error });
    this.#failAll(error);
  }

  /** The token in use, or a new one; those who ask at once share one call. */
  #getToken(reason) {
    if (this.#token && Date.now() < this.#tokenEnds - TOKEN_MARGIN) return Promise.resolve(this.#token);
    this.#tokenCall ??= this.#newToken({ refused: this.#refusals > 0 || reason === 'refused' }).finally(() => {
      this.#tokenCall = null;
    });
    return this.#tokenCall;
  }

  async #newToken(why) {
    const given = this.#options.token;
    const got = typeof given === 'function' ? await given(why) : given;
    const { token, expiresInMs } = typeof got === 'object' && got !== null ? got : { token: got };
    if (typeof token !== 'string' || !TOKEN.test(token)) {
      throw new AuthError('unauthorized', 'A token is needed: letters, digits and - . _ ~ only.');
    }
    this.#token = token;
    this.#tokenEnds = Number.isFinite(expiresInMs) ? Date.now() + expiresInMs : Infinity;
    return token;
  }

  // --- History --------------------------------------------------------------------------------

  /** Conversations, the one with the newest turn first: `{ conversations, next }`. */
  conversations({ limit, after } = {}) {
    return this.#call('GET', 'conversations', { limit, after });
  }

  /** Turns of a conversation, the newest first: `{ messages, next }`. */
  messages(conversationId, { limit, before } = {}) {
    return this.#call('GET', `conversations/${encodeURIComponent(conversationId)}/messages`, { limit, before });
  }

  /** Deletes a conversation for all devices; what is being answered in it is stopped. */
  forget(conversationId) {
    return this.#call('DELETE', `conversations/${encodeURIComponent(conversationId)}`);
  }

  /** Deletes everything of this user. */
  forgetAll() {
    return this.#call('DELETE', 'conversations');
  }

  #at(path, query) {
    const url = new URL(path, this.#base);
    for (const [name, value] of Object.entries(query ?? {})) {
      if (value !== undefined && value !== null) url.searchParams.set(name, value);
    }
    return url;
  }

  async #call(method, path, query, again = true) {
    const token = await this.#getToken();
    const fetch = this.#options.fetch ?? globalThis.fetch;
    const url = this.#at(path, { userid: this.userId, ...query });
    let reply;
    let body;
    try {
      reply = await fetch(url, { method, headers: { authorization: `Bearer ${token}` }, cache: 'no-store' });
      body = reply.status === 204 ? null : await reply.json().catch(() => null);
    } catch (cause) {
      throw new HttpError(0, 'unavailable', 'The server can’t be reached.', { cause });
    }
    if (reply.ok) return body;
    if (reply.status === 401 && again && typeof this.#options.token === 'function') {
      if (this.#token === token) this.#token = null;
      await this.#getToken('refused');
      return this.#call(method, path, query, false);
    }
    throw new HttpError(reply.status, body?.code ?? 'http', body?.message ?? `The server answered ${reply.status}.`);
  }
}

/** Where the paths of the server begin. */
function baseOf(given) {
  let url;
  try {
    url = new URL(given);
  } catch {
    // Said below.
  }
  if (!url || !['http:', 'https:', 'ws:', 'wss:'].includes(url.protocol)) {
    const what = given === undefined ? 'there is none' : `not ${given}`;
    throw new ChatError('invalid_url', `url must be a whole address that begins with http://, https://, ws:// or wss://; ${what}.`);
  }
  url.protocol = url.protocol.replace('ws', 'http');
  url.search = url.hash = '';
  return url;
}

function newId() {
  const bytes = globalThis.crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

function first(set) {
  return set.values().next().value;
}

/** Between half of it and all. */
function jittered(time) {
  return time * (0.5 + Math.random() / 2);
}

function deferred() {
  const made = {};
  made.promise = new Promise((resolve, reject) => Object.assign(made, { resolve, reject }));
  // Nobody has to wait for it.
  made.promise.catch(() => {});
  return made;
}

function closedByUs() {
  return new ConnectionError('closed', 'The connection was closed here.', { closeCode: 1000 });
}

function offlineWords() {
  return 'This device is offline. Trying again…';
}

function messageError(frame) {
  return new MessageError(frame.code ?? 'internal', frame.message ?? 'The message was not answered.', {
    messageId: frame.message_id,
    retryable: frame.retryable,
    retryAfterMs: frame.retry_after_ms,
  });
}

function resultOf(answer, status, content, frame = {}) {
  return {
    status,
    content,
    id: answer.id,
    messageId: answer.messageId,
    conversationId: answer.conversationId,
    finishReason: frame.finish_reason ?? null,
    model: frame.model ?? null,
    usage: frame.usage ?? null,
    position: frame.position ?? null,
  };
}

/** Why the server would refuse a frame for its size, before it closes the connection over it. */
function tooLarge(frame, limits) {
  const most = limits?.max_content_chars ?? Infinity;
  // Characters are at most as many as UTF-16 units.
  if (frame.content.length > most && [...frame.content].length > most) {
    return `The message is too long: at most ${most} characters.`;
  }
  const bytes = limits?.max_frame_bytes ?? Infinity;
  if (new TextEncoder().encode(JSON.stringify(frame)).length > bytes) {
    return `The message is too long: at most ${bytes} bytes.`;
  }
  return null;
}
