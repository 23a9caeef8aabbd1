/** The expression that runs are filtered by, with what could stand there as one types. */

import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { set } from "../../router";
import { useKeys } from "../../ui/shell";
import { complete, type Completion } from "./table";

const NONE: Completion = { from: 0, words: [] };

export function FilterBar({ filter, keys, error }: { filter: string; keys: readonly string[]; error: Error | undefined }) {
  const field = useRef<HTMLInputElement>(null);
  const typed = useSignal(filter);
  const offered = useSignal(NONE);
  const at = useSignal(-1);
  useEffect(() => {
    typed.value = filter;
  }, [filter, typed]);
  useKeys({ "/": () => field.current?.focus() });
  const apply = () => {
    offered.value = NONE;
    if (typed.value !== filter) set({ filter: typed.value || undefined }, { push: true });
  };
  const offer = () => {
    const node = field.current;
    if (node) offered.value = complete(node.value, node.selectionStart ?? node.value.length, keys);
    at.value = -1;
  };
  const take = (word: string) => {
    const node = field.current;
    if (!node) return;
    const caret = node.selectionStart ?? node.value.length;
    const text = `${node.value.slice(0, offered.value.from)}${word} `;
    typed.value = text + node.value.slice(caret);
    node.value = typed.value;
    node.setSelectionRange(text.length, text.length);
    offered.value = NONE;
  };
  const press = (event: KeyboardEvent) => {
    const { words } = offered.value;
    const chosen = words[at.value];
    if (event.key === "Escape") offered.value = NONE;
    else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (words.length === 0) offer();
      else at.value = (at.value + (event.key === "ArrowDown" ? 1 : -1) + words.length) % words.length;
    } else if ((event.key === "Tab" || event.key === "Enter") && (chosen || (event.key === "Tab" && words.length > 0))) {
      event.preventDefault();
      take(chosen ?? words[0] ?? "");
    } else if (event.key === "Enter") apply();
  };
  const open = offered.value.words.length > 0;
  return (
    <div class="filter">
      <div class="completed">
        <input
          ref={field}
          type="search"
          role="searchbox"
          value={typed.value}
          placeholder="Filter: config.lr < 3e-4 and state = running"
          aria-label="filter"
          aria-invalid={error !== undefined}
          autocomplete="off"
          spellcheck={false}
          onInput={(event) => {
            typed.value = event.currentTarget.value;
            offer();
          }}
          onKeyDown={press}
          onBlur={apply}
        />
        {open && (
          <ul class="menu" role="listbox" aria-label="what could stand here">
            {offered.value.words.map((word, i) => (
              <li
                key={word}
                role="option"
                aria-selected={i === at.value}
                onPointerDown={(event) => {
                  event.preventDefault(); // the field keeps the focus
                  take(word);
                }}
              >
                {word}
              </li>
            ))}
          </ul>
        )}
      </div>
      {error && <span class="tone-crit" role="alert">{error.message}</span>}
    </div>
  );
}
