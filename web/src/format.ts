/** Numbers, times and durations as people read them. */

const SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹";

/** Made once: it takes longer to make one than to write a hundred numbers. */
const WHOLE = new Intl.NumberFormat("en");
const FULL = new Intl.NumberFormat("en", { maximumSignificantDigits: 12 });
const FRACTION = new Intl.NumberFormat("en", { maximumFractionDigits: 6 });

/** Four significant digits; powers of ten where that is shorter. */
export function number(value: number | null | undefined): string {
  if (value === null || value === undefined) return "–";
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (value === 0) return "0";
  const magnitude = Math.abs(value);
  if (Number.isInteger(value) && magnitude < 1e6) return signed(WHOLE.format(value));
  if (magnitude >= 1e6 || magnitude < 1e-3) return exponential(value, 3);
  return signed(FRACTION.format(Number(value.toPrecision(4))));
}

function exponential(value: number, digits: number): string {
  const [mantissa = "", exponent = "0"] = value.toExponential(digits - 1).split("e");
  return signed(`${mantissa.replace(/\.?0+$/, "")}e${exponent.replace("+", "")}`);
}

/** A power of ten: 10⁻³. */
export function power(exponent: number): string {
  const digits = [...String(Math.abs(exponent))].map((digit) => SUPERSCRIPTS[Number(digit)]).join("");
  return `10${exponent < 0 ? "⁻" : ""}${digits}`;
}

/** 1,234,567 as 1.23M. */
export function short(value: number, digits = 3): string {
  for (const [size, unit] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]] as const) {
    if (Math.abs(value) >= size) return signed(`${Number((value / size).toPrecision(digits))}${unit}`);
  }
  if (value !== 0 && Math.abs(value) < 1e-3) return exponential(value, digits);
  return signed(String(Number(value.toPrecision(digits))));
}

/** Ends of the names of metrics that say what is measured, and its unit. */
const UNITS: readonly (readonly [RegExp, (value: number) => string])[] = [
  [/_bytes$/, (value) => `${spaced(value)}B`],
  [/_bytes_per_s$/, (value) => `${spaced(value)}B/s`],
  [/(^|[/_])percent$/, (value) => `${number(value)} %`],
  [/_watts$/, (value) => `${number(value)} W`],
  [/_celsius$/, (value) => `${number(value)} °C`],
  [/(?<!_per)_s$/, (value) => `${number(value)} s`],
  [/_ms$/, (value) => `${number(value)} ms`],
];

/** A value of a metric, with the unit if the name says one: bytes in powers of a thousand, as along an axis. */
export function quantity(metric: string, value: number): string {
  const write = Number.isFinite(value) ? UNITS.find(([ending]) => ending.test(metric))?.[1] : undefined;
  return (write ?? number)(value);
}

/** 1,234,567 as "1.235 M", for a unit to follow. */
function spaced(value: number): string {
  return short(value, 4).replace(/([kMG]?)$/, " $1");
}

/** The numbers of an axis, as short as they can be told apart; in full where that takes more than four digits. */
export function ticks(values: readonly (number | null)[]): string[] {
  const known = values.filter((value) => value !== null);
  const apart = (text: (value: number) => string) => new Set(known.map(text)).size === new Set(known).size;
  const write = [3, 4].map((digits) => (value: number) => short(value, digits)).find(apart) ?? ((value: number) => signed(FULL.format(value)));
  return values.map((value) => (value === null ? "" : write(value)));
}

/** 1,234,567 bytes as 1.18 MiB. */
export function bytes(size: number | null | undefined): string {
  if (size === null || size === undefined) return "–";
  if (size < 1024) return `${size} B`;
  const power = Math.min(4, Math.floor(Math.log2(size) / 10));
  return `${Number((size / 1024 ** power).toPrecision(3))} ${["", "KiB", "MiB", "GiB", "TiB"][power]}`;
}

/** 4521.3 seconds as 1 h 15 min. */
export function duration(seconds: number | null | undefined): string {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  if (seconds < 10) return `${Number(seconds.toPrecision(2))} s`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.round(seconds % 60)} s`;
  const hours = Math.floor(minutes / 60);
  return hours < 24 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** How long ago a moment was that is given as ISO 8601. */
export function ago(time: string | null | undefined, now = Date.now()): string {
  if (!time) return "–";
  const seconds = (now - Date.parse(time)) / 1000;
  if (seconds < 5) return "now";
  if (seconds < 60) return `${Math.round(seconds)} s ago`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.round(seconds / 3600)} h ago`;
  return `${Math.round(seconds / 86400)} d ago`;
}

function signed(text: string): string {
  return text.replace("-", "−");
}
