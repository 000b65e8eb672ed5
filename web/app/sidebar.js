// The list of conversations.

import { $, button, h } from './dom.js';

/** The fragment that names a conversation. */
export function toAddress(id) {
  return `#/c/${encodeURIComponent(id)}`;
}

/** The id of the conversation that the page's address names; null for a new conversation. */
export function conversationInAddress() {
  const match = /^#\/c\/(.+)$/.exec(location.hash);
  try {
    const id = match && decodeURIComponent(match[1]);
    return id && /^[A-Za-z0-9._:@|+-]{1,64}$/.test(id) ? id : null;
  } catch {
    return null;
  }
}

/** Asks for a confirmation. Resolves with true if the user confirms. */
function confirmDeletion(title) {
  const dialog = $('confirm');
  $('confirm-text').textContent = `“${title}” is deleted on all your devices. This can’t be undone.`;
  dialog.returnValue = 'no';
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener('close', () => resolve(dialog.returnValue === 'yes'), { once: true });
  });
}

/** Shows all conversations as links, each with a delete button. */
export class Sidebar {
  /** `onCurrentDeleted` is called when the user has deleted the current conversation. */
  constructor(conversations, { onCurrentDeleted }) {
    this.conversations = conversations;
    this.onCurrentDeleted = onCurrentDeleted;
    this.rows = new Map();
  }

  /** Updates the list. Rows keep their nodes, so that the focus is not lost. */
  render() {
    const list = $('conversations');
    const { current } = this.conversations;
    const conversations = this.conversations.list.filter((conversation) => conversation.turns.length > 0 || conversation !== current || conversation.title !== null);
    const listed = new Set(conversations.map((conversation) => conversation.id));
    for (const [id, row] of this.rows) {
      if (listed.has(id)) continue;
      row.element.remove();
      this.rows.delete(id);
    }
    let previous = null;
    for (const conversation of conversations) {
      const row = this.rows.get(conversation.id) ?? this.#createRow(conversation);
      const title = conversation.title ?? 'Conversation';
      if (row.link.textContent !== title) {
        row.link.textContent = title;
        row.remove.setAttribute('aria-label', `Delete “${title}”`);
      }
      row.element.classList.toggle('current', conversation === current);
      if (conversation === current) row.link.setAttribute('aria-current', 'page');
      else row.link.removeAttribute('aria-current');
      row.indicator.hidden = !conversation.turns.some((turn) => turn.live);
      const next = previous ? previous.nextSibling : list.firstChild;
      if (next !== row.element) list.insertBefore(row.element, next);
      previous = row.element;
    }
    $('no-conversations').hidden = conversations.length > 0;
  }

  #createRow(conversation) {
    const link = h('a', { href: toAddress(conversation.id), dir: 'auto' });
    const indicator = h('span', { class: 'answering', role: 'img', 'aria-label': 'being answered' });
    const remove = button('trash', 'Delete', () => this.#remove(conversation.id));
    const row = { link, indicator, remove, element: h('li', {}, link, indicator, remove) };
    this.rows.set(conversation.id, row);
    return row;
  }

  async #remove(id) {
    const conversation = this.conversations.byId.get(id);
    if (!conversation || !(await confirmDeletion(conversation.title ?? 'Conversation'))) return;
    const isCurrent = conversation === this.conversations.current;
    try {
      await this.conversations.delete(conversation);
      if (isCurrent) this.onCurrentDeleted();
      else $('new-chat').focus();
    } catch (error) {
      conversation.error = `The conversation could not be deleted: ${error.message} Please try again.`;
      this.conversations.open(id);
    }
  }
}
