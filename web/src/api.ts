/** The server's answers. At most six requests are under way; one that nobody waits for any more is aborted. */

import { useEffect, useRef } from "preact/hooks";
import { signal, useSignal, type Signal } from "@preact/signals";
import { embedded, inFile } from "./embedded";
import { decode, decodeAll, type Frame } from "./frame";

const MOST = 6;
/** The server's engine is coming: what is asked is asked again. */
const STARTING = 503;
const NO_KEY = 401;
const root = new URL("api/v1/", new URL(".", location.href.split("#")[0]));
let under_way = 0;
const waiting: (() => void)[] = [];

/** Whether the server lets nobody in from here, or no more: a key is asked for in place of the page. */
export const shut = signal(false);

/** The server said no: what it said is for people to read. */
export class ServerError extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

async function turn<T>(work: () => Promise<T>): Promise<T> {
  if (under_way >= MOST) await new Promise<void>((resolve) => waiting.push(resolve));
  under_way += 1;
  try {
    return await work();
  } finally {
    under_way -= 1;
    waiting.shift()?.();
  }
}

/** Whether answers are waited for. */
export function busy(): boolean {
  return under_way > 0;
}

interface How {
  method?: string;
  headers?: Record<string, string>;
}

function request(path: string, body: unknown, signal?: AbortSignal, { method = body === undefined ? "GET" : "POST", headers = {} }: How = {}): Promise<Response> {
  return turn(async () => {
    signal?.throwIfAborted();
    const init: RequestInit = { method, headers, credentials: "same-origin", signal: signal ?? null };
    if (body !== undefined) {
      init.body = JSON.stringify(body);
      init.headers = { ...headers, "content-type": "application/json" };
    }
    const ask = () => (inFile ? embedded(path, body) : fetch(new URL(path, root), init));
    let response = await ask();
    while (response.status === STARTING) {
      await pause(1000 * Number(response.headers.get("retry-after") ?? 1), signal);
      response = await ask();
    }
    if (response.status === NO_KEY) shut.value = true;
    if (!response.ok) throw new ServerError(response.status, await reason(response));
    return response;
  });
}

function pause(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => reject(signal.reason as Error));
  });
}

async function reason(response: Response): Promise<string> {
  const text = await response.text();
  try {
    const { error } = JSON.parse(text) as { error?: { message?: string } };
    return error?.message ?? text;
  } catch {
    return text || response.statusText;
  }
}

export async function get<T>(path: string, signal?: AbortSignal): Promise<T> {
  return (await (await request(path, undefined, signal)).json()) as T;
}

export async function post<T>(path: string, body: unknown, signal?: AbortSignal): Promise<T> {
  return (await (await request(path, body, signal)).json()) as T;
}

export async function frame<H>(path: string, body: unknown, signal?: AbortSignal): Promise<Frame<H>> {
  return decode<H>(await (await request(path, body, signal)).arrayBuffer());
}

export async function frames<H>(path: string, body: unknown, signal?: AbortSignal): Promise<Frame<H>[]> {
  return decodeAll<H>(await (await request(path, body, signal)).arrayBuffer());
}

/** Change something; the answer, if there is one. */
export async function change<T = unknown>(method: "POST" | "PUT" | "PATCH" | "DELETE", path: string, body?: unknown, headers: Record<string, string> = {}): Promise<T | undefined> {
  const response = await request(path, body, undefined, { method, headers });
  const text = await response.text();
  return text ? (JSON.parse(text) as T) : undefined;
}

/** The bytes of an answer, or the first so many of them. */
export async function raw(path: string, body?: unknown, { first, signal }: { first?: number; signal?: AbortSignal } = {}): Promise<Blob> {
  const headers: Record<string, string> = first === undefined ? {} : { range: `bytes=0-${first - 1}` };
  return (await request(path, body, signal, { headers })).blob();
}

/** The address of something to download. */
export function address(path: string): string {
  return new URL(path, root).href;
}

/** Answers are asked for once this has settled: what comes later is then told by the server. */
let listening: Promise<void> = Promise.resolve();

export function askAfter(moment: Promise<void>): void {
  listening = moment;
}

export interface Answer<T> {
  data: T | undefined;
  error: Error | undefined;
  loading: boolean;
}

/**
 * What `load` gives, and again whenever `key` changes; the old answer stays until the new one is there. A key of `null`
 * loads nothing.
 */
export function useAnswer<T>(key: string | null, load: (signal: AbortSignal) => Promise<T>): Signal<Answer<T>> {
  const answer = useSignal<Answer<T>>({ data: undefined, error: undefined, loading: key !== null });
  const latest = useRef(load);
  latest.current = load;
  useEffect(() => {
    if (key === null) return;
    const controller = new AbortController();
    answer.value = { ...answer.peek(), loading: true };
    listening.then(() => latest.current(controller.signal)).then(
      (data) => {
        if (!controller.signal.aborted) answer.value = { data, error: undefined, loading: false };
      },
      (error: Error) => {
        if (!controller.signal.aborted) answer.value = { data: answer.peek().data, error, loading: false };
      },
    );
    return () => controller.abort();
  }, [key, answer]);
  return answer;
}

/** A value, or the one before as long as that says the same: what is made of it is not made anew. */
export function useSame<T>(value: T): T {
  const kept = useRef(value);
  if (kept.current !== value && JSON.stringify(kept.current) !== JSON.stringify(value)) kept.current = value;
  return kept.current;
}
