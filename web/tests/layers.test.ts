import { expect, test } from "vitest";
import { againstMedian, againstOthers, opened, pooled, rowsAt, rowsWithin } from "../src/charts/layers";

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
