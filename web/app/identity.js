// Who is chatting, and with which token. Tokens are kept for this tab only, and never in an address.

import { $, kept } from './dom.js';
import { AuthError } from '../chatmesh.js';

const USER_ID = /^[A-Za-z0-9._:@|+-]{1,128}$/;

/** any: every token will do; endpoint: the server gives one; ask: the person has one. */
export const source = document.querySelector('meta[name="chatmesh-token"]').content;

function randomUser() {
  const bytes = crypto.getRandomValues(new Uint8Array(9));
  return `guest-${Array.from(bytes, (byte) => (byte % 36).toString(36)).join('')}`;
}

/** The user id: chosen, or a random one that this browser keeps. Null: has to be asked for. */
export function userId() {
  const user = kept.get('chatmesh.user');
  if (typeof user === 'string' && USER_ID.test(user)) return user;
  if (source === 'ask') return null;
  const made = randomUser();
  kept.set('chatmesh.user', made);
  return made;
}

/** For the client's option `token`. */
export async function token({ refused }) {
  if (source === 'any') return 'open';
  if (source === 'endpoint') return fetchToken();
  if (refused) {
    kept.set('chatmesh.token', null, sessionStorage);
    const text = kept.get('chatmesh.worked', sessionStorage)
      ? 'The server does not take this token any more. Please sign in again.'
      : 'The server does not take this token for this user id. Please check both.';
    throw new AuthError('unauthorized', text);
  }
  const known = kept.get('chatmesh.token', sessionStorage);
  if (known) return known;
  throw new AuthError('unauthorized', 'Please sign in.');
}

/** The server took the token. */
export function worked() {
  if (source === 'ask') kept.set('chatmesh.worked', true, sessionStorage);
}

async function fetchToken() {
  const address = new URL('token', document.baseURI);
  address.searchParams.set('userid', userId());
  const reply = await fetch(address, { method: 'POST' });
  if (!reply.ok) throw new Error(`no token: ${reply.status}`);
  const body = await reply.json();
  return { token: body.token, expiresInMs: body.expires_in * 1000 };
}

/** Asks who it is; then the page begins anew. `text` says why it asks. */
export function ask(text) {
  const dialog = $('identity');
  const user = $('identity-user');
  const given = $('identity-token');
  const asksToken = source === 'ask';
  const must = asksToken && !kept.get('chatmesh.token', sessionStorage);
  $('identity-title').textContent = asksToken ? 'Sign in' : 'Who are you?';
  $('identity-text').textContent =
    text ?? (asksToken ? 'Enter the user id and the token that you were given.' : 'Conversations belong to a user id. Take the same one on your other devices to see them there.');
  $('identity-token-part').hidden = !asksToken;
  given.required = asksToken;
  $('identity-cancel').hidden = must;
  $('identity-error').hidden = true;
  user.value = kept.get('chatmesh.user') ?? '';
  given.value = '';
  if (!dialog.open) dialog.showModal();
}

export function prepare() {
  const dialog = $('identity');
  $('identity-cancel').addEventListener('click', () => dialog.close());
  dialog.addEventListener('cancel', (event) => $('identity-cancel').hidden && event.preventDefault());
  $('identity-token').addEventListener('input', () => {
    // A signed token says itself whose it is.
    const subject = subjectOf($('identity-token').value.trim());
    if (subject && !$('identity-user').value) $('identity-user').value = subject;
  });
  $('identity-form').addEventListener('submit', (event) => {
    event.preventDefault();
    const user = $('identity-user').value.trim();
    const given = $('identity-token').value.trim();
    const problem = !USER_ID.test(user)
      ? 'A user id is 1 to 128 characters: letters, digits and . _ : @ | + - only.'
      : source === 'ask' && !/^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/.test(given)
        ? 'A token has no blanks or other special characters. Please copy all of it.'
        : null;
    $('identity-error').hidden = !problem;
    $('identity-error').textContent = problem ?? '';
    if (problem) return;
    kept.set('chatmesh.user', user);
    if (source === 'ask') kept.set('chatmesh.token', given, sessionStorage);
    kept.set('chatmesh.worked', null, sessionStorage);
    history.replaceState(null, '', location.pathname);
    location.reload();
  });
}

function subjectOf(given) {
  try {
    const part = given.split('.')[1].replaceAll('-', '+').replaceAll('_', '/');
    const { sub } = JSON.parse(new TextDecoder().decode(Uint8Array.from(atob(part), (char) => char.charCodeAt(0))));
    return typeof sub === 'string' && USER_ID.test(sub) ? sub : null;
  } catch {
    return null;
  }
}
