import { beforeEach, expect, test, vi } from "vitest";

const page = { hash: "#/p/x" };
const entries: string[] = [];
vi.stubGlobal("location", page);
vi.stubGlobal("history", {
  pushState: (_: unknown, __: string, next: string) => {
    entries.push(page.hash);
    page.hash = next;
  },
  replaceState: (_: unknown, __: string, next: string) => { page.hash = next; },
});
const heard: (() => void)[] = [];
vi.stubGlobal("addEventListener", (_: string, listener: () => void) => { heard.push(listener); });

const { range, read, sameSteps, written } = await import("../src/zoomed");
const { back, set } = await import("../src/router");

function move(to: string): void {
  page.hash = to;
  for (const listener of heard) listener();
}

beforeEach(() => {
  move("#/");
  move("#/p/x");
  entries.length = 0;
});

test("a zoom is a part of the address, and an entry of the browser's history", () => {
  range.value = [100.123456, 2000];
  expect(page.hash).toBe("#/p/x?range=100.1..2000");
  expect(sameSteps()).toEqual({ range: "100.1..2000" });
  expect(entries).toEqual(["#/p/x"]);
});

test("an address with a range zooms, and one without shows all", () => {
  move("#/p/x?range=5..70");
  expect(range.value).toEqual([5, 70]);
  move("#/p/x");
  expect(range.value).toBeNull();
  expect(entries).toEqual([]);
});

test("a zoom is undone as any change of the view, and other changes keep it", () => {
  range.value = [5, 70];
  set({ y: "log" });
  expect(range.value).toEqual([5, 70]);
  back();
  back();
  expect(range.value).toBeNull();
  expect(page.hash).toBe("#/p/x");
});

test("what is no range is all of it", () => {
  for (const text of [null, "", "5", "5..", "7..5", "a..b", "1..2..3", "0..Infinity"]) expect(read(text)).toBeNull();
});

test.each<[number, number]>([[0, 1], [1.75e9, 1.75e9 + 0.25], [-3e-5, 2e-5], [512_343.7, 512_347.2]])("a range %d to %d is kept to a thousandth of its width", (low, high) => {
  const [from, to] = read(written([low, high]) ?? null) ?? [0, 0];
  expect(Math.abs(from - low)).toBeLessThan((high - low) / 1000);
  expect(Math.abs(to - high)).toBeLessThan((high - low) / 1000);
});
