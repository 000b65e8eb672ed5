// The user id and the token. A token is stored for this tab only, and never put into an address.

import { $, storage } from './dom.js';
import { AuthError } from '../chatmesh.js';

const USER_ID = /^[A-Za-z0-9._:@|+-]{1,128}$/;

/**
 * How the page gets a token, as the gateway wrote it into the page. any: the server accepts any
 * token; endpoint: the server issues one; ask: the user enters one.
 */
export const tokenSource = document.querySelector('meta[name="chatmesh-token"]').content;

function randomGuestId() {
  const bytes = crypto.getRandomValues(new Uint8Array(9));
  return `guest-${Array.from(bytes, (byte) => (byte % 36).toString(36)).join('')}`;
}

/** The stored user id, or a new random one; null when the user must sign in. */
export function loadUserId() {
  const user = storage.get('chatmesh.user');
  if (typeof user === 'string' && USER_ID.test(user)) return user;
  if (tokenSource === 'ask') return null;
  const guest = randomGuestId();
  storage.set('chatmesh.user', guest);
  return guest;
}

/** The callback for the client's option `token`. */
export async function getToken({ refused }) {
  if (tokenSource === 'any') return 'open';
  if (tokenSource === 'endpoint') return fetchToken();
  if (refused) {
    storage.set('chatmesh.token', null, sessionStorage);
    const text = storage.get('chatmesh.worked', sessionStorage)
      ? 'The server no longer accepts this token. Please sign in again.'
      : 'The server does not accept this token for this user id. Please check both.';
    throw new AuthError('unauthorized', text);
  }
  const stored = storage.get('chatmesh.token', sessionStorage);
  if (stored) return stored;
  throw new AuthError('unauthorized', 'Please sign in.');
}

/** Records that the server has accepted the token, which changes the text of a later rejection. */
export function recordSuccess() {
  if (tokenSource === 'ask') storage.set('chatmesh.worked', true, sessionStorage);
}

async function fetchToken() {
  const address = new URL('token', document.baseURI);
  address.searchParams.set('userid', loadUserId());
  const response = await fetch(address, { method: 'POST' });
  if (!response.ok) throw new Error(`no token: ${response.status}`);
  const body = await response.json();
  return { token: body.token, expiresInMs: body.expires_in * 1000 };
}

/** Opens the sign-in dialog; submitting it reloads the page. `text` is the reason that is shown. */
export function openDialog(text) {
  const dialog = $('identity');
  const userInput = $('identity-user');
  const tokenInput = $('identity-token');
  const needsToken = tokenSource === 'ask';
  const isMandatory = needsToken && !storage.get('chatmesh.token', sessionStorage);
  $('identity-title').textContent = needsToken ? 'Sign in' : 'Who are you?';
  $('identity-text').textContent =
    text ?? (needsToken ? 'Enter the user id and the token that you were given.' : 'Conversations belong to a user id. Use the same one on your other devices to see them there.');
  $('identity-token-part').hidden = !needsToken;
  tokenInput.required = needsToken;
  $('identity-cancel').hidden = isMandatory;
  $('identity-error').hidden = true;
  userInput.value = storage.get('chatmesh.user') ?? '';
  tokenInput.value = '';
  if (!dialog.open) dialog.showModal();
}

/** Connects the sign-in dialog. */
export function initDialog() {
  const dialog = $('identity');
  $('identity-cancel').addEventListener('click', () => dialog.close());
  dialog.addEventListener('cancel', (event) => $('identity-cancel').hidden && event.preventDefault());
  $('identity-token').addEventListener('input', () => {
    // A JWT contains the user id.
    const subject = jwtSubject($('identity-token').value.trim());
    if (subject && !$('identity-user').value) $('identity-user').value = subject;
  });
  $('identity-form').addEventListener('submit', (event) => {
    event.preventDefault();
    const user = $('identity-user').value.trim();
    const token = $('identity-token').value.trim();
    const problem = !USER_ID.test(user)
      ? 'A user id is 1 to 128 characters: letters, digits and . _ : @ | + - only.'
      : tokenSource === 'ask' && !/^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/.test(token)
        ? 'A token has no blanks or other special characters. Please copy all of it.'
        : null;
    $('identity-error').hidden = !problem;
    $('identity-error').textContent = problem ?? '';
    if (problem) return;
    storage.set('chatmesh.user', user);
    if (tokenSource === 'ask') storage.set('chatmesh.token', token, sessionStorage);
    storage.set('chatmesh.worked', null, sessionStorage);
    history.replaceState(null, '', location.pathname);
    location.reload();
  });
}

/** The subject of a JWT, if it is a valid user id. The signature is not verified. */
function jwtSubject(token) {
  try {
    const payload = token.split('.')[1].replaceAll('-', '+').replaceAll('_', '/');
    const { sub } = JSON.parse(new TextDecoder().decode(Uint8Array.from(atob(payload), (char) => char.charCodeAt(0))));
    return typeof sub === 'string' && USER_ID.test(sub) ? sub : null;
  } catch {
    return null;
  }
}
