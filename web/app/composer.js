// The message box: Enter sends, Shift+Enter begins a new line.

import { $, icon } from './dom.js';

export class Composer {
  constructor({ send, stop, limits }) {
    this.limits = limits;
    const box = $('box');
    $('send').append(icon('send'));
    $('stop').append(icon('stop'));
    box.addEventListener('keydown', (event) => {
      // While an input method composes, Enter is its own.
      if (event.key === 'Enter' && !event.shiftKey && !event.isComposing && event.keyCode !== 229) {
        event.preventDefault();
        this.#submit(send);
      }
    });
    box.addEventListener('input', () => this.#changed());
    $('composer').addEventListener('submit', (event) => {
      event.preventDefault();
      this.#submit(send);
    });
    $('stop').addEventListener('click', () => {
      stop();
      this.focus();
    });
    this.#changed();
  }

  focus() {
    $('box').focus();
  }

  /** Offers a text to be changed or sent. */
  fill(text) {
    $('box').value = text;
    this.#changed();
    this.focus();
  }

  /** Whether there is an answer that can be stopped. */
  answering(is) {
    $('stop').hidden = !is;
  }

  #submit(send) {
    const text = $('box').value;
    if (text.trim() === '' || this.#over() > 0) return;
    if (send(text) === false) return;
    $('box').value = '';
    this.#changed();
  }

  #over() {
    const most = this.limits()?.max_content_chars ?? Infinity;
    const { length } = $('box').value;
    return length > most ? [...$('box').value].length - most : length - most;
  }

  #changed() {
    const box = $('box');
    if (!CSS.supports('field-sizing', 'content')) {
      box.style.height = 'auto';
      box.style.height = `${box.scrollHeight}px`;
    }
    const over = this.#over();
    $('send').disabled = box.value.trim() === '' || over > 0;
    $('box-count').hidden = over <= -200;
    $('box-count').textContent = over > 0 ? `${over} characters too long.` : `${-over} characters left.`;
  }
}
