// The view of the current conversation, and its scroll position.

import { $, announce, icon } from './dom.js';
import { TurnView } from './turn.js';

const NOT_FOUND = 'There is nothing here: this conversation was deleted, or it never existed. Send a message to start it.';
/** Distance from the end in pixels, up to which the view follows the end again. */
const PIN_DISTANCE = 8;
/** Distance from the end in pixels, above which the view stops following the end. */
const UNPIN_DISTANCE = 400;
/** Distance from the end in pixels, from which the button that scrolls to the end is shown. */
const BUTTON_DISTANCE = 80;
const SCROLL_UP_KEYS = new Set(['ArrowUp', 'PageUp', 'Home']);

/** Shows the turns of the current conversation and follows the end while an answer is streaming. */
export class Thread {
  constructor(conversations, focusInput) {
    this.conversations = conversations;
    this.conversation = undefined;
    this.views = new Map();
    /** Whether the view follows the end of the conversation; scrolling up stops that. */
    this.isPinned = true;
    this.actions = {
      onResize: () => this.#followEnd(),
      retry: (turn) => {
        try {
          conversations.retry(this.conversation, turn);
        } catch (error) {
          announce(error.message);
        }
        this.scrollToEnd();
        focusInput();
      },
    };
    const scroll = $('scroll');
    scroll.addEventListener('wheel', (event) => event.deltaY < 0 && this.#unpin(), { passive: true });
    scroll.addEventListener('touchmove', () => this.#unpin(), { passive: true });
    scroll.addEventListener('keydown', (event) => SCROLL_UP_KEYS.has(event.key) && this.#unpin());
    scroll.addEventListener('scroll', () => this.#handleScroll(), { passive: true });
    // The observer notices every change of the height, also by buttons and boxes after the text.
    const sizes = new ResizeObserver(() => this.#followEnd());
    sizes.observe(scroll);
    sizes.observe($('turns').parentElement);
    $('scroll-to-end').prepend(icon('down'));
    $('scroll-to-end').addEventListener('click', () => {
      this.scrollToEnd();
      focusInput();
    });
    $('load-earlier').addEventListener('click', async () => {
      const before = scroll.scrollHeight - scroll.scrollTop;
      this.isPinned = false;
      await conversations.loadOlder(this.conversation);
      scroll.scrollTop = scroll.scrollHeight - before;
    });
  }

  /** Updates the view. Turns keep their views, so that a streaming answer is not drawn again. */
  render() {
    const conversation = this.conversations.current;
    const turns = $('turns');
    if (conversation !== this.conversation) {
      this.conversation = conversation;
      this.views.clear();
      turns.replaceChildren();
      this.isPinned = true;
    }
    const listed = new Set(conversation?.turns);
    for (const [turn, view] of this.views) {
      if (listed.has(turn)) continue;
      view.element.remove();
      this.views.delete(turn);
    }
    let previous = null;
    for (const turn of conversation?.turns ?? []) {
      let view = this.views.get(turn);
      if (view) {
        view.update();
      } else {
        view = new TurnView(turn, this.actions);
        this.views.set(turn, view);
      }
      const next = previous ? previous.nextSibling : turns.firstChild;
      if (next !== view.element) turns.insertBefore(view.element, next);
      previous = view.element;
    }
    $('welcome').hidden = conversation !== null;
    $('load-earlier').hidden = !conversation?.next;
    const error = conversation?.error ?? (conversation?.isLoaded && conversation.turns.length === 0 ? NOT_FOUND : '');
    $('thread-error').className = error === NOT_FOUND ? 'hint' : 'error-text';
    $('thread-error').hidden = error === '';
    $('thread-error').textContent = error;
    this.#followEnd();
  }

  scrollToEnd() {
    this.isPinned = true;
    this.#followEnd();
  }

  #unpin() {
    const { scrollHeight, clientHeight } = $('scroll');
    if (scrollHeight > clientHeight) this.isPinned = false;
  }

  #distanceFromEnd() {
    const { scrollHeight, clientHeight, scrollTop } = $('scroll');
    return scrollHeight - clientHeight - scrollTop;
  }

  #handleScroll() {
    const distance = this.#distanceFromEnd();
    if (distance <= PIN_DISTANCE) this.isPinned = true;
    else if (distance > UNPIN_DISTANCE) this.isPinned = false;
    $('scroll-to-end').hidden = this.isPinned || distance < BUTTON_DISTANCE;
  }

  #followEnd() {
    const scroll = $('scroll');
    if (this.isPinned) scroll.scrollTop = scroll.scrollHeight;
    $('scroll-to-end').hidden = this.isPinned || this.#distanceFromEnd() < BUTTON_DISTANCE;
  }
}
