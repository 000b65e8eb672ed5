// The state of the connection, in words.

import { $, countdown } from './dom.js';

export function showConnection(client) {
  const words = $('connection-words');
  const tryNow = $('try-now');
  let stop = () => {};
  const show = (state) => {
    stop();
    $('connection').dataset.state = state.state;
    tryNow.hidden = state.state !== 'waiting' && state.state !== 'closed';
    tryNow.textContent = state.state === 'closed' ? 'Connect' : 'Try now';
    if (state.state === 'waiting' && state.retryInMs >= 2000) {
      // The words once, for screen readers; the seconds beside them for the others.
      words.textContent = state.words.replace('Trying again…', '');
      const left = document.createElement('span');
      left.setAttribute('aria-hidden', 'true');
      words.append(left);
      stop = countdown(state.retryInMs, (seconds) => {
        left.textContent = `Trying again in ${seconds} s.`;
      });
    } else if (words.textContent !== state.words) {
      words.textContent = state.words;
    }
  };
  tryNow.addEventListener('click', () => {
    if (client.state.state === 'closed') client.connect();
    else client.poke();
  });
  client.on('state', show);
  show(client.state);
}
