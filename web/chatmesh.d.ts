/** Types of the chatmesh client for browsers and Node. */

export declare const SUBPROTOCOL: 'chatmesh.v1';

/** Codes that an error of a message may have; the server may add others. */
export type MessageErrorCode =
  | 'invalid_message' | 'too_large' | 'rate_limited' | 'unauthorized' | 'unavailable' | 'cancelled' | 'expired'
  | 'provider_timeout' | 'provider_rate_limited' | 'provider_rejected' | 'provider_failed' | 'internal'
  | 'missed' | (string & {});

/** Anything that goes wrong. `code` is for programs, the message for people. */
export declare class ChatError extends Error {
  readonly code: string;
  /** Whether trying again later may well succeed. */
  readonly retryable: boolean;
  readonly retryAfterMs: number | null;
}

/** A message was refused (no `messageId`), or ended without an answer. */
export declare class MessageError extends ChatError {
  readonly code: MessageErrorCode;
  readonly messageId: string | null;
}

/** The connection is closed for good; `connect()` tries anew. */
export declare class ConnectionError extends ChatError {
  readonly closeCode: number | null;
}

/** There is no token that the server takes. */
export declare class AuthError extends ConnectionError {}

/** A call of the history failed. `status` is 0 where nothing answered. */
export declare class HttpError extends ChatError {
  readonly status: number;
}

export interface TokenReason {
  /** Whether the server refused the last token, or it has ended. */
  refused: boolean;
}

/** With `expiresInMs` the token is renewed before it is used after its end. */
export type Token = string | { token: string; expiresInMs?: number };

export interface ChatMeshOptions {
  /** Whose conversations: 1 to 128 characters of A-Z a-z 0-9 . _ : @ | + - */
  userId: string;
  /** A token, or a function that gets one whenever one is needed. */
  token: string | ((why: TokenReason) => Token | Promise<Token>);
  /** Where the gateway is, http(s) or ws(s), or `invalid_url` is thrown; in a browser the page's own address by default. */
  url?: string | URL;
  /** Goes on from here; see ChatMesh.position. */
  position?: string;
  /** In place of the global one. */
  WebSocket?: new (url: string, protocols: string[]) => unknown;
  /** In place of the global one. */
  fetch?: typeof fetch;
  /** How long a connection may take to be welcomed; 10 seconds by default. */
  connectTimeoutMs?: number;
}

/**
 * idle: not connected yet. connecting. open. waiting: will try again by itself. closed: will not,
 * `error` says why.
 */
export interface ConnectionState {
  readonly state: 'idle' | 'connecting' | 'open' | 'waiting' | 'closed';
  /** For people. */
  readonly words: string;
  readonly retryInMs?: number;
  readonly error?: Error;
}

export type AnswerState = 'queued' | 'sent' | 'accepted' | 'streaming' | 'answered' | 'cancelled' | 'failed';

export interface Update {
  /** What is new. */
  readonly delta: string;
  /** All of it so far. */
  readonly text: string;
  /** What was yielded before no longer holds; `text` does. */
  readonly reset: boolean;
}

export interface Result {
  readonly status: 'answered' | 'cancelled';
  /** The whole answer, or what there was of it. */
  readonly content: string;
  readonly id: string | null;
  readonly messageId: string | null;
  readonly conversationId: string;
  readonly finishReason: string | null;
  readonly model: string | null;
  readonly usage: { prompt_tokens?: number; completion_tokens?: number; total_tokens?: number } | null;
  readonly position: string | null;
}

export type CancelResult = 'cancelling' | 'already_done' | 'unknown';

/** A message and the answer to it, which may still grow. */
export interface Answer extends AsyncIterable<Update> {
  readonly id: string | null;
  readonly messageId: string | null;
  readonly conversationId: string;
  /** What was asked; null where this device does not know (yet). */
  readonly question: string | null;
  /** Whether this client sent it. */
  readonly mine: boolean;
  readonly state: AnswerState;
  /** Whether it is answered, cancelled or failed. */
  readonly ended: boolean;
  /** The answer so far. */
  readonly text: string;
  readonly error: ChatError | null;
  /** Resolves when it is answered or cancelled, rejects with a ChatError when it failed. */
  readonly result: Promise<Result>;
  /** Stops it, from any device of the user. */
  cancel(): Promise<CancelResult>;
}

export interface SendOptions {
  /** `default` by default. */
  conversationId?: string;
  /** The same id again is the same message, never answered twice; a random one by default. */
  id?: string;
  /** Stops what is pending in the conversation before it. */
  interrupt?: boolean;
}

export interface Limits {
  readonly max_content_chars: number;
  readonly max_frame_bytes: number;
  readonly max_pending: number;
}

export interface ConversationPage {
  conversations: { conversation_id: string; turns: number; updated_at: string }[];
  /** Give it as `after` for the next page; null at the end. */
  next: string | null;
}

export interface MessagePage {
  conversation_id: string;
  /** The newest first. */
  messages: {
    message_id: string;
    question: string | null;
    answer: string;
    status: 'answered' | 'cancelled' | 'failed';
    timestamp: string;
  }[];
  /** Give it as `before` for the next page; null at the end. */
  next: string | null;
}

export interface Events {
  /** The connection's state has changed. */
  state: ConnectionState;
  /** A message that this client did not send: of another device, or from before. */
  message: Answer;
  /** The server has it for good; of another device's message the question is known now. */
  accepted: Answer;
  /** A message has ended: see its `state`. */
  end: Answer;
  /** What happened meanwhile can't be told: load the history now. Also after the first connect. */
  reload: { serverId: string };
  /** The server refused something that is about no message. */
  error: MessageError;
}

/** One user's connection. */
export declare class ChatMesh {
  constructor(options: ChatMeshOptions);
  readonly userId: string;
  readonly state: ConnectionState;
  readonly position: string | null;
  /** What the server allows; null before the first connection. */
  readonly limits: Limits | null;
  /** Every message that has not ended, in order. */
  readonly open: Answer[];
  /** Calls `listener` from now on; the function that is returned ends it. */
  on<E extends keyof Events>(event: E, listener: (detail: Events[E]) => void): () => void;
  /** Connects and stays connected; `send` does so by itself. */
  connect(): void;
  /** Says goodbye. What has not ended fails here with the code `closed`; the server goes on with it. */
  close(): void;
  /** Tries now what would be tried later, and looks whether the connection is alive. */
  poke(): void;
  /** Returns at once; sent when there is a connection, and again until it is accepted. */
  send(question: string, options?: SendOptions): Answer;
  cancel(answer: Answer): Promise<CancelResult>;
  conversations(options?: { limit?: number; after?: string }): Promise<ConversationPage>;
  messages(conversationId: string, options?: { limit?: number; before?: string }): Promise<MessagePage>;
  /** Deletes a conversation for all devices; what is being answered in it is stopped. */
  forget(conversationId: string): Promise<null>;
  /** Deletes everything of this user. */
  forgetAll(): Promise<null>;
}
