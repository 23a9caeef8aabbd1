import { beforeEach, describe, expect, test, vi } from "vitest";

const page = { hash: "#/p/x/runs" };
vi.stubGlobal("location", page);
vi.stubGlobal("history", { replaceState: (_: unknown, __: string, next: string) => { page.hash = next; } });
const heard: (() => void)[] = [];
vi.stubGlobal("addEventListener", (_: string, listener: () => void) => { heard.push(listener); });

let now = 0;
vi.spyOn(performance, "now").mockImplementation(() => now);
const { back, place, set } = await import("../src/router");

function move(to: string): void {
  page.hash = to;
  for (const listener of heard) listener();
}

describe("undoing changes of the view", () => {
  beforeEach(() => {
    now = 0;
    move("#/");
    move("#/p/x/runs");
  });

  test("works for the first change, also at once after the page has come", () => {
    set({ columns: "a" });
    expect(back()).toBe(true);
    expect(place.value.query.get("columns")).toBeNull();
  });

  test("takes back one deliberate change at a time, however quickly they came", () => {
    set({ columns: "a,b" });
    set({ columns: "a" });
    back();
    expect(place.value.query.get("columns")).toBe("a,b");
  });

  test("takes back what was typed at once as a whole, and what was typed later by itself", () => {
    for (const typed of ["l", "lo", "los"]) {
      now += 100;
      set({ search: typed }, { gradual: true });
    }
    now += 1000;
    set({ search: "loss" }, { gradual: true });
    back();
    expect(place.value.query.get("search")).toBe("los");
    back();
    expect(place.value.query.get("search")).toBeNull();
  });

  test("stays on the page that one is on", () => {
    set({ columns: "a" });
    move("#/p/y/runs");
    expect(back()).toBe(false);
    move("#/p/x/runs");
    expect(back()).toBe(false);
  });
});
