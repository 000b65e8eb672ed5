/** Types of the chatmesh client for browsers and Node. */

export declare const SUBPROTOCOL: 'chatmesh.v1';

/** Codes of message errors; later servers may have others. */
export type MessageErrorCode =
  | 'invalid_message' | 'too_large' | 'rate_limited' | 'unauthorized' | 'unavailable' | 'cancelled' | 'expired'
  | 'provider_timeout' | 'provider_rate_limited' | 'provider_rejected' | 'provider_failed' | 'internal'
  | 'missed' | (string & {});

/** Base class of all errors of the client. `code` is for programs, the message for people. */
export declare class ChatError extends Error {
  readonly code: string;
  /** Whether the same request may succeed later. */
  readonly retryable: boolean;
  readonly retryAfterMs: number | null;
}

/** A message was rejected (no `messageId`), or ended without an answer. */
export declare class MessageError extends ChatError {
  readonly code: MessageErrorCode;
  readonly messageId: string | null;
}

/** The connection is closed and the client does not reconnect; `connect()` starts again. */
export declare class ConnectionError extends ChatError {
  readonly closeCode: number | null;
}

/** The client has no token that the server accepts. */
export declare class AuthError extends ConnectionError {}

/** A history request failed. `status` is the HTTP status, or 0 when no server answered. */
export declare class HttpError extends ChatError {
  readonly status: number;
}

export interface TokenReason {
  /** Whether the server rejected the last token. */
  refused: boolean;
}

/** A token. With `expiresInMs`, the client renews it before it expires. */
export type Token = string | { token: string; expiresInMs?: number };

export interface ChatMeshOptions {
  /** The user: 1 to 128 characters of A-Z a-z 0-9 . _ : @ | + - */
  userId: string;
  /** A token, or a function that the client calls whenever it needs one. */
  token: string | ((why: TokenReason) => Token | Promise<Token>);
  /**
   * The gateway's absolute address, http(s) or ws(s); in a browser the address of the page by
   * default. The constructor throws `invalid_url` for anything else.
   */
  url?: string | URL;
  /** Resumes from this position; see ChatMesh.position. */
  position?: string;
  /** Replaces the global WebSocket. */
  WebSocket?: new (url: string, protocols: string[]) => unknown;
  /** Replaces the global fetch. */
  fetch?: typeof fetch;
  /** Timeout from connecting to the `welcome` frame; 10 seconds by default. */
  connectTimeoutMs?: number;
}

/**
 * idle: not connected yet. connecting: until the `welcome` frame. open: connected. waiting:
 * reconnects automatically, in `retryInMs`. closed: does not reconnect; `error` is the reason.
 */
export interface ConnectionState {
  readonly state: 'idle' | 'connecting' | 'open' | 'waiting' | 'closed';
  /** The state as text for people. */
  readonly words: string;
  readonly retryInMs?: number;
  readonly error?: Error;
}

export type AnswerState = 'queued' | 'sent' | 'accepted' | 'streaming' | 'answered' | 'cancelled' | 'failed';

/** Kinds of parts; later servers may have others, which a program should ignore. */
export type PartKind = 'text' | 'refusal' | 'reasoning' | 'tool_call' | 'source' | 'data' | (string & {});

/**
 * A part of an answer. The client extends `text` while the part streams; programs must not modify a
 * part.
 */
export interface Part {
  /** The place of the part in the answer. */
  readonly index: number;
  readonly kind: PartKind;
  /** `id` and `name` of a tool_call, `url` and `title` of a source, `name` of data. */
  readonly meta: { readonly id?: string; readonly name?: string; readonly url?: string; readonly title?: string; readonly [key: string]: unknown } | null;
  /**
   * The text so far: JSON for tool_call (the arguments) and data, empty for source, and empty for
   * reasoning that is not stored when it was not streamed to this client.
   */
  readonly text: string;
}

/** One part of an answer has changed. */
export interface Update {
  /** The part that has changed; null if the answer was restarted and is empty. */
  readonly part: Part | null;
  /** The kind of that part. */
  readonly kind: PartKind | null;
  /** What the update adds to the answer's text; '' for kinds other than text and refusal. */
  readonly delta: string;
  /** The answer's text up to and including this update: its text and refusal parts, joined. */
  readonly text: string;
  /**
   * Whether the parts were replaced instead of extended: discard everything. `delta` is then the
   * whole text, and an update with an empty `delta` follows for each part after the first.
   */
  readonly reset: boolean;
}

export interface Result {
  readonly status: 'answered' | 'cancelled';
  /** The whole text. For a cancelled answer, the text before the cancellation. */
  readonly content: string;
  readonly parts: readonly Part[];
  readonly id: string | null;
  readonly messageId: string | null;
  readonly conversationId: string;
  readonly finishReason: string | null;
  readonly model: string | null;
  readonly usage: { prompt_tokens?: number; completion_tokens?: number; total_tokens?: number } | null;
  readonly position: string | null;
}

export type CancelResult = 'cancelling' | 'already_done' | 'unknown';

/** A message and its answer, which may still be streaming. */
export interface Answer extends AsyncIterable<Update> {
  readonly id: string | null;
  readonly messageId: string | null;
  readonly conversationId: string;
  /** The text of the message; null while this device does not know it. */
  readonly question: string | null;
  /** Whether this client sent it. */
  readonly mine: boolean;
  readonly state: AnswerState;
  /** Whether the state is answered, cancelled or failed. */
  readonly ended: boolean;
  /** The parts of the answer so far, at most 256. Programs must not modify them. */
  readonly parts: readonly Part[];
  /** The text of the answer so far: its text and refusal parts, joined. */
  readonly text: string;
  readonly error: ChatError | null;
  /** Resolves when the message is answered or cancelled, rejects with a ChatError when it fails. */
  readonly result: Promise<Result>;
  /** Stops the answer, also of a message from another device. */
  cancel(): Promise<CancelResult>;
}

export interface SendOptions {
  /** `default` by default. */
  conversationId?: string;
  /** A repeated id is the same message and is answered once; a random id by default. */
  id?: string;
  /** Stops the pending answers of the conversation before this message. */
  interrupt?: boolean;
}

export interface Limits {
  readonly max_content_chars: number;
  readonly max_frame_bytes: number;
  readonly max_pending: number;
}

export interface ConversationPage {
  conversations: { conversation_id: string; turns: number; updated_at: string }[];
  /** The value of `after` for the next page; null on the last page. */
  next: string | null;
}

export interface MessagePage {
  conversation_id: string;
  /** Newest first. */
  messages: {
    message_id: string;
    question: string | null;
    answer: string;
    /** The parts of the answer; none if it failed. */
    parts: readonly Part[];
    status: 'answered' | 'cancelled' | 'failed';
    timestamp: string;
  }[];
  /** The value of `before` for the next page; null on the last page. */
  next: string | null;
}

export interface Events {
  /** The connection's state has changed. */
  state: ConnectionState;
  /**
   * A message that this client did not send: from another device, or from before this connection.
   */
  message: Answer;
  /**
   * The server has accepted the message durably; `question` is now known for other devices, too.
   */
  accepted: Answer;
  /** A message was answered, cancelled or failed: see its `state`. */
  end: Answer;
  /** Load the history now: after the first connection, and when missed events can't be replayed. */
  reload: { serverId: string };
  /** The server sent an error that belongs to no message. */
  error: MessageError;
}

/** The connection of one user. */
export declare class ChatMesh {
  constructor(options: ChatMeshOptions);
  readonly userId: string;
  readonly state: ConnectionState;
  /** The position up to which the client has received; another client can resume from it. */
  readonly position: string | null;
  /** The limits of the server; null before the first connection. */
  readonly limits: Limits | null;
  /** All messages without an outcome, in the order of sending. */
  readonly open: Answer[];
  /** Adds a listener; returns a function that removes it. */
  on<E extends keyof Events>(event: E, listener: (detail: Events[E]) => void): () => void;
  /** Connects and keeps the connection; `send` connects automatically. */
  connect(): void;
  /** Closes the connection. Open messages fail with the code `closed`, but are still answered. */
  close(): void;
  /** Reconnects without waiting, or checks whether the open connection is alive. */
  poke(): void;
  /** Queues a message and returns at once. It is sent when connected, and resent until accepted. */
  send(question: string, options?: SendOptions): Answer;
  cancel(answer: Answer): Promise<CancelResult>;
  conversations(options?: { limit?: number; after?: string }): Promise<ConversationPage>;
  messages(conversationId: string, options?: { limit?: number; before?: string }): Promise<MessagePage>;
  /** Deletes a conversation on all devices and stops its pending answers. */
  forget(conversationId: string): Promise<null>;
  /** Deletes all conversations of this user. */
  forgetAll(): Promise<null>;
}
