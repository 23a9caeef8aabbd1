/** A sentence that says what was done, for some seconds, with the way back if there is one. */

import { signal } from "@preact/signals";

const LASTS_MS = 6000;

interface Said {
  text: string;
  undo?: (() => void) | undefined;
  /** Where it can be seen. */
  link?: { text: string; href: string } | undefined;
}

const said = signal<Said | null>(null);
let timer = 0;

export function say(text: string, undo?: () => void, link?: Said["link"]): void {
  clearTimeout(timer);
  said.value = { text, undo, link };
  timer = window.setTimeout(() => {
    said.value = null;
  }, LASTS_MS);
}

/** Undo what is said, if it can be. */
export function undoLast(): boolean {
  const undo = said.value?.undo;
  if (!undo) return false;
  said.value = null;
  undo();
  return true;
}

export function Toast() {
  return (
    <div class="toast" role="status" hidden={said.value === null}>
      {said.value?.text}
      {said.value?.link && <a href={said.value.link.href}>{said.value.link.text}</a>}
      {said.value?.undo && (
        <button type="button" onClick={() => undoLast()}>
          Undo
        </button>
      )}
    </div>
  );
}
