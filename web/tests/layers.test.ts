import { expect, test } from "vitest";
import { aligned, againstMedian, againstOthers, labelOf, opened, pooled, ratio, rowsAt, rowsWithin } from "../src/charts/layers";

const names = ["blocks.0.fc.weight", "blocks.0.fc.bias", "blocks.1.fc.weight", "head.weight"];

test("a level of the tree has a row for each part, and for each tensor that lies higher up", () => {
  expect(rowsAt(names, 2).map((row) => row.path)).toEqual(["blocks.0", "blocks.1", "head.weight"]);
  expect(rowsAt(names, 1).map((row) => row.path)).toEqual(["blocks", "head"]);
});

test("as many rows as fit are shown", () => {
  expect(rowsWithin(names, 4)).toHaveLength(4);
  expect(rowsWithin(names, 3).map((row) => row.path)).toEqual(["blocks.0.fc", "blocks.1.fc", "head.weight"]);
  expect(rowsWithin(names, 1)).toHaveLength(2);
});

test("the norm of a part is that of all its elements", () => {
  const table = { names, columns: 2, cells: [3, Number.NaN, 4, 2, 1, 1, 7, 7], flags: [0, 2, 0, 1, 0, 0, 0, 0] };
  const { values, nonfinite } = pooled(table, rowsAt(names, 2), "norm");
  expect([...values]).toEqual([5, 2, 1, 1, 7, 7]);
  expect([...nonfinite]).toEqual([0, 1, 0, 0, 0, 0]);
});

test("a row against its own median, a row against the others", () => {
  const values = Float64Array.from([1, 2, 8, 4, 4, 4]);
  expect([...againstMedian(values, 3)]).toEqual([-1, 0, 2, 0, 0, 0]);
  expect(againstOthers(Float64Array.from([1, 2, 4]), 1)[2]).toBe(1);
});

test("a part that is opened has its own parts below it, and stays", () => {
  const rows = opened(names, rowsAt(names, 1), new Set(["blocks", "blocks.0"]));
  expect(rows.map(({ path, level, open }) => [path, level, open])).toEqual([
    ["blocks", 0, true],
    ["blocks.0", 1, true],
    ["blocks.0.fc", 2, false],
    ["blocks.1", 1, false],
    ["head", 0, false],
  ]);
  expect(opened(names, rowsAt(names, 9), new Set()).every(({ open }) => open === undefined)).toBe(true);
});

test("maps of two runs lie on one grid, as wide as the sparser one samples, and keep what is furthest from 0", () => {
  const dense = { names: ["a", "b"], x: [0, 2, 4, 6, 8], bucket: 2, columns: 5, cells: [1, 2, 3, 9, 5, 1, 1, 1, 1, Number.NaN], flags: [0, 0, 0, 1, 0, 0, 0, 0, 0, 2] };
  const sparse = { names: ["b", "c"], x: [0, 4, 8], bucket: 1, columns: 3, cells: [6, 7, 8, 3, 3, 3], flags: [0, 0, 0, 0, 0, 0] };
  const { x, width, tables } = aligned([dense, sparse]);
  expect([width, ...x]).toEqual([4, 0, 4, 8]);
  expect(tables.map(({ names: rows }) => rows)).toEqual([["a", "b", "c"], ["a", "b", "c"]]);
  expect([...(tables[0]?.cells as Float32Array)].slice(0, 6)).toEqual([2, 9, 5, 1, 1, Number.NaN]);
  expect([...(tables[0]?.flags as Uint8Array)].slice(0, 3)).toEqual([0, 1, 0]);
  expect([...(tables[1]?.cells as Float32Array)].slice(3)).toEqual([6, 7, 8, 3, 3, 3]);
  expect([...aligned([]).x]).toEqual([]);
});

test("a run against another is in octaves, and nothing where either has nothing", () => {
  const values = [8, 1, 0, 0, Number.NaN, 3].map(Number);
  const base = [2, 2, 0, 1, 1, Number.NaN];
  expect([...ratio(Float64Array.from(values), Float64Array.from(base))]).toEqual([2, -1, 0, Number.NaN, Number.NaN, Number.NaN]);
});

test("the mark of a sick layer takes its room from the name", () => {
  const row = { path: "blocks.2.down.bias", level: 0 };
  expect(labelOf(row, false)).toBe("…ks.2.down.bias");
  expect(labelOf(row, true)).toBe("▲ …2.down.bias");
  expect(labelOf({ path: "head.weight", level: 0 }, true)).toBe("▲ head.weight");
  expect(labelOf({ path: "blocks.2.down.bias", level: 1 }, false)).toBe("bias");
});
