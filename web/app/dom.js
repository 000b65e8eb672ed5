// Helpers for the DOM. Text only becomes text nodes: the page never uses innerHTML.

const SVG = 'http://www.w3.org/2000/svg';

const ICONS = {
  menu: 'M4 7h16M4 12h16M4 17h16',
  close: 'M6 6l12 12M18 6L6 18',
  send: 'M12 19V5M6 11l6-6 6 6',
  stop: 'M8 8h8v8H8z',
  trash: 'M5 7h14M10 7V5h4v2M7 7l1 12h8l1-12M10.5 10.5v5.5M13.5 10.5v5.5',
  sun: 'M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 3v2M12 19v2M3 12h2M19 12h2M5.6 5.6L7 7M17 17l1.4 1.4M18.4 5.6L17 7M7 17l-1.4 1.4',
  moon: 'M20 14.5A8 8 0 0 1 9.5 4a8 8 0 1 0 10.5 10.5z',
  copy: 'M9 9h10v11H9zM15 9V5H5v11h4',
  done: 'M5 12.5l4.5 4.5L19 7.5',
  retry: 'M19 12a7 7 0 1 1-2.2-5.1M19 4v4h-4',
  plus: 'M12 5v14M5 12h14',
  down: 'M12 5v14M6 13l6 6 6-6',
  person: 'M12 12a4 4 0 1 0 0-8 4 4 0 0 0 0 8zM4.5 20a7.5 7.5 0 0 1 15 0',
};

/** The element with this id. */
export const $ = (id) => document.getElementById(id);

/**
 * Creates an element. `on…` properties are listeners, others attributes; null and false are
 * omitted.
 */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children);
  return element;
}

/** An icon of the list above. */
export function icon(name) {
  const svg = document.createElementNS(SVG, 'svg');
  for (const [key, value] of Object.entries({ viewBox: '0 0 24 24', class: 'icon', 'aria-hidden': 'true' })) svg.setAttribute(key, value);
  const path = document.createElementNS(SVG, 'path');
  path.setAttribute('d', ICONS[name]);
  svg.append(path);
  return svg;
}

/**
 * A button with an icon. The label is the tooltip, and the accessible name unless there is a text.
 */
export function button(name, label, onclick, text) {
  const parts = text ? [icon(name), h('span', {}, text)] : [icon(name)];
  return h('button', { type: 'button', class: 'small-button', title: label, ...(!text && { 'aria-label': label }), onclick }, ...parts);
}

/** A button that copies the text that `getText` returns, and reports the result. */
export function copyButton(label, getText) {
  const element = button('copy', label, async () => {
    const done = await copyText(getText());
    element.replaceChildren(icon(done ? 'done' : 'close'));
    element.setAttribute('aria-label', done ? 'Copied' : 'Could not be copied');
    announce(done ? 'Copied' : 'Could not be copied');
    setTimeout(() => {
      element.replaceChildren(icon('copy'));
      element.setAttribute('aria-label', label);
    }, 1500);
  });
  return element;
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // The clipboard API needs https and permission; execCommand works without.
    const textarea = h('textarea', { class: 'visually-hidden', 'aria-hidden': 'true' });
    textarea.value = text;
    const focused = document.activeElement;
    document.body.append(textarea);
    textarea.select();
    const done = document.execCommand('copy');
    textarea.remove();
    focused?.focus();
    return done;
  }
}

/** Makes screen readers speak a text. */
export function announce(text) {
  $('announcer').textContent = text;
}

/**
 * Calls `onTick` with the remaining seconds, at once and every second until 0. Returns a stop
 * function.
 */
export function countdown(milliseconds, onTick) {
  const end = Date.now() + milliseconds;
  let timer;
  const step = () => {
    const remaining = Math.max(0, Math.ceil((end - Date.now()) / 1000));
    onTick(remaining);
    if (remaining > 0) timer = setTimeout(step, (end - Date.now()) % 1000 || 1000);
  };
  step();
  return () => clearTimeout(timer);
}

/**
 * JSON values in the browser's storage. Storage that is forbidden, full or damaged counts as empty.
 */
export const storage = {
  get(key, store = localStorage) {
    try {
      return JSON.parse(store.getItem(key));
    } catch {
      return null;
    }
  },
  set(key, value, store = localStorage) {
    try {
      if (value === null) store.removeItem(key);
      else store.setItem(key, JSON.stringify(value));
    } catch {
      // The page works without stored values.
    }
  },
};
