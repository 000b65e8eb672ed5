// Shows the state of the connection, and a button that retries at once.

import { $, countdown } from './dom.js';

/** Minimum delay for which a countdown is shown. */
const MIN_COUNTDOWN_MS = 2000;

/** Shows the connection state of a client, and every later change. */
export function showConnectionStatus(client) {
  const label = $('connection-label');
  const retryButton = $('retry-connection');
  let stopCountdown = () => {};
  const show = (state) => {
    stopCountdown();
    $('connection').dataset.state = state.state;
    retryButton.hidden = state.state !== 'waiting' && state.state !== 'closed';
    retryButton.textContent = state.state === 'closed' ? 'Connect' : 'Try now';
    if (state.state === 'waiting' && state.retryInMs >= MIN_COUNTDOWN_MS) {
      // Screen readers get the text once; the countdown beside it is hidden from them.
      label.textContent = state.words.replace('Trying again…', '');
      const remaining = document.createElement('span');
      remaining.setAttribute('aria-hidden', 'true');
      label.append(remaining);
      stopCountdown = countdown(state.retryInMs, (seconds) => {
        remaining.textContent = `Trying again in ${seconds} s.`;
      });
    } else if (label.textContent !== state.words) {
      label.textContent = state.words;
    }
  };
  retryButton.addEventListener('click', () => {
    if (client.state.state === 'closed') client.connect();
    else client.poke();
  });
  client.on('state', show);
  show(client.state);
}
