// Entry point of the chat page: creates the client and the views, and connects them.

import { AuthError, ChatMesh } from '../chatmesh.js';
import { Composer } from './composer.js';
import { showConnectionStatus } from './connection-status.js';
import { Conversations } from './conversations.js';
import { $, announce, h, icon } from './dom.js';
import { initDrawer, setDrawerOpen } from './drawer.js';
import * as identity from './identity.js';
import { Sidebar, conversationInAddress, toAddress } from './sidebar.js';
import { initTheme } from './theme.js';
import { Thread } from './thread.js';

const SUGGESTIONS = ['Explain a hash map as to a child', 'Write a haiku about the sea', 'Compare SQL joins in a table'];

function start(userId) {
  const client = new ChatMesh({ url: new URL('.', document.baseURI).href, userId, token: identity.getToken });
  const conversations = new Conversations(client, (change, subject) => {
    if (change === 'list') sidebar.render();
    else if (change === 'deleted') composer.deleteDraft(subject);
    else if (subject === conversations.current) render();
  });
  const composer = new Composer({ userId, send, stop, limits: () => client.limits });
  const thread = new Thread(conversations, () => composer.focus());
  const sidebar = new Sidebar(conversations, { onCurrentDeleted: () => navigate(null) });

  function liveTurns() {
    return conversations.current?.turns.filter((turn) => turn.live) ?? [];
  }

  function render() {
    thread.render();
    const title = conversations.current ? (conversations.current.title ?? 'Conversation') : 'New chat';
    $('title').textContent = title;
    document.title = conversations.current ? `${title} – Chat` : 'Chat';
    composer.show(conversations.current?.id ?? '');
    composer.setAnswering(liveTurns().length > 0);
  }

  function send(text) {
    try {
      const isNew = conversations.ask(text);
      if (isNew) history.pushState(null, '', toAddress(conversations.current.id));
    } catch (error) {
      announce(error.message);
      return false;
    }
    announce('Sent.');
    conversations.open(conversations.current.id);
    thread.scrollToEnd();
    return true;
  }

  function stop() {
    for (const { live } of liveTurns()) live.cancel().catch(() => announce('It could not be stopped. Please try again.'));
    render();
  }

  /** Opens a conversation, or a new one (null), and adds it to the browser's history. */
  function navigate(id) {
    history.pushState(null, '', id === null ? location.pathname : toAddress(id));
    openAddress();
  }

  function openAddress() {
    conversations.open(conversationInAddress());
    setDrawerOpen(false);
    // On a phone, focus would open the keyboard, which covers the conversation.
    if (!matchMedia('(pointer: coarse)').matches) composer.focus();
  }

  $('new-chat').prepend(icon('plus'));
  $('new-chat').addEventListener('click', () => {
    navigate(null);
    composer.focus();
  });
  $('conversations').addEventListener('click', (event) => {
    const link = event.target.closest('a');
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    navigate(decodeURIComponent(link.hash.slice(4)));
  });
  for (const suggestion of SUGGESTIONS) $('suggestions').append(h('button', { type: 'button', onclick: () => composer.fill(suggestion) }, suggestion));
  $('user-button').replaceChildren(icon('person'), h('span', {}, userId));
  $('user-button').setAttribute('aria-label', `You are ${userId}. Change it.`);
  $('user-button').addEventListener('click', () => identity.openDialog());
  addEventListener('keydown', (event) => {
    const isOverlayOpen = document.querySelector('dialog[open]') || document.body.classList.contains('drawer-open');
    if (event.key === 'Escape' && !event.isComposing && !isOverlayOpen) stop();
  });
  addEventListener('popstate', openAddress);
  addEventListener('hashchange', openAddress);

  client.on('state', ({ state, error }) => {
    if (state === 'closed' && error instanceof AuthError) identity.openDialog(error.message);
    if (state === 'open') identity.recordSuccess();
    // Retries a failed load of the history when the connection is back.
    if (state === 'open' && conversations.current?.isStale) conversations.load(conversations.current);
  });
  showConnectionStatus(client);
  client.connect();
  conversations.resume();
  openAddress();
}

initTheme();
initDrawer();
identity.initDialog();
const userId = identity.loadUserId();
if (userId === null) identity.openDialog();
else start(userId);
