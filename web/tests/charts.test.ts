import { describe, expect, test, vi } from "vitest";

vi.mock("../src/state", () => ({ theme: { value: "light" } }));
vi.mock("../src/charts/host", () => ({ Host: () => null }));

const { threshold, traces } = await import("../src/charts/line");
const { columnAt, stretches } = await import("../src/charts/heat");
const { BUCKETS, bucketLabels, edge, fractions } = await import("../src/charts/buckets");
const { robust, valueOf } = await import("../src/charts/limits");

const line = { label: "loss", colour: "#000", first: [1], min: [0.5], max: [99], last: [2], mean: [3] };

describe("a line", () => {
  test("reaches the lowest and the highest value of a bucket", () => {
    const { data } = traces([40], 4, [line], false);
    expect([...(data[1] ?? [])]).toEqual([1, 0.5, 99, 2]);
    expect([...data[0]]).toEqual([40, 41, 42, 43]);
  });

  test("of single values is these values", () => {
    const { data } = traces([40], 0, [line], false);
    expect([...(data[1] ?? [])]).toEqual([3]);
  });

  test("is broken where it is NaN, and on a logarithmic axis where it is not above zero; it goes on where it was not logged", () => {
    const broken = { ...line, mean: [Number.NaN, -1, 4, Number.NaN], nonfinite: [1, 0, 0, 0] };
    expect([...(traces([0, 1, 2, 3], 0, [broken], false).data[1] ?? [])]).toEqual([null, -1, 4, undefined]);
    expect([...(traces([0, 1, 2, 3], 0, [broken], true).data[1] ?? [])]).toEqual([null, null, 4, undefined]);
  });

  test("has its trend at the last step of a bucket, which it is the value at", () => {
    const { data } = traces([40], 4, [{ ...line, smooth: [7] }], false);
    expect([...(data[2] ?? [])]).toEqual([undefined, undefined, undefined, 7]);
  });

  test("of a group is its mean, and a band from the smallest to the largest", () => {
    const { data, bands } = traces([40], 4, [{ ...line, members: [3] }], false);
    expect(data.slice(1).map((values) => [...(values ?? [])])).toEqual([[99], [0.5], [3]]);
    expect(bands).toEqual([{ series: [1, 2], line: 0 }]);
  });

  test("on a symmetric logarithm begins to be one at a thousandth of its largest magnitude", () => {
    expect(threshold([{ min: [-4000, Number.NaN], max: [20, Number.NaN] }])).toBe(1);
    expect(threshold([])).toBe(1);
  });
});

describe("a heatmap", () => {
  test("finds the column of a step, whatever the widths", () => {
    const cells = { x: [0, 10, 40], end: 50 };
    expect([-1, 0, 9, 10, 39, 40, 50, 51].map((step) => columnAt(cells, step))).toEqual([null, 0, 0, 1, 1, 2, 2, null]);
  });

  test("is painted in as few pieces as there are runs of even columns", () => {
    expect(stretches({ x: [0, 10, 20, 25, 30], end: 35 })).toEqual([[0, 2], [2, 5]]);
    expect(stretches({ x: [], end: 1 })).toEqual([]);
  });
});

describe("a histogram over steps", () => {
  const counts = new Float32Array(2 * BUCKETS);
  counts[163] = 30; // zeros of the first column
  counts[165] = 10; // its smallest positive bucket
  counts[BUCKETS + 160] = 5; // a negative bucket of the second
  counts[BUCKETS + 327] = 5; // and NaN
  const { cells, buckets } = fractions(counts, [0, 10], 20);
  const row = (bucket: number) => buckets.indexOf(bucket);

  test("shows what is in sight and no more, the largest on top", () => {
    expect(buckets).toEqual([165, 163, 161, 160]);
    expect(cells.rows).toBe(4);
  });

  test("leaves out what is emptier of all values round zero, of both signs alike, and never zero", () => {
    const far = new Float32Array(BUCKETS);
    for (const bucket of [300, 40, 162]) far[bucket] = 1;
    const rows = fractions(far, [0], 1).buckets;
    expect([rows[0], rows.at(-1)]).toEqual([300, 40]);
    expect(rows.slice(rows.indexOf(286), rows.indexOf(286) + 4)).toEqual([286, 163, 162, 40]);
  });

  test("gives the share of each bucket in its column", () => {
    expect(cells.values[row(163) * 2]).toBeCloseTo(Math.log10(0.75));
    expect(cells.values[row(165) * 2]).toBeCloseTo(Math.log10(0.25));
    expect(cells.values[row(160) * 2 + 1]).toBeCloseTo(Math.log10(0.5));
    expect(cells.values[row(160) * 2]).toBeNaN();
  });

  test("marks a column that holds something not finite", () => {
    expect(Array.from(cells.nonfinite ?? []).filter(Boolean)).toHaveLength(1);
    expect(cells.nonfinite?.[1]).toBe(1);
  });

  test("has the edges of the library: two an octave from 2^-56 on", () => {
    expect(edge(165)).toBe(2 ** -56);
    expect(edge(166)).toBe(1.5 * 2 ** -56);
    expect(edge(324)).toBe(1.5 * 2 ** 23);
  });

  test("labels zero and each power of ten once, on both sides", () => {
    const all = bucketLabels(Array.from({ length: 160 }, (_, i) => 324 - i));
    expect(all.map(({ text }) => text)).toContain("1e−3");
    expect(new Set(all.map(({ text }) => text)).size).toBe(all.length);
    expect(bucketLabels([163])).toEqual([{ row: 0, text: "0", first: true }]);
    expect(bucketLabels(Array.from({ length: 160 }, (_, i) => 161 - i)).map(({ text }) => text)).toContain("−1e−3");
  });
});

test("colours leave out the few that would take all of them, and span a decade at least", () => {
  const values = Array.from({ length: 10_000 }, (_, i) => -3 + i / 10_000);
  values[5] = 300;
  const [low, high] = robust(values);
  expect(low).toBeCloseTo(-2.99, 1);
  expect(high).toBeCloseTo(-1.99, 1);
  expect(robust([])).toEqual([0, 1]);
});

test("a cell that is an exponent stands for the power", () => {
  expect(valueOf({ base: 2, unit: "× its median" }, -3)).toBe(0.125);
  expect(valueOf({ base: 10, unit: "" }, 2)).toBe(100);
  expect(valueOf({ unit: "" }, 0.5)).toBe(0.5);
});
