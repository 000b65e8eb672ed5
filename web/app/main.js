// The chat page: puts the parts together.

import { AuthError, ChatMesh } from '../chatmesh.js';
import { Chats } from './chats.js';
import { Composer } from './composer.js';
import { $, announce, h, icon } from './dom.js';
import * as identity from './identity.js';
import { drawer, prepareDrawer, prepareTheme } from './settings.js';
import { Sidebar, addressOf, addressed } from './sidebar.js';
import { showConnection } from './status.js';
import { Thread } from './thread.js';

const IDEAS = ['Explain a hash map as to a child', 'Write a haiku about the sea', 'Compare SQL joins in a table'];

function start(userId) {
  const client = new ChatMesh({ url: new URL('.', document.baseURI).href, userId, token: identity.token });
  const chats = new Chats(client, (what, chat) => {
    if (what === 'list') sidebar.show();
    else if (what === 'gone') composer.forget(chat);
    else if (chat === chats.current) show();
  });
  const composer = new Composer({ userId, send, stop, limits: () => client.limits });
  const thread = new Thread(chats, () => composer.focus());
  const sidebar = new Sidebar(chats, { left: () => go(null) });

  function growing() {
    return chats.current?.turns.filter((turn) => turn.live) ?? [];
  }

  function show() {
    thread.show();
    const title = chats.current ? (chats.current.title ?? 'Conversation') : 'New chat';
    $('title').textContent = title;
    document.title = chats.current ? `${title} – Chat` : 'Chat';
    composer.show(chats.current?.id ?? '');
    composer.answering(growing().length > 0);
  }

  function send(text) {
    try {
      const began = chats.ask(text);
      if (began) history.pushState(null, '', addressOf(chats.current.id));
    } catch (error) {
      announce(error.message);
      return false;
    }
    announce('Sent.');
    chats.open(chats.current.id);
    thread.toEnd();
    return true;
  }

  function stop() {
    for (const { live } of growing()) live.cancel().catch(() => announce('It could not be stopped. Please try again.'));
    show();
  }

  /** Shows a conversation and puts it into the address. */
  function go(id) {
    history.pushState(null, '', id === null ? location.pathname : addressOf(id));
    arrive();
  }

  function arrive() {
    chats.open(addressed());
    drawer(false);
    // On a phone the keyboard would cover what was just opened.
    if (!matchMedia('(pointer: coarse)').matches) composer.focus();
  }

  $('new-chat').prepend(icon('plus'));
  $('new-chat').addEventListener('click', () => {
    go(null);
    composer.focus();
  });
  $('conversations').addEventListener('click', (event) => {
    const link = event.target.closest('a');
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    go(decodeURIComponent(link.hash.slice(4)));
  });
  for (const idea of IDEAS) $('ideas').append(h('button', { type: 'button', onclick: () => composer.fill(idea) }, idea));
  $('who').replaceChildren(icon('person'), h('span', {}, userId));
  $('who').setAttribute('aria-label', `You are ${userId}. Change it.`);
  $('who').addEventListener('click', () => identity.ask());
  addEventListener('keydown', (event) => {
    const elsewhere = document.querySelector('dialog[open]') || document.body.classList.contains('drawer-open');
    if (event.key === 'Escape' && !event.isComposing && !elsewhere) stop();
  });
  addEventListener('popstate', arrive);
  addEventListener('hashchange', arrive);

  client.on('state', ({ state, error }) => {
    if (state === 'closed' && error instanceof AuthError) identity.ask(error.message);
    if (state === 'open') identity.worked();
    // A conversation whose history could not be had is tried again with the connection.
    if (state === 'open' && chats.current?.stale) chats.load(chats.current);
  });
  showConnection(client);
  client.connect();
  chats.resume();
  arrive();
}

prepareTheme();
prepareDrawer();
identity.prepare();
const userId = identity.userId();
if (userId === null) identity.ask();
else start(userId);
