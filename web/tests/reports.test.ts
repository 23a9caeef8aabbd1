import { describe, expect, test, vi } from "vitest";

vi.stubGlobal("location", { hash: "", href: "http://localhost/" });
vi.stubGlobal("addEventListener", () => {});
vi.mock("../src/state", () => ({ theme: { value: "light" }, kept: () => null, keep: () => {} }));
const { curvesPanel, parsePanel, queryOf, rangeOf, runsOf, stabilityPanel, writePanel } = await import("../src/pages/reports/panel");
const { leads } = await import("../src/pages/reports/markdown");
const { question } = await import("../src/embedded");
const { TAUS } = await import("../src/pages/look");

const RUNS = ["0123456789abcdef", "fedcba9876543210"];

describe("a panel of a report", () => {
  test("is a block whose fields come back as they were written", () => {
    const query = new URLSearchParams({ y: "log", x: "metric:tokens: seen", search: "loss", runs: "x" });
    const fields = curvesPanel("loss: train", RUNS.map((run) => ({ item: { run } })), query, [100.00012345, 2000], 50);
    const block = writePanel(fields);
    expect(block.startsWith("```panel\n") && block.endsWith("\n```")).toBe(true);
    expect(parsePanel(block.split("\n").slice(1, -1).join("\n"))).toEqual(fields);
    expect(fields).toEqual({ metric: "loss: train", runs: RUNS.join(", "), x: "metric:tokens: seen", y: "log", smooth: "50", from: "100", to: "2000" });
  });

  test("is the same view as the page it comes from", () => {
    const fields = stabilityPanel("layers", RUNS[0] ?? "", new URLSearchParams({ kind: "update", tensor: "a.*", ranks: "all" }), null);
    expect(fields).toEqual({ show: "layers", runs: RUNS[0], kind: "update", tensor: "a.*" });
    expect(TAUS[Number(queryOf({ smooth: "50" }).get("smooth"))]).toBe(50);
    expect(TAUS[Number(queryOf({ smooth: "60" }).get("smooth"))]).toBe(50);
    expect(queryOf({}).get("smooth")).toBe("0");
  });

  test("names runs by uid, and a range by both ends", () => {
    expect(runsOf({ runs: `${RUNS[0]}, nonsense,${RUNS[0]},"]${RUNS[1]}, ${RUNS[1]}` })).toEqual(RUNS);
    expect(rangeOf({ from: "1", to: "9.5" })).toEqual([1, 9.5]);
    expect(rangeOf({ from: "1" })).toBeNull();
    expect(rangeOf({ from: "9", to: "1" })).toBeNull();
    expect(rangeOf({ from: "x", to: "Infinity" })).toBeNull();
  });

  test("keeps as much of a range as can be seen of it, however small its numbers are", () => {
    const range: [number, number] = [1.23456789e-7, 5.4321e-5];
    const fields = curvesPanel("loss", [], new URLSearchParams(), range, 0);
    const [low, high] = rangeOf(fields) ?? [0, 0];
    expect(Math.abs(low - range[0])).toBeLessThan(1e-8);
    expect(Math.abs(high - range[1])).toBeLessThan(1e-8);
  });
});

test("a link leads to a page or a person, and runs nothing", () => {
  for (const good of ["https://example.org/a?b#c", "http://example.org", "mailto:ann@example.org"]) expect(leads(good)).toBe(true);
  for (const bad of ["javascript:alert(1)", "JaVaScRiPt:alert(1)", " javascript:alert(1)", "java\nscript:alert(1)", "data:text/html,<script>", "vbscript:x", "file:///etc/passwd", "x", ""]) {
    expect(leads(bad), bad).toBe(false);
  }
});

test("a question is the same in whatever order it is put, and for however many pixels", () => {
  const one = { run: "a", x: { from: null, to: 5 }, px: 100, items: [{ metric: "m", run: "a" }] };
  const other = { items: [{ run: "a", metric: "m" }], px: 700, x: { to: 5, from: null }, run: "a" };
  expect(question("series", one)).toBe(question("series", other));
  expect(question("series", { ...one, x: { from: 1, to: 5 } })).not.toBe(question("series", other));
});
