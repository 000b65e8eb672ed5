// A WebSocket without a network. The test acts as the server.

import { ChatMesh } from '../chatmesh.js';

export class FakeSocket {
  static sockets = [];

  constructor(url, protocols) {
    Object.assign(this, { url: new URL(url), protocols, protocol: '', readyState: 0, sent: [], closedWith: null });
    FakeSocket.sockets.push(this);
  }

  send(text) {
    this.sent.push(JSON.parse(text));
  }

  close(code) {
    this.readyState = 3;
    this.closedWith = code;
  }

  // --- Calls by the test, as the server ---

  open() {
    this.readyState = 1;
    this.protocol = 'chatmesh.v1';
    this.onopen?.({});
  }

  receive(...frames) {
    for (const frame of frames) this.onmessage?.({ data: JSON.stringify(frame) });
  }

  closeByServer(code, reason = '') {
    this.readyState = 3;
    this.onclose?.({ code, reason });
  }

  welcome(fields = {}) {
    this.open();
    this.receive({ type: 'welcome', server_id: 's', position: 'p~0~0.1', recovered: false, pending: [], heartbeat_ms: 25000,
      limits: { max_content_chars: 8000, max_frame_bytes: 65536, max_pending: 32 }, ...fields });
  }

  sentOfType(type) {
    return this.sent.filter((frame) => frame.type === type);
  }
}

/** Runs pending promise callbacks without advancing the mocked timers. */
export async function flushPromises() {
  for (let n = 0; n < 20; n += 1) await Promise.resolve();
}

/** Creates a client with fake sockets and a clock that the test advances. */
export async function startClient(t, options = {}) {
  t.mock.timers.enable({ apis: ['setTimeout', 'Date'] });
  // Math.random returns its maximum, so that delays have the documented upper limits.
  t.mock.method(Math, 'random', () => 1);
  const firstSocket = FakeSocket.sockets.length;
  const client = new ChatMesh({ url: 'http://chat.test/base/', userId: 'me', token: 'tok', WebSocket: FakeSocket, ...options });
  const states = [];
  client.on('state', (state) => states.push(state));
  const tick = async (ms) => {
    t.mock.timers.tick(ms);
    await flushPromises();
  };
  return {
    client,
    states,
    tick,
    sockets: () => FakeSocket.sockets.slice(firstSocket),
    lastSocket: () => FakeSocket.sockets.slice(firstSocket).at(-1),
    /** Connects and answers with a welcome. */
    connect: async (fields) => {
      client.connect();
      await flushPromises();
      const socket = FakeSocket.sockets.at(-1);
      socket.welcome(fields);
      await flushPromises();
      return socket;
    },
  };
}

/**
 * The fields of a delta that belong to its stream. The first delta of a part is its opening, which
 * alone has the kind, the meta data and the previous part's length.
 */
export function delta(stream, part, offset, content, { kind, meta, previousEnd, attempt = 1 } = {}) {
  const opening = offset === 0 ? { kind, ...(meta && { meta }), ...(part > 0 && { previous_end: previousEnd }) } : {};
  return { type: 'delta', stream, part, offset, end: offset + content.length, ...opening, attempt, content };
}

/** Collects all updates of an answer, and its error as the last item. */
export async function collect(answer) {
  const updates = [];
  try {
    for await (const update of answer) updates.push(update);
  } catch (error) {
    updates.push(error);
  }
  return updates;
}
