// Dark or light, and the list of conversations as a drawer on narrow screens.

import { $, icon } from './dom.js';

const dark = matchMedia('(prefers-color-scheme: dark)');
const narrow = matchMedia('(max-width: 760px)');

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === 'dark' : dark.matches;
}

function showTheme() {
  const label = isDark() ? 'Use light colours' : 'Use dark colours';
  $('theme').replaceChildren(icon(isDark() ? 'sun' : 'moon'));
  $('theme').setAttribute('aria-label', label);
  $('theme').title = label;
}

export function prepareTheme() {
  $('theme').addEventListener('click', () => {
    const theme = isDark() ? 'light' : 'dark';
    document.documentElement.dataset.theme = theme;
    // As early.js reads it: a bare word.
    try {
      localStorage.setItem('chatmesh.theme', theme);
    } catch {
      // For this page only, then.
    }
    showTheme();
  });
  addEventListener('storage', (event) => {
    if (event.key === 'chatmesh.theme' && ['dark', 'light'].includes(event.newValue)) {
      document.documentElement.dataset.theme = event.newValue;
      showTheme();
    }
  });
  dark.addEventListener('change', showTheme);
  showTheme();
}

/** Opens or closes the drawer; what lies behind can't be reached meanwhile. */
export function drawer(open) {
  const shown = narrow.matches && open;
  document.body.classList.toggle('drawer-open', shown);
  $('main').inert = shown;
  $('sidebar').inert = narrow.matches && !shown;
  $('open-menu').setAttribute('aria-expanded', String(shown));
}

export function prepareDrawer() {
  $('open-menu').append(icon('menu'));
  $('close-menu').append(icon('close'));
  $('open-menu').addEventListener('click', () => {
    drawer(true);
    $('close-menu').focus();
  });
  const close = () => {
    drawer(false);
    $('open-menu').focus();
  };
  $('close-menu').addEventListener('click', close);
  $('shade').addEventListener('click', close);
  $('sidebar').addEventListener('keydown', (event) => event.key === 'Escape' && narrow.matches && close());
  narrow.addEventListener('change', () => drawer(false));
  drawer(false);
}
