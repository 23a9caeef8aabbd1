/** What stands where there is nothing to see yet, or something went wrong. */

import type { ComponentChildren } from "preact";
import type { Answer } from "../api";
import { ServerError } from "../api";

export function Empty({ title, children }: { title: string; children?: ComponentChildren }) {
  return (
    <div class="empty">
      <h2>{title}</h2>
      {children}
    </div>
  );
}

export function Problem({ error }: { error: Error }) {
  const away = !(error instanceof ServerError);
  return (
    <div class="problem" role="alert">
      <strong>{away ? "The server does not answer" : error.message}</strong>
      {away && <span> Is `torchtrack ui` still running? This page goes on by itself once it is.</span>}
    </div>
  );
}

/** The children once there is an answer; before that its place, and what went wrong beside what was there. */
export function Answered<T>({ answer, children }: { answer: Answer<T>; children: (data: T) => ComponentChildren }) {
  return (
    <>
      {answer.error && <Problem error={answer.error} />}
      {answer.data !== undefined ? children(answer.data) : !answer.error && <div class="waiting" aria-busy="true" />}
    </>
  );
}
