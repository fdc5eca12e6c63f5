/** Curve files in the formats that `foley` reads and writes: JSON and CSV. */

import { FRAMES_A_SECOND } from "./api";
import { json } from "./page";

export function curveFile(values: ArrayLike<number>): Blob {
  return json({ rate_hz: FRAMES_A_SECOND, rms: Array.from(values, (value) => Number(value.toFixed(6))) });
}

/** Reads the values in a file; throws an error with a message for the user. */
export async function readCurve(file: File): Promise<number[]> {
  const text = await file.text();
  const values = file.name.toLowerCase().endsWith(".csv") ? fromCsv(text) : fromJson(text);
  if (!values) throw new Error(`There is no curve in ${file.name}: {"rate_hz": 100, "rms": [...]}, or lines of time_s,rms, are one.`);
  if (!values.every((value) => Number.isFinite(value) && value >= 0)) throw new Error(`There are values in ${file.name} that are no loudness; it is 0 or more.`);
  return values;
}

function fromJson(text: string): number[] | undefined {
  try {
    const { rate_hz, rms } = JSON.parse(text);
    return rate_hz === FRAMES_A_SECOND && Array.isArray(rms) && rms.every((value) => typeof value === "number") ? rms : undefined;
  } catch {
    return undefined;
  }
}

function fromCsv(text: string): number[] | undefined {
  const [header, ...lines] = text.replace(/^\uFEFF/, "").split(/\r?\n/).filter((line) => line.trim());
  if (header?.replaceAll(" ", "") !== "time_s,rms") return undefined;
  const rows = lines.map((line) => line.split(",").map(Number));
  const inTime = rows.every(([time, , ...more], i) => !more.length && Math.abs(time! - i / FRAMES_A_SECOND) <= 0.005);
  return inTime ? rows.map(([, value]) => value ?? NaN) : undefined;
}
