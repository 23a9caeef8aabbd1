/** ⌘K: go to a project, a run, or do something, by typing a part of its name. */

import { computed, signal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { get, post, useAnswer } from "../api";
import type { Project, ReportAnswer, RunsAnswer } from "../model";
import { go, place } from "../router";
import { toggleTheme } from "../state";

export const paletteOpen = signal(false);
const typed = signal("");
const chosen = signal(0);

interface Entry {
  text: string;
  note: string;
  act: () => void;
}

addEventListener("keydown", (event) => {
  if ((event.metaKey || event.ctrlKey) && event.key.toLowerCase() === "k") {
    event.preventDefault();
    paletteOpen.value = !paletteOpen.value;
  }
});

const project = computed(() => (place.value.path[0] === "p" ? place.value.path[1] : undefined));

export function Palette() {
  return paletteOpen.value ? <Open /> : null;
}

function Open() {
  const field = useRef<HTMLInputElement>(null);
  useEffect(() => {
    typed.value = "";
    chosen.value = 0;
    field.current?.focus();
  }, []);
  const answer = useAnswer<Entry[]>(`palette ${project.value ?? ""}`, entries);
  const words = typed.value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = (answer.value.data ?? []).filter(({ text, note }) =>
    words.every((word) => `${text} ${note}`.toLowerCase().includes(word)),
  );
  const shown = found.slice(0, 12);
  const close = () => {
    paletteOpen.value = false;
  };
  const press = (event: KeyboardEvent) => {
    if (event.key === "Escape") close();
    if (event.key === "ArrowDown") chosen.value = Math.min(chosen.value + 1, shown.length - 1);
    if (event.key === "ArrowUp") chosen.value = Math.max(chosen.value - 1, 0);
    const entry = shown[chosen.value];
    if (event.key === "Enter" && entry) {
      entry.act();
      close();
    }
  };
  return (
    <div class="veil" onClick={close}>
      <div class="palette" role="dialog" aria-label="go to" onClick={(event) => event.stopPropagation()}>
        <input
          ref={field}
          placeholder="A run, a project, an action"
          aria-label="go to"
          onKeyDown={press}
          onInput={(event) => {
            typed.value = event.currentTarget.value;
            chosen.value = 0;
          }}
        />
        {shown.length > 0 ? (
          <ul role="listbox" aria-label="where to go">
            {shown.map((entry, i) => (
              <li role="option" aria-selected={i === chosen.value} onClick={() => { entry.act(); close(); }}>
                {entry.text}
                <span>{entry.note}</span>
              </li>
            ))}
          </ul>
        ) : (
          <p class="none" role="status">
            {answer.value.error?.message ?? (answer.value.data ? "nothing is called that" : "looking …")}
          </p>
        )}
      </div>
    </div>
  );
}

async function entries(signal: AbortSignal): Promise<Entry[]> {
  const projects = await get<Project[]>("projects", signal);
  const pages = projects.map(({ project: name }) => ({ text: name, note: "project", act: () => go(["p", name]) }));
  const actions = [
    { text: "Light or dark", note: "action", act: toggleTheme },
    { text: "All projects", note: "page", act: () => go([]) },
    { text: "Settings", note: "page", act: () => go(["settings"]) },
  ];
  return [...(await runs(signal)), ...(await reports(signal)), ...pages, ...actions];
}

async function reports(signal: AbortSignal): Promise<Entry[]> {
  const here = project.value;
  if (!here) return [];
  const found = await get<ReportAnswer[]>(`reports?project=${encodeURIComponent(here)}`, signal);
  const all = { text: `Reports of ${here}`, note: "page", act: () => go(["p", here, "reports"]) };
  return [all, ...found.map(({ id, title }) => ({ text: title, note: "report", act: () => go(["p", here, "reports", id]) }))];
}

async function runs(signal: AbortSignal): Promise<Entry[]> {
  const here = project.value;
  if (!here) return [];
  const path = `projects/${encodeURIComponent(here)}/runs/query`;
  const { columns } = await post<RunsAnswer>(path, { columns: ["uid", "name", "state"], limit: 2000 }, signal);
  const uids = (columns["uid"] ?? []) as string[];
  return uids.map((uid, i) => ({
    text: String(columns["name"]?.[i]),
    note: `run, ${String(columns["state"]?.[i])}`,
    act: () => go(["p", here, "r", uid]),
  }));
}
