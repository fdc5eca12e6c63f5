/** Spectrogram of a sound, as an image. */

import { computeFrequencies } from "wavesurfer.js/dist/spectrogram-frequencies.js";
import { SAMPLE_RATE } from "./api";

const WINDOW = 512, MOST_COLUMNS = 8_000, RANGE_DB = 70;

export interface Spectrogram {
  picture: HTMLCanvasElement; // opacity is level; 0 to 8 kHz on the mel scale, low frequencies at the bottom
  columnsASecond: number;
}

export function spectrogram(samples: Float32Array): Spectrogram {
  const hop = Math.max(SAMPLE_RATE / 100, Math.ceil(samples.length / MOST_COLUMNS));
  const padded = new Float32Array(samples.length + WINDOW + 1); // centres the window of each column on its time
  padded.set(samples, WINDOW / 2);
  const [columns] = computeFrequencies([padded], {
    fftSamples: WINDOW, fftSize: 2 * WINDOW, noverlap: Math.max(1, WINDOW - hop), scale: "mel", sampleRate: SAMPLE_RATE, autoGain: true, rangeDB: RANGE_DB,
  }) as [Uint8Array[]];
  const picture = document.createElement("canvas");
  picture.width = Math.max(1, columns.length);
  picture.height = WINDOW;
  const context = picture.getContext("2d")!;
  const image = context.createImageData(picture.width, picture.height);
  columns.forEach((column, x) => column.forEach((loudness, bin) => {
    image.data[4 * ((WINDOW - 1 - bin) * picture.width + x) + 3] = loudness ** 2 / 255;
  }));
  context.putImageData(image, 0, 0);
  return { picture, columnsASecond: SAMPLE_RATE / hop };
}
