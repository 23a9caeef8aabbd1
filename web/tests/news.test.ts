import { afterEach, beforeEach, expect, test, vi } from "vitest";

vi.useFakeTimers();
const heard = new Map<string, () => void>();
vi.stubGlobal("addEventListener", () => {});
vi.stubGlobal("localStorage", { getItem: () => null });
vi.stubGlobal("matchMedia", () => ({ matches: false }));
vi.stubGlobal("document", { hidden: false, documentElement: { dataset: {} }, addEventListener: () => {} });
vi.stubGlobal("EventSource", class {
  static CLOSED = 2;
  onopen = () => {};
  onerror = () => {};
  constructor() {
    streams.push(this);
  }
  addEventListener(type: string, listener: () => void) {
    heard.set(type, listener);
  }
});
const streams: { onopen: () => void; onerror: () => void }[] = [];
let waiting = false;
let first: Promise<void> = Promise.resolve();
vi.mock("../src/api", () => ({ get: async () => undefined, shut: { value: false }, address: (path: string) => path, busy: () => waiting, askAfter: (moment: Promise<void>) => { first = moment; } }));

const { followServer, news } = await import("../src/state");
followServer();

beforeEach(() => {
  news.value = 0;
  waiting = false;
});
afterEach(() => vi.runAllTimers());

test("what is asked first waits for the stream, and is not asked again once it is open", async () => {
  let asked = false;
  void first.then(() => { asked = true; });
  await Promise.resolve();
  expect(asked).toBe(false);
  streams[0]?.onopen();
  await first;
  expect(news.value).toBe(0);
});

test("however many runs the server tells of, the page looks once in half a second", () => {
  for (let run = 0; run < 1000; run++) heard.get("points")?.();
  expect(news.value).toBe(0);
  vi.advanceTimersByTime(500);
  expect(news.value).toBe(1);
});

test("it looks again once what was asked is answered, after ten seconds in any case", () => {
  waiting = true;
  heard.get("run")?.();
  vi.advanceTimersByTime(5000);
  expect(news.value).toBe(0);
  waiting = false;
  vi.advanceTimersByTime(100);
  expect(news.value).toBe(1);
  waiting = true;
  heard.get("run")?.();
  vi.advanceTimersByTime(10_200);
  expect(news.value).toBe(2);
});

test("after a stream that broke off it looks, since nobody told it meanwhile", () => {
  streams[0]?.onerror();
  streams[0]?.onopen();
  expect(news.value).toBe(1);
});
