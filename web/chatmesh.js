/**
 * The chatmesh client: one file without dependencies, for browsers and for Node 22 or newer.
 *
 * The client keeps one WebSocket connection with the subprotocol `chatmesh.v1`. It reconnects,
 * resumes from its position, resends unaccepted messages with the same id and in the same order,
 * and streams each answer. Types are in chatmesh.d.ts, a guide is in README.md.
 */

export const SUBPROTOCOL = 'chatmesh.v1';

const INITIAL_BACKOFF_MS = 250;
const MAX_BACKOFF_MS = 30_000;
/** Minimum delay after a close for too many messages (4429). */
const RATE_LIMIT_DELAY_MS = 30_000;
const CONNECT_TIMEOUT_MS = 10_000;
const PONG_TIMEOUT_MS = 10_000;
/** Pong timeout after `poke()`, when the connection is likely to be dead. */
const POKE_TIMEOUT_MS = 3_000;
/** A token is renewed this long before it expires. */
const TOKEN_MARGIN_MS = 10_000;
const DEFAULT_HEARTBEAT_MS = 25_000;

const MAX_TOKEN_REJECTIONS = 5;
/** Maximum number of resends of one message after `unavailable`. */
const MAX_RESENDS = 5;
/** Maximum number of messages without an outcome. */
const MAX_PENDING = 256;
/** Maximum number of remembered ids of ended messages. Late frames of these messages are ignored. */
const MAX_ENDED_IDS = 512;
/** Maximum number of parts of an answer. */
const MAX_PARTS = 256;
/** Kinds of parts that make up the answer's text. */
const TEXT_KINDS = new Set(['text', 'refusal']);
/** Frames that belong to an answer in progress, and never to one that has ended. */
const LIVE_FRAMES = new Set(['delta', 'snapshot', 'restarted']);

const USER_ID = /^[A-Za-z0-9._:@|+-]{1,128}$/;
const NAME = /^[A-Za-z0-9._:@|+-]{1,64}$/;
/** Characters that RFC 9110 allows in a token, and thereby in the name of a subprotocol. */
const TOKEN = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/;

/** Close codes after which a new connection would fail in the same way. */
const FATAL_CLOSE_CODES = new Set([1002, 1003, 1007, 1009]);
const UNAUTHORIZED_CLOSE_CODES = new Set([4401, 4403]);

/** Base class of all errors of the client. `code` is for programs, the message for people. */
export class ChatError extends Error {
  constructor(code, message, details = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.name = new.target.name;
    this.code = code;
    this.retryable = details.retryable ?? false;
    this.retryAfterMs = details.retryAfterMs ?? null;
  }
}

/** A message was rejected, or ended without an answer. */
export class MessageError extends ChatError {
  constructor(code, message, details = {}) {
    super(code, message, details);
    this.messageId = details.messageId ?? null;
  }
}

/** The connection is closed and the client does not reconnect; `connect()` starts again. */
export class ConnectionError extends ChatError {
  constructor(code, message, details = {}) {
    super(code, message, details);
    this.closeCode = details.closeCode ?? null;
  }
}

/** The client has no token that the server accepts. */
export class AuthError extends ConnectionError {}

/** A history request failed. `status` is the HTTP status, or 0 when no server answered. */
export class HttpError extends ChatError {
  constructor(status, code, message, details = {}) {
    super(code, message, { retryable: status === 0 || status >= 500, ...details });
    this.status = status;
  }
}

/** Methods of an Answer that only the client may call. */
const applyDelta = Symbol('applyDelta');
const startStream = Symbol('startStream');
const replaceParts = Symbol('replaceParts');
const finish = Symbol('finish');
const setState = Symbol('setState');

/** A message and its answer, which may still be streaming. */
export class Answer {
  #client;
  /** Counts how often the parts were replaced instead of extended. */
  #epoch = 0;
  /** The id of the stream whose deltas extend the parts. */
  #stream = null;
  /** Whether a delta of the stream is missing, so that its later deltas don't fit. */
  #hasGap = false;
  #wakeups = new Set();
  #settle;

  constructor(client, fields) {
    this.#client = client;
    this.id = fields.id ?? null;
    this.messageId = fields.messageId ?? null;
    this.conversationId = fields.conversationId ?? 'default';
    /** The text of the message; null while this device does not know it. */
    this.question = fields.question ?? null;
    /** Whether this client sent it. */
    this.mine = fields.mine ?? false;
    this.interrupt = fields.interrupt ?? false;
    /** queued, sent, accepted, streaming, answered, cancelled or failed. */
    this.state = fields.state ?? 'accepted';
    /** The parts so far: `{ index, kind, meta, text }`. Readers must not modify them. */
    this.parts = [];
    /** The text of the answer so far: its text and refusal parts, joined. */
    this.text = '';
    this.attempt = 0;
    this.error = null;
    /**
     * Resolves when the message is answered or cancelled, rejects with a ChatError when it fails.
     */
    this.result = new Promise((resolve, reject) => {
      this.#settle = { resolve, reject };
    });
    // A caller that only iterates gets the error from the iteration, so the rejection of `result`
    // must not count as unhandled.
    this.result.catch(() => {});
  }

  get ended() {
    return this.state === 'answered' || this.state === 'cancelled' || this.state === 'failed';
  }

  /** Stops the answer; resolves with the server's result: cancelling, already_done or unknown. */
  cancel() {
    return this.#client.cancel(this);
  }

  /**
   * Yields `{ part, kind, delta, text, reset }` for each part that has changed. For a slow reader,
   * several changes of a part become one update. `reset` means that the parts were replaced:
   * discard everything; `delta` is then the whole text.
   */
  async *[Symbol.asyncIterator]() {
    let epoch = this.#epoch;
    /** The part of the last update, and the length of its text then. */
    let index = -1;
    let length = 0;
    /** Where that text ends in the answer's text, and the length of the text that was yielded. */
    let textEnd = 0;
    let yielded = 0;
    for (;;) {
      const reset = epoch !== this.#epoch;
      if (reset) {
        epoch = this.#epoch;
        index = -1;
        textEnd = yielded = 0;
      }
      const hasGrown = index >= 0 && this.parts[index].text.length > length;
      if (!hasGrown && index + 1 < this.parts.length) {
        index += 1;
        length = 0;
      } else if (!hasGrown && !reset) {
        if (!this.ended) {
          await new Promise((resolve) => this.#wakeups.add(resolve));
          continue;
        }
        if (this.error) throw this.error;
        return;
      }
      const part = this.parts[index] ?? null;
      if (part && TEXT_KINDS.has(part.kind)) textEnd += part.text.length - length;
      length = part?.text.length ?? 0;
      // After a reset, the whole text is yielded at once; updates of the other parts follow.
      const end = reset ? this.text.length : Math.max(yielded, textEnd);
      const update = { part, kind: part?.kind ?? null, delta: this.text.slice(yielded, end), text: this.text.slice(0, end), reset };
      yielded = end;
      yield update;
    }
  }

  /**
   * Extends the parts by a delta of the current stream. The opening of another stream's first part
   * makes that stream current; all its other deltas are ignored.
   */
  [applyDelta](frame) {
    if (frame.stream !== this.#stream) {
      if (isFirstOpening(frame)) this[startStream](frame, [toPart(frame, 0)]);
    } else if (!this.#hasGap) {
      // After a gap, deltas are ignored until the server replaces the parts.
      this.#hasGap = !this.#extend(frame);
    }
  }

  /** Appends what a delta adds to the parts; false if something before it is missing. */
  #extend({ part: index, offset, end, kind, meta, previous_end: previousEnd, content }) {
    if (![index, offset, end].every(isCount) || typeof content !== 'string' || end - offset !== content.length) return false;
    const isOpening = typeof kind === 'string';
    if (isOpening && index > 0 && previousEnd !== this.parts[index - 1]?.text.length) return false;
    const part = this.parts[index];
    if (!part) {
      if (!isOpening || offset !== 0 || index !== this.parts.length || index >= MAX_PARTS) return false;
      this.#append({ kind, meta, content });
    } else {
      const { length } = part.text;
      // Only the last part grows.
      if (offset > length || (end > length && index !== this.parts.length - 1)) return false;
      this.#grow(part, content.slice(length - offset));
    }
    this[setState]('streaming');
    return true;
  }

  /** Adds a part. */
  #append(fields) {
    const part = toPart({ ...fields, content: '' }, this.parts.length);
    this.parts.push(part);
    this.#grow(part, fields.content);
  }

  /** Extends the last part. */
  #grow(part, text) {
    part.text += text;
    if (TEXT_KINDS.has(part.kind)) this.text += text;
  }

  /** Makes a stream current and replaces the parts. */
  [startStream]({ stream, attempt }, parts) {
    this.#stream = stream;
    this.#hasGap = false;
    this.attempt = attempt;
    this[replaceParts](parts);
    this[setState](parts.length > 0 ? 'streaming' : 'accepted');
  }

  /** Replaces the parts; an extension of the earlier parts is not a reset. */
  [replaceParts](parts) {
    const lastIndex = this.parts.length - 1;
    if (!this.parts.every((part, index) => isContinuation(part, parts[index], index === lastIndex))) {
      this.#epoch += 1;
      this.parts = [];
      this.text = '';
    }
    for (const { index, kind, meta, text } of parts) {
      const part = this.parts[index];
      if (part) this.#grow(part, text.slice(part.text.length));
      else this.#append({ kind, meta, content: text });
    }
    this.#wake();
  }

  /** Changes the state only. */
  [setState](state) {
    this.state = state;
    this.#wake();
  }

  /** Ends the answer with its result, or with an error if the state is failed. */
  [finish](state, result) {
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
  /** Messages and cancel requests that were sent on the current socket. */
  #sentOnSocket = null;
  #timers = {};
  #state = { state: 'idle', words: 'Not connected.' };
  #position;
  #limits = null;
  #heartbeatMs = DEFAULT_HEARTBEAT_MS;
  /** Failed attempts to connect since the last `welcome`. */
  #failures = 0;
  /** Rejected tokens since the last `welcome`. */
  #tokenRejections = 0;
  /** Delay that a `closing` frame requested, in milliseconds. */
  #requestedDelay = null;
  /** Whether the current socket has been open. */
  #wasOpen = false;
  #token = null;
  #tokenExpiresAt = Infinity;
  /** The pending call for a new token, which concurrent callers share. */
  #tokenCall = null;
  /** Removes the listeners for events of the browser. */
  #removeListeners = [];

  /** Messages without an outcome in the order of sending, and indexes by `id` and `message_id`. */
  #open = new Set();
  #byId = new Map();
  #byMessageId = new Map();
  #endedIds = new Set();

  constructor(options = {}) {
    if (!USER_ID.test(options.userId ?? '')) {
      throw new ChatError('invalid_user', 'userId must be 1 to 128 characters of A-Z a-z 0-9 . _ : @ | + -');
    }
    this.#options = options;
    this.#base = toBaseUrl(options.url ?? globalThis.location?.href);
    this.#position = options.position ?? null;
  }

  get userId() {
    return this.#options.userId;
  }

  /** `{ state, words, retryInMs?, error? }`; state is idle, connecting, open, waiting or closed. */
  get state() {
    return this.#state;
  }

  /** The position up to which the client has received; another client can resume from it. */
  get position() {
    return this.#position;
  }

  /**
   * The server's limits: max_content_chars, max_frame_bytes, max_pending; null before `welcome`.
   */
  get limits() {
    return this.#limits;
  }

  /** All messages without an outcome, in the order of sending. */
  get open() {
    return [...this.#open];
  }

  /** Adds a listener; returns a function that removes it. */
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
        // Reports the error as uncaught, so that a faulty listener does not break the connection.
        queueMicrotask(() => {
          throw error;
        });
      }
    }
  }

  // --- Messages -------------------------------------------------------------------------------

  /**
   * Queues a message and returns its Answer at once. The message is sent when there is a
   * connection, and resent until it is accepted. A repeated `id` is the same message and is
   * answered once.
   */
  send(question, { conversationId = 'default', id, interrupt = false } = {}) {
    if (typeof question !== 'string' || question.trim() === '') {
      throw new ChatError('invalid_message', 'A message needs a text.');
    }
    if (!NAME.test(conversationId) || (id !== undefined && !NAME.test(id))) {
      throw new ChatError('invalid_message', 'id and conversationId must be 1 to 64 characters of A-Z a-z 0-9 . _ : @ | + -');
    }
    if (id !== undefined && this.#byId.has(id)) return this.#byId.get(id);
    if (this.#open.size >= MAX_PENDING) {
      throw new ChatError('queue_full', 'Too many messages wait for their answers.', { retryable: true });
    }
    const fields = { id: id ?? newId(), conversationId, question, interrupt, mine: true, state: 'queued' };
    const answer = this.#track(new Answer(this, fields));
    answer.resendCount = 0;
    if (this.#state.state === 'idle') this.connect();
    else if (this.#state.state === 'closed') this.#fail(answer, this.#state.error ?? closedByClient());
    else this.#sendPending();
    return answer;
  }

  /** Stops an answer; see Answer.cancel. */
  cancel(answer) {
    if (answer.ended) return Promise.resolve('already_done');
    if (answer.state === 'queued' && !answer.wasSent) {
      this.#finish(answer, 'cancelled', toResult(answer, 'cancelled'));
      return Promise.resolve('cancelling');
    }
    answer.pendingCancel ??= deferred();
    this.#sendPending();
    return answer.pendingCancel.promise;
  }

  #track(answer) {
    this.#open.add(answer);
    if (answer.id) this.#byId.set(answer.id, answer);
    if (answer.messageId) this.#byMessageId.set(answer.messageId, answer);
    return answer;
  }

  #untrack(answer) {
    this.#open.delete(answer);
    if (answer.id) this.#byId.delete(answer.id);
    if (answer.messageId) {
      this.#byMessageId.delete(answer.messageId);
      this.#endedIds.add(answer.messageId);
      if (this.#endedIds.size > MAX_ENDED_IDS) this.#endedIds.delete(first(this.#endedIds));
    }
  }

  #finish(answer, state, result) {
    this.#untrack(answer);
    answer[finish](state, result);
    answer.pendingCancel?.resolve(state === 'cancelled' ? 'cancelling' : 'already_done');
    this.#emit('end', answer);
    this.#sendPending();
  }

  #fail(answer, error) {
    this.#finish(answer, 'failed', error);
  }

  #failAll(error) {
    for (const answer of [...this.#open]) this.#fail(answer, error);
  }

  /**
   * Sends queued messages and cancel requests that were not sent on this socket. Each conversation
   * has at most one unaccepted message in flight, so that resending keeps the order.
   */
  #sendPending() {
    if (this.#state.state !== 'open') return;
    const busyConversations = new Set();
    for (const answer of [...this.#open]) {
      const isUnaccepted = answer.state === 'queued' || answer.state === 'sent';
      if (isUnaccepted && answer.mine && !busyConversations.has(answer.conversationId)) {
        busyConversations.add(answer.conversationId);
        if (!answer.resendTimer && !this.#sentOnSocket.has(answer)) this.#sendMessage(answer);
      }
      const isSent = !isUnaccepted || this.#sentOnSocket.has(answer);
      if (answer.pendingCancel && isSent && !answer.ended && !this.#sentOnSocket.has(answer.pendingCancel)) {
        this.#sentOnSocket.add(answer.pendingCancel);
        this.#write(answer.id ? { type: 'cancel', id: answer.id } : { type: 'cancel', message_id: answer.messageId });
      }
    }
  }

  #sendMessage(answer) {
    const frame = { type: 'message', id: answer.id, content: answer.question, conversation_id: answer.conversationId };
    if (answer.interrupt) frame.interrupt = true;
    const problem = describeExcess(frame, this.#limits);
    if (problem) {
      this.#fail(answer, new MessageError('too_large', problem));
      return;
    }
    this.#sentOnSocket.add(answer);
    answer.wasResent = answer.wasSent ?? false;
    answer.wasSent = true;
    answer[setState]('sent');
    this.#write(frame);
  }

  #write(frame) {
    // After the close event of a closing socket, everything is sent again on the next one.
    if (this.#socket?.readyState === 1) this.#socket.send(JSON.stringify(frame));
  }

  // --- Frames ---------------------------------------------------------------------------------

  #handleFrame(frame) {
    switch (frame.type) {
      case 'welcome':
        return this.#handleWelcome(frame);
      case 'accepted': {
        const answer = this.#answerFor(frame);
        if (!answer) return;
        if (answer.state === 'queued' || answer.state === 'sent') answer[setState]('accepted');
        this.#emit('accepted', answer);
        return this.#sendPending();
      }
      case 'delta':
        // A delta in the middle of an answer shows nothing without the text before it.
        return this.#answerFor(frame, isFirstOpening(frame))?.[applyDelta](frame);
      case 'snapshot':
        return this.#answerFor(frame)?.[startStream](frame, toParts(frame.parts));
      case 'restarted':
        return this.#answerFor(frame)?.[startStream](frame, []);
      case 'response':
      case 'cancelled':
        return this.#handleTerminal(frame);
      case 'error':
        return frame.message_id ? this.#handleTerminal(frame) : this.#handleRejection(frame);
      case 'cancel_result': {
        const answer = this.#byId.get(frame.id) ?? this.#byMessageId.get(frame.message_id);
        const pendingCancel = answer?.pendingCancel;
        if (!pendingCancel) return;
        answer.pendingCancel = null;
        return pendingCancel.resolve(frame.result);
      }
      case 'closing':
        this.#requestedDelay = Math.max(0, Number(frame.retry_after_ms) || 0);
    }
  }

  /**
   * The answer that a frame belongs to. Creates one for a message of another device if `mayCreate`;
   * null for a message that has ended, or when too many are open.
   */
  #answerFor(frame, mayCreate = true) {
    const hasEnded = this.#endedIds.has(frame.message_id);
    let answer = this.#byMessageId.get(frame.message_id);
    // An ended message that was sent again with the same id has a new Answer. The server accepts
    // that message first, so a live frame before that is a late one of the earlier Answer.
    if (!answer && !(hasEnded && LIVE_FRAMES.has(frame.type))) answer = this.#byId.get(frame.id);
    if (answer) {
      if (!answer.messageId && frame.message_id) {
        answer.messageId = frame.message_id;
        this.#byMessageId.set(frame.message_id, answer);
      }
      answer.question ??= frame.type === 'accepted' ? (frame.content ?? null) : null;
      return answer;
    }
    if (!mayCreate || !frame.message_id || hasEnded || this.#open.size >= MAX_PENDING) return null;
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

  #handleTerminal(frame) {
    const answer = this.#answerFor(frame);
    // The repeated outcome of a resent message has its original position, which may be older.
    if (frame.position && answer && !answer.wasResent) this.#position = frame.position;
    if (!answer) return;
    if (frame.type === 'error') {
      this.#fail(answer, messageError(frame));
      return;
    }
    const state = frame.type === 'response' ? 'answered' : 'cancelled';
    if (typeof frame.content === 'string') answer[replaceParts](toEndedParts(frame.content, frame.parts, answer.parts));
    this.#finish(answer, state, toResult(answer, state, frame));
  }

  /** Handles an error before acceptance, and the failure of a cancel request. */
  #handleRejection(frame) {
    const answer = this.#byId.get(frame.id);
    const error = messageError(frame);
    if (!answer) {
      this.#emit('error', error);
    } else if (answer.state !== 'queued' && answer.state !== 'sent') {
      answer.pendingCancel?.reject(error);
      answer.pendingCancel = null;
    } else if (frame.code === 'unavailable' && answer.resendCount < MAX_RESENDS) {
      // The message may or may not have been accepted; resending it with the same id is safe.
      answer.resendCount += 1;
      this.#sentOnSocket?.delete(answer);
      answer.resendTimer = setTimeout(() => {
        answer.resendTimer = null;
        this.#sendPending();
      }, jitter(INITIAL_BACKOFF_MS * 2 ** answer.resendCount));
    } else {
      this.#fail(answer, error);
    }
  }

  #handleWelcome(frame) {
    this.#position = frame.position;
    this.#limits = frame.limits ?? null;
    this.#heartbeatMs = frame.heartbeat_ms || this.#heartbeatMs;
    const pending = new Set();
    for (const message of frame.pending ?? []) {
      pending.add(message.message_id);
      this.#answerFor({ ...message, type: 'pending' });
    }
    if (!frame.recovered) {
      // Messages may have ended unnoticed. Resending the same id makes the server repeat the
      // outcome.
      for (const answer of [...this.#open]) {
        if (answer.state === 'queued' || answer.state === 'sent' || pending.has(answer.messageId)) continue;
        if (answer.id && answer.question !== null) {
          answer.mine = true;
          answer.resendCount = 0;
          this.#sentOnSocket.delete(answer);
          answer[setState]('queued');
        } else {
          const text = 'The outcome of this message was not received; the history has it.';
          this.#fail(answer, new MessageError('missed', text, { messageId: answer.messageId }));
        }
      }
    }
    this.#clearTimer('connect');
    this.#resetHeartbeat();
    this.#failures = 0;
    this.#tokenRejections = 0;
    this.#setState({ state: 'open', words: 'Connected.' });
    if (!frame.recovered) this.#emit('reload', { serverId: frame.server_id });
    this.#sendPending();
  }

  // --- Connection -----------------------------------------------------------------------------

  /** Connects and keeps the connection. `send` connects automatically. */
  connect() {
    if (['connecting', 'open', 'waiting'].includes(this.#state.state)) return;
    this.#tokenRejections = 0;
    this.#failures = 0;
    this.#listenToBrowser();
    this.#openSocket();
  }

  /** Closes the connection. Open messages fail with the code `closed`, but are still answered. */
  close() {
    this.#closeForGood(closedByClient(), 1000);
  }

  /** Reconnects without waiting, or checks whether the open connection is alive. */
  poke() {
    if (this.#state.state === 'waiting') {
      this.#clearTimer('retry');
      this.#openSocket();
    } else if (this.#state.state === 'open') {
      this.#ping(POKE_TIMEOUT_MS);
    }
  }

  #setState(state) {
    this.#state = state;
    this.#emit('state', state);
  }

  #listenToBrowser() {
    if (this.#removeListeners.length > 0 || typeof globalThis.addEventListener !== 'function') return;
    const listen = (target, name, listener) => {
      target.addEventListener(name, listener);
      this.#removeListeners.push(() => target.removeEventListener(name, listener));
    };
    listen(globalThis, 'online', () => this.poke());
    listen(globalThis, 'pageshow', () => this.poke());
    listen(globalThis, 'offline', () => {
      // `offline` is only a hint: the server may be on this machine.
      if (this.#state.state === 'open') this.#ping(POKE_TIMEOUT_MS);
      else if (this.#state.state === 'waiting') this.#setState({ ...this.#state, words: offlineMessage() });
    });
    const page = globalThis.document;
    if (page?.addEventListener) {
      listen(page, 'visibilitychange', () => page.visibilityState === 'visible' && this.poke());
    }
  }

  #clearTimer(timer) {
    clearTimeout(this.#timers[timer]);
    delete this.#timers[timer];
  }

  #setTimer(timer, delay, callback) {
    this.#clearTimer(timer);
    this.#timers[timer] = setTimeout(callback, delay);
  }

  async #openSocket() {
    this.#setState({ state: 'connecting', words: this.#failures > 0 ? 'Connecting again…' : 'Connecting…' });
    // The set also identifies this attempt. Another set after an await means that a later attempt
    // has superseded this one.
    const attempt = (this.#sentOnSocket = new WeakSet());
    let token;
    try {
      token = await this.#getToken();
    } catch (error) {
      if (this.#sentOnSocket !== attempt) return;
      if (error instanceof ChatError && !error.retryable) this.#closeForGood(error);
      else this.#retry('No token could be obtained.', undefined, error);
      return;
    }
    if (this.#sentOnSocket !== attempt) return;
    const Socket = this.#options.WebSocket ?? globalThis.WebSocket;
    if (!Socket) {
      this.#closeForGood(new ConnectionError('no_websocket', 'WebSocket is not available here: use Node 22 or newer, or pass an implementation as the option WebSocket.'));
      return;
    }
    const url = this.#url('ws', { userid: this.userId, since: this.#position ?? undefined });
    url.protocol = url.protocol.replace('http', 'ws');
    // The token is sent as a subprotocol, because servers log addresses.
    let socket;
    try {
      socket = new Socket(url.href, [SUBPROTOCOL, `bearer.${token}`]);
    } catch (cause) {
      // The constructor throws, for example, for ws: on a page of https:.
      this.#closeForGood(new ConnectionError('no_websocket', `The WebSocket could not be opened: ${cause.message}`, { cause }));
      return;
    }
    this.#socket = socket;
    this.#requestedDelay = null;
    const isCurrent = () => this.#socket === socket;
    this.#wasOpen = false;
    socket.onopen = () => {
      if (isCurrent()) this.#wasOpen = true;
      if (isCurrent() && socket.protocol !== undefined && socket.protocol !== SUBPROTOCOL) {
        this.#closeForGood(new ConnectionError('protocol', `The server does not speak ${SUBPROTOCOL}.`), 1000);
      }
    };
    socket.onmessage = (event) => {
      if (!isCurrent()) return;
      this.#resetHeartbeat();
      let frame;
      try {
        frame = JSON.parse(event.data);
      } catch {
        return;
      }
      if (frame !== null && typeof frame === 'object') this.#handleFrame(frame);
    };
    // The close event that follows has the reason.
    socket.onerror = () => {};
    socket.onclose = (event) => isCurrent() && this.#handleClose(event.code, event.reason);
    this.#setTimer('connect', this.#options.connectTimeoutMs ?? CONNECT_TIMEOUT_MS, () => this.#abandonSocket('The server did not answer in time.'));
  }

  /** Restarts the heartbeat after a frame, which shows that the connection is alive. */
  #resetHeartbeat() {
    this.#clearTimer('pong');
    this.#setTimer('ping', this.#heartbeatMs, () => this.#ping(PONG_TIMEOUT_MS));
  }

  #ping(timeout) {
    this.#write({ type: 'ping' });
    // A further ping does not extend the deadline of an earlier one.
    if (!this.#timers.pong) this.#setTimer('pong', timeout, () => this.#abandonSocket('The server did not answer in time.'));
  }

  /** Reconnects without waiting for a close event, which a dead connection never delivers. */
  #abandonSocket(reason) {
    this.#releaseSocket(1000);
    this.#retry(reason);
  }

  #releaseSocket(code) {
    const socket = this.#socket;
    this.#socket = null;
    this.#sentOnSocket = null;
    for (const timer of Object.keys(this.#timers)) this.#clearTimer(timer);
    try {
      socket?.close(code);
    } catch {
      // The socket was still connecting, or is already closed.
    }
  }

  #handleClose(code, reason) {
    const requestedDelay = this.#requestedDelay;
    this.#releaseSocket(1000);
    if (UNAUTHORIZED_CLOSE_CODES.has(code)) {
      this.#handleRejectedToken(code);
    } else if (FATAL_CLOSE_CODES.has(code)) {
      const text = `The server closed the connection, and reconnecting would not help (${code} ${reason || 'protocol error'}).`;
      this.#closeForGood(new ConnectionError(reason || 'protocol_error', text, { closeCode: code }));
    } else if (code === 4429) {
      this.#retry('Too many messages in a short time.', RATE_LIMIT_DELAY_MS);
    } else if (code === 1001) {
      this.#retry('The server restarts.', requestedDelay ?? undefined);
    } else {
      const message = this.#wasOpen ? 'The connection was lost.' : 'The server could not be reached.';
      this.#retry(code === 4503 ? 'The server is temporarily unavailable.' : message, requestedDelay ?? undefined);
    }
  }

  #handleRejectedToken(code) {
    this.#token = null;
    this.#tokenRejections += 1;
    if (typeof this.#options.token !== 'function' || this.#tokenRejections > MAX_TOKEN_REJECTIONS) {
      this.#closeForGood(new AuthError(code === 4403 ? 'forbidden' : 'unauthorized', 'The server rejected the token.', { closeCode: code }));
    } else if (this.#tokenRejections === 1) {
      this.#openSocket();
    } else {
      this.#retry('The server rejected the token.');
    }
  }

  /** Reconnects after a backoff, or after `minDelay` milliseconds if that is given. */
  #retry(reason, minDelay, error) {
    this.#releaseSocket(1000);
    const backoff = jitter(Math.min(MAX_BACKOFF_MS, INITIAL_BACKOFF_MS * 2 ** Math.min(this.#failures, 16)));
    // Jitter on top of a given delay spreads clients that all received the same delay.
    const delay = Math.round(minDelay === undefined ? backoff : minDelay + backoff / 4);
    this.#failures += 1;
    this.#setTimer('retry', delay, () => this.#openSocket());
    const words = globalThis.navigator?.onLine === false ? offlineMessage() : `${reason} Trying again…`;
    this.#setState({ state: 'waiting', words, retryInMs: delay, ...(error && { error }) });
  }

  /** Closes the connection without reconnecting; open messages fail with `error`. */
  #closeForGood(error, code = 1000) {
    this.#releaseSocket(code);
    for (const remove of this.#removeListeners.splice(0)) remove();
    for (const answer of this.#open) clearTimeout(answer.resendTimer);
    this.#setState({ state: 'closed', words: error.message, error });
    this.#failAll(error);
  }

  /** The current token, or a new one if it has expired or was rejected. */
  #getToken(reason) {
    if (this.#token && Date.now() < this.#tokenExpiresAt - TOKEN_MARGIN_MS) return Promise.resolve(this.#token);
    this.#tokenCall ??= this.#newToken({ refused: this.#tokenRejections > 0 || reason === 'refused' }).finally(() => {
      this.#tokenCall = null;
    });
    return this.#tokenCall;
  }

  async #newToken(reason) {
    const option = this.#options.token;
    const value = typeof option === 'function' ? await option(reason) : option;
    const { token, expiresInMs } = typeof value === 'object' && value !== null ? value : { token: value };
    if (typeof token !== 'string' || !TOKEN.test(token)) {
      throw new AuthError('unauthorized', 'A token is needed: letters, digits and - . _ ~ only.');
    }
    this.#token = token;
    this.#tokenExpiresAt = Number.isFinite(expiresInMs) ? Date.now() + expiresInMs : Infinity;
    return token;
  }

  // --- History --------------------------------------------------------------------------------

  /** A page of conversations, the most recently used first: `{ conversations, next }`. */
  conversations({ limit, after } = {}) {
    return this.#request('GET', 'conversations', { limit, after });
  }

  /** A page of a conversation's turns, the newest first: `{ messages, next }`. */
  async messages(conversationId, { limit, before } = {}) {
    const page = await this.#request('GET', `conversations/${encodeURIComponent(conversationId)}/messages`, { limit, before });
    // For a failed message, the history has the error text in place of an answer.
    const toEntry = (entry) => ({ ...entry, parts: entry.status === 'failed' ? [] : toEndedParts(entry.answer ?? '', entry.parts) });
    return { ...page, messages: page.messages.map(toEntry) };
  }

  /** Deletes a conversation on all devices and stops its pending answers. */
  forget(conversationId) {
    return this.#request('DELETE', `conversations/${encodeURIComponent(conversationId)}`);
  }

  /** Deletes all conversations of this user. */
  forgetAll() {
    return this.#request('DELETE', 'conversations');
  }

  #url(path, query) {
    const url = new URL(path, this.#base);
    for (const [name, value] of Object.entries(query ?? {})) {
      if (value !== undefined && value !== null) url.searchParams.set(name, value);
    }
    return url;
  }

  async #request(method, path, query, mayRenewToken = true) {
    const token = await this.#getToken();
    const fetch = this.#options.fetch ?? globalThis.fetch;
    const url = this.#url(path, { userid: this.userId, ...query });
    let response;
    let body;
    try {
      response = await fetch(url, { method, headers: { authorization: `Bearer ${token}` }, cache: 'no-store' });
      body = response.status === 204 ? null : await response.json().catch(() => null);
    } catch (cause) {
      throw new HttpError(0, 'unavailable', 'The server can’t be reached.', { cause });
    }
    if (response.ok) return body;
    if (response.status === 401 && mayRenewToken && typeof this.#options.token === 'function') {
      if (this.#token === token) this.#token = null;
      await this.#getToken('refused');
      return this.#request(method, path, query, false);
    }
    throw new HttpError(response.status, body?.code ?? 'http', body?.message ?? `The server answered ${response.status}.`);
  }
}

/** The HTTP address that the server's paths are relative to. */
function toBaseUrl(address) {
  let url;
  try {
    url = new URL(address);
  } catch {
    // The check below reports the invalid address.
  }
  if (!url || !['http:', 'https:', 'ws:', 'wss:'].includes(url.protocol)) {
    const actual = address === undefined ? 'it is missing' : `not ${address}`;
    throw new ChatError('invalid_url', `url must be an absolute address that begins with http://, https://, ws:// or wss://; ${actual}.`);
  }
  url.protocol = url.protocol.replace('ws', 'http');
  url.search = url.hash = '';
  return url;
}

function isCount(value) {
  return Number.isInteger(value) && value >= 0;
}

/** Whether a delta opens the first part of a stream. */
function isFirstOpening(frame) {
  return frame.part === 0 && frame.offset === 0 && typeof frame.kind === 'string';
}

/** A part of an answer from its fields in a frame. */
function toPart(fields, index) {
  const { kind, meta, content } = fields ?? {};
  return {
    index,
    kind: String(kind),
    meta: typeof meta === 'object' ? meta : null,
    text: typeof content === 'string' ? content : '',
  };
}

function toParts(list) {
  return Array.isArray(list) ? list.slice(0, MAX_PARTS).map(toPart) : [];
}

/**
 * The parts of an answer that has ended. Text and refusal parts are consecutive shares of the
 * content, which is a single text part if `list` is missing. A part without content, such as
 * reasoning that is not stored, keeps the text that was streamed at the same place.
 */
function toEndedParts(content, list, streamed = []) {
  if (!Array.isArray(list)) return content === '' && streamed.length === 0 ? [] : [toPart({ kind: 'text', content }, 0)];
  let position = 0;
  const parts = toParts(list);
  for (const part of parts) {
    const { length, content: ownContent } = list[part.index] ?? {};
    const earlier = streamed[part.index]?.kind === part.kind ? streamed[part.index] : null;
    part.meta ??= earlier?.meta ?? null;
    if (TEXT_KINDS.has(part.kind)) {
      const end = position + (isCount(length) ? length : 0);
      part.text = content.slice(position, end);
      position = end;
    } else if (ownContent === undefined && earlier) {
      part.text = earlier.text;
    }
  }
  // Text that no part claims must not be lost.
  if (position < content.length) parts.push(toPart({ kind: 'text', content: content.slice(position) }, parts.length));
  return parts;
}

/** Whether `next` is the same part with the same text; `mayGrow` allows more text at its end. */
function isContinuation(part, next, mayGrow) {
  if (next?.kind !== part.kind || JSON.stringify(next.meta) !== JSON.stringify(part.meta)) return false;
  return mayGrow ? next.text.startsWith(part.text) : next.text === part.text;
}

function newId() {
  const bytes = globalThis.crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

function first(set) {
  return set.values().next().value;
}

/** A random delay between half of the given one and all of it. */
function jitter(delay) {
  return delay * (0.5 + Math.random() / 2);
}

/** A promise with its `resolve` and `reject`. Its rejection never counts as unhandled. */
function deferred() {
  const result = {};
  result.promise = new Promise((resolve, reject) => Object.assign(result, { resolve, reject }));
  result.promise.catch(() => {});
  return result;
}

function closedByClient() {
  return new ConnectionError('closed', 'The connection was closed here.', { closeCode: 1000 });
}

function offlineMessage() {
  return 'This device is offline. Trying again…';
}

function messageError(frame) {
  return new MessageError(frame.code ?? 'internal', frame.message ?? 'The message was not answered.', {
    messageId: frame.message_id,
    retryable: frame.retryable,
    retryAfterMs: frame.retry_after_ms,
  });
}

function toResult(answer, status, frame = {}) {
  return {
    status,
    content: answer.text,
    parts: answer.parts,
    id: answer.id,
    messageId: answer.messageId,
    conversationId: answer.conversationId,
    finishReason: frame.finish_reason ?? null,
    model: frame.model ?? null,
    usage: frame.usage ?? null,
    position: frame.position ?? null,
  };
}

/**
 * Returns a text about the size limit that a frame exceeds, or null if there is none. Without this
 * check, the server would close the connection.
 */
function describeExcess(frame, limits) {
  const maxChars = limits?.max_content_chars ?? Infinity;
  // Code points are counted only if the cheaper count of UTF-16 units exceeds the limit.
  if (frame.content.length > maxChars && [...frame.content].length > maxChars) {
    return `The message is too long: at most ${maxChars} characters.`;
  }
  const maxBytes = limits?.max_frame_bytes ?? Infinity;
  if (new TextEncoder().encode(JSON.stringify(frame)).length > maxBytes) {
    return `The message is too long: at most ${maxBytes} bytes.`;
  }
  return null;
}
