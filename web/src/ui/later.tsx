/** A page whose code is loaded when it is first looked at: what most visits do not need is not waited for. */

import { type ComponentChildren, h } from "preact";
import { useAnswer } from "../api";
import { Answered } from "./notices";

type Page<P> = (props: P) => ComponentChildren;

export function later<P extends object>(name: string, load: () => Promise<Page<P>>): Page<P> {
  return function Later(props: P) {
    const answer = useAnswer(name, async () => ({ page: await load() }));
    return <Answered answer={answer.value}>{({ page }) => h(page, props)}</Answered>;
  };
}
