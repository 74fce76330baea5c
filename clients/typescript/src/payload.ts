import { create, fromJson, isMessage, toJson } from "@bufbuild/protobuf";
import { ValueSchema } from "@bufbuild/protobuf/wkt";

import { type Payload, PayloadSchema } from "./gen/pacenote/v1/job_pb.js";

/**
 * The payload of a JSON value, as `JSON.stringify` takes it; of bytes, as they are; of `undefined`, which is none. A
 * `Payload` stays as it is.
 *
 * @throws TypeError, RangeError or SyntaxError for what is not JSON. NaN and infinities are not.
 */
export function toPayload(value: unknown): Payload {
  if (isMessage(value, PayloadSchema)) return value;
  if (value instanceof Uint8Array) return create(PayloadSchema, { content: { case: "data", value } });
  if (value === undefined) return create(PayloadSchema);
  // There and back, so that dates and the like become what they are in JSON.
  const plain = JSON.parse(JSON.stringify(value, finite));
  return create(PayloadSchema, { content: { case: "json", value: fromJson(ValueSchema, plain) } });
}

/** The JSON value, text or bytes of a payload; `undefined` where there is none. */
export function fromPayload(payload: Payload | undefined): unknown {
  const content = payload?.content;
  return content?.case === "json" ? toJson(ValueSchema, content.value) : content?.value;
}

function finite(_key: string, value: unknown): unknown {
  // JSON.stringify would make null of it without a word.
  if (typeof value === "number" && !Number.isFinite(value)) throw new RangeError(`${value} is no JSON`);
  return value;
}
