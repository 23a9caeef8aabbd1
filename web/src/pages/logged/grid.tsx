/** A logged table: of its rows and columns only those in sight are there. */

import { useSignal } from "@preact/signals";
import { useMemo } from "preact/hooks";
import { get, useAnswer } from "../../api";
import { number } from "../../format";
import { type Sight, Windowed } from "../../ui/windowed";
import { drawing } from "./chart";
import { Drawn } from "./drawn";
import { layout, order, shown, type Sort, type Table, text } from "./table";

const ROW = 24;
/** What a table has above its rows and a chart has not, in pixels. */
const CHROME = 32;
/** A table that is lower than this shows nothing. */
const LOWEST = 3 * ROW;

export function LoggedTable({ path, name, height }: { path: string; name: string; height: number }) {
  const answer = useAnswer(path, (signal) => get<Table>(path, signal));
  const { data, error } = answer.value;
  if (error) return <p class="tone-warn">{error.message}</p>;
  return data ? <Either table={data} name={name} height={height} /> : <div class="waiting" aria-busy="true" />;
}

/** The chart that a table asks for, or its rows. */
function Either({ table, name, height }: { table: Table; name: string; height: number }) {
  const rows = useSignal(false);
  const drawn = useMemo(() => drawing(table, table.chart), [table]);
  if (drawn === null) return <Grid table={table} name={name} height={height} />;
  return (
    <div class="either">
      <button type="button" class="chip" aria-pressed={rows.value} onClick={() => { rows.value = !rows.value; }}>
        {rows.value ? "the chart" : "its rows"}
      </button>
      {rows.value ? <Grid table={table} name={name} height={height} /> : <Drawn drawing={drawn} title={table.chart?.title || name} height={height + CHROME} />}
    </div>
  );
}

function Grid({ table, name, height }: { table: Table; name: string; height: number }) {
  const filter = useSignal("");
  const sort = useSignal<Sort | null>(null);
  const rows = useMemo(() => order(table, filter.value, sort.value), [table, filter.value, sort.value]);
  const places = useMemo(() => layout(table), [table]);
  const numeric = useMemo(() => table.columns.map((_, i) => typeof table.data.find((cells) => cells[i] !== null)?.[i] === "number"), [table]);
  const last = places[places.length - 1];
  const width = last ? last.left + last.width : 0;
  const inSight = ({ left, width: room }: Sight) => places.flatMap((place, i) => (place.left + place.width >= left && place.left <= left + room ? [i] : []));
  const at = (i: number) => ({ left: `${places[i]?.left}px`, width: `${places[i]?.width}px` });
  const press = (column: number) => {
    const { value } = sort;
    sort.value = value?.column !== column ? { column, down: false } : value.down ? null : { column, down: true };
  };
  const head = (sight: Sight) => (
    <div class="grid-row head" role="row" style={{ width: `${width}px` }}>
      {inSight(sight).map((i) => {
        const way = sort.value?.column !== i ? "none" : sort.value.down ? "descending" : "ascending";
        return (
          <span key={i} role="columnheader" aria-sort={way} class={numeric[i] ? "num" : ""} style={at(i)}>
            <button type="button" title={table.columns[i]} onClick={() => press(i)}>
              {table.columns[i]}
              {way === "ascending" ? " ↑" : way === "descending" ? " ↓" : ""}
            </button>
          </span>
        );
      })}
    </div>
  );
  const row = (i: number, sight: Sight) => {
    const cells = table.data[rows[i] ?? -1] ?? [];
    return (
      <div class="grid-row" role="row" key={i} aria-rowindex={i + 2} style={{ width: `${width}px` }}>
        {inSight(sight).map((column) => (
          <span key={column} role="cell" class={typeof cells[column] === "number" ? "num" : ""} style={at(column)} title={text(cells[column])}>
            {shown(cells[column])}
          </span>
        ))}
      </div>
    );
  };
  return (
    <div class="logged-table">
      <div class="row quiet">
        <input
          type="search"
          value={filter.value}
          placeholder="Contains, or column > 3"
          aria-label={`filter rows of ${name}`}
          spellcheck={false}
          onInput={(event) => { filter.value = event.currentTarget.value; }}
        />
        {rows.length === table.data.length ? `${number(rows.length)} rows` : `${number(rows.length)} of ${number(table.data.length)} rows`}
      </div>
      <div class="grown-table" style={{ height: `${Math.max(LOWEST, height)}px` }}>
        <Windowed as="table" class="cells" count={rows.length} rowHeight={ROW} label={`table ${name}`} head={head} row={row} />
      </div>
    </div>
  );
}
