// The conversation that is shown, and where it is scrolled to.

import { $, announce, icon } from './dom.js';
import { TurnView } from './turn.js';

const NOTHING = 'There is nothing here: this conversation was deleted, or there never was one. A message begins it anew.';
const NEAR = 8;
const AWAY = new Set(['ArrowUp', 'PageUp', 'Home']);

export class Thread {
  constructor(chats, focusBox) {
    this.chats = chats;
    this.chat = undefined;
    this.views = new Map();
    /** Whether the end stays in view; a person who scrolls up lets go of it. */
    this.pinned = true;
    this.actions = {
      grown: () => this.#stay(),
      retry: (turn) => {
        try {
          chats.retry(this.chat, turn);
        } catch (error) {
          announce(error.message);
        }
        this.toEnd();
        focusBox();
      },
    };
    const scroll = $('scroll');
    scroll.addEventListener('wheel', (event) => event.deltaY < 0 && this.#letGo(), { passive: true });
    scroll.addEventListener('touchmove', () => this.#letGo(), { passive: true });
    scroll.addEventListener('keydown', (event) => AWAY.has(event.key) && this.#letGo());
    scroll.addEventListener('scroll', () => this.#scrolled(), { passive: true });
    // Whatever changes the height, also buttons and boxes that come after the last piece of text.
    const sizes = new ResizeObserver(() => this.#stay());
    sizes.observe(scroll);
    sizes.observe($('turns').parentElement);
    $('to-end').prepend(icon('down'));
    $('to-end').addEventListener('click', () => {
      this.toEnd();
      focusBox();
    });
    $('earlier').addEventListener('click', async () => {
      const before = scroll.scrollHeight - scroll.scrollTop;
      this.pinned = false;
      await chats.older(this.chat);
      scroll.scrollTop = scroll.scrollHeight - before;
    });
  }

  /** Shows the current conversation as it is now. */
  show() {
    const chat = this.chats.current;
    const turns = $('turns');
    if (chat !== this.chat) {
      this.chat = chat;
      this.views.clear();
      turns.replaceChildren();
      this.pinned = true;
    }
    const listed = new Set(chat?.turns);
    for (const [turn, view] of this.views) {
      if (listed.has(turn)) continue;
      view.element.remove();
      this.views.delete(turn);
    }
    let place = null;
    for (const turn of chat?.turns ?? []) {
      let view = this.views.get(turn);
      if (view) {
        view.update();
      } else {
        view = new TurnView(turn, this.actions);
        this.views.set(turn, view);
      }
      const next = place ? place.nextSibling : turns.firstChild;
      if (next !== view.element) turns.insertBefore(view.element, next);
      place = view.element;
    }
    $('welcome').hidden = chat !== null;
    $('earlier').hidden = !chat?.next;
    const trouble = chat?.trouble ?? (chat?.loaded && chat.turns.length === 0 ? NOTHING : '');
    $('trouble').className = trouble === NOTHING ? 'hint' : 'trouble';
    $('trouble').hidden = trouble === '';
    $('trouble').textContent = trouble;
    this.#stay();
  }

  toEnd() {
    this.pinned = true;
    this.#stay();
  }

  #letGo() {
    const { scrollHeight, clientHeight } = $('scroll');
    if (scrollHeight > clientHeight) this.pinned = false;
  }

  #fromEnd() {
    const { scrollHeight, clientHeight, scrollTop } = $('scroll');
    return scrollHeight - clientHeight - scrollTop;
  }

  #scrolled() {
    const from = this.#fromEnd();
    if (from <= NEAR) this.pinned = true;
    else if (from > 400) this.pinned = false;
    $('to-end').hidden = this.pinned || from < 80;
  }

  #stay() {
    const scroll = $('scroll');
    if (this.pinned) scroll.scrollTop = scroll.scrollHeight;
    $('to-end').hidden = this.pinned || this.#fromEnd() < 80;
  }
}
