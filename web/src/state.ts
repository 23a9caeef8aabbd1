/** What all of the page shares: the theme, what is new on the server, what the pointer is on. */

import { effect, signal } from "@preact/signals";
import { address } from "./api";

export type Theme = "light" | "dark";

const stored = localStorage.getItem("theme");
const wanted: Theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
export const theme = signal<Theme>(stored === "light" || stored === "dark" ? stored : wanted);

effect(() => {
  document.documentElement.dataset["theme"] = theme.value;
});

export function toggleTheme(): void {
  theme.value = theme.value === "dark" ? "light" : "dark";
  localStorage.setItem("theme", theme.value);
}

/** The step that the pointer is at in any chart, and the run it is on. */
export const cursor = signal<number | null>(null);
export const pointed = signal<string | null>(null);

/** Grows whenever the server has something new: what shows live data has it in its key. */
export const news = signal(0);
/** "live" while the server's stream is open, "away" when it is not. */
export const connection = signal<"live" | "away">("away");

/** After an answer that was an error the browser gives up: we do not. */
const AGAIN_MS = 2000;
let stream: EventSource | undefined;

function listen(): void {
  if (document.hidden || stream) return;
  stream = new EventSource(address("live"));
  stream.onopen = () => {
    connection.value = "live";
    news.value += 1; // what came before the stream was open was told to nobody
  };
  stream.onerror = () => {
    connection.value = "away";
    if (stream?.readyState !== EventSource.CLOSED) return; // the browser opens it again, and says where it was
    stream = undefined;
    setTimeout(listen, AGAIN_MS);
  };
  for (const type of ["run", "points", "findings", "logs"]) {
    stream.addEventListener(type, () => {
      news.value += 1;
    });
  }
}

/** One stream while the tab can be seen, and none while it cannot. */
export function followServer(): void {
  listen();
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      stream?.close();
      stream = undefined;
      connection.value = "away";
    } else {
      listen();
      news.value += 1;
    }
  });
}
