/** The distribution of one tensor, or of all, over steps. */

import { useSignal } from "@preact/signals";
import { useMemo } from "preact/hooks";
import { frame, useAnswer } from "../../api";
import { whole } from "../../charts/axes";
import { bucketLabels, fractions } from "../../charts/buckets";
import { HeatChart } from "../../charts/heat";
import type { HistogramHeader } from "../../model";
import { place, set } from "../../router";
import { cursor } from "../../state";
import { steps } from "../look";
import { buckets, endOf, Legend, NOTHING, type Panel } from "./parts";

export function Detail({ run, range, live }: Omit<Panel, "findings">) {
  const query = place.value.query;
  const kind = query.get("kind") ?? "gradient";
  const tensor = query.get("tensor");
  const width = useSignal(0);
  const body = { run: run.uid, kind, name: tensor ?? "*", x: steps(range), px: buckets(width.value) };
  const key = width.value ? JSON.stringify([body, live]) : null;
  const answer = useAnswer(key, (signal) => frame<HistogramHeader>("histogram", body, signal));
  const data = answer.value.data;
  const picture = useMemo(() => {
    const x = data?.columns.get("x") ?? NOTHING;
    return fractions(data?.columns.get("counts") ?? new Float32Array(0), x, endOf(x, data?.header.bucket ?? 1));
  }, [data]);
  return (
    <figure class="panel">
      <figcaption>
        Distribution <small>{kind} of {tensor ?? "all tensors"}{tensor ? "" : "; click a layer to choose one"}</small>
        {tensor && (
          <button type="button" class="chip" onClick={() => set({ tensor: undefined })}>
            all tensors ✕
          </button>
        )}
        <Legend limits={[-6, 0]} kind="sequential" unit="log₁₀ of the share" />
      </figcaption>
      {answer.value.error && <div class="tone-crit note">{answer.value.error.message}</div>}
      <HeatChart
        cells={picture.cells}
        kind="sequential"
        limits={[-6, 0]}
        labels={bucketLabels(picture.buckets)}
        range={range}
        all={whole(run.last_step)}
        cursor={cursor}
        syncKey={run.uid}
        height={220}
        title={`histogram by step of ${tensor ?? "all tensors"}`}
        onWidth={(pixels) => {
          width.value = pixels;
        }}
      />
    </figure>
  );
}

