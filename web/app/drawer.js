// The sidebar as a drawer on narrow screens.

import { $, icon } from './dom.js';

const narrow = matchMedia('(max-width: 760px)');

/** Opens or closes the drawer. The part of the page that it covers is inert. */
export function setDrawerOpen(open) {
  const isShown = narrow.matches && open;
  document.body.classList.toggle('drawer-open', isShown);
  $('main').inert = isShown;
  $('sidebar').inert = narrow.matches && !isShown;
  $('open-menu').setAttribute('aria-expanded', String(isShown));
}

/** Connects the buttons that open and close the drawer. */
export function initDrawer() {
  $('open-menu').append(icon('menu'));
  $('close-menu').append(icon('close'));
  $('open-menu').addEventListener('click', () => {
    setDrawerOpen(true);
    $('close-menu').focus();
  });
  const close = () => {
    setDrawerOpen(false);
    $('open-menu').focus();
  };
  $('close-menu').addEventListener('click', close);
  $('backdrop').addEventListener('click', close);
  $('sidebar').addEventListener('keydown', (event) => event.key === 'Escape' && narrow.matches && close());
  narrow.addEventListener('change', () => setDrawerOpen(false));
  setDrawerOpen(false);
}
