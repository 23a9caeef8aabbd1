import { expect, test } from "vitest";
import { ago, bytes, duration, number, power, quantity, short, ticks } from "../src/format";

test.each([
  [null, "–"],
  [0, "0"],
  [1234567, "1.23e6"],
  [12345, "12,345"],
  [0.123456, "0.1235"],
  [-0.5, "−0.5"],
  [0.00001234, "1.23e−5"],
  [Number.NaN, "NaN"],
  [Number.POSITIVE_INFINITY, "∞"],
])("%d is written %s", (value, text) => {
  expect(number(value)).toBe(text);
});

test("powers, short numbers and times are as people write them", () => {
  expect(power(-3)).toBe("10⁻³");
  expect(short(1_250_000)).toBe("1.25M");
  expect(duration(4521.3)).toBe("1 h 15 min");
  expect(duration(59.6)).toBe("60 s");
  expect(ago("2026-01-01T00:00:00+00:00", Date.UTC(2026, 0, 1, 0, 1, 30))).toBe("2 min ago");
});

test("bytes are said in the unit that has fewest digits", () => {
  expect([0, 1023, 1024, 1_234_567, 5 * 2 ** 40].map(bytes)).toEqual(["0 B", "1023 B", "1 KiB", "1.18 MiB", "5 TiB"]);
  expect(bytes(null)).toBe("–");
});

test.each([
  ["system/memory/used_bytes", 1_570_000_000, "1.57 GB"],
  ["system/torch/memory_peak_bytes", 512, "512 B"],
  ["system/disk/write_bytes_per_s", 29_490, "29.49 kB/s"],
  ["system/cpu/percent", 96.94, "96.94 %"],
  ["system/process/cpu_percent", 0, "0 %"],
  ["system/gpu/power_watts", 312.5, "312.5 W"],
  ["phase/forward_s", 0.5445, "0.5445 s"],
  ["tokens_per_s", 15_930, "15,930"],
  ["train/loss", 2.637, "2.637"],
  ["system/memory/used_bytes", Number.NaN, "NaN"],
])("%s of %d is said as %s", (metric, value, text) => {
  expect(quantity(metric, value)).toBe(text);
});

test("the numbers of an axis are as short as they can be told apart", () => {
  expect(ticks([0, 2000, 4000, 10_000])).toEqual(["0", "2k", "4k", "10k"]);
  expect(ticks([500_000, 1e6, 1.5e6, null])).toEqual(["500k", "1M", "1.5M", ""]);
  expect(ticks([2e-5, 4e-5])).toEqual(["2e−5", "4e−5"]);
});

test("the numbers of an axis are written in full where a zoom leaves them close together", () => {
  expect(ticks([512_340, 512_345, 512_350])).toEqual(["512,340", "512,345", "512,350"]);
  expect(ticks([1.00001, 1.00002])).toEqual(["1.00001", "1.00002"]);
});
