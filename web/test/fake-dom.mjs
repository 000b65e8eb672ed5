// The part of the DOM that the views of answers use.

class FakeNode {
  parent = null;

  remove() {
    if (!this.parent) return;
    this.parent.childNodes = this.parent.childNodes.filter((node) => node !== this);
    this.parent = null;
  }

  get nextSibling() {
    const { childNodes } = this.parent;
    return childNodes[childNodes.indexOf(this) + 1] ?? null;
  }
}

class FakeText extends FakeNode {
  childNodes = [];

  constructor(data) {
    super();
    this.data = data;
  }

  get textContent() {
    return this.data;
  }

  appendData(data) {
    this.data += data;
  }
}

class FakeElement extends FakeNode {
  childNodes = [];
  attributes = {};
  listeners = {};
  hidden = false;
  open = false;
  isConnected = true;

  constructor(tag) {
    super();
    this.tag = tag;
  }

  get firstChild() {
    return this.childNodes[0] ?? null;
  }

  get lastChild() {
    return this.childNodes.at(-1) ?? null;
  }

  get textContent() {
    return this.childNodes.map((node) => node.textContent).join('');
  }

  set textContent(text) {
    this.replaceChildren(text);
  }

  get classList() {
    const classes = new Set((this.attributes.class ?? '').split(' ').filter(Boolean));
    return {
      contains: (name) => classes.has(name),
      toggle: (name, isSet) => {
        if (isSet) classes.add(name);
        else classes.delete(name);
        this.attributes.class = [...classes].join(' ');
      },
    };
  }

  hasChildNodes() {
    return this.childNodes.length > 0;
  }

  setAttribute(name, value) {
    this.attributes[name] = String(value);
  }

  addEventListener(event, listener) {
    this.listeners[event] = listener;
  }

  append(...nodes) {
    for (const node of nodes) this.insertBefore(node, null);
  }

  replaceChildren(...nodes) {
    for (const node of this.childNodes) node.parent = null;
    this.childNodes = [];
    this.append(...nodes);
  }

  insertBefore(node, next) {
    const inserted = typeof node === 'string' ? new FakeText(node) : node;
    inserted.remove();
    const index = next === null ? this.childNodes.length : this.childNodes.indexOf(next);
    this.childNodes.splice(index, 0, inserted);
    inserted.parent = this;
  }

  /** The first element with this tag. */
  querySelector(tag) {
    return this.find((element) => element.tag === tag);
  }

  /** All elements inside this one, in the order of the document. */
  *elements() {
    for (const node of this.childNodes) {
      if (!(node instanceof FakeElement)) continue;
      yield node;
      yield* node.elements();
    }
  }

  find(condition) {
    for (const element of this.elements()) if (condition(element)) return element;
    return null;
  }

  findClass(name) {
    return this.find(({ classList }) => classList.contains(name));
  }
}

/**
 * Replaces the document for one test; returns the text of the page's announcer. Animation frames
 * are drawn at once.
 */
export function installDocument(t) {
  const announcer = new FakeElement('p');
  Object.assign(globalThis, {
    document: {
      createElement: (tag) => new FakeElement(tag),
      createElementNS: (namespace, tag) => new FakeElement(tag),
      createTextNode: (text) => new FakeText(text),
      getElementById: (id) => (id === 'announcer' ? announcer : null),
    },
    requestAnimationFrame: (callback) => queueMicrotask(callback),
  });
  t.after(() => {
    delete globalThis.document;
    delete globalThis.requestAnimationFrame;
  });
  return announcer;
}
