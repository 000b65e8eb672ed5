// A WebSocket without a network: a test plays the server.

import { ChatMesh } from '../chatmesh.js';

export class FakeSocket {
  static all = [];

  constructor(url, protocols) {
    Object.assign(this, { url: new URL(url), protocols, protocol: '', readyState: 0, sent: [], closedWith: null });
    FakeSocket.all.push(this);
  }

  send(text) {
    this.sent.push(JSON.parse(text));
  }

  close(code) {
    this.readyState = 3;
    this.closedWith = code;
  }

  // --- The server's side ---

  open() {
    this.readyState = 1;
    this.protocol = 'chatmesh.v1';
    this.onopen?.({});
  }

  say(...frames) {
    for (const frame of frames) this.onmessage?.({ data: JSON.stringify(frame) });
  }

  end(code, reason = '') {
    this.readyState = 3;
    this.onclose?.({ code, reason });
  }

  welcome(more = {}) {
    this.open();
    this.say({ type: 'welcome', server_id: 's', position: 'p~0~0.1', recovered: false, pending: [], heartbeat_ms: 25000,
      limits: { max_content_chars: 8000, max_frame_bytes: 65536, max_pending: 32 }, ...more });
  }

  of(type) {
    return this.sent.filter((frame) => frame.type === type);
  }
}

/** Lets promises run; timers of the test stay where they are. */
export async function settle() {
  for (let n = 0; n < 20; n += 1) await Promise.resolve();
}

/** A client and its sockets, on a clock that the test moves. */
export async function begin(t, options = {}) {
  t.mock.timers.enable({ apis: ['setTimeout', 'Date'] });
  // Jitter at its most: times are what the documentation says at most.
  t.mock.method(Math, 'random', () => 1);
  const first = FakeSocket.all.length;
  const client = new ChatMesh({ url: 'http://chat.test/base/', userId: 'me', token: 'tok', WebSocket: FakeSocket, ...options });
  const states = [];
  client.on('state', (state) => states.push(state));
  const tick = async (time) => {
    t.mock.timers.tick(time);
    await settle();
  };
  return {
    client,
    states,
    tick,
    sockets: () => FakeSocket.all.slice(first),
    last: () => FakeSocket.all.slice(first).at(-1),
    /** Connects, with a welcome. */
    connect: async (more) => {
      client.connect();
      await settle();
      const socket = FakeSocket.all.at(-1);
      socket.welcome(more);
      await settle();
      return socket;
    },
  };
}

/** Takes everything an answer yields, to its end or error. */
export async function collect(answer) {
  const updates = [];
  try {
    for await (const update of answer) updates.push(update);
  } catch (error) {
    updates.push(error);
  }
  return updates;
}
