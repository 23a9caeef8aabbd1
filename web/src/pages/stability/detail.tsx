/** The distribution of one tensor, or of all, over steps. */

import { type Signal, useSignal } from "@preact/signals";
import { useMemo } from "preact/hooks";
import { frame, useAnswer } from "../../api";
import { inFile } from "../../embedded";
import { type Range, whole } from "../../charts/axes";
import { bucketLabels, fractions } from "../../charts/buckets";
import { FORMATS, type Format, guides, lost, reach } from "../../charts/formats";
import { HeatChart } from "../../charts/heat";
import { number } from "../../format";
import type { HistogramHeader, RunAnswer } from "../../model";
import { useQuery } from "../../query";
import { cursor } from "../../state";
import { steps } from "../look";
import { SHARE } from "../../charts/limits";
import { Actions, buckets, Choice, endOf, Legend, NOTHING, type Panel } from "./parts";

/** The format whose limits are drawn until somebody chooses; where they are far from the values they are out of sight. */
const FIRST_FORMAT = "fp16";

export function Detail({ run, range, live }: Omit<Panel, "findings">) {
  const { query, pinned, set } = useQuery();
  const kind = query.get("kind") ?? "gradient";
  const tensor = query.get("tensor");
  return (
    <figure class="panel">
      <figcaption>
        Distribution <small>{kind} of {tensor ?? "all tensors"}{tensor || pinned || inFile ? "" : "; click a layer to choose one"}</small>
        {tensor && !pinned && (
          <button type="button" class="chip" onClick={() => set({ tensor: undefined })}>
            all tensors ✕
          </button>
        )}
        <FormatChoice />
        <Legend limits={[-6, 0]} kind="sequential" scale={SHARE} />
        <Actions show="distribution" run={run} range={range} />
      </figcaption>
      <Distribution run={run} range={range} live={live} all={whole(run.last_step)} syncKey={run.uid} kind={kind} tensor={tensor} height={220} />
    </figure>
  );
}

/** Whose limits are drawn. */
export function FormatChoice() {
  const { query, set } = useQuery();
  const value = query.get("format") ?? FIRST_FORMAT;
  const options = [...Object.keys(FORMATS).map((name) => [name, `limits of ${name}`] as const), ["none", "no limits"] as const];
  return <Choice label="limits of a format" value={value} options={options} onChange={(format) => set({ format })} />;
}

interface Props {
  run: Pick<RunAnswer, "uid">;
  range: Signal<Range>;
  live: number;
  all: [number, number];
  syncKey: string;
  kind: string;
  tensor: string | null;
  height: number;
}

/** Histograms over steps with the limits of a format; one that was chosen is in sight as a whole. */
export function Distribution({ run, range, live, all, syncKey, kind, tensor, height }: Props) {
  const chosen = useQuery().query.get("format");
  const name = chosen ?? FIRST_FORMAT;
  const format = FORMATS[name];
  const width = useSignal(0);
  const body = { run: run.uid, kind, name: tensor ?? "*", x: steps(range), px: buckets(width.value) };
  const key = width.value ? JSON.stringify([body, live]) : null;
  const answer = useAnswer(key, (signal) => frame<HistogramHeader>("histogram", body, signal));
  const data = answer.value.data;
  const counts = data?.columns.get("counts") ?? NOTHING;
  const picture = useMemo(() => {
    const x = data?.columns.get("x") ?? NOTHING;
    return fractions(counts, x, endOf(x, data?.header.bucket ?? 1), chosen && format ? reach(format) : []);
  }, [data, chosen]);
  const lines = useMemo(() => (format ? guides(name, format, picture.buckets) : []), [picture, name]);
  const words = useMemo(() => (format ? losses(name, format, counts) : ""), [data, name]);
  return (
    <>
      {answer.value.error && <div class="tone-crit note">{answer.value.error.message}</div>}
      <HeatChart
        cells={picture.cells}
        kind="sequential"
        limits={[-6, 0]}
        labels={bucketLabels(picture.buckets)}
        guides={lines}
        range={range}
        all={all}
        cursor={cursor}
        syncKey={syncKey}
        height={height}
        title={`histogram by step of ${tensor ?? "all tensors"}`}
        onWidth={(pixels) => {
          width.value = pixels;
        }}
      />
      <p class="losses">{words}</p>
    </>
  );
}

/** What would be lost in a format of what is in sight, in words. */
function losses(name: string, format: Format, counts: ArrayLike<number>): string {
  const found = lost(counts, format);
  if (found === null) return "";
  const parts = [
    [found.below, "lie below its smallest number"],
    [found.subnormal, "are subnormal, with fewer digits"],
    [found.above, "lie above its largest number"],
  ] as const;
  const said = parts.filter(([share]) => share > 0).map(([share, what]) => `${percent(share)} ${what}`);
  return `In ${name}, of the elements in sight that are not zero, ${said.join(", ") || "all are within its limits"}.`;
}

function percent(share: number): string {
  return share < 1e-4 ? "less than 0.01 %" : `${number(Number((100 * share).toPrecision(3)))} %`;
}
