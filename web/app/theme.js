// The light and dark theme: shows the current one and lets the user switch.

import { $, icon } from './dom.js';

const prefersDark = matchMedia('(prefers-color-scheme: dark)');

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === 'dark' : prefersDark.matches;
}

function updateThemeButton() {
  const label = isDark() ? 'Use light colours' : 'Use dark colours';
  $('theme-button').replaceChildren(icon(isDark() ? 'sun' : 'moon'));
  $('theme-button').setAttribute('aria-label', label);
  $('theme-button').title = label;
}

/** Connects the theme button. */
export function initTheme() {
  $('theme-button').addEventListener('click', () => {
    const theme = isDark() ? 'light' : 'dark';
    document.documentElement.dataset.theme = theme;
    try {
      // Not JSON: theme-boot.js reads the bare word.
      localStorage.setItem('chatmesh.theme', theme);
    } catch {
      // Without storage the choice is valid for this page only.
    }
    updateThemeButton();
  });
  // Another tab has changed the theme.
  addEventListener('storage', (event) => {
    if (event.key === 'chatmesh.theme' && ['dark', 'light'].includes(event.newValue)) {
      document.documentElement.dataset.theme = event.newValue;
      updateThemeButton();
    }
  });
  prefersDark.addEventListener('change', updateThemeButton);
  updateThemeButton();
}
