/** What all of the page shares: the theme, what is new on the server, what the pointer is on. */

import { effect, signal } from "@preact/signals";
import { address, askAfter, busy, get, shut } from "./api";

type Theme = "light" | "dark";

/** What this browser keeps; where it keeps nothing for a page, such as a file in a sandbox, it is as at first. */
export function kept(name: string): string | null {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}

export function keep(name: string, value: string | null): void {
  try {
    if (value === null) localStorage.removeItem(name);
    else localStorage.setItem(name, value);
  } catch {
    return;
  }
}

const stored = kept("theme");
const wanted: Theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
export const theme = signal<Theme>(stored === "light" || stored === "dark" ? stored : wanted);

effect(() => {
  document.documentElement.dataset["theme"] = theme.value;
});

export function toggleTheme(): void {
  theme.value = theme.value === "dark" ? "light" : "dark";
  keep("theme", theme.value);
}

/** Paper is light. */
let onScreen: Theme | null = null;
addEventListener("beforeprint", () => {
  onScreen = theme.peek();
  theme.value = "light";
});
addEventListener("afterprint", () => {
  if (onScreen) theme.value = onScreen;
});

/** The step that the pointer is at in any chart, and the run it is on. */
export const cursor = signal<number | null>(null);
export const pointed = signal<string | null>(null);

/** Grows whenever the server has something new: what shows live data has it in its key. */
export const news = signal(0);
/** "live" while the server's stream is open, "away" when it is not. */
export const connection = signal<"live" | "away">("away");

/** After an answer that was an error the browser gives up: we do not. */
const AGAIN_MS = 2000;
/** So much lies between two looks at what is new, however many runs the server tells of. */
const BETWEEN_MS = 500;
/** While answers are waited for nothing new is asked, for so long at most. */
const LONGEST_WAIT_MS = 10_000;
const AGAIN_BUSY_MS = 100;
/** So long nothing is asked that the stream might not tell the changes of. */
const LONGEST_MS = 2000;
let stream: EventSource | undefined;
/** What came while no stream was open was told to nobody. */
let missed = false;
let due: ReturnType<typeof setTimeout> | undefined;

function tell(): void {
  due ??= setTimeout(look, BETWEEN_MS, performance.now());
}

/** Look once what was asked before is answered: a question that is asked again and again is never answered. */
function look(since: number): void {
  if (busy() && performance.now() - since < LONGEST_WAIT_MS) {
    due = setTimeout(look, AGAIN_BUSY_MS, since);
    return;
  }
  due = undefined;
  news.value += 1;
}

function listen(settled?: () => void): void {
  if (document.hidden || stream || shut.value) {
    settled?.();
    return;
  }
  stream = new EventSource(address("live"));
  stream.onopen = () => {
    connection.value = "live";
    if (missed) news.value += 1;
    missed = true;
    settled?.();
  };
  stream.onerror = () => {
    connection.value = "away";
    missed = true;
    settled?.();
    if (stream?.readyState !== EventSource.CLOSED) return; // the browser opens it again, and says where it was
    stream = undefined;
    void get("me").catch(() => undefined); // a stream does not say why it is refused: perhaps it takes a key again
    setTimeout(listen, AGAIN_MS);
  };
  for (const type of ["run", "points", "findings", "logs", "alarms"]) stream.addEventListener(type, tell);
}

function leave(): void {
  stream?.close();
  stream = undefined;
  connection.value = "away";
  missed = true;
}

/** One stream while the tab can be seen and somebody is let in, and none else. */
export function followServer(): void {
  const opened = new Promise<void>((settled) => {
    effect(() => {
      if (shut.value) leave();
      else listen(settled);
    });
    setTimeout(() => {
      missed ||= connection.peek() !== "live"; // some proxies hold a stream back
      settled();
    }, LONGEST_MS);
  });
  askAfter(opened);
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      leave();
    } else {
      listen();
    }
  });
}
