/** The frame round every page: where one is, the palette, the theme, whether the server is there. */

import type { ComponentChildren } from "preact";
import { useEffect } from "preact/hooks";
import { signal } from "@preact/signals";
import { back, go, href, place } from "../router";
import { connection, theme, toggleTheme } from "../state";
import { me, signOut } from "../session";
import { Logo } from "./marks";
import { Menu } from "./menu";
import { Palette, paletteOpen } from "./palette";
import { say, Toast, undoLast } from "./toast";

const helpOpen = signal(false);

const KEYS: [string, string][] = [
  ["⌘K or Ctrl K", "go to a run, a page or an action"],
  ["g p", "projects"],
  ["g r", "runs of this project"],
  ["g w", "workspace of this project"],
  ["g a", "alerts of this project"],
  ["g e", "reports of this project"],
  ["g s", "settings"],
  ["/", "filter"],
  ["j and k", "next and previous run of the table"],
  ["x, Enter", "choose this run, open it"],
  ["c", "compare the chosen runs"],
  [". and ,", "next and previous finding"],
  ["0 or a double click", "all steps"],
  ["[ and ]", "the steps shown before, and back"],
  ["l", "linear, logarithmic or symmetric logarithmic y"],
  ["← and →", "the panel before and after, where one fills the window; on a slider of steps the step before and after"],
  ["⌘Z or Ctrl Z", "undo: a deletion, a change of the view"],
  ["s and S", "less and more smoothing"],
  ["e", "edit this report"],
  ["⌘S or Ctrl S", "save the report that is being written"],
  ["t", "light or dark"],
  ["?", "these keys"],
];

/** A key pressed outside of a field; pages add what is theirs. */
export function useKeys(keys: Record<string, () => void>): void {
  useEffect(() => {
    let before = "";
    const press = (event: KeyboardEvent) => {
      const typing = (event.target as HTMLElement).closest("input, textarea, select, [contenteditable]");
      if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
      const action = keys[`${before} ${event.key}`] ?? keys[event.key];
      before = event.key === "g" ? "g" : "";
      if (!action) return;
      event.preventDefault();
      action();
    };
    addEventListener("keydown", press);
    return () => removeEventListener("keydown", press);
  });
}

/** Ctrl Z outside of a field: first what was just said to be done, else the last change of the view. */
export function useUndo(): void {
  useEffect(() => {
    const press = (event: KeyboardEvent) => {
      const typing = (event.target as HTMLElement).closest("input:not([type=range]):not([type=checkbox]), textarea, [contenteditable]");
      if (typing || !(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "z") return;
      event.preventDefault();
      if (!undoLast()) back();
    };
    addEventListener("keydown", press);
    return () => removeEventListener("keydown", press);
  }, []);
}

export function Shell({ children }: { children: ComponentChildren }) {
  const [, project] = place.value.path;
  useUndo();
  useKeys({
    t: toggleTheme,
    "?": () => {
      helpOpen.value = !helpOpen.value;
    },
    "g p": () => go([]),
    "g r": () => project && go(["p", project, "runs"]),
    "g w": () => project && go(["p", project]),
    "g a": () => project && go(["p", project, "alerts"]),
    "g e": () => project && go(["p", project, "reports"]),
    "g s": () => go(["settings"]),
  });
  return (
    <>
      <header class="top">
        <a class="brand" href={href([])}>
          <Logo />
          torchtrack
        </a>
        <Crumbs />
        <button type="button" class="search" onClick={() => { paletteOpen.value = true; }}>
          Go to… <kbd>{/Mac|iPhone|iPad/.test(navigator.userAgent) ? "⌘K" : "Ctrl K"}</kbd>
        </button>
        <span class={`link ${connection.value}`} title={connection.value === "live" ? "New data shows up by itself" : "No connection to the server"}>
          {connection.value === "live" ? "● live" : "○ away"}
        </span>
        <a class="button plain" href={href(["settings"])} aria-label="settings">
          ⚙
        </a>
        <WhoIAm />
        <button type="button" class="plain" onClick={toggleTheme} aria-label={`to the ${theme.value === "dark" ? "light" : "dark"} theme`}>
          {theme.value === "dark" ? "☾" : "☀"}
        </button>
        <button type="button" class="plain" onClick={() => { helpOpen.value = true; }} aria-label="keys">
          ?
        </button>
      </header>
      <main>{children}</main>
      <Palette />
      <Toast />
      {helpOpen.value && <Help />}
    </>
  );
}

/** Whom the server knows here, and the way out; where it asks nobody for a key there is neither. */
function WhoIAm() {
  const who = me.value;
  if (!who || who.kind === "anyone") return null;
  const out = () => void signOut().catch((error: Error) => say(error.message));
  return (
    <span class="who">
      <Menu label={`signed in as ${who.name}`} text={`${who.name} ▾`} actions={[{ text: "Who I am, keys", act: () => go(["settings"]) }, { text: "Sign out", act: out }]} />
    </span>
  );
}

function Crumbs() {
  const [kind, project, section] = place.value.path;
  if (kind !== "p" || !project) return <nav class="crumbs" aria-label="where" />;
  return (
    <nav class="crumbs" aria-label="where">
      <span>{project}</span>
      <a href={href(["p", project])} aria-current={section === undefined ? "page" : undefined}>
        Workspace
      </a>
      <a href={href(["p", project, "runs"])} aria-current={section === "runs" ? "page" : section === "r" ? "true" : undefined}>
        Runs
      </a>
      <a href={href(["p", project, "alerts"])} aria-current={section === "alerts" ? "page" : undefined}>
        Alerts
      </a>
      <a href={href(["p", project, "reports"])} aria-current={section === "reports" ? "page" : undefined}>
        Reports
      </a>
    </nav>
  );
}

function Help() {
  return (
    <dialog open class="help" aria-label="keys">
      <h2>Keys</h2>
      <dl>
        {KEYS.map(([key, what]) => (
          <>
            <dt>
              <kbd>{key}</kbd>
            </dt>
            <dd>{what}</dd>
          </>
        ))}
      </dl>
      <button type="button" onClick={() => { helpOpen.value = false; }}>
        Close
      </button>
    </dialog>
  );
}
