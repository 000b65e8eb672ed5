// The list of conversations.

import { $, button, h } from './dom.js';

export function addressOf(id) {
  return `#/c/${encodeURIComponent(id)}`;
}

/** Which conversation the address names; null for a new one. */
export function addressed() {
  const found = /^#\/c\/(.+)$/.exec(location.hash);
  try {
    const id = found && decodeURIComponent(found[1]);
    return id && /^[A-Za-z0-9._:@|+-]{1,64}$/.test(id) ? id : null;
  } catch {
    return null;
  }
}

function confirmed(title) {
  const dialog = $('confirm');
  $('confirm-text').textContent = `“${title}” is deleted on all your devices. This can’t be undone.`;
  dialog.returnValue = 'no';
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener('close', () => resolve(dialog.returnValue === 'yes'), { once: true });
  });
}

export class Sidebar {
  constructor(chats, { left }) {
    this.chats = chats;
    this.left = left;
    this.rows = new Map();
  }

  /** Rows keep their nodes, so that the focus stays where it is. */
  show() {
    const list = $('conversations');
    const { current } = this.chats;
    const chats = this.chats.list.filter((chat) => chat.turns.length > 0 || chat !== current || chat.title !== null);
    const listed = new Set(chats.map((chat) => chat.id));
    for (const [id, row] of this.rows) {
      if (listed.has(id)) continue;
      row.element.remove();
      this.rows.delete(id);
    }
    let place = null;
    for (const chat of chats) {
      const row = this.rows.get(chat.id) ?? this.#row(chat);
      const title = chat.title ?? 'Conversation';
      if (row.link.textContent !== title) {
        row.link.textContent = title;
        row.remove.setAttribute('aria-label', `Delete “${title}”`);
      }
      row.element.classList.toggle('current', chat === current);
      if (chat === current) row.link.setAttribute('aria-current', 'page');
      else row.link.removeAttribute('aria-current');
      row.mark.hidden = !chat.turns.some((turn) => turn.live);
      const next = place ? place.nextSibling : list.firstChild;
      if (next !== row.element) list.insertBefore(row.element, next);
      place = row.element;
    }
    $('no-conversations').hidden = chats.length > 0;
  }

  #row(chat) {
    const link = h('a', { href: addressOf(chat.id), dir: 'auto' });
    const mark = h('span', { class: 'answering', role: 'img', 'aria-label': 'being answered' });
    const remove = button('trash', 'Delete', () => this.#remove(chat.id));
    const row = { link, mark, remove, element: h('li', {}, link, mark, remove) };
    this.rows.set(chat.id, row);
    return row;
  }

  async #remove(id) {
    const chat = this.chats.all.get(id);
    if (!chat || !(await confirmed(chat.title ?? 'Conversation'))) return;
    const shown = chat === this.chats.current;
    try {
      await this.chats.forget(chat);
      if (shown) this.left();
      else $('new-chat').focus();
    } catch (error) {
      chat.trouble = `The conversation could not be deleted: ${error.message} Please try again.`;
      this.chats.open(id);
    }
  }
}
