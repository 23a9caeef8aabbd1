/** A button that opens a short list of things to do. */

import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";

export interface Action {
  text: string;
  act: () => void;
}

export function Menu({ label, text = "⋯", actions }: { label: string; text?: string; actions: Action[] }) {
  const open = useSignal(false);
  const node = useRef<HTMLDivElement>(null);
  useEffect(() => {
    if (!open.value) return;
    node.current?.querySelector<HTMLButtonElement>(".menu button")?.focus();
    const away = (event: Event) => {
      if (!node.current?.contains(event.target as Node)) open.value = false;
    };
    addEventListener("pointerdown", away);
    return () => removeEventListener("pointerdown", away);
  }, [open.value]);
  const press = (event: KeyboardEvent) => {
    const step = event.key === "ArrowDown" ? 1 : event.key === "ArrowUp" ? -1 : 0;
    if (event.key === "Escape") {
      open.value = false;
      node.current?.querySelector("button")?.focus();
    } else if (step !== 0 && open.value) {
      event.preventDefault();
      const buttons = [...(node.current?.querySelectorAll<HTMLButtonElement>(".menu button") ?? [])];
      const at = buttons.indexOf(document.activeElement as HTMLButtonElement);
      buttons[(at + step + buttons.length) % buttons.length]?.focus();
    }
  };
  return (
    <div ref={node} class="menued" onKeyDown={press}>
      <button type="button" class="plain" aria-label={label} aria-haspopup="menu" aria-expanded={open.value} onClick={() => { open.value = !open.value; }}>
        {text}
      </button>
      {open.value && (
        <ul class="menu" role="menu" aria-label={label}>
          {actions.map((action) => (
            <li key={action.text} role="none">
              <button type="button" role="menuitem" onClick={() => { open.value = false; action.act(); }}>
                {action.text}
              </button>
            </li>
          ))}
        </ul>
      )}
    </div>
  );
}
