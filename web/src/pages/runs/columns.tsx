/** Which columns the table has. */

import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { set } from "../../router";
import { choices, type Columns, differs, shownFirst, titleOf } from "./table";

export function ColumnManager({ columns, chosen }: { columns: Columns; chosen: string[] }) {
  const open = useSignal(false);
  const search = useSignal("");
  const node = useRef<HTMLDivElement>(null);
  useEffect(() => {
    if (!open.value) return;
    const away = (event: Event) => {
      if (!node.current?.contains(event.target as Node)) open.value = false;
    };
    addEventListener("pointerdown", away);
    return () => removeEventListener("pointerdown", away);
  }, [open.value]);
  const all = choices(columns);
  const listed = all.filter((name) => name.toLowerCase().includes(search.value.toLowerCase()));
  const keep = (names: string[]) => set({ columns: names.join(",") });
  const toggle = (name: string) => keep(chosen.includes(name) ? chosen.filter((one) => one !== name) : [...chosen, name]);
  const differing = () => keep(all.filter((name) => differs(columns[name] ?? []) && !/^summary\.(system|watch|_tt)\//.test(name)));
  return (
    <div ref={node} class="menued" onKeyDown={(event) => { if (event.key === "Escape") open.value = false; }}>
      <button type="button" aria-expanded={open.value} onClick={() => { open.value = !open.value; }}>
        Columns
      </button>
      {open.value && (
        <div class="menu left chooser" role="dialog" aria-label="columns">
          <input type="search" value={search.value} placeholder="Find a column" aria-label="find a column" onInput={(event) => { search.value = event.currentTarget.value; }} />
          <div class="row">
            <button type="button" onClick={differing}>Only what differs</button>
            <button type="button" onClick={() => keep([...new Set([...chosen, ...listed])])}>All found</button>
            <button type="button" onClick={() => set({ columns: undefined })}>As at first</button>
          </div>
          <ul>
            {listed.slice(0, 400).map((name) => (
              <li key={name}>
                <label>
                  <input type="checkbox" aria-label={name} checked={chosen.includes(name)} onChange={() => toggle(name)} />
                  <small>{/^(config|summary)\./.exec(name)?.[0]}</small>
                  {titleOf(name)}
                </label>
              </li>
            ))}
          </ul>
          {listed.length > 400 && <p class="quiet">{listed.length - 400} more: type a part of the name.</p>}
        </div>
      )}
    </div>
  );
}

/** What is in the address, else what tells the runs apart. */
export function chosenColumns(columns: Columns, given: string | null): string[] {
  return given === null ? shownFirst(columns) : given.split(",").filter((name) => name in columns);
}
